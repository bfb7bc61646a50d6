//! The dead letters of an embedded queue: a keyspace whose keys sort by the time of rejection.
//!
//! Reading changes nothing; every change goes through the writer's thread.

use std::ops::Bound;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::super::dead_letter::{Rejection, letter_id};
use super::super::{DeadLetter, DeadLetters, Filter, Message, QueueError};
use super::command::{Command, Room};
use super::log::Log;
use super::record;

/// The key and the bytes of the letter of a rejected message.
pub(super) fn letter(
    sequence: u64,
    message: &Message,
    rejection: &Rejection,
    coordinates: String,
) -> (String, Vec<u8>) {
    let letter = DeadLetter::of(message, rejection, coordinates, &format!("{sequence:x}"));
    // A message that came out of this log goes back into it: none of its lengths is over the format's.
    let bytes = record::encode_letter(&letter).unwrap_or_default();
    (letter.id, bytes)
}

/// Bytes of an id at most; those of [`letter`] have half of that. A longer one is no letter's: it may come from anybody who asks, and the
/// store panics on a key over 64 KiB, which would end the writer and with it the queue.
const LONGEST_ID: usize = 64;

/// The dead-letter place of one embedded queue.
pub(super) struct Dead {
    pub(super) log: Arc<Log>,
    pub(super) commands: mpsc::Sender<Command>,
}

impl Dead {
    async fn ask<T>(
        &self,
        command: Command,
        answered: oneshot::Receiver<Result<T, QueueError>>,
    ) -> Result<T, QueueError> {
        let closed = || QueueError::Closed(self.log.name.clone());
        self.commands.send(command).await.map_err(|_| closed())?;
        answered.await.map_err(|_| self.log.unavailable("the write was given up"))?
    }

    async fn read(&self, id: &str) -> Result<Option<DeadLetter>, QueueError> {
        let (log, id) = (Arc::clone(&self.log), id.to_owned());
        let read = move || match log.dead.get(&id).map_err(|error| log.broken(&error))? {
            None => Ok(None),
            Some(bytes) => match record::decode_letter(id, bytes.into()) {
                Some(letter) => Ok(Some(letter)),
                None => Err(log.unavailable("the dead letter is damaged on disk; it can be dropped")),
            },
        };
        tokio::task::spawn_blocking(read).await.map_err(|error| self.log.unavailable(error))?
    }
}

impl DeadLetters for Dead {
    fn list(
        &self,
        filter: Filter,
        after: Option<String>,
        most: usize,
    ) -> BoxFuture<'_, Result<Vec<DeadLetter>, QueueError>> {
        let log = Arc::clone(&self.log);
        Box::pin(async move {
            let read = move || {
                let since = filter.since.map(|since| letter_id(since.micros(), "0"));
                let from = match (after, since) {
                    (Some(after), Some(since)) if since > after => Bound::Included(since),
                    (Some(after), _) => Bound::Excluded(after),
                    (None, Some(since)) => Bound::Included(since),
                    (None, None) => Bound::Unbounded,
                };
                let mut letters = Vec::new();
                for entry in log.dead.range((from, Bound::Unbounded)) {
                    if letters.len() >= most {
                        break;
                    }
                    let (key, value) = entry.into_inner().map_err(|error| log.broken(&error))?;
                    let id = String::from_utf8_lossy(&key).into_owned();
                    match record::decode_letter(id, value.into()) {
                        Some(letter) if filter.matches(&letter) => letters.push(letter),
                        Some(_) => {}
                        None => {
                            tracing::warn!(queue = log.name, id = %String::from_utf8_lossy(&key), "damaged dead letter");
                        }
                    }
                }
                Ok(letters)
            };
            tokio::task::spawn_blocking(read).await.map_err(|error| self.log.unavailable(error))?
        })
    }

    fn resend(&self, id: String) -> BoxFuture<'_, Result<bool, QueueError>> {
        Box::pin(async move {
            if id.len() > LONGEST_ID {
                return Ok(false);
            }
            let Some(letter) = self.read(&id).await? else { return Ok(false) };
            let record =
                record::encode(&letter.into_copy()).ok_or_else(|| self.log.unavailable("the letter is too large"))?;
            let room = Room::take(&self.log, record.len() as u64)?;
            let (answer, answered) = oneshot::channel();
            self.ask(Command::Resend { key: id, record, room, answer }, answered).await
        })
    }

    fn drop_letter(&self, id: String) -> BoxFuture<'_, Result<bool, QueueError>> {
        Box::pin(async move {
            if id.len() > LONGEST_ID {
                return Ok(false);
            }
            let (answer, answered) = oneshot::channel();
            self.ask(Command::Forget { key: id, answer }, answered).await
        })
    }
}
