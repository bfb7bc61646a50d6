//! What one case runs on: a folder of its own with a real state, a real history and the places of the case.
//!
//! Owns the set-up and the settling of a handled report, in the program's own order (`detect::settle`): state, then history. Nothing of one
//! case is seen by another.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tempfile::TempDir;

use super::Settings;
use super::case::Case;
use super::past::CaseHistory;
use super::places;
use crate::detect;
use crate::policy::web::{Answer, Fetch, Request};
use crate::policy::{Effects, Services};
use crate::report::LoginReport;
use crate::state::embedded::EmbeddedState;
use crate::state::{Batch, Session, Tentative};
use crate::store::Store;
use crate::telemetry::Metrics;

/// Memory for blocks of the state: a case has few.
const CACHE: u64 = 4 << 20;

/// A case reaches no network: its outcome must not hang on who answers there today.
struct Nowhere;

impl Fetch for Nowhere {
    fn request(&self, request: Request) -> BoxFuture<'_, Result<Answer, String>> {
        let said = format!("{request:?}: a test of a policy reaches no network");
        Box::pin(std::future::ready(Err(said)))
    }
}

/// See the module. The folder goes last, after all that has files in it.
pub(super) struct Stage {
    pub(super) services: Services,
    pub(super) history: Arc<CaseHistory>,
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
        let services = Services {
            history: Arc::clone(&history) as _,
            state,
            tentative: Arc::new(Tentative::default()),
            geoip: Arc::new(places::open(&case.places, folder.path())?),
            web: Arc::new(Nowhere),
            wforce: Arc::default(),
            metrics,
            operator: None,
            socket_timeout: settings.policy.socket_timeout,
            custom_webhooks: Arc::default(),
            custom_stats: Arc::default(),
            state_max_value: settings.state.max_value,
            max_alert: settings.policy.max_alert,
        };
        let max_value = usize::try_from(settings.state.max_value.as_u64()).unwrap_or(usize::MAX);
        Ok(Self { services, history, policy: case.policy.clone(), max_value, _folder: folder })
    }

    /// The report with what the program adds to it.
    pub(super) fn enriched(&self, report: &LoginReport) -> Arc<LoginReport> {
        let mut report = report.clone();
        detect::enrich(&mut report, &self.services);
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
