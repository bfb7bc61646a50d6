//! One worker: a thread with a Lua VM and many reports in flight.
//!
//! Owns the thread and the running of a report's policies one after another. It is lent reports and returns
//! outcomes; it never holds a token, never settles and never retries, so that a worker that hangs can be abandoned.

use std::any::Any;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::Either;
use tokio::sync::mpsc;

use super::errands::{Running, Sent, WhileRunning};
use super::machines::{Apart, Machines};
use super::side_by_side;
use crate::device::Devices;
use crate::policy::watchdog::{self, Event};
use crate::policy::{Effects, Failure, LoadError, PolicySet, Services, Settings, Vm};
use crate::report::LoginReport;
use crate::state::{State, StateError};

/// Which worker: its place in the pool, and how often the worker of that place was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct WorkerId {
    pub(super) place: usize,
    pub(super) epoch: u32,
}

/// A report lent to a worker.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) number: u64,
    pub(super) report: Arc<LoginReport>,
    /// Only these policies; `None`: all.
    pub(super) only: Option<Vec<String>>,
    /// All but these.
    pub(super) except: Vec<String>,
    /// Since when it could run.
    pub(super) since: Instant,
}

/// One policy's call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) policy: String,
    pub(super) result: Result<Effects, Failure>,
}

/// What became of a job.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) worker: WorkerId,
    pub(super) number: u64,
    /// The policies that had handled the report before it was lent.
    pub(super) handled_before: Vec<String>,
    /// The generation of the set in which it ran.
    pub(super) set: u64,
    pub(super) calls: Vec<Call>,
    /// The state did not say who had handled it before: nothing was run.
    pub(super) state_error: Option<StateError>,
    /// How long it waited for its turn and a worker, and how long its handlers ran.
    pub(super) waited: Duration,
    pub(super) ran: Duration,
}

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Order {
    Run(Job),
    /// Run these together in a machine of which no others know.
    RunApart(Vec<Job>),
    /// Run something besides reports.
    Errand(Sent, WhileRunning),
    /// Use these policies for the next reports; those in flight finish with the old ones.
    Load(PolicySet),
}

/// All that a worker needs to start.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) policies: PolicySet,
    pub(super) services: Services,
    pub(super) devices: Arc<Devices>,
    pub(super) settings: Settings,
    /// Where the watchdog tells of a call that hangs, with the worker in which it does.
    pub(super) hangs: mpsc::UnboundedSender<(WorkerId, Event)>,
    /// The errands that run in the workers.
    pub(super) errands: Arc<Running>,
    pub(super) outcomes: mpsc::UnboundedSender<Vec<Outcome>>,
}

fn start_error(text: String) -> LoadError {
    LoadError::from(std::io::Error::other(text))
}

/// Set when a worker is given up: the report that hangs in it, or none where what hangs is no report.
type GivenUp = Arc<OnceLock<Option<u64>>>;

/// The way to a worker.
pub(super) struct Started {
    pub(super) orders: mpsc::UnboundedSender<Order>,
    pub(super) given_up: GivenUp,
}

/// Starts a worker. It ends when the sender is dropped and its reports have ended. An error: the policies do not load, or the
/// system gives no thread.
pub(super) fn start(id: WorkerId, plan: Plan) -> Result<Started, LoadError> {
    let (orders, inbox) = mpsc::unbounded_channel();
    let given_up = Arc::<OnceLock<_>>::default();
    let asked = Arc::clone(&given_up);
    let (ready, started) = std::sync::mpsc::sync_channel(1);
    // One that blocks for ever would hold up whoever starts the worker, and that may be the task that all reports pass.
    let most = plan.policies.load_limit();
    let thread = std::thread::Builder::new().name(format!("policy-{}", id.place)).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = ready.send(Err(LoadError::from(error)));
                return;
            }
        };
        let (hangs, outcomes) = (plan.hangs.clone(), plan.outcomes.clone());
        let _watched = watchdog::register(id.place, plan.settings.stuck_after, move |event| {
            let _ = hangs.send((id, event));
        });
        runtime.block_on(async move {
            match Worker::new(id, plan, asked) {
                Ok(worker) => {
                    let _ = ready.send(Ok(()));
                    worker.serve(inbox, outcomes).await;
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        });
    });
    thread.map_err(LoadError::from)?;
    match started.recv_timeout(most) {
        Ok(outcome) => outcome.map(|()| Started { orders, given_up }),
        Err(RecvTimeoutError::Disconnected) => Err(start_error("the worker's thread ended at its start".to_owned())),
        Err(RecvTimeoutError::Timeout) => Err(start_error(format!(
            "its policies were not loaded within {most:?}; what does one wait for at its top level?"
        ))),
    }
}

struct Worker {
    id: WorkerId,
    given_up: GivenUp,
    state: Arc<dyn State>,
    devices: Arc<Devices>,
    machines: Machines,
}

impl Worker {
    fn new(id: WorkerId, plan: Plan, given_up: GivenUp) -> Result<Self, LoadError> {
        let Plan { policies, services, devices, settings, .. } = plan;
        let state = Arc::clone(&services.state);
        Ok(Self { id, given_up, state, devices, machines: Machines::new(policies, services, settings)? })
    }

    /// Runs what it is told to.
    async fn serve(&self, orders: mpsc::UnboundedReceiver<Order>, outcomes: mpsc::UnboundedSender<Vec<Outcome>>) {
        side_by_side::run(
            orders,
            |order, running| {
                self.machines.count_memory();
                match order {
                    Order::Run(job) => running.push(Either::Left(self.run(job, None))),
                    Order::RunApart(jobs) => {
                        let vm = self.machines.apart();
                        jobs.into_iter().for_each(|job| running.push(Either::Left(self.run(job, Some(vm.clone())))));
                    }
                    Order::Errand(sent, known) => {
                        running.push(Either::Right(self.run_errand(sent, known).map(|()| None)));
                    }
                    Order::Load(policies) => self.machines.load(policies),
                }
            },
            |ended| {
                self.machines.count_memory();
                // Where nobody takes them any more, the process is ending and the reports will be handed out again.
                let _ = outcomes.send(ended);
            },
        )
        .await;
    }

    /// `None`: the worker was given up meanwhile, and the report runs elsewhere.
    async fn run(&self, job: Job, apart: Option<Apart>) -> Option<Outcome> {
        let waited = job.since.elapsed();
        let began = Instant::now();
        let mut policies = pin!(AssertUnwindSafe(self.run_policies(&job, apart)).catch_unwind());
        // Asked at each step: what goes on here would send its requests a second time, and beside its login's next report.
        let ran = poll_fn(|context| match self.given_up.get() {
            Some(hanging) if *hanging != Some(job.number) => Poll::Ready(None),
            _ => policies.as_mut().poll(context).map(Some),
        });
        let ran = ran.await?;
        // Without an outcome the report would be in hand for ever, and its login would wait behind it.
        let outcome =
            ran.unwrap_or_else(|panic| self.outcome(&job, vec![nobodys(Failure::Internal(panic_text(&*panic)))]));
        Some(Outcome { waited, ran: began.elapsed(), ..outcome })
    }

    /// That of a job which nobody has handled before, with the policies that are in use now.
    fn outcome(&self, job: &Job, calls: Vec<Call>) -> Outcome {
        Outcome {
            worker: self.id,
            number: job.number,
            handled_before: Vec::new(),
            set: self.machines.generation(),
            calls,
            state_error: None,
            waited: Duration::ZERO,
            ran: Duration::ZERO,
        }
    }

    async fn run_policies(&self, job: &Job, apart: Option<Apart>) -> Outcome {
        // Here and not in the detector's one task, which every report passes: see `Devices::read`.
        self.devices.read(&job.report);
        match self.state.handled(job.report.id).await {
            Ok(handled) => {
                let outcome = self.call_policies(job, &handled, apart).await;
                Outcome { handled_before: handled, ..outcome }
            }
            Err(error) => Outcome { state_error: Some(error), ..self.outcome(job, Vec::new()) },
        }
    }

    async fn call_policies(&self, job: &Job, handled: &[String], apart: Option<Apart>) -> Outcome {
        match apart {
            None => {
                let vm = self.machines.fit();
                // Making one may have hung until the report was run elsewhere: `run` asks before it goes on.
                if self.given_up.get().is_some() {
                    tokio::task::yield_now().await;
                }
                self.call_in(&vm, job, handled).await
            }
            Some(Ok(vm)) => {
                let outcome = self.call_in(&vm, job, handled).await;
                self.machines.give_back(vm);
                outcome
            }
            Some(Err(said)) => self.outcome(job, vec![nobodys(Failure::Dependency { dependency: "vm", said })]),
        }
    }

    async fn run_errand(&self, sent: Sent, _running: WhileRunning) {
        let vm = self.machines.fit();
        let Sent { errand, id, t, answer, gone, .. } = sent;
        let ran = tokio::select! {
            biased;
            // This worker was given up meanwhile: whoever waited was told so, and may run it again elsewhere.
            () = gone.cancelled() => return,
            ran = AssertUnwindSafe(vm.errand(&errand, id, t)).catch_unwind() => ran,
        };
        let outcome = ran.unwrap_or_else(|panic| Some(Err(Failure::Internal(panic_text(&*panic)))));
        if matches!(outcome, Some(Err(Failure::Memory | Failure::Internal(_)))) {
            vm.retire();
        }
        // Whoever asked may have gone.
        let _ = answer.send(outcome);
    }

    async fn call_in(&self, vm: &Vm, job: &Job, handled: &[String]) -> Outcome {
        let mut calls = Vec::new();
        for (index, policy) in vm.names() {
            let named = |names: &[String]| names.iter().any(|name| name == policy);
            let wanted = job.only.as_ref().is_none_or(|only| named(only));
            if !wanted || named(handled) || named(&job.except) {
                continue;
            }
            let ran = AssertUnwindSafe(vm.run(index, &job.report)).catch_unwind().await;
            let result = ran.unwrap_or_else(|panic| Err(Failure::Internal(panic_text(&*panic))));
            let call = Call { policy: policy.to_owned(), result };
            if matches!(call.result, Err(Failure::Memory | Failure::Internal(_))) {
                // Whoever it was, nobody can go on here: the others run again, apart from it.
                vm.retire();
            }
            calls.push(call);
        }
        Outcome { set: vm.generation(), ..self.outcome(job, calls) }
    }
}

/// A failure for which no policy is to blame.
const fn nobodys(failure: Failure) -> Call {
    Call { policy: String::new(), result: Err(failure) }
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words").to_owned()
}
