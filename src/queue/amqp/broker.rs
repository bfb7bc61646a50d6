//! The connection that publishes and looks, made again where it was lost, and the declaration of the queues.
//!
//! Owns the form in which queues are declared. Runs on the link's runtime alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use lapin::options::QueueDeclareOptions;
use lapin::tcp::AMQPUriTcpExt;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::sync::{Mutex, OnceCell};
use tokio::time::timeout;

use super::super::complaints::Complaints;
use super::super::{Backoff, QueueError};
use super::Settings;
use super::address::Address;
use crate::telemetry::Metrics;

/// The first release that limits the returns of a quorum queue where nothing is said, and takes "no limit" for an answer.
const LIMITS_RETURNS: u64 = 4;
/// The broker's greeting is no longer.
const GREETING: usize = 64 * 1024;

/// What the parts of one queue know of the broker.
pub(super) struct Broker {
    pub(super) address: Address,
    pub(super) settings: Settings,
    pub(super) backoff: Backoff,
    pub(super) metrics: Arc<Metrics>,
    pub(super) name: String,
    pub(super) dead: String,
    pub(super) max_message: usize,
    pub(super) held: Held,
    pub(super) complaints: Complaints,
    connection: Mutex<Option<Connection>>,
    major: OnceCell<u64>,
}

/// What the source holds un-acked, for whoever asks how full the queue is: the broker counts only what it has not handed out.
#[derive(Default)]
pub(super) struct Held {
    pub(super) messages: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Microseconds; 0: none.
    pub(super) oldest: AtomicU64,
}

impl Held {
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
        max_message: usize,
    ) -> Self {
        Self {
            address,
            settings,
            backoff,
            metrics,
            name: name.to_owned(),
            dead: format!("{name}.dead"),
            max_message,
            held: Held::default(),
            complaints: Complaints::default(),
            connection: Mutex::default(),
            major: OnceCell::new(),
        }
    }

    pub(super) fn unavailable(&self, reason: impl ToString) -> QueueError {
        QueueError::Unavailable { queue: self.name.clone(), reason: reason.to_string() }
    }

    pub(super) fn failed(&self, error: &lapin::Error) -> QueueError {
        self.unavailable(self.address.explain(error))
    }

    /// Waits for the broker no longer than is set.
    pub(super) async fn within<T>(
        &self,
        what: &str,
        answer: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, QueueError> {
        match timeout(self.settings.connect_timeout, answer).await {
            Ok(answer) => answer.map_err(|error| self.failed(&error)),
            Err(_) => {
                let (shown, wait) = (self.address.shown(), self.settings.connect_timeout);
                Err(self.unavailable(format!("{shown} did not answer within {wait:?} ({what})")))
            }
        }
    }

    /// A new connection, with a name that shows in the broker's tools.
    pub(super) async fn connect(&self, role: &str) -> Result<Connection, QueueError> {
        let name = format!("trackalert {} {role}", self.name);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        self.within("connect", Connection::connect_uri(self.address.uri().clone(), properties)).await
    }

    /// A channel on the connection that is there, or on a new one, after the queues were declared.
    pub(super) async fn channel(&self) -> Result<Channel, QueueError> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = held.as_ref().filter(|connection| connection.status().connected())
            && let Ok(channel) = self.within("channel", connection.create_channel()).await
        {
            return Ok(channel);
        }
        *held = None;
        let connection = self.connect("publisher").await?;
        self.declare(&connection).await?;
        let channel = self.within("channel", connection.create_channel()).await?;
        *held = Some(connection);
        Ok(channel)
    }

    /// Makes both queues, or looks that they are there. A channel each: a refusal closes it.
    async fn declare(&self, connection: &Connection) -> Result<(), QueueError> {
        let passive = !self.settings.declare;
        let mut arguments = FieldTable::default();
        if !passive {
            let mut set = |name: &str, value| arguments.insert(name.into(), value).contains_key(name);
            set("x-queue-type", AMQPValue::LongString("quorum".into()));
            // 20 returns by default would turn an outage into dead letters, or into nothing. Before that release there is no limit
            // where none is declared, and -1 is taken for one that is reached at the first return.
            if self.major().await? >= LIMITS_RETURNS {
                set("x-delivery-limit", AMQPValue::LongInt(-1));
            }
        }
        // The dead letters lie in a quorum queue without a limit, too: replicated as the originals are, and however often somebody
        // looks (takes them and gives them back), none is dropped. A stream would be read without that, but forgets nothing singly.
        for name in [&self.name, &self.dead] {
            let channel = self.within("channel", connection.create_channel()).await?;
            let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
            let name = self.queue(name)?;
            self.within("declare", channel.queue_declare(name, options, arguments.clone())).await?;
            let _ = self.within("close", channel.close(200, "done".into())).await;
        }
        Ok(())
    }

    /// A name as the wire has it.
    pub(super) fn queue(&self, name: &str) -> Result<ShortString, QueueError> {
        ShortString::try_new(name).map_err(|error| self.unavailable(error))
    }

    /// How many messages a queue has that are not handed out.
    pub(super) async fn ready(&self, channel: &Channel, name: &str) -> Result<u64, QueueError> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(self.queue(name)?, options, FieldTable::default());
        Ok(u64::from(self.within("count", declared).await?.message_count()))
    }

    /// The first number of the broker's version.
    async fn major(&self) -> Result<u64, QueueError> {
        self.major.get_or_try_init(|| self.greeted()).await.copied()
    }

    /// Reads the broker's greeting on a connection of its own, because the client library keeps it to itself: once a process.
    async fn greeted(&self) -> Result<u64, QueueError> {
        let runtime = lapin::runtime::default_runtime().map_err(|error| self.failed(&error))?;
        let read = async {
            let mut stream = self.address.uri().connect_async(&runtime).await?;
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
    pub(super) fn forget(&self) {
        if let Ok(mut held) = self.connection.try_lock() {
            *held = None;
        }
    }

    /// Closes the connection in an orderly way.
    pub(super) async fn close(&self) {
        if let Some(connection) = self.connection.lock().await.take() {
            let _ = self.within("close", connection.close(200, "done".into())).await;
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
