//! A policy machine over stores in memory, for tests and benchmarks.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::future::Future;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytesize::ByteSize;
use tokio::runtime::{Handle, Runtime};
use trackalert::geoip::GeoIp;
use trackalert::outbound::Tls;
use trackalert::policy::web::{self, Web};
use trackalert::policy::wforce;
use trackalert::policy::{Effects, Failure, LoadError, PolicySet, Services, Settings, Vm};
use trackalert::state::{Batch, State, Tentative};
use trackalert::telemetry::Metrics;

use super::stores::{CannedHistory, MemoryState, report};

/// A machine and what it stands on.
pub(crate) struct Bench {
    pub(crate) vm: Vm,
    pub(crate) state: Arc<MemoryState>,
    pub(crate) history: Arc<CannedHistory>,
    pub(crate) tentative: Arc<Tentative>,
    pub(crate) metrics: Arc<Metrics>,
}

pub(crate) fn settings() -> Settings {
    Settings {
        path: Vec::new(),
        legacy_config: "".into(),
        custom_stats: Vec::new(),
        time_limit: Duration::from_secs(20),
        cpu_limit: Duration::from_millis(300),
        memory: ByteSize::mib(64),
        vm_age: Duration::from_secs(3600),
        socket_timeout: Duration::from_secs(5),
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
        check_files_every: Duration::from_secs(60),
        reload_timeout: Duration::from_secs(60),
        http: web::Settings { timeout: Duration::from_secs(10), max_answer: ByteSize::kib(256), in_flight: 2000 },
        wforce: wforce::Settings::default(),
    }
}

/// A folder of policies with these files.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn with(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            folder.write(name, text);
        }
        folder
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn load(&self) -> Result<PolicySet, LoadError> {
        PolicySet::load(&[self.path().into()])
    }

    pub(crate) fn bench(&self) -> Bench {
        Bench::of(&self.load().unwrap_or_else(|error| panic!("{error}")), &settings())
    }

    pub(crate) fn problem(&self) -> String {
        let error = self.load().unwrap_err();
        assert_eq!(error.problems.len(), 1, "{error}");
        error.problems[0].replace(&format!("{}/", self.path().display()), "")
    }
}

impl Bench {
    pub(crate) fn new<'a>(policies: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self::with(policies, &settings())
    }

    pub(crate) fn with<'a>(policies: impl IntoIterator<Item = (&'a str, &'a str)>, settings: &Settings) -> Self {
        Self::of(&PolicySet::from_sources(policies), settings)
    }

    /// The same with policies from a folder, say.
    pub(crate) fn of(set: &PolicySet, settings: &Settings) -> Self {
        Self::over(set, settings, Tls::default())
    }

    pub(crate) fn over(set: &PolicySet, settings: &Settings, tls: Tls) -> Self {
        Self::with_geoip(set, settings, tls, GeoIp::default())
    }

    /// The same with GeoIP files.
    pub(crate) fn with_geoip(set: &PolicySet, settings: &Settings, tls: Tls, geoip: GeoIp) -> Self {
        let (state, history, tentative) = (Arc::default(), Arc::default(), Arc::default());
        let metrics: Arc<Metrics> = Arc::default();
        let services = Services {
            history: Arc::clone(&history) as _,
            state: Arc::clone(&state) as _,
            tentative: Arc::clone(&tentative),
            geoip: Arc::new(geoip),
            web: Arc::new(Web::new(&settings.http, tls, Arc::clone(&metrics), requests())),
            wforce: Arc::new(wforce::Siblings::new(&settings.wforce, settings.http.timeout).unwrap()),
            metrics: Arc::clone(&metrics),
            operator: None,
            socket_timeout: settings.socket_timeout,
            max_answer: settings.http.max_answer,
            custom_webhooks: Arc::from(["hook".to_owned()]),
            custom_stats: Arc::from(["seen".to_owned()]),
            state_max_value: ByteSize::kib(16),
            max_alert: ByteSize::kib(256),
        };
        let vm = Vm::new(set, &services, settings).unwrap_or_else(|error| panic!("{error}"));
        Self { vm, state, history, tentative, metrics }
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

/// The runtime on which requests run.
pub(crate) fn requests() -> Handle {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
    RUNTIME.handle().clone()
}

/// Runs on a runtime like a worker's, with a deadline.
pub(crate) fn on_worker<R>(future: impl Future<Output = R>) -> R {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async { tokio::time::timeout(Duration::from_secs(60), future).await.expect("a minute") })
}
