//! The long-term store of reports, and what may be asked of it.
//!
//! Owns the contract. A report is stored once, whatever the number of deliveries ([`History::store`] is put-if-absent by id), and a
//! stored report is on disk when the call resolves: the queue forgets it right after.

pub mod document;
pub mod embedded;
pub mod query;

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::report::{LoginReport, ReportId, Time};

/// Settings of the history.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    pub kind: Kind,
    pub retention_days: u32,
    #[serde(with = "humantime_serde")]
    pub commit_every: Duration,
    pub commit_at: usize,
    pub max_hits: usize,
    pub max_buckets: usize,
    pub writer_memory: ByteSize,
    #[serde(with = "humantime_serde")]
    pub search_timeout: Duration,
}

/// Where the history is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// In the data folder.
    Embedded,
    /// In Elasticsearch or OpenSearch.
    Elasticsearch,
    /// Nowhere.
    None,
}

/// What became of a report that was to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is there now.
    New,
    /// It was there already: the report was delivered before.
    Already,
    /// Its time is before the retention: nothing was stored.
    TooOld,
    /// This history keeps nothing.
    Nothing,
}

/// Why the history did not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HistoryError {
    /// The request is wrong, or asks for more than can be answered in time: asking again does not help. Names the path of the key.
    #[error("{path}: {reason}")]
    Query {
        /// Where in the body, as in `query.bool.filter[0].term`.
        path: String,
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// The store does not answer or answers with an error; asking again may help.
    #[error("the history is unavailable: {0}")]
    Unavailable(String),
}

/// A question to the history.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Search {
    /// An Elasticsearch search body.
    pub body: Value,
    /// What `now` in date math means.
    pub now: Time,
    /// Only documents at or before this time. A handler's search asks up to its report's time, a person's for all.
    pub up_to: Option<Time>,
    /// Leave this report out: a redelivered report must not find its own traces.
    pub without: Option<ReportId>,
}

/// The store.
pub trait History: Send + Sync {
    /// Stores the report unless a report of that id is there. Resolves when it is on disk; a search sees it from then on. Thousands
    /// of calls share one commit.
    fn store(&self, report: Arc<LoginReport>) -> BoxFuture<'_, Result<Stored, HistoryError>>;
    /// Whether it keeps anything at all. `false`: [`History::store`] has nothing to wait for, and need not be called.
    fn keeps(&self) -> bool {
        true
    }
    /// Answers in the form of Elasticsearch: `{"took", "timed_out", "hits": {"total": {"value", "relation"}, "hits"}, "aggregations"}`.
    fn search(&self, search: Search) -> BoxFuture<'_, Result<Value, HistoryError>>;
    /// Forgets what is older than the retention, seen from `now` (wall clock). Gives the number of days dropped.
    fn retain(&self, now: Time) -> BoxFuture<'_, Result<usize, HistoryError>>;
    /// Commits what waits and ends the work in the background. Nothing is stored after it.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// The history of an operator who wants none: stores nothing, finds nothing.
#[derive(Debug)]
pub struct NoHistory;

impl History for NoHistory {
    fn store(&self, _: Arc<LoginReport>) -> BoxFuture<'_, Result<Stored, HistoryError>> {
        Box::pin(std::future::ready(Ok(Stored::Nothing)))
    }

    fn keeps(&self) -> bool {
        false
    }

    fn search(&self, search: Search) -> BoxFuture<'_, Result<Value, HistoryError>> {
        Box::pin(async move { Ok(query::parse(&search.body, search.now)?.empty_answer()) })
    }

    fn retain(&self, _: Time) -> BoxFuture<'_, Result<usize, HistoryError>> {
        Box::pin(std::future::ready(Ok(0)))
    }
}
