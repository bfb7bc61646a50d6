//! An alert: what a policy raises, what the alerts queue carries and what a receiver gets.
//!
//! Owns its form, its id and its key. Never decides who is told (that is [`crate::notify`]).

mod hook;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::report::{ReportId, Time};

pub use hook::Hook;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth keeping.
    Info,
    /// Worth a look some day.
    Low,
    /// Worth a look today. The default.
    Medium,
    /// Worth a look now.
    High,
    /// Worth waking somebody.
    Critical,
}

impl Severity {
    /// All, mildest first.
    pub const ALL: [Self; 5] = [Self::Info, Self::Low, Self::Medium, Self::High, Self::Critical];

    /// The word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// What a policy raised, as JSON: the body of a webhook, and the body of a message in the alerts queue. Every key is always there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// The same for the same alert raised again by a redelivered report: see [`Alert::make_id`].
    pub id: String,
    /// The report's time, RFC 3339 in UTC.
    pub time: String,
    /// What it is about, one word of the policy's: `new_country`.
    pub kind: String,
    /// How bad it is.
    pub severity: Severity,
    /// One line for people.
    pub title: String,
    /// More for people, or empty.
    pub text: String,
    /// Whose account, where it is about one.
    pub login: Option<String>,
    /// Which address, where it is about one.
    pub remote: Option<String>,
    /// What the policy saw, passed on unchanged.
    pub evidence: Value,
    /// The technique, as the policy names it (an ATT&CK id, say), or null.
    pub attack: Option<Value>,
    /// Whom it is for, as the policy names them, or null: everybody.
    pub audience: Option<Value>,
    /// With `kind`, what suppression goes by: the login unless the policy said otherwise.
    pub key: String,
    /// Who raised it.
    pub policy: String,
}

impl Alert {
    /// The id: a hash of kind, key and cause. The cause is the report that raised it, so that a report delivered twice makes one
    /// alert, and two reports make two.
    pub fn make_id(kind: &str, key: &str, cause: ReportId) -> String {
        hash(&[kind.as_bytes(), key.as_bytes(), cause.as_bytes()])
    }

    /// When it happened, in report time; `None` where the text is no time.
    pub fn at(&self) -> Option<Time> {
        self.time.parse::<jiff::Timestamp>().ok().map(|time| Time::from_micros(time.as_microsecond()))
    }
}

/// 128 bits of the SHA-256 of several parts, as text.
fn hash(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}
