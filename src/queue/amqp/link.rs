//! One AMQP queue: its publishers, its looks at the broker, its subscriptions.
//!
//! Owns the thread on which all but the source talks to the broker. A current-thread runtime of its own is worth a factor to the
//! client library, and no busy role of the program can keep it from answering the broker's heartbeats.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use futures_util::future::{BoxFuture, join};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::way::Way;
use super::super::{Backoff, DeadLetters, Depth, Message, Publisher, Queue, QueueError, Subscription, Unsettled};
use super::Settings;
use super::address::Address;
use super::broker::Broker;
use super::dead::Dead;
use super::form::{self, MAX_HEADERS, Outgoing};
use super::publisher::{self, Request, To};
use super::source;
use super::turn::Turn;
use super::wire::Wire;
use crate::report::Time;
use crate::telemetry::Metrics;

/// Requests that wait for the publisher; further callers wait for a place.
const REQUESTS: usize = 4096;
/// Deliveries that wait in the channel for their taker.
const CHANNEL: usize = 4096;

/// The way to the link's thread. It ends when the last of these is gone.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) broker: Arc<Broker>,
    to_queue: mpsc::Sender<Request>,
    to_dead: mpsc::Sender<Request>,
    runtime: Handle,
}

impl Link {
    fn start(broker: Arc<Broker>, label: &'static str) -> Result<Self, QueueError> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|e| broker.unavailable(e))?;
        let handle = runtime.handle().clone();
        let (to_queue, for_queue) = mpsc::channel(REQUESTS);
        let (to_dead, for_dead) = mpsc::channel(REQUESTS);
        let publisher = Arc::clone(&broker);
        let publish = move || {
            let to_queue = publisher::run(Arc::clone(&publisher), To::Queue, for_queue);
            let to_dead = publisher::run(Arc::clone(&publisher), To::Dead, for_dead);
            runtime.block_on(async {
                join(to_queue, to_dead).await;
                publisher.close().await;
            });
        };
        let thread = std::thread::Builder::new().name(format!("amqp-{label}"));
        thread.spawn(publish).map_err(|error| broker.unavailable(error))?;
        Ok(Self { broker, to_queue, to_dead, runtime: handle })
    }

    /// Does something on the link's thread.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, QueueError>> + Send + 'static,
    ) -> Result<T, QueueError> {
        let closed = |_| QueueError::Closed(self.broker.name.clone());
        self.runtime.spawn(work).await.map_err(closed)?
    }

    /// Resolves when all of the messages are confirmed.
    pub(super) async fn publish(&self, to: To, messages: Vec<Outgoing>) -> Result<(), QueueError> {
        if messages.is_empty() {
            return Ok(());
        }
        let closed = || QueueError::Closed(self.broker.name.clone());
        let (answer, answered) = oneshot::channel();
        let requests = match to {
            To::Queue => &self.to_queue,
            To::Dead => &self.to_dead,
        };
        let confirmed = async {
            requests.send(Request { messages, answer }).await.map_err(|_| closed())?;
            answered.await.map_err(|_| closed())?
        };
        let wait = self.broker.settings.confirm_timeout;
        timeout(wait, confirmed).await.unwrap_or_else(|_| {
            let shown = self.broker.address.shown();
            Err(self
                .broker
                .unavailable(format!("{shown} did not confirm within {wait:?} (queue.amqp.confirm_timeout)")))
        })
    }
}

/// Why a queue on AMQP could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The broker did not answer within `queue.amqp.start_timeout`; it may later.
    #[error(transparent)]
    Unreachable(QueueError),
    /// The broker refuses until a person mends something, or the settings are wrong.
    #[error(transparent)]
    Refused(QueueError),
}

/// One queue on an AMQP broker.
pub struct AmqpQueue {
    link: Link,
    label: &'static str,
    way: Arc<Way>,
    newest: Arc<watch::Sender<u32>>,
    generations: Arc<AtomicU32>,
    /// One look at the dead letters at a time: each takes them all and gives them back.
    looking: Arc<Mutex<()>>,
}

impl AmqpQueue {
    /// Waits for the broker within `queue.amqp.start_timeout`, and declares (or looks for) the queue `name` and its dead letters. `process`
    /// stays the same over restarts and is no other's; `max_message` bounds the body of one message; `label` is the value of the label
    /// `queue`. Blocks.
    pub fn open(
        name: &str,
        process: &str,
        settings: &Settings,
        backoff: Backoff,
        max_message: usize,
        metrics: Arc<Metrics>,
        label: &'static str,
    ) -> Result<Arc<Self>, OpenError> {
        let refused = |reason| OpenError::Refused(QueueError::Unavailable { queue: name.to_owned(), reason });
        let address = Address::of(settings).map_err(refused)?;
        let broker = Arc::new(Broker::new(address, settings.clone(), backoff, metrics, name, process, max_message));
        let link = Link::start(broker, label).map_err(OpenError::Refused)?;
        let (answer, answered) = std::sync::mpsc::channel();
        let broker = Arc::clone(&link.broker);
        link.runtime.spawn(async move { answer.send(broker.start().await) });
        answered.recv().map_err(|_| OpenError::Refused(QueueError::Closed(name.to_owned())))??;
        let broker = Arc::clone(&link.broker);
        // Beside the start: a firewall that swallows what goes to the management API would hold it up.
        link.runtime.spawn(async move { broker.look_at_queues().await });
        Ok(Arc::new(Self {
            link,
            label,
            way: Arc::new(Way::new()),
            newest: Arc::new(watch::Sender::new(0)),
            generations: Arc::default(),
            looking: Arc::default(),
        }))
    }
}

impl Queue for AmqpQueue {
    fn name(&self) -> &str {
        &self.link.broker.name
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(AmqpPublisher { link: self.link.clone() })
    }

    fn subscribe(&self, limit: Unsettled, backoff: Backoff) -> Result<Subscription, QueueError> {
        let broker = &self.link.broker;
        let runtime = Handle::try_current().map_err(|error| broker.unavailable(error))?;
        let mut subscription = 0;
        self.newest.send_modify(|newest| {
            *newest = newest.wrapping_add(1);
            subscription = *newest;
        });
        let (out, deliveries) = mpsc::channel(limit.messages.clamp(1, CHANNEL));
        let (pause, paused) = watch::channel(false);
        let (ended, end) = oneshot::channel();
        let stop = CancellationToken::new();
        let parts = source::Parts {
            link: self.link.clone(),
            way: Arc::clone(&self.way),
            subscription,
            newest: self.newest.subscribe(),
            _newest: Arc::clone(&self.newest),
            generations: Arc::clone(&self.generations),
            wire: Arc::new(Wire::new("source")),
            lane: 0,
            member: format!("{:016x}", rand::random::<u64>()).into(),
            share: Arc::new(AtomicUsize::new(1)),
            released: CancellationToken::new(),
            turn: Turn::default(),
            limit,
            backoff,
            out,
            paused,
            stop: stop.clone(),
        };
        source::start(parts, self.label, ended)?;
        let guard = stop.drop_guard();
        let source = runtime.spawn(async move {
            let _stops_it_when_aborted = guard;
            let _ = end.await;
        });
        Ok(Subscription { deliveries, pause, source })
    }

    fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        Arc::new(Dead { link: self.link.clone(), looking: Arc::clone(&self.looking) })
    }

    fn depth(&self) -> BoxFuture<'_, Result<Depth, QueueError>> {
        let (broker, looking) = (Arc::clone(&self.link.broker), Arc::clone(&self.looking));
        Box::pin(self.link.run(async move {
            // While somebody looks at the dead letters they are out of their queue.
            let _nobody_looks = looking.lock().await;
            let channel = broker.looking().await?;
            let mut depth = Depth { dead: broker.ready(&channel, &broker.dead).await?, ..Depth::default() };
            for (name, in_hand) in broker.queues.iter().zip(&broker.in_hand) {
                let ready = broker.ready(&channel, name).await?;
                depth.messages += ready + in_hand.messages.load(Ordering::Relaxed);
                depth.bytes += in_hand.bytes.load(Ordering::Relaxed);
                let oldest = i64::try_from(in_hand.oldest.load(Ordering::Relaxed)).unwrap_or(0);
                let oldest = (oldest > 0).then(|| Time::from_micros(oldest));
                depth.oldest = [depth.oldest, oldest].into_iter().flatten().min();
            }
            broker.done(&channel).await;
            Ok(depth)
        }))
    }
}

struct AmqpPublisher {
    link: Link,
}

impl AmqpPublisher {
    fn encode(&self, messages: &[Message]) -> Result<Vec<Outgoing>, QueueError> {
        let broker = &self.link.broker;
        let too_large = |size, limit| QueueError::TooLarge { queue: broker.name.clone(), size, limit };
        let encode = |message: &Message| {
            if message.body.len() > broker.max_message {
                return Err(too_large(message.body.len(), broker.max_message));
            }
            form::outgoing(message).map_err(|size| too_large(size, MAX_HEADERS))
        };
        messages.iter().map(encode).collect()
    }
}

impl Publisher for AmqpPublisher {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move {
            let messages = self.encode(&messages)?;
            self.link.publish(To::Queue, messages).await
        })
    }
}
