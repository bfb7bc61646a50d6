//! The body: from JSON to [`Query`], and what `hits` and `top_hits` share.
//!
//! Owns which keys the body has.

use serde_json::{Map, Value};

use super::field::Field;
use super::walk::{bad, below, count, known, object, only, text, wrong};
use super::{Clause, Hits, Query, Sort, SortBy, Source, aggs};
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
