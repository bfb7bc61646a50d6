//! The log of one queue: segments of messages, how far they are handled, and how much room is left.
//!
//! Owns the form on disk. A segment is a keyspace of its own, which goes as a whole once all of it is handled: records deleted one by
//! one would pile up as tombstones in front of the reader. Only the writer's thread changes what is on disk; readers never wait for
//! it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use fjall::{Keyspace, KeyspaceCreateOptions};
use tokio::sync::watch;

use super::super::{Message, QueueError};
use super::record;
use crate::store::Store;
use crate::telemetry::Metrics;

/// A segment ends at this many bytes, however few messages it has: what is handled must not hold the disk for long.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Segments whose records may wait in memory for their end (handled and dropped before they are ever written as a table).
const SEGMENTS_IN_MEMORY: usize = 2;
pub(super) const TAIL: &str = "tail";
pub(super) const POSITION: &str = "position";

/// How far the messages are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Everything below is done.
    pub(super) position: u64,
    /// Bytes of all records below, since the queue was made.
    pub(super) handled: u64,
}

/// The end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    /// The next sequence.
    pub(super) next: u64,
    /// Bytes of all records, since the queue was made.
    pub(super) appended: u64,
}

/// A record as it was read.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    /// Bytes on disk.
    pub(super) size: u64,
    /// The message, or the bytes that are none.
    pub(super) content: Result<Message, Bytes>,
}

pub(super) struct Log {
    pub(super) store: Store,
    pub(super) name: String,
    pub(super) meta: Keyspace,
    pub(super) dead: Keyspace,
    pub(super) dead_count: AtomicU64,
    /// By first sequence.
    segments: RwLock<BTreeMap<u64, Keyspace>>,
    segment_messages: u64,
    progress: Mutex<Progress>,
    /// One past the last durable sequence.
    pub(super) end: watch::Sender<u64>,
    /// Bytes that are not handled, and bytes on their way to the log.
    unhandled: AtomicU64,
    max_bytes: u64,
    retry_after: Duration,
    pub(super) metrics: Arc<Metrics>,
    label: &'static str,
}

impl Log {
    /// Opens the log of the queue `name`, or makes it, and gives its end.
    pub(super) fn open(
        store: &Store,
        name: &str,
        settings: &super::Settings,
        metrics: Arc<Metrics>,
        label: &'static str,
    ) -> Result<(Self, Tail), QueueError> {
        let failed = |error: String| QueueError::Unavailable { queue: name.to_owned(), reason: error };
        if name.is_empty() || name.len() > 128 {
            return Err(failed("its name must have 1 to 128 bytes (queue.reports, queue.alerts)".to_owned()));
        }
        let meta = store.keyspace(&format!("queue.{name}.meta")).map_err(|e| failed(e.to_string()))?;
        let dead = store.keyspace(&format!("queue.{name}.dead")).map_err(|e| failed(e.to_string()))?;
        let read = |key: &str| meta.get(key).map_err(|e| failed(e.to_string()));
        let (next, appended) = pair(read(TAIL)?.as_deref()).unwrap_or_default();
        let (position, handled) = pair(read(POSITION)?.as_deref()).unwrap_or_default();
        let mut segments = BTreeMap::new();
        let prefix = segment_prefix(name);
        for found in store.database().list_keyspace_names() {
            let Some(first) = found.strip_prefix(&prefix).and_then(|first| u64::from_str_radix(first, 16).ok()) else {
                continue;
            };
            segments.insert(first, store.keyspace(&found).map_err(|e| failed(e.to_string()))?);
        }
        // After a power cut the position may be older than the segments that were dropped behind it.
        let oldest = segments.keys().next().copied().unwrap_or(next);
        let position = position.max(oldest).min(next);
        let dead_count = dead.len().map_err(|e| failed(e.to_string()))? as u64;
        let log = Self {
            store: store.clone(),
            name: name.to_owned(),
            meta,
            dead,
            dead_count: AtomicU64::new(dead_count),
            segments: RwLock::new(segments),
            segment_messages: settings.segment_messages.max(1),
            progress: Mutex::new(Progress { position, handled: handled.min(appended) }),
            end: watch::Sender::new(next),
            unhandled: AtomicU64::new(appended.saturating_sub(handled)),
            max_bytes: settings.max_bytes.as_u64(),
            retry_after: settings.retry_after,
            metrics,
            label,
        };
        Ok((log, Tail { next, appended }))
    }

    pub(super) fn unavailable(&self, reason: impl ToString) -> QueueError {
        QueueError::Unavailable { queue: self.name.clone(), reason: reason.to_string() }
    }

    /// Takes room for bytes to be written, or says that there is none. One message always fits into an empty queue.
    pub(super) fn reserve(&self, bytes: u64) -> Result<(), QueueError> {
        let take = |used: u64| {
            let sum = used.saturating_add(bytes);
            (used == 0 || sum <= self.max_bytes).then_some(sum)
        };
        self.unhandled.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).map(|_| ()).map_err(|_| {
            QueueError::Full {
                queue: self.name.clone(),
                limit: format!("queue.embedded.max_bytes = {}", bytesize::ByteSize(self.max_bytes)),
                retry_after: self.retry_after,
            }
        })
    }

    /// Gives room back.
    pub(super) fn release(&self, bytes: u64) {
        let _ =
            self.unhandled.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| Some(used.saturating_sub(bytes)));
    }

    pub(super) fn progress(&self) -> Progress {
        *self.locked()
    }

    fn locked(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything below `position` is done; `bytes` is the size of what became done.
    pub(super) fn advance(&self, position: u64, bytes: u64) {
        let mut progress = self.locked();
        if position > progress.position {
            *progress = Progress { position, handled: progress.handled.saturating_add(bytes) };
            drop(progress);
            self.release(bytes);
        }
    }

    /// Makes the count of bytes exact again where all is done: records that could not be found were never counted as handled.
    pub(super) fn correct(&self, tail: Tail) {
        let mut progress = self.locked();
        if progress.position == tail.next && progress.handled < tail.appended {
            let missed = tail.appended - progress.handled;
            progress.handled = tail.appended;
            drop(progress);
            self.release(missed);
        }
    }

    /// Bytes that are not handled.
    pub(super) fn unhandled(&self) -> u64 {
        self.unhandled.load(Ordering::Acquire)
    }

    /// The segment for the record `sequence`; starts a new one where the last is full. For the writer only.
    pub(super) fn segment_for(&self, sequence: u64, bytes_in_last: &mut u64) -> Result<Keyspace, QueueError> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((first, segment)) = segments.range(..=sequence).next_back()
            && sequence - first < self.segment_messages
            && (*bytes_in_last < SEGMENT_BYTES || *first == sequence)
        {
            return Ok(segment.clone());
        }
        let to_disk: Vec<_> = segments.values().rev().skip(SEGMENTS_IN_MEMORY - 1).take(1).cloned().collect();
        drop(segments);
        // A backlog must not stay in memory; and the tables written here are what lets the journal behind them go.
        for keyspace in to_disk.iter().chain([&self.meta]) {
            keyspace.rotate_memtable().map_err(|error| self.unavailable(error))?;
        }
        let name = format!("{}{sequence:016x}", segment_prefix(&self.name));
        let made = self.store.keyspace_with(&name, segment_options).map_err(|error| self.unavailable(error))?;
        *bytes_in_last = 0;
        self.segments.write().unwrap_or_else(PoisonError::into_inner).insert(sequence, made.clone());
        Ok(made)
    }

    /// Drops the segments of which all is handled, but not the last one. For the writer only.
    pub(super) fn drop_handled(&self, position: u64) -> fjall::Result<usize> {
        let mut dropped = 0;
        loop {
            let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
            let second = segments.keys().nth(1).copied();
            if second.is_none_or(|second| second > position) {
                return Ok(dropped);
            }
            let Some((first, segment)) = segments.pop_first() else { return Ok(dropped) };
            drop(segments);
            if let Err(error) = self.store.database().delete_keyspace(segment.clone()) {
                self.segments.write().unwrap_or_else(PoisonError::into_inner).insert(first, segment);
                return Err(error);
            }
            dropped += 1;
        }
    }

    /// How many segments there are.
    pub(super) fn segments(&self) -> usize {
        self.segments.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Reads on from `cursor`, at most `most` records and about `bytes` bytes, never past `end`. Gives the records, and where to go
    /// on. Blocks on the disk.
    pub(super) fn read(&self, cursor: u64, end: u64, most: usize, bytes: u64) -> fjall::Result<(Vec<Stored>, u64)> {
        let (segment, until) = {
            let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
            let until = segments.range(cursor + 1..).next().map_or(end, |(first, _)| (*first).min(end));
            (segments.range(..=cursor).next_back().map(|(_, segment)| segment.clone()), until)
        };
        let Some(segment) = segment else { return Ok((Vec::new(), until)) };
        let mut records = Vec::with_capacity(most.min(usize::try_from(until - cursor).unwrap_or(most)));
        let mut read = 0;
        for entry in segment.range(cursor.to_be_bytes()..until.to_be_bytes()) {
            let (key, value) = match entry.into_inner() {
                Ok(entry) => entry,
                Err(error) if damaged(&error) => return read_singly(&segment, cursor, until, most),
                Err(error) => return Err(error),
            };
            let Ok(key) = <[u8; 8]>::try_from(&key[..]) else { continue };
            let stored = stored(u64::from_be_bytes(key), value.into());
            read += stored.size;
            let sequence = stored.sequence;
            records.push(stored);
            if records.len() >= most || read >= bytes {
                return Ok((records, sequence + 1));
            }
        }
        Ok((records, until))
    }

    /// Shows how full the queue is.
    pub(super) fn show(&self) {
        let messages = self.end.borrow().saturating_sub(self.progress().position);
        let set = |gauge: &prometheus::IntGaugeVec, value: u64| {
            gauge.with_label_values(&[self.label]).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.metrics.queue_messages, messages);
        set(&self.metrics.queue_bytes, self.unhandled());
        set(&self.metrics.dead_letters, self.dead_count.load(Ordering::Relaxed));
    }

    pub(super) fn show_oldest(&self, seconds: f64) {
        self.metrics.queue_oldest.with_label_values(&[self.label]).set(seconds as i64);
    }
}

fn segment_prefix(name: &str) -> String {
    format!("queue.{name}.log.")
}

fn segment_options() -> KeyspaceCreateOptions {
    // Written once, read once from end to end: larger blocks compress and read better, and no filter is ever asked.
    KeyspaceCreateOptions::default()
        .data_block_size_policy(fjall::config::BlockSizePolicy::all(32 * 1024))
        .data_block_compression_policy(fjall::config::CompressionPolicy::all(fjall::CompressionType::Lz4))
        .filter_policy(fjall::config::FilterPolicy::disabled())
}

/// Two numbers as they stand under [`TAIL`] and [`POSITION`].
pub(super) fn pair_bytes(first: u64, second: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&first.to_be_bytes());
    bytes[8..].copy_from_slice(&second.to_be_bytes());
    bytes
}

fn pair(bytes: Option<&[u8]>) -> Option<(u64, u64)> {
    let (first, second) = bytes?.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*first), u64::from_be_bytes(second.try_into().ok()?)))
}

fn stored(sequence: u64, value: Bytes) -> Stored {
    let size = value.len() as u64;
    let content = record::decode(value.clone()).ok_or(value);
    Stored { sequence, size, content }
}

/// Whether the bytes are there and wrong, for good. Anything else may be well at the next try.
fn damaged(error: &fjall::Error) -> bool {
    use fjall::LsmError;
    matches!(
        error,
        fjall::Error::Storage(
            LsmError::ChecksumMismatch { .. }
                | LsmError::Decompress(_)
                | LsmError::InvalidHeader(_)
                | LsmError::InvalidTrailer
                | LsmError::InvalidTag(_)
        )
    )
}

/// Reads record by record, so that one damaged block costs no more than the records in it: these come out as what is no message.
fn read_singly(segment: &Keyspace, cursor: u64, until: u64, most: usize) -> fjall::Result<(Vec<Stored>, u64)> {
    let last = until.min(cursor.saturating_add(most as u64));
    let mut records = Vec::new();
    for sequence in cursor..last {
        match segment.get(sequence.to_be_bytes()) {
            Ok(Some(value)) => records.push(stored(sequence, value.into())),
            Ok(None) => {}
            Err(error) if damaged(&error) => {
                records.push(Stored { sequence, size: 0, content: Err(Bytes::new()) });
            }
            Err(error) => return Err(error),
        }
    }
    Ok((records, last))
}
