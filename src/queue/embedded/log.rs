//! The log of one queue: segments of messages, how far they are handled, and how much room is left.
//!
//! Owns the form on disk. A segment is a keyspace of its own, which goes as a whole once all of it is handled: records deleted one by
//! one would pile up as tombstones in front of the reader. Only the writer's thread changes what is on disk; readers never wait for
//! it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use fjall::{Keyspace, KeyspaceCreateOptions};
use tokio::sync::watch;

use super::super::QueueError;
use super::Bound;
use super::room::{Disk, MIN_FREE, Progress, Tail};
use crate::store::{self, Store};
use crate::telemetry::Metrics;

/// A segment ends at this many bytes, however few messages it has: what is handled must not hold the disk for long.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Segments whose records may wait in memory for their end (handled and dropped before they are ever written as a table).
const SEGMENTS_IN_MEMORY: usize = 2;
pub(super) const TAIL: &str = "tail";
pub(super) const POSITION: &str = "position";

pub(super) struct Log {
    pub(super) store: Store,
    pub(super) name: String,
    pub(super) meta: Keyspace,
    pub(super) dead: Keyspace,
    pub(super) dead_count: AtomicU64,
    /// By first sequence.
    pub(super) segments: RwLock<BTreeMap<u64, Keyspace>>,
    segment_messages: u64,
    pub(super) progress: Mutex<Progress>,
    /// One past the last durable sequence.
    pub(super) end: watch::Sender<u64>,
    /// Bytes that are not handled, and bytes on their way to the log.
    pub(super) unhandled: AtomicU64,
    pub(super) bound: Bound,
    /// Free bytes on the disk below which nothing more is taken.
    pub(super) min_free: u64,
    pub(super) disk: Mutex<Disk>,
    pub(super) retry_after: Duration,
    pub(super) metrics: Arc<Metrics>,
    label: &'static str,
}

impl Log {
    /// Opens the log of the queue `name`, or makes it, and gives its end.
    pub(super) fn open(
        store: &Store,
        name: &str,
        settings: &super::Settings,
        bound: Bound,
        metrics: Arc<Metrics>,
        label: &'static str,
    ) -> Result<(Self, Tail), QueueError> {
        let failed = |error: String| QueueError::Unavailable { queue: name.to_owned(), reason: error };
        if name.is_empty() || name.len() > 128 {
            return Err(failed("its name must have 1 to 128 bytes (queue.reports, queue.alerts)".to_owned()));
        }
        let meta = store.keyspace(&meta_name(name)).map_err(|e| failed(e.to_string()))?;
        let dead = store.keyspace(&format!("queue.{name}.dead")).map_err(|e| failed(e.to_string()))?;
        let read = |key: &str| meta.get(key).map_err(|e| failed(store::explain(&e)));
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
        let dead_count = dead.len().map_err(|e| failed(store::explain(&e)))? as u64;
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
            bound,
            min_free: MIN_FREE,
            disk: Mutex::new(Disk::default()),
            retry_after: settings.retry_after,
            metrics,
            label,
        };
        Ok((log, Tail { next, appended }))
    }

    /// An error of the database.
    pub(super) fn broken(&self, error: &fjall::Error) -> QueueError {
        self.unavailable(store::explain(error))
    }

    pub(super) fn unavailable(&self, reason: impl ToString) -> QueueError {
        QueueError::Unavailable { queue: self.name.clone(), reason: reason.to_string() }
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
            keyspace.rotate_memtable().map_err(|error| self.broken(&error))?;
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

    /// Shows how full the queue is, at once: who waits for an empty queue must not be told of the one before his message. What
    /// [`Queue::depth`](super::super::Queue::depth) says is shown by who asks.
    pub(super) fn show(&self) {
        let messages = self.end.borrow().saturating_sub(self.progress().position);
        let set = |gauge: &prometheus::IntGaugeVec, value: u64| {
            gauge.with_label_values(&[self.label]).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.metrics.queue_messages, messages);
        set(&self.metrics.queue_bytes, self.unhandled());
        set(&self.metrics.dead_letters, self.dead_count.load(Ordering::Relaxed));
    }
}

pub(super) fn meta_name(name: &str) -> String {
    format!("queue.{name}.meta")
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
