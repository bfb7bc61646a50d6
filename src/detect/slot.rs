//! One report in hand: what is known and what is undecided about it, from its delivery to the start of its settling.
//!
//! Owns the counting of attempts for each policy. Holds the token, so that whatever drops a slot hands the report out again.

use std::sync::Arc;
use std::time::Instant;

use super::circuit::Waits;
use super::dispatch::Place;
use super::worker::{Job, WorkerId};
use crate::queue::{AckToken, Reason, ReasonKind};
use crate::report::LoginReport;

/// Where the report is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// In dispatch, among the suspects, or waiting for its retry.
    Waiting,
    /// Lent to a worker.
    Running(WorkerId),
    /// Its worker was abandoned while it hung on this report.
    Hanging(WorkerId),
    /// The effects of a round are being applied.
    Applying,
}

/// A policy that will not be tried again on this report.
#[derive(Debug, Clone)]
pub(super) struct Given {
    /// Empty: no policy is to blame.
    pub(super) policy: String,
    pub(super) why: String,
    pub(super) kind: ReasonKind,
}

/// One report in hand.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) token: AckToken,
    pub(super) report: Arc<LoginReport>,
    pub(super) place: Place,
    pub(super) phase: Phase,
    /// Only these policies are to run; `None`: all.
    pub(super) only: Option<Vec<String>>,
    /// Those that have handled it.
    pub(super) handled: Vec<String>,
    /// Those that failed on it, with the number of attempts.
    attempts: Vec<(String, u32)>,
    /// Those that will not be tried again.
    pub(super) given_up: Vec<Given>,
    /// How many shared the machine apart in which it ran last, itself included; 0: it was a worker's own.
    pub(super) party: usize,
    /// Its machine failed, maybe because of it, and it runs apart from now on: its party at that time.
    pub(super) suspect: Option<usize>,
    /// It has writes in the state.
    pub(super) wrote: bool,
    /// What did not answer in the last round.
    pub(super) waits: Waits,
    /// Since when it could run, but for a free worker and its turn in its login.
    pub(super) since: Instant,
}

impl Slot {
    pub(super) fn new(token: AckToken, report: LoginReport, place: Place, only: Option<Vec<String>>) -> Self {
        Self {
            token,
            report: Arc::new(report),
            place,
            phase: Phase::Waiting,
            only,
            handled: Vec::new(),
            attempts: Vec::new(),
            given_up: Vec::new(),
            party: 0,
            suspect: None,
            wrote: false,
            waits: Waits::default(),
            since: Instant::now(),
        }
    }

    /// What a worker is lent of it.
    pub(super) fn job(&self, number: u64) -> Job {
        let given_up = self.given_up.iter().map(|given| given.policy.clone());
        Job {
            number,
            report: Arc::clone(&self.report),
            only: self.only.clone(),
            except: given_up.chain(self.handled.iter().cloned()).collect(),
            since: self.since,
        }
    }

    /// Counts a failed attempt of a policy; gives their number.
    pub(super) fn count_attempt(&mut self, policy: &str) -> u32 {
        if let Some((_, attempts)) = self.attempts.iter_mut().find(|(name, _)| name == policy) {
            *attempts += 1;
            return *attempts;
        }
        self.attempts.push((policy.to_owned(), 1));
        1
    }

    /// Notes who has handled it. A report that waits for a dependency hears of the same ones at each round.
    pub(super) fn add_handled(&mut self, policies: impl IntoIterator<Item = String>) {
        for policy in policies {
            if !self.handled.contains(&policy) {
                self.handled.push(policy);
            }
        }
    }

    /// Those of the policies that alone are to run that have neither handled it nor been given up.
    pub(super) fn undecided(&self) -> impl Iterator<Item = &str> {
        let decided = |policy: &&String| {
            self.handled.contains(policy) || self.given_up.iter().any(|given| given.policy == **policy)
        };
        self.only.iter().flatten().filter(move |policy| !decided(policy)).map(String::as_str)
    }

    /// Gives up the policies that alone were to run, and are not there any more: without a word of them it would count as handled.
    pub(super) fn give_up_missing(&mut self, is_there: impl Fn(&str) -> bool) {
        let missing: Vec<String> = self.undecided().filter(|policy| !is_there(policy)).map(str::to_owned).collect();
        self.given_up.extend(missing.into_iter().map(|policy| Given {
            policy,
            why: "it was to run on a report that was sent again, and no policy of that name is loaded".to_owned(),
            kind: ReasonKind::Policy,
        }));
    }

    /// The reason of the dead letter; `None` where no policy was given up.
    pub(super) fn reason(&self) -> Option<Reason> {
        let first = self.given_up.first()?;
        let attempts = self.attempts.iter().map(|(_, attempts)| *attempts).max().unwrap_or(1);
        let text = self.given_up.iter().map(|given| match given.policy.as_str() {
            "" => given.why.clone(),
            policy => format!("policy `{policy}`: {}", given.why),
        });
        let text = text.collect::<Vec<_>>().join("; ");
        // Where no policy is to blame, all are to run when the letter is sent again.
        let nameless = self.given_up.iter().any(|given| given.policy.is_empty());
        let names = self.given_up.iter().filter(|_| !nameless).map(|given| given.policy.clone());
        Some(Reason { kind: first.kind, text, only: names.collect(), attempts })
    }
}
