//! How many reports are taken in hand at once: no more than a drain can finish.
//!
//! Pure: times are arguments. Where a queue stores one position a partition, what is not finished when a drain is out of time brings
//! everything behind it again, handled or not. So what is in hand follows from how many are decided a second; it is at least twice the
//! handlers that run (fewer would keep handlers from running, and then allow still fewer), and at most the bound that is set.

use std::time::{Duration, Instant};

/// The share of the drain's time for which there may be work in hand: the machine may be slower just then, and history and ack follow.
const SHARE: f64 = 0.2;
/// So many are always in hand: nothing is known at the start, and a drain finishes as many anyhow.
const LEAST: usize = 4000;
/// How much of the rate a second's count is.
const WEIGHT: f64 = 0.4;
/// Full, nothing is taken before there is room for a quarter: a source that stops and starts throws away what it has fetched ahead.
const ROOM: f64 = 0.75;

/// See the module.
#[derive(Debug)]
pub(super) struct Intake {
    most: usize,
    seconds: f64,
    decided: u32,
    since: Instant,
    rate: f64,
    full: bool,
}

impl Intake {
    /// `most`: reports unsettled; `drain`: the time of a drain.
    pub(super) fn new(most: usize, drain: Duration, now: Instant) -> Self {
        let seconds = drain.as_secs_f64() * SHARE;
        Self { most, seconds, decided: 0, since: now, rate: 0.0, full: false }
    }

    /// A report is decided.
    pub(super) const fn decided(&mut self) {
        self.decided = self.decided.saturating_add(1);
    }

    /// About every second.
    pub(super) fn tick(&mut self, now: Instant) {
        let elapsed = now.duration_since(self.since).as_secs_f64();
        if elapsed < 0.5 {
            return;
        }
        let last = f64::from(std::mem::take(&mut self.decided)) / elapsed;
        self.rate = if self.rate == 0.0 { last } else { self.rate * (1.0 - WEIGHT) + last * WEIGHT };
        self.since = now;
    }

    fn limit(&self, running: usize) -> usize {
        ((self.rate * self.seconds) as usize).max(2 * running).max(LEAST).min(self.most)
    }

    /// Whether nothing more is taken while so many are in hand, and so many of them run.
    pub(super) fn is_full(&mut self, in_hand: usize, running: usize) -> bool {
        let limit = self.limit(running);
        let until = if self.full { (limit as f64 * ROOM) as usize } else { limit };
        self.full = in_hand >= until.max(1);
        self.full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(most: usize, each_second: &[u32]) -> Intake {
        let start = Instant::now();
        let mut intake = Intake::new(most, Duration::from_secs(20), start);
        for (second, count) in each_second.iter().enumerate() {
            (0..*count).for_each(|_| intake.decided());
            intake.tick(start + Duration::from_secs(second as u64 + 1));
        }
        intake
    }

    #[test]
    fn what_is_in_hand_is_what_a_drain_can_finish() {
        // 20 s of drain, of which 4 are reckoned with.
        assert_eq!(after(100_000, &[5000; 9]).limit(100), 20_000);
        assert_eq!(after(100_000, &[50_000; 3]).limit(100), 100_000, "the bound that is set holds");
        assert_eq!(after(100_000, &[10; 9]).limit(10), LEAST);
        assert_eq!(after(100_000, &[]).limit(0), LEAST, "nothing is known at the start");
        assert_eq!(after(10, &[5000; 9]).limit(10), 10);
        let slower = after(100_000, &[[5000; 5], [1000; 5]].concat()).limit(100);
        assert!((4000..6000).contains(&slower), "it follows within seconds: {slower}");
    }

    #[test]
    fn handlers_that_take_long_are_never_kept_from_running() {
        // Each takes a minute: next to nothing is decided, and still ten thousand come to run.
        let intake = after(100_000, &[1; 9]);
        let mut running = 0;
        for _ in 0..10 {
            running = intake.limit(running).min(10_000);
        }
        assert_eq!(running, 10_000);
    }

    #[test]
    fn full_intake_takes_again_when_there_is_room_for_a_quarter() {
        let mut intake = after(100_000, &[]);
        assert!(!intake.is_full(3999, 0) && intake.is_full(4000, 0));
        assert!(intake.is_full(3999, 0) && intake.is_full(3000, 0) && !intake.is_full(2999, 0));
        assert!(!intake.is_full(3999, 0));
    }
}
