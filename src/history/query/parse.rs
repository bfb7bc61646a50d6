//! The body and its `query`: from JSON to [`Query`] and [`Clause`].
//!
//! Owns which keys there are. Counts depth and clauses as it goes, so that a hostile body is refused before it costs anything.

use std::net::IpAddr;
use std::ops::Bound;

use serde_json::{Map, Value};

use super::date_math::{self, Round, Unit};
use super::field::{Field, Number};
use super::walk::{bad, below, count, known, list, object, only, text, unknown, wrong};
use super::{Bool, Clause, Hits, MAX_CLAUSES, MAX_DEPTH, MAX_TERMS, Query, Sort, SortBy, Source, Span, aggs};
use crate::history::HistoryError;
use crate::report::Time;

/// What one body has used up, and its `now`.
pub(super) struct Reader {
    pub(super) now: Time,
    pub(super) clauses: usize,
    pub(super) aggs: usize,
}

pub(super) fn body(value: &Value, now: Time) -> Result<Query, HistoryError> {
    const KEYS: &[&str] =
        &["query", "size", "from", "sort", "_source", "track_total_hits", "aggs", "aggregations", "timeout", "version"];
    let map = object(value, "")?;
    known(map, "", KEYS)?;
    let mut reader = Reader { now, clauses: 0, aggs: 0 };
    let filter = match map.get("query") {
        Some(query) => reader.clause(query, "query", 0)?,
        None => Clause::All,
    };
    match map.get("track_total_hits") {
        None | Some(Value::Bool(_) | Value::Number(_)) => {}
        Some(other) => return Err(wrong("track_total_hits", other, "true, false or a number")),
    }
    let found = match (map.get("aggs"), map.get("aggregations")) {
        (Some(_), Some(_)) => return Err(bad("aggregations", "stands beside aggs; keep one of the two")),
        (Some(aggs), None) => aggs::all(&mut reader, aggs, "aggs", 0)?,
        (None, Some(aggs)) => aggs::all(&mut reader, aggs, "aggregations", 0)?,
        (None, None) => Vec::new(),
    };
    Ok(Query { filter, hits: hits(map, "", 10, usize::MAX)?, aggs: found })
}

/// `from`, `size`, `sort` and `_source`, of the body or of `top_hits`.
pub(super) fn hits(map: &Map<String, Value>, path: &str, size: usize, most: usize) -> Result<Hits, HistoryError> {
    let number = |key: &str, default| map.get(key).map_or(Ok(default), |value| count(value, &below(path, key), most));
    Ok(Hits {
        from: number("from", 0)?,
        size: number("size", size)?,
        sort: map.get("sort").map_or(Ok(Vec::new()), |value| sort(value, &below(path, "sort")))?,
        source: map.get("_source").map_or(Ok(Source::All), |value| source(value, &below(path, "_source")))?,
        path: path.to_owned(),
    })
}

fn sort(value: &Value, path: &str) -> Result<Vec<Sort>, HistoryError> {
    match value {
        Value::Array(keys) if keys.len() > 16 => Err(bad(path, "must have 16 keys or fewer")),
        Value::Array(keys) => keys.iter().enumerate().map(|(i, key)| sort_key(key, &format!("{path}[{i}]"))).collect(),
        Value::Object(map) if map.len() > 1 => Err(bad(path, "must be a list where there are several keys")),
        one => Ok(vec![sort_key(one, path)?]),
    }
}

fn sort_key(value: &Value, path: &str) -> Result<Sort, HistoryError> {
    let (name, how) = match value {
        Value::String(name) => (name.as_str(), None),
        Value::Object(_) => only(value, path, "a field").map(|(name, how)| (name, Some(how)))?,
        other => return Err(wrong(path, other, "a field's name or an object such as {\"@timestamp\": \"desc\"}")),
    };
    let here = below(path, name);
    let by = match name {
        "_doc" | "_score" => SortBy::Kept,
        name => {
            let field = Field::parse(name, &here)?;
            if !field.has_values() {
                return Err(bad(&here, "cannot be sorted by"));
            }
            SortBy::Field(field)
        }
    };
    let mut sort = Sort { by, descending: name == "_score", missing_first: false };
    match how {
        None => {}
        Some(Value::String(order)) => sort.descending = descending(order, &here)?,
        Some(how) => {
            let map = object(how, &here)?;
            known(map, &here, &["order", "missing", "unmapped_type"])?;
            if let Some(order) = map.get("order") {
                let here = below(&here, "order");
                sort.descending = descending(text(order, &here)?, &here)?;
            }
            match map.get("missing").map(Value::as_str) {
                None | Some(Some("_last")) => {}
                Some(Some("_first")) => sort.missing_first = true,
                Some(_) => return Err(bad(&below(&here, "missing"), "must be _first or _last")),
            }
        }
    }
    Ok(sort)
}

pub(super) fn descending(order: &str, path: &str) -> Result<bool, HistoryError> {
    match order {
        "asc" => Ok(false),
        "desc" => Ok(true),
        _ => Err(bad(path, "must be asc or desc")),
    }
}

fn source(value: &Value, path: &str) -> Result<Source, HistoryError> {
    match value {
        Value::Bool(true) => Ok(Source::All),
        Value::Bool(false) => Ok(Source::None),
        Value::Object(map) => {
            known(map, path, &["includes", "excludes"])?;
            let names = |key: &str| map.get(key).map_or(Ok(Vec::new()), |value| names(value, &below(path, key)));
            Ok(Source::Only(names("includes")?, names("excludes")?))
        }
        Value::String(_) | Value::Array(_) => {
            let names = names(value, path)?;
            Ok(if names.is_empty() { Source::All } else { Source::Only(names, Vec::new()) })
        }
        other => Err(wrong(path, other, "a boolean, a list of fields or an object")),
    }
}

fn names(value: &Value, path: &str) -> Result<Vec<String>, HistoryError> {
    match value {
        Value::String(name) => Ok(vec![name.clone()]),
        Value::Array(all) if all.len() > 256 => Err(bad(path, "must have 256 names or fewer")),
        Value::Array(all) => {
            all.iter().enumerate().map(|(i, v)| text(v, &format!("{path}[{i}]")).map(str::to_owned)).collect()
        }
        other => Err(wrong(path, other, "a name or a list of names")),
    }
}

const QUERIES: &[&str] =
    &["match_all", "match_none", "bool", "term", "terms", "range", "exists", "prefix", "ids", "constant_score"];

impl Reader {
    /// One query, at this path and depth.
    pub(super) fn clause(&mut self, value: &Value, path: &str, depth: usize) -> Result<Clause, HistoryError> {
        self.clauses += 1;
        if depth >= MAX_DEPTH {
            return Err(bad(path, format!("is nested more than {MAX_DEPTH} deep")));
        }
        if self.clauses > MAX_CLAUSES {
            return Err(bad(path, format!("is one clause too many; {MAX_CLAUSES} are allowed")));
        }
        let (name, inner) = only(value, path, "such as bool, term, range")?;
        let here = below(path, name);
        match name {
            "match_all" => known(object(inner, &here)?, &here, &["boost"]).map(|()| Clause::All),
            "match_none" => known(object(inner, &here)?, &here, &[]).map(|()| Clause::Nothing),
            "bool" => self.bool(inner, &here, depth),
            "term" => term(inner, &here),
            "terms" => terms(inner, &here),
            "range" => self.range(inner, &here),
            "exists" => exists(inner, &here),
            "prefix" => prefix(inner, &here),
            "ids" => ids(inner, &here),
            "constant_score" => {
                let map = object(inner, &here)?;
                known(map, &here, &["filter", "boost"])?;
                let filter = map.get("filter").ok_or_else(|| bad(&here, "needs the key filter"))?;
                self.clause(filter, &below(&here, "filter"), depth + 1)
            }
            other => Err(unknown(&here, other, "query", QUERIES)),
        }
    }

    fn bool(&mut self, value: &Value, path: &str, depth: usize) -> Result<Clause, HistoryError> {
        const KEYS: &[&str] = &["must", "filter", "should", "must_not", "minimum_should_match"];
        let map = object(value, path)?;
        known(map, path, KEYS)?;
        let mut clauses = |key: &str| -> Result<Vec<Clause>, HistoryError> {
            let here = below(path, key);
            match map.get(key) {
                None => Ok(Vec::new()),
                Some(Value::Array(all)) => all
                    .iter()
                    .enumerate()
                    .map(|(i, value)| self.clause(value, &format!("{here}[{i}]"), depth + 1))
                    .collect(),
                Some(one) => Ok(vec![self.clause(one, &here, depth + 1)?]),
            }
        };
        let mut all = clauses("must")?;
        all.extend(clauses("filter")?);
        let some = clauses("should")?;
        let none = clauses("must_not")?;
        let minimum = match map.get("minimum_should_match") {
            None => usize::from(all.is_empty() && !some.is_empty()),
            Some(Value::String(text)) => {
                text.parse().map_err(|_| bad(&below(path, "minimum_should_match"), "must be a whole number"))?
            }
            Some(number) => count(number, &below(path, "minimum_should_match"), usize::MAX)?,
        };
        if all.is_empty() && some.is_empty() && none.is_empty() {
            return Ok(Clause::All);
        }
        Ok(Clause::Bool(Box::new(Bool { all, some, none, minimum })))
    }

    fn range(&self, value: &Value, path: &str) -> Result<Clause, HistoryError> {
        let (name, inner) = only(value, path, "a field")?;
        let here = below(path, name);
        let field = Field::parse(name, &here)?;
        let map = object(inner, &here)?;
        known(map, &here, &["gt", "gte", "lt", "lte", "format", "boost"])?;
        let bound = |open: &'static str, closed: &'static str| match (map.get(open), map.get(closed)) {
            (Some(_), Some(_)) => Err(bad(&below(&here, open), format!("stands beside {closed}; keep one of the two"))),
            (Some(value), None) => Ok(Some((open, value)).filter(|(_, value)| !value.is_null())),
            (None, value) => Ok(value.map(|value| (closed, value)).filter(|(_, value)| !value.is_null())),
        };
        let (low, high) = (bound("gt", "gte")?, bound("lt", "lte")?);
        let unit = unit(map, &here)?;
        let text_bound = |bound: Option<(&str, &Value)>| -> Result<Bound<String>, HistoryError> {
            match bound {
                None => Ok(Bound::Unbounded),
                Some((key, value)) => Ok(ends(key, text(value, &below(&here, key))?.to_owned())),
            }
        };
        let number_bound = |bound: Option<(&str, &Value)>| -> Result<Bound<f64>, HistoryError> {
            match bound {
                None => Ok(Bound::Unbounded),
                Some((key, value)) => Ok(ends(key, number(value, &below(&here, key))?)),
            }
        };
        match field {
            Field::Timestamp => self.dates(low, high, unit, &here),
            Field::T => seconds(low, high, &here),
            Field::Text(text) => Ok(Clause::TextSpan(text, text_bound(low)?, text_bound(high)?)),
            Field::Number(field) => Ok(Clause::NumberSpan(field, number_bound(low)?, number_bound(high)?)),
            Field::Remote => addresses(low, high, &here),
            _ => Err(bad(&here, "has no range; use term or exists")),
        }
    }

    fn dates(
        &self,
        low: Option<(&str, &Value)>,
        high: Option<(&str, &Value)>,
        unit: Unit,
        path: &str,
    ) -> Result<Clause, HistoryError> {
        let mut span = Span::ALL;
        for (key, value) in [low, high].into_iter().flatten() {
            let round = if matches!(key, "gt" | "lte") { Round::Up } else { Round::Down };
            let millis = self.date(value, round, unit, &below(path, key))?;
            match key {
                "gte" => span.from = millis.saturating_mul(1000),
                "gt" => span.from = millis.saturating_add(1).saturating_mul(1000),
                "lt" => span.to = millis.saturating_mul(1000),
                _ => span.to = millis.saturating_add(1).saturating_mul(1000),
            }
        }
        Ok(Clause::Time(span))
    }

    /// A date in milliseconds.
    fn date(&self, value: &Value, round: Round, unit: Unit, path: &str) -> Result<i64, HistoryError> {
        let date = match value {
            Value::String(date) => date_math::parse(date, self.now, round, unit),
            Value::Number(number) => {
                let number = number.as_f64().ok_or_else(|| bad(path, "is no number of milliseconds"))?;
                let millis = if unit == Unit::Seconds { number * 1000.0 } else { number };
                // Casts saturate: a bound beyond all of time is a bound that holds always or never.
                Ok(millis.floor() as i64)
            }
            other => return Err(wrong(path, other, "a date")),
        };
        date.map_err(|reason| bad(path, reason))
    }
}

fn ends<T>(key: &str, value: T) -> Bound<T> {
    if matches!(key, "gt" | "lt") { Bound::Excluded(value) } else { Bound::Included(value) }
}

fn unit(map: &Map<String, Value>, path: &str) -> Result<Unit, HistoryError> {
    let Some(format) = map.get("format") else { return Ok(Unit::Millis) };
    let here = below(path, "format");
    match text(format, &here)? {
        "epoch_second" => Ok(Unit::Seconds),
        "epoch_millis" | "strict_date_optional_time" | "date_optional_time" => Ok(Unit::Millis),
        "strict_date_optional_time||epoch_millis" | "date_optional_time||epoch_millis" => Ok(Unit::Millis),
        _ => Err(bad(&here, "must be epoch_second, epoch_millis or strict_date_optional_time")),
    }
}

fn seconds(low: Option<(&str, &Value)>, high: Option<(&str, &Value)>, path: &str) -> Result<Clause, HistoryError> {
    let mut span = Span::ALL;
    for (key, value) in [low, high].into_iter().flatten() {
        let micros = (number(value, &below(path, key))? * 1e6).round() as i64;
        match key {
            "gte" => span.from = micros,
            "gt" => span.from = micros.saturating_add(1),
            "lt" => span.to = micros,
            _ => span.to = micros.saturating_add(1),
        }
    }
    Ok(Clause::Time(span))
}

fn addresses(low: Option<(&str, &Value)>, high: Option<(&str, &Value)>, path: &str) -> Result<Clause, HistoryError> {
    let (mut from, mut to) = (0, u128::MAX);
    for (key, value) in [low, high].into_iter().flatten() {
        let here = below(path, key);
        let address: IpAddr = text(value, &here)?.parse().map_err(|_| bad(&here, "is no address"))?;
        let address = as_number(address);
        let none = || bad(&here, "leaves no address");
        match key {
            "gte" => from = address,
            "gt" => from = address.checked_add(1).ok_or_else(none)?,
            "lt" => to = address.checked_sub(1).ok_or_else(none)?,
            _ => to = address,
        }
    }
    Ok(if from <= to { Clause::Remote(vec![(from, to)]) } else { Clause::Nothing })
}

/// The address as a number, IPv4 as mapped into IPv6.
pub(crate) fn as_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn number(value: &Value, path: &str) -> Result<f64, HistoryError> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.filter(|n: &f64| n.is_finite()).ok_or_else(|| wrong(path, value, "a number"))
}

fn exists(value: &Value, path: &str) -> Result<Clause, HistoryError> {
    let map = object(value, path)?;
    known(map, path, &["field", "boost"])?;
    let here = below(path, "field");
    let name = text(map.get("field").ok_or_else(|| bad(path, "needs the key field"))?, &here)?;
    Ok(Clause::Exists(Field::parse(name, &here)?))
}

fn prefix(value: &Value, path: &str) -> Result<Clause, HistoryError> {
    let (field, value, here) = field_and_value(value, path)?;
    match field {
        Field::Text(field) => Ok(Clause::Prefix(field, text(value, &here)?.to_owned())),
        _ => Err(bad(&here, "has no prefix; only strings have")),
    }
}

fn ids(value: &Value, path: &str) -> Result<Clause, HistoryError> {
    let map = object(value, path)?;
    known(map, path, &["values"])?;
    let here = below(path, "values");
    let values = list(map.get("values").ok_or_else(|| bad(path, "needs the key values"))?, &here)?;
    values_of(&Field::Id, values, &here)
}

/// The field and the value of `{"term": {"login": "a"}}` or `{"term": {"login": {"value": "a"}}}`.
fn field_and_value<'a>(value: &'a Value, path: &str) -> Result<(Field, &'a Value, String), HistoryError> {
    let (name, value) = only(value, path, "a field")?;
    let here = below(path, name);
    let field = Field::parse(name, &here)?;
    match value {
        Value::Object(map) => {
            known(map, &here, &["value", "boost"])?;
            let value = map.get("value").ok_or_else(|| bad(&here, "needs the key value"))?;
            Ok((field, value, below(&here, "value")))
        }
        value => Ok((field, value, here)),
    }
}

fn term(value: &Value, path: &str) -> Result<Clause, HistoryError> {
    let (field, value, here) = field_and_value(value, path)?;
    values_of(&field, std::slice::from_ref(value), &here)
}

fn terms(value: &Value, path: &str) -> Result<Clause, HistoryError> {
    let (name, values) = only(value, path, "a field")?;
    let here = below(path, name);
    let field = Field::parse(name, &here)?;
    values_of(&field, list(values, &here)?, &here)
}

/// Documents whose field has one of these values.
fn values_of(field: &Field, values: &[Value], path: &str) -> Result<Clause, HistoryError> {
    if values.len() > MAX_TERMS {
        return Err(bad(path, format!("must have {MAX_TERMS} values or fewer")));
    }
    if values.is_empty() {
        return Ok(Clause::Nothing);
    }
    let at = |i: usize| if values.len() == 1 { path.to_owned() } else { format!("{path}[{i}]") };
    let each = || values.iter().enumerate();
    let clause = match field {
        Field::Text(field) => {
            Clause::Text(field.clone(), each().map(|(i, v)| plain(v, &at(i))).collect::<Result<_, _>>()?)
        }
        Field::Id => {
            let parse = |(i, v)| text(v, &at(i)).map(|text| text.parse().ok());
            // A text that is no id is the id of no report.
            Clause::Ids(each().map(parse).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
        }
        Field::Remote => Clause::Remote(each().map(|(i, v)| network(v, &at(i))).collect::<Result<_, _>>()?),
        Field::Number(field) => {
            Clause::Numbers(*field, each().map(|(i, v)| number(v, &at(i))).collect::<Result<_, _>>()?)
        }
        Field::Flag(flag) => {
            let wanted = each().map(|(i, v)| boolean(v, &at(i))).collect::<Result<Vec<_>, _>>()?;
            match (wanted.contains(&true), wanted.contains(&false)) {
                (true, true) => Clause::Exists(field.clone()),
                (yes, _) => Clause::Flag(*flag, yes),
            }
        }
        Field::T if values.len() == 1 => {
            let micros = (number(&values[0], path)? * 1e6).round() as i64;
            Clause::Time(Span { from: micros, to: micros.saturating_add(1) })
        }
        Field::Timestamp | Field::T => return Err(bad(path, "has no term; use range")),
        Field::Location | Field::Group(_) => return Err(bad(path, "has no term; use exists or one of its keys")),
    };
    Ok(clause)
}

/// A value as the text that it is kept as.
fn plain(value: &Value, path: &str) -> Result<String, HistoryError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        other => Err(wrong(path, other, "a string")),
    }
}

fn boolean(value: &Value, path: &str) -> Result<bool, HistoryError> {
    match value {
        Value::Bool(flag) => Ok(*flag),
        Value::String(text) if text == "true" => Ok(true),
        Value::String(text) if text == "false" => Ok(false),
        other => Err(wrong(path, other, "true or false")),
    }
}

/// An address or a network as its first and last address.
fn network(value: &Value, path: &str) -> Result<(u128, u128), HistoryError> {
    let text = text(value, path)?;
    let wrong = || bad(path, "is neither an address nor a network such as 192.0.2.0/24");
    if let Ok(address) = text.parse::<IpAddr>() {
        let address = as_number(address);
        return Ok((address, address));
    }
    let network: ipnet::IpNet = text.parse().map_err(|_| wrong())?;
    Ok((as_number(network.network()), as_number(network.broadcast())))
}

/// What stands for a value that a document lacks, in a `terms` aggregation.
pub(super) fn missing_value(field: &Field, value: &Value, path: &str) -> Result<String, HistoryError> {
    match field {
        Field::Text(_) => plain(value, path),
        Field::Number(Number::Asn) => number(value, path).map(|n| n.to_string()),
        _ => Err(bad(path, "only text fields and geoip.asn may lack a value here")),
    }
}
