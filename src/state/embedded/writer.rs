//! The one thread that writes the state: the batches that wait are merged and written as one, each with its marker.
//!
//! Owns read-modify-write: sets grow here only, so that two reports may add to one at once. Nothing waits for an fdatasync here; that
//! is [`crate::store::Store::sync`].

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use fjall::{OwnedWriteBatch, PersistMode};
use tokio::sync::{mpsc, oneshot};

use super::age::{Horizon, Hour};
use super::set::{Head, encode_seen};
use super::{Shelves, chunk_key, disk_key};
use crate::report::Time;
use crate::state::{Batch, StateError, Write, tentative};

/// What stands before a value: its expiry (8), the hour in which it was written (4).
const VALUE: usize = 8 + 4;
/// Batches written as one.
const GATHER: usize = 1024;

/// What the thread is asked to do.
pub(super) enum Command {
    Apply {
        batch: Batch,
        answer: oneshot::Sender<Result<(), StateError>>,
    },
    /// Looks at some entries; gives how many it looked at and how many it removed.
    Sweep {
        most: usize,
        answer: oneshot::Sender<Result<Swept, StateError>>,
    },
}

/// What one look of the sweep did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Swept {
    pub(super) looked: usize,
    pub(super) removed: usize,
    /// The end of all entries was reached; the next look begins at the start.
    pub(super) round: bool,
}

/// Where the sweep goes on.
#[derive(Debug, Clone)]
enum Cursor {
    Values(Option<fjall::Slice>),
    Sets(Option<fjall::Slice>),
}

pub(super) struct Writer {
    shelves: Arc<Shelves>,
    cursor: Cursor,
}

/// The effect of the batches gathered so far, one entry a key: the database gives all writes of a batch the same age.
#[derive(Default)]
struct Pending {
    values: HashMap<Vec<u8>, Option<Vec<u8>>>,
    heads: HashMap<Vec<u8>, Head>,
    chunks: HashMap<Vec<u8>, Option<Vec<u8>>>,
    markers: HashMap<[u8; 16], Vec<u8>>,
}

impl Writer {
    pub(super) const fn new(shelves: Arc<Shelves>) -> Self {
        Self { shelves, cursor: Cursor::Values(None) }
    }

    /// Until the last sender of commands is gone.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut got = Vec::with_capacity(GATHER);
        while commands.blocking_recv_many(&mut got, GATHER) > 0 {
            let mut pending = Pending::default();
            let mut applied = Vec::with_capacity(got.len());
            let mut done = Ok(());
            for command in got.drain(..) {
                match command {
                    Command::Apply { batch, answer } => {
                        if done.is_ok() {
                            done = self.merge(&batch, &mut pending);
                        }
                        applied.push((batch, answer));
                    }
                    Command::Sweep { most, answer } => {
                        // Before what is gathered: a head that is about to change must not be removed behind it.
                        let swept = if pending.heads.is_empty() && pending.values.is_empty() {
                            self.sweep(most).map_err(disk)
                        } else {
                            Ok(Swept::default())
                        };
                        let _ = answer.send(swept);
                    }
                }
            }
            if done.is_ok() {
                done = self.commit(pending).map_err(disk);
            }
            if let Err(error) = &done {
                tracing::error!(%error, "state could not be written");
            }
            for (batch, answer) in applied {
                // What the batch claimed is stored now; were it dropped before, others would not count it for a moment.
                drop(batch);
                let _ = answer.send(done.clone());
            }
        }
    }

    fn merge(&self, batch: &Batch, pending: &mut Pending) -> Result<(), StateError> {
        for write in &batch.writes {
            match write {
                Write::Set { key, value, expires } => {
                    let expires = expires.map_or(i64::MAX, Time::micros);
                    let mut bytes = Vec::with_capacity(VALUE + value.len());
                    bytes.extend_from_slice(&expires.to_le_bytes());
                    bytes.extend_from_slice(&Hour::of((self.shelves.clock)()).to_bytes());
                    bytes.extend_from_slice(value);
                    pending.values.insert(disk_key(key).into_owned(), Some(bytes));
                }
                Write::Remove { key } => {
                    pending.values.insert(disk_key(key).into_owned(), None);
                }
                Write::Add { key, member, at, within } => {
                    self.shelves.seen_time(*at);
                    let seen = (tentative::member_hash(member), at.micros());
                    self.add(disk_key(key).into_owned(), seen, *within, pending).map_err(disk)?;
                }
            }
        }
        if let Some((report, policies)) = &batch.handled {
            let names = serde_json::to_vec(policies).map_err(error)?;
            let until = (self.shelves.clock)().plus(self.shelves.handled_for).micros();
            let mut bytes = Vec::with_capacity(8 + names.len());
            bytes.extend_from_slice(&until.to_le_bytes());
            bytes.extend_from_slice(&names);
            pending.markers.insert(*report.as_bytes(), bytes);
        }
        Ok(())
    }

    fn add(
        &self,
        key: Vec<u8>,
        seen: (u64, i64),
        within: std::time::Duration,
        pending: &mut Pending,
    ) -> fjall::Result<()> {
        let mut head = match pending.heads.get(&key) {
            Some(head) => head.clone(),
            None => self.shelves.head(&key)?.unwrap_or_default(),
        };
        let old = self.shelves.horizon();
        let Some(moved) = head.add(seen, within, old, self.shelves.max_chunks()) else { return Ok(()) };
        if let Some((number, seen)) = moved.sealed {
            let mut bytes = Vec::with_capacity(16 * seen.len());
            encode_seen(&seen, &mut bytes);
            pending.chunks.insert(chunk_key(&key, number), Some(bytes));
        }
        for number in moved.dropped {
            pending.chunks.insert(chunk_key(&key, number), None);
        }
        pending.heads.insert(key, head);
        Ok(())
    }

    fn commit(&self, pending: Pending) -> fjall::Result<()> {
        let shelves = &self.shelves;
        let mut batch = shelves.batch();
        let mut put = |keyspace: &fjall::Keyspace, entries: HashMap<Vec<u8>, Option<Vec<u8>>>| {
            for (key, value) in entries {
                match value {
                    Some(value) => batch.insert(keyspace, key, value),
                    None => batch.remove(keyspace, key),
                }
            }
        };
        put(&shelves.values, pending.values);
        put(&shelves.chunks, pending.chunks);
        put(&shelves.sets, pending.heads.into_iter().map(|(key, head)| (key, Some(head.encode()))).collect());
        if !pending.markers.is_empty() {
            let slot = shelves.markers.slot(&shelves.store, (shelves.clock)())?;
            for (report, bytes) in pending.markers {
                batch.insert(&slot, report, bytes);
            }
        }
        batch.durability(Some(PersistMode::Buffer)).commit()
    }

    fn sweep(&mut self, most: usize) -> fjall::Result<Swept> {
        let shelves = Arc::clone(&self.shelves);
        let removed = shelves.markers.drop_old(&shelves.store, (shelves.clock)())?;
        let mut swept = Swept { removed, ..Swept::default() };
        let old = shelves.horizon();
        let mut batch = shelves.batch();
        let (keyspace, from) = match &self.cursor {
            Cursor::Values(from) => (&shelves.values, from.clone()),
            Cursor::Sets(from) => (&shelves.sets, from.clone()),
        };
        let is_set = matches!(self.cursor, Cursor::Sets(_));
        let mut last = None;
        let from = from.map_or(Bound::Unbounded, Bound::Excluded);
        for entry in keyspace.range((from, Bound::<fjall::Slice>::Unbounded)).take(most) {
            let (key, value) = entry.into_inner()?;
            swept.looked += 1;
            let gone = if is_set { self.remove_set(&key, &value, old, &mut batch) } else { value_is_old(&value, old) };
            if gone {
                batch.remove(keyspace, key.clone());
                swept.removed += 1;
            }
            last = Some(key);
        }
        let more = swept.looked == most;
        swept.round = is_set && !more;
        self.cursor = match (is_set, more) {
            (false, true) => Cursor::Values(last),
            (false, false) => Cursor::Sets(None),
            (true, true) => Cursor::Sets(last),
            (true, false) => Cursor::Values(None),
        };
        batch.durability(Some(PersistMode::Buffer)).commit()?;
        Ok(swept)
    }

    /// Whether a set goes; then its chunks go too. What is no set can never be read, and goes.
    fn remove_set(&self, key: &[u8], value: &[u8], old: Horizon, batch: &mut OwnedWriteBatch) -> bool {
        let Some(head) = Head::decode(value) else { return true };
        let gone = head.is_old(old);
        if gone {
            for chunk in &head.chunks {
                batch.remove(&self.shelves.chunks, chunk_key(key, chunk.number));
            }
        }
        gone
    }
}

/// Whether a value is not asked for any more. What is no value can never be read, and goes.
fn value_is_old(value: &[u8], old: Horizon) -> bool {
    let parts = value.split_first_chunk().and_then(|(until, rest)| Some((until, rest.first_chunk()?)));
    parts.is_none_or(|(until, written)| old.passed(i64::from_le_bytes(*until), Hour::from_bytes(*written)))
}

/// The value that is there at a time.
pub(super) fn value_at(value: Bytes, at: Time) -> Option<Bytes> {
    let until = i64::from_le_bytes(*value.first_chunk()?);
    (at.micros() < until && value.len() >= VALUE).then(|| value.slice(VALUE..))
}

/// An error of the database.
pub(super) fn disk(error: fjall::Error) -> StateError {
    StateError(crate::store::explain(&error))
}

pub(super) fn error(error: impl std::fmt::Display) -> StateError {
    StateError(error.to_string())
}

impl Shelves {
    fn batch(&self) -> OwnedWriteBatch {
        OwnedWriteBatch::with_capacity(self.store.database().clone(), 16)
    }

    /// Notes a report time.
    pub(super) fn seen_time(&self, at: Time) {
        if at.micros() > self.latest.load(Ordering::Relaxed) {
            self.latest.fetch_max(at.micros(), Ordering::Relaxed);
        }
    }
}
