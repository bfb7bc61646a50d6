//! What keeps one policy, or one report, from taking the others with it: the breaker of a policy that fails on most reports, and the
//! giving up of a worker that hangs.
//!
//! A part of [`Detector`], in a file of its own because it acts on workers and policies rather than on one report's outcome.

use std::sync::Arc;
use std::time::Instant;

use super::Detector;
use super::outcome::Round;
use crate::alert::{Alert, Severity};
use crate::detect::DetectError;
use crate::detect::hung::HungCall;
use crate::detect::retry::{Breaker, Turn};
use crate::detect::settle::Collected;
use crate::detect::slot::{Given, Phase, Slot};
use crate::detect::worker::WorkerId;
use crate::policy::{Failure, PolicySet, watchdog};
use crate::queue::ReasonKind;
use crate::report::ReportId;

/// A call that does not come back, in a worker that was given up because of it.
pub(super) struct Hanging {
    /// When the process is to end because of it.
    pub(super) abort_at: Instant,
    pub(super) worker: WorkerId,
    id: ReportId,
    what: What,
}

/// What hangs.
enum What {
    Report(HungCall),
    /// What is no report, for people.
    Errand(String),
}

impl Hanging {
    /// For which the process ends.
    pub(super) fn error(self) -> DetectError {
        match self.what {
            What::Report(HungCall { policy, report }) => DetectError::Hung { policy, report },
            What::Errand(what) => DetectError::HungErrand { what },
        }
    }
}

impl Detector {
    /// Exchanges the policies: the workers take them between two reports, and what was held because of a broken one goes on.
    pub(super) fn load(&mut self, policies: PolicySet) {
        self.pool.load(policies);
        self.breakers.clear();
        self.probe = None;
        self.parts.health.set_waiting("policy", None);
        self.parts.services.metrics.waiting.with_label_values(&["policy"]).set(0);
    }

    /// A report that hung a worker before the restart: the policies it hung are given up at once, the others run.
    pub(super) fn give_up_hung(&self, slot: &mut Slot) {
        for policy in self.hung.policies(slot.report.id) {
            let why = "hung on it until the process had to end (policy.abort_after)".to_owned();
            slot.given_up.push(Given { policy, why, kind: ReasonKind::Hung });
        }
    }

    /// When the next report may try a policy whose breaker is open.
    pub(super) fn breaker_opens(&self) -> Option<Instant> {
        self.breakers.values().filter_map(Breaker::open_until).max()
    }

    pub(super) fn note_breaker(&mut self, policy: &str, failure: Option<&Failure>, round: Round) {
        let settings = &self.parts.policy;
        let breaker = match self.breakers.get_mut(policy) {
            Some(breaker) => breaker,
            None => self
                .breakers
                .entry(policy.to_owned())
                .or_insert_with(|| Breaker::new(settings.breaker, settings.breaker_calls, settings.breaker_pause)),
        };
        let turn = breaker.record(failure.is_none(), round.probe, Instant::now());
        let waiting = self.parts.services.metrics.waiting.with_label_values(&["policy"]);
        match (turn, failure) {
            (Turn::Opened, Some(failure)) => {
                tracing::error!(policy, error = %failure, "a policy fails on most reports; reports wait until it works (reload it)");
                waiting.set(1);
                self.parts.health.set_waiting("policy", Some(format!("{policy}: {failure}")));
                self.tell_operators(policy, failure, round.number);
            }
            (Turn::Closed, _) => {
                tracing::info!(policy, "the policy works again");
                if self.breaker_opens().is_none() {
                    waiting.set(0);
                    self.parts.health.set_waiting("policy", None);
                }
            }
            _ => {}
        }
    }

    fn tell_operators(&self, policy: &str, failure: &Failure, number: u64) {
        let Some(slot) = self.slots.get(&number) else { return };
        let settings = &self.parts.policy;
        let alert = Alert {
            id: Alert::make_id("policy_failing", policy, slot.report.id),
            time: slot.report.t.rfc3339(),
            kind: "policy_failing".to_owned(),
            severity: Severity::High,
            title: format!("Policy {policy} fails on most reports; reports wait for it"),
            text: format!(
                "It failed on more than {:.0} % of its last {} calls. No report is lost: they stay in the queue. Mend the policy and \
                 reload (SIGHUP).",
                settings.breaker * 100.0,
                settings.breaker_calls
            ),
            login: None,
            remote: None,
            evidence: serde_json::json!({ "policy": policy, "last_error": failure.to_string() }),
            attack: None,
            audience: Some(serde_json::json!("operators")),
            key: policy.to_owned(),
            policy: policy.to_owned(),
        };
        let (settler, metrics) = (Arc::clone(&self.settler), Arc::clone(&self.parts.services.metrics));
        metrics.unsettled.inc();
        self.spawn_settling(async move {
            settler.effects(Collected { alerts: vec![alert], ..Collected::default() }).await;
        });
    }

    pub(super) fn on_watchdog(&mut self, worker: WorkerId, event: watchdog::Event) -> Result<(), DetectError> {
        match event {
            watchdog::Event::Stuck { report, set, policy, .. } => {
                self.on_stuck(worker, report, self.pool.policy_name(set, policy))?;
            }
            watchdog::Event::Unstuck { report, .. } => {
                self.hung.remove(report);
                self.hanging.retain(|hanging| (hanging.worker, hanging.id) != (worker, report));
                self.count_hanging();
            }
        }
        Ok(())
    }

    /// A worker does not come back: it is given up, and what else it held runs again apart from the others. A report is written down
    /// before anything can end the process. What is no report has nothing to be written down, but the worker's reports would wait behind
    /// it for ever.
    fn on_stuck(&mut self, worker: WorkerId, id: ReportId, policy: String) -> Result<(), DetectError> {
        if !self.pool.is_in_place(worker) {
            self.on_stuck_again(worker, id, policy);
            return Ok(());
        }
        let running = |slot: &Slot| slot.phase == Phase::Running(worker) && slot.report.id == id;
        let number = self.slots.iter().find_map(|(number, slot)| running(slot).then_some(*number));
        let what = if number.is_some() {
            tracing::error!(policy, report = %id, "a worker hangs in a policy; it is given up and its other reports run again");
            let call = HungCall { report: id, policy };
            self.hung.add(call.clone());
            What::Report(call)
        } else {
            let what = match self.running_errands.name(worker, id) {
                Some(errand) => errand,
                // The watchdog knows a top level by no report.
                None if id == ReportId::default() => {
                    format!("the top level of policy `{policy}`, run for a new virtual machine,")
                }
                // It came back, and its outcome was here before the watchdog's word.
                None => return Ok(()),
            };
            tracing::error!(what, "a worker hangs in what is no report; it is given up and its reports run again");
            What::Errand(what)
        };
        self.parts.services.metrics.vms_replaced.with_label_values(&["stuck"]).inc();
        let abort_at = Instant::now() + self.parts.policy.abort_after;
        self.hanging.push(Hanging { abort_at, worker, id, what });
        self.count_hanging();
        self.running_errands.give_up(worker);
        self.take_back(worker, number)
    }

    /// One that was given up before holds the report that hung still, whose call came back and whose next policy hangs.
    fn on_stuck_again(&mut self, worker: WorkerId, id: ReportId, policy: String) {
        if self.slots.values().any(|slot| slot.phase == Phase::Hanging(worker) && slot.report.id == id) {
            tracing::error!(policy, report = %id, "a report that hung a worker hangs in its next policy");
            let call = HungCall { report: id, policy };
            self.hung.add(call.clone());
            let abort_at = Instant::now() + self.parts.policy.abort_after;
            self.hanging.push(Hanging { abort_at, worker, id, what: What::Report(call) });
            self.count_hanging();
        }
    }

    fn count_hanging(&self) {
        self.parts.services.metrics.workers_stuck.set(i64::try_from(self.hanging.len()).unwrap_or(i64::MAX));
    }

    fn take_back(&mut self, worker: WorkerId, hanging: Option<u64>) -> Result<(), DetectError> {
        for number in self.pool.abandon(worker, hanging)? {
            let Some(slot) = self.slots.get_mut(&number) else { continue };
            if self.probe == Some(number) {
                self.probe = None;
            }
            // Nobody knows when it runs again: it must not hold the source up until then.
            slot.waits.keep(&[]);
            if Some(number) == hanging {
                slot.phase = Phase::Hanging(worker);
                continue;
            }
            slot.phase = Phase::Waiting;
            slot.suspect = Some(0);
            self.running -= 1;
            self.parts.services.metrics.in_flight.dec();
            self.parts.services.metrics.retries.with_label_values(&["neighbour"]).inc();
            self.suspects.add(number, 0);
        }
        Ok(())
    }
}
