//! The task that publishes to one place: one channel in confirm mode, many messages in flight, one answer for each request.
//!
//! Owns the channel and every confirm that is outstanding on it. A message counts as published only when the broker has confirmed it
//! and has returned none of its channel by then.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::{FutureExt, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::super::QueueError;
use super::address::Address;
use super::broker::Broker;
use super::form::Outgoing;

/// Messages in flight; further requests wait for their turn.
const MOST: usize = 16 * 1024;
/// Messages that are written side by side; the first polls, and so the order on the wire, are in this order.
const CHUNK: usize = 30;
/// How long a channel may be refused everything before another one takes its place: a broker that has told a channel to stop, because the
/// queue is at its bound, does not tell it to go on when the bound is taken away.
const REFUSED: std::time::Duration = std::time::Duration::from_secs(5);
/// How long the client library may take to say that something that was under way on a channel is lost.
const HEARD: std::time::Duration = std::time::Duration::from_millis(100);
/// For how long all of that is listened to.
const HEARD_ALL: std::time::Duration = std::time::Duration::from_secs(1);
/// The longest wait before the broker is tried again: a connection attempt costs it nothing.
pub(super) const RECONNECT_MOST: std::time::Duration = std::time::Duration::from_secs(5);

/// Where messages go.
#[derive(Debug, Clone, Copy)]
pub(super) enum To {
    /// The queue, or the shard of each.
    Queue,
    /// The dead letters.
    Dead,
}

/// Messages for one place, and who waits for them.
pub(super) struct Request {
    pub(super) messages: Vec<Outgoing>,
    pub(super) answer: oneshot::Sender<Result<(), QueueError>>,
}

struct Pending {
    left: usize,
    /// Bytes of the largest message.
    largest: usize,
    failed: Option<QueueError>,
    answer: oneshot::Sender<Result<(), QueueError>>,
}

struct Confirmed {
    request: u64,
    /// The number of the channel.
    channel: u32,
    outcome: lapin::Result<Confirmation>,
}

type Confirm = Pin<Box<dyn Future<Output = Confirmed> + Send>>;

struct Publishing {
    broker: Arc<Broker>,
    to: To,
    channel: Option<(Arc<Connection>, Arc<Channel>)>,
    /// Something lies on that channel whose confirm nobody waits for: it is used no more.
    stuck: bool,
    /// The connection of the newest channel, and the most bytes of a message that the broker takes there, once it has refused one.
    connection: Option<Arc<Connection>>,
    most: Option<usize>,
    /// Since when the broker confirms nothing on this channel.
    refused: Option<Instant>,
    confirms: FuturesUnordered<Confirm>,
    open: HashMap<u64, Pending>,
    next_request: u64,
    /// The number of the newest channel.
    channels: u32,
    /// The newest channel on which a message was returned, and what the broker said.
    returned: Option<(u32, String)>,
    failures: u32,
    /// After a failed connection: when the next one is tried, and why it failed.
    closed_until: Option<(Instant, QueueError)>,
}

/// Publishes until nobody can ask any more.
pub(super) async fn run(broker: Arc<Broker>, to: To, mut requests: mpsc::Receiver<Request>) {
    let mut publishing = Publishing {
        broker,
        to,
        channel: None,
        stuck: false,
        connection: None,
        most: None,
        refused: None,
        confirms: FuturesUnordered::new(),
        open: HashMap::new(),
        next_request: 0,
        channels: 0,
        returned: None,
        failures: 0,
        closed_until: None,
    };
    let mut ended = false;
    while !ended || !publishing.confirms.is_empty() {
        let room = publishing.confirms.len() < MOST && !ended;
        tokio::select! {
            Some(first) = publishing.confirms.next() => publishing.confirmed(first),
            request = requests.recv(), if room => match request {
                Some(request) => publishing.take(request).await,
                None => ended = true,
            },
        }
    }
}

impl Publishing {
    async fn take(&mut self, request: Request) {
        let Request { messages, answer } = request;
        let (broker, to) = (Arc::clone(&self.broker), self.to);
        let queue = |message: &Outgoing| match to {
            To::Queue => broker.shard(message),
            To::Dead => &broker.dead,
        };
        let (connection, channel) = match self.channel().await {
            Ok(both) => both,
            Err(error) => return drop(answer.send(Err(error))),
        };
        // Whoever gave it up meanwhile sends it again another way, and what follows it behind that.
        if answer.is_closed() {
            return;
        }
        let largest = messages.iter().map(|message| message.body.len()).max().unwrap_or(0);
        // The broker would close the channel, and with it fail what others have under way there.
        if let Some(limit) = self.most.filter(|most| largest > *most) {
            let queue = self.broker.name.clone();
            return drop(answer.send(Err(QueueError::TooLarge { queue, size: largest, limit })));
        }
        let id = self.next_request;
        self.next_request += 1;
        self.open.insert(id, Pending { left: messages.len(), largest, failed: None, answer });
        for chunk in messages.chunks(CHUNK) {
            let wait = self.broker.settings.confirm_timeout;
            let sent = timeout(wait, join_all(chunk.iter().map(|message| send(&channel, queue(message), message))));
            let Ok(sent) = sent.await else {
                // At an alarm the channel is kept till its end: closed, that would be written before what lies on it.
                self.stuck = true;
                let shown = self.broker.address.shown();
                let error = if connection.status().blocked() {
                    self.broker.alarm().error
                } else {
                    self.broker.unavailable(format!("{shown} took nothing for {wait:?}; has it too much to do?"))
                };
                return self.fail(id, error);
            };
            for confirm in sent {
                match confirm {
                    Ok(confirm) => {
                        // A channel that is used no longer stays open for what is outstanding on it.
                        let (until, channel) = (Arc::clone(&channel), self.channels);
                        self.confirms.push(Box::pin(async move {
                            let outcome = confirm.await;
                            drop(until);
                            Confirmed { request: id, channel, outcome }
                        }));
                    }
                    Err(error) => {
                        let error = self.explain(id, &error);
                        self.channel = None;
                        return self.fail(id, error);
                    }
                }
            }
        }
    }

    /// What an error of the client library means to a request.
    fn explain(&mut self, request: u64, error: &lapin::Error) -> QueueError {
        let largest = self.open.get(&request).map_or(0, |pending| pending.largest);
        let most = Address::largest(error);
        self.most = most.or(self.most);
        match most {
            Some(limit) if largest > limit => {
                QueueError::TooLarge { queue: self.broker.name.clone(), size: largest, limit }
            }
            _ => self.broker.failed(error),
        }
    }

    /// A request that will get no further confirm that matters.
    fn fail(&mut self, request: u64, error: QueueError) {
        if let Some(pending) = self.open.remove(&request) {
            let _ = pending.answer.send(Err(error));
        }
    }

    async fn channel(&mut self) -> Result<(Arc<Connection>, Arc<Channel>), QueueError> {
        if self.refused.is_some_and(|since| since.elapsed() >= REFUSED) {
            (self.channel, self.refused) = (None, None);
        }
        if let Some((connection, channel)) = self.channel.clone().filter(|(_, channel)| channel.status().connected()) {
            if connection.status().blocked() {
                let error = self.broker.alarm().error;
                // It counts the tries to connect.
                self.failures = self.failures.max(1);
                self.complain(&error);
                return Err(error);
            }
            if !self.stuck {
                self.works();
                return Ok((connection, channel));
            }
        }
        (self.channel, self.stuck) = (None, false);
        if let Some((until, error)) = &self.closed_until
            && *until > Instant::now()
        {
            return Err(error.clone());
        }
        self.hear_of_earlier_channels().await;
        self.refused = None;
        match self.open_channel().await {
            Ok((connection, channel)) => {
                self.works();
                self.channels += 1;
                // Another connection may be to a broker that was set otherwise.
                if !self.connection.as_ref().is_some_and(|before| Arc::ptr_eq(before, &connection)) {
                    (self.connection, self.most) = (Some(Arc::clone(&connection)), None);
                }
                let both = (connection, Arc::new(channel));
                self.channel = Some(both.clone());
                Ok(both)
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                self.complain(&error);
                let wait = self.broker.reconnect().wait(self.failures, rand::random());
                self.closed_until = Some((Instant::now() + wait, error.clone()));
                Err(error)
            }
        }
    }

    fn works(&mut self) {
        if self.failures > 0 {
            tracing::info!(queue = self.place().0, "the broker takes messages again");
        }
        (self.failures, self.closed_until) = (0, None);
    }

    fn complain(&self, error: &QueueError) {
        let (queue, complaint) = self.place();
        if let Some(kept_back) = self.broker.complaints.due(complaint) {
            tracing::warn!(queue, %error, kept_back, "the broker cannot be published to, trying again");
        }
    }

    /// Before anything is published on another channel, whoever waits for what was under way on one that is gone hears of that: the next
    /// report of the same login goes behind it. One that was refused may go on answering for long.
    async fn hear_of_earlier_channels(&mut self) {
        let until = Instant::now() + HEARD_ALL;
        while Instant::now() < until
            && let Ok(Some(first)) = timeout(HEARD, self.confirms.next()).await
        {
            self.confirmed(first);
        }
    }

    async fn open_channel(&self) -> Result<(Arc<Connection>, Channel), QueueError> {
        let (connection, channel) = self.broker.channel(self.to).await?;
        self.broker.within("confirm mode", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok((connection, channel))
    }

    /// The queue, or that of the dead letters, and what a complaint about it is called.
    fn place(&self) -> (&str, &'static str) {
        match self.to {
            To::Queue => (&self.broker.name, "publisher"),
            To::Dead => (&self.broker.dead, "publisher of dead letters"),
        }
    }

    /// Why a message came back.
    fn nowhere(&self, queue: &str) -> String {
        let then = if self.broker.settings.declare {
            "it is made again with the next try"
        } else {
            "make it (queue.amqp.declare is false)"
        };
        format!("a message was returned as not to be routed: the queue {queue} is gone from the broker; {then}")
    }

    /// The broker returns a message before it confirms it, and the library (lapin 4.12) hands the returned one to the confirm that comes
    /// next, whichever message that is of: at the latest its own. So from the first returned one on no confirm of a channel is believed. Who
    /// is told wrongly that a message failed sends it again, with the same id; who is told wrongly that it did not has lost it.
    fn confirmed(&mut self, first: Confirmed) {
        let mut batch = vec![first];
        while let Some(Some(next)) = self.confirms.next().now_or_never() {
            batch.push(next);
        }
        for confirmed in &batch {
            if let Ok(Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message))) = &confirmed.outcome {
                let reason = self.nowhere(message.routing_key.as_str());
                if confirmed.channel == self.channels {
                    self.channel = None;
                    self.broker.forget(self.to);
                }
                let newest = self.returned.as_ref().map_or(0, |(newest, _)| *newest);
                self.returned = Some((newest.max(confirmed.channel), reason));
            }
        }
        for Confirmed { request, channel, outcome } in batch {
            let returned = self.returned.as_ref().filter(|(newest, _)| channel <= *newest);
            let failed = match outcome {
                Ok(_) if returned.is_some() => returned.map(|(_, reason)| self.broker.unavailable(reason)),
                Ok(Confirmation::Ack(_)) => {
                    self.refused = None;
                    None
                }
                Ok(Confirmation::Nack(_)) => {
                    self.refused.get_or_insert_with(Instant::now);
                    Some(self.broker.unavailable("the broker refused a message (is the queue at its bound?)"))
                }
                Ok(Confirmation::NotRequested) => Some(self.broker.unavailable("the channel is not in confirm mode")),
                Err(error) => Some(self.explain(request, &error)),
            };
            let Some(pending) = self.open.get_mut(&request) else { continue };
            pending.left -= 1;
            pending.failed = pending.failed.take().or(failed);
            if pending.left == 0
                && let Some(Pending { failed, answer, .. }) = self.open.remove(&request)
            {
                let _ = answer.send(failed.map_or(Ok(()), Err));
            }
        }
    }
}

async fn send(channel: &Channel, queue: &str, message: &Outgoing) -> lapin::Result<lapin::PublisherConfirm> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    channel.basic_publish("".into(), queue.into(), options, &message.body, message.properties.clone()).await
}
