//! What one case runs on: a folder of its own with a real state, a real history and the places of the case.
//!
//! Owns the set-up and the settling of a handled report, in the program's own order (`detect::settle`): state, then history. Nothing of one
//! case is seen by another.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use tempfile::TempDir;

use super::Settings;
use super::answers::Answers;
use super::case::Case;
use super::past::CaseHistory;
use super::places;
use crate::detect;
use crate::device::Devices;
use crate::policy::wforce::{self, Siblings};
use crate::policy::{self, Effects, Services};
use crate::report::LoginReport;
use crate::state::embedded::EmbeddedState;
use crate::state::{Batch, Session, Tentative};
use crate::store::Store;
use crate::telemetry::Metrics;

/// Memory for blocks of the state: a case has few.
const CACHE: u64 = 4 << 20;

/// The wforce server of a case where the configuration names none: a test of a policy is to be the same on the machine of its author.
const WFORCE: &str = "http://wforce.test/";

/// See the module. The folder goes last, after all that has files in it.
pub(super) struct Stage {
    pub(super) services: Services,
    pub(super) history: Arc<CaseHistory>,
    pub(super) web: Arc<Answers>,
    devices: Option<Arc<Devices>>,
    policy: String,
    max_value: usize,
    _folder: TempDir,
}

impl Stage {
    /// Sets it up in a folder below `root`. Blocks for some milliseconds.
    pub(super) fn set(case: &Case, settings: &Settings, root: &Path) -> Result<Self, String> {
        let folder = tempfile::Builder::new().prefix("case-").tempdir_in(root);
        let folder = folder.map_err(|error| format!("{}: {error}", root.display()))?;
        let metrics = Arc::new(Metrics::new());
        let store = Store::open(&folder.path().join("data"), CACHE).map_err(|error| error.to_string())?;
        let state = EmbeddedState::open(&store, &settings.state).map_err(|error| error.to_string())?;
        let path = folder.path().join("history");
        let history = Arc::new(CaseHistory::new(path, &settings.history, Arc::clone(&metrics)));
        let keeps = case.expected.calls.is_some();
        let web = Arc::new(Answers::new(case.http.clone(), settings.policy.http.max_answer, keeps));
        let services = Services {
            history: Arc::clone(&history) as _,
            state,
            tentative: Arc::new(Tentative::default()),
            geoip: Arc::new(places::open(&case.places, &case.found.geoip, folder.path())?),
            web: Arc::clone(&web) as _,
            wforce: Arc::new(siblings(&settings.policy)?),
            metrics,
            operator: None,
            socket_timeout: settings.policy.socket_timeout,
            max_answer: settings.policy.http.max_answer,
            custom_webhooks: Arc::clone(&case.found.webhooks),
            custom_stats: Arc::clone(&case.found.stats),
            state_max_value: settings.state.max_value,
            max_alert: settings.policy.max_alert,
        };
        let max_value = usize::try_from(settings.state.max_value.as_u64()).unwrap_or(usize::MAX);
        let (devices, policy) = (case.devices.clone(), case.policy.clone());
        Ok(Self { services, history, web, devices, policy, max_value, _folder: folder })
    }

    /// The report with what the program adds to it.
    pub(super) fn enriched(&self, report: &LoginReport) -> Arc<LoginReport> {
        let mut report = report.clone();
        detect::enrich(&mut report, &self.services);
        if let Some(devices) = &self.devices {
            devices.read(&report);
        }
        Arc::new(report)
    }

    /// The policy's state, as it sees it while it handles this report.
    pub(super) fn session(&self, report: &LoginReport) -> Session {
        let (state, tentative) = (Arc::clone(&self.services.state), Arc::clone(&self.services.tentative));
        Session::new(state, tentative, report.t, &self.policy, self.max_value)
    }

    /// Puts values into the policy's state, there before `report`.
    pub(super) async fn give(&self, report: &LoginReport, values: &[(String, Value)]) -> Result<(), String> {
        // In batches: a session has a bound on its writes, which is meant for handlers.
        for values in values.chunks(500) {
            let session = self.session(report);
            for (key, value) in values {
                let json = Bytes::from(value.to_string());
                session.set(key, Some(json), None).map_err(|error| format!("state: {key}: {error}"))?;
            }
            let (writes, claims) = session.take();
            let batch = Batch { writes, claims, handled: None };
            self.services.state.apply(batch).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Lets what a handler wrote take effect, and puts its report into the history.
    pub(super) async fn settle(&self, report: Arc<LoginReport>, effects: Effects) -> Result<(), String> {
        // Without the marker of handled reports: no report of a case comes twice.
        if !effects.writes.is_empty() {
            let batch = Batch { writes: effects.writes, claims: effects.claims, handled: None };
            self.services.state.apply(batch).await.map_err(|error| error.to_string())?;
        }
        self.services.history.store(report).await.map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Ends what runs in the background.
    pub(super) async fn strike(&self) {
        self.services.history.close().await;
    }
}

/// Whom `wforce.*` talks to.
fn siblings(settings: &policy::Settings) -> Result<Siblings, String> {
    let mut wforce: wforce::Settings = settings.wforce.clone();
    if wforce.servers.is_empty() {
        wforce.servers.push(WFORCE.to_owned());
    }
    Siblings::new(&wforce, settings.http.timeout)
}
