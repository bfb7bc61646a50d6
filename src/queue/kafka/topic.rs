//! The topics: whether they are there, and making them where the settings say so.
//!
//! Owns the start: it waits for a broker that does not answer yet, within a bound, and says what is missing in the words of the settings,
//! and where dead letters would not be kept. Never changes a topic that is there.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ConfigEntry, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;

use super::Settings;
use super::client::{self, ASK, ToLog};
use super::refused::Listener;
use crate::complaints::Complaints;

/// Why a queue on Kafka could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No broker answered in time, or none let this program see a topic.
    #[error(
        "kafka: no broker of {brokers} served topic `{topic}` within {waited:?} (queue.kafka.start_timeout): {reason}; {hint}"
    )]
    Unreachable {
        /// Its name.
        topic: String,
        /// The setting.
        brokers: String,
        /// `queue.kafka.start_timeout`.
        waited: Duration,
        /// What the client said of the last try.
        reason: String,
        /// What to change.
        hint: &'static str,
    },
    /// A topic is not there.
    #[error(
        "kafka: topic `{topic}` does not exist on {brokers}; create it{hint} or set queue.kafka.create_topics = true"
    )]
    Missing {
        /// Its name.
        topic: String,
        /// The setting.
        brokers: String,
        /// How it must be.
        hint: &'static str,
    },
    /// The broker did not make a topic.
    #[error("kafka: topic `{topic}` could not be created on {brokers}: {reason}")]
    NotCreated {
        /// Its name.
        topic: String,
        /// The setting.
        brokers: String,
        /// What the broker said.
        reason: String,
    },
    /// The client does not take its properties.
    #[error("kafka: the client does not take its settings: {0}; see queue.kafka.properties")]
    Client(String),
}

/// How a topic is made.
pub(super) struct Shape<'a> {
    pub(super) name: &'a str,
    pub(super) partitions: i32,
    /// Keeps the newest record of a key for ever.
    pub(super) compacted: bool,
    pub(super) max_message: usize,
}

/// Waits for a broker, then looks for the topics and makes them where the settings say so. Gives how many bytes each takes at once, where
/// the broker tells. Blocks.
pub(super) fn ensure<const N: usize>(
    settings: &Settings,
    shapes: &[Shape<'_>; N],
    to_log: &ToLog,
) -> Result<[Option<usize>; N], OpenError> {
    let brokers = settings.brokers.join(",");
    let listener = Listener::new(to_log);
    let looker: BaseConsumer<Listener> = client::reader(settings)
        .create_with_context(listener.clone())
        .map_err(|error| OpenError::Client(client_error(&error)))?;
    let began = Instant::now();
    for shape in shapes {
        while !exists(&looker, &listener, shape.name, settings, began)? {
            if !settings.create_topics {
                let hint = if shape.compacted { " (cleanup.policy=compact)" } else { "" };
                return Err(OpenError::Missing { topic: shape.name.to_owned(), brokers, hint });
            }
            create(settings, shape, to_log)?;
        }
    }
    Ok(shapes.each_ref().map(|shape| {
        let most = left(settings, began);
        // A broker that does not tell, or not this user, holds no start up.
        let told = described(settings, shape.name, &listener, most).inspect_err(|reason| {
            tracing::debug!(topic = shape.name, reason, "kafka: how a topic is kept is not told")
        });
        let value = |name: &str| Some(told.as_ref().ok()?.get(name)?.value.clone().unwrap_or_default());
        if shape.compacted {
            warn_of_retention(settings, shape.name, value);
        }
        value("max.message.bytes")?.parse().ok()
    }))
}

/// How long the next question may take: no longer than what is left of the start, and long enough for an answer.
fn left(settings: &Settings, began: Instant) -> Duration {
    settings.start_timeout.saturating_sub(began.elapsed()).clamp(Duration::from_secs(1), ASK)
}

/// What the client says of a property, without its value: that may be a secret.
pub(super) fn client_error(error: &rdkafka::error::KafkaError) -> String {
    match error {
        rdkafka::error::KafkaError::ClientConfig(_, description, name, _) => {
            if super::settings::is_secret(name) {
                format!("{name} is refused")
            } else {
                format!("{name}: {description}")
            }
        }
        rdkafka::error::KafkaError::ClientCreation(said) if said.contains(".location failed") => {
            format!("{said}; the file is missing, not for this user to read, or no PEM")
        }
        // The password has a setting of its own.
        rdkafka::error::KafkaError::ClientCreation(said) => said.replace("sasl.password", "queue.kafka.password"),
        other => other.to_string(),
    }
}

/// How long a client that did not get through is listened to.
const LISTEN: Duration = Duration::from_millis(500);

/// Asks until a broker answers.
fn exists(
    looker: &BaseConsumer<Listener>,
    listener: &Listener,
    topic: &str,
    settings: &Settings,
    began: Instant,
) -> Result<bool, OpenError> {
    let complaints = Complaints::default();
    loop {
        let reason = match looker.fetch_metadata(Some(topic), left(settings, began)) {
            Ok(metadata) => {
                let found = metadata.topics().iter().find(|found| found.name() == topic);
                match found.map(|found| (found.error(), found.partitions().len())) {
                    Some((None, partitions)) if partitions > 0 => return Ok(true),
                    Some((Some(error), _)) => {
                        let code = RDKafkaErrorCode::from(error);
                        let missing =
                            [RDKafkaErrorCode::UnknownTopicOrPartition, RDKafkaErrorCode::UnknownTopic].contains(&code);
                        if missing {
                            return Ok(false);
                        }
                        listener.note(&code.to_string());
                        code.to_string()
                    }
                    _ => return Ok(false),
                }
            }
            Err(error) => error.to_string(),
        };
        // The client tells why only to who asks it for its events. Not until it has no more: a broker that refuses each connection at once
        // makes new ones for ever.
        let heard = Instant::now() + LISTEN;
        while looker.poll(LISTEN / 5).is_some() && Instant::now() < heard {}
        let (reason, hint) = listener.reason(&reason);
        let brokers = settings.brokers.join(",");
        if began.elapsed() >= settings.start_timeout {
            let (topic, waited) = (topic.to_owned(), settings.start_timeout);
            return Err(OpenError::Unreachable { topic, brokers, waited, reason, hint });
        }
        if let Some(kept_back) = complaints.due(&reason) {
            tracing::warn!(brokers, topic, reason, kept_back, "kafka does not serve a topic, trying again; {hint}");
        }
        client::rest(Duration::from_millis(500));
    }
}

fn create(settings: &Settings, shape: &Shape<'_>, to_log: &ToLog) -> Result<(), OpenError> {
    let not_created = |reason: String| OpenError::NotCreated {
        topic: shape.name.to_owned(),
        brokers: settings.brokers.join(","),
        reason,
    };
    let admin: AdminClient<ToLog> = client::reader(settings)
        .create_with_context(to_log.clone())
        .map_err(|error| OpenError::Client(client_error(&error)))?;
    let largest = shape.max_message.max(1_048_588).to_string();
    let mut topic = NewTopic::new(shape.name, shape.partitions, TopicReplication::Fixed(settings.replication))
        .set("max.message.bytes", &largest);
    if shape.compacted {
        topic = topic.set("cleanup.policy", "compact");
    }
    let options = AdminOptions::new().request_timeout(Some(ASK)).operation_timeout(Some(ASK));
    let made = futures_util::future::FutureExt::boxed(admin.create_topics([&topic], &options));
    let runtime =
        tokio::runtime::Builder::new_current_thread().build().map_err(|error| not_created(error.to_string()))?;
    let results = runtime.block_on(made).map_err(|error| not_created(error.to_string()))?;
    for result in results {
        match result {
            Ok(_) => tracing::info!(topic = shape.name, partitions = shape.partitions, "kafka topic created"),
            // Another process was faster.
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(not_created(code.to_string())),
        }
    }
    // The other brokers, and this one's own metadata, hear of it a moment later.
    client::rest(Duration::from_millis(100));
    Ok(())
}

/// Says where a topic that was there before lets dead letters go: they would be gone before anybody has looked at them, without a word.
fn warn_of_retention(settings: &Settings, topic: &str, value: impl Fn(&str) -> Option<String>) {
    let [Some(policy), Some(retention_ms), Some(retention_bytes)] =
        ["cleanup.policy", "retention.ms", "retention.bytes"].map(value)
    else {
        return;
    };
    // `compact,delete` lets go of them, too.
    if policy.split(',').any(|one| one.trim() == "delete")
        && [&retention_ms, &retention_bytes].into_iter().any(|bound| bound != "-1")
    {
        tracing::warn!(
            topic,
            cleanup_policy = policy,
            retention_ms,
            retention_bytes,
            "kafka: dead letters vanish from this topic when its retention is over; to keep them: kafka-configs --bootstrap-server {} --alter --entity-type topics --entity-name {topic} --add-config cleanup.policy=compact",
            settings.brokers.join(",")
        );
    }
}

/// How a topic is set.
fn described(
    settings: &Settings,
    topic: &str,
    listener: &Listener,
    most: Duration,
) -> Result<HashMap<String, ConfigEntry>, String> {
    let admin: AdminClient<Listener> =
        client::base(settings).create_with_context(listener.clone()).map_err(|error| client_error(&error))?;
    let options = AdminOptions::new().request_timeout(Some(most));
    let which = [ResourceSpecifier::Topic(topic)];
    let asked = admin.describe_configs(&which, &options);
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|error| error.to_string())?;
    let answers = runtime.block_on(asked).map_err(|error| error.to_string())?;
    let answer = answers.into_iter().next().ok_or_else(|| "no answer".to_owned())?;
    let found = answer.map_err(|code| code.to_string())?;
    Ok(found.entries.into_iter().map(|entry| (entry.name.clone(), entry)).collect())
}
