//! Opens what the configuration names: the data folder, the two queues, the state and the history.
//!
//! The one place, with `config`, where a driver is chosen. Never runs a role.

use std::sync::Arc;

use super::StartError;
use crate::config::Config;
use crate::history::embedded::EmbeddedHistory;
use crate::history::{self, History, NoHistory};
use crate::queue::embedded::EmbeddedQueue;
use crate::queue::{self, Queue};
use crate::state::State;
use crate::state::embedded::EmbeddedState;
use crate::store::Store;
use crate::telemetry::Metrics;

/// What a record has besides the alert: its key, and headers with the names of channels.
const ALERT_ENVELOPE: bytesize::ByteSize = bytesize::ByteSize::kib(64);

/// The stores that the roles work on. A test may put its own around them.
#[derive(Clone)]
pub struct Stores {
    /// From `receive` to `detect`.
    pub reports: Arc<dyn Queue>,
    /// From `detect` to `notify`.
    pub alerts: Arc<dyn Queue>,
    /// What policies remember.
    pub state: Arc<dyn State>,
    /// What was reported.
    pub history: Arc<dyn History>,
}

impl Stores {
    /// Opens them all. Blocks for as long as the recovery after a crash takes (seconds at most).
    pub fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, StartError> {
        let store = Store::open(&config.data_dir, config.queue.embedded.cache.as_u64())?;
        let queue = |name: &str, label, largest: bytesize::ByteSize| {
            let most = usize::try_from(largest.as_u64()).unwrap_or(usize::MAX);
            open_queue(config, &store, name, most, metrics, label)
        };
        let history: Arc<dyn History> = match config.history.kind {
            history::Kind::None => Arc::new(NoHistory),
            history::Kind::Embedded | history::Kind::Elasticsearch => {
                EmbeddedHistory::open(&config.data_dir.join("history"), &config.history, Arc::clone(metrics))?
            }
        };
        Ok(Self {
            reports: queue(&config.queue.reports, "reports", config.http.max_body)?,
            alerts: queue(&config.queue.alerts, "alerts", config.policy.max_alert + ALERT_ENVELOPE)?,
            state: EmbeddedState::open(&store, &config.state)?,
            history,
        })
    }
}

/// Both queues are on the same driver.
fn open_queue(
    config: &Config,
    store: &Store,
    name: &str,
    most: usize,
    metrics: &Arc<Metrics>,
    label: &'static str,
) -> Result<Arc<dyn Queue>, StartError> {
    let (settings, metrics) = (&config.queue, Arc::clone(metrics));
    match settings.kind {
        queue::Kind::Embedded => Ok(EmbeddedQueue::open(store, name, &settings.embedded, most, metrics, label)?),
        #[cfg(feature = "kafka")]
        queue::Kind::Kafka => {
            let opened = queue::kafka::KafkaQueue::open(name, &settings.kafka, most, metrics, label);
            Ok(opened.map_err(|error| StartError::Settings(error.to_string()))?)
        }
        #[cfg(feature = "amqp")]
        queue::Kind::Amqp => {
            let backoff = settings.backoff();
            Ok(queue::amqp::AmqpQueue::open(name, &settings.amqp, backoff, most, metrics, label)?)
        }
        // The configuration's checks have refused it before.
        #[allow(unreachable_patterns, reason = "reached by the drivers that this program was built without")]
        kind => Err(StartError::Settings(format!("queue.kind: {kind:?} is not in this program"))),
    }
}
