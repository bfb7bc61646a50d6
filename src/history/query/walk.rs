//! Reading a JSON body with its path at hand, so that every error names the exact key.
//!
//! Owns the wording of "wrong type" and "unknown key". Knows nothing of queries.

use serde_json::{Map, Value};

use crate::history::HistoryError;

/// The longest part of a foreign key or value that is repeated in an error.
const SHOWN: usize = 80;

/// The error of this path.
pub(super) fn bad(path: &str, reason: impl Into<String>) -> HistoryError {
    let path = if path.is_empty() { "body" } else { path };
    HistoryError::Query { path: path.to_owned(), reason: reason.into() }
}

/// The path of a key below this one. A key with a dot of its own (a field) is put as it is: `range.@timestamp.gte`.
pub(super) fn below(path: &str, key: &str) -> String {
    let key: String = key.chars().take(SHOWN).collect();
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// What kind of JSON value this is, for errors.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The error of a value of the wrong type.
pub(super) fn wrong(path: &str, value: &Value, wanted: &str) -> HistoryError {
    bad(path, format!("must be {wanted}, is {}", kind(value)))
}

/// The value as an object.
pub(super) fn object<'a>(value: &'a Value, path: &str) -> Result<&'a Map<String, Value>, HistoryError> {
    value.as_object().ok_or_else(|| wrong(path, value, "an object"))
}

/// The value as a list. `{}` is an empty one: so an empty Lua table arrives, and what a sender left empty (`lt.attrs_mv.groups`) must
/// not make a policy fail that passes it on.
pub(super) fn list<'a>(value: &'a Value, path: &str) -> Result<&'a [Value], HistoryError> {
    match value {
        Value::Array(values) => Ok(values),
        Value::Object(map) if map.is_empty() => Ok(&[]),
        other => Err(wrong(path, other, "a list")),
    }
}

/// The value as a string.
pub(super) fn text<'a>(value: &'a Value, path: &str) -> Result<&'a str, HistoryError> {
    value.as_str().ok_or_else(|| wrong(path, value, "a string"))
}

/// The value as a count, not above `most`.
pub(super) fn count(value: &Value, path: &str, most: usize) -> Result<usize, HistoryError> {
    let number = value.as_u64().ok_or_else(|| bad(path, "must be a whole number of 0 or more"))?;
    match usize::try_from(number) {
        Ok(number) if number <= most => Ok(number),
        _ => Err(bad(path, format!("must be {most} or less, is {number}"))),
    }
}

/// The object with exactly one key, as Elasticsearch writes a choice.
pub(super) fn only<'a>(value: &'a Value, path: &str, what: &str) -> Result<(&'a str, &'a Value), HistoryError> {
    let map = object(value, path)?;
    let mut entries = map.iter();
    match (entries.next(), entries.next()) {
        (Some((key, value)), None) => Ok((key, value)),
        (None, _) => Err(bad(path, format!("is empty; must have one key, {what}"))),
        (Some(_), Some((second, _))) => {
            Err(bad(&below(path, second), format!("one key too many; must have one key, {what}")))
        }
    }
}

/// Refuses every key that is not known.
pub(super) fn known(map: &Map<String, Value>, path: &str, known: &[&str]) -> Result<(), HistoryError> {
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(unknown(&below(path, key), key, "key", known)),
        None => Ok(()),
    }
}

/// The error of a name that is none of the known ones, with the nearest of them.
pub(super) fn unknown(path: &str, name: &str, what: &str, known: &[&str]) -> HistoryError {
    let name: String = name.chars().take(SHOWN).collect();
    let nearest = known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(&name, known), known))
        .filter(|(distance, known)| *distance <= 1 + known.chars().count() / 3)
        .min();
    let hint = match nearest {
        Some((_, nearest)) => format!("did you mean {nearest}?"),
        None => format!("known are {}", known.join(", ")),
    };
    bad(path, format!("unknown {what}; {hint}"))
}
