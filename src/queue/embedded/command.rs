//! What the writer of a queue is asked to do, and how it answers.
//!
//! Owns the room that a write takes in the queue: it is given back wherever the write ends without being on disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, oneshot};

use super::super::QueueError;
use super::log::Log;

/// What the thread is asked to do.
pub(super) enum Command {
    /// Appends records.
    Publish { records: Vec<Vec<u8>>, room: Room, answer: oneshot::Sender<Result<(), QueueError>> },
    /// Keeps a dead letter; says to its source whether it is durable.
    Bury { sequence: u64, key: String, letter: Vec<u8>, answer: mpsc::UnboundedSender<(u64, Result<(), QueueError>)> },
    /// Appends the copy of a dead letter and forgets that, as one. `false`: it is not there any more.
    Resend { key: String, record: Vec<u8>, room: Room, answer: oneshot::Sender<Result<bool, QueueError>> },
    /// Forgets a dead letter.
    Forget { key: String, answer: oneshot::Sender<Result<bool, QueueError>> },
    /// The position moved: to be stored soon.
    Moved,
    /// Stores the position and makes it durable.
    Settle { answer: oneshot::Sender<Result<(), QueueError>> },
}

impl Command {
    pub(super) fn messages(&self) -> usize {
        match self {
            Self::Publish { records, .. } => records.len(),
            Self::Moved => 0,
            _ => 1,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Publish { room, .. } | Self::Resend { room, .. } => room.bytes,
            Self::Bury { letter, .. } => letter.len() as u64,
            _ => 0,
        }
    }
}

/// Room taken in the queue, given back if its records are not written after all.
pub(super) struct Room {
    log: Arc<Log>,
    bytes: u64,
}

impl Room {
    /// Takes room, or says that the queue is full.
    pub(super) fn take(log: &Arc<Log>, bytes: u64) -> Result<Self, QueueError> {
        log.reserve(bytes)?;
        Ok(Self { log: Arc::clone(log), bytes })
    }

    /// The records are in the log: their room is given back when they are handled.
    fn used(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.log.release(self.bytes);
    }
}

/// Says that the position moved, without flooding the thread.
#[derive(Default)]
pub(super) struct Moved(AtomicBool);

impl Moved {
    /// To be called after each advance.
    pub(super) fn tell(&self, commands: &mpsc::Sender<Command>) {
        if !self.0.swap(true, Ordering::AcqRel) && commands.try_send(Command::Moved).is_err() {
            // No place: then a batch is about to be written, and takes the position along.
            self.0.store(false, Ordering::Release);
        }
    }

    /// The position is about to be stored.
    pub(super) fn heard(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The answer to one command, given when its batch is on disk.
pub(super) enum Answer {
    Publish(Room, oneshot::Sender<Result<(), QueueError>>),
    Bury(u64, mpsc::UnboundedSender<(u64, Result<(), QueueError>)>),
    Resend(Option<Room>, oneshot::Sender<Result<bool, QueueError>>),
    Forget(bool, oneshot::Sender<Result<bool, QueueError>>),
    Settle(oneshot::Sender<Result<(), QueueError>>),
}

impl Answer {
    pub(super) fn give(self, done: Result<(), QueueError>) {
        // A caller that no longer waits needs no answer.
        match self {
            Self::Publish(room, answer) => {
                if done.is_ok() {
                    room.used();
                }
                let _ = answer.send(done);
            }
            Self::Bury(sequence, answer) => {
                let _ = answer.send((sequence, done));
            }
            Self::Resend(room, answer) => {
                let found = room.is_some();
                if let (Some(room), true) = (room, done.is_ok()) {
                    room.used();
                }
                let _ = answer.send(done.map(|()| found));
            }
            Self::Forget(found, answer) => {
                let _ = answer.send(done.map(|()| found));
            }
            Self::Settle(answer) => {
                let _ = answer.send(done);
            }
        }
    }
}
