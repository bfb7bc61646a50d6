//! Opens what the configuration names: the data folder, the queues, the spool, the state and the history.
//!
//! The one place, with `config`, where a driver is chosen. Never runs a role.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::StartError;
use super::late::{Failure, Late};
use crate::config::{Config, Roles};
use crate::history::embedded::EmbeddedHistory;
use crate::history::{self, History, NoHistory};
use crate::queue::embedded::{Bound, EmbeddedQueue};
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
    /// Opens them all. Blocks for as long as the recovery after a crash takes (seconds at most), and where the queues are on a broker
    /// until that answers.
    pub fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, StartError> {
        Ok(Self::open_for(config, Roles::all(), metrics)?.0)
    }

    /// Opens what these roles need. The bridge does not wait for its broker: what comes before that answers goes into the spool.
    pub(super) fn open_for(
        config: &Config,
        roles: Roles,
        metrics: &Arc<Metrics>,
    ) -> Result<(Self, Bridge), StartError> {
        let store = Store::open(&config.data_dir, config.queue.embedded.cache.as_u64())?;
        let mut bridge = Bridge { spool: open_spool(config, roles, &store, metrics)?, ..Bridge::default() };
        let late = waits_for_nothing(config, roles);
        let mut queue = |name: &str, label, largest: bytesize::ByteSize| {
            let place = Place { name: name.to_owned(), label, largest: bytes(largest), metrics: Arc::clone(metrics) };
            if !late {
                return place.open(&config.queue, &store).map_err(Failure::into_start);
            }
            let (settings, store) = (config.queue.clone(), store.clone());
            let opened = Late::start(name, settings.backoff(), move || place.open(&settings, &store))?;
            bridge.late.push(Arc::clone(&opened));
            Ok(opened as Arc<dyn Queue>)
        };
        let reports = queue(&config.queue.reports, "reports", config.http.max_body)?;
        let alerts = queue(&config.queue.alerts, "alerts", config.policy.max_alert + ALERT_ENVELOPE)?;
        if (roles.receive || roles == Roles::none()) && !config.receive.rekey_from.is_empty() {
            let from = queue(&config.receive.rekey_from, "rekey", config.http.max_body)?;
            bridge.rekey = Some(from);
        }
        let history: Arc<dyn History> = match config.history.kind {
            history::Kind::None => Arc::new(NoHistory),
            history::Kind::Embedded | history::Kind::Elasticsearch => {
                EmbeddedHistory::open(&config.data_dir.join("history"), &config.history, Arc::clone(metrics))?
            }
        };
        Ok((Self { reports, alerts, state: EmbeddedState::open(&store, &config.state)?, history }, bridge))
    }
}

/// What the role `receive` has besides, and what is still being opened.
#[derive(Clone, Default)]
pub(super) struct Bridge {
    /// What the broker did not confirm in time.
    pub(super) spool: Option<Arc<dyn Queue>>,
    /// The topic that is moved into the reports queue.
    pub(super) rekey: Option<Arc<dyn Queue>>,
    /// Queues that are opened while the program runs.
    pub(super) late: Vec<Arc<Late>>,
}

impl Bridge {
    /// Gives a broker that is there the time to say so, or to refuse: a usual start needs no spool.
    pub(super) async fn wait(&self, most: Duration) -> Result<(), StartError> {
        let decided = join_all(self.late.iter().map(|queue| queue.decided()));
        let _ = tokio::time::timeout(most, decided).await;
        self.refused().map_or(Ok(()), Err)
    }

    /// Why a queue will never be open.
    pub(super) fn refused(&self) -> Option<StartError> {
        self.late.iter().find_map(|queue| queue.refused())
    }
}

/// No queue of a broker may have this name, so that it is never taken for one of them.
const SPOOL: &str = "receive:spool";

/// Whether new reports may go into a spool: a queue in the data folder needs none.
pub(super) fn spools(config: &Config) -> bool {
    config.receive.spool && config.queue.kind != queue::Kind::Embedded
}

/// Whether the start must not wait for the broker. Who takes from its queues has nothing to do before it is there.
fn waits_for_nothing(config: &Config, roles: Roles) -> bool {
    roles.receive && !roles.detect && !roles.notify && spools(config)
}

/// The spool, where reports may go into it; and where it was switched off with reports in it: those must not stay there for ever. A
/// process without roles is one that shows dead letters.
fn open_spool(
    config: &Config,
    roles: Roles,
    store: &Store,
    metrics: &Arc<Metrics>,
) -> Result<Option<Arc<dyn Queue>>, StartError> {
    let there = EmbeddedQueue::exists(store, SPOOL);
    if roles.receive && !spools(config) {
        tracing::debug!(left = there, "receive.spool: there is no spool for new reports");
    }
    let wanted = if roles.receive { there || spools(config) } else { there && roles == Roles::none() };
    if !wanted {
        return Ok(None);
    }
    let bound = Bound { bytes: config.receive.spool_max_bytes, setting: "receive.spool_max_bytes" };
    let (settings, most) = (&config.queue.embedded, bytes(config.http.max_body));
    Ok(Some(EmbeddedQueue::open_bounded(store, SPOOL, settings, bound, most, Arc::clone(metrics), "spool")?))
}

fn bytes(size: bytesize::ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

/// One queue to be opened.
struct Place {
    name: String,
    label: &'static str,
    largest: usize,
    metrics: Arc<Metrics>,
}

impl Place {
    /// All queues are on the same driver.
    fn open(&self, settings: &queue::Settings, store: &Store) -> Result<Arc<dyn Queue>, Failure> {
        let Self { name, label, largest: most, metrics } = self;
        let (most, metrics) = (*most, Arc::clone(metrics));
        match settings.kind {
            queue::Kind::Embedded => {
                let opened = EmbeddedQueue::open(store, name, &settings.embedded, most, metrics, label);
                Ok(opened.map_err(|error| Failure::Refused(error.to_string()))?)
            }
            #[cfg(feature = "kafka")]
            queue::Kind::Kafka => {
                let opened = queue::kafka::KafkaQueue::open(name, &settings.kafka, most, metrics, label);
                Ok(opened.map_err(|error| match error {
                    queue::kafka::OpenError::Unreachable { .. } => Failure::Unreachable(error.to_string()),
                    _ => Failure::Refused(error.to_string()),
                })?)
            }
            #[cfg(feature = "amqp")]
            queue::Kind::Amqp => {
                let backoff = settings.backoff();
                let opened =
                    queue::amqp::AmqpQueue::open(name, store.id(), &settings.amqp, backoff, most, metrics, label);
                Ok(opened.map_err(|error| match error {
                    queue::amqp::OpenError::Unreachable(error) => Failure::Unreachable(error.to_string()),
                    queue::amqp::OpenError::Refused(error) => Failure::Refused(error.to_string()),
                })?)
            }
            // The configuration's checks have refused it before.
            #[allow(unreachable_patterns, reason = "reached by the drivers that this program was built without")]
            kind => Err(Failure::Refused(format!("queue.kind: {kind:?} is not in this program"))),
        }
    }
}
