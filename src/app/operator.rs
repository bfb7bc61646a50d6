//! What the console's own commands show and do.
//!
//! Owns their words. Shows no secret: of a webhook its name and host.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::reload::{self, Reload};
use crate::config::Config;
use crate::console::noise;
use crate::geoip::GeoIp;
use crate::http::stats;
use crate::perfstats::PerfStats;
use crate::policy::{self, Show};
use crate::report::ReportId;
use crate::settings::Secret;
use crate::stamp;
use crate::telemetry::Metrics;

/// Lines whose outcome is kept: more consoles than that have none under way at once.
const LINES_KEPT: usize = 16;

/// What is done once, although each worker runs the line that asks for it.
struct Once<T> {
    runtime: tokio::runtime::Handle,
    /// The last lines that asked for it, and what came of each.
    done: Arc<Mutex<VecDeque<(ReportId, T)>>>,
}

impl<T: Clone + Send + 'static> Once<T> {
    fn new() -> Self {
        Self { runtime: tokio::runtime::Handle::current(), done: Arc::default() }
    }

    /// The first worker of a line sets `work` off; the others get what came of it.
    fn run(
        &self,
        line: ReportId,
        work: impl Future<Output = T> + Send + 'static,
        fault: fn(String) -> T,
    ) -> BoxFuture<'static, T> {
        let done = Arc::clone(&self.done);
        // A task of its own: a worker's time may be over before the work is done, and the next one is to find it done.
        let working = self.runtime.spawn(async move {
            let mut done = done.lock().await;
            if let Some((_, outcome)) = done.iter().find(|(before, _)| *before == line) {
                return outcome.clone();
            }
            let outcome = work.await;
            done.push_front((line, outcome.clone()));
            done.truncate(LINES_KEPT);
            outcome
        });
        Box::pin(
            async move { working.await.unwrap_or_else(|error| fault(format!("a fault of this program: {error}"))) },
        )
    }
}

/// See the module.
pub(super) struct Operator {
    acl: Vec<String>,
    webhooks: Vec<String>,
    key: Secret,
    metrics: Arc<Metrics>,
    perf: Arc<PerfStats>,
    geoip: Arc<GeoIp>,
    shutdown: CancellationToken,
    /// It has the workers, and those have this.
    reload: Weak<Reload>,
    geoip_read: Once<String>,
    reloaded: Once<Result<String, String>>,
    /// `policy.reload_timeout`.
    reload_timeout: Duration,
    started: std::time::Instant,
}

impl Operator {
    pub(super) fn new(
        config: &Config,
        metrics: &Arc<Metrics>,
        perf: &Arc<PerfStats>,
        geoip: &Arc<GeoIp>,
        shutdown: &CancellationToken,
        reload: &Arc<Reload>,
    ) -> Self {
        Self {
            acl: config.http.acl.clone(),
            webhooks: config.notify.custom_webhooks.iter().map(crate::notify::HookSettings::shown).collect(),
            key: config.console.key.clone(),
            metrics: Arc::clone(metrics),
            perf: Arc::clone(perf),
            geoip: Arc::clone(geoip),
            shutdown: shutdown.clone(),
            reload: Arc::downgrade(reload),
            geoip_read: Once::new(),
            reloaded: Once::new(),
            reload_timeout: config.policy.reload_timeout,
            started: std::time::Instant::now(),
        }
    }
}

impl policy::Operator for Operator {
    fn show(&self, what: Show) -> String {
        let counts = |counters| {
            let pairs = stats::by_label(counters).into_iter();
            pairs.map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join("\n")
        };
        match what {
            Show::Stats => stats::all(&self.metrics, &self.perf, self.started).to_string(),
            Show::Acl => self.acl.join("\n"),
            Show::Webhooks => self.webhooks.join("\n"),
            Show::Perf => serde_json::Value::from(self.perf.to_json()).to_string(),
            Show::Commands => counts(&self.metrics.commands),
            Show::CustomStats => counts(&self.metrics.custom_stats),
            Show::Version => format!("trackalert {}", env!("CARGO_PKG_VERSION")),
        }
    }

    fn reload_geoip(&self, line: ReportId) -> BoxFuture<'static, String> {
        let (geoip, metrics, most) = (Arc::clone(&self.geoip), Arc::clone(&self.metrics), self.reload_timeout);
        let reading = async move {
            let reading = tokio::task::spawn_blocking(move || {
                let files = geoip.reload();
                stamp::tell(&files, &metrics);
                files.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
            });
            match timeout(most, reading).await {
                Ok(Ok(said)) if said.is_empty() => "there are no GeoIP files (geoip.files)".to_owned(),
                Ok(Ok(said)) => said,
                Ok(Err(error)) => format!("a fault of this program while the files were read: {error}"),
                Err(_) => format!("the files of databases were {}", reload::late(most)),
            }
        };
        self.geoip_read.run(line, reading, |fault| fault)
    }

    fn reload(&self, line: ReportId) -> BoxFuture<'static, Result<String, String>> {
        let reload = Weak::clone(&self.reload);
        let reloading = async move {
            let Some(reload) = reload.upgrade() else { return Err("the program is ending".to_owned()) };
            let outcome = reload.all().await;
            match &outcome {
                Ok(done) => tracing::info!(done, "reloaded at the console"),
                Err(error) => tracing::error!(error, "not reloaded at the console"),
            }
            outcome
        };
        self.reloaded.run(line, reloading, Err)
    }

    fn shutdown(&self) {
        tracing::info!("shutdown() at the console");
        self.shutdown.cancel();
    }

    fn test_crypto(&self, text: &str) -> Result<(), String> {
        let key = noise::key(self.key.expose()).ok_or("console.key is not set; makeKey() makes one")?;
        noise::test(&key, text.as_bytes()).map_err(|error| error.to_string())
    }
}
