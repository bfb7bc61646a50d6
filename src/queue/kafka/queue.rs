//! One queue on Kafka, as the rest of the program sees it.
//!
//! Owns what its parts share. Never polls: that is the source's.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use rdkafka::consumer::BaseConsumer;
use tokio::sync::{mpsc, oneshot, watch};

use super::super::delivery::Settlements;
use super::super::{
    Backoff, DeadLetters, Depth, Publisher, Queue, QueueError, Settlement, Subscription, Tag, Unsettled,
};
use super::client::{self, EndsBeside, ToLog};
use super::dead::Dead;
use super::lanes::Lanes;
use super::publisher::{Buried, ENVELOPE, KafkaPublisher, Limit, Producer, lock};
use super::source::{self, Parts};
use super::topic::{self, OpenError, Shape};
use super::{Settings, depth};
use crate::telemetry::Metrics;

/// Deliveries that wait in the channel for their taker.
const CHANNEL: usize = 4096;

/// What the parts of one queue share.
pub(super) struct Shared {
    pub(super) name: String,
    /// The topic of its dead letters.
    pub(super) dead: String,
    /// The value of the label `queue`.
    pub(super) label: &'static str,
    pub(super) settings: Settings,
    pub(super) metrics: Arc<Metrics>,
    pub(super) producer: Arc<Producer>,
    /// Of the dead letters.
    pub(super) dead_producer: Producer,
    /// Where what its clients tell goes.
    pub(super) to_log: ToLog,
    pub(super) lanes: Mutex<Lanes>,
    /// The way of settlements. It outlives the sources, so that what is settled with an old token is seen and counted.
    pub(super) settlements: Settlements,
    pub(super) settled: Mutex<mpsc::UnboundedReceiver<(Tag, Settlement)>>,
    pub(super) buried_sender: mpsc::UnboundedSender<Buried>,
    pub(super) buried: Mutex<mpsc::UnboundedReceiver<Buried>>,
    /// Held by the source that runs.
    pub(super) running: Mutex<()>,
    /// The number of the newest subscription.
    pub(super) newest: AtomicU32,
    /// Raised at each assignment of a partition, over all subscriptions.
    generations: AtomicU32,
}

/// How a source is told that its subscription is over.
#[derive(Clone)]
pub(super) struct Subscribed {
    /// A newer one ends it.
    number: u32,
    /// Set when it is to end at once.
    stop: Arc<AtomicBool>,
}

impl Subscribed {
    pub(super) fn over(&self, shared: &Shared) -> bool {
        self.stop.load(Ordering::Acquire) || shared.newest.load(Ordering::Acquire) != self.number
    }
}

impl Shared {
    pub(super) fn next_generation(&self) -> u32 {
        self.generations.fetch_add(1, Ordering::AcqRel).wrapping_add(1)
    }

    pub(super) fn unavailable(&self, reason: impl std::fmt::Display) -> QueueError {
        QueueError::Unavailable { queue: self.name.clone(), reason: format!("kafka: {reason}") }
    }
}

/// One queue on Kafka.
pub struct KafkaQueue {
    shared: Arc<Shared>,
    dead: Arc<Dead>,
}

impl KafkaQueue {
    /// Opens the queue `name`: waits for a broker within `queue.kafka.start_timeout`, and looks for its topics. `max_message` bounds the
    /// body of one message; `label` is the value of the label `queue`. Blocks.
    pub fn open(
        name: &str,
        settings: &Settings,
        max_message: usize,
        metrics: Arc<Metrics>,
        label: &'static str,
    ) -> Result<Arc<Self>, OpenError> {
        let mut settings = settings.clone();
        settings.group = group_of(&settings.group, label);
        let settings = &settings;
        let dead = format!("{name}.dead");
        let max_record = max_message + ENVELOPE;
        let shapes = [
            Shape { name, partitions: settings.partitions, compacted: false, max_message: max_record },
            // Letters are few and read as a whole.
            Shape { name: &dead, partitions: 1, compacted: true, max_message: max_record + ENVELOPE },
        ];
        let to_log = ToLog::of(name);
        // What the client does not take together is told now, and not at each try of a source.
        let member: Result<BaseConsumer<ToLog>, _> = client::consumer(settings).create_with_context(to_log.clone());
        drop(EndsBeside::new(member.map_err(|error| OpenError::Client(topic::client_error(&error)))?));
        let [batch, dead_batch] = topic::ensure(settings, &shapes, &to_log)?;
        if label == "alerts" {
            warn_of_size(settings, name, batch, max_message);
        }
        let limit = |batch| Limit { message: max_message, batch };
        let producer = Arc::new(Producer::new(settings, name, name, limit(batch), &to_log)?);
        let dead_producer = Producer::new(settings, name, &dead, limit(dead_batch), &to_log)?;
        let (settlements, settled) = mpsc::unbounded_channel();
        let (buried_sender, buried) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            dead,
            label,
            settings: settings.clone(),
            metrics,
            producer,
            dead_producer,
            to_log,
            lanes: Mutex::new(Lanes::default()),
            settlements,
            settled: Mutex::new(settled),
            buried_sender,
            buried: Mutex::new(buried),
            running: Mutex::new(()),
            newest: AtomicU32::new(0),
            generations: AtomicU32::new(0),
        });
        Ok(Arc::new(Self { dead: Arc::new(Dead::new(Arc::clone(&shared))), shared }))
    }
}

/// Says where a topic that was there before may refuse an alert, which would hold up the reports for ever; a report that is too large is
/// refused where it comes in. The broker counts what is compressed, so most that is larger passes.
fn warn_of_size(settings: &Settings, topic: &str, takes: Option<usize>, max_message: usize) {
    let most = max_message + ENVELOPE;
    if takes.is_some_and(|takes| takes < most) {
        tracing::warn!(
            topic,
            takes,
            "kafka: this topic takes less at once than policy.max_alert allows, and an alert that it refuses holds up the reports; set it: kafka-configs --bootstrap-server {} --alter --topic {topic} --add-config max.message.bytes={most}, or lower policy.max_alert",
            settings.brokers.join(","),
        );
    }
}

/// Reports have the group of the settings, other queues one of their own: in one group a process that comes or goes for the alerts would
/// stop and share out the reports' partitions, too.
fn group_of(group: &str, label: &str) -> String {
    if label == "reports" { group.to_owned() } else { format!("{group}-{label}") }
}

/// Ends the thread of a source when the task that stands for it is dropped.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Queue for KafkaQueue {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(KafkaPublisher(Arc::clone(&self.shared.producer)))
    }

    fn subscribe(&self, limit: Unsettled, backoff: Backoff) -> Result<Subscription, QueueError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|error| self.shared.unavailable(error))?;
        let number = self.shared.newest.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        let (out, deliveries) = mpsc::channel(limit.messages.clamp(1, CHANNEL));
        let (pause, paused) = watch::channel(false);
        let stop = Arc::new(AtomicBool::new(false));
        let (ended_sender, ended) = oneshot::channel::<()>();
        let (shared, subscribed) = (Arc::clone(&self.shared), Subscribed { number, stop: Arc::clone(&stop) });
        let parts = Parts { shared, subscribed, limit, backoff, out, paused, _ended: ended_sender };
        std::thread::Builder::new()
            .name(format!("kafka-{}", self.shared.label))
            .spawn(move || source::run(parts))
            .map_err(|error| self.shared.unavailable(error))?;
        let source = runtime.spawn(async move {
            let _stop = Stop(stop);
            // Only its end is told.
            let _ = ended.await;
        });
        Ok(Subscription { deliveries, pause, source })
    }

    fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        Arc::new(Arc::clone(&self.dead))
    }

    fn depth(&self) -> BoxFuture<'_, Result<Depth, QueueError>> {
        let (shared, dead) = (Arc::clone(&self.shared), Arc::clone(&self.dead));
        Box::pin(async move {
            let ask = move || depth::ask(&shared, &dead);
            tokio::task::spawn_blocking(ask).await.map_err(|error| self.shared.unavailable(error))?
        })
    }
}

/// Keeps a lock short where it is only looked at.
pub(super) fn with_lanes<T>(shared: &Shared, look: impl FnOnce(&mut Lanes) -> T) -> T {
    look(&mut lock(&shared.lanes))
}
