//! What all clients of one broker have in common: the properties they are made with, where their log goes, and how they end.
//!
//! Owns the fixed properties that the promises of the program rest on. Never logs a value of a property.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::runtime::Handle;

use super::Settings;
use crate::complaints::Complaints;

/// How long one question to a broker may take.
pub(super) const ASK: Duration = Duration::from_secs(5);

/// Waits on a thread of our own, or of the blocking pool: no task runs on either.
#[allow(clippy::disallowed_methods, reason = "no worker is blocked: the callers have a thread to themselves")]
pub(super) fn rest(duration: Duration) {
    std::thread::sleep(duration);
}

/// The client's own word for a connection that failed; it tells the same once more as an error.
pub(super) const FAILED_CONNECTION: &str = "FAIL";
/// The kind of complaint that all clients of a queue share: each of them notices that its broker is gone.
const UNREACHABLE: &str = "unreachable";

/// The events of a queue's clients go to the log of the program, what repeats itself no more than once in a while.
#[derive(Debug, Clone)]
pub(super) struct ToLog {
    queue: String,
    complaints: Arc<Complaints>,
}

impl ToLog {
    pub(super) fn of(queue: &str) -> Self {
        Self { queue: queue.to_owned(), complaints: Arc::default() }
    }

    /// What failed again and again, of a kind, in words of the program.
    pub(super) fn complain(&self, kind: &str, error: &dyn std::fmt::Display, what: &str) {
        if let Some(kept_back) = self.complaints.due(kind) {
            tracing::warn!(queue = self.queue, %error, kept_back, "kafka: {what}");
        }
    }

    /// An error of a client, with what it said of it.
    pub(super) fn failed(&self, error: &KafkaError, reason: &str) {
        let said = if reason.is_empty() { error.to_string() } else { format!("{error}: {reason}") };
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure) => {
                self.complain(UNREACHABLE, &said, "a broker cannot be reached, trying again");
            }
            code => self.complain(&format!("{code:?}"), &said, "the client tells an error"),
        }
    }
}

impl ClientContext for ToLog {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        match level {
            _ if facility == FAILED_CONNECTION => tracing::debug!(queue = self.queue, facility, "kafka: {text}"),
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => self.complain(facility, &text, "the client warns"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(queue = self.queue, facility, "kafka: {text}");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(queue = self.queue, facility, "kafka: {text}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.failed(&error, reason);
    }
}

impl ConsumerContext for ToLog {}

/// A client that ends on a thread of its own. Its threads may be looking the name of a broker up, for as long as that takes, and it ends
/// after them: whoever waited for that would hold a worker up, or the end of the program, where a second signal is not heard any more.
pub(super) struct EndsBeside<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> EndsBeside<T> {
    pub(super) const fn new(client: T) -> Self {
        Self(Some(client))
    }
}

impl<T: Send + 'static> Deref for EndsBeside<T> {
    type Target = T;

    fn deref(&self) -> &T {
        let Some(client) = &self.0 else { unreachable!("it is taken out when this is dropped") };
        client
    }
}

impl<T: Send + 'static> Drop for EndsBeside<T> {
    fn drop(&mut self) {
        let client = self.0.take();
        match Handle::try_current() {
            // At the end of the program these are waited for, a moment.
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(client))),
            // A source's thread, which has to poll.
            Err(_) => drop(std::thread::spawn(move || drop(client))),
        }
    }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// What every client gets. What people set comes first, so that what a promise rests on wins. Alone it is for a client that neither reads
/// nor writes: that would warn of each property of one that does.
pub(super) fn base(settings: &Settings) -> ClientConfig {
    // Before librdkafka does it: its OpenSSL would be torn down at the exit of the process, under the threads of a client that has not ended.
    openssl_sys::init();
    let mut config = ClientConfig::new();
    // A list or a date among them was refused when the configuration was checked.
    for (name, value) in settings.properties.flat().unwrap_or_default() {
        config.set(name, value);
    }
    if !settings.password.is_empty() {
        config.set("sasl.password", settings.password.expose());
    }
    config.set("bootstrap.servers", settings.brokers.join(","));
    if config.get("client.id").is_none() {
        config.set("client.id", "trackalert");
    }
    // A client that has once heard that a partition has no leader may not ask again before this (librdkafka 2.12, seen where a broker was
    // fenced for two seconds): at the default of five minutes nothing would be published for so long.
    default(&mut config, "topic.metadata.refresh.interval.ms", "5000");
    config.set_log_level(RDKafkaLogLevel::Info);
    config
}

/// Other names of properties that have a default here: with both set it would be a matter of chance which one counts.
const ALIASES: [(&str, &str); 3] = [
    ("fetch.message.max.bytes", "max.partition.fetch.bytes"),
    ("compression.codec", "compression.type"),
    ("linger.ms", "queue.buffering.max.ms"),
];

fn default(config: &mut ClientConfig, name: &str, value: &str) {
    let alias = ALIASES.iter().find(|(known, _)| *known == name).map(|(_, alias)| *alias);
    if config.get(name).is_none() && alias.is_none_or(|alias| config.get(alias).is_none()) {
        config.set(name, value);
    }
}

/// What the client sends to a partition at once by itself.
const BATCH: usize = 1_000_000;

/// A producer whose confirmed messages are on all replicas in sync, in the order of the calls and once. `most`: bytes that its topic takes
/// at once.
pub(super) fn producer(settings: &Settings, most: Option<usize>) -> ClientConfig {
    let mut config = base(settings);
    config.set("enable.idempotence", "true").set("acks", "all");
    // As Java producers do, so that a login keeps its partition whoever publishes.
    config.set("partitioner", "murmur2_random");
    config.set("message.timeout.ms", millis(settings.delivery_timeout));
    // The client counts before it compresses. What the queue takes is for its own check, and what a topic takes for the broker's: a message
    // of somebody else that the topic has taken must become a dead letter, too.
    config.set("message.max.bytes", "1000000000");
    // A broker refuses all that comes together where that is too large.
    let set = config.get("batch.size").map_or(Ok(BATCH), str::parse);
    // What is no number the client refuses by its name.
    if let (Some(most), Ok(set)) = (most, set) {
        config.set("batch.size", set.min(most.max(1)).to_string());
    }
    default(&mut config, "compression.codec", "lz4");
    default(&mut config, "linger.ms", "1");
    // A consumer gets whole batches: see its fetch.message.max.bytes.
    default(&mut config, "batch.num.messages", "500");
    default(&mut config, "queue.buffering.max.kbytes", "65536");
    default(&mut config, "socket.keepalive.enable", "true");
    default(&mut config, "reconnect.backoff.max.ms", "2000");
    config
}

/// How long a member may go without a poll, by the client's default.
const POLL: Duration = Duration::from_secs(300);
/// The most that the client takes for that.
const LONGEST_POLL: Duration = Duration::from_secs(86_400);

/// A member of the group: it commits what it is told to and nothing else.
pub(super) fn consumer(settings: &Settings) -> ClientConfig {
    let mut config = reader(settings);
    config.set("group.id", &settings.group);
    config.set("partition.assignment.strategy", "cooperative-sticky");
    config.set("session.timeout.ms", millis(settings.session_timeout));
    // A member that gives partitions up polls again when what is in flight of them is done, or has had its time: six times that of
    // `revoke_timeout`. Put out before, it could not commit. And the client takes none that is shorter than the session's.
    let longest = POLL.max(settings.session_timeout).max(settings.revoke_timeout.saturating_mul(7)).min(LONGEST_POLL);
    default(&mut config, "max.poll.interval.ms", &millis(longest));
    // The default of a second holds a consumer that fills its buffer to an eighth of what it can do.
    default(&mut config, "fetch.queue.backoff.ms", "5");
    default(&mut config, "queued.max.messages.kbytes", "16384");
    // With the default of 1 MiB (some ten thousand reports, compressed) a backlog comes partition by partition: all that is taken in hand is
    // of the few logins of one partition then, and those of the others wait.
    default(&mut config, "fetch.message.max.bytes", "32768");
    config
}

/// A consumer that reads by itself what it is pointed at.
pub(super) fn reader(settings: &Settings) -> ClientConfig {
    let mut config = base(settings);
    config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
    config.set("auto.offset.reset", "earliest").set("allow.auto.create.topics", "false");
    // Never a member of a group: the name is needed by the client and used for nothing.
    config.set("group.id", &settings.group);
    default(&mut config, "fetch.wait.max.ms", "100");
    default(&mut config, "reconnect.backoff.max.ms", "2000");
    default(&mut config, "socket.keepalive.enable", "true");
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(session_timeout: &str, revoke_timeout: &str, properties: serde_json::Value) -> Settings {
        serde_json::from_value(serde_json::json!({
            "brokers": ["127.0.0.1:9092"], "group": "trackalert", "password": "", "password_file": "",
            "create_topics": false, "partitions": 1, "replication": 1, "session_timeout": session_timeout,
            "delivery_timeout": "30s", "revoke_timeout": revoke_timeout, "start_timeout": "5m", "properties": properties,
        }))
        .unwrap()
    }

    #[test]
    fn member_may_be_without_a_poll_for_as_long_as_it_may_wait_to_give_partitions_up() {
        for (session, revoke, longest) in
            [("45s", "5s", "300000"), ("10m", "5s", "600000"), ("45s", "60s", "420000"), ("45s", "90000s", "86400000")]
        {
            let config = consumer(&settings(session, revoke, serde_json::json!({})));
            assert_eq!(config.get("max.poll.interval.ms"), Some(longest), "{session}, {revoke}");
            config.create_native_config().unwrap();
        }
        let set = consumer(&settings("45s", "5s", serde_json::json!({ "max.poll.interval.ms": 60_000 })));
        assert_eq!(set.get("max.poll.interval.ms"), Some("60000"), "what is for people to set is theirs");
    }

    #[test]
    fn producer_is_idempotent_asks_all_replicas_and_shares_out_as_java_does_whatever_is_set() {
        let properties = serde_json::json!({
            "enable.idempotence": false, "acks": 1, "batch.size": 30000, "partitioner": "random", "client.id": "mine",
        });
        let settings = settings("45s", "10s", properties);
        let config = producer(&settings, Some(20_000));
        let promised = [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("partitioner", "murmur2_random"),
            ("batch.size", "20000"),
        ];
        for (name, value) in promised {
            assert_eq!(config.get(name), Some(value), "{name}");
        }
        assert_eq!(config.get("client.id"), Some("mine"), "what is for people to set is theirs");
        // What the client makes of them together: it refuses some combinations, and sets others by itself.
        let taken = config.create_native_config().unwrap();
        assert_eq!(taken.get("enable.idempotence").unwrap(), "true");
    }
}
