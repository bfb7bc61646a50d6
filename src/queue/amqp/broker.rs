//! What the parts of one queue know of the broker: where it is, what it is asked and how long it may take.
//!
//! Owns the start: waiting for a broker that does not answer yet, and no longer where what it says will not change. Runs on the link's
//! runtime and on the source's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::tcp::AMQPUriTcpExt;
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};

use super::super::{Backoff, QueueError};
use super::Settings;
use super::address::Address;
use super::form::{self, Outgoing};
use super::link::OpenError;
use super::publisher::{RECONNECT_MOST, To};
use super::wire::Wire;
use crate::complaints::Complaints;
use crate::telemetry::Metrics;

/// The broker's greeting is no longer.
const GREETING: usize = 64 * 1024;

/// What a broker answers with the leader of the quorum queue alone.
const LEADER_ANSWERS: [&str; 2] = ["consume", "look"];

/// Where what a queue's leader answers does not come.
const SILENT: &str = "the connection stands and the queue is silent, so it may be without a leader; \
                      `rabbitmq-queues quorum_status` there shows it (docs/deploy.md, \"A queue of RabbitMQ that does not answer\")";

/// A broker says "nothing, nobody" of a quorum queue whose leader has not answered it for so long (RabbitMQ 3.10, 250 ms), and at once
/// where it cannot reach it.
const UNSURE: Duration = Duration::from_millis(200);

/// Why the broker did not do something.
pub(super) struct Failure {
    pub(super) error: QueueError,
    /// Asked again it would say the same.
    pub(super) lasting: bool,
}

impl From<Failure> for QueueError {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

/// What the parts of one queue know of the broker.
pub(super) struct Broker {
    pub(super) address: Address,
    pub(super) settings: Settings,
    pub(super) backoff: Backoff,
    pub(super) metrics: Arc<Metrics>,
    pub(super) name: String,
    pub(super) dead: String,
    pub(super) max_message: usize,
    /// The queue's own name, or those of its shards.
    pub(super) queues: Vec<String>,
    /// The exchange over which the processes that take from shards know of each other.
    pub(super) members: String,
    /// The queue by which the broker knows the source of this process.
    pub(super) process: String,
    /// What is held of each of `queues`.
    pub(super) in_hand: Vec<InHand>,
    pub(super) complaints: Complaints,
    /// Publishes to the queue.
    wire: Wire,
    /// A connection of its own: where a quorum queue takes nothing more, the broker stops reading from whoever publishes to it.
    wire_to_dead: Wire,
    /// Publishes nothing: at an alarm, too, the broker reads from it.
    wire_to_look: Wire,
    major: OnceCell<u64>,
}

/// What the broker says of a queue.
pub(super) struct Seen {
    /// Those that are not handed out.
    pub(super) messages: u64,
    pub(super) consumers: u32,
    /// How long the answer took.
    took: Duration,
}

impl Seen {
    /// Whether the queue's leader has said so, as far as can be told: it alone knows of anything.
    pub(super) fn sure(&self) -> bool {
        self.messages > 0 || self.consumers > 0 || self.took <= UNSURE
    }
}

/// What the source holds un-acked, for whoever asks how full the queue is: the broker counts only what it has not handed out.
#[derive(Default)]
pub(super) struct InHand {
    pub(super) messages: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Microseconds; 0: none.
    pub(super) oldest: AtomicU64,
}

impl InHand {
    pub(super) fn set(&self, messages: usize, bytes: usize, oldest: u64) {
        self.messages.store(messages as u64, Ordering::Relaxed);
        self.bytes.store(bytes as u64, Ordering::Relaxed);
        self.oldest.store(oldest, Ordering::Relaxed);
    }
}

impl Broker {
    pub(super) fn new(
        address: Address,
        settings: Settings,
        backoff: Backoff,
        metrics: Arc<Metrics>,
        name: &str,
        process: &str,
        max_message: usize,
    ) -> Self {
        let queues: Vec<String> = if settings.shards > 0 {
            (0..settings.shards).map(|shard| format!("{name}-{shard}")).collect()
        } else {
            vec![name.to_owned()]
        };
        Self {
            address,
            settings,
            backoff,
            metrics,
            name: name.to_owned(),
            dead: format!("{name}.dead"),
            max_message,
            members: format!("{name}.members"),
            process: format!("{name}.process.{process}"),
            in_hand: queues.iter().map(|_| InHand::default()).collect(),
            queues,
            complaints: Complaints::default(),
            wire: Wire::new("publisher"),
            wire_to_dead: Wire::new("dead letters"),
            wire_to_look: Wire::new("looks"),
            major: OnceCell::new(),
        }
    }

    pub(super) fn unavailable(&self, reason: impl ToString) -> QueueError {
        QueueError::Unavailable { queue: self.name.clone(), reason: reason.to_string() }
    }

    pub(super) fn failed(&self, error: &lapin::Error) -> QueueError {
        self.unavailable(self.address.explain(error))
    }

    pub(super) fn failure(&self, error: &lapin::Error) -> Failure {
        Failure { error: self.failed(error), lasting: Address::lasting(error) }
    }

    /// Whether the queue has shards, be it one.
    pub(super) const fn sharded(&self) -> bool {
        self.settings.shards > 0
    }

    /// The queue of a message. Not by the exchange: which queue that gives a key goes by the order in which the queues were bound, and a
    /// broker that starts again binds them in any order (the plugin, 3.10), so that a login's next reports would go to another shard while
    /// the last still wait in theirs.
    pub(super) fn shard(&self, message: &Outgoing) -> &str {
        let shards = self.queues.len() as u64;
        let at = if shards > 1 { form::hash(message) % shards } else { 0 };
        &self.queues[usize::try_from(at).unwrap_or_default()]
    }

    /// Waits for the broker no longer than is set.
    pub(super) async fn within<T>(
        &self,
        what: &str,
        answer: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Failure> {
        match timeout(self.settings.connect_timeout, answer).await {
            Ok(answer) => answer.map_err(|error| self.failure(&error)),
            Err(_) => {
                let (shown, wait) = (self.address.shown(), self.settings.connect_timeout);
                let mut reason = format!("{shown} did not answer within {wait:?} ({what})");
                if LEADER_ANSWERS.contains(&what) {
                    reason.push_str(": ");
                    reason.push_str(SILENT);
                }
                let error = self.unavailable(reason);
                Err(Failure { error, lasting: false })
            }
        }
    }

    /// Waits for the broker, and makes what must be there.
    pub(super) async fn start(&self) -> Result<(), OpenError> {
        let (began, most) = (Instant::now(), self.settings.start_timeout);
        let mut tries = 0;
        loop {
            let Failure { error, lasting } = match self.first().await {
                Ok(()) => break,
                Err(failure) => failure,
            };
            tries += 1;
            let wait = self.reconnect().wait(tries, rand::random());
            if lasting {
                return Err(OpenError::Refused(error));
            }
            if began.elapsed() + wait >= most {
                let QueueError::Unavailable { reason, .. } = error else { return Err(OpenError::Unreachable(error)) };
                let error = self.unavailable(format!("{reason} It was tried for {most:?} (queue.amqp.start_timeout)."));
                return Err(OpenError::Unreachable(error));
            }
            tracing::warn!(queue = self.name, %error, ?wait, "the broker is not there yet, trying again");
            sleep(wait).await;
        }
        Ok(())
    }

    async fn first(&self) -> Result<(), Failure> {
        let (connection, channel) = self.wire.channel(self, false).await?;
        self.look_for_left(&connection).await?;
        self.declare(&connection).await?;
        self.done(&channel).await;
        Ok(())
    }

    /// The waits between two connections.
    pub(super) fn reconnect(&self) -> Backoff {
        Backoff { most: self.backoff.most.min(RECONNECT_MOST), ..self.backoff }
    }

    /// A new connection, with a name that shows in the broker's tools.
    pub(super) async fn connect(&self, role: &str) -> Result<Connection, Failure> {
        let name = format!("trackalert {} {role}", self.name);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let lasting = |reason| Failure { error: self.unavailable(reason), lasting: true };
        let tls = self.address.tls().map_err(lasting)?;
        let runtime = lapin::runtime::default_runtime().map_err(|error| lasting(error.to_string()))?;
        let uri = self.address.uri().clone();
        self.within("connect", Connection::connect_uri_with_config(uri, properties, tls, runtime)).await
    }

    const fn wire(&self, to: To) -> &Wire {
        match to {
            To::Queue => &self.wire,
            To::Dead => &self.wire_to_dead,
        }
    }

    /// A channel to publish on, after the queues were declared where its connection is a new one.
    pub(super) async fn channel(&self, to: To) -> Result<(Arc<Connection>, Channel), QueueError> {
        Ok(self.wire(to).channel(self, true).await?)
    }

    /// A channel to look at the queues with, after they were declared where its connection is a new one.
    pub(super) async fn looking(&self) -> Result<Channel, QueueError> {
        Ok(self.wire_to_look.channel(self, true).await?.1)
    }

    /// At an alarm a broker reads nothing any more from a connection on which something was published since.
    pub(super) fn alarm(&self) -> Failure {
        let shown = self.address.shown();
        let reason = format!(
            "{shown} has a memory or disk alarm and takes nothing until that is over (`rabbitmq-diagnostics alarms` there shows which)"
        );
        Failure { error: self.unavailable(reason), lasting: false }
    }

    /// A name as the wire has it.
    pub(super) fn queue(&self, name: &str) -> Result<ShortString, Failure> {
        ShortString::try_new(name).map_err(|error| Failure { error: self.unavailable(error), lasting: true })
    }

    /// How many messages a queue has that are not handed out. That it is empty is believed only where its leader seems to have said so:
    /// whoever takes a slow one's for empty goes on as if all were done.
    pub(super) async fn ready(&self, channel: &Channel, name: &str) -> Result<u64, Failure> {
        let (began, most) = (Instant::now(), self.settings.connect_timeout);
        let (mut way, mut again) = (Duration::MAX, false);
        loop {
            let seen = self.look(channel, name).await?;
            if seen.sure() {
                return Ok(seen.messages);
            }
            // A broker far away answers late, and its leader in time. One that is slow for a moment looks like that, once.
            way = way.min(self.round_trip(channel).await?);
            if again && seen.took.saturating_sub(way) <= UNSURE {
                return Ok(0);
            }
            if began.elapsed() >= most {
                let shown = self.address.shown();
                let reason = format!("{shown} did not say within {most:?} how much is in {name}: {SILENT}");
                return Err(Failure { error: self.unavailable(reason), lasting: false });
            }
            again = true;
        }
    }

    /// What the broker says of a queue that is there.
    pub(super) async fn look(&self, channel: &Channel, name: &str) -> Result<Seen, Failure> {
        let (queue, asked) = (self.queue(name)?, Instant::now());
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(queue, options, FieldTable::default());
        let queue = self.within("count", declared).await?;
        let (messages, consumers) = (u64::from(queue.message_count()), queue.consumer_count());
        Ok(Seen { messages, consumers, took: asked.elapsed() })
    }

    /// How long the way to the broker and back takes. It looks for an exchange that each virtual host has, and asks no queue.
    async fn round_trip(&self, channel: &Channel) -> Result<Duration, Failure> {
        let asked = Instant::now();
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let declared =
            channel.exchange_declare("amq.direct".into(), ExchangeKind::Direct, options, FieldTable::default());
        self.within("round trip", declared).await?;
        Ok(asked.elapsed())
    }

    /// The first number of the broker's version.
    pub(super) async fn major(&self) -> Result<u64, Failure> {
        self.major.get_or_try_init(|| self.greeted()).await.copied()
    }

    /// Reads the broker's greeting on a connection of its own, because the client library keeps it to itself: once a process.
    async fn greeted(&self) -> Result<u64, Failure> {
        let lasting = |reason| Failure { error: self.unavailable(reason), lasting: true };
        let runtime = lapin::runtime::default_runtime().map_err(|error| lasting(error.to_string()))?;
        let tls = self.address.tls().map_err(lasting)?;
        let read = async {
            let mut stream = self.address.uri().connect_with_config_async(tls.as_ref(), &runtime).await?;
            stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
            stream.flush().await?;
            let mut head = [0; 7];
            stream.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
            let mut greeting = vec![0; length.min(GREETING)];
            stream.read_exact(&mut greeting).await?;
            Ok(greeting)
        };
        let greeting =
            self.within("version", async { read.await.map_err(|error: std::io::Error| error.into()) }).await?;
        // A broker that names no version is none that has such a limit.
        Ok(major_in(&greeting).unwrap_or(0))
    }

    /// The next channel comes with a new connection, after the queues were declared again.
    pub(super) fn forget(&self, to: To) {
        self.wire(to).forget();
    }

    /// Closes the connections in an orderly way.
    pub(super) async fn close(&self) {
        for wire in [&self.wire, &self.wire_to_dead, &self.wire_to_look] {
            wire.close(self).await;
        }
    }
}

/// The major version in a greeting: the entry `version` of the table of the server's properties.
fn major_in(greeting: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"\x07versionS";
    let at = greeting.windows(NAME.len()).position(|window| window == NAME)? + NAME.len();
    let length = u32::from_be_bytes(greeting.get(at..at + 4)?.try_into().ok()?) as usize;
    let text = std::str::from_utf8(greeting.get(at + 4..at + 4 + length)?).ok()?;
    text.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_found_in_a_greeting() {
        let greeting = |version: &str| {
            let mut bytes =
                b"\x00\x0a\x00\x0a\x00\x09\x00\x00\x00\x40\x07productS\x00\x00\x00\x08RabbitMQ\x07versionS".to_vec();
            bytes.extend(u32::try_from(version.len()).unwrap().to_be_bytes());
            bytes.extend(version.as_bytes());
            bytes
        };
        assert_eq!(major_in(&greeting("3.10.8")), Some(3));
        assert_eq!(major_in(&greeting("4.1.0-rc.1")), Some(4));
        assert_eq!(major_in(&greeting("12")), Some(12));
        assert_eq!(major_in(b"\x07versionS\x00\x00\x00\x09short"), None);
        assert_eq!(major_in(b"nothing"), None);
    }
}
