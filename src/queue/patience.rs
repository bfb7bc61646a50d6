//! How long what is in flight is waited for where it goes to another process.
//!
//! Pure: the times are arguments. Owns the rule: as long as some of it gets done, the wait goes on, because each of the rest would be
//! handled twice; what stands still is not waited for, because everything else of this process may stand behind it.

use std::time::{Duration, Instant};

/// How many times the time without progress the wait lasts at most.
const MOST: u32 = 6;

/// See the module.
#[derive(Debug)]
pub(super) struct Patience {
    without_progress: Duration,
    end: Instant,
    until: Instant,
    least: usize,
}

impl Patience {
    /// Waits from `now` on for `left` in flight.
    pub(super) fn new(without_progress: Duration, left: usize, now: Instant) -> Self {
        let end = now + without_progress * MOST;
        Self { without_progress, end, until: now + without_progress, least: left }
    }

    /// Whether it is at its end. `left`: what is still in flight.
    pub(super) fn is_over(&mut self, left: usize, now: Instant) -> bool {
        if left < self.least {
            self.least = left;
            self.until = (now + self.without_progress).min(self.end);
        }
        now >= self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_goes_on_with_progress_ends_without_and_never_lasts_for_ever() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let patience = |left| Patience::new(Duration::from_secs(5), left, start);
        let mut still = patience(10);
        assert!(!still.is_over(10, at(4)) && still.is_over(10, at(5)), "what stands still is waited for");
        let mut steady = patience(100);
        for second in 1..30 {
            assert!(!steady.is_over(100 - second as usize, at(second)), "given up at {second} s in spite of progress");
        }
        assert!(steady.is_over(1, at(30)), "it lasts for ever");
        let mut worse = patience(10);
        assert!(!worse.is_over(12, at(4)) && worse.is_over(11, at(5)), "what came in between is no progress");
    }
}
