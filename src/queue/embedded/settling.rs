//! What a source does with settlements: done, again later, or to the dead letters.
//!
//! Owns the rule that a rejected message is finished only when its dead letter is durable.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::delivery::ReasonKind;
use super::super::flights::Stage;
use super::super::{Message, QueueError, Reason, Settlement, Tag};
use super::command::Command;
use super::dead;
use super::source::Source;
use crate::report::Time;

/// How long the end of a source waits for the disk.
const SETTLE: Duration = Duration::from_secs(10);

impl Source {
    /// A record that is no message: a dead letter, so that it does not block what stands behind it.
    pub(super) fn poison(&mut self, sequence: u64, size: u64, bytes: Bytes) {
        let message =
            Message { key: String::new(), body: bytes, headers: Vec::new(), published: Time::now(), untimed: false };
        let reason = Reason {
            kind: ReasonKind::Malformed,
            text: "the record on disk is damaged; its bytes are kept as they were found".to_owned(),
            only: Vec::new(),
            attempts: 0,
        };
        tracing::error!(coordinates = self.coordinates(sequence), "damaged record in the queue");
        if self.flights.add(sequence, size, Arc::new(message), Stage::rejected(reason)) {
            self.bury(sequence);
        }
    }

    pub(super) fn settle_one(&mut self, tag: Tag, settlement: Settlement) {
        if tag.generation != self.parts.generation {
            self.parts.log.metrics.stale_settlements.inc();
            return;
        }
        match settlement {
            Settlement::Ack => self.finish(tag.sequence),
            Settlement::Nack => {
                if let Some(open) = self.flights.taken_back(tag.sequence, Stage::Waiting) {
                    let wait = self.parts.backoff.wait(open.redelivered + 1, rand::random());
                    self.flights.again_at(tag.sequence, Instant::now() + wait);
                }
            }
            Settlement::Reject(reason) => {
                self.flights.taken_back(tag.sequence, Stage::rejected(reason));
                self.bury(tag.sequence);
            }
        }
    }

    fn finish(&mut self, sequence: u64) {
        if let Some((position, bytes)) = self.flights.finish(sequence) {
            self.parts.log.advance(position, bytes);
            self.parts.moved.tell(&self.parts.commands);
        }
    }

    /// Sends a rejected message to the dead letters; it is finished when it is durable there. Nothing bounds their number, so while the
    /// disk is short they wait here, as new messages wait with their senders: the write that fills the disk would be the last one.
    pub(super) fn bury(&mut self, sequence: u64) {
        if self.parts.log.disk_is_short() {
            return self.bury_later(sequence);
        }
        let coordinates = self.coordinates(sequence);
        let Some(open) = self.flights.get(sequence) else { return };
        let Stage::Rejected(rejection) = &open.stage else { return };
        let (key, letter) = dead::letter(sequence, &open.message, rejection, coordinates);
        let command = Command::Bury { sequence, key, letter, answer: self.buried_sender.clone() };
        if self.parts.commands.try_send(command).is_ok() {
            self.burying += 1;
        } else {
            self.bury_later(sequence);
        }
    }

    fn bury_later(&mut self, sequence: u64) {
        let Some(open) = self.flights.get(sequence) else { return };
        open.refused += 1;
        let wait = self.parts.backoff.wait(open.refused, rand::random());
        self.flights.again_at(sequence, Instant::now() + wait);
    }

    pub(super) fn buried(&mut self, sequence: u64, done: Result<(), QueueError>) {
        self.burying -= 1;
        match done {
            Ok(()) => {
                if let Some(Stage::Rejected(rejection)) = self.flights.get(sequence).map(|open| &open.stage) {
                    self.parts.log.metrics.rejected.with_label_values(&[&rejection.reason.kind.to_string()]).inc();
                }
                self.finish(sequence);
            }
            Err(_) => self.bury_later(sequence),
        }
    }

    /// The exact position, durable.
    pub(super) async fn settle(&mut self) {
        let buried = async {
            while self.burying > 0 {
                let Some((sequence, done)) = self.buried.recv().await else { return };
                self.buried(sequence, done);
            }
        };
        let _ = tokio::time::timeout(SETTLE, buried).await;
        let (answer, answered) = oneshot::channel();
        let stored = async {
            if self.parts.commands.send(Command::Settle { answer }).await.is_err() {
                return false;
            }
            matches!(answered.await, Ok(Ok(())))
        };
        if !tokio::time::timeout(SETTLE, stored).await.unwrap_or(false) {
            tracing::warn!(queue = self.parts.log.name, "position could not be made durable at the end of a source");
        }
    }
}
