//! The state in the data folder.
//!
//! Owns the form on disk: values with their expiry, sets (`set`), markers (`markers`), and when each may go (`age`). Reads are answered where they are asked;
//! writes go through one thread (`writer`). A read costs microseconds while its block is in memory.

mod age;
mod markers;
mod set;
mod writer;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fjall::Keyspace;
use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use self::age::Horizon;
use self::markers::Markers;
use self::set::{Head, decode_seen, distinct};
use self::writer::{Command, Swept, Writer, disk, error, value_at};
use super::{Batch, Settings, State, StateError};
use crate::report::{ReportId, Time};
use crate::store::Store;

/// Batches that wait for the writer; further callers wait for a place.
const COMMANDS: usize = 16 * 1024;
/// Entries the sweep looks at before other commands have their turn.
const SWEEP: usize = 2000;
/// The longest key that is stored as it is.
const KEY: usize = 1024;

type Clock = Box<dyn Fn() -> Time + Send + Sync>;

/// What both the readers and the writer use.
struct Shelves {
    store: Store,
    values: Keyspace,
    /// Heads of sets.
    sets: Keyspace,
    chunks: Keyspace,
    markers: Markers,
    /// The latest report time seen, in microseconds.
    latest: AtomicI64,
    handled_for: Duration,
    max_members: usize,
    /// The wall clock.
    clock: Clock,
}

impl Shelves {
    fn head(&self, key: &[u8]) -> fjall::Result<Option<Head>> {
        Ok(self.sets.get(key)?.and_then(|bytes| Head::decode(&bytes)))
    }

    /// What may go.
    fn horizon(&self) -> Horizon {
        Horizon::new(Time::from_micros(self.latest.load(Ordering::Relaxed)), (self.clock)())
    }

    /// Occurrences kept are four times the members, so that a few busy members do not push the others out.
    fn max_chunks(&self) -> usize {
        (self.max_members / 32).max(4)
    }

    fn members(&self, key: &str, after: Time, until: Time) -> fjall::Result<Vec<u64>> {
        let key = disk_key(key);
        let Some(head) = self.head(&key)? else { return Ok(Vec::new()) };
        let (after, until) = (after.micros(), until.micros());
        let mut seen = head.seen;
        for chunk in head.chunks.iter().filter(|chunk| chunk.last > after && chunk.first <= until) {
            if let Some(bytes) = self.chunks.get(chunk_key(&key, chunk.number))? {
                seen.extend(decode_seen(&bytes));
            }
        }
        seen.retain(|(_, at)| *at > after && *at <= until);
        Ok(distinct(seen, self.max_members))
    }
}

/// A full key as it is stored: keys come from policies and hold what clients send, so a long one keeps its start and gets a hash.
fn disk_key(key: &str) -> Cow<'_, [u8]> {
    if !key.is_empty() && key.len() <= KEY {
        return Cow::Borrowed(key.as_bytes());
    }
    let mut bytes = key.as_bytes().get(..KEY).unwrap_or_default().to_vec();
    bytes.extend_from_slice(&Sha256::digest(key.as_bytes()));
    Cow::Owned(bytes)
}

fn chunk_key(key: &[u8], number: u32) -> Vec<u8> {
    [key, &number.to_be_bytes()].concat()
}

/// The embedded state. The thread behind it ends when the state is gone.
pub struct EmbeddedState {
    shelves: Arc<Shelves>,
    commands: mpsc::Sender<Command>,
    sweep_entries: usize,
}

impl EmbeddedState {
    /// Opens the state in the store, or makes it. Blocks on the disk.
    pub fn open(store: &Store, settings: &Settings) -> Result<Arc<Self>, StateError> {
        Self::open_at(store, settings, Box::new(Time::now))
    }

    fn open_at(store: &Store, settings: &Settings, clock: Clock) -> Result<Arc<Self>, StateError> {
        let shelves = Arc::new(Shelves {
            store: store.clone(),
            values: store.keyspace("state.entries").map_err(error)?,
            sets: store.keyspace("state.sets").map_err(error)?,
            chunks: store.keyspace("state.chunks").map_err(error)?,
            markers: Markers::open(store, settings.handled_for).map_err(error)?,
            latest: AtomicI64::new(i64::MIN),
            handled_for: settings.handled_for,
            max_members: settings.max_members.max(1),
            clock,
        });
        let (commands, waiting) = mpsc::channel(COMMANDS);
        let writer = Writer::new(Arc::clone(&shelves));
        let thread = std::thread::Builder::new().name("state".to_owned());
        thread.spawn(move || writer.run(waiting)).map_err(error)?;
        Ok(Arc::new(Self { shelves, commands, sweep_entries: settings.sweep_entries }))
    }

    async fn ask<T>(
        &self,
        command: Command,
        answered: oneshot::Receiver<Result<T, StateError>>,
    ) -> Result<T, StateError> {
        let closed = || StateError("it is closed".to_owned());
        self.commands.send(command).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

impl State for EmbeddedState {
    fn get<'a>(&'a self, key: &'a str, at: Time) -> BoxFuture<'a, Result<Option<Bytes>, StateError>> {
        Box::pin(async move {
            self.shelves.seen_time(at);
            let value = self.shelves.values.get(disk_key(key)).map_err(disk)?;
            Ok(value.and_then(|value| value_at(value.into(), at)))
        })
    }

    fn members<'a>(&'a self, key: &'a str, after: Time, until: Time) -> BoxFuture<'a, Result<Vec<u64>, StateError>> {
        Box::pin(async move {
            self.shelves.seen_time(until);
            self.shelves.members(key, after, until).map_err(disk)
        })
    }

    fn handled(&self, report: ReportId) -> BoxFuture<'_, Result<Vec<String>, StateError>> {
        Box::pin(async move { self.shelves.markers.get(report, (self.shelves.clock)()).map_err(disk) })
    }

    fn apply(&self, batch: Batch) -> BoxFuture<'_, Result<(), StateError>> {
        Box::pin(async move {
            if batch.writes.is_empty() && batch.handled.is_none() {
                return Ok(());
            }
            let (answer, answered) = oneshot::channel();
            self.ask(Command::Apply { batch, answer }, answered).await
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StateError>> {
        Box::pin(async move { self.shelves.store.sync().await.map_err(StateError) })
    }

    fn sweep(&self) -> BoxFuture<'_, Result<usize, StateError>> {
        Box::pin(async move {
            let (mut looked, mut removed) = (0, 0);
            while looked < self.sweep_entries {
                let (answer, answered) = oneshot::channel();
                let most = SWEEP.min(self.sweep_entries - looked);
                let Swept { looked: now, removed: gone, round } =
                    self.ask(Command::Sweep { most, answer }, answered).await?;
                // A look that found nothing counts, so that this ends.
                looked += now.max(SWEEP / 2);
                removed += gone;
                if round {
                    break;
                }
            }
            Ok(removed)
        })
    }
}

#[cfg(test)]
mod tests;
