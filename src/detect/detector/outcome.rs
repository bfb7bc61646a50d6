//! What follows from a round of calls: effects for those that worked, an attempt or a verdict for those that failed, the end of the
//! report where nothing is left to try.
//!
//! A part of [`Detector`], in a file of its own because it holds the failure rules and nothing of the loop.

use std::sync::Arc;
use std::time::Duration;

use super::{Detector, Settled};
use crate::detect::dispatch::Place;
use crate::detect::retry::{Blame, blame};
use crate::detect::settle::{Collected, Ending};
use crate::detect::slot::{Given, Phase, Slot};
use crate::detect::worker::{Call, Outcome};
use crate::policy::Failure;
use crate::queue::{Backoff, ReasonKind};

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
        if self.probe == Some(outcome.number) {
            self.probe = None;
        }
        if let Some(error) = outcome.state_error {
            self.circuits.note("state", Some(error.to_string()));
            self.retry_later(outcome.number, self.parts.backoff.wait(1, rand::random()));
            return;
        }
        self.circuits.note("state", None);
        slot.handled.extend(outcome.handled_before);
        let alone = self.pool.is_alone(outcome.worker);
        self.decide(outcome.number, outcome.calls, alone);
    }

    /// What follows from the calls of one round.
    fn decide(&mut self, number: u64, calls: Vec<Call>, alone: bool) {
        if let Some(dependency) = self.slots.get_mut(&number).and_then(|slot| slot.waited_for.take()) {
            self.circuits.note(dependency, None);
        }
        let mut collected = Collected::default();
        let mut wait: Option<Duration> = None;
        for Call { policy, result } in calls {
            match result {
                Ok(effects) => {
                    self.note_breaker(&policy, None, number);
                    collected.alerts.extend(effects.alerts);
                    collected.batch.writes.extend(effects.writes);
                    collected.batch.claims.extend(effects.claims);
                    if let Some(slot) = self.slots.get_mut(&number) {
                        slot.handled.push(policy);
                    }
                }
                Err(failure) => {
                    let again = self.on_failure(number, policy, &failure, alone);
                    wait = wait.max(again);
                }
            }
        }
        let Some(slot) = self.slots.get_mut(&number) else { return };
        if !collected.batch.writes.is_empty() {
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
                    settler.effects(collected).await;
                    let _ = settled.send(Settled::Applied(number, wait));
                });
            }
        }
    }

    /// Counts a failure. `Some`: the policy is to run on the report again, after that time.
    fn on_failure(&mut self, number: u64, policy: String, failure: &Failure, alone: bool) -> Option<Duration> {
        let metrics = Arc::clone(&self.parts.services.metrics);
        metrics.policy_failures.with_label_values(&[why(failure)]).inc();
        let max_attempts = self.parts.policy.max_attempts;
        let backoff = Backoff { first: self.parts.policy.retry_first, most: self.parts.policy.retry_most };
        match blame(failure, alone) {
            Blame::Dependency => {
                if let (Failure::Dependency { dependency, said }, Some(slot)) = (failure, self.slots.get_mut(&number)) {
                    self.circuits.note(dependency, Some(said.clone()));
                    slot.waited_for = Some(dependency);
                }
                metrics.retries.with_label_values(&["dependency"]).inc();
                Some(self.parts.backoff.wait(4, rand::random()))
            }
            Blame::PerhapsNeighbour => {
                metrics.retries.with_label_values(&["neighbour"]).inc();
                if let Some(slot) = self.slots.get_mut(&number) {
                    slot.alone = true;
                }
                Some(Duration::ZERO)
            }
            Blame::Policy => {
                self.note_breaker(&policy, Some(failure), number);
                let slot = self.slots.get_mut(&number)?;
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

    /// Every policy is decided: the report settles by itself from here on.
    fn finish(&mut self, number: u64, collected: Collected) {
        let Some(slot) = self.slots.remove(&number) else { return };
        let ending = slot.reason().map_or(Ending::Handled, Ending::Dead);
        if !self.hung.is_empty() {
            self.hung.remove(slot.report.id);
        }
        let login: Option<Box<str>> = (slot.place == Place::InOrder).then(|| slot.report.login.as_str().into());
        let settler = Arc::clone(&self.settler);
        let Slot { report, token, wrote, .. } = slot;
        if collected.is_empty() {
            if let Some(login) = login {
                self.dispatch.release(&login);
            }
            self.spawn_settling(async move { settler.finish(report, token, wrote, ending).await });
            return;
        }
        let settled = self.report_settled.clone();
        self.spawn_settling(async move {
            settler.effects(collected).await;
            if let Some(login) = login {
                let _ = settled.send(Settled::Released(login));
            }
            settler.finish(report, token, wrote, ending).await;
        });
    }

    pub(super) fn spawn_settling(&self, work: impl Future<Output = ()> + Send + 'static) {
        let cut = self.cut.clone();
        let unsettled = Arc::clone(&self.parts.services.metrics);
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = work => unsettled.unsettled.dec(),
                () = cut.cancelled() => {}
            }
        });
    }
}

fn why(failure: &Failure) -> &'static str {
    match failure {
        Failure::Error(_) => "error",
        Failure::Time(_) => "time",
        Failure::Cpu(_) => "cpu",
        Failure::Memory => "memory",
        Failure::Cancelled | Failure::Dependency { .. } => "cancelled",
    }
}
