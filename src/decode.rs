//! Bytes → [`LoginReport`]: one typed pass over the JSON, and an error that names the field.
//!
//! Owns what is malformed. Every byte is hostile: nothing here allocates more than the report's own size, and no value of a field
//! stands in an error, since `pwhash` and attributes may be secrets. Never stamps anything but through [`Decoded::stamp`].

mod fields;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::Duration;

use serde::Deserialize;

use crate::report::{Geo, LoginReport, ReportId, Time};

use fields::DeviceAttributes;

/// What one report may have.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the whole report.
    pub max_report: usize,
    /// Bytes of one string in it.
    pub max_field: usize,
    /// Values in `attrs` and `device_attrs`, counted together.
    pub max_attrs: usize,
}

/// Why bytes are no report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{reason}", if .field.is_empty() { String::new() } else { format!("`{}`: ", .field) })]
pub struct Malformed {
    /// Which field; empty where it is the whole.
    pub field: String,
    /// What is wrong with it, and what is expected.
    pub reason: String,
}

fn malformed(field: &str, reason: impl Into<String>) -> Malformed {
    Malformed { field: field.to_owned(), reason: reason.into() }
}

/// As much of a name as an error repeats: it is the sender's, and no answer and no log line grows with it.
fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

/// A report without its stamps.
#[derive(Debug)]
pub struct Decoded {
    report: LoginReport,
    t: Option<Time>,
    id: Option<ReportId>,
    /// Values in `attrs` and `device_attrs` that were dropped because of their type.
    pub dropped: u32,
}

/// A report with its stamps, ready for the queue.
#[derive(Debug)]
pub struct Stamped {
    /// The report.
    pub report: LoginReport,
    /// The bytes for the queue.
    pub body: Vec<u8>,
    /// Its time was too far ahead, and was replaced by the time received.
    pub skewed: bool,
}

/// A report as it comes from a queue.
#[derive(Debug)]
pub struct Queued {
    /// The report.
    pub report: LoginReport,
    /// Its time was too far ahead: that of the message, or else of its coming, stands in it.
    pub skewed: bool,
    /// Neither it nor its message had a time that can be, nor an id: it is told from its like by its place in the queue alone.
    pub untimed: bool,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(default)]
    t: Option<f64>,
    #[serde(borrow, default)]
    login: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    remote: Option<Cow<'a, str>>,
    #[serde(default)]
    success: bool,
    #[serde(default)]
    policy_reject: bool,
    #[serde(default)]
    tls: bool,
    #[serde(default)]
    pwhash: String,
    #[serde(default)]
    fail_type: String,
    #[serde(default)]
    session_id: String,
    #[serde(default)]
    protocol: String,
    #[serde(default)]
    device_id: String,
    #[serde(default)]
    device_attrs: DeviceAttributes,
    #[serde(default)]
    attrs: fields::Attributes,
}

/// Reads one report. An error names the field; the whole costs some 2 µs for a usual report.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Decoded, Malformed> {
    if bytes.len() > limits.max_report {
        return Err(malformed("", format!("{} bytes; receive.max_report is {}", bytes.len(), limits.max_report)));
    }
    build(object(bytes)?, limits)
}

/// Reads one JSON object. An array is none, though serde would take it for the fields in their order.
pub(crate) fn object<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Malformed> {
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(malformed("", "not a JSON object"));
    }
    serde_json::from_slice(bytes).map_err(|error| explain::<T>(bytes, &error))
}

/// Reads it again, slowly, to find out which field it was.
fn explain<'a, T: Deserialize<'a>>(bytes: &'a [u8], error: &serde_json::Error) -> Malformed {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let field = match serde_path_to_error::deserialize::<_, T>(&mut reader) {
        Err(error) if error.path().iter().next().is_some() => error.path().to_string(),
        _ => String::new(),
    };
    let field = if field == "." || field == "?" { String::new() } else { shown(&field) };
    let what = if error.is_syntax() || error.is_eof() { "not JSON: " } else { "" };
    malformed(&field, format!("{what}{}", without_value(&error.to_string())))
}

/// serde_json quotes what it found; what a field holds is nobody's business.
fn without_value(text: &str) -> String {
    const START: &str = "invalid type: ";
    let Some((found, expected)) = text.strip_prefix(START).and_then(|rest| rest.rsplit_once(", expected ")) else {
        return text.to_owned();
    };
    let kind = found.split(['"', '`']).next().unwrap_or_default().trim_end();
    format!("{START}{kind}, expected {expected}")
}

fn build(mut wire: Wire<'_>, limits: &Limits) -> Result<Decoded, Malformed> {
    let login = required("login", wire.login.take())?;
    let remote = required("remote", wire.remote.take())?;
    check_lengths(&wire, &login, limits)?;
    let address: IpAddr = remote.parse().map_err(|_| {
        malformed("remote", "not an IP address; a bare IPv4 or IPv6 address without a port is expected")
    })?;
    let t = match wire.t {
        None => None,
        Some(seconds) => Some(
            Time::from_seconds(seconds)
                .ok_or_else(|| malformed("t", "not a time; seconds since 1970 with a fraction are expected"))?,
        ),
    };
    // The old program leaves 0 where the sender gave none. What only rounds to 0 is none as well: the queue would give it back as none,
    // and the report would get a time that its id knows nothing of.
    let t = t.filter(|t| *t != Time::default());
    let values = wire.device_attrs.values.len() + wire.attrs.count();
    if values > limits.max_attrs {
        return Err(malformed(
            "attrs",
            format!("{values} values with device_attrs; receive.max_attrs is {}", limits.max_attrs),
        ));
    }
    let dropped = wire.device_attrs.dropped + wire.attrs.dropped;
    let (attrs, attrs_mv) = wire.attrs.sorted().map_err(|key| twice("attrs", &key))?;
    let device_attrs = fields::sorted(wire.device_attrs.values).map_err(|key| twice("device_attrs", &key))?;
    let report = LoginReport {
        id: ReportId::default(),
        t: Time::default(),
        login: login.into_owned(),
        remote: address.to_canonical(),
        pwhash: wire.pwhash,
        success: wire.success,
        policy_reject: wire.policy_reject,
        fail_type: wire.fail_type,
        session_id: wire.session_id,
        protocol: wire.protocol,
        tls: wire.tls,
        device_id: wire.device_id,
        device_attrs,
        attrs,
        attrs_mv,
        parsed_device: OnceLock::new(),
        geo: Geo::default(),
    };
    Ok(Decoded { report, t, id: wire.id.and_then(|id| id.parse().ok()), dropped })
}

fn required<'a>(field: &str, value: Option<Cow<'a, str>>) -> Result<Cow<'a, str>, Malformed> {
    match value {
        Some(text) if !text.is_empty() => Ok(text),
        Some(_) => Err(malformed(field, "empty")),
        None => Err(malformed(field, "missing")),
    }
}

fn check_lengths(wire: &Wire<'_>, login: &str, limits: &Limits) -> Result<(), Malformed> {
    let strings = [
        ("login", login.len()),
        ("pwhash", wire.pwhash.len()),
        ("fail_type", wire.fail_type.len()),
        ("session_id", wire.session_id.len()),
        ("protocol", wire.protocol.len()),
        ("device_id", wire.device_id.len()),
        ("device_attrs", wire.device_attrs.longest),
        ("attrs", wire.attrs.longest),
    ];
    for (field, length) in strings {
        if length > limits.max_field {
            return Err(malformed(field, format!("{length} bytes; receive.max_field is {}", limits.max_field)));
        }
    }
    Ok(())
}

/// Attributes by themselves, as a custom endpoint gets them: `{"attrs":{…}}`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// With one value each, by key.
    pub single: Vec<(String, String)>,
    /// With several values each, by key.
    pub several: Vec<(String, Vec<String>)>,
}

#[derive(Deserialize)]
struct WithAttributes {
    #[serde(default)]
    attrs: fields::Attributes,
}

/// Reads the attributes of one object; its other keys are left alone. The limits are those of a report.
pub fn attributes(bytes: &[u8], limits: &Limits) -> Result<Attributes, Malformed> {
    if bytes.len() > limits.max_report {
        return Err(malformed("", format!("{} bytes; receive.max_report is {}", bytes.len(), limits.max_report)));
    }
    let WithAttributes { attrs } = object(bytes)?;
    if attrs.longest > limits.max_field {
        let reason = format!("{} bytes; receive.max_field is {}", attrs.longest, limits.max_field);
        return Err(malformed("attrs", reason));
    }
    if attrs.count() > limits.max_attrs {
        return Err(malformed("attrs", format!("{} values; receive.max_attrs is {}", attrs.count(), limits.max_attrs)));
    }
    let (single, several) = attrs.sorted().map_err(|key| twice("attrs", &key))?;
    Ok(Attributes { single, several })
}

fn twice(field: &str, key: &str) -> Malformed {
    malformed(field, format!("the key `{}` stands in it twice", shown(key)))
}

impl Decoded {
    /// Stamps time and id, once, for the queue. The sender's own `id` is ignored: only what came through a queue of ours is trusted
    /// to tell two deliveries apart.
    pub fn stamp(mut self, received: Time, max_skew: Duration) -> Stamped {
        let t = self.t.unwrap_or(received);
        let skewed = t > received.plus(max_skew);
        self.report.t = if skewed { received } else { t };
        let body = self.report.stamp();
        Stamped { report: self.report, body, skewed }
    }

    /// A report from a queue, with the id that was stamped on it, or else one made of what stays the same until its message comes again.
    pub fn from_queue(
        mut self,
        message_time: Option<Time>,
        body: &[u8],
        coordinates: &str,
        received: Time,
        max_skew: Duration,
    ) -> Queued {
        let is_ahead = |t: &Time| *t > received.plus(max_skew);
        let given = self.t.or(message_time);
        let usable = [self.t, message_time].into_iter().flatten().find(|t| !is_ahead(t));
        let untimed = self.id.is_none() && usable.is_none();
        self.report.t = given.unwrap_or(received);
        self.report.id = match (self.id, self.t, message_time) {
            (Some(id), ..) => id,
            // Two logins that are alike but for their place would be one, and the second never handled: by no clock, or one that stands
            // still ahead.
            _ if untimed => ReportId::of(&[body, b"\0", coordinates.as_bytes()].concat()),
            // Likewise by a clock that stands still, but the message's tells them apart. Not the one here: it goes on until it comes again.
            (None, Some(t), Some(published)) if t > published.plus(max_skew) => {
                ReportId::of(&[&*self.report.canonical(), &published.micros().to_be_bytes()].concat())
            }
            _ => ReportId::of(&self.report.canonical()),
        };
        self.report.t = usable.unwrap_or(received);
        Queued { report: self.report, skewed: given.as_ref().is_some_and(is_ahead), untimed }
    }
}

#[cfg(test)]
mod tests;
