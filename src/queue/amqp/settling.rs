//! What a channel does with settlements: acks in batches, again later, or to the dead letters.
//!
//! Owns the rule that an ack for many never passes an unfinished delivery, and that a rejected one is done only when its dead letter
//! is confirmed.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::time::{Instant, timeout_at};

use super::super::flights::Stage;
use super::super::{DeadLetter, QueueError, Settlement};
use super::form;
use super::publisher::To;
use super::session::{Session, next};

/// How often the queue is asked something that goes the way of the acks, before a channel is closed.
const ANSWERS: usize = 2;
/// The priority of who only asks: while another consumer has room, whatever comes is that one's.
const LAST: i32 = -1_000;
/// How long what still comes is taken before the broker is asked whether there is more.
const MORE: Duration = Duration::from_millis(20);
/// Bytes of a key that is kept where it leaves the reason of a dead letter no room.
const MAX_KEY: usize = 16 * 1024;
/// Bytes of a reason's text that is kept before anything of the message goes.
const MAX_TEXT: usize = 4 * 1024;

impl Session<'_> {
    pub(super) fn settle(&mut self, tag: u64, settlement: Settlement) {
        match settlement {
            Settlement::Ack => self.finish(tag),
            Settlement::Nack => {
                if let Some(open) = self.flights.taken_back(tag, Stage::Waiting) {
                    let wait = self.parts.backoff.wait(open.redelivered + 1, rand::random());
                    self.flights.again_at(tag, Instant::now() + wait);
                }
            }
            Settlement::Reject(reason) => {
                if self.flights.taken_back(tag, Stage::rejected(reason)).is_some() {
                    self.bury(tag);
                }
            }
        }
    }

    fn finish(&mut self, tag: u64) {
        if let Some((position, _)) = self.flights.finish(tag) {
            self.position = position;
            let soon = Instant::now() + self.parts.link.broker.settings.ack_every;
            self.flush_at.get_or_insert(soon);
        }
        while self.taken.front().is_some_and(|(_, tag)| *tag < self.position) {
            self.taken.pop_front();
        }
    }

    /// Acks up to the highest tag below which all is finished, when enough wait or one has waited long enough. An ack for many must
    /// name a tag that the broker still waits for.
    pub(super) async fn flush(&mut self, all: bool) -> Result<(), QueueError> {
        let last = self.position - 1;
        let many = last - self.acked >= self.parts.link.broker.settings.ack_batch as u64;
        let due = self.flush_at.is_some_and(|at| at <= Instant::now());
        if last == self.acked || !(all || many || due) {
            return Ok(());
        }
        self.flush_at = None;
        let singly = self.singly.range(..=last).count();
        if let Some(tag) = (self.acked + 1..=last).rev().find(|tag| !self.singly.contains(tag)) {
            self.ack(tag, true).await?;
            let acked = usize::try_from(last - self.acked).unwrap_or(usize::MAX).saturating_sub(singly);
            self.open = self.open.saturating_sub(acked);
        }
        self.singly = self.singly.split_off(&self.position);
        self.acked = last;
        Ok(())
    }

    async fn ack(&mut self, tag: u64, multiple: bool) -> Result<(), QueueError> {
        let acked = self.channel.basic_ack(tag, BasicAckOptions { multiple });
        Ok(self.parts.link.broker.within("ack", acked).await?)
    }

    /// What is finished and not acked counts for the broker's prefetch. Where that leaves little of it, it is acked at once, and one by one
    /// behind something unfinished: a single delivery that waits must not stop all others.
    pub(super) async fn relieve(&mut self) -> Result<(), QueueError> {
        let kept = self.open.saturating_sub(self.flights.held().unfinished + self.ahead.len());
        if kept < self.prefetch.div_ceil(2) {
            return Ok(());
        }
        self.flush(true).await?;
        self.ack_singly().await
    }

    /// Acks what is finished behind something unfinished.
    async fn ack_singly(&mut self) -> Result<(), QueueError> {
        let finished: Vec<u64> = self.flights.finished().filter(|tag| !self.singly.contains(tag)).collect();
        for tag in finished {
            self.ack(tag, false).await?;
            self.singly.insert(tag);
            self.open -= 1;
        }
        Ok(())
    }

    /// At the end: acks all that is finished and waits until the queue has done so. The rest goes back with the channel, to its old place:
    /// what is given back by itself goes behind all that the queue has.
    pub(super) async fn ack_the_rest(&mut self) -> Result<(), QueueError> {
        self.ack_singly().await?;
        let nothing_acked = self.open as u64 == self.last;
        if nothing_acked || self.filled().await? { Ok(()) } else { self.applied().await }
    }

    /// Takes what still comes, until the broker has filled the prefetch or has no more. `true`: it is full, and so all acks are done: each
    /// place was free for the broker only when the ack of what had it was. `false`: there is room, as far as the broker knows of the acks.
    async fn filled(&mut self) -> Result<bool, QueueError> {
        let broker = Arc::clone(&self.parts.link.broker);
        loop {
            let look = Instant::now() + MORE;
            while self.open < self.prefetch
                && let Ok(came) = timeout_at(look, next(&mut self.consumer)).await
            {
                self.came(came).map_err(|lost| broker.unavailable(lost))?;
            }
            if self.open >= self.prefetch {
                return Ok(true);
            }
            if broker.ready(&self.channel, self.parts.queue()).await? == 0 {
                return Ok(false);
            }
        }
    }

    /// Waits until the queue has done all that was sent on this channel. The broker's side of a channel sends acks on without waiting,
    /// keeps them back while 32 commands are on their way, and forgets those when the channel is closed: what they cover would be
    /// handled twice. To subscribe and to cancel are commands on the same way which it answers only when the queue has done them. After
    /// the first pair nothing is on its way, so that it sends what it kept back; after the second that is done, too.
    async fn applied(&mut self) -> Result<(), QueueError> {
        let broker = Arc::clone(&self.parts.link.broker);
        broker.within("prefetch", self.channel.basic_qos(1, BasicQosOptions::default())).await?;
        let mut credit = FieldTable::default();
        credit.insert("credit".into(), AMQPValue::LongLongInt(0));
        credit.insert("drain".into(), AMQPValue::Boolean(false));
        let mut arguments = FieldTable::default();
        arguments.insert("x-credit".into(), AMQPValue::FieldTable(credit));
        arguments.insert("x-priority".into(), AMQPValue::LongInt(LAST));
        for number in 0..ANSWERS {
            let tag = self.consumer_tag(&format!("~{number}"));
            let (queue, options) = (broker.queue(self.parts.queue())?, BasicConsumeOptions::default());
            // What came to it would go back behind what the other consumer takes meanwhile. So it has no credit; where the broker does not
            // hear of that (RabbitMQ from 4.0 on), the other one is handed out to first.
            let consume = self.channel.basic_consume(queue, tag.clone(), options, arguments.clone());
            let consumer = broker.within("last acks", consume).await?;
            broker.within("last acks", self.channel.basic_cancel(tag, BasicCancelOptions::default())).await?;
            drop(consumer);
        }
        Ok(())
    }

    /// Sends a rejected message to the dead letters.
    pub(super) fn bury(&mut self, tag: u64) {
        let coordinates = self.coordinates(tag);
        let Some(open) = self.flights.get(tag) else { return };
        let Stage::Rejected(rejection) = &open.stage else { return };
        let unique = coordinates.rsplit('/').take(2).collect::<Vec<_>>().join("-");
        let mut letter = DeadLetter::of(&open.message, rejection, coordinates, &unique);
        let shorter = form::buried(&letter).or_else(|_| {
            // A control character is six bytes of JSON.
            letter.reason.text.truncate(letter.reason.text.floor_char_boundary(MAX_TEXT));
            form::buried(&letter)
        });
        let outgoing = shorter.or_else(|_| {
            let message = &mut letter.message;
            message.headers.clear();
            message.key.truncate(message.key.floor_char_boundary(MAX_KEY));
            letter.reason.text.push_str(" (its headers, and its key over 16 KiB, were too large to be kept)");
            form::buried(&letter)
        });
        let (link, answer) = (self.parts.link.clone(), self.buried_sender.clone());
        self.burying += 1;
        tokio::spawn(async move {
            let done = match outgoing {
                Ok(outgoing) => link.publish(To::Dead, vec![outgoing]).await,
                Err(size) => Err(link.broker.unavailable(format!("{size} bytes of headers"))),
            };
            let _ = answer.send((tag, done));
        });
    }

    pub(super) fn buried(&mut self, tag: u64, done: Result<(), QueueError>) {
        self.burying -= 1;
        let broker = &self.parts.link.broker;
        match done {
            Ok(()) => {
                if let Some(Stage::Rejected(rejection)) = self.flights.get(tag).map(|open| &open.stage) {
                    broker.metrics.rejected.with_label_values(&[&rejection.reason.kind.to_string()]).inc();
                }
                self.finish(tag);
            }
            Err(error) => {
                if let Some(kept_back) = broker.complaints.due("dead letter") {
                    let queue = &broker.dead;
                    tracing::warn!(queue, %error, kept_back, "a dead letter was not taken: its message stays where it is, and it is tried again");
                }
                let Some(open) = self.flights.get(tag) else { return };
                open.refused += 1;
                let wait = self.parts.backoff.wait(open.refused, rand::random());
                self.flights.again_at(tag, Instant::now() + wait);
            }
        }
    }
}
