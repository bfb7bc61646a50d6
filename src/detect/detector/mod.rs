//! The one task that owns what is undecided about the reports in hand.
//!
//! It takes deliveries, starts those whose turn it is, reads outcomes, decides what follows, and hands decided reports to settling
//! tasks. Everything it awaits in its loop is an event; it never waits for a store or a policy itself.

mod admit;
mod drain;
mod guard;
mod outcome;
mod start;
mod timers;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use guard::Hanging;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::circuit::Circuits;
use super::dispatch::Dispatch;
use super::errands::{Errands, Limits, Running};
use super::hung::HungList;
use super::intake::Intake;
use super::outdated::Outdated;
use super::pool::Pool;
use super::retry::Breaker;
use super::settle::{Collected, Settler};
use super::slot::{Given, Slot};
use super::suspects::Suspects;
use super::worker::{Outcome, Plan, WorkerId};
use super::{Control, DetectError, Parts};
use crate::policy::LoadError;
use crate::policy::watchdog;
use crate::queue::ReasonKind;

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
    outdated: Outdated,
    running: usize,
    suspects: Suspects,
    retries: BinaryHeap<Reverse<(Instant, u64)>>,
    breakers: HashMap<String, Breaker>,
    /// The report that tries whether a policy with an open breaker works again.
    probe: Option<u64>,
    hung: HungList,
    /// The calls that hang.
    hanging: Vec<Hanging>,
    /// The workers because of whose calls the process ends.
    ends_for: Vec<WorkerId>,
    tasks: TaskTracker,
    /// Ends the settling tasks when a drain runs out of time: their tokens hand the reports out again.
    cut: CancellationToken,
    outcomes: mpsc::UnboundedReceiver<Vec<Outcome>>,
    settled: mpsc::UnboundedReceiver<Settled>,
    report_settled: mpsc::UnboundedSender<Settled>,
    hangs: mpsc::UnboundedReceiver<(WorkerId, watchdog::Event)>,
    /// The errands that run in the workers.
    running_errands: Arc<Running>,
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
            outdated: Outdated::default(),
            running: 0,
            suspects: Suspects::default(),
            retries: BinaryHeap::new(),
            breakers: HashMap::new(),
            probe: None,
            hung: HungList::open(parts.hung_list.clone()),
            hanging: Vec::new(),
            ends_for: Vec::new(),
            tasks: TaskTracker::new(),
            cut: CancellationToken::new(),
            outcomes,
            settled,
            report_settled,
            hangs,
            running_errands: errands,
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
        let errands = Arc::clone(&self.running_errands);
        while until.is_none_or(|deadline| self.can_finish_more(deadline)) {
            self.pool.send_waiting();
            if until.is_none() || !self.is_stuck() {
                self.start_ready();
            }
            let held = until.is_some() || self.held();
            self.parts.reports.pause.send_if_modified(|paused| std::mem::replace(paused, held) != held);
            // With a broken policy, reports that it has not failed on are still to come.
            let full = self.intake.is_full(self.slots.len(), self.running) && self.breaker_opens().is_none();
            let timer = tokio::time::Instant::from(self.next_timer(until.is_some()));
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
                () = errands.ended() => Ok(()),
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

    /// Nothing more is taken: a dependency is out, or a policy is so broken that the reports wait. Then some are still taken where none
    /// is in hand that the policy has not failed on: it could not be seen to work again otherwise.
    fn held(&self) -> bool {
        *self.any_circuit.borrow() || (self.breaker_opens().is_some() && self.dispatch.has_fresh())
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
}
