//! The history of a case: the embedded one on the case's folder, told of reports when it is first asked.
//!
//! In the running program a report is in the history a second after it was handled, and a later search sees it. Here a search sees every
//! report before it: those that wait are committed right before it is answered. A commit for each report would show the same and cost
//! a thousand of them for a case with a thousand reports; a case that never asks costs none.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{BoxFuture, join_all};
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::history::embedded::EmbeddedHistory;
use crate::history::{History, HistoryError, Kind, Search, Settings, Stored};
use crate::report::{LoginReport, Time};
use crate::telemetry::Metrics;

/// See the module.
pub(super) struct CaseHistory {
    folder: PathBuf,
    settings: Settings,
    metrics: Arc<Metrics>,
    waiting: Mutex<Vec<Arc<LoginReport>>>,
    open: OnceCell<Arc<EmbeddedHistory>>,
    /// One search puts the waiting reports in; another one must not pass it.
    turn: tokio::sync::Mutex<()>,
    searches: AtomicUsize,
}

impl CaseHistory {
    /// Nothing is opened yet.
    pub(super) fn new(folder: PathBuf, settings: &Settings, metrics: Arc<Metrics>) -> Self {
        // A case of last year's day must be the same next year: nothing is too old to be kept.
        let settings = Settings {
            kind: Kind::Embedded,
            retention_days: 36_500,
            commit_every: std::time::Duration::from_millis(5),
            commit_at: 20_000,
            ..settings.clone()
        };
        let (waiting, open, turn) = (Mutex::default(), OnceCell::new(), tokio::sync::Mutex::default());
        Self { folder, settings, metrics, waiting, open, turn, searches: AtomicUsize::new(0) }
    }

    /// How often it was asked.
    pub(super) fn searches(&self) -> usize {
        self.searches.load(Ordering::Relaxed)
    }

    /// A report that is there from now on.
    pub(super) fn put(&self, report: Arc<LoginReport>) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(report);
    }

    async fn told(&self) -> Result<&Arc<EmbeddedHistory>, HistoryError> {
        let _turn = self.turn.lock().await;
        let open = async || EmbeddedHistory::open(&self.folder, &self.settings, Arc::clone(&self.metrics));
        let history = self.open.get_or_try_init(open).await?;
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        let stored = join_all(waiting.into_iter().map(|report| history.store(report))).await;
        stored.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(history)
    }
}

impl History for CaseHistory {
    fn store(&self, report: Arc<LoginReport>) -> BoxFuture<'_, Result<Stored, HistoryError>> {
        self.put(report);
        Box::pin(std::future::ready(Ok(Stored::New)))
    }

    fn search(&self, search: Search) -> BoxFuture<'_, Result<Value, HistoryError>> {
        self.searches.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move { self.told().await?.search(search).await })
    }

    fn retain(&self, _: Time) -> BoxFuture<'_, Result<usize, HistoryError>> {
        Box::pin(std::future::ready(Ok(0)))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some(history) = self.open.get() {
                history.close().await;
            }
        })
    }
}
