//! The composition root: builds each part from the configuration, starts the roles in the order in which nothing is lost, and drains
//! them in the reverse order.
//!
//! Owns the order. Holds no logic of a role, and nothing is global: what a part needs is handed to it here.

mod errands;
mod files;
mod late;
mod operator;
mod reload;
mod signals;
mod start;
mod stores;
mod upkeep;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use files::Files;
use operator::Operator;
use reload::Reload;
pub use signals::Signals;
use signals::Wish;
use stores::Bridge;
pub use stores::Stores;

use crate::config::{Config, Roles};
use crate::console;
use crate::detect::{Detect, DetectError};
use crate::device::RegexesError;
use crate::geoip::GeoIpError;
use crate::health::Health;
use crate::history::HistoryError;
use crate::http::{HttpError, Server};
use crate::notify::{Notify, NotifyError};
use crate::perfstats::PerfStats;
use crate::policy::networks::Networks;
use crate::policy::{self, LoadError, PolicySet};
use crate::queue::QueueError;
use crate::schedule;
use crate::state::StateError;
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
        let (stores, bridge) = Self::open(&config, roles, &metrics).await?;
        Self::assemble_all(config, roles, stores, bridge, metrics).await
    }

    async fn open(config: &Config, roles: Roles, metrics: &Arc<Metrics>) -> Result<(Stores, Bridge), StartError> {
        let opening = {
            let (config, metrics) = (config.clone(), Arc::clone(metrics));
            tokio::task::spawn_blocking(move || Stores::open_for(&config, roles, &metrics))
        };
        let (stores, bridge) = opening.await.map_err(|error| StartError::Settings(error.to_string()))??;
        bridge.wait(config.receive.spool_after).await?;
        Ok((stores, bridge))
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
        let mut upkeep = vec![upkeep::queues(start::named(&stores, &bridge), Arc::clone(&metrics), stop.clone())];

        let shared = start::Shared { config: &config, metrics: &metrics, health: &health };
        let notify = if roles.notify { Some(start::notify(&shared, &stores)?) } else { None };
        let files = if roles.detect { Some(Files::open(&config, &metrics).await?) } else { None };
        let networks: Arc<ArcSwap<Networks>> = Arc::default();
        let (scheduled, due) = watch::channel(Arc::default());
        // Before the workers that it reloads: a line of the console in them asks for it.
        let reload = Arc::new(Reload {
            policy: config.policy.clone(),
            one: tokio::sync::Mutex::default(),
            in_force: Arc::new(start::in_force(&config)),
            detect: tokio::sync::Mutex::default(),
            scheduled,
            files,
            networks: Arc::clone(&networks),
            metrics: Arc::clone(&metrics),
        });
        let errands = if let Some(files) = &reload.files {
            let tested = tokio::task::spawn_blocking(policy::watchdog::self_test).await;
            tested.map_err(|error| error.to_string()).and_then(|result| result).map_err(StartError::Settings)?;
            upkeep.extend(files.watch(&config, &stop));
            upkeep.push(upkeep::sweep(&stores, &config.state, Arc::clone(&metrics), stop.clone()));
            let policies = PolicySet::resolve(&config.policy)?;
            policies.against(&reload.in_force)?;
            networks.store(Arc::clone(policies.networks()));
            let (every, counters) = (config.policy.check_files_every, Arc::clone(&metrics));
            upkeep.push(tokio::spawn(policy::networks::watch(Arc::clone(&networks), every, counters, stop.clone())));
            let operator = Operator::new(&config, &metrics, &perf, &files.geoip, &shutdown, &reload);
            let detect = start::detect(&shared, &stores, policies, &perf, files, Arc::new(operator))?;
            let errands = detect.errands();
            reload.begin(detect).await;
            Some(errands)
        } else {
            None
        };
        if let Some(errands) = errands.clone().filter(|_| roles.schedule) {
            let run = errands::background(errands);
            upkeep.push(schedule::runner::start(due, run, Arc::clone(&metrics), stop.clone()));
        }
        if roles.schedule {
            upkeep.push(schedule::start(&config.schedule, Arc::clone(&stores.history), stop.clone()));
        }
        let receiver = if roles.receive {
            Some(start::receive(&shared, &stores, &bridge, &mut upkeep, &stop).await?)
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
        let ways_in = start::WaysIn { receiver, errands };
        let server = start::http(&shared, roles, ways_in, &stores, &bridge, perf, Arc::clone(&reload)).await?;
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

    /// Takes nothing more from the queues, finishes what is in flight within `detect.drain_timeout`, stores every position: some seconds
    /// more where a broker does not answer.
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
        // One that asks a broker that is away, or looks a name up, must not hold up what follows.
        if tokio::time::timeout(left(LEAST), futures_util::future::join_all(self.upkeep)).await.is_err() {
            tracing::warn!("what is done besides the reports did not end in time; it ends with the process");
        }
        self.stores.history.close().await;
        if let Err(error) = self.stores.state.sync().await {
            tracing::error!(%error, "the state could not be synced at the end; a power cut now may repeat a little");
        }
        ended
    }

    /// Starts, and runs until SIGTERM or SIGINT (then drains; a second one ends at once, and what was in flight is handed out again at
    /// the next start), or until a role fails. SIGHUP reloads the policies, the files that `detect` looks things up in, and the
    /// certificates.
    pub async fn run(config: Config, roles: Roles, mut signals: Signals) -> Result<(), StartError> {
        let metrics = Arc::new(Metrics::new());
        let (stores, bridge) = tokio::select! {
            opened = Self::open(&config, roles, &metrics) => opened?,
            // It waits for a broker, or reads what a crash has left: nothing was taken yet that would have to be finished.
            () = signals.end() => return Ok(()),
        };
        let drain_timeout = config.detect.drain_timeout;
        // By itself: a file that does not come must not make it deaf to a signal.
        let mut assembling = tokio::spawn(Self::assemble_all(config, roles, stores, bridge, metrics));
        let failed = |error: tokio::task::JoinError| StartError::Settings(error.to_string());
        tokio::select! {
            assembled = &mut assembling => return assembled.map_err(failed)??.run_until_signal(signals).await,
            () = signals.end() => tracing::info!(at_most = ?drain_timeout, "asked to end while it starts: it ends when the start is over, or gives that up"),
        }
        tokio::select! {
            assembled = &mut assembling => assembled.map_err(failed)??.drain_until_signal(signals).await,
            () = signals.end() => Ok(()),
            () = tokio::time::sleep(drain_timeout) => {
                tracing::warn!("the start did not come to its end, and is given up: a file does not come (policies, GeoIP, certificates)");
                Ok(())
            }
        }
    }

    /// Runs what has started, as [`App::run`] does.
    pub async fn run_until_signal(self, mut signals: Signals) -> Result<(), StartError> {
        loop {
            let wish = tokio::select! {
                wish = signals.next() => wish,
                () = self.shutdown.cancelled() => Wish::End,
                () = self.role_ended() => Wish::End,
            };
            match wish {
                Wish::End => break,
                Wish::Reload => self.read_again(),
            }
        }
        self.drain_until_signal(signals).await
    }

    /// By itself: a file that does not come must not make the program deaf to the next signal.
    fn read_again(&self) {
        let reload = Arc::clone(&self.reload);
        tokio::spawn(async move {
            match reload.all().await {
                Ok(done) => tracing::info!(done, "reloaded"),
                Err(error) => tracing::error!(error, "not reloaded"),
            }
        });
        if let Err(error) = self.server.reload_tls() {
            tracing::error!(%error, "the certificates were not reloaded; the old ones stay in use");
        }
    }

    async fn drain_until_signal(self, mut signals: Signals) -> Result<(), StartError> {
        tracing::info!("draining");
        tokio::select! {
            ended = self.drain() => {
                tracing::info!("drained");
                ended
            }
            () = signals.end() => Ok(()),
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
