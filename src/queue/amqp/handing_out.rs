//! From the broker to who takes: whether there is a consumer, and what is handed out of what it brought.
//!
//! A part of [`Session`]. What comes back of it is in `settling`.

use std::sync::Arc;

use bytes::Bytes;
use lapin::options::BasicConsumeOptions;
use lapin::types::{FieldTable, ShortString};
use tokio::time::Instant;

use super::super::flights::Stage;
use super::super::{AckToken, Delivery, Message, QueueError, Tag};
use super::form;
use super::session::{Ahead, Session};

impl Session<'_> {
    /// Begins to take from the queue, unless the source is paused or nobody takes from it any more. Once begun, it goes on until the
    /// channel ends: over a pause the broker fills the prefetch and no more. A consumer that was cancelled would have what is on its way
    /// to it in that moment put behind all that the queue has (RabbitMQ 3.10), and with a broken policy pauses come by the second. And
    /// where a queue has a single active consumer, another process would become that one while this one still has the queue's reports.
    pub(super) async fn consume(&mut self) -> Result<(), QueueError> {
        if self.consumer.is_some() || *self.parts.paused.borrow() || self.parts.out.is_closed() {
            return Ok(());
        }
        let broker = Arc::clone(&self.parts.link.broker);
        let (queue, tag) = (broker.queue(self.parts.queue())?, self.consumer_tag("0"));
        let consume = self.channel.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default());
        self.consumer = Some(broker.within("consume", consume).await?);
        Ok(())
    }

    /// A consumer's name on the wire. When a channel ends, a quorum queue takes back what its consumers have in the order of their names
    /// (RabbitMQ 3.10, of up to 32 of a channel; 4.0: of their subscriptions): the one with the deliveries has to sort first, or a login's
    /// order is lost.
    pub(super) fn consumer_tag(&self, suffix: &str) -> ShortString {
        format!("trackalert-{}-{suffix}", self.parts.member).into()
    }

    /// The error: a delivery before this one came to nobody. An ack for many would ack it.
    pub(super) fn take(&mut self, delivery: lapin::message::Delivery) -> Result<(), String> {
        let lapin::message::Delivery { delivery_tag, properties, data, .. } = delivery;
        if delivery_tag != self.last + 1 {
            return Err(format!("after delivery {} came {delivery_tag}", self.last));
        }
        let message = form::message(&properties, Bytes::from(data));
        self.parts.link.broker.tell_returns(self.parts.queue(), form::returns(&properties));
        self.last = delivery_tag;
        self.open += 1;
        self.taken.push_back((Instant::now(), delivery_tag));
        self.ahead_bytes += message.size();
        self.ahead.push_back(Ahead { tag: delivery_tag, message });
        Ok(())
    }

    /// Hands out what is due and what is new. `true`: there is more, and no place for it.
    pub(super) fn hand_out(&mut self) -> bool {
        if self.goes_back() || *self.parts.paused.borrow() || self.parts.released.is_cancelled() {
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
            if !self.flights.held().room(next.message.size(), limit) {
                return false;
            }
            let Ok(place) = out.try_reserve() else { return true };
            let Some(Ahead { tag, message }) = self.ahead.pop_front() else { break };
            self.ahead_bytes -= message.size();
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
