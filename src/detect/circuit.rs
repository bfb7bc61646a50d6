//! Waiting for a dependency that does not answer: again and again with backoff and jitter, for ever, and said where people look.
//!
//! Owns which dependencies are waited for, and by how many; and for one report, which of its policies waits for which. A dependency's
//! outage never makes a dead letter and never ends the process; while one is out, the source hands nothing more out. A circuit is open as
//! long as somebody waits: what still works meanwhile (a read, while writes fail) does not close it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::complaints::Complaints;
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
    complaints: Complaints,
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
    /// The log has it.
    told: bool,
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
        let complaints = Complaints::default();
        Self { open: Mutex::default(), any_open, recoveries, backoff, complaints, health, metrics }
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

    /// A dependency did not answer. Gives how long to wait before the next try; `waiting` remembers how often. Longer each time, and short
    /// again once it has come back: who was under way in that moment has not heard of it, and the source stays paused while it waits.
    pub(super) fn refused(
        self: &Arc<Self>,
        waiting: &mut Option<Waiting>,
        dependency: &'static str,
        said: String,
    ) -> Duration {
        self.metrics.retries.with_label_values(&["dependency"]).inc();
        let waiting = match waiting {
            Some(waiting) if waiting.dependency == dependency => {
                waiting.refused(self.note_refusal(dependency, false, said));
                waiting
            }
            other => {
                let recoveries = self.note_refusal(dependency, true, said);
                other.insert(Waiting { circuits: Arc::clone(self), dependency, attempts: 1, recoveries })
            }
        };
        self.backoff.wait(waiting.attempts, rand::random())
    }

    /// Gives how often the dependency has come back.
    fn note_refusal(&self, dependency: &'static str, new: bool, said: String) -> u64 {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = open.entry(dependency).or_insert(Open { waiters: 0, failing: true, recoveries: 0, told: false });
        let recoveries = entry.recoveries;
        entry.failing = true;
        entry.waiters += usize::from(new);
        // At each refusal: one that comes and goes, as a broker under its memory alarm does, would fill the log, and the outage that begins
        // soon after another may be the one that lasts.
        if let Some(kept_back) = self.complaints.due(dependency) {
            entry.told = true;
            tracing::error!(dependency, said, kept_back, "a dependency does not answer; reports wait for it");
        }
        if new && entry.waiters == 1 {
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
        let mut waiting: Option<Waiting> = None;
        let mut recoveries = None;
        loop {
            match try_once().await {
                Ok(done) => {
                    if let Some(waiting) = waiting {
                        waiting.answered();
                    }
                    return done;
                }
                Err(error) => {
                    let wait = self.refused(&mut waiting, dependency, error.to_string());
                    let recoveries = recoveries.get_or_insert_with(|| self.recoveries());
                    let comes_back = async {
                        drop(recoveries.wait_for(|_| waiting.as_ref().is_some_and(Waiting::came_back)).await);
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

    /// Whether the dependency has come back since it last refused this one. Others come back, too.
    fn came_back(&self) -> bool {
        let open = self.circuits.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(self.dependency).is_some_and(|entry| entry.recoveries != self.recoveries)
    }

    /// The dependency answers again.
    fn answered(self) {
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
            if entry.told {
                tracing::info!(dependency = self.dependency, "nothing waits for the dependency any more");
            }
            open.remove(self.dependency);
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

/// What refused one report in its last round: by policy, because a policy asks its dependencies one after another; `""` is what is asked
/// before any policy. That one of them answers is seen where a policy that it refused works, whatever becomes of the others.
#[derive(Debug, Default)]
pub(super) struct Waits(BTreeMap<String, Waiting>);

impl Waits {
    /// A dependency refused a policy. Gives how long to wait before the next try, as [`Circuits::refused`].
    pub(super) fn refused(
        &mut self,
        policy: String,
        circuits: &Arc<Circuits>,
        dependency: &'static str,
        said: String,
    ) -> Duration {
        let mut waiting = self.0.remove(&policy);
        let wait = circuits.refused(&mut waiting, dependency, said);
        self.0.extend(waiting.map(|waiting| (policy, waiting)));
        wait
    }

    /// A policy worked: what had refused it answers again.
    pub(super) fn worked(&mut self, policy: &str) {
        if let Some(waiting) = self.0.remove(policy) {
            waiting.answered();
        }
    }

    /// A round is over in which these policies were refused. What the others waited for is waited for no more: they are gone, failed by
    /// themselves, were cut off or not asked at all, and whether it has answered nobody knows.
    pub(super) fn keep(&mut self, refused: &[String]) {
        self.0.retain(|policy, _| refused.contains(policy));
    }

    /// Whether anything has come back since it last refused a policy.
    pub(super) fn came_back(&self) -> bool {
        self.0.values().any(Waiting::came_back)
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
        let (mut one, mut other) = (None, None);
        circuits.refused(&mut one, "state", "down".to_owned());
        circuits.refused(&mut one, "state", "still down".to_owned());
        circuits.refused(&mut other, "state", "down".to_owned());
        one.unwrap().answered();
        assert!(*open.borrow() && circuits.health.waiting().contains_key("state"));
        drop(other);
        assert!(!*open.borrow() && circuits.health.waiting().is_empty());
        assert_eq!(circuits.metrics.waiting.with_label_values(&["state"]).get(), 0);
    }

    #[test]
    fn outage_soon_after_another_is_told_if_it_lasts() {
        let circuits = circuits();
        let refused = |waiting: &mut _| {
            circuits.refused(waiting, "state", "down".to_owned());
            circuits.open.lock().unwrap()["state"].told
        };
        let (mut one, mut another) = (None, None);
        assert!(refused(&mut one));
        one.unwrap().answered();
        assert!(!refused(&mut another), "a flapping dependency would fill the log");
        circuits.complaints.let_time_pass();
        assert!(refused(&mut another));
    }

    #[test]
    fn waits_grow_with_the_attempts_of_one_report() {
        let circuits = circuits();
        let mut waiting = None;
        let waits: Vec<_> = (0..12).map(|_| circuits.refused(&mut waiting, "history", String::new())).collect();
        assert!(waits[11] >= waits[0] * 100, "{waits:?}");
        assert_eq!(circuits.metrics.waiting.with_label_values(&["history"]).get(), 1);
    }

    #[test]
    fn report_that_two_dependencies_refuse_waits_longer_each_time_and_hears_of_either() {
        let circuits = circuits();
        let mut waits = Waits::default();
        let mut round = || {
            [("a", "history"), ("b", "state"), ("c", "history")]
                .map(|(policy, dependency)| waits.refused(policy.to_owned(), &circuits, dependency, "down".to_owned()))
        };
        let rounds: Vec<_> = (0..12).map(|_| round()).collect();
        assert!((0..3).all(|each| rounds[11][each] >= rounds[0][each] * 100), "{rounds:?}");
        // As long for two that one dependency refuses as for one.
        assert!(rounds[11][2] <= rounds[11][1] * 2, "{rounds:?}");
        assert_eq!(circuits.health.waiting().len(), 2);
        for dependency in ["history", "state"] {
            assert!(!waits.came_back());
            let mut other = None;
            circuits.refused(&mut other, dependency, "down".to_owned());
            other.unwrap().answered();
            assert!(waits.came_back(), "{dependency}");
            for (policy, dependency) in [("a", "history"), ("b", "state"), ("c", "history")] {
                waits.refused(policy.to_owned(), &circuits, dependency, "down again".to_owned());
            }
        }
    }

    #[test]
    fn policy_that_works_tells_of_its_dependency_while_another_policy_is_refused_by_another() {
        let circuits = circuits();
        let (mut waits, mut other) = (Waits::default(), None);
        circuits.refused(&mut other, "history", "down".to_owned());
        let refused = |waits: &mut Waits, policy: &str, dependency| {
            waits.refused(policy.to_owned(), &circuits, dependency, "down".to_owned());
        };
        refused(&mut waits, "a", "history");
        refused(&mut waits, "b", "state");
        waits.worked("a");
        refused(&mut waits, "b", "state");
        let other = other.unwrap();
        assert!(other.came_back(), "who waits for the history does not hear of it");
        // One goes on to be refused by the other one, one is cut off: whether the first one answered nobody knows.
        let mut later = None;
        circuits.refused(&mut later, "history", "down".to_owned());
        refused(&mut waits, "a", "history");
        refused(&mut waits, "a", "state");
        refused(&mut waits, "c", "history");
        waits.keep(&["a".to_owned(), "b".to_owned()]);
        assert!(!later.unwrap().came_back(), "a recovery that nobody has seen");
        drop(other);
        assert_eq!(circuits.health.waiting().keys().collect::<Vec<_>>(), ["state"]);
        drop(waits);
        assert!(circuits.health.waiting().is_empty());
    }

    #[test]
    fn one_who_was_under_way_at_a_recovery_waits_shortly_again() {
        let circuits = circuits();
        let refused = |waiting: &mut _, dependency| circuits.refused(waiting, dependency, "down".to_owned());
        let comes_back = |dependency| {
            let mut other = None;
            refused(&mut other, dependency);
            other.unwrap().answered();
        };
        let mut under_way = None;
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
            // Before the wait begins: set later, a machine that stands still in between would make it look short.
            if tries == 12 {
                asleep.set(Some(Instant::now()));
            }
            refusals.send_replace(tries);
            let answer = if tries > 12 { Ok(()) } else { Err("down") };
            async move { answer }
        });
        let recovery = async {
            refusals.subscribe().wait_for(|tries| *tries == 12).await.unwrap();
            for dependency in ["alerts", "history"] {
                came_back.set(dependency == "history");
                let mut other = None;
                circuits.refused(&mut other, dependency, "down".to_owned());
                other.unwrap().answered();
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
