//! The queues between the roles: what a publisher, a consumer and a dead-letter place owe to the rest of the program, whatever broker
//! stands behind them.
//!
//! ```text
//! publisher ──▶ durable log ──▶ source ──Delivery──▶ role ──AckToken──▶ source
//!                                  │                                      │
//!                                  └───── keeps what is in flight ◀───────┘
//! ```
//!
//! * A **publish** resolves when the messages are durable, and not before.
//! * A **source** is the only code that talks to its broker's consuming side. It hands deliveries out on a bounded channel and takes
//!   settlements back. It never has more than its limit unsettled.
//! * **ack** = done; **nack** (or a dropped token) = handed out again after a backoff, its place kept; **reject** = a dead letter,
//!   confirmed before the original is done.
//! * Messages finish in any order; the stored position never passes an unfinished one ([`offsets`]).
//!
//! Owns the contract. Names no broker and knows no report.

pub mod amqp;
pub mod dead_letter;
pub mod delivery;
pub mod embedded;
mod flights;
pub mod kafka;
pub mod offsets;
mod patience;
mod way;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub use dead_letter::{DeadLetter, DeadLetters, Filter};
pub use delivery::{AckToken, Delivery, Reason, ReasonKind, Settlement, Tag};

use crate::report::Time;

/// Names of the headers that messages carry between our own roles.
pub mod headers {
    /// Comma-separated names: a resent dead letter runs only these policies, or goes only to these channels.
    pub const ONLY: &str = "trackalert-only";
    /// How often the message was tried before it became a dead letter, all its lives together.
    pub const ATTEMPTS: &str = "trackalert-attempts";
    /// Of a dead letter that was too large for its place and has the beginning of its message only: where the whole stood.
    pub const CUT: &str = "trackalert-cut";
    /// In the alerts queue: the message is no alert, it is for the custom webhook of this name, with the body as it is.
    pub const WEBHOOK: &str = "trackalert-webhook";
    /// The id of such a message.
    pub const ID: &str = "trackalert-id";
    /// Its report's time in microseconds.
    pub const TIME: &str = "trackalert-time";
}

/// Section `[queue]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    pub kind: Kind,
    pub reports: String,
    pub alerts: String,
    #[serde(with = "humantime_serde")]
    pub retry_first: std::time::Duration,
    #[serde(with = "humantime_serde")]
    pub retry_most: std::time::Duration,
    pub embedded: embedded::Settings,
    pub kafka: kafka::Settings,
    pub amqp: amqp::Settings,
}

impl Settings {
    /// The waits of nacked deliveries.
    pub const fn backoff(&self) -> Backoff {
        Backoff { first: self.retry_first, most: self.retry_most }
    }
}

/// The drivers that settings can name. Whether this program has one is said where it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// In the data folder.
    Embedded,
    /// Kafka.
    Kafka,
    /// AMQP 0.9.1, such as RabbitMQ.
    Amqp,
}

/// What travels through a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// What keeps its order: the login of a report, the key of an alert.
    pub key: String,
    /// The body, byte for byte.
    pub body: Bytes,
    /// Further properties, in order; names are lower case.
    pub headers: Vec<(String, String)>,
    /// When it was published, by the publisher's wall clock (a broker's own time where the publisher gave none).
    #[serde(with = "micros")]
    pub published: Time,
    /// Nobody gave it a time: `published` is when it was taken, and another one when it comes again.
    #[serde(default)]
    pub untimed: bool,
}

/// What a header takes beside its text: two texts, and the heap's share of each.
const HEADER: usize = size_of::<(String, String)>() + 2 * 16;

impl Message {
    /// A message without headers, published now.
    pub fn new(key: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { key: key.into(), body: body.into(), headers: Vec::new(), published: Time::now(), untimed: false }
    }

    /// About how many bytes of memory it takes: whoever publishes may have put much into a key or headers, too, or hundreds of thousands of
    /// empty ones.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + HEADER).sum();
        self.key.len() + self.body.len() + headers
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

mod micros {
    use super::Time;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Time, serializer: S) -> Result<S::Ok, S::Error> {
        time.micros().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        i64::deserialize(deserializer).map(Time::from_micros)
    }
}

/// Why a queue did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// The queue is at its bound. Ask again after the time given.
    #[error("the queue `{queue}` is full ({limit}); consumers are behind, or raise the limit")]
    Full {
        /// Which queue.
        queue: String,
        /// The bound and the setting that moves it, for people.
        limit: String,
        /// When to try again.
        retry_after: std::time::Duration,
    },
    /// One message is larger than the queue takes.
    #[error("a message of {size} bytes is over the limit of {limit} bytes of the queue `{queue}`")]
    TooLarge {
        /// Which queue.
        queue: String,
        /// The size of the message.
        size: usize,
        /// The largest size taken.
        limit: usize,
    },
    /// The store or the broker does not answer, or answers with an error; trying again may help.
    #[error("the queue `{queue}` is unavailable: {reason}")]
    Unavailable {
        /// Which queue.
        queue: String,
        /// What it said.
        reason: String,
    },
    /// The program is stopping.
    #[error("the queue `{0}` is closed")]
    Closed(String),
}

/// The writing side of a queue.
pub trait Publisher: Send + Sync {
    /// Writes the messages in their order. Resolves when all of them are durable (one fdatasync serves many callers). On an error
    /// none, some or all of them may come out of the queue: the caller says so to its own caller and lets it send again.
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), QueueError>>;
}

/// How much a consumer lets a source hand out before it settles some of it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Unsettled {
    /// Deliveries handed out and not settled.
    pub messages: usize,
    /// The bytes of their keys, headers and bodies.
    pub bytes: usize,
}

/// How long a source waits before it hands a nacked delivery out again.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The wait after the first nack; doubles with each further one, with a jitter of half of it.
    pub first: std::time::Duration,
    /// The longest wait.
    pub most: std::time::Duration,
}

impl Backoff {
    /// The wait before attempt `attempt` (1 is the first repetition); `jitter` lies in 0..1.
    pub fn wait(&self, attempt: u32, jitter: f64) -> std::time::Duration {
        let doubled = self.first.saturating_mul(1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX));
        let longest = doubled.min(self.most);
        longest.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
    }
}

/// A running consumer: the deliveries of one source.
pub struct Subscription {
    /// Handed out in the order of the queue; nacked ones again later. Ends when the source has stopped.
    pub deliveries: mpsc::Receiver<Delivery>,
    /// Tell the source to hand nothing more out (`true`), while settlements go on: a drain, or a dependency that is down.
    pub pause: watch::Sender<bool>,
    /// Ends when the source has stopped and its position is stored, or no broker answers that would store it: after every [`Delivery`],
    /// token and this value's `deliveries` are dropped, or at once by [`JoinHandle::abort`] (what was unsettled is handed out again at
    /// the next start).
    pub source: JoinHandle<()>,
}

/// What a queue holds, for metrics and for people.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Depth {
    /// Messages behind the stored position's end: not handed out, or handed out and not settled.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest of them was published.
    #[serde(skip)]
    pub oldest: Option<Time>,
    /// Messages in the dead-letter place.
    pub dead: u64,
}

/// One queue: `reports` or `alerts`, on one driver.
pub trait Queue: Send + Sync {
    /// Its name, for people.
    fn name(&self) -> &str;
    /// The writing side.
    fn publisher(&self) -> Arc<dyn Publisher>;
    /// Starts the source. One subscription at a time; a second one ends the first and starts at the stored position.
    fn subscribe(&self, limit: Unsettled, backoff: Backoff) -> Result<Subscription, QueueError>;
    /// The dead-letter place.
    fn dead_letters(&self) -> Arc<dyn DeadLetters>;
    /// How full it is.
    fn depth(&self) -> BoxFuture<'_, Result<Depth, QueueError>>;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn section_of_the_reference_is_the_settings_and_nothing_else() {
        let reference = config::File::from_str(include_str!("../../config/default.toml"), config::FileFormat::Toml);
        let reference = config::Config::builder().add_source(reference).build().unwrap();
        let queue: Settings = reference.get("queue").unwrap();
        assert_eq!(queue.kind, Kind::Embedded);
        assert_eq!(queue.backoff().first, Duration::from_millis(100));
        assert_eq!(queue.embedded.max_bytes, bytesize::ByteSize::gib(8));
        let state: crate::state::Settings = reference.get("state").unwrap();
        assert_eq!(state.handled_for, Duration::from_secs(86_400));
    }

    #[test]
    fn backoff_doubles_up_to_its_end_and_never_falls_below_half() {
        let backoff = Backoff { first: Duration::from_millis(100), most: Duration::from_secs(1) };
        assert_eq!(backoff.wait(1, 1.0), Duration::from_millis(100));
        assert_eq!(backoff.wait(1, 0.0), Duration::from_millis(50));
        assert_eq!(backoff.wait(3, 1.0), Duration::from_millis(400));
        for attempt in [5, 31, 32, 33, 1000, u32::MAX] {
            assert_eq!(backoff.wait(attempt, 1.0), Duration::from_secs(1), "attempt {attempt}");
        }
    }
}
