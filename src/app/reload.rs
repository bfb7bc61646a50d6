//! A reload: policies and files are read and checked beside those in use, then exchanged.
//!
//! Never leaves the program without what it had: whatever is wrong with the new one, the old one stays in use. What is fixed at the start
//! it never changes: it says what waits for a restart, and takes no policies that would miss it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::timeout;

use super::files::Files;
use crate::detect::Detect;
use crate::policy::legacy::InForce;
use crate::policy::networks::Networks;
use crate::policy::{self, PolicySet};
use crate::schedule::cron::Scheduled;
use crate::telemetry::Metrics;

/// What a reload needs, shared with the operators' route and the console.
pub(super) struct Reload {
    pub(super) policy: policy::Settings,
    /// One reload at a time: what was read first and slowly must not replace what was read after it.
    pub(super) one: tokio::sync::Mutex<()>,
    pub(super) in_force: Arc<InForce>,
    /// Set by [`Reload::begin`], taken by the drain.
    pub(super) detect: tokio::sync::Mutex<Option<Detect>>,
    /// The background functions of the policies that run.
    pub(super) scheduled: watch::Sender<Arc<[Scheduled]>>,
    pub(super) files: Option<Files>,
    /// Of the policies that are in use.
    pub(super) networks: Arc<ArcSwap<Networks>>,
    pub(super) metrics: Arc<Metrics>,
}

impl Reload {
    /// From now on it is these workers that take the policies.
    pub(super) async fn begin(&self, detect: Detect) {
        self.scheduled.send_replace(detect.scheduled());
        *self.detect.lock().await = Some(detect);
    }

    /// Policies and files, each by itself: what is wrong with one holds up no other. The text says what became of each, a line each;
    /// it is an error where anything was refused.
    pub(super) async fn all(&self) -> Result<String, String> {
        let _one = self.one.lock().await;
        let files = async {
            match &self.files {
                Some(files) => timeout(self.policy.reload_timeout, files.reload()).await,
                None => Ok(Vec::new()),
            }
        };
        let (policies, files) = tokio::join!(self.policies(), files);
        let well = policies.is_ok() && files.as_ref().is_ok_and(|all| all.iter().all(|file| file.outcome.is_ok()));
        let mut lines = vec![policies.unwrap_or_else(|error| error)];
        match files {
            Ok(all) => lines.extend(all.iter().map(ToString::to_string)),
            Err(_) => {
                lines.push(format!("the files of databases and devices were {}", late(self.policy.reload_timeout)))
            }
        }
        if well { Ok(lines.join("\n")) } else { Err(lines.join("\n")) }
    }

    /// Loads and checks the policies beside the running ones, then exchanges them between two reports. An error leaves the old ones.
    async fn policies(&self) -> Result<String, String> {
        let (settings, in_force) = (self.policy.clone(), Arc::clone(&self.in_force));
        let loading = tokio::task::spawn_blocking(move || {
            let set = PolicySet::resolve(&settings)?;
            set.against(&in_force).map(|waits| (set, waits))
        });
        let loaded = match timeout(self.policy.reload_timeout, loading).await {
            Ok(Ok(loaded)) => loaded.map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("the policies were {}", late(self.policy.reload_timeout))),
        };
        let outcome = match loaded {
            Ok((set, waits)) => {
                let names = set.names().collect::<Vec<_>>().join(", ");
                for waiting in &waits {
                    tracing::warn!("{waiting}");
                }
                let scheduled = Arc::clone(set.scheduled());
                let mut said = format!("policies that are right: {names}; nothing in this process runs them");
                if let Some(detect) = &*self.detect.lock().await {
                    for name in set.custom_stats() {
                        self.metrics.custom_stats.with_label_values(&[name]);
                    }
                    self.networks.store(Arc::clone(set.networks()));
                    detect.load(set).await;
                    self.scheduled.send_replace(scheduled);
                    said = format!("policies in use: {names}");
                }
                Ok([said].into_iter().chain(waits).collect::<Vec<_>>().join("\n"))
            }
            Err(error) => Err(format!("{error}; the policies that run stay in use")),
        };
        let label = if outcome.is_ok() { "done" } else { "refused" };
        self.metrics.reloads.with_label_values(&[label]).inc();
        outcome
    }
}

/// What became of files whose reading took longer than `policy.reload_timeout`.
pub(super) fn late(most: Duration) -> String {
    format!("not read within {most:?} (policy.reload_timeout); is one of them on a server that is away, or a pipe?")
}
