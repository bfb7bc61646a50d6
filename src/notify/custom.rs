//! Custom webhooks: those that a policy of the old program sends by name, in the form that their receivers know.
//!
//! Owns the settings, the headers and the body. Sending, its tries and its secrets are the webhooks' of alerts ([`super::webhook`]).

use std::fmt;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::header::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::webhook::{Form, host};
use crate::report::Time;
use crate::settings::{MASK, Secret};

pub(super) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const KAFKA_TYPE: &str = "application/vnd.kafka.json.v2+json";
const JSON_TYPE: &str = "application/json";

/// One entry of `notify.custom_webhooks`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct HookSettings {
    pub name: String,
    pub url: String,
    // An entry of a list has no defaults in config/default.toml: these may be left out.
    #[serde(default)]
    pub secret: Secret,
    #[serde(default)]
    pub secret_file: PathBuf,
    #[serde(default)]
    pub basic_auth: Secret,
    #[serde(default)]
    pub api_key: Secret,
    #[serde(default)]
    pub content_type: String,
    #[serde(default)]
    pub kafka: bool,
}

impl fmt::Debug for HookSettings {
    /// Of the URL the host only: the rest of it is a password as often as not.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = host(&self.url).unwrap_or_else(|| MASK.to_owned());
        f.debug_struct("HookSettings").field("name", &self.name).field("host", &host).finish_non_exhaustive()
    }
}

impl HookSettings {
    /// For an operator: name and host.
    pub fn shown(&self) -> String {
        format!("{} {}", self.name, host(&self.url).unwrap_or_else(|| MASK.to_owned()))
    }

    /// The error begins with the key that is wrong, and has no value in it.
    pub(super) fn form(&self) -> Result<Form, String> {
        let header = |key: &str, text: &str| {
            HeaderValue::from_str(text).map_err(|_| format!("{key}: has a character that no header may have"))
        };
        let secret = |key: &str, text: String| {
            let mut value = header(key, &text)?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        };
        let content_type = match (self.content_type.as_str(), self.kafka) {
            ("", true) => KAFKA_TYPE,
            ("", false) => JSON_TYPE,
            (given, _) => given,
        };
        let encoded = STANDARD.encode(self.basic_auth.expose());
        let basic = || format!("Basic {encoded}");
        let has = |text: &Secret| !text.is_empty();
        let password = self.basic_auth.expose().split_once(':').map(|(_, password)| password.to_owned());
        let plain = has(&self.basic_auth).then(|| [Some(encoded.clone()), password]).into_iter().flatten().flatten();
        Ok(Form {
            event: header("name", &self.name)?,
            content_type: header("content_type", content_type)?,
            authorization: has(&self.basic_auth).then(|| secret("basic_auth", basic())).transpose()?,
            api_key: has(&self.api_key).then(|| secret("api_key", self.api_key.expose().to_owned())).transpose()?,
            plain: plain.map(Secret::from).collect(),
            kafka: self.kafka,
        })
    }
}

/// What such a webhook is called among the channels.
pub(super) fn channel(name: &str) -> String {
    format!("custom:{name}")
}

/// The URL with the date of a time in it, in UTC.
pub(super) fn dated(url: &str, time: Time) -> String {
    let date = time.rfc3339();
    let part = |range| date.get(range).unwrap_or_default();
    url.replace("%{YYYY}", part(0..4)).replace("%{MM}", part(5..7)).replace("%{dd}", part(8..10))
}

/// The body as one record of the Kafka REST form.
pub(super) fn record(body: &Bytes) -> Result<Bytes, String> {
    let value: &serde_json::value::RawValue = serde_json::from_slice(body)
        .map_err(|error| format!("the body is no JSON, which a hook with kafka = true needs: {error}"))?;
    Ok(Bytes::from(format!("{{\"records\":[{{\"value\":{}}}]}}", value.get())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn date_of_the_report_goes_into_the_url() {
        let time = Time::from_micros(1_700_000_000_000_000);
        assert_eq!(dated("http://x/wforce-%{YYYY}.%{MM}.%{dd}/_doc", time), "http://x/wforce-2023.11.14/_doc");
        assert_eq!(dated("http://x/%{HH}", time), "http://x/%{HH}");
    }

    #[test]
    fn record_wraps_json_and_refuses_what_is_none() {
        let wrapped = record(&Bytes::from_static(br#"{"a":1}"#)).unwrap();
        assert_eq!(&wrapped[..], br#"{"records":[{"value":{"a":1}}]}"#);
        assert!(record(&Bytes::from_static(b"a=1")).is_err());
    }

    #[test]
    fn form_has_the_keys_of_the_old_program_and_shows_no_secret() {
        let settings = |name: &str| HookSettings {
            name: name.to_owned(),
            url: "https://u:hunter2@x.example/T0K3N".to_owned(),
            secret: Secret::from("s1gn".to_owned()),
            secret_file: PathBuf::new(),
            basic_auth: Secret::from("ann:hunter2".to_owned()),
            api_key: Secret::from("k3y".to_owned()),
            content_type: String::new(),
            kafka: false,
        };
        let form = settings("mail").form().ok().unwrap();
        assert_eq!(form.event, "mail");
        assert_eq!(form.authorization.unwrap(), "Basic YW5uOmh1bnRlcjI=");
        assert_eq!(
            (form.api_key.unwrap(), form.content_type),
            ("k3y".parse().unwrap(), "application/json".parse().unwrap())
        );
        assert!(settings("a\nb").form().err().unwrap().starts_with("name: "));
        let shown = format!("{:?}", settings("mail"));
        assert!(shown.contains("x.example") && !shown.contains("hunter2") && !shown.contains("T0K3N"), "{shown}");
    }
}
