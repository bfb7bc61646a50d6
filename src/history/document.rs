//! The document of a report: the one form in which the history gives reports out, whatever keeps them.
//!
//! Owns the names and the nesting (those of the documents that wforce's Logstash writes, with its two traps mended: `t` is a double,
//! majors and minors are strings). Never talks to a store.

use serde_json::{Map, Value, json};

use crate::report::{LoginReport, Time};

/// What `type` says.
pub const TYPE: &str = "wforce_report";

/// The index that the report of this time belongs to: `trackalert-reports-YYYY.MM.DD`.
pub fn index_of(day: &str) -> String {
    format!("trackalert-reports-{day}")
}

/// The time in the form of `@timestamp` in a document: RFC 3339 with milliseconds.
pub fn timestamp(t: Time) -> String {
    t.rfc3339()
}

/// The document.
pub fn document(report: &LoginReport) -> Value {
    let mut map = Map::new();
    let text = |text: &str| Value::String(text.to_owned());
    map.insert("@timestamp".to_owned(), Value::String(timestamp(report.t)));
    map.insert("t".to_owned(), json!(report.t.seconds()));
    map.insert("id".to_owned(), Value::String(report.id.to_string()));
    map.insert("type".to_owned(), text(TYPE));
    map.insert("login".to_owned(), text(&report.login));
    map.insert("remote".to_owned(), Value::String(report.remote.to_string()));
    map.insert("pwhash".to_owned(), text(&report.pwhash));
    map.insert("success".to_owned(), Value::Bool(report.success));
    map.insert("policy_reject".to_owned(), Value::Bool(report.policy_reject));
    map.insert("fail_type".to_owned(), text(&report.fail_type));
    map.insert("session_id".to_owned(), text(&report.session_id));
    map.insert("protocol".to_owned(), text(&report.protocol));
    map.insert("tls".to_owned(), Value::Bool(report.tls));
    map.insert("device_id".to_owned(), text(&report.device_id));
    map.insert("device_attrs".to_owned(), nested(report.device()));
    let mut attrs: Map<String, Value> = report.attrs.iter().map(|(key, value)| (key.clone(), text(value))).collect();
    attrs.extend(report.attrs_mv.iter().map(|(key, values)| (key.clone(), json!(values))));
    map.insert("attrs".to_owned(), Value::Object(attrs));
    let geo = &report.geo;
    let mut geoip = Map::new();
    if let Some(country) = &geo.country {
        geoip.insert("country_code2".to_owned(), text(country));
    }
    if let Some(city) = &geo.city {
        geoip.insert("city_name".to_owned(), text(city));
    }
    if let Some((latitude, longitude)) = geo.location {
        geoip.insert("location".to_owned(), json!({ "lat": latitude, "lon": longitude }));
        geoip.insert("latitude".to_owned(), json!(latitude));
        geoip.insert("longitude".to_owned(), json!(longitude));
    }
    if let Some(asn) = geo.asn {
        geoip.insert("asn".to_owned(), json!(asn));
    }
    if let Some(as_org) = &geo.as_org {
        geoip.insert("as_org".to_owned(), text(as_org));
    }
    if !geoip.is_empty() {
        map.insert("geoip".to_owned(), Value::Object(geoip));
    }
    Value::Object(map)
}

/// `os.family` becomes `{"os": {"family": …}}`. A key that cannot be nested, because a shorter one holds a string, stays as it is. One
/// level only: the keys that there are have two parts, and a hostile one must not build a tower.
fn nested(pairs: &[(String, String)]) -> Value {
    let mut map = Map::new();
    for (key, value) in pairs {
        let value = Value::String(value.clone());
        match key.split_once('.') {
            Some((outer, inner)) if !outer.is_empty() && !inner.is_empty() => {
                match map.entry(outer.to_owned()).or_insert_with(|| Value::Object(Map::new())) {
                    Value::Object(object) => {
                        object.insert(inner.to_owned(), value);
                    }
                    _ => {
                        map.insert(key.clone(), value);
                    }
                }
            }
            _ if matches!(map.get(key), Some(Value::Object(_))) => {
                map.insert(format!("{key}."), value);
            }
            _ => {
                map.insert(key.clone(), value);
            }
        }
    }
    Value::Object(map)
}
