//! One shipped policy in the real virtual machine, over a state and a history in memory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use tokio::runtime::Handle;
use trackalert::alert::Alert;
use trackalert::geoip::GeoIp;
use trackalert::history::History;
use trackalert::history::embedded::EmbeddedHistory;
use trackalert::outbound::Tls;
use trackalert::policy::web::{self, Web};
use trackalert::policy::wforce;
use trackalert::policy::{Effects, PolicySet, Services, Settings, Vm};
use trackalert::report::LoginReport;
use trackalert::state::{Batch, State};
use trackalert::telemetry::Metrics;

use crate::memory_history::MemoryHistory;
use crate::memory_state::MemoryState;

pub(crate) struct Bench {
    vm: Vm,
    policy: usize,
    state: Arc<MemoryState>,
    /// What it asks where it was made by [`Bench::new`].
    pub(crate) history: Arc<MemoryHistory>,
    store: Arc<dyn History>,
}

fn settings() -> Settings {
    Settings {
        path: Vec::new(),
        legacy_config: "".into(),
        custom_stats: Vec::new(),
        time_limit: Duration::from_secs(30),
        cpu_limit: Duration::from_secs(5),
        memory: ByteSize::mib(64),
        vm_age: Duration::from_secs(3600),
        socket_timeout: Duration::from_secs(5),
        max_alert: ByteSize::kib(256),
        in_flight: 100,
        max_attempts: 1,
        retry_first: Duration::from_millis(1),
        retry_most: Duration::from_millis(1),
        breaker: 1.0,
        breaker_calls: 1,
        breaker_pause: Duration::from_secs(1),
        stuck_after: Duration::from_secs(30),
        abort_after: Duration::from_secs(60),
        check_files_every: Duration::from_secs(60),
        reload_timeout: Duration::from_secs(60),
        http: web::Settings { timeout: Duration::from_secs(10), max_answer: ByteSize::kib(256), in_flight: 2000 },
        wforce: wforce::Settings::default(),
    }
}

impl Bench {
    /// Loads all that is shipped and runs one of it.
    pub(crate) async fn new(policy: &str) -> Self {
        let history: Arc<MemoryHistory> = Arc::default();
        Self::over(policy, Arc::clone(&history) as _, history)
    }

    /// The same over the embedded history.
    pub(crate) async fn embedded(policy: &str, folder: &Path) -> Self {
        let settings = serde_json::json!({
            "kind": "embedded", "retention_days": 36_500, "commit_every": "2ms", "commit_at": 1, "max_hits": 10_000,
            "max_buckets": 65_536, "writer_memory": "64 MiB", "search_timeout": "10s",
        });
        let settings = serde_json::from_value(settings).unwrap();
        let store = EmbeddedHistory::open(folder, &settings, Arc::new(Metrics::new())).unwrap();
        Self::over(policy, store, Arc::default())
    }

    fn over(policy: &str, store: Arc<dyn History>, history: Arc<MemoryHistory>) -> Self {
        let state: Arc<MemoryState> = Arc::default();
        let services = Services {
            history: Arc::clone(&store),
            state: Arc::clone(&state) as _,
            tentative: Arc::default(),
            geoip: Arc::new(GeoIp::none()),
            web: Arc::new(Web::new(&settings().http, Tls::default(), Arc::default(), Handle::current())),
            wforce: Arc::default(),
            metrics: Arc::default(),
            operator: None,
            socket_timeout: Duration::from_secs(5),
            max_answer: ByteSize::kib(256),
            custom_webhooks: Arc::default(),
            custom_stats: Arc::default(),
            state_max_value: ByteSize::kib(16),
            max_alert: ByteSize::kib(256),
        };
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
        let policies = PolicySet::load(&[shipped]).unwrap();
        let vm = Vm::new(&policies, &services, &settings()).unwrap();
        let policy = vm.names().find(|(_, name)| *name == policy).unwrap().0;
        Self { vm, policy, state, history, store }
    }

    /// Calls the policy; nothing takes effect yet.
    pub(crate) async fn call(&self, report: &LoginReport) -> Effects {
        self.vm.run(self.policy, &Arc::new(report.clone())).await.unwrap()
    }

    /// The state's batch of a call, with its marker.
    pub(crate) async fn apply(&self, report: &LoginReport, effects: Effects) {
        let handled =
            Some((report.id, vec![self.vm.names().find(|(index, _)| *index == self.policy).unwrap().1.to_owned()]));
        self.state.apply(Batch { writes: effects.writes, handled, claims: effects.claims }).await.unwrap();
    }

    /// Handles a report whole: the call, its writes, its document. Gives the alerts.
    pub(crate) async fn run(&self, report: LoginReport) -> Vec<Alert> {
        let mut effects = self.call(&report).await;
        let alerts = std::mem::take(&mut effects.alerts);
        self.apply(&report, effects).await;
        self.store.store(Arc::new(report)).await.unwrap();
        alerts
    }

    /// Handles many, one after another.
    pub(crate) async fn run_all(&self, reports: Vec<LoginReport>) -> Vec<Alert> {
        let mut alerts = Vec::new();
        for report in reports {
            alerts.extend(self.run(report).await);
        }
        alerts
    }
}
