//! What happens at a time and not at an event: reports that run again, calls that hang too long, a broken policy's next trial.
//!
//! A part of [`Detector`].

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use super::Detector;
use crate::detect::DetectError;
use crate::detect::slot::Phase;

impl Detector {
    /// `draining`: nothing more is tried with a policy that is broken.
    pub(super) fn next_timer(&self, draining: bool) -> Instant {
        let retry = self.retries.peek().map(|Reverse((at, _))| *at);
        let abort = self.hanging.iter().map(|hanging| hanging.abort_at).min();
        let breaker = self
            .breaker_opens()
            .filter(|_| !draining && self.probe.is_none() && self.dispatch.has_ready() && self.has_room());
        let far = Instant::now() + Duration::from_secs(3600);
        [retry, abort, breaker].into_iter().flatten().min().unwrap_or(far)
    }

    /// A dependency answers again: those that wait for it try soon, instead of when their backoff ends.
    pub(super) fn hurry(&mut self) {
        let now = Instant::now();
        let soon = |(at, number): (Instant, u64)| {
            let waits = self.slots.get(&number).is_some_and(|slot| slot.waits.came_back());
            (if waits { at.min(now + self.circuits.soon()) } else { at }, number)
        };
        self.retries =
            std::mem::take(&mut self.retries).into_iter().map(|Reverse(retry)| Reverse(soon(retry))).collect();
    }

    pub(super) fn retry_later(&mut self, number: u64, wait: Duration) {
        if let Some(slot) = self.slots.get_mut(&number) {
            slot.phase = Phase::Waiting;
            // While the effects of its other policies were applied it could not be hurried.
            let wait = if slot.waits.came_back() { wait.min(self.circuits.soon()) } else { wait };
            self.retries.push(Reverse((Instant::now() + wait, number)));
        }
    }

    pub(super) fn on_timer(&mut self) -> Result<(), DetectError> {
        let now = Instant::now();
        if let Some(over) = self.hanging.iter().position(|hanging| hanging.abort_at <= now) {
            let hanging = self.hanging.swap_remove(over);
            self.ends_for.push(hanging.worker);
            return Err(hanging.error());
        }
        while let Some(Reverse((at, number))) = self.retries.peek().copied()
            && at <= now
        {
            self.retries.pop();
            if let Some(slot) = self.slots.get_mut(&number) {
                slot.since = now;
                self.dispatch.again(number);
            }
        }
        Ok(())
    }
}
