//! `aggs`: from JSON to [`Agg`].
//!
//! Owns which aggregations there are and which keys each has.

use serde_json::{Map, Value};

use super::field::Field;
use super::parse::{Reader, descending, hits, missing_value};
use super::walk::{bad, below, count, known, object, only, text, unknown};
use super::{Agg, AggKind, Calendar, Interval, MAX_AGGREGATIONS, MAX_DEPTH, MAX_TOP_HITS, Metric, OrderBy, Terms};
use crate::history::HistoryError;

const KINDS: &[&str] = &[
    "terms",
    "cardinality",
    "date_histogram",
    "top_hits",
    "min",
    "max",
    "avg",
    "sum",
    "value_count",
    "stats",
    "filter",
];

/// All aggregations of one level.
pub(super) fn all(reader: &mut Reader, value: &Value, path: &str, depth: usize) -> Result<Vec<Agg>, HistoryError> {
    if depth >= MAX_DEPTH {
        return Err(bad(path, format!("is nested more than {MAX_DEPTH} deep")));
    }
    object(value, path)?.iter().map(|(name, value)| one(reader, name, value, &below(path, name), depth)).collect()
}

fn one(reader: &mut Reader, name: &str, value: &Value, path: &str, depth: usize) -> Result<Agg, HistoryError> {
    reader.aggs += 1;
    if reader.aggs > MAX_AGGREGATIONS {
        return Err(bad(path, format!("is one aggregation too many; {MAX_AGGREGATIONS} are allowed")));
    }
    if name.len() > 256 || name.contains(['[', ']', '>']) {
        return Err(bad(path, "a name must be 256 bytes or shorter, without [ ] >"));
    }
    let map = object(value, path)?;
    let mut kind = None;
    let mut subs = None;
    for (key, value) in map {
        let here = below(path, key);
        match key.as_str() {
            "meta" => {}
            "aggs" | "aggregations" => {
                if subs.replace(all(reader, value, &here, depth + 1)?).is_some() {
                    return Err(bad(&here, "aggs and aggregations stand side by side; keep one of the two"));
                }
            }
            key if KINDS.contains(&key) => {
                if kind.replace((key, value, here.clone())).is_some() {
                    return Err(bad(&here, "one aggregation has one kind; give the second a name of its own"));
                }
            }
            key => return Err(unknown(&here, key, "aggregation", KINDS)),
        }
    }
    let (kind, value, here) = kind.ok_or_else(|| bad(path, format!("needs one of {}", KINDS.join(", "))))?;
    let subs = subs.unwrap_or_default();
    let kind = read(reader, kind, value, &here, &subs, depth)?;
    if !subs.is_empty() && !matches!(kind, AggKind::Terms(_) | AggKind::DateHistogram(..) | AggKind::Filter(_)) {
        return Err(bad(&below(path, "aggs"), "this kind has no buckets, so nothing can be computed for each"));
    }
    Ok(Agg { name: name.to_owned(), path: path.to_owned(), kind, subs })
}

fn read(
    reader: &mut Reader,
    kind: &str,
    value: &Value,
    path: &str,
    subs: &[Agg],
    depth: usize,
) -> Result<AggKind, HistoryError> {
    if kind == "filter" {
        return Ok(AggKind::Filter(reader.clause(value, path, depth)?));
    }
    let map = object(value, path)?;
    match kind {
        "terms" => terms(map, path, subs).map(AggKind::Terms),
        "cardinality" => {
            known(map, path, &["field", "precision_threshold"])?;
            Ok(AggKind::Cardinality(field(map, path)?))
        }
        "date_histogram" => date_histogram(map, path),
        "top_hits" => {
            known(map, path, &["from", "size", "sort", "_source"])?;
            let hits = hits(map, path, 3, MAX_TOP_HITS)?;
            if hits.from + hits.size > MAX_TOP_HITS {
                return Err(bad(&below(path, "size"), format!("from + size must be {MAX_TOP_HITS} or less")));
            }
            Ok(AggKind::TopHits(hits))
        }
        metric => {
            known(map, path, &["field"])?;
            let metric = match metric {
                "min" => Metric::Min,
                "max" => Metric::Max,
                "avg" => Metric::Avg,
                "sum" => Metric::Sum,
                "stats" => Metric::Stats,
                _ => Metric::Count,
            };
            let field = field(map, path)?;
            if metric != Metric::Count && !field.is_numeric() {
                return Err(bad(&below(path, "field"), format!("{} is no number", field.name())));
            }
            Ok(AggKind::Metric(metric, field))
        }
    }
}

fn field(map: &Map<String, Value>, path: &str) -> Result<Field, HistoryError> {
    let here = below(path, "field");
    let name = text(map.get("field").ok_or_else(|| bad(path, "needs the key field"))?, &here)?;
    let field = Field::parse(name, &here)?;
    if !field.has_values() {
        return Err(bad(&here, format!("{} cannot be aggregated", field.name())));
    }
    Ok(field)
}

fn terms(map: &Map<String, Value>, path: &str, subs: &[Agg]) -> Result<Terms, HistoryError> {
    const KEYS: &[&str] = &["field", "size", "order", "min_doc_count", "missing", "shard_size"];
    known(map, path, KEYS)?;
    let field = field(map, path)?;
    let size = map.get("size").map_or(Ok(10), |v| count(v, &below(path, "size"), usize::MAX))?;
    if size == 0 {
        return Err(bad(&below(path, "size"), "must be 1 or more"));
    }
    let here = below(path, "order");
    let order = match map.get("order") {
        None => vec![(OrderBy::Count, true)],
        Some(Value::Array(all)) if all.len() > 16 => return Err(bad(&here, "must have 16 keys or fewer")),
        Some(Value::Array(all)) => {
            all.iter().enumerate().map(|(i, v)| order(v, &format!("{here}[{i}]"), subs)).collect::<Result<_, _>>()?
        }
        Some(one) => vec![order(one, &here, subs)?],
    };
    let min_doc_count =
        map.get("min_doc_count").map_or(Ok(1), |v| count(v, &below(path, "min_doc_count"), usize::MAX))?;
    if min_doc_count == 0 {
        return Err(bad(&below(path, "min_doc_count"), "must be 1 or more"));
    }
    let missing = map.get("missing").map(|v| missing_value(&field, v, &below(path, "missing"))).transpose()?;
    Ok(Terms { field, size, order, min_doc_count: min_doc_count as u64, missing })
}

fn order(value: &Value, path: &str, subs: &[Agg]) -> Result<(OrderBy, bool), HistoryError> {
    let (name, direction) = only(value, path, "such as _count")?;
    let here = below(path, name);
    let descending = descending(text(direction, &here)?, &here)?;
    let by = match name {
        "_count" => OrderBy::Count,
        "_key" | "_term" => OrderBy::Key,
        name => {
            // A name may have dots of its own, so the whole name comes first.
            let place = |name: &str| subs.iter().position(|sub| sub.name == name);
            let (place, part) = match (place(name), name.rsplit_once('.')) {
                (Some(place), _) => (place, None),
                (None, Some((name, part))) => {
                    (place(name).ok_or_else(|| bad(&here, "names no aggregation of this level"))?, Some(part))
                }
                (None, None) => return Err(bad(&here, "must be _count, _key or the name of a sub-aggregation")),
            };
            OrderBy::Sub(place, number_of(&subs[place].kind, part).ok_or_else(|| bad(&here, "is not one number"))?)
        }
    };
    Ok((by, descending))
}

/// Which number of an aggregation is meant.
fn number_of(kind: &AggKind, part: Option<&str>) -> Option<Metric> {
    match (kind, part) {
        (AggKind::Cardinality(_), None | Some("value")) | (AggKind::Filter(_), None | Some("_count" | "doc_count")) => {
            Some(Metric::Count)
        }
        (AggKind::Metric(Metric::Stats, _), Some(part)) => Some(match part {
            "min" => Metric::Min,
            "max" => Metric::Max,
            "avg" => Metric::Avg,
            "sum" => Metric::Sum,
            "count" => Metric::Count,
            _ => return None,
        }),
        (AggKind::Metric(Metric::Stats, _), None) => None,
        (AggKind::Metric(metric, _), None | Some("value")) => Some(*metric),
        _ => None,
    }
}

fn date_histogram(map: &Map<String, Value>, path: &str) -> Result<AggKind, HistoryError> {
    known(map, path, &["field", "fixed_interval", "calendar_interval", "min_doc_count", "time_zone"])?;
    if field(map, path)? != Field::Timestamp {
        return Err(bad(&below(path, "field"), "must be @timestamp"));
    }
    if let Some(zone) = map.get("time_zone") {
        let here = below(path, "time_zone");
        if !matches!(text(zone, &here)?, "UTC" | "Z" | "+00:00") {
            return Err(bad(&here, "must be UTC"));
        }
    }
    let min_doc_count =
        map.get("min_doc_count").map_or(Ok(0), |v| count(v, &below(path, "min_doc_count"), usize::MAX))?;
    let interval = match (map.get("fixed_interval"), map.get("calendar_interval")) {
        (Some(fixed), None) => {
            let here = below(path, "fixed_interval");
            let wrong = || bad(&here, "must be a number and one of ms s m h d, such as 30m");
            Interval::Fixed(fixed_interval(text(fixed, &here)?).ok_or_else(wrong)?)
        }
        (None, Some(calendar)) => {
            let here = below(path, "calendar_interval");
            let wrong = || bad(&here, "must be minute, hour, day, week, month, quarter or year");
            Interval::Calendar(calendar_interval(text(calendar, &here)?).ok_or_else(wrong)?)
        }
        _ => return Err(bad(path, "needs one of fixed_interval and calendar_interval")),
    };
    Ok(AggKind::DateHistogram(interval, min_doc_count as u64))
}

fn fixed_interval(text: &str) -> Option<i64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let factor = match &text[digits..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    text[..digits].parse::<i64>().ok()?.checked_mul(factor).filter(|millis| *millis > 0)
}

fn calendar_interval(text: &str) -> Option<Calendar> {
    Some(match text {
        "second" | "1s" => Calendar::Second,
        "minute" | "1m" => Calendar::Minute,
        "hour" | "1h" => Calendar::Hour,
        "day" | "1d" => Calendar::Day,
        "week" | "1w" => Calendar::Week,
        "month" | "1M" => Calendar::Month,
        "quarter" | "1q" => Calendar::Quarter,
        "year" | "1y" => Calendar::Year,
        _ => return None,
    })
}
