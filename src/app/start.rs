//! Each role from the settings and the stores that it needs.
//!
//! Owns which part gets what. Never decides which roles run, or in which order they start.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::files::Files;
use super::reload::Reload;
use super::stores::{self, Bridge, Stores};
use super::{StartError, errands};
use crate::config::{Config, Roles};
use crate::detect::{self, Detect, Errands};
use crate::health::Health;
use crate::http::{self, Server, admin};
use crate::notify::{self, Notify};
use crate::outbound::Tls;
use crate::perfstats::PerfStats;
use crate::policy::legacy::InForce;
use crate::policy::web::Web;
use crate::policy::wforce::Siblings;
use crate::policy::{self, PolicySet};
use crate::queue::{Backoff, Queue, Unsettled};
use crate::receive;
use crate::state::Tentative;
use crate::telemetry::Metrics;

/// What the parts of several roles share.
pub(super) struct Shared<'a> {
    pub(super) config: &'a Config,
    pub(super) metrics: &'a Arc<Metrics>,
    pub(super) health: &'a Arc<Health>,
}

fn backoff(config: &Config) -> Backoff {
    Backoff { first: config.queue.retry_first, most: config.queue.retry_most }
}

pub(super) fn notify(shared: &Shared<'_>, stores: &Stores) -> Result<Notify, StartError> {
    let Shared { config, metrics, health } = *shared;
    let limit = Unsettled { messages: config.notify.in_flight, bytes: usize::MAX };
    let parts = notify::Parts {
        settings: config.notify.clone(),
        tls: Tls::new(&config.outbound).map_err(StartError::Settings)?,
        alerts: stores.alerts.subscribe(limit, backoff(config))?,
        state: Arc::clone(&stores.state),
        metrics: Arc::clone(metrics),
        health: Arc::clone(health),
    };
    Notify::start(parts).map_err(|errors| StartError::Settings(errors.join("\n")))
}

pub(super) fn detect(
    shared: &Shared<'_>,
    stores: &Stores,
    policies: PolicySet,
    perf: &Arc<PerfStats>,
    files: &Files,
    operator: Arc<dyn policy::Operator>,
) -> Result<Detect, StartError> {
    let Shared { config, metrics, health } = *shared;
    let limit = Unsettled {
        messages: config.detect.unsettled,
        bytes: usize::try_from(config.detect.unsettled_bytes.as_u64()).unwrap_or(usize::MAX),
    };
    for name in &config.policy.custom_stats {
        metrics.custom_stats.with_label_values(&[name]);
    }
    let siblings = Siblings::new(&config.policy.wforce, config.policy.http.timeout);
    let tls = Tls::new(&config.outbound).map_err(StartError::Settings)?;
    let services = policy::Services {
        history: Arc::clone(&stores.history),
        state: Arc::clone(&stores.state),
        tentative: Arc::new(Tentative::default()),
        geoip: Arc::clone(&files.geoip),
        web: Arc::new(Web::new(&config.policy.http, tls, Arc::clone(metrics), Handle::current())),
        wforce: Arc::new(siblings.map_err(StartError::Settings)?),
        metrics: Arc::clone(metrics),
        custom_webhooks: config.notify.custom_webhooks.iter().map(|hook| hook.name.clone()).collect(),
        operator: Some(operator),
        socket_timeout: config.policy.socket_timeout,
        max_answer: config.policy.http.max_answer,
        custom_stats: config.policy.custom_stats.clone().into(),
        state_max_value: config.state.max_value,
        max_alert: config.policy.max_alert,
    };
    let parts = detect::Parts {
        settings: config.detect.clone(),
        policy: config.policy.clone(),
        limits: config.receive.limits(),
        max_skew: config.receive.max_skew,
        backoff: backoff(config),
        policies,
        reports: stores.reports.subscribe(limit, backoff(config))?,
        alerts: stores.alerts.publisher(),
        services,
        devices: Arc::clone(&files.devices),
        health: Arc::clone(health),
        perf: Arc::clone(perf),
        hung_list: config.data_dir.join("hung.json"),
    };
    Ok(Detect::start(parts)?)
}

/// What of the settings that a configuration of the old program may have is fixed for as long as the program runs.
pub(super) fn in_force(config: &Config) -> InForce {
    InForce {
        file: config.old.clone(),
        overruled: config.overruled.clone(),
        webhooks: config.notify.custom_webhooks.iter().map(|hook| hook.name.clone()).collect(),
        geoip: config.geoip.files.clone(),
    }
}

/// The queues by the names that operators know them by.
pub(super) fn named(stores: &Stores, bridge: &Bridge) -> Vec<(&'static str, Arc<dyn Queue>)> {
    let always = [("reports", Some(&stores.reports)), ("alerts", Some(&stores.alerts))];
    let some = [("spool", bridge.spool.as_ref()), ("rekey", bridge.rekey.as_ref())];
    always.into_iter().chain(some).filter_map(|(name, queue)| Some((name, Arc::clone(queue?)))).collect()
}

pub(super) async fn receive(
    shared: &Shared<'_>,
    stores: &Stores,
    bridge: &Bridge,
    upkeep: &mut Vec<JoinHandle<()>>,
    stop: &CancellationToken,
) -> Result<Arc<receive::Receiver>, StartError> {
    let Shared { config, metrics, health } = *shared;
    let (settings, retry_first) = (&config.receive, config.queue.retry_first);
    let mut publisher = stores.reports.publisher();
    if let Some(from) = &bridge.rekey {
        let (from, target) = (Arc::clone(from), Arc::clone(&publisher));
        let (metrics, health) = (Arc::clone(metrics), Arc::clone(health));
        let parts = receive::rekey::Parts { settings, retry_first, from, target, metrics, health };
        upkeep.push(receive::rekey::start(parts, stop.clone()));
    }
    if let Some(store) = &bridge.spool {
        let parts = receive::spool::Parts {
            settings,
            retry_first,
            target: publisher,
            store: Arc::clone(store),
            takes: stores::spools(config),
            metrics: Arc::clone(metrics),
            health: Arc::clone(health),
        };
        let (spool, task) = receive::spool::Spool::start(parts, stop.clone()).await?;
        upkeep.push(task);
        publisher = spool;
    }
    Ok(Arc::new(receive::Receiver::new(settings, publisher, Arc::clone(metrics), Arc::clone(health))))
}

/// What requests of others may set off here.
pub(super) struct WaysIn {
    pub(super) receiver: Option<Arc<receive::Receiver>>,
    pub(super) errands: Option<Errands>,
}

pub(super) async fn http(
    shared: &Shared<'_>,
    roles: Roles,
    ways_in: WaysIn,
    stores: &Stores,
    bridge: &Bridge,
    perf: Arc<PerfStats>,
    reload: Arc<Reload>,
) -> Result<Server, StartError> {
    let Shared { config, metrics, health } = *shared;
    let operators = admin::Services {
        queues: named(stores, bridge),
        history: Arc::clone(&stores.history),
        metrics: Arc::clone(metrics),
        health: Arc::clone(health),
        roles: roles.names().into_iter().map(str::to_owned).collect(),
        reload: Arc::new(move || {
            let reload = Arc::clone(&reload);
            Box::pin(async move { reload.all().await })
        }),
    };
    let limits = config.receive.limits();
    let endpoints =
        ways_in.errands.map(|errands| http::endpoints::Endpoints { run: errands::endpoints(errands), limits });
    let router = http::router(&config.http, ways_in.receiver.map(receive::router), endpoints, operators, perf);
    Ok(http::start(&config.http, router, Arc::clone(metrics)).await?)
}
