//! What policies remember between reports and must know at once: the last login, a set of countries, a counter.
//!
//! Owns the contract. Everything is in report time: an entry is there until the time of its expiry, seen from the report that asks.
//! A report's writes take effect as one atomic batch together with a marker that says which policies have handled it, so that a
//! redelivered report neither counts twice nor writes a "last seen" backwards.

pub mod embedded;
pub mod session;
pub mod tentative;

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::report::{ReportId, Time};

pub use session::Session;
pub use tentative::Tentative;

/// Section `[state]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    pub kind: Kind,
    #[serde(with = "humantime_serde")]
    pub handled_for: Duration,
    pub max_members: usize,
    pub max_value: bytesize::ByteSize,
    #[serde(with = "humantime_serde")]
    pub sweep_every: Duration,
    pub sweep_entries: usize,
}

/// The drivers that settings can name. Whether this program has one is said where it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// In the data folder.
    Embedded,
    /// Redis.
    Redis,
    /// Elasticsearch.
    Elasticsearch,
}

/// Why the state did not answer; asking again may help.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the state store is unavailable: {0}")]
pub struct StateError(pub String);

/// A write, seen by others when its batch is applied. Keys are full keys: owner, NUL, the owner's own name ([`full_key`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Replaces the value.
    Set {
        /// The full key.
        key: String,
        /// The value, JSON.
        value: Bytes,
        /// From this report time on it is not there any more.
        expires: Option<Time>,
    },
    /// Removes the value.
    Remove {
        /// The full key.
        key: String,
    },
    /// Notes that `member` was seen in the set `key`. Adds commute: two reports may add at once.
    Add {
        /// The full key.
        key: String,
        /// What was seen.
        member: String,
        /// When.
        at: Time,
        /// How long after `at` it may be asked for.
        within: Duration,
    },
}

/// The full key of an owner's entry. Owners are policies (by name) and parts of the program (`@notify`).
pub fn full_key(owner: &str, name: &str) -> String {
    format!("{owner}\0{name}")
}

/// The writes of one report, applied together or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    /// In the order in which they were made.
    pub writes: Vec<Write>,
    /// The report, and all policies that have handled it by now: not to be run again when it is delivered again. Kept for
    /// `state.handled_for` (wall clock).
    pub handled: Option<(ReportId, Vec<String>)>,
    /// Adds of this batch that others already count; dropped after the batch is applied.
    pub claims: Vec<tentative::Claim>,
}

/// The store.
pub trait State: Send + Sync {
    /// The value under a full key at a report time.
    fn get<'a>(&'a self, key: &'a str, at: Time) -> BoxFuture<'a, Result<Option<Bytes>, StateError>>;
    /// The distinct members of the set under a full key that were seen after `after` and not after `until`, as hashes
    /// ([`tentative::member_hash`]). At most `state.max_members`, the latest ones.
    fn members<'a>(&'a self, key: &'a str, after: Time, until: Time) -> BoxFuture<'a, Result<Vec<u64>, StateError>>;
    /// Which policies have handled this report before.
    fn handled(&self, report: ReportId) -> BoxFuture<'_, Result<Vec<String>, StateError>>;
    /// Applies a batch atomically. When it resolves every `get` sees it and it survives the death of this process.
    fn apply(&self, batch: Batch) -> BoxFuture<'_, Result<(), StateError>>;
    /// Resolves when all that was applied before the call survives a power cut. Thousands of calls share one fdatasync.
    fn sync(&self) -> BoxFuture<'_, Result<(), StateError>>;
    /// Removes some of what has expired, seen from the latest report time, and was not written for a day of the wall clock: a replay of
    /// last month runs beside today's reports. Gives how many entries it removed.
    fn sweep(&self) -> BoxFuture<'_, Result<usize, StateError>>;
}
