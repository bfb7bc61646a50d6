//! Waiting for a dependency that does not answer: again and again with backoff and jitter, for ever, and said where people look.
//!
//! Owns which dependencies are waited for, and by how many. A dependency's outage never makes a dead letter and never ends the process;
//! while one is out, the source hands nothing more out. A circuit is open as long as somebody waits: what still works meanwhile (a
//! read, while writes fail) does not close it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::health::Health;
use crate::queue::Backoff;
use crate::telemetry::Metrics;

/// The dependencies of one process that are waited for.
pub(super) struct Circuits {
    open: Mutex<BTreeMap<&'static str, Open>>,
    any_open: watch::Sender<bool>,
    /// Raised when a dependency answers again: who waits for it tries at once instead of sleeping through its recovery.
    recoveries: watch::Sender<u64>,
    backoff: Backoff,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

/// One dependency that is waited for.
struct Open {
    waiters: usize,
    /// Nobody who waited has had an answer since the last refusal.
    failing: bool,
    /// How often it has come back since somebody waits for it.
    recoveries: u64,
}

/// One who waits for a dependency. Dropped, it no longer waits.
pub(super) struct Waiting {
    circuits: Arc<Circuits>,
    dependency: &'static str,
    /// Refusals since the dependency has last answered anybody who waited.
    attempts: u32,
    /// [`Open::recoveries`] at the last refusal.
    recoveries: u64,
}

impl Circuits {
    pub(super) fn new(backoff: Backoff, health: Arc<Health>, metrics: Arc<Metrics>) -> Self {
        let (any_open, recoveries) = (watch::Sender::new(false), watch::Sender::new(0));
        Self { open: Mutex::default(), any_open, recoveries, backoff, health, metrics }
    }

    /// Follows whether any circuit is open.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.any_open.subscribe()
    }

    /// Follows the recoveries.
    pub(super) fn recoveries(&self) -> watch::Receiver<u64> {
        self.recoveries.subscribe()
    }

    /// A wait for those who are to try again after a recovery: short, and not all at the same instant.
    pub(super) fn soon(&self) -> Duration {
        self.backoff.wait(1, rand::random())
    }

    /// A dependency did not answer. Gives how long to wait before the next try; `waits` remembers how often, of each dependency. Longer
    /// each time, and short again once it has come back: who was under way in that moment has not heard of it, and the source stays paused
    /// while it waits.
    pub(super) fn refused(
        self: &Arc<Self>,
        waits: &mut Vec<Waiting>,
        dependency: &'static str,
        said: String,
    ) -> Duration {
        self.metrics.retries.with_label_values(&["dependency"]).inc();
        let attempts = if let Some(waiting) = waits.iter_mut().find(|waiting| waiting.dependency == dependency) {
            waiting.refused(self.note_refusal(dependency, false, said));
            waiting.attempts
        } else {
            let recoveries = self.note_refusal(dependency, true, said);
            waits.push(Waiting { circuits: Arc::clone(self), dependency, attempts: 1, recoveries });
            1
        };
        self.backoff.wait(attempts, rand::random())
    }

    /// Gives how often the dependency has come back.
    fn note_refusal(&self, dependency: &'static str, new: bool, said: String) -> u64 {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = open.entry(dependency).or_insert(Open { waiters: 0, failing: true, recoveries: 0 });
        let recoveries = entry.recoveries;
        entry.failing = true;
        entry.waiters += usize::from(new);
        if new && entry.waiters == 1 {
            tracing::error!(dependency, said, "a dependency does not answer; reports wait for it");
            self.metrics.waiting.with_label_values(&[dependency]).set(1);
            self.health.set_waiting(dependency, Some(said));
            self.any_open.send_replace(true);
        }
        recoveries
    }

    /// Calls `try_once` until it works.
    pub(super) async fn until_done<T, E, F>(
        self: &Arc<Self>,
        dependency: &'static str,
        mut try_once: impl FnMut() -> F,
    ) -> T
    where
        E: Display,
        F: Future<Output = Result<T, E>>,
    {
        let mut waits = Vec::new();
        let mut recoveries = None;
        loop {
            match try_once().await {
                Ok(done) => {
                    waits.drain(..).for_each(Waiting::answered);
                    return done;
                }
                Err(error) => {
                    let wait = self.refused(&mut waits, dependency, error.to_string());
                    let recoveries = recoveries.get_or_insert_with(|| self.recoveries());
                    let comes_back = async {
                        drop(recoveries.wait_for(|_| waits.iter().any(Waiting::came_back)).await);
                        tokio::time::sleep(self.soon()).await;
                    };
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = comes_back => {}
                    }
                }
            }
        }
    }
}

impl Waiting {
    const fn refused(&mut self, recoveries: u64) {
        self.attempts = if self.recoveries == recoveries { self.attempts.saturating_add(1) } else { 1 };
        self.recoveries = recoveries;
    }

    /// What is waited for.
    pub(super) const fn dependency(&self) -> &'static str {
        self.dependency
    }

    /// Whether the dependency has come back since it last refused this one. Others come back, too.
    pub(super) fn came_back(&self) -> bool {
        let open = self.circuits.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(self.dependency).is_some_and(|entry| entry.recoveries != self.recoveries)
    }

    /// The dependency answers again.
    pub(super) fn answered(self) {
        let mut open = self.circuits.open.lock().unwrap_or_else(PoisonError::into_inner);
        let recovered = open.get_mut(self.dependency).is_some_and(|entry| {
            let failed = std::mem::take(&mut entry.failing);
            entry.recoveries += u64::from(failed);
            failed
        });
        drop(open);
        if recovered {
            self.circuits.recoveries.send_modify(|count| *count += 1);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let circuits = &self.circuits;
        let mut open = circuits.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = open.get_mut(self.dependency) else { return };
        entry.waiters -= 1;
        if entry.waiters == 0 {
            open.remove(self.dependency);
            tracing::info!(dependency = self.dependency, "nothing waits for the dependency any more");
            circuits.metrics.waiting.with_label_values(&[self.dependency]).set(0);
            circuits.health.set_waiting(self.dependency, None);
            circuits.any_open.send_replace(!open.is_empty());
        }
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Waiting({}, {} attempts)", self.dependency, self.attempts)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Instant;

    use super::*;

    fn circuits() -> Arc<Circuits> {
        let backoff = Backoff { first: Duration::from_millis(1), most: Duration::from_secs(60) };
        Arc::new(Circuits::new(backoff, Arc::default(), Arc::default()))
    }

    #[test]
    fn circuit_stays_open_until_the_last_one_who_waits_is_done() {
        let circuits = circuits();
        let open = circuits.watch();
        let (mut one, mut other) = (Vec::new(), Vec::new());
        circuits.refused(&mut one, "state", "down".to_owned());
        circuits.refused(&mut one, "state", "still down".to_owned());
        circuits.refused(&mut other, "state", "down".to_owned());
        one.remove(0).answered();
        assert!(*open.borrow() && circuits.health.waiting().contains_key("state"));
        drop(other);
        assert!(!*open.borrow() && circuits.health.waiting().is_empty());
        assert_eq!(circuits.metrics.waiting.with_label_values(&["state"]).get(), 0);
    }

    #[test]
    fn waits_grow_with_the_attempts_of_one_report() {
        let circuits = circuits();
        let mut waiting = Vec::new();
        let waits: Vec<_> = (0..12).map(|_| circuits.refused(&mut waiting, "history", String::new())).collect();
        assert!(waits[11] >= waits[0] * 100, "{waits:?}");
        assert_eq!(circuits.metrics.waiting.with_label_values(&["history"]).get(), 1);
    }

    #[test]
    fn report_that_two_dependencies_refuse_waits_longer_each_time_and_hears_of_either() {
        let circuits = circuits();
        let mut waiting = Vec::new();
        let mut round =
            || ["history", "state"].map(|dependency| circuits.refused(&mut waiting, dependency, "down".to_owned()));
        let waits: Vec<_> = (0..12).map(|_| round()).collect();
        assert!((0..2).all(|each| waits[11][each] >= waits[0][each] * 100), "{waits:?}");
        assert_eq!(circuits.health.waiting().len(), 2);
        for dependency in ["history", "state"] {
            assert!(!waiting.iter().any(Waiting::came_back));
            let mut other = Vec::new();
            circuits.refused(&mut other, dependency, "down".to_owned());
            other.remove(0).answered();
            assert!(waiting.iter().any(Waiting::came_back), "{dependency}");
            circuits.refused(&mut waiting, dependency, "down again".to_owned());
        }
    }

    #[test]
    fn one_who_was_under_way_at_a_recovery_waits_shortly_again() {
        let circuits = circuits();
        let refused = |waiting: &mut _, dependency| circuits.refused(waiting, dependency, "down".to_owned());
        let comes_back = |dependency| {
            let mut other = Vec::new();
            refused(&mut other, dependency);
            other.remove(0).answered();
        };
        let mut under_way = Vec::new();
        let waits: Vec<_> = (0..12).map(|_| refused(&mut under_way, "history")).collect();
        comes_back("alerts");
        let after_another = refused(&mut under_way, "history");
        assert!(after_another >= waits[11], "{after_another:?} after {waits:?}");
        comes_back("history");
        let after = refused(&mut under_way, "history");
        assert!(after <= waits[0] * 2, "{after:?} after {waits:?}");
        assert!(refused(&mut under_way, "history") > after, "it does not grow from there");
    }

    #[tokio::test]
    async fn recovery_wakes_those_who_would_sleep_through_it() {
        let backoff = Backoff { first: Duration::from_millis(1), most: Duration::from_secs(3600) };
        let circuits = Arc::new(Circuits::new(backoff, Arc::default(), Arc::default()));
        let (refusals, mut tries) = (watch::Sender::new(0), 0);
        let (asleep, came_back) = (Cell::new(None), Cell::new(false));
        let sleeper = circuits.until_done("history", || {
            tries += 1;
            refusals.send_replace(tries);
            let answer = if tries > 12 { Ok(()) } else { Err("down") };
            async move { answer }
        });
        let recovery = async {
            refusals.subscribe().wait_for(|tries| *tries == 12).await.unwrap();
            asleep.set(Some(Instant::now()));
            for dependency in ["alerts", "history"] {
                came_back.set(dependency == "history");
                let mut other = Vec::new();
                circuits.refused(&mut other, dependency, "down".to_owned());
                other.remove(0).answered();
                // Many times as long as one who is woken waits.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            // In steps: while the machine stands still, one of them passes.
            for _ in 0..40 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        // By itself it tries again after a second at least.
        let by_itself = || asleep.get().is_some_and(|since: Instant| since.elapsed() > Duration::from_secs(1));
        tokio::select! {
            () = sleeper => assert!(came_back.get() || by_itself(), "another dependency's recovery wakes it"),
            () = recovery => panic!("it sleeps through the recovery"),
        }
    }
}
