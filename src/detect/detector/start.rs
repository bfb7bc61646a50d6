//! Who runs next: those whose turn it is are lent to the workers, and suspects to machines apart.
//!
//! A part of [`Detector`]. What comes back is for `outcome`.

use std::time::Instant;

use super::Detector;
use crate::detect::slot::Phase;

impl Detector {
    pub(super) fn start_ready(&mut self) {
        self.start_apart();
        self.start_next();
        // Those that were found among the next ones.
        self.start_apart();
    }

    /// They were in flight before, so `detect.in_flight` does not hold them up.
    fn start_apart(&mut self) {
        while self.pool.has_vacancy_apart()
            && let Some(party) = self.suspects.next(self.parts.policy.in_flight)
        {
            self.lend_apart(party);
        }
    }

    fn start_next(&mut self) {
        while self.running < self.parts.settings.in_flight && self.dispatch.has_ready() {
            let trying = match self.breaker_opens() {
                None => false,
                Some(at) if self.probe.is_none() && Instant::now() >= at => true,
                Some(_) => return,
            };
            let Some(place) = self.pool.vacancy() else { return };
            let next = if trying { self.dispatch.next_probe() } else { self.dispatch.next() };
            let Some(number) = next else { return };
            if trying {
                self.probe = Some(number);
            }
            match self.slots.get(&number).and_then(|slot| slot.suspect) {
                Some(party) => self.suspects.add(number, party),
                None => self.lend(place, number),
            }
        }
    }

    fn lend(&mut self, place: usize, number: u64) {
        let Some(slot) = self.slots.get_mut(&number) else { return };
        let worker = self.pool.lend(place, slot.job(number));
        slot.phase = Phase::Running(worker);
        self.count_running(1);
    }

    fn lend_apart(&mut self, party: Vec<u64>) {
        let jobs = party.iter().filter_map(|number| Some(self.slots.get(number)?.job(*number))).collect();
        let worker = self.pool.lend_apart(jobs);
        self.count_running(party.len());
        for number in &party {
            if let Some(slot) = self.slots.get_mut(number) {
                (slot.phase, slot.party) = (Phase::Running(worker), party.len());
            }
        }
    }

    fn count_running(&mut self, more: usize) {
        self.running += more;
        self.parts.services.metrics.in_flight.add(i64::try_from(more).unwrap_or(i64::MAX));
    }

    /// Whether another report could be lent to a worker.
    pub(super) fn has_room(&self) -> bool {
        self.running < self.parts.settings.in_flight && self.pool.vacancy().is_some()
    }
}
