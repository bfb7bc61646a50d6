//! The queue that needs no server: a log of segments in the data folder.
//!
//! ```text
//! publish ──▶ writer (one thread, one fdatasync for many) ──▶ log ──▶ source (one task a subscription) ──▶ deliveries
//!                          ▲                                                 │
//!                          └──────── position, dead letters ─────────────────┘
//! ```
//!
//! `log` is the form on disk (`record` that of one message), `writer` its only writer (`command` what it is asked), `reading`
//! reads it, `room` counts. `source` hands out, `settling` takes back, `dead` keeps what was
//! rejected. After a crash, messages from the stored position on are handed out again: none
//! is lost, some come twice.

mod command;
mod dead;
mod log;
mod reading;
mod record;
mod room;
mod settling;
mod source;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use self::command::{Command, Moved, Room};
use self::dead::Dead;
use self::log::Log;
use self::source::Parts;
use self::writer::Writer;
use super::way::Way;
use super::{Backoff, DeadLetters, Delivery, Depth, Message, Publisher, Queue, QueueError, Subscription, Unsettled};
use crate::store::Store;
use crate::telemetry::Metrics;

/// Commands that wait for the writer; further callers wait for a place.
const COMMANDS: usize = 16 * 1024;
/// Deliveries that wait in the channel for their taker.
const CHANNEL: usize = 4096;
/// What key and headers may add to a message of the largest size.
const ENVELOPE: usize = 64 * 1024;

/// Section `[queue.embedded]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    pub max_bytes: ByteSize,
    #[serde(with = "humantime_serde")]
    pub retry_after: Duration,
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
    pub max_batch: usize,
    pub segment_messages: u64,
    pub cache: ByteSize,
}

/// How many bytes of un-handled messages a queue takes, and the setting that says so, for people.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// The bytes.
    pub bytes: ByteSize,
    /// The name of the setting.
    pub setting: &'static str,
}

/// One embedded queue. The thread behind it ends when the queue, its publishers, dead-letter places and sources are gone.
pub struct EmbeddedQueue {
    log: Arc<Log>,
    commands: mpsc::Sender<Command>,
    moved: Arc<Moved>,
    way: Arc<Way>,
    newest: Arc<watch::Sender<u32>>,
    max_message: usize,
}

impl EmbeddedQueue {
    /// Opens the queue `name` in the store, or makes it. `max_message` bounds the body of one message; `metrics_label` is the value
    /// of the label `queue`. Blocks on the disk.
    pub fn open(
        store: &Store,
        name: &str,
        settings: &Settings,
        max_message: usize,
        metrics: Arc<Metrics>,
        metrics_label: &'static str,
    ) -> Result<Arc<Self>, QueueError> {
        let bound = Bound { bytes: settings.max_bytes, setting: "queue.embedded.max_bytes" };
        Self::open_bounded(store, name, settings, bound, max_message, metrics, metrics_label)
    }

    /// As [`EmbeddedQueue::open`], with a bound of its own instead of that of the settings.
    pub fn open_bounded(
        store: &Store,
        name: &str,
        settings: &Settings,
        bound: Bound,
        max_message: usize,
        metrics: Arc<Metrics>,
        metrics_label: &'static str,
    ) -> Result<Arc<Self>, QueueError> {
        let (log, tail) = Log::open(store, name, settings, bound, metrics, metrics_label)?;
        let log = Arc::new(log);
        log.show();
        let (commands, waiting) = mpsc::channel(COMMANDS);
        let moved = Arc::new(Moved::default());
        let writer = Writer::new(Arc::clone(&log), tail, Arc::clone(&moved), settings.linger, settings.max_batch);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|e| log.unavailable(e))?;
        std::thread::Builder::new()
            .name(format!("queue-{metrics_label}"))
            .spawn(move || runtime.block_on(writer.run(waiting)))
            .map_err(|error| log.unavailable(error))?;
        let newest = Arc::new(watch::Sender::new(0));
        Ok(Arc::new(Self { log, commands, moved, way: Arc::new(Way::new()), newest, max_message }))
    }

    /// Whether the store has a queue of this name. Makes none.
    pub fn exists(store: &Store, name: &str) -> bool {
        store.database().keyspace_exists(&log::meta_name(name))
    }

    /// What a source of the newest subscription is made of, and its taker's ends.
    fn parts(&self, limit: Unsettled, backoff: Backoff) -> (Parts, mpsc::Receiver<Delivery>, watch::Sender<bool>) {
        let mut generation = 0;
        self.newest.send_modify(|newest| {
            *newest = newest.wrapping_add(1);
            generation = *newest;
        });
        let (out, deliveries) = mpsc::channel(limit.messages.clamp(1, CHANNEL));
        let (pause, paused) = watch::channel(false);
        let parts = Parts {
            log: Arc::clone(&self.log),
            commands: self.commands.clone(),
            moved: Arc::clone(&self.moved),
            way: Arc::clone(&self.way),
            generation,
            newest: self.newest.subscribe(),
            _newest: Arc::clone(&self.newest),
            limit,
            backoff,
            out,
            paused,
        };
        (parts, deliveries, pause)
    }

    /// How many segments the log has on disk.
    pub fn segments(&self) -> usize {
        self.log.segments()
    }
}

impl Queue for EmbeddedQueue {
    fn name(&self) -> &str {
        &self.log.name
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        let (log, commands) = (Arc::clone(&self.log), self.commands.clone());
        Arc::new(EmbeddedPublisher { log, commands, max_message: self.max_message })
    }

    fn subscribe(&self, limit: Unsettled, backoff: Backoff) -> Result<Subscription, QueueError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|error| self.log.unavailable(error))?;
        let (parts, deliveries, pause) = self.parts(limit, backoff);
        Ok(Subscription { deliveries, pause, source: runtime.spawn(source::run(parts)) })
    }

    fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        Arc::new(Dead { log: Arc::clone(&self.log), commands: self.commands.clone() })
    }

    fn depth(&self) -> BoxFuture<'_, Result<Depth, QueueError>> {
        let log = Arc::clone(&self.log);
        Box::pin(async move {
            let read = move || {
                let (position, end) = (log.progress().position, *log.end.borrow());
                let first =
                    if position < end { log.read(position, end, 1, 1).map(|(first, _)| first) } else { Ok(vec![]) };
                let first = first.map_err(|error| log.broken(&error))?;
                let oldest = first.first().and_then(|first| first.content.as_ref().ok()).map(|m| m.published);
                let dead = log.dead_count.load(std::sync::atomic::Ordering::Relaxed);
                Ok(Depth { messages: end.saturating_sub(position), bytes: log.unhandled(), oldest, dead })
            };
            tokio::task::spawn_blocking(read).await.map_err(|error| self.log.unavailable(error))?
        })
    }
}

struct EmbeddedPublisher {
    log: Arc<Log>,
    commands: mpsc::Sender<Command>,
    max_message: usize,
}

impl EmbeddedPublisher {
    fn encode(&self, messages: &[Message]) -> Result<Vec<Vec<u8>>, QueueError> {
        let too_large = |size| QueueError::TooLarge { queue: self.log.name.clone(), size, limit: self.max_message };
        let mut records = Vec::with_capacity(messages.len());
        for message in messages {
            if message.body.len() > self.max_message {
                return Err(too_large(message.body.len()));
            }
            let record = record::encode(message).filter(|record| record.len() <= self.max_message + ENVELOPE);
            records.push(record.ok_or_else(|| too_large(self.max_message + ENVELOPE))?);
        }
        Ok(records)
    }
}

impl Publisher for EmbeddedPublisher {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move {
            if messages.is_empty() {
                return Ok(());
            }
            let records = self.encode(&messages)?;
            drop(messages);
            let bytes = records.iter().map(|record| record.len() as u64).sum();
            let room = Room::take(&self.log, bytes)?;
            let (answer, answered) = oneshot::channel();
            let closed = || QueueError::Closed(self.log.name.clone());
            self.commands.send(Command::Publish { records, room, answer }).await.map_err(|_| closed())?;
            answered.await.map_err(|_| self.log.unavailable("the write was given up"))?
        })
    }
}

#[cfg(test)]
mod tests;
