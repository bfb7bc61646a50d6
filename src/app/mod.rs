//! The composition root: builds each part from the configuration, starts the roles in the order in which nothing is lost, and drains
//! them in the reverse order.
//!
//! Owns the order and the signals. Holds no logic of a role, and nothing is global: what a part needs is handed to it here.

mod errands;
mod files;
mod late;
mod operator;
mod stores;
mod upkeep;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use files::Files;
use operator::Operator;
use stores::Bridge;
pub use stores::Stores;

use crate::config::{Config, Roles};
use crate::console;
use crate::detect::{self, Detect, DetectError, Errands};
use crate::device::RegexesError;
use crate::geoip::GeoIpError;
use crate::health::Health;
use crate::history::HistoryError;
use crate::http::{self, HttpError, Server, admin};
use crate::notify::{self, Notify, NotifyError};
use crate::outbound::Tls;
use crate::perfstats::PerfStats;
use crate::policy::networks::Networks;
use crate::policy::web::Web;
use crate::policy::wforce::Siblings;
use crate::policy::{self, LoadError, PolicySet};
use crate::queue::{Backoff, Queue, QueueError, Unsettled};
use crate::receive;
use crate::schedule;
use crate::schedule::cron::Scheduled;
use crate::state::{StateError, Tentative};
use crate::store::StoreError;
use crate::telemetry::Metrics;

/// Why the program did not start, or ended by itself. Each says what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each wraps the error of the part it names")]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error(transparent)]
    GeoIp(#[from] GeoIpError),
    #[error(transparent)]
    Regexes(#[from] RegexesError),
    #[error(transparent)]
    Policy(#[from] LoadError),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error(transparent)]
    Detect(#[from] DetectError),
    #[error(transparent)]
    Notify(#[from] NotifyError),
    #[error(transparent)]
    Console(#[from] console::ConsoleError),
    #[error("{0}")]
    Settings(String),
    #[error("the handlers of signals could not be set: {0}")]
    Signals(std::io::Error),
}

/// What the later steps of a drain get where the earlier ones have used up its time.
const LEAST: Duration = Duration::from_secs(2);

/// What a reload needs, shared with the operators' route.
struct Reload {
    policy: policy::Settings,
    detect: tokio::sync::Mutex<Option<Detect>>,
    /// The background functions of the policies that run.
    scheduled: watch::Sender<Arc<[Scheduled]>>,
    files: Option<Files>,
    /// Of the policies that are in use.
    networks: Arc<ArcSwap<Networks>>,
    metrics: Arc<Metrics>,
}

impl Reload {
    /// Policies and files, each by itself: what is wrong with one holds up no other. The text says what became of each, a line each;
    /// it is an error where anything was refused.
    async fn all(&self) -> Result<String, String> {
        let files = async {
            match &self.files {
                Some(files) => files.reload().await,
                None => Vec::new(),
            }
        };
        let (policies, files) = tokio::join!(self.policies(), files);
        let well = policies.is_ok() && files.iter().all(|file| file.outcome.is_ok());
        let mut lines = vec![policies.unwrap_or_else(|error| error)];
        lines.extend(files.iter().map(ToString::to_string));
        if well { Ok(lines.join("\n")) } else { Err(lines.join("\n")) }
    }

    /// Loads and checks the policies beside the running ones, then exchanges them between two reports. An error leaves the old ones.
    async fn policies(&self) -> Result<String, String> {
        let settings = self.policy.clone();
        let loaded = tokio::task::spawn_blocking(move || PolicySet::resolve(&settings)).await;
        let outcome = match loaded.map_err(|error| error.to_string()).and_then(|set| set.map_err(|e| e.to_string())) {
            Ok(set) => {
                let names = set.names().collect::<Vec<_>>().join(", ");
                let scheduled = Arc::clone(set.scheduled());
                if let Some(detect) = &*self.detect.lock().await {
                    self.networks.store(Arc::clone(set.networks()));
                    detect.load(set).await;
                    self.scheduled.send_replace(scheduled);
                }
                Ok(format!("policies in use: {names}"))
            }
            Err(error) => Err(format!("{error}; the policies that run stay in use")),
        };
        let label = if outcome.is_ok() { "done" } else { "refused" };
        self.metrics.reloads.with_label_values(&[label]).inc();
        outcome
    }
}

/// The running program.
pub struct App {
    server: Server,
    reload: Arc<Reload>,
    notify: Option<Notify>,
    upkeep: Vec<JoinHandle<()>>,
    stop: CancellationToken,
    /// Cancelled by an operator at the console.
    shutdown: CancellationToken,
    stores: Stores,
    bridge: Bridge,
    health: Arc<Health>,
    drain_timeout: Duration,
}

impl App {
    /// Opens the stores and starts the roles. Listens last, so that nothing is accepted before it can be kept.
    pub async fn start(config: Config, roles: Roles) -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::new());
        let opening = {
            let (config, metrics) = (config.clone(), Arc::clone(&metrics));
            tokio::task::spawn_blocking(move || Stores::open_for(&config, roles, &metrics))
        };
        let (stores, bridge) = opening.await.map_err(|error| StartError::Settings(error.to_string()))??;
        bridge.wait(config.receive.spool_after).await?;
        Self::assemble_all(config, roles, stores, bridge, metrics).await
    }

    /// Starts the roles on stores that are open.
    pub async fn assemble(
        config: Config,
        roles: Roles,
        stores: Stores,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StartError> {
        Self::assemble_all(config, roles, stores, Bridge::default(), metrics).await
    }

    async fn assemble_all(
        config: Config,
        roles: Roles,
        stores: Stores,
        bridge: Bridge,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let health = Arc::new(Health::default());
        let perf = Arc::new(PerfStats::default());
        let (stop, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let mut upkeep = vec![upkeep::queues(named(&stores, &bridge), Arc::clone(&metrics), stop.clone())];

        let shared = Shared { config: &config, metrics: &metrics, health: &health };
        let notify = if roles.notify { Some(start_notify(&config, &stores, &metrics, &health)?) } else { None };
        let files = if roles.detect { Some(Files::open(&config, &metrics).await?) } else { None };
        let networks: Arc<ArcSwap<Networks>> = Arc::default();
        let detect = if let Some(files) = &files {
            let tested = tokio::task::spawn_blocking(policy::watchdog::self_test).await;
            tested.map_err(|error| error.to_string()).and_then(|result| result).map_err(StartError::Settings)?;
            upkeep.extend(files.watch(&config, &stop));
            upkeep.push(upkeep::sweep(&stores, &config.state, Arc::clone(&metrics), stop.clone()));
            let policies = PolicySet::resolve(&config.policy)?;
            networks.store(Arc::clone(policies.networks()));
            let (every, counters) = (config.policy.check_files_every, Arc::clone(&metrics));
            upkeep.push(tokio::spawn(policy::networks::watch(Arc::clone(&networks), every, counters, stop.clone())));
            let operator = Operator::new(&config, &metrics, &perf, &files.geoip, &shutdown);
            Some(start_detect(&shared, &stores, policies, &perf, files, Arc::new(operator))?)
        } else {
            None
        };
        let errands = detect.as_ref().map(Detect::errands);
        let (scheduled, due) = watch::channel(detect.as_ref().map(Detect::scheduled).unwrap_or_default());
        if let Some(errands) = errands.clone().filter(|_| roles.schedule) {
            let run = errands::background(errands);
            upkeep.push(schedule::runner::start(due, run, Arc::clone(&metrics), stop.clone()));
        }
        if roles.schedule {
            upkeep.push(schedule::start(&config.schedule, Arc::clone(&stores.history), stop.clone()));
        }
        let reload = Arc::new(Reload {
            policy: config.policy.clone(),
            detect: tokio::sync::Mutex::new(detect),
            scheduled,
            files,
            networks,
            metrics: Arc::clone(&metrics),
        });
        let receiver = if roles.receive {
            Some(start_receive(&shared, &stores, &bridge, &mut upkeep, &stop).await?)
        } else {
            None
        };
        if let Some(errands) = errands.clone() {
            let console = console::start(&config.console, errands::lines(errands), stop.clone()).await?;
            if let Some(console) = console {
                tracing::info!(address = %console.address, "the console listens");
                upkeep.push(console.task);
            }
        }
        let ways_in = WaysIn { receiver, errands };
        let server = start_http(&shared, roles, ways_in, &stores, &bridge, perf, Arc::clone(&reload)).await?;
        health.set_started();
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            %roles,
            listen = ?server.addresses(),
            data_dir = %config.data_dir.display(),
            "trackalert runs"
        );
        let drain_timeout = config.detect.drain_timeout;
        Ok(Self { server, reload, notify, upkeep, stop, shutdown, stores, bridge, health, drain_timeout })
    }

    /// The first address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Exchanges the policies, and reads the files again; gives what to tell a person in either case.
    pub async fn reload(&self) -> Result<String, String> {
        self.reload.all().await
    }

    /// Takes nothing more from the queues, finishes what is in flight within `detect.drain_timeout` over all, stores every position.
    /// Requests are answered until then, readyz with "no": a sender that tries once loses nothing to a restart, because what it sends
    /// is on disk. An error is the one for which a role had ended before.
    pub async fn drain(self) -> Result<(), StartError> {
        self.health.set_draining();
        let deadline = Instant::now() + self.drain_timeout;
        let left = |least: Duration| deadline.saturating_duration_since(Instant::now()).max(least);
        let mut ended = self.bridge.refused().map_or(Ok(()), Err);
        if let Some(detect) = self.reload.detect.lock().await.take() {
            ended = ended.and(detect.drain().await.map_err(StartError::from));
        }
        // After detect: the last alerts that it raised go out, too.
        if let Some(notify) = self.notify
            && let Some(error) = notify.drain(left(LEAST)).await
        {
            ended = ended.and(Err(error.into()));
        }
        self.server.drain(left(LEAST)).await;
        self.stop.cancel();
        for task in self.upkeep {
            let _ = task.await;
        }
        self.stores.history.close().await;
        if let Err(error) = self.stores.state.sync().await {
            tracing::error!(%error, "the state could not be synced at the end; a power cut now may repeat a little");
        }
        ended
    }

    /// Runs until SIGTERM or SIGINT (then drains; a second one ends at once, and what was in flight is handed out again at the next
    /// start), or until a role fails. SIGHUP reloads the policies, the
    /// files that `detect` looks things up in, and the certificates.
    pub async fn run_until_signal(self) -> Result<(), StartError> {
        let listen = |kind| signal(kind).map_err(StartError::Signals);
        let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        let mut hup = listen(SignalKind::hangup())?;
        loop {
            tokio::select! {
                _ = term.recv() => break,
                _ = int.recv() => break,
                _ = hup.recv() => {
                    match self.reload().await {
                        Ok(done) => tracing::info!(done, "reloaded"),
                        Err(error) => tracing::error!(error, "not reloaded"),
                    }
                    if let Err(error) = self.server.reload_tls() {
                        tracing::error!(%error, "the certificates were not reloaded; the old ones stay in use");
                    }
                }
                () = self.shutdown.cancelled() => break,
                () = self.role_ended() => break,
            }
        }
        tracing::info!("draining");
        tokio::select! {
            ended = self.drain() => {
                tracing::info!("drained");
                ended
            }
            _ = term.recv() => Ok(()),
            _ = int.recv() => Ok(()),
        }
    }

    /// Resolves when a role has ended by itself, or never can begin.
    async fn role_ended(&self) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            let detect = self.reload.detect.lock().await.as_ref().is_some_and(Detect::ended);
            if self.bridge.refused().is_some() || detect || self.notify.as_ref().is_some_and(Notify::ended) {
                return;
            }
        }
    }
}

fn backoff(config: &Config) -> Backoff {
    Backoff { first: config.queue.retry_first, most: config.queue.retry_most }
}

fn start_notify(
    config: &Config,
    stores: &Stores,
    metrics: &Arc<Metrics>,
    health: &Arc<Health>,
) -> Result<Notify, StartError> {
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

fn start_detect(
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
        web: Arc::new(Web::new(&config.policy.http, tls, Arc::clone(metrics))),
        wforce: Arc::new(siblings.map_err(StartError::Settings)?),
        metrics: Arc::clone(metrics),
        custom_webhooks: config.notify.custom_webhooks.iter().map(|hook| hook.name.clone()).collect(),
        operator: Some(operator),
        socket_timeout: config.policy.socket_timeout,
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

/// What the parts of several roles share.
struct Shared<'a> {
    config: &'a Config,
    metrics: &'a Arc<Metrics>,
    health: &'a Arc<Health>,
}

/// The queues by the names that operators know them by.
fn named(stores: &Stores, bridge: &Bridge) -> Vec<(&'static str, Arc<dyn Queue>)> {
    let always = [("reports", Some(&stores.reports)), ("alerts", Some(&stores.alerts))];
    let some = [("spool", bridge.spool.as_ref()), ("rekey", bridge.rekey.as_ref())];
    always.into_iter().chain(some).filter_map(|(name, queue)| Some((name, Arc::clone(queue?)))).collect()
}

async fn start_receive(
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
struct WaysIn {
    receiver: Option<Arc<receive::Receiver>>,
    errands: Option<Errands>,
}

async fn start_http(
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
