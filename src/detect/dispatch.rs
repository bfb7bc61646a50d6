//! Which report may run now: reports of one login one after another, in the order in which they were taken; different logins side
//! by side.
//!
//! Pure. Knows jobs by number and logins by name, and nothing of what they do. The loss prevented: two reports of one login that run
//! at once each see the state without the other; and an attacker who sends a thousand reports a second for one name would, without
//! the rule for hot logins, hold everybody behind that one queue.

use std::collections::{HashMap, VecDeque};

/// How a job was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It runs in its login's order; the login's next one waits for [`Dispatch::release`].
    InOrder,
    /// Its login has too many waiting: it runs side by side with them, out of order.
    SideBySide,
}

/// While there are fresh ones too, every so many-th report started is one of a hot login that gave up its order, or one that failed
/// before: they move, and they never crowd out the others.
const LATER_SHARE: u32 = 4;

/// The reports that wait for their turn.
#[derive(Debug)]
pub(super) struct Dispatch {
    /// Waiting reports a login may have before its further ones run side by side; 0 = no limit.
    login_backlog: usize,
    /// Logins with a report that runs or is ready to; the queue holds those behind it.
    logins: HashMap<Box<str>, VecDeque<u64>>,
    /// Ready for the first time.
    fresh: VecDeque<u64>,
    side_by_side: VecDeque<u64>,
    /// Ready to run again.
    again: VecDeque<u64>,
    again_next: bool,
    turn: u32,
}

impl Dispatch {
    pub(super) fn new(login_backlog: usize) -> Self {
        Self {
            login_backlog,
            logins: HashMap::new(),
            fresh: VecDeque::new(),
            side_by_side: VecDeque::new(),
            again: VecDeque::new(),
            again_next: false,
            turn: 0,
        }
    }

    /// Lets a job in.
    pub(super) fn admit(&mut self, job: u64, login: &str) -> Place {
        let Some(behind) = self.logins.get_mut(login) else {
            self.logins.insert(login.into(), VecDeque::new());
            self.fresh.push_back(job);
            return Place::InOrder;
        };
        if self.login_backlog != 0 && behind.len() >= self.login_backlog {
            self.side_by_side.push_back(job);
            return Place::SideBySide;
        }
        behind.push_back(job);
        Place::InOrder
    }

    /// The next job to start.
    pub(super) fn next(&mut self) -> Option<u64> {
        self.turn = self.turn.wrapping_add(1);
        let later_first = self.turn.is_multiple_of(LATER_SHARE);
        if later_first && let Some(job) = self.next_later() {
            return Some(job);
        }
        self.fresh.pop_front().or_else(|| self.next_later())
    }

    /// Of the two sorts in turns: a flood of one login must not keep what is to run again from ever running.
    fn next_later(&mut self) -> Option<u64> {
        self.again_next = !self.again_next;
        let (first, second) = match self.again_next {
            true => (&mut self.again, &mut self.side_by_side),
            false => (&mut self.side_by_side, &mut self.again),
        };
        first.pop_front().or_else(|| second.pop_front())
    }

    /// The job to try a broken policy with: one that it has not failed on, where there is one. In turns with those that it has, a flood of
    /// one login would let a good one through at each pause, and the policy would be broken for hours.
    pub(super) fn next_probe(&mut self) -> Option<u64> {
        let never_ran = self.fresh.pop_front().or_else(|| self.side_by_side.pop_front());
        never_ran.or_else(|| self.again.pop_front())
    }

    /// A job that was started has to run again, still in its login's turn.
    pub(super) fn again(&mut self, job: u64) {
        self.again.push_back(job);
    }

    /// The login's running job has had its effect on the state: its next one may start.
    pub(super) fn release(&mut self, login: &str) {
        let Some(behind) = self.logins.get_mut(login) else { return };
        match behind.pop_front() {
            Some(job) => self.fresh.push_back(job),
            None => {
                self.logins.remove(login);
            }
        }
    }

    /// Whether a job could be started now.
    pub(super) fn has_ready(&self) -> bool {
        !self.fresh.is_empty() || !self.side_by_side.is_empty() || !self.again.is_empty()
    }

    /// Whether there is one that never ran.
    pub(super) fn has_fresh(&self) -> bool {
        !self.fresh.is_empty() || !self.side_by_side.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn second_report_of_a_login_waits_for_the_first() {
        let mut dispatch = Dispatch::new(64);
        dispatch.admit(1, "ann");
        dispatch.admit(2, "ann");
        dispatch.admit(3, "bob");
        assert_eq!((dispatch.next(), dispatch.next(), dispatch.next()), (Some(1), Some(3), None));
        dispatch.release("ann");
        assert_eq!(dispatch.next(), Some(2));
    }

    #[test]
    fn what_is_to_run_again_runs_although_a_hot_login_never_ends() {
        let mut dispatch = Dispatch::new(1);
        let mut job = 0;
        let mut flood = |dispatch: &mut Dispatch| {
            job += 1;
            dispatch.admit(job, "hot");
        };
        (0..10).for_each(|_| flood(&mut dispatch));
        dispatch.again(1_000_000);
        let started = (0..100).position(|_| {
            flood(&mut dispatch);
            dispatch.next() == Some(1_000_000)
        });
        assert!(started.is_some_and(|after| after < 10), "it never ran: {started:?}");
    }

    #[test]
    fn login_over_its_backlog_runs_side_by_side_and_leaves_the_others_their_turns() {
        let mut dispatch = Dispatch::new(2);
        for job in 0..100 {
            let place = dispatch.admit(job, "hot");
            assert_eq!(place == Place::SideBySide, job >= 3);
        }
        for job in 100..103 {
            dispatch.admit(job, &format!("user{job}"));
        }
        let first: Vec<u64> = (0..5).filter_map(|_| dispatch.next()).collect();
        for quiet in 100..103 {
            assert!(first.contains(&quiet), "{quiet} waited behind the hot login: {first:?}");
        }
    }

    #[test]
    fn broken_policy_is_tried_with_a_report_that_it_has_not_failed_on() {
        let mut dispatch = Dispatch::new(1);
        for job in 0..3 {
            dispatch.admit(job, &format!("bad{job}"));
            dispatch.next();
            dispatch.again(job);
        }
        assert!(!dispatch.has_fresh() && dispatch.has_ready());
        let places = (3..7).map(|job| dispatch.admit(job, "good"));
        assert_eq!(places.filter(|place| *place == Place::SideBySide).count(), 2);
        let probes: Vec<u64> = std::iter::from_fn(|| dispatch.next_probe()).collect();
        assert_eq!(probes, [3, 5, 6, 0, 1, 2]);
    }

    #[test]
    fn login_that_is_done_leaves_nothing_behind() {
        let mut dispatch = Dispatch::new(64);
        dispatch.admit(1, "ann");
        dispatch.next();
        dispatch.release("ann");
        assert!(dispatch.logins.is_empty() && !dispatch.has_ready());
    }

    proptest! {
        /// Whatever the mix of logins and the order of completion: every job starts once, jobs in order start in order and never
        /// two of a login at once.
        #[test]
        fn order_is_kept_per_login_and_nothing_is_forgotten(
            logins in proptest::collection::vec(0_u8..5, 1..200),
            choices in proptest::collection::vec(any::<prop::sample::Index>(), 400),
            backlog in 0_usize..6,
        ) {
            let mut dispatch = Dispatch::new(backlog);
            let places: Vec<Place> =
                logins.iter().enumerate().map(|(job, login)| dispatch.admit(job as u64, &login.to_string())).collect();
            let mut running: Vec<u64> = Vec::new();
            let mut started = Vec::new();
            let mut choice = choices.into_iter();
            loop {
                while let Some(job) = dispatch.next() {
                    running.push(job);
                    started.push(job);
                }
                if running.is_empty() {
                    break;
                }
                let in_order = |job: &&u64| places[**job as usize] == Place::InOrder;
                for login in 0_u8..5 {
                    let at_once = running.iter().filter(in_order).filter(|job| logins[**job as usize] == login).count();
                    prop_assert!(at_once <= 1, "two reports of one login at once");
                }
                let done = running.swap_remove(choice.next().map_or(0, |c| c.index(running.len())));
                if places[done as usize] == Place::InOrder {
                    dispatch.release(&logins[done as usize].to_string());
                }
            }
            let mut all = started.clone();
            all.sort_unstable();
            prop_assert_eq!(all, (0..logins.len() as u64).collect::<Vec<_>>());
            for login in 0_u8..5 {
                let order: Vec<u64> = started.iter().copied()
                    .filter(|job| logins[*job as usize] == login && places[*job as usize] == Place::InOrder).collect();
                prop_assert!(order.is_sorted(), "the order of a login was broken: {order:?}");
            }
            prop_assert!(dispatch.logins.is_empty());
        }
    }
}
