//! A policy machine over stores in memory, for tests and benchmarks.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use trackalert::geoip::GeoIp;
use trackalert::policy::{Effects, Failure, PolicySet, Services, Settings, Vm};
use trackalert::state::{Batch, State, Tentative};
use trackalert::telemetry::Metrics;

use super::stores::{CannedHistory, MemoryState, report};

/// A machine and what it stands on.
pub(crate) struct Bench {
    pub(crate) vm: Vm,
    pub(crate) state: Arc<MemoryState>,
    pub(crate) history: Arc<CannedHistory>,
    pub(crate) tentative: Arc<Tentative>,
}

pub(crate) fn settings() -> Settings {
    Settings {
        path: Vec::new(),
        time_limit: Duration::from_secs(20),
        cpu_limit: Duration::from_millis(300),
        memory: ByteSize::mib(64),
        max_alert: ByteSize::kib(256),
        in_flight: 2000,
        max_attempts: 3,
        retry_first: Duration::from_millis(1),
        retry_most: Duration::from_millis(10),
        breaker: 0.5,
        breaker_calls: 200,
        breaker_pause: Duration::from_secs(1),
        stuck_after: Duration::from_millis(200),
        abort_after: Duration::from_secs(60),
    }
}

impl Bench {
    pub(crate) fn new<'a>(policies: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self::with(policies, &settings())
    }

    pub(crate) fn with<'a>(policies: impl IntoIterator<Item = (&'a str, &'a str)>, settings: &Settings) -> Self {
        let (state, history, tentative) = (Arc::default(), Arc::default(), Arc::default());
        let services = Services {
            history: Arc::clone(&history) as _,
            state: Arc::clone(&state) as _,
            tentative: Arc::clone(&tentative),
            geoip: Arc::new(GeoIp::default()),
            metrics: Arc::new(Metrics::new()),
            state_max_value: ByteSize::kib(16),
            max_alert: ByteSize::kib(256),
        };
        let set = PolicySet::from_sources(policies);
        let vm = Vm::new(&set, &services, settings).unwrap_or_else(|error| panic!("{error}"));
        Self { vm, state, history, tentative }
    }

    /// A machine with one policy `p` whose handler has this body.
    pub(crate) fn handler(body: &str) -> Self {
        Self::new([("p", format!("function report(lt)\n{body}\nend").as_str())])
    }

    /// Calls policy 0 for `ann` at this second.
    pub(crate) async fn at(&self, second: f64) -> Result<Effects, Failure> {
        self.vm.run(0, &report("ann", second)).await
    }

    /// The same, and lets its writes take effect.
    pub(crate) async fn applied(&self, second: f64) -> Effects {
        let mut effects = self.at(second).await.unwrap_or_else(|failure| panic!("{failure}"));
        let batch =
            Batch { writes: effects.writes.clone(), handled: None, claims: std::mem::take(&mut effects.claims) };
        self.state.apply(batch).await.unwrap();
        effects
    }
}

/// Runs on a runtime like a worker's, with a deadline.
pub(crate) fn on_worker<R>(future: impl Future<Output = R>) -> R {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async { tokio::time::timeout(Duration::from_secs(60), future).await.expect("a minute") })
}
