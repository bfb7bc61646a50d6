//! The one thread that writes to the log of a queue: many callers share one batch and one fdatasync.
//!
//! Owns the order on disk. Sequences are given only to what was written, so that a failed write leaves no hole. The position rides
//! along with every batch.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fjall::{OwnedWriteBatch, PersistMode};
use tokio::sync::mpsc;

use super::super::QueueError;
use super::command::{Answer, Command, Moved};
use super::log::{Log, POSITION, TAIL, pair_bytes};
use super::room::{Progress, Tail};

/// Bytes after which a batch is written although more waits: a batch is held in memory twice.
const BATCH_BYTES: u64 = 8 * 1024 * 1024;
/// How old the stored position may become while nothing else is written.
const POSITION_EVERY: Duration = Duration::from_millis(2);

/// The thread's own things.
pub(super) struct Writer {
    pub(super) log: Arc<Log>,
    pub(super) tail: Tail,
    pub(super) moved: Arc<Moved>,
    pub(super) linger: Duration,
    pub(super) max_batch: usize,
    /// What is stored.
    stored: Progress,
    bytes_in_last: u64,
}

/// What one batch changes besides the records, taken over when it is on disk.
struct Built {
    batch: OwnedWriteBatch,
    tail: Tail,
    answers: Vec<Answer>,
    durable: bool,
    dead: i64,
    /// Letters that this batch removes: a second command for the same one finds nothing.
    gone: Vec<String>,
}

impl Writer {
    pub(super) fn new(log: Arc<Log>, tail: Tail, moved: Arc<Moved>, linger: Duration, max_batch: usize) -> Self {
        let stored = log.progress();
        Self { log, tail, moved, linger, max_batch: max_batch.max(1), stored, bytes_in_last: 0 }
    }

    /// Until the last sender of commands is gone.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut got = Vec::new();
        while let Some(first) = commands.recv().await {
            got.push(first);
            self.gather(&mut commands, &mut got).await;
            self.write(&mut got);
            self.log.show();
        }
        got.clear();
        self.write_position(PersistMode::SyncData);
    }

    async fn gather(&self, commands: &mut mpsc::Receiver<Command>, got: &mut Vec<Command>) {
        let mut messages = got.iter().map(Command::messages).sum::<usize>();
        let mut bytes = got.iter().map(Command::bytes).sum::<u64>();
        // Nobody waits for a position that moved, so it waits longer; the first one that is waited for shortens that.
        let started = tokio::time::Instant::now();
        let mut until = started + if messages == 0 { self.linger.max(POSITION_EVERY) } else { self.linger };
        while messages < self.max_batch && bytes < BATCH_BYTES {
            let Ok(Some(next)) = tokio::time::timeout_at(until, commands.recv()).await else { return };
            if messages == 0 && next.messages() > 0 {
                until = until.min(tokio::time::Instant::now() + self.linger);
            }
            messages += next.messages();
            bytes += next.bytes();
            got.push(next);
        }
    }

    fn write(&mut self, got: &mut Vec<Command>) {
        self.moved.heard();
        self.log.correct(self.tail);
        let started = Instant::now();
        let mut built = Built {
            batch: OwnedWriteBatch::with_capacity(self.log.store.database().clone(), got.len()),
            tail: self.tail,
            answers: Vec::with_capacity(got.len()),
            durable: false,
            dead: 0,
            gone: Vec::new(),
        };
        let mut failed = None;
        for command in got.drain(..) {
            if let Err(error) = self.add(command, &mut built) {
                failed.get_or_insert(error);
            }
        }
        let progress = self.log.progress();
        if progress != self.stored {
            built.batch.insert(&self.log.meta, POSITION, pair_bytes(progress.position, progress.handled));
        }
        if built.tail != self.tail {
            built.batch.insert(&self.log.meta, TAIL, pair_bytes(built.tail.next, built.tail.appended));
        }
        let mode = if built.durable { PersistMode::SyncData } else { PersistMode::Buffer };
        let done = match failed {
            Some(error) => Err(error),
            None => built.batch.durability(Some(mode)).commit().map_err(|error| self.log.broken(&error)),
        };
        match &done {
            Ok(()) => {
                self.stored = progress;
                self.tail = built.tail;
                self.count_dead(built.dead);
                self.log.end.send_if_modified(|end| std::mem::replace(end, built.tail.next) != built.tail.next);
                if built.durable {
                    self.log.metrics.group_commit.observe(started.elapsed().as_secs_f64());
                }
                self.drop_handled(progress.position);
            }
            Err(error) => tracing::error!(queue = self.log.name, %error, "queue could not be written"),
        }
        for answer in built.answers {
            answer.give(done.clone());
        }
    }

    /// Adds one command to the batch. On an error the whole batch is not written; each command's answer stands in `built`.
    fn add(&mut self, command: Command, built: &mut Built) -> Result<(), QueueError> {
        match command {
            Command::Publish { records, room, answer } => {
                built.durable = true;
                built.answers.push(Answer::Publish(room, answer));
                for record in records {
                    self.append(record, built)?;
                }
            }
            Command::Bury { sequence, key, letter, answer } => {
                built.durable = true;
                built.dead += 1;
                built.answers.push(Answer::Bury(sequence, answer));
                built.batch.insert(&self.log.dead, key, letter);
            }
            Command::Resend { key, record, room, answer } => {
                let found = self.remove_letter(key, built)?;
                built.answers.push(Answer::Resend(found.then_some(room), answer));
                if found {
                    self.append(record, built)?;
                }
            }
            Command::Forget { key, answer } => {
                let found = self.remove_letter(key, built)?;
                built.answers.push(Answer::Forget(found, answer));
            }
            Command::Moved => {}
            Command::Settle { answer } => {
                built.durable = true;
                built.answers.push(Answer::Settle(answer));
            }
        }
        Ok(())
    }

    fn append(&mut self, record: Vec<u8>, built: &mut Built) -> Result<(), QueueError> {
        let segment = self.log.segment_for(built.tail.next, &mut self.bytes_in_last)?;
        let size = record.len() as u64;
        built.batch.insert(&segment, built.tail.next.to_be_bytes(), record);
        self.bytes_in_last += size;
        built.tail = Tail { next: built.tail.next + 1, appended: built.tail.appended + size };
        Ok(())
    }

    fn remove_letter(&self, key: String, built: &mut Built) -> Result<bool, QueueError> {
        let there = self.log.dead.contains_key(&key).map_err(|error| self.log.broken(&error))?;
        if !there || built.gone.contains(&key) {
            return Ok(false);
        }
        built.durable = true;
        built.dead -= 1;
        built.batch.remove(&self.log.dead, key.as_str());
        built.gone.push(key);
        Ok(true)
    }

    fn count_dead(&self, change: i64) {
        let count = |now: u64| Some(now.saturating_add_signed(change));
        let _ = self.log.dead_count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count);
    }

    fn drop_handled(&self, position: u64) {
        match self.log.drop_handled(position) {
            Ok(0) => {}
            Ok(dropped) => tracing::debug!(queue = self.log.name, dropped, "handled segments dropped"),
            Err(error) => tracing::warn!(queue = self.log.name, %error, "handled segment could not be dropped yet"),
        }
    }

    fn write_position(&self, mode: PersistMode) {
        let progress = self.log.progress();
        let mut batch = OwnedWriteBatch::with_capacity(self.log.store.database().clone(), 1).durability(Some(mode));
        batch.insert(&self.log.meta, POSITION, pair_bytes(progress.position, progress.handled));
        if let Err(error) = batch.commit() {
            tracing::error!(queue = self.log.name, %error, "position could not be stored: some messages come again");
        }
    }
}
