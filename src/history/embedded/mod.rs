//! The history in the data folder: one tantivy index a day.
//!
//! Owns the meeting of the asynchronous program with the index: one thread writes (`writer`), searches run on the pool for blocking
//! work, few at once and within a time. Retention is removing a folder.

mod aggregate;
mod answer;
mod closer;
mod columns;
mod compile;
mod day;
mod rank;
mod schema;
mod search;
mod seen;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::AbortOnDropHandle;

use self::day::Days;
use self::writer::{Command, Writer, first_day};
use super::{History, HistoryError, Search, Settings, Stored, query};
use crate::report::{LoginReport, Time};
use crate::telemetry::Metrics;

/// Searches at once; each may use some 100 MiB at worst.
const SEARCHES: usize = 8;

/// What went wrong below, in words.
#[derive(Debug)]
struct Problem(String);

impl From<tantivy::TantivyError> for Problem {
    fn from(error: tantivy::TantivyError) -> Self {
        Self(format!("the index: {error}"))
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        Self(format!("the folder: {error}"))
    }
}

fn unavailable(reason: impl Into<String>) -> HistoryError {
    HistoryError::Unavailable(reason.into())
}

impl From<Problem> for HistoryError {
    fn from(problem: Problem) -> Self {
        unavailable(problem.0)
    }
}

impl From<tantivy::TantivyError> for HistoryError {
    fn from(error: tantivy::TantivyError) -> Self {
        Problem::from(error).into()
    }
}

impl From<std::io::Error> for HistoryError {
    fn from(error: std::io::Error) -> Self {
        Problem::from(error).into()
    }
}

/// The history in the data folder.
#[derive(Debug)]
pub struct EmbeddedHistory {
    days: Arc<Days>,
    settings: Settings,
    metrics: Arc<Metrics>,
    commands: Mutex<Option<Sender<Command>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    room: Arc<Semaphore>,
    searches: Arc<Semaphore>,
    /// The one in which it was opened.
    runtime: Handle,
}

impl EmbeddedHistory {
    /// Opens the folder, which needs no repair after a kill, and starts the writer. One process at a time may do so: the caller holds
    /// the data folder's lock.
    ///
    /// # Errors
    /// The folder cannot be used, no thread can be started, or it is opened outside of a runtime, where searches would have no place.
    pub fn open(dir: &Path, settings: &Settings, metrics: Arc<Metrics>) -> Result<Arc<Self>, HistoryError> {
        let runtime = Handle::try_current().map_err(|error| unavailable(error.to_string()))?;
        let days = Arc::new(Days::open(dir)?);
        let writer = Writer::new(days.clone(), settings, metrics.clone())?;
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new()
            .name("history-write".to_owned())
            .spawn(move || writer.run(&receiver))
            .map_err(|error| unavailable(format!("no thread can be started: {error}")))?;
        let room = settings.commit_at.saturating_mul(4).clamp(1024, Semaphore::MAX_PERMITS);
        Ok(Arc::new(Self {
            days,
            settings: settings.clone(),
            metrics,
            commands: Mutex::new(Some(sender)),
            thread: Mutex::new(Some(thread)),
            room: Arc::new(Semaphore::new(room)),
            searches: Arc::new(Semaphore::new(SEARCHES)),
            runtime,
        }))
    }

    /// Commits what waits and lets go of the folder. Later calls of [`History::store`] are refused.
    pub async fn close(&self) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }

    fn send(&self, command: Command) -> Result<(), HistoryError> {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = commands.as_ref().ok_or_else(|| unavailable("it is closed"))?;
        sender.send(command).map_err(|_| unavailable("its writer has ended"))
    }

    async fn run_search(&self, search: Search) -> Result<Value, HistoryError> {
        let parsed = query::parse(&search.body, search.now)?;
        parsed.check(self.settings.max_hits, self.settings.max_buckets)?;
        // Observes when it is dropped: a search that is given up, by us or by its caller, counts as well.
        let _timer = self.metrics.search.start_timer();
        let limit = self.settings.search_timeout;
        let (buckets, hits) = (self.settings.max_buckets, self.settings.max_hits);
        let (turns, days) = (self.searches.clone(), self.days.clone());
        // Not where the caller runs: a policy's worker looks after thousands of reports before it comes back to this one, and a turn
        // that is given to it lies idle so long. Eight searches a round of the worker is all that there would be.
        let in_turn = self.runtime.spawn(async move {
            let turn = tokio::time::timeout(limit, turns.acquire_owned())
                .await
                .map_err(|_| crowded(limit))?
                .map_err(|_| unavailable("it is closed"))?;
            // From here on the time is the search's own: what it waited before says nothing about it.
            let started = Instant::now();
            let limits = search::Limits { buckets, hits, deadline: started + limit };
            let running = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                search::run(&days, &search, &parsed, limits)
            });
            // The search itself looks at the deadline now and then, and keeps its turn until it has seen it.
            let answer = tokio::time::timeout_at(limits.deadline.into(), running)
                .await
                .map_err(|_| too_slow(limit))?
                .map_err(|error| unavailable(format!("the search failed: {error}")))?;
            let mut answer = answer?.ok_or_else(|| too_slow(limit))?;
            answer["took"] = Value::from(started.elapsed().as_millis() as u64);
            Ok(answer)
        });
        // One that nobody waits for any more gives its place in the row up.
        let answer = AbortOnDropHandle::new(in_turn).await;
        answer.map_err(|error| unavailable(format!("the search failed: {error}")))?
    }
}

/// The searches of others were in the way: asking again may help.
fn crowded(limit: Duration) -> HistoryError {
    let limit = humantime::format_duration(limit);
    unavailable(format!("a search waited longer than history.search_timeout ({limit}) for the others to end"))
}

/// The search itself is too much, and would be so again. Taken for an outage it would be asked for ever, and everything would wait
/// for it.
fn too_slow(limit: Duration) -> HistoryError {
    HistoryError::Query {
        path: "query".to_owned(),
        reason: format!(
            "the search took longer than history.search_timeout ({}); narrow it: a shorter range of @timestamp, a term on login \
             or remote, fewer aggregations",
            humantime::format_duration(limit)
        ),
    }
}

impl History for EmbeddedHistory {
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.close())
    }

    fn store(&self, report: Arc<LoginReport>) -> BoxFuture<'_, Result<Stored, HistoryError>> {
        Box::pin(async move {
            let permit = self.room.clone().acquire_owned().await.map_err(|_| unavailable("it is closed"))?;
            let (reply, answer) = oneshot::channel();
            self.send(Command::Store(report, reply, permit))?;
            answer.await.map_err(|_| unavailable("its writer gave no answer"))?
        })
    }

    fn search(&self, search: Search) -> BoxFuture<'_, Result<Value, HistoryError>> {
        Box::pin(self.run_search(search))
    }

    fn retain(&self, now: Time) -> BoxFuture<'_, Result<usize, HistoryError>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            self.send(Command::Retain(first_day(now, &self.settings), reply))?;
            answer.await.map_err(|_| unavailable("its writer gave no answer"))?
        })
    }
}
