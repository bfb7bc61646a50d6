//! Waiting for a dependency that does not answer: again and again with backoff and jitter, for ever, and said where people look.
//!
//! Owns which dependencies are waited for. A dependency's outage never makes a dead letter and never ends the process; while one is
//! out, the source hands nothing more out.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::health::Health;
use crate::queue::Backoff;
use crate::telemetry::Metrics;

/// The dependencies of one process that are waited for.
pub(super) struct Circuits {
    open: Mutex<BTreeSet<&'static str>>,
    any_open: watch::Sender<bool>,
    backoff: Backoff,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

impl Circuits {
    pub(super) fn new(backoff: Backoff, health: Arc<Health>, metrics: Arc<Metrics>) -> Self {
        Self { open: Mutex::default(), any_open: watch::Sender::new(false), backoff, health, metrics }
    }

    /// Follows whether any circuit is open.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.any_open.subscribe()
    }

    /// Says that a dependency does not answer (`Some`) or works (`None`). Logs the change only, not each try.
    pub(super) fn note(&self, dependency: &'static str, said: Option<String>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = if said.is_some() { open.insert(dependency) } else { open.remove(dependency) };
        if !changed {
            return;
        }
        self.metrics.waiting.with_label_values(&[dependency]).set(i64::from(said.is_some()));
        match &said {
            Some(said) => tracing::error!(dependency, said, "a dependency does not answer; reports wait for it"),
            None => tracing::info!(dependency, "the dependency answers again"),
        }
        self.health.set_waiting(dependency, said);
        self.any_open.send_replace(!open.is_empty());
    }

    /// Calls `try_once` until it works.
    pub(super) async fn until_done<T, E, F>(&self, dependency: &'static str, mut try_once: impl FnMut() -> F) -> T
    where
        E: Display,
        F: Future<Output = Result<T, E>>,
    {
        let mut attempt = 0;
        loop {
            match try_once().await {
                Ok(done) => {
                    if attempt > 0 {
                        self.note(dependency, None);
                    }
                    return done;
                }
                Err(error) => {
                    attempt += 1;
                    self.note(dependency, Some(error.to_string()));
                    self.metrics.retries.with_label_values(&["dependency"]).inc();
                    tokio::time::sleep(self.backoff.wait(attempt, rand::random())).await;
                }
            }
        }
    }
}
