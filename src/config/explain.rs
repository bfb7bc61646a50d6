//! What is in force and where it comes from, for `trackalert config`.
//!
//! Owns the masking of secrets. A secret leaves this file as a mask only.

use serde::Serialize;
use serde_json::Value;

use super::merged::Merged;
use super::unknown::{SECRETS_OF_A_WAY, WAYS_OUT};
use crate::queue::kafka;
use crate::settings::MASK;

/// One setting in force.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explained {
    /// `section.key`.
    pub key: String,
    /// The value; of a secret only whether it is set.
    pub value: Value,
    /// Something of it is masked: the value shown is not the value in force.
    pub masked: bool,
    /// `default`, `FILE:LINE`, the name of an environment variable, `--set KEY`, or the file of a secret.
    pub source: String,
}

/// All of them, in the order of `config/default.toml`.
pub(super) fn explain(merged: &Merged) -> Vec<Explained> {
    merged
        .known
        .order
        .iter()
        .map(|key| {
            let raw = without_secrets_of_files(merged, key);
            let value = match &raw {
                Value::Object(map) if key == "queue.kafka.properties" => {
                    Value::Object(map.iter().map(|(name, value)| (name.clone(), kafka::masked(name, value))).collect())
                }
                raw => mask(raw, merged.known.is_secret(key)),
            };
            let source = match merged.notes.get(key) {
                Some(note) => note.clone(),
                None => merged.source(key).map_or_else(|| "default".to_owned(), ToString::to_string),
            };
            Explained { key: key.clone(), masked: value != raw, value, source }
        })
        .collect()
}

/// One value of a setting, or one entry of a list, as TOML writes it and without its secrets.
pub(super) fn shown(merged: &Merged, key: &str, value: &Value) -> String {
    to_toml(&mask(value, merged.known.is_secret(key))).to_string().trim().to_owned()
}

/// A way out names the file of its secret: the secret itself was not written there, and both together would be refused.
fn without_secrets_of_files(merged: &Merged, key: &str) -> Value {
    let mut value = merged.get(key).clone();
    if WAYS_OUT.contains(&key)
        && let Value::Array(ways) = &mut value
    {
        for (index, way) in ways.iter_mut().enumerate() {
            if merged.notes.contains_key(&format!("{key}[{index}].secret")) {
                way["secret"] = Value::from("");
            }
        }
    }
    value
}

fn mask(value: &Value, secret: bool) -> Value {
    match value {
        Value::String(text) if secret && !text.is_empty() => Value::from(MASK),
        Value::Array(items) => Value::Array(items.iter().map(|item| mask(item, secret)).collect()),
        Value::Object(map) => Value::Object(
            map.iter()
                .map(|(key, value)| match (key.as_str(), value) {
                    // An address may carry a password or a token.
                    ("url", Value::String(url)) => (key.clone(), Value::from(mask_url(url))),
                    _ => (key.clone(), mask(value, SECRETS_OF_A_WAY.contains(&key.as_str()))),
                })
                .collect(),
        ),
        other => other.clone(),
    }
}

/// Scheme, host and port stay; credentials, and what follows a `?`, go. Chat systems put their token into the path, so that of the
/// path only the first part stays.
pub(super) fn mask_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    let credentials = if host.len() < authority.len() { format!("{MASK}@") } else { String::new() };
    let shown = path.split(['?', '#']).next().unwrap_or_default();
    let parts: Vec<&str> = shown.split('/').filter(|part| !part.is_empty()).collect();
    let tail = if path.len() > shown.len() || parts.len() > 1 { format!("/{MASK}") } else { String::new() };
    let first = parts.first().map(|part| format!("/{part}")).unwrap_or_default();
    format!("{scheme}://{credentials}{host}{first}{tail}")
}

/// Whether an address has a user or a password in it.
pub(super) fn has_credentials(url: &str) -> bool {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
}

impl Explained {
    /// The value as TOML writes it, on one line.
    pub fn toml(&self) -> String {
        to_toml(&self.value).to_string().trim().to_owned()
    }
}

fn to_toml(value: &Value) -> toml_edit::Value {
    match value {
        Value::Null => toml_edit::Value::from(""),
        Value::Bool(value) => toml_edit::Value::from(*value),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => toml_edit::Value::from(whole),
            None => toml_edit::Value::from(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => toml_edit::Value::from(text.as_str()),
        Value::Array(items) => toml_edit::Value::Array(items.iter().map(to_toml).collect()),
        Value::Object(map) => {
            toml_edit::Value::InlineTable(map.iter().map(|(key, item)| (key.as_str(), to_toml(item))).collect())
        }
    }
}
