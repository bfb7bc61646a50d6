//! The workers of one process: who gets the next report, and what becomes of a worker that hangs.
//!
//! Owns how many reports each worker holds, and which ones. Never looks into a report.

use std::collections::{HashSet, VecDeque};

use tokio::sync::mpsc;

use super::errands::{Everywhere, Sent};
use super::worker::{self, Job, Order, Plan, WorkerId};
use crate::policy::{LoadError, PolicySet};

/// Reports that run alone, each in a VM of its own, at once.
const ALONE_AT_ONCE: usize = 8;

/// Earlier sets of policies that are remembered for their names. A call lives no longer than `policy.time_limit` and a hang no longer
/// than `policy.abort_after`, so few reloads fall into one.
const SETS_KEPT: usize = 16;

struct Place {
    id: WorkerId,
    orders: mpsc::UnboundedSender<Order>,
    jobs: HashSet<u64>,
    most: usize,
}

/// The workers.
pub(super) struct Pool {
    plan: Plan,
    /// The sets before the last reloads, the latest first.
    earlier: VecDeque<PolicySet>,
    places: Vec<Place>,
}

impl Pool {
    /// Starts `workers` workers of `most` reports each, and the one for reports that run alone.
    pub(super) fn start(plan: Plan, workers: usize, most: usize) -> Result<Self, LoadError> {
        let mut pool = Self { plan, earlier: VecDeque::new(), places: Vec::with_capacity(workers + 1) };
        for place in 0..=workers {
            let id = WorkerId { place, epoch: 0 };
            let alone = place == workers;
            let orders = worker::start(id, Plan { alone, ..pool.plan.clone() })?;
            let most = if alone { ALONE_AT_ONCE } else { most };
            pool.places.push(Place { id, orders, jobs: HashSet::new(), most });
        }
        Ok(pool)
    }

    /// The worker that would take the next report: the one with the fewest; `None` while all are full.
    pub(super) fn vacancy(&self, alone: bool) -> Option<usize> {
        let last = self.places.len() - 1;
        let candidates = if alone { last..last + 1 } else { 0..last };
        candidates
            .filter(|place| self.places[*place].jobs.len() < self.places[*place].most)
            .min_by_key(|place| self.places[*place].jobs.len())
    }

    /// Lends a report to the worker at `place`.
    pub(super) fn lend(&mut self, place: usize, job: Job) -> WorkerId {
        let place = &mut self.places[place];
        place.jobs.insert(job.number);
        // A worker's thread only ends when its sender is dropped, which is here.
        let _ = place.orders.send(Order::Run(job));
        place.id
    }

    /// Hands an errand to the worker with the fewest reports, however many those are: errands are few.
    pub(super) fn send(&self, sent: Sent) {
        let workers = &self.places[..self.places.len() - 1];
        if let Some(place) = workers.iter().min_by_key(|place| place.jobs.len()) {
            self.hand(place, sent);
        }
    }

    /// Hands the same to every worker but the one for reports that run alone.
    pub(super) fn send_all(&self, line: Everywhere) {
        let Everywhere { errand, id, t, answers } = line;
        let workers = &self.places[..self.places.len() - 1];
        for (place, (answer, gone)) in workers.iter().zip(answers) {
            self.hand(place, Sent { errand: errand.clone(), id, t, answer, gone });
        }
    }

    fn hand(&self, place: &Place, sent: Sent) {
        let running = self.plan.errands.begin(place.id, &sent);
        let _ = place.orders.send(Order::Errand(sent, running));
    }

    /// A report came back. `false`: from a worker that was abandoned.
    pub(super) fn returned(&mut self, worker: WorkerId, number: u64) -> bool {
        let place = &mut self.places[worker.place];
        place.id == worker && place.jobs.remove(&number)
    }

    /// Whether it is the worker of its place, and not one that was given up.
    pub(super) fn is_in_place(&self, worker: WorkerId) -> bool {
        self.places[worker.place].id == worker
    }

    /// Whether reports that run alone run in this worker.
    pub(super) fn is_alone(&self, worker: WorkerId) -> bool {
        worker.place + 1 == self.places.len()
    }

    /// Gives up a worker that hangs and starts another in its place. The reports it was lent, in no order: all are to be run again,
    /// but for the one that hangs. The thread itself cannot be ended; its outcomes are stale from now on.
    pub(super) fn abandon(&mut self, worker: WorkerId) -> Result<HashSet<u64>, LoadError> {
        let alone = self.is_alone(worker);
        let place = &mut self.places[worker.place];
        if place.id != worker {
            return Ok(HashSet::new());
        }
        let id = WorkerId { epoch: worker.epoch + 1, ..worker };
        place.orders = worker::start(id, Plan { alone, ..self.plan.clone() })?;
        place.id = id;
        Ok(std::mem::take(&mut place.jobs))
    }

    /// The name of a policy by its index in the set of that generation: a call that hangs may be one of a set before the last reload.
    pub(super) fn policy_name(&self, generation: u64, index: usize) -> String {
        let set = std::iter::once(&self.plan.policies).chain(&self.earlier).find(|set| set.generation() == generation);
        set.and_then(|set| set.names().nth(index)).unwrap_or_default().to_owned()
    }

    /// Whether a policy of this name runs.
    pub(super) fn has_policy(&self, name: &str) -> bool {
        self.plan.policies.names().any(|policy| policy == name)
    }

    /// Hands new policies to every worker.
    pub(super) fn load(&mut self, policies: PolicySet) {
        for place in &self.places {
            let _ = place.orders.send(Order::Load(policies.clone()));
        }
        self.earlier.push_front(std::mem::replace(&mut self.plan.policies, policies));
        self.earlier.truncate(SETS_KEPT);
    }
}
