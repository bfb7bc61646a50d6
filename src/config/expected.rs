//! What a setting takes, in words for people who set a program up.
//!
//! What it takes is read off its default, so that the words of serde ("expected parsable string") reach nobody. Never shows a value
//! that is or may hold a secret.

use bytesize::ByteSize;
use serde_json::Value;

/// What is wrong with a value that did not fit its setting. `default` is that of the setting as a whole, `key` may name a part of it.
/// `hide`: the value may be a secret. `said` is for the case that the type is right and something else is not.
pub(super) fn refusal(key: &str, default: &Value, value: &Value, hide: bool, said: &str) -> String {
    let (is_no, must_be) = words(key, default);
    if hide {
        return format!("must be {must_be}");
    }
    let shown = match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a table".to_owned(),
        Value::Null => return format!("must be {must_be}"),
        other => other.to_string(),
    };
    let is_text = matches!((default, value), (Value::String(_), Value::String(_)));
    if is_text && is_no == TEXT.0 {
        return format!("{shown} does not fit: {}", said.replace('`', "\""));
    }
    format!("{shown} {is_no}")
}

const TEXT: (&str, &str) = ("is no text; put it in quotes", "a text; put it in quotes");

/// As it follows a value, and as it follows "must be".
fn words(key: &str, default: &Value) -> (&'static str, &'static str) {
    let part = key.ends_with(']');
    match default {
        _ if key == "notify.channels" => (
            "is no list of channels; write [[notify.channels]] with kind and url below",
            "a list of channels; write [[notify.channels]] with kind and url below",
        ),
        Value::Array(_) if !part => {
            ("is no list; write it as [\"one\", \"two\"]", "a list of texts, such as [\"one\", \"two\"]")
        }
        Value::Bool(_) => ("is neither true nor false", "true or false"),
        Value::Number(number) if number.is_f64() => ("is no number", "a number"),
        Value::Number(_) => ("is no whole number, 0 or more", "a whole number, 0 or more"),
        Value::String(text) if humantime::parse_duration(text).is_ok() => {
            ("is no duration, such as \"10s\" or \"5m\"", "a duration, such as \"10s\" or \"5m\"")
        }
        Value::String(text) if text.parse::<ByteSize>().is_ok() => {
            ("is no size, such as \"64 KiB\" or \"2 GiB\"", "a size, such as \"64 KiB\" or \"2 GiB\"")
        }
        _ => TEXT,
    }
}
