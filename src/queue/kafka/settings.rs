//! Section `[queue.kafka]`, and which properties of the client are secrets or not for people to set.
//!
//! Pure, and in the program whether the driver is or not: a configuration is read and checked by the same rules everywhere.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::settings::{MASK, Secret};

/// Section `[queue.kafka]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    pub brokers: Vec<String>,
    pub group: String,
    pub create_topics: bool,
    pub partitions: i32,
    pub replication: i32,
    pub password: Secret,
    pub password_file: String,
    #[serde(with = "humantime_serde")]
    pub session_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub delivery_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub revoke_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub start_timeout: Duration,
    pub properties: Properties,
}

/// Further properties of the client, as `[queue.kafka.properties]` names them. Prints secrets as masks, whatever prints it.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Properties(BTreeMap<String, Value>);

impl Properties {
    /// Name and value of each. `security.protocol = "SSL"` without quotes around the name is a table in a table to TOML: it means
    /// the same here. `Err`: the name of one whose value is a list or a date.
    pub fn flat(&self) -> Result<Vec<(String, String)>, String> {
        let mut flat = Vec::new();
        for (name, value) in &self.0 {
            flatten(name, value, &mut flat)?;
        }
        Ok(flat)
    }
}

impl From<BTreeMap<String, Value>> for Properties {
    fn from(map: BTreeMap<String, Value>) -> Self {
        Self(map)
    }
}

fn flatten(name: &str, value: &Value, into: &mut Vec<(String, String)>) -> Result<(), String> {
    match value {
        Value::String(text) => into.push((name.to_owned(), text.clone())),
        Value::Bool(_) | Value::Number(_) => into.push((name.to_owned(), value.to_string())),
        Value::Object(map) => {
            for (part, value) in map {
                flatten(&format!("{name}.{part}"), value, into)?;
            }
        }
        Value::Array(_) | Value::Null => return Err(name.to_owned()),
    }
    Ok(())
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(name, value)| (name, masked(name, value)))).finish()
    }
}

impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, &masked(name, value))?;
        }
        map.end()
    }
}

/// The value of a property as people may see it.
pub fn masked(name: &str, value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter().map(|(part, value)| (part.clone(), masked(&format!("{name}.{part}"), value))).collect(),
        ),
        Value::String(text) if text.is_empty() => value.clone(),
        _ if is_secret(name) => Value::from(MASK),
        other => other.clone(),
    }
}

/// Whether the value of a property is a secret: `sasl.password`, `ssl.key.password`, `ssl.keystore.password`, `ssl.key.pem`,
/// `sasl.oauthbearer.client.secret` and their like.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    ["password", "secret", "passphrase", ".key.pem", "sasl.oauthbearer.config"].iter().any(|word| name.contains(word))
}

/// Properties that are not for people to set, and why: a promise of the program rests on them, or a setting has another name.
pub const OURS: [(&str, &str); 23] = [
    ("bootstrap.servers", "set queue.kafka.brokers"),
    ("metadata.broker.list", "set queue.kafka.brokers"),
    ("group.id", "set queue.kafka.group"),
    ("session.timeout.ms", "set queue.kafka.session_timeout"),
    ("message.timeout.ms", "set queue.kafka.delivery_timeout"),
    ("delivery.timeout.ms", "set queue.kafka.delivery_timeout"),
    ("sasl.password", "set queue.kafka.password or queue.kafka.password_file"),
    ("enable.auto.commit", KEPT),
    ("auto.commit.enable", KEPT),
    ("enable.auto.offset.store", KEPT),
    ("enable.idempotence", KEPT),
    ("acks", KEPT),
    ("request.required.acks", KEPT),
    ("auto.offset.reset", KEPT),
    ("partition.assignment.strategy", KEPT),
    ("group.instance.id", KEPT),
    ("group.protocol", KEPT),
    ("partitioner", KEPT),
    ("delivery.report.only.error", KEPT),
    ("isolation.level", KEPT),
    ("enable.partition.eof", KEPT),
    ("transactional.id", KEPT),
    ("message.max.bytes", "it follows from http.max_body and policy.max_alert"),
];
const KEPT: &str = "a promise of the program rests on its value";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_print_as_masks_and_unquoted_names_mean_the_same() {
        let text =
            r#"{"ssl.key.password": "hunter2", "ssl": {"key": {"pem": "hunter2"}, "ca.location": "/ca"}, "a.b": 5}"#;
        let properties: Properties = serde_json::from_str(text).unwrap();
        for printed in [format!("{properties:?}"), serde_json::to_string(&properties).unwrap()] {
            assert!(!printed.contains("hunter2") && printed.contains("/ca"), "{printed}");
        }
        let flat = properties.flat().unwrap();
        assert!(flat.contains(&("ssl.key.pem".to_owned(), "hunter2".to_owned())));
        assert!(flat.contains(&("a.b".to_owned(), "5".to_owned())));
        assert!(["sasl.password", "ssl.key.password", "ssl.keystore.password"].iter().all(|name| is_secret(name)));
        assert!(!is_secret("sasl.username") && !is_secret("ssl.key.location"));
        let list: Properties = serde_json::from_str(r#"{"a": {"b": []}}"#).unwrap();
        assert_eq!(list.flat(), Err("a.b".to_owned()));
    }
}
