//! What a failure of a policy means for the report: who is to blame, whether it counts, and when a policy is so broken that the
//! reports must wait for a person.
//!
//! Pure: no clock and no store; the caller brings both.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::policy::Failure;

/// What to do with a policy's failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// The policy on this report: one attempt is used up.
    Policy,
    /// Maybe a neighbour in the same virtual machine: run again apart, no attempt used up.
    PerhapsNeighbour,
    /// Something outside: run again later, no attempt used up.
    Dependency,
    /// This program: a dead letter at once, for it would fail again.
    Program,
}

/// Who is to blame for a failure. `alone`: nothing else ran in that virtual machine.
pub(super) const fn blame(failure: &Failure, alone: bool) -> Blame {
    match failure {
        Failure::Error(_) | Failure::Time(_) | Failure::Cpu(_) => Blame::Policy,
        Failure::Memory if alone => Blame::Policy,
        Failure::Memory | Failure::Cancelled => Blame::PerhapsNeighbour,
        Failure::Dependency { .. } => Blame::Dependency,
        Failure::Internal(_) => Blame::Program,
    }
}

/// Reports on which a policy must work one after another before its breaker closes: with one alone, a policy that fails on six reports
/// of ten would be let go again and again, and fill the dead letters that the breaker is there to keep empty.
const PROBES: u32 = 8;

/// Whether a policy may be called on reports as they come, or is so broken that they wait.
#[derive(Debug)]
pub(super) struct Breaker {
    share: f64,
    calls: usize,
    pause: Duration,
    last: VecDeque<bool>,
    failed: usize,
    open_until: Option<Instant>,
    /// Probes that worked in a row.
    worked: u32,
}

/// What one more call told a [`Breaker`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing new.
    None,
    /// It just opened.
    Opened,
    /// It just closed: the policy works again.
    Closed,
}

impl Breaker {
    /// Opens when more than `share` of the last `calls` calls failed; lets reports try again, one at a time, after each `pause`.
    pub(super) fn new(share: f64, calls: usize, pause: Duration) -> Self {
        Self { share, calls: calls.max(1), pause, last: VecDeque::new(), failed: 0, open_until: None, worked: 0 }
    }

    /// Notes a call that worked, or failed by the policy's own fault. While it is open only the `probe` counts: what was in flight
    /// when it opened says nothing new.
    pub(super) fn record(&mut self, worked: bool, probe: bool, now: Instant) -> Turn {
        if self.open_until.is_some() {
            if !probe {
                return Turn::None;
            }
            self.worked = if worked { self.worked + 1 } else { 0 };
            if self.worked >= PROBES {
                *self = Self::new(self.share, self.calls, self.pause);
                return Turn::Closed;
            }
            self.open_until = Some(if worked { now } else { now + self.pause });
            return Turn::None;
        }
        self.last.push_back(worked);
        self.failed += usize::from(!worked);
        if self.last.len() > self.calls && self.last.pop_front() == Some(false) {
            self.failed -= 1;
        }
        if self.last.len() == self.calls && self.failed as f64 > self.share * self.calls as f64 {
            self.open_until = Some(now + self.pause);
            return Turn::Opened;
        }
        Turn::None
    }

    /// When the next report may try; `None` while it is closed.
    pub(super) const fn open_until(&self) -> Option<Instant> {
        self.open_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_error_blames_nobody_until_it_happens_alone() {
        assert_eq!(blame(&Failure::Memory, false), Blame::PerhapsNeighbour);
        assert_eq!(blame(&Failure::Memory, true), Blame::Policy);
        assert_eq!(blame(&Failure::Cancelled, true), Blame::PerhapsNeighbour);
    }

    fn breaker() -> Breaker {
        Breaker::new(0.5, 10, Duration::from_secs(1))
    }

    #[test]
    fn policy_that_fails_on_few_reports_never_opens_the_breaker() {
        let (mut breaker, now) = (breaker(), Instant::now());
        for call in 0..1000 {
            assert_eq!(
                breaker.record(call % 2 == 0, false, now),
                Turn::None,
                "exactly the share is not more than the share"
            );
        }
    }

    #[test]
    fn broken_policy_opens_it_and_probes_that_work_in_a_row_close_it() {
        let (mut breaker, now) = (breaker(), Instant::now());
        let turns: Vec<Turn> = (0..10).map(|_| breaker.record(false, false, now)).collect();
        assert_eq!(turns.iter().filter(|turn| **turn == Turn::Opened).count(), 1);
        assert_eq!(breaker.open_until(), Some(now + Duration::from_secs(1)));
        let later = now + Duration::from_secs(5);
        assert_eq!(breaker.record(false, true, later), Turn::None);
        assert_eq!(breaker.open_until(), Some(later + Duration::from_secs(1)), "a failed try waits again");
        for _ in 1..PROBES {
            assert_eq!(breaker.record(true, true, later), Turn::None);
            assert_eq!(breaker.open_until(), Some(later), "the next may try at once");
        }
        assert_eq!(breaker.record(true, true, later), Turn::Closed);
        assert_eq!(breaker.open_until(), None);
    }

    #[test]
    fn what_was_in_flight_when_it_opened_neither_closes_it_nor_keeps_it_open() {
        let (mut breaker, now) = (breaker(), Instant::now());
        for _ in 0..10 {
            breaker.record(false, false, now);
        }
        let until = breaker.open_until();
        for worked in [true, false, true, true, true, true, true, true, true, true, true] {
            assert_eq!(breaker.record(worked, false, now + Duration::from_millis(1)), Turn::None);
        }
        assert_eq!(breaker.open_until(), until);
    }

    #[test]
    fn policy_that_fails_on_six_of_ten_reports_stays_out() {
        let (mut breaker, now) = (breaker(), Instant::now());
        let turns: Vec<Turn> = (0..1000).map(|call| breaker.record(call % 10 < 4, true, now)).collect();
        assert!(turns.contains(&Turn::Opened) && !turns.contains(&Turn::Closed));
    }
}
