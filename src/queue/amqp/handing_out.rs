//! From the broker to who takes: whether there is a consumer, and what is handed out of what it brought.
//!
//! A part of [`Session`]. What comes back of it is in `settling`.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use tokio::time::{Instant, timeout};

use super::super::flights::Stage;
use super::super::{AckToken, Delivery, Message, QueueError, Tag};
use super::form;
use super::session::{Ahead, CLOSE, Session, prefetch};

impl Session<'_> {
    /// A paused source has no consumer, so that the broker hands out to others. A shard's stays: without it the next process would get
    /// what follows before this one is done, and nobody else waits there. So does that of a source that nobody takes from any more: what
    /// is on its way to a consumer that is cancelled goes behind all that the queue has, and from one that ends with its channel to where
    /// it was.
    pub(super) async fn pause_or_resume(&mut self) -> Result<(), QueueError> {
        let ending = self.parts.out.is_closed();
        let keep = self.consumer.is_some() && (ending || self.parts.sharded());
        let wanted = keep || !*self.parts.paused.borrow() && !ending;
        let broker = Arc::clone(&self.parts.link.broker);
        match (wanted, self.consumer.take()) {
            (true, None) => {
                if self.open > 0 {
                    // What a cancelled consumer still has does not count for the next one's prefetch, and would come on top of it.
                    let left = self.prefetch.saturating_sub(self.open).max(1);
                    let qos = self.channel.basic_qos(prefetch(left), BasicQosOptions::default());
                    broker.within("prefetch", qos).await?;
                }
                self.consumers += 1;
                let name = self.consumer_tag(format_args!("{:08}", self.consumers));
                let queue = broker.queue(self.parts.queue())?;
                let options = BasicConsumeOptions::default();
                let consume = self.channel.basic_consume(queue, name, options, FieldTable::default());
                self.consumer = Some(broker.within("consume", consume).await?);
            }
            (false, Some(mut consumer)) => {
                let cancel = self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
                self.cancelled = true;
                broker.within("cancel", cancel).await?;
                // What it handed out before it was cancelled is ours.
                while let Ok(Some(next)) = timeout(CLOSE, consumer.next()).await {
                    self.take(next.map_err(|error| broker.failed(&error))?);
                }
            }
            (_, consumer) => self.consumer = consumer,
        }
        Ok(())
    }

    /// A consumer's name on the wire. When a channel ends, a quorum queue takes back what its consumers have in the order of their names
    /// (RabbitMQ 3.10): the earlier one's has to sort first, or a login's order is lost.
    pub(super) fn consumer_tag(&self, place: std::fmt::Arguments<'_>) -> ShortString {
        format!("trackalert-{}-{place}", self.parts.member).into()
    }

    pub(super) fn take(&mut self, delivery: lapin::message::Delivery) {
        let lapin::message::Delivery { delivery_tag, properties, data, .. } = delivery;
        let message = form::message(&properties, Bytes::from(data));
        self.parts.link.broker.tell_returns(self.parts.queue(), form::returns(&properties));
        // An ack for many would ack what never came: it is a gap in the window, and goes back by itself.
        let missed = self.last + 1..delivery_tag;
        self.singly.extend(missed.clone());
        self.missed.extend(missed);
        self.last = delivery_tag;
        self.open += 1;
        self.taken.push_back((Instant::now(), delivery_tag));
        self.ahead.push_back(Ahead { tag: delivery_tag, message });
    }

    /// Hands out what is due and what is new. `true`: there is more, and no place for it.
    pub(super) fn hand_out(&mut self) -> bool {
        if *self.parts.paused.borrow() || self.parts.released.is_cancelled() {
            return false;
        }
        let now = Instant::now();
        let out = self.parts.out.clone();
        while self.flights.next_due().is_some_and(|due| due <= now) {
            let Ok(place) = out.try_reserve() else { return true };
            let Some(tag) = self.flights.due(now) else { break };
            match self.flights.get(tag).map(|open| &open.stage) {
                Some(Stage::Waiting) => {
                    if let Some((message, redelivered)) = self.flights.out_again(tag) {
                        place.send(self.delivery(tag, message, redelivered));
                    }
                }
                Some(Stage::Rejected(_)) => self.bury(tag),
                Some(Stage::Out) | None => {}
            }
        }
        let limit = self.parts.limit();
        while let Some(next) = self.ahead.front() {
            if !self.flights.held().room(next.message.body.len(), limit) {
                return false;
            }
            let Ok(place) = out.try_reserve() else { return true };
            let Some(Ahead { tag, message }) = self.ahead.pop_front() else { break };
            let message = Arc::new(message);
            if self.flights.add(tag, 0, Arc::clone(&message), Stage::Out) {
                place.send(self.delivery(tag, message, 0));
            }
        }
        false
    }

    fn delivery(&self, tag: u64, message: Arc<Message>, redelivered: u32) -> Delivery {
        let token = Tag { lane: self.parts.lane, generation: self.generation, sequence: tag };
        let token = AckToken::new(token, self.parts.way.sender.clone());
        Delivery { message, redelivered, coordinates: self.coordinates(tag), token }
    }

    pub(super) fn coordinates(&self, tag: u64) -> String {
        format!("{}/{tag}", self.place)
    }
}
