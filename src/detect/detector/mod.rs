//! The one task that owns what is undecided about the reports in hand.
//!
//! It takes deliveries, starts those whose turn it is, reads outcomes, decides what follows, and hands decided reports to settling
//! tasks. Everything it awaits in its loop is an event; it never waits for a store or a policy itself.

mod guard;
mod outcome;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use guard::Hanging;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::circuit::Circuits;
use super::dispatch::{Dispatch, Place};
use super::errands::{Errands, Limits, Running};
use super::hung::HungList;
use super::intake::Intake;
use super::pool::Pool;
use super::retry::Breaker;
use super::settle::{Collected, Settler};
use super::slot::{Given, Phase, Slot};
use super::suspects::Suspects;
use super::worker::{Outcome, Plan, WorkerId, panic_text};
use super::{Control, DetectError, Parts, enrich};
use crate::decode::{self, Malformed};
use crate::policy::LoadError;
use crate::policy::watchdog;
use crate::queue::{AckToken, Delivery, Message, Reason, ReasonKind, headers};
use crate::report::{LoginReport, Time};

/// Deliveries, and workers' groups of outcomes, read in one go.
const AT_ONCE: usize = 256;
const ENDED_AT_ONCE: usize = 16;

/// What a settling task reports back.
enum Settled {
    /// Steps 1 and 2 are done, and the report goes on here: it has policies to run again.
    Applied(u64, Duration),
    /// They panicked: the report is a dead letter.
    Faulted(u64, String),
    /// Steps 1 and 2 are done, the rest goes on by itself: the login's next report may start.
    Released(Box<str>),
}

pub(super) struct Detector {
    parts: Parts,
    settler: Arc<Settler>,
    circuits: Arc<Circuits>,
    any_circuit: watch::Receiver<bool>,
    recoveries: watch::Receiver<u64>,
    dispatch: Dispatch,
    intake: Intake,
    pool: Pool,
    /// Boxed: a table that grows has room for twice as many, and the old one beside it.
    slots: HashMap<u64, Box<Slot>>,
    next_number: u64,
    running: usize,
    suspects: Suspects,
    retries: BinaryHeap<Reverse<(Instant, u64)>>,
    breakers: HashMap<String, Breaker>,
    /// The report that tries whether a policy with an open breaker works again.
    probe: Option<u64>,
    hung: HungList,
    /// The calls that hang.
    hanging: Vec<Hanging>,
    /// The worker because of whose call the process ends.
    ends_for: Option<WorkerId>,
    tasks: TaskTracker,
    /// Ends the settling tasks when a drain runs out of time: their tokens hand the reports out again.
    cut: CancellationToken,
    outcomes: mpsc::UnboundedReceiver<Vec<Outcome>>,
    settled: mpsc::UnboundedReceiver<Settled>,
    report_settled: mpsc::UnboundedSender<Settled>,
    hangs: mpsc::UnboundedReceiver<(WorkerId, watchdog::Event)>,
    /// The errands that run in the workers.
    errands: Arc<Running>,
    /// When the giving up of order was last said, and how often since.
    unordered: (Instant, u64),
}

impl Detector {
    pub(super) fn new(parts: Parts) -> Result<Self, LoadError> {
        let (report_outcomes, outcomes) = mpsc::unbounded_channel();
        let (report_settled, settled) = mpsc::unbounded_channel();
        let (tell_hangs, hangs) = mpsc::unbounded_channel();
        let metrics = Arc::clone(&parts.services.metrics);
        let circuits = Arc::new(Circuits::new(parts.backoff, Arc::clone(&parts.health), Arc::clone(&metrics)));
        let errands = Arc::<Running>::default();
        let plan = Plan {
            policies: parts.policies.clone(),
            services: parts.services.clone(),
            devices: Arc::clone(&parts.devices),
            settings: parts.policy.clone(),
            hangs: tell_hangs,
            errands: Arc::clone(&errands),
            outcomes: report_outcomes,
        };
        Ok(Self {
            settler: Arc::new(Settler {
                alerts: Arc::clone(&parts.alerts),
                state: Arc::clone(&parts.services.state),
                history: Arc::clone(&parts.services.history),
                circuits: Arc::clone(&circuits),
                metrics,
            }),
            any_circuit: circuits.watch(),
            recoveries: circuits.recoveries(),
            circuits,
            dispatch: Dispatch::new(parts.settings.login_backlog),
            intake: Intake::new(parts.settings.unsettled, parts.settings.drain_timeout, Instant::now()),
            pool: Pool::start(plan, parts.settings.worker_count(), parts.policy.in_flight)?,
            slots: HashMap::new(),
            next_number: 0,
            running: 0,
            suspects: Suspects::default(),
            retries: BinaryHeap::new(),
            breakers: HashMap::new(),
            probe: None,
            hung: HungList::open(parts.hung_list.clone()),
            hanging: Vec::new(),
            ends_for: None,
            tasks: TaskTracker::new(),
            cut: CancellationToken::new(),
            outcomes,
            settled,
            report_settled,
            hangs,
            errands,
            unordered: (Instant::now(), 0),
            parts,
        })
    }

    /// The way here for what is no report.
    pub(super) fn errands(&self, control: mpsc::Sender<Control>) -> Errands {
        let settings = &self.parts.settings;
        let limits = Limits {
            time: self.parts.policy.time_limit,
            workers: settings.worker_count(),
            at_once: settings.errands,
            effects: settings.errand_effects,
        };
        Errands::new(control, Arc::clone(&self.settler), limits, self.tasks.clone(), self.cut.clone())
    }

    /// Runs until it is told to drain or fails (the end of its source is a failure); what it holds is finished or handed back.
    pub(super) async fn run(mut self, control: mpsc::Receiver<Control>) -> Result<(), DetectError> {
        let mut deadline = None;
        let ended = self.serve(control, &mut deadline).await;
        self.hand_back(deadline.unwrap_or_else(tokio::time::Instant::now)).await;
        ended
    }

    /// Serves until the drain that `until` gets the end of has nothing more to wait for.
    async fn serve(
        &mut self,
        mut control: mpsc::Receiver<Control>,
        until: &mut Option<tokio::time::Instant>,
    ) -> Result<(), DetectError> {
        let mut ended = Ok(());
        let beat = self.parts.health.beat("detect");
        let mut heart = tokio::time::interval(Duration::from_secs(1));
        let mut deliveries = Vec::with_capacity(AT_ONCE);
        let mut outcomes = Vec::with_capacity(ENDED_AT_ONCE);
        while until.is_none_or(|deadline| self.can_finish_more(deadline)) {
            if until.is_none() || !self.is_stuck() {
                self.start_ready();
            }
            let held = until.is_some() || self.held();
            self.parts.reports.pause.send_if_modified(|paused| std::mem::replace(paused, held) != held);
            // With a broken policy, reports that it has not failed on are still to come.
            let full = self.intake.is_full(self.slots.len(), self.running) && self.breaker_opens().is_none();
            let timer = tokio::time::Instant::from(self.next_timer());
            let wake = until.map_or(timer, |deadline| deadline.min(timer));
            let step = tokio::select! {
                biased;
                order = control.recv(), if until.is_none() => match order {
                    Some(Control::Load(policies, done)) => {
                        self.load(policies);
                        let _ = done.send(());
                        Ok(())
                    }
                    Some(Control::Errand(sent)) => {
                        self.pool.send(sent);
                        Ok(())
                    }
                    Some(Control::Everywhere(line)) => {
                        self.pool.send_all(line);
                        Ok(())
                    }
                    Some(Control::Drain) | None => {
                        *until = Some(self.take_no_more().await);
                        Ok(())
                    }
                },
                Some((worker, event)) = self.hangs.recv() => self.on_watchdog(worker, event),
                _ = self.outcomes.recv_many(&mut outcomes, ENDED_AT_ONCE) => {
                    for outcome in outcomes.drain(..).flatten() {
                        self.on_outcome(outcome);
                    }
                    Ok(())
                }
                Some(settled) = self.settled.recv() => {
                    self.on_settled(settled);
                    Ok(())
                }
                () = tokio::time::sleep_until(wake) => self.on_timer(),
                _ = heart.tick() => {
                    beat.beat();
                    self.intake.tick(Instant::now());
                    Ok(())
                }
                _ = self.any_circuit.changed() => Ok(()),
                _ = self.recoveries.changed() => {
                    self.hurry();
                    Ok(())
                }
                taken = self.parts.reports.deliveries.recv_many(&mut deliveries, AT_ONCE), if !held && !full => {
                    for delivery in deliveries.drain(..) {
                        self.on_delivery(delivery);
                    }
                    if taken == 0 { Err(DetectError::Source) } else { Ok(()) }
                }
            };
            if let Err(error) = step {
                ended = ended.and(Err(error));
                if until.is_none() {
                    *until = Some(self.take_no_more().await);
                }
            }
        }
        beat.done();
        ended
    }

    /// A dependency is out, or a policy is so broken that the reports wait.
    fn is_stuck(&self) -> bool {
        *self.any_circuit.borrow() || self.breaker_opens().is_some()
    }

    /// Begins a drain: what was not looked at yet goes back. Gives its end.
    async fn take_no_more(&mut self) -> tokio::time::Instant {
        self.parts.reports.pause.send_replace(true);
        self.parts.reports.deliveries.close();
        while self.parts.reports.deliveries.recv().await.is_some() {}
        tokio::time::Instant::now() + self.parts.settings.drain_timeout
    }

    /// Whether a drain goes on. All that was taken is finished, whether it runs or waits for its turn: where a queue stores one position
    /// a partition, a report that is handed back brings all that was handled behind it again. What waits for a dependency or for a
    /// broken policy is not waited for; nor is the call that hangs because of which the process ends, and what waits behind it for its
    /// login's turn.
    fn can_finish_more(&self, deadline: tokio::time::Instant) -> bool {
        let stuck = self.is_stuck();
        let hangs = |slot: &Slot| self.ends_for.is_some_and(|worker| slot.phase == Phase::Hanging(worker));
        let held = self.ends_for.and_then(|_| self.slots.values().find(|slot| hangs(slot)));
        let more = self.slots.values().any(|slot| match slot.phase {
            Phase::Waiting => {
                let in_order = slot.place == Place::InOrder;
                let behind = held.is_some_and(|held| {
                    in_order && held.place == Place::InOrder && held.report.login == slot.report.login
                });
                !stuck && !behind
            }
            Phase::Running(_) | Phase::Applying => true,
            Phase::Hanging(_) => !hangs(slot),
        });
        let late = deadline <= tokio::time::Instant::now();
        if more && late {
            tracing::warn!(
                reports = self.slots.len(),
                "detect.drain_timeout is over; the rest is handed out again later"
            );
        }
        more && !late
    }

    /// Nothing more is taken: a dependency is out, or a policy is so broken that the reports wait. Then some are still taken where none
    /// is in hand that the policy has not failed on: it could not be seen to work again otherwise.
    fn held(&self) -> bool {
        *self.any_circuit.borrow() || (self.breaker_opens().is_some() && self.dispatch.has_fresh())
    }

    fn next_timer(&self) -> Instant {
        let retry = self.retries.peek().map(|Reverse((at, _))| *at);
        let abort = self.hanging.iter().map(|hanging| hanging.abort_at).min();
        let breaker =
            self.breaker_opens().filter(|_| self.probe.is_none() && self.dispatch.has_ready() && self.has_room());
        let far = Instant::now() + Duration::from_secs(3600);
        [retry, abort, breaker].into_iter().flatten().min().unwrap_or(far)
    }

    /// Whether another report could be lent to a worker.
    fn has_room(&self) -> bool {
        self.running < self.parts.settings.in_flight && self.pool.vacancy().is_some()
    }

    /// A dependency answers again: those that wait for one try soon, instead of when their backoff ends.
    fn hurry(&mut self) {
        let now = Instant::now();
        let soon = |(at, number): (Instant, u64)| {
            let waits = self.slots.get(&number).is_some_and(|slot| slot.waits.is_some());
            (if waits { at.min(now + self.circuits.soon()) } else { at }, number)
        };
        self.retries =
            std::mem::take(&mut self.retries).into_iter().map(|Reverse(retry)| Reverse(soon(retry))).collect();
    }

    fn on_delivery(&mut self, delivery: Delivery) {
        let metrics = Arc::clone(&self.parts.services.metrics);
        metrics.unsettled.inc();
        let Delivery { message, coordinates, token, .. } = delivery;
        let read = catch_unwind(AssertUnwindSafe(|| self.read(&message, &coordinates)));
        let reason = match read {
            Ok(Ok(report)) => return self.admit(token, report, &message),
            Ok(Err(malformed)) => (ReasonKind::Malformed, format!("not a report: {malformed}")),
            Err(panic) => (ReasonKind::Internal, format!("a fault of this program: {}", panic_text(&*panic))),
        };
        metrics.unsettled.dec();
        metrics.handled.inc();
        let (kind, text) = reason;
        token.reject(Reason { kind, text, only: Vec::new(), attempts: 1 });
    }

    fn read(&self, message: &Message, coordinates: &str) -> Result<LoginReport, Malformed> {
        let decoded = decode::decode(&message.body, &self.parts.limits)?;
        let (received, skew) = (Time::now(), self.parts.max_skew);
        let mut report = decoded.from_queue(Some(message.published), &message.body, coordinates, received, skew);
        enrich(&mut report, &self.parts.services);
        Ok(report)
    }

    fn admit(&mut self, token: AckToken, report: LoginReport, message: &Message) {
        let only: Option<Vec<String>> =
            message.header(headers::ONLY).map(|names| names.split(',').map(str::to_owned).collect());
        let number = self.next_number;
        self.next_number += 1;
        let place = self.dispatch.admit(number, &report.login);
        if place == Place::SideBySide {
            self.say_unordered();
        }
        let mut slot = Slot::new(token, report, place, only);
        for missing in slot.only.iter().flatten().filter(|name| !self.pool.has_policy(name)) {
            let why = "it was to run on a report that was sent again, and no policy of that name is loaded".to_owned();
            slot.given_up.push(Given { policy: missing.clone(), why, kind: ReasonKind::Policy });
        }
        if !self.hung.is_empty() {
            self.give_up_hung(&mut slot);
        }
        self.slots.insert(number, Box::new(slot));
    }

    fn say_unordered(&mut self) {
        self.parts.services.metrics.unordered.inc();
        self.unordered.1 += 1;
        if self.unordered.0.elapsed() >= Duration::from_secs(60) {
            tracing::warn!(
                reports = self.unordered.1,
                "reports of logins with more than detect.login_backlog waiting ran out of order"
            );
            self.unordered = (Instant::now(), 0);
        }
    }

    fn start_ready(&mut self) {
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

    fn on_settled(&mut self, settled: Settled) {
        match settled {
            Settled::Applied(number, wait) => {
                // It was counted down when its task ended, and is in hand again.
                self.parts.services.metrics.unsettled.inc();
                self.retry_later(number, wait);
            }
            Settled::Faulted(number, said) => {
                self.parts.services.metrics.unsettled.inc();
                tracing::error!(
                    error = said,
                    "a panic while a report's effects were applied; it becomes a dead letter"
                );
                let why = format!("a fault of this program: {said}");
                self.give_up(number, Given { policy: String::new(), why, kind: ReasonKind::Internal });
                self.finish(number, Collected::default());
            }
            Settled::Released(login) => self.dispatch.release(&login),
        }
    }

    fn retry_later(&mut self, number: u64, wait: Duration) {
        if let Some(slot) = self.slots.get_mut(&number) {
            slot.phase = Phase::Waiting;
            self.retries.push(Reverse((Instant::now() + wait, number)));
        }
    }

    fn on_timer(&mut self) -> Result<(), DetectError> {
        let now = Instant::now();
        if let Some(over) = self.hanging.iter().position(|hanging| hanging.abort_at <= now) {
            let hanging = self.hanging.swap_remove(over);
            self.ends_for = Some(hanging.worker);
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

    /// Lets what is decided settle until the end of the drain; everything else is dropped, and so handed out again later.
    async fn hand_back(mut self, deadline: tokio::time::Instant) {
        self.slots.clear();
        self.tasks.close();
        if tokio::time::timeout_at(deadline, self.tasks.wait()).await.is_err() {
            self.cut.cancel();
            self.tasks.wait().await;
        }
        if tokio::time::timeout(Duration::from_secs(5), self.parts.reports.source).await.is_err() {
            tracing::warn!("the source did not store its position in time; a little will be handed out again");
        }
    }
}
