//! A state store in memory: the contract without a disk, and with a switch that makes it unavailable.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use trackalert::report::{ReportId, Time};
use trackalert::state::tentative::member_hash;
use trackalert::state::{Batch, State, StateError, Write};

#[derive(Default)]
struct Tables {
    values: HashMap<String, (Bytes, Option<Time>)>,
    members: HashMap<String, Vec<(u64, Time, Duration)>>,
    handled: HashMap<ReportId, Vec<String>>,
}

#[derive(Default)]
pub(crate) struct MemoryState {
    tables: Mutex<Tables>,
    down: AtomicBool,
}

impl MemoryState {
    /// From now on every call fails, or works again.
    #[allow(dead_code, reason = "not every test file switches it off")]
    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    fn with<T>(&self, work: impl FnOnce(&mut Tables) -> T) -> Result<T, StateError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(StateError("switched off by the test".to_owned()));
        }
        Ok(work(&mut self.tables.lock().unwrap()))
    }
}

/// Answers after others had their turn, as a store does: what races here races there.
fn later<'a, T: Send + 'a>(
    answer: impl FnOnce() -> Result<T, StateError> + Send + 'a,
) -> BoxFuture<'a, Result<T, StateError>> {
    Box::pin(async {
        tokio::task::yield_now().await;
        answer()
    })
}

impl State for MemoryState {
    fn get<'a>(&'a self, key: &'a str, at: Time) -> BoxFuture<'a, Result<Option<Bytes>, StateError>> {
        later(move || {
            self.with(|tables| {
                let (value, expires) = tables.values.get(key)?;
                expires.is_none_or(|end| at < end).then(|| value.clone())
            })
        })
    }

    fn members<'a>(&'a self, key: &'a str, after: Time, until: Time) -> BoxFuture<'a, Result<Vec<u64>, StateError>> {
        later(move || {
            self.with(|tables| {
                let seen = tables.members.get(key).map(Vec::as_slice).unwrap_or_default();
                let mut found: Vec<u64> =
                    seen.iter().filter(|(_, at, _)| *at > after && *at <= until).map(|(hash, ..)| *hash).collect();
                found.sort_unstable();
                found.dedup();
                found
            })
        })
    }

    fn handled(&self, report: ReportId) -> BoxFuture<'_, Result<Vec<String>, StateError>> {
        later(move || self.with(|tables| tables.handled.get(&report).cloned().unwrap_or_default()))
    }

    fn apply(&self, batch: Batch) -> BoxFuture<'_, Result<(), StateError>> {
        later(move || {
            self.with(|tables| {
                for write in batch.writes {
                    match write {
                        Write::Set { key, value, expires } => drop(tables.values.insert(key, (value, expires))),
                        Write::Remove { key } => drop(tables.values.remove(&key)),
                        Write::Add { key, member, at, within } => {
                            tables.members.entry(key).or_default().push((member_hash(&member), at, within));
                        }
                    }
                }
                if let Some((report, policies)) = batch.handled {
                    tables.handled.insert(report, policies);
                }
            })
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StateError>> {
        later(move || self.with(|_| ()))
    }

    fn sweep(&self) -> BoxFuture<'_, Result<usize, StateError>> {
        later(move || self.with(|_| 0))
    }
}
