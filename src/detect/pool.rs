//! The workers of one process: who gets the next report, and what becomes of a worker that hangs.
//!
//! Owns how many reports and errands each worker holds, and which reports; and the errands that wait until one has room. Never looks into a
//! report.

use std::collections::{HashSet, VecDeque};

use tokio::time::Instant;

use super::errands::{Everywhere, Running, Sent};
use super::worker::{self, Job, Order, Plan, Started, WorkerId};
use crate::policy::{LoadError, PolicySet};

/// Machines for reports that run apart from the others, at once: each may take `policy.memory`.
const APART_AT_ONCE: usize = 4;

/// Earlier sets of policies that are remembered for their names. A call lives no longer than `policy.time_limit` and a hang no longer
/// than `policy.abort_after`, so few reloads fall into one.
const SETS_KEPT: usize = 16;

struct Place {
    id: WorkerId,
    started: Started,
    jobs: HashSet<u64>,
}

/// The workers. The last place is the one for reports that run apart.
pub(super) struct Pool {
    plan: Plan,
    /// Reports and errands that a worker holds at most.
    most: usize,
    /// Errands for which no worker has room, in their order. They are few: who asks for them is bounded.
    waiting: VecDeque<Sent>,
    /// What still runs of each party in a machine apart.
    parties: Vec<HashSet<u64>>,
    /// The sets before the last reloads, the latest first.
    earlier: VecDeque<PolicySet>,
    places: Vec<Place>,
}

impl Pool {
    /// Starts `workers` workers of `most` reports each, and the one for reports that run apart.
    pub(super) fn start(plan: Plan, workers: usize, most: usize) -> Result<Self, LoadError> {
        let mut pool = Self {
            plan,
            most,
            waiting: VecDeque::new(),
            parties: Vec::new(),
            earlier: VecDeque::new(),
            places: Vec::with_capacity(workers + 1),
        };
        for place in 0..=workers {
            let id = WorkerId { place, epoch: 0 };
            let started = worker::start(id, pool.plan.clone())?;
            pool.places.push(Place { id, started, jobs: HashSet::new() });
        }
        Ok(pool)
    }

    /// The worker that would take the next report or errand; `None` while all are full.
    pub(super) fn vacancy(&self) -> Option<usize> {
        vacant(&self.places[..self.apart()], &self.plan.errands, self.most)
    }

    /// Lends a report to the worker at `place`.
    pub(super) fn lend(&mut self, place: usize, job: Job) -> WorkerId {
        let place = &mut self.places[place];
        place.jobs.insert(job.number);
        // A worker's thread only ends when its sender is dropped, which is here.
        let _ = place.started.orders.send(Order::Run(job));
        place.id
    }

    /// The place for reports that run apart.
    fn apart(&self) -> usize {
        self.places.len() - 1
    }

    /// Whether there could be another machine apart.
    pub(super) fn has_vacancy_apart(&self) -> bool {
        self.parties.len() < APART_AT_ONCE
    }

    /// Lends reports to run together in a machine apart.
    pub(super) fn lend_apart(&mut self, jobs: Vec<Job>) -> WorkerId {
        let apart = self.apart();
        let place = &mut self.places[apart];
        let party: HashSet<u64> = jobs.iter().map(|job| job.number).collect();
        place.jobs.extend(&party);
        self.parties.push(party);
        let _ = place.started.orders.send(Order::RunApart(jobs));
        place.id
    }

    /// Hands an errand to a worker with room, or keeps it until there is one.
    pub(super) fn send(&mut self, sent: Sent) {
        self.waiting.push_back(sent);
        self.send_waiting();
    }

    /// Hands on what waits, as far as there is room. What nobody waits for any more is dropped: it would have no effect.
    pub(super) fn send_waiting(&mut self) {
        let late = |sent: &Sent| sent.answer.is_closed() || sent.begin_by <= Instant::now();
        while self.waiting.pop_front_if(|sent| late(sent)).is_some() {}
        while !self.waiting.is_empty()
            && let Some(place) = self.vacancy()
            && let Some(sent) = self.waiting.pop_front()
        {
            if !late(&sent) {
                self.hand(&self.places[place], sent);
            }
        }
    }

    /// Hands the same to every worker but the one for reports that run apart, whatever they hold: consoles are few, and who looks at a full
    /// worker through one must not wait behind it.
    pub(super) fn send_all(&self, line: Everywhere) {
        let Everywhere { errand, id, t, answers } = line;
        let workers = &self.places[..self.apart()];
        for (place, (answer, gone)) in workers.iter().zip(answers) {
            self.hand(place, Sent { errand: errand.clone(), id, t, answer, begin_by: Instant::now(), gone });
        }
    }

    fn hand(&self, place: &Place, sent: Sent) {
        let running = self.plan.errands.begin(place.id, &sent);
        let _ = place.started.orders.send(Order::Errand(sent, running));
    }

    /// A report came back. `false`: from a worker that was abandoned.
    pub(super) fn returned(&mut self, worker: WorkerId, number: u64) -> bool {
        let place = &mut self.places[worker.place];
        if place.id != worker || !place.jobs.remove(&number) {
            return false;
        }
        if worker.place == self.apart() {
            self.parties.retain_mut(|party| {
                party.remove(&number);
                !party.is_empty()
            });
        }
        true
    }

    /// Whether it is the worker of its place, and not one that was given up.
    pub(super) fn is_in_place(&self, worker: WorkerId) -> bool {
        self.places[worker.place].id == worker
    }

    /// Gives up a worker that hangs and starts another in its place. The reports it was lent, in no order: all are to be run again,
    /// but for the one that hangs. The thread itself cannot be ended; its outcomes are stale from now on.
    pub(super) fn abandon(&mut self, worker: WorkerId, hanging: Option<u64>) -> Result<HashSet<u64>, LoadError> {
        if !self.is_in_place(worker) {
            return Ok(HashSet::new());
        }
        let id = WorkerId { epoch: worker.epoch + 1, ..worker };
        let started = worker::start(id, self.plan.clone())?;
        if worker.place == self.apart() {
            self.parties.clear();
        }
        let place = &mut self.places[worker.place];
        let old = std::mem::replace(&mut place.started, started);
        // Set once: another worker is in its place from here on.
        let _ = old.given_up.set(hanging);
        place.id = id;
        Ok(std::mem::take(&mut place.jobs))
    }

    /// The name of a policy by its index in the set of that generation: a call that hangs may be one of a set before the last reload.
    pub(super) fn policy_name(&self, generation: u64, index: usize) -> String {
        let set = std::iter::once(&self.plan.policies).chain(&self.earlier).find(|set| set.generation() == generation);
        set.and_then(|set| set.names().nth(index)).unwrap_or_default().to_owned()
    }

    /// Whether the set of this generation is in use.
    pub(super) fn is_of_today(&self, generation: u64) -> bool {
        self.plan.policies.generation() == generation
    }

    /// Whether a policy of this name runs.
    pub(super) fn has_policy(&self, name: &str) -> bool {
        self.plan.policies.names().any(|policy| policy == name)
    }

    /// Hands new policies to every worker.
    pub(super) fn load(&mut self, policies: PolicySet) {
        for place in &self.places {
            let _ = place.started.orders.send(Order::Load(policies.clone()));
        }
        self.earlier.push_front(std::mem::replace(&mut self.plan.policies, policies));
        self.earlier.truncate(SETS_KEPT);
    }
}

/// The place with the fewest reports and errands, of those that have room.
fn vacant(places: &[Place], errands: &Running, most: usize) -> Option<usize> {
    let held = places.iter().map(|place| place.jobs.len() + errands.count(place.id)).enumerate();
    held.filter(|(_, held)| *held < most).min_by_key(|(_, held)| *held).map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::{mpsc, oneshot};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::policy::Errand;
    use crate::report::{ReportId, Time};

    fn place(place: usize, jobs: u64) -> Place {
        let started = Started { orders: mpsc::unbounded_channel().0, given_up: Arc::default() };
        Place { id: WorkerId { place, epoch: 0 }, started, jobs: (0..jobs).collect() }
    }

    fn sent(id: usize) -> Sent {
        let id = ReportId::of(&id.to_be_bytes());
        let (answer, gone) = (oneshot::channel().0, CancellationToken::new());
        let errand = Errand::Background("f".to_owned());
        Sent { errand, id, t: Time::from_micros(0), answer, begin_by: Instant::now(), gone }
    }

    #[test]
    fn errands_are_spread_over_idle_workers_and_none_takes_more_than_it_has_room_for() {
        let (places, errands) = ([place(0, 0), place(1, 2), place(2, 0)], Arc::<Running>::default());
        let mut held = Vec::new();
        let mut went = Vec::new();
        while let Some(next) = vacant(&places, &errands, 3) {
            held.push(errands.begin(places[next].id, &sent(held.len())));
            went.push(next);
        }
        assert_eq!(went, [0, 2, 0, 2, 0, 1, 2]);
        // The third one of worker 0 has ended.
        drop(held.remove(4));
        assert_eq!(vacant(&places, &errands, 3), Some(0));
    }
}
