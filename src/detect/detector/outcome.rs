//! What follows from a round of calls: effects for those that worked, an attempt or a verdict for those that failed, the end of the
//! report where nothing is left to try.
//!
//! A part of [`Detector`], in a file of its own because it holds the failure rules and nothing of the loop.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::mpsc;

use super::{Detector, Settled};
use crate::detect::dispatch::Place;
use crate::detect::retry::{Blame, blame};
use crate::detect::settle::{Collected, Ending};
use crate::detect::slot::{Given, Phase, Slot};
use crate::detect::worker::{Call, Outcome, panic_text};
use crate::policy::Failure;
use crate::queue::{Backoff, Reason, ReasonKind};

/// One report's turn in a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    pub(super) number: u64,
    /// It tried whether a policy with an open breaker works again.
    pub(super) probe: bool,
    /// It ran in a machine of its own.
    pub(super) alone: bool,
    /// It ran with the policies that are in use. What one of an earlier set does tells nothing of those.
    pub(super) of_today: bool,
}

impl Detector {
    pub(super) fn on_outcome(&mut self, outcome: Outcome) {
        let current = self.pool.returned(outcome.worker, outcome.number);
        let Some(slot) = self.slots.get_mut(&outcome.number) else { return };
        let hung_and_back = slot.phase == Phase::Hanging(outcome.worker);
        if !current && !hung_and_back {
            return;
        }
        self.running -= 1;
        let metrics = Arc::clone(&self.parts.services.metrics);
        metrics.in_flight.dec();
        metrics.worker_queue.observe(outcome.waited.as_secs_f64());
        metrics.worker_response.observe(outcome.ran.as_secs_f64());
        self.parts.perf.record_wait(outcome.waited);
        self.parts.perf.record_run(outcome.ran);
        let probe = self.probe == Some(outcome.number);
        if probe {
            self.probe = None;
        }
        if let Some(error) = outcome.state_error {
            let wait = slot.waits.refused(String::new(), &self.circuits, "state", error.to_string());
            slot.waits.keep(&[String::new()]);
            self.retry_later(outcome.number, wait);
            return;
        }
        slot.add_handled(outcome.handled_before);
        let of_today = self.pool.is_of_today(outcome.set);
        let round = Round { number: outcome.number, probe, alone: slot.party == 1, of_today };
        self.decide(round, outcome.calls);
    }

    /// What follows from the calls of one round.
    fn decide(&mut self, round: Round, calls: Vec<Call>) {
        let number = round.number;
        // What is asked before any policy was had: the state told who has handled it, and a machine apart was made.
        if calls.iter().all(|call| !call.policy.is_empty())
            && let Some(slot) = self.slots.get_mut(&number)
        {
            slot.waits.worked("");
        }
        let mut collected = Collected::default();
        let mut wait: Option<Duration> = None;
        let mut refused = Vec::new();
        for Call { policy, result } in calls {
            match result {
                Ok(effects) => {
                    if round.of_today {
                        self.note_breaker(&policy, None, round);
                    }
                    collected.alerts.extend(effects.alerts);
                    collected.hooks.extend(effects.hooks);
                    collected.batch.writes.extend(effects.writes);
                    collected.batch.claims.extend(effects.claims);
                    if let Some(slot) = self.slots.get_mut(&number) {
                        slot.waits.worked(&policy);
                        slot.add_handled([policy]);
                    }
                }
                Err(failure) => {
                    if matches!(failure, Failure::Dependency { .. }) {
                        refused.push(policy.clone());
                    }
                    let again = self.on_failure(round, policy, failure);
                    wait = wait.max(again);
                }
            }
        }
        let Some(slot) = self.slots.get_mut(&number) else { return };
        // It ran where such a policy was not loaded, and a reload has brought it back since.
        if wait.is_none() && !round.of_today && slot.undecided().any(|policy| self.pool.has_policy(policy)) {
            wait = Some(self.parts.policy.retry_first);
        }
        slot.waits.keep(&refused);
        // An alert alone is marked too: by the time of a second run the login's next report may have changed what the policy saw, and
        // the alert would come again under another key.
        if !collected.is_empty() {
            slot.wrote = true;
            collected.batch.handled = Some((slot.report.id, slot.handled.clone()));
        }
        match wait {
            None => self.finish(number, collected),
            Some(wait) if collected.is_empty() => self.retry_later(number, wait),
            Some(wait) => {
                slot.phase = Phase::Applying;
                let (settler, settled) = (Arc::clone(&self.settler), self.report_settled.clone());
                self.spawn_settling(async move {
                    let done = AssertUnwindSafe(settler.effects(collected)).catch_unwind().await;
                    let _ = settled.send(match done {
                        Ok(()) => Settled::Applied(number, wait),
                        Err(panic) => Settled::Faulted(number, panic_text(&*panic)),
                    });
                });
            }
        }
    }

    /// Counts a failure. `Some`: the policy is to run on the report again, after that time.
    fn on_failure(&mut self, round: Round, policy: String, failure: Failure) -> Option<Duration> {
        let metrics = Arc::clone(&self.parts.services.metrics);
        let max_attempts = self.parts.policy.max_attempts;
        let backoff = Backoff { first: self.parts.policy.retry_first, most: self.parts.policy.retry_most };
        // That a dependency is out is counted as a retry.
        if !matches!(failure, Failure::Dependency { .. }) {
            metrics.policy_failures.with_label_values(&[failure.why()]).inc();
        }
        // Who is cut off with the machine may be the one that fills it: the next one that asked for memory only came last.
        if matches!(failure, Failure::Memory | Failure::Cancelled)
            && let Some(slot) = self.slots.get_mut(&round.number)
        {
            slot.suspect = Some(slot.party);
        }
        match blame(&failure, round.alone) {
            Blame::Dependency => {
                let (Failure::Dependency { dependency, said }, Some(slot)) =
                    (failure, self.slots.get_mut(&round.number))
                else {
                    return None;
                };
                Some(slot.waits.refused(policy, &self.circuits, dependency, said))
            }
            Blame::PerhapsNeighbour => {
                metrics.retries.with_label_values(&["neighbour"]).inc();
                Some(Duration::ZERO)
            }
            Blame::Program => {
                tracing::error!(policy, error = %failure, "a panic while a report was handled; it becomes a dead letter");
                self.give_up(round.number, Given { policy, why: failure.to_string(), kind: ReasonKind::Internal });
                None
            }
            Blame::Policy => {
                if round.of_today {
                    self.note_breaker(&policy, Some(&failure), round);
                }
                let slot = self.slots.get_mut(&round.number)?;
                if self.breakers.get(&policy).is_some_and(|breaker| breaker.open_until().is_some()) {
                    return Some(backoff.wait(1, rand::random()));
                }
                let attempts = slot.count_attempt(&policy);
                tracing::warn!(policy, report = %slot.report.id, attempts, error = %failure, "a policy failed on a report");
                if attempts < max_attempts {
                    metrics.retries.with_label_values(&["policy"]).inc();
                    return Some(backoff.wait(attempts, rand::random()));
                }
                slot.given_up.push(Given { policy, why: failure.to_string(), kind: ReasonKind::Policy });
                None
            }
        }
    }

    pub(super) fn give_up(&mut self, number: u64, given: Given) {
        if let Some(slot) = self.slots.get_mut(&number) {
            slot.given_up.push(given);
        }
    }

    /// Every policy is decided: the report settles by itself from here on.
    pub(super) fn finish(&mut self, number: u64, collected: Collected) {
        let Some(mut slot) = self.slots.remove(&number) else { return };
        self.outdated.forget(slot.report.id, number);
        self.intake.decided();
        slot.give_up_missing(|policy| self.pool.has_policy(policy));
        let mut ending = slot.reason().map_or(Ending::Handled, Ending::Dead);
        if !self.hung.is_empty() {
            self.hung.remove(slot.report.id);
        }
        let login: Option<Box<str>> = (slot.place == Place::InOrder).then(|| slot.report.login.as_str().into());
        let settler = Arc::clone(&self.settler);
        let Slot { report, token, wrote, .. } = *slot;
        let (decided, t) = (Instant::now(), report.t);
        // Nothing to wait for: a task would cost more than the report itself.
        if collected.is_empty() && !wrote && !settler.history.keeps() {
            settler.end(token, ending, t, decided);
            settler.metrics.unsettled.dec();
            if let Some(login) = login {
                self.dispatch.release(&login);
            }
            return;
        }
        let release = if collected.is_empty() {
            if let Some(login) = login {
                self.dispatch.release(&login);
            }
            None
        } else {
            login.map(|login| Release { login: Some(login), settled: self.report_settled.clone() })
        };
        self.spawn_settling(async move {
            let steps = async {
                settler.effects(collected).await;
                drop(release);
                settler.store(report, wrote).await;
            };
            // The token stays out here: a panic in there makes a dead letter, and a cancelled task hands the report out again.
            if let Err(panic) = AssertUnwindSafe(steps).catch_unwind().await {
                let text = format!("a fault of this program: {}", panic_text(&*panic));
                tracing::error!(error = text, "a panic while a report was settled; it becomes a dead letter");
                ending = Ending::Dead(Reason { kind: ReasonKind::Internal, text, only: Vec::new(), attempts: 1 });
            }
            settler.end(token, ending, t, decided);
        });
    }

    pub(super) fn spawn_settling(&self, work: impl Future<Output = ()> + Send + 'static) {
        let cut = self.cut.clone();
        let unsettled = Arc::clone(&self.parts.services.metrics);
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                done = AssertUnwindSafe(work).catch_unwind() => {
                    unsettled.unsettled.dec();
                    if let Err(panic) = done {
                        tracing::error!(panic = panic_text(&*panic), "a panic while something settled");
                    }
                }
                () = cut.cancelled() => {}
            }
        });
    }
}

/// Lets the login's next report start when it is dropped, so also where the effects before it panic.
struct Release {
    login: Option<Box<str>>,
    settled: mpsc::UnboundedSender<Settled>,
}

impl Drop for Release {
    fn drop(&mut self) {
        if let Some(login) = self.login.take() {
            let _ = self.settled.send(Settled::Released(login));
        }
    }
}
