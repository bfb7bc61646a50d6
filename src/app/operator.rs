//! What the console's own commands show and do.
//!
//! Owns their words. Shows no secret: of a webhook its name and host.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

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

/// See the module.
pub(super) struct Operator {
    acl: Vec<String>,
    webhooks: Vec<String>,
    key: Secret,
    metrics: Arc<Metrics>,
    perf: Arc<PerfStats>,
    geoip: Arc<GeoIp>,
    shutdown: CancellationToken,
    /// The line that has read the GeoIP files last, and what came of it.
    reloaded: Arc<Mutex<Option<(ReportId, String)>>>,
    started: std::time::Instant,
    runtime: tokio::runtime::Handle,
}

impl Operator {
    pub(super) fn new(
        config: &Config,
        metrics: &Arc<Metrics>,
        perf: &Arc<PerfStats>,
        geoip: &Arc<GeoIp>,
        shutdown: &CancellationToken,
    ) -> Self {
        Self {
            acl: config.http.acl.clone(),
            webhooks: config.notify.custom_webhooks.iter().map(crate::notify::HookSettings::shown).collect(),
            key: config.console.key.clone(),
            metrics: Arc::clone(metrics),
            perf: Arc::clone(perf),
            geoip: Arc::clone(geoip),
            shutdown: shutdown.clone(),
            reloaded: Arc::default(),
            started: std::time::Instant::now(),
            runtime: tokio::runtime::Handle::current(),
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
        let reloaded = Arc::clone(&self.reloaded);
        let (geoip, metrics) = (Arc::clone(&self.geoip), Arc::clone(&self.metrics));
        // A task of its own: a worker's time may be over before the files are read, and the next one is to find them read.
        let reading = self.runtime.spawn(async move {
            let mut reloaded = reloaded.lock().await;
            if let Some((_, said)) = reloaded.as_ref().filter(|(before, _)| *before == line) {
                return said.clone();
            }
            let reading = tokio::task::spawn_blocking(move || {
                let files = geoip.reload();
                stamp::tell(&files, &metrics);
                files.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
            });
            let said = match reading.await {
                Ok(said) if said.is_empty() => "there are no GeoIP files (geoip.files)".to_owned(),
                Ok(said) => said,
                Err(error) => fault(&error),
            };
            *reloaded = Some((line, said.clone()));
            said
        });
        Box::pin(async move { reading.await.unwrap_or_else(|error| fault(&error)) })
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

fn fault(error: &tokio::task::JoinError) -> String {
    format!("a fault of this program while the files were read: {error}")
}
