//! A login report: one login attempt, as wforce or Dovecot describes it, and the two things that `receive` stamps on it once, its
//! time and its id.
//!
//! Owns the meaning of the fields and the canonical form that the id is a hash of. Never reads bytes (that is [`crate::decode`]).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// A point in report time: microseconds since the Unix epoch. On the wire it is a number of seconds with a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(i64);

impl Time {
    /// From microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From seconds since the epoch. `None` where the number is not finite or lies outside the years 1970 to 9999: nothing that
    /// reports a login means such a time.
    pub fn from_seconds(seconds: f64) -> Option<Self> {
        const YEAR_10000: f64 = 253_402_300_800.0;
        (seconds.is_finite() && (0.0..YEAR_10000).contains(&seconds)).then(|| Self((seconds * 1e6).round() as i64))
    }

    /// The wall clock, now.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(since.as_micros() as i64)
    }

    /// Microseconds since the epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Whole milliseconds since the epoch, rounded down.
    pub const fn millis(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// Seconds since the epoch, with the fraction.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// This time moved by a duration; saturates at the ends of the range.
    #[must_use]
    pub fn plus(self, by: std::time::Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }

    /// This time moved back by a duration; saturates at the ends of the range.
    #[must_use]
    pub fn minus(self, by: std::time::Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }

    /// How much later this is than `earlier`; zero where it is not later.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// RFC 3339 in UTC with milliseconds, the form in which people and receivers of alerts read times.
    pub fn rfc3339(self) -> String {
        jiff::Timestamp::from_microsecond(self.0).map_or_else(|_| self.0.to_string(), |t| format!("{t:.3}"))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.seconds())
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        Self::from_seconds(seconds).ok_or_else(|| serde::de::Error::custom("not a time in seconds since 1970"))
    }
}

/// The identity of a report: 128 bits of the SHA-256 of its canonical form. The same report delivered twice has the same id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ReportId([u8; 16]);

impl ReportId {
    /// The id of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let digest = Sha256::digest(bytes);
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self(id)
    }

    /// The sixteen bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for ReportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 32];
        for (i, byte) in self.0.iter().enumerate() {
            text[2 * i] = HEX[usize::from(byte >> 4)];
            text[2 * i + 1] = HEX[usize::from(byte & 15)];
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for ReportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 32 hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("a report id is 32 hexadecimal digits")]
pub struct BadReportId;

impl FromStr for ReportId {
    type Err = BadReportId;

    fn from_str(text: &str) -> Result<Self, BadReportId> {
        let digits = text.as_bytes();
        if digits.len() != 32 {
            return Err(BadReportId);
        }
        let nibble = |d: u8| char::from(d).to_digit(16).ok_or(BadReportId);
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (nibble(pair[0])? * 16 + nibble(pair[1])?) as u8;
        }
        Ok(Self(id))
    }
}

impl Serialize for ReportId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ReportId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What is known of a device, by flat dotted keys such as `os.family`, sorted by them.
pub type DeviceAttributes = Arc<[(String, String)]>;

/// The fields of a login attempt as wforce's API and its webhooks name them.
pub const ATTEMPT_FIELDS: [&str; 12] = [
    "login",
    "remote",
    "success",
    "policy_reject",
    "fail_type",
    "pwhash",
    "protocol",
    "tls",
    "device_id",
    "device_attrs",
    "session_id",
    "attrs",
];

/// One login attempt. The maps are sorted by key, so that equal reports have equal canonical forms.
#[derive(Debug, Clone, PartialEq)]
pub struct LoginReport {
    /// Stamped once by `receive`.
    pub id: ReportId,
    /// When the attempt was made.
    pub t: Time,
    /// The account's name, never empty.
    pub login: String,
    /// Where the attempt came from; an IPv4-mapped address is folded to IPv4.
    pub remote: IpAddr,
    /// A salted fragment of a hash of the password; what it can show depends on the front end.
    pub pwhash: String,
    /// Whether the password was right.
    pub success: bool,
    /// Obsolete since `fail_type`, still sent.
    pub policy_reject: bool,
    /// `internal`, `credentials`, `account`, `expired`, `disabled`, `policy`, or empty.
    pub fail_type: String,
    /// The front end's session, or empty.
    pub session_id: String,
    /// `imap`, `pop3`, `smtp`, `http`, …: an open set.
    pub protocol: String,
    /// Whether the connection was encrypted.
    pub tls: bool,
    /// A User-Agent, an IMAP ID list or an app's string, according to `protocol`.
    pub device_id: String,
    /// What the sender made of `device_id`, by flat dotted keys such as `os.family`. See [`LoginReport::device`].
    pub device_attrs: Vec<(String, String)>,
    /// Further attributes with one value each.
    pub attrs: Vec<(String, String)>,
    /// Further attributes with several values each.
    pub attrs_mv: Vec<(String, Vec<String>)>,
    /// What `detect` made of `device_id`, once, where the sender gave no `device_attrs`. No part of the canonical form, so that a report
    /// that is handed out again has the same id whatever the regexes are by then.
    pub parsed_device: OnceLock<DeviceAttributes>,
    /// What the GeoIP files say of `remote`. Added by `detect`, no part of the canonical form.
    pub geo: Geo,
}

/// What the GeoIP files say of an address. Empty where they say nothing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Geo {
    /// ISO 3166-1 alpha-2, upper case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
    /// The city's English name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub city: Option<String>,
    /// Latitude and longitude in degrees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<(f64, f64)>,
    /// The number of the autonomous system that announces the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asn: Option<u32>,
    /// The name of that autonomous system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_org: Option<String>,
}

/// The canonical form: every key, in this order, `attrs` and `attrs_mv` as one object, without `id`, `type` and enrichment.
struct Canonical<'a>(&'a LoginReport);

impl Serialize for Canonical<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let report = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("t", &report.t)?;
        map.serialize_entry("login", &report.login)?;
        map.serialize_entry("remote", &report.remote)?;
        map.serialize_entry("pwhash", &report.pwhash)?;
        map.serialize_entry("success", &report.success)?;
        map.serialize_entry("policy_reject", &report.policy_reject)?;
        map.serialize_entry("fail_type", &report.fail_type)?;
        map.serialize_entry("session_id", &report.session_id)?;
        map.serialize_entry("protocol", &report.protocol)?;
        map.serialize_entry("tls", &report.tls)?;
        map.serialize_entry("device_id", &report.device_id)?;
        map.serialize_entry("device_attrs", &Pairs(&report.device_attrs))?;
        map.serialize_entry("attrs", &Attrs(report))?;
        map.end()
    }
}

struct Pairs<'a>(&'a [(String, String)]);

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

struct Attrs<'a>(&'a LoginReport);

impl Serialize for Attrs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in &self.0.attrs {
            map.serialize_entry(key, value)?;
        }
        for (key, values) in &self.0.attrs_mv {
            map.serialize_entry(key, &Values(values))?;
        }
        map.end()
    }
}

struct Values<'a>(&'a [String]);

impl Serialize for Values<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.0.len()))?;
        for value in self.0 {
            seq.serialize_element(value)?;
        }
        seq.end()
    }
}

impl LoginReport {
    /// What is known of the device: what the sender says, or else what `detect` read from `device_id`.
    pub fn device(&self) -> &[(String, String)] {
        match self.parsed_device.get() {
            Some(parsed) if self.device_attrs.is_empty() => parsed,
            _ => &self.device_attrs,
        }
    }

    /// Sets the id from the canonical form and gives the bytes for the queue: the canonical form with the id in front, so that the
    /// report is written once and hashed from the same bytes.
    pub fn stamp(&mut self) -> Vec<u8> {
        let canonical = self.canonical();
        self.id = ReportId::of(&canonical);
        let mut bytes = Vec::with_capacity(canonical.len() + 40);
        bytes.extend_from_slice(format!("{{\"id\":\"{}\",", self.id).as_bytes());
        bytes.extend_from_slice(&canonical[1..]);
        bytes
    }

    /// The canonical form as JSON.
    pub fn canonical(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        // Writing strings, numbers and booleans into memory has no way to fail.
        if serde_json::to_writer(&mut bytes, &Canonical(self)).is_err() {
            bytes.clear();
        }
        bytes
    }
}
