//! What the workers run besides reports: background functions and custom endpoints.
//!
//! Owns the way to a worker and back, and that what such a function raised and wrote takes effect as a report's does, also where nobody
//! waits for it any more; and that operators see one that fails, whoever asked for it. An errand holds no delivery: one that is cut off
//! with its worker is not run again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Control;
use super::settle::{Collected, Settler};
use super::worker::WorkerId;
use crate::complaints::Complaints;
use crate::policy::{Answered, Effects, Errand, Failure};
use crate::report::{ReportId, Time};
use crate::state::Batch;

/// Beyond `policy.time_limit`: how long one waits for a worker with room; and a worker that is gone for so long says nothing any more.
const GRACE: Duration = Duration::from_secs(30);

/// Why an errand was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ErrandError {
    /// No policy has registered such a function.
    #[error("no policy has registered such a function")]
    Unknown,
    /// The function failed; nothing of what it raised takes effect.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// It has run, and its effects wait.
    #[error("it has run; what it raised waits for the alerts queue or the state, and takes effect when they answer")]
    Late,
    /// There are too many.
    #[error("as many endpoints and lines as detect.errands allows ({0}) are under way; try again later")]
    Busy(usize),
    /// It has not begun: all workers were full, or the program is draining.
    #[error("no worker has begun it: none had room in time (policy.in_flight), or the program ends; try again later")]
    NoRoom,
    /// It was cut off: its worker hung, or the program is ending.
    #[error("it was cut off: its worker hung, or the program ends; what it has done stays done")]
    Gone,
}

/// What a machine says of an errand; `None`: no policy has registered such a function.
pub(super) type Outcome = Option<Result<(Effects, Answered), Failure>>;

/// An errand on its way to a worker.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) errand: Errand,
    pub(super) id: ReportId,
    pub(super) t: Time,
    pub(super) answer: oneshot::Sender<Outcome>,
    /// Nobody would wait for the end of one that begins later.
    pub(super) begin_by: Instant,
    /// Cancelled where its worker is given up.
    pub(super) gone: CancellationToken,
}

/// The same errand for every worker: an answer each, in their order.
#[derive(Debug)]
pub(super) struct Everywhere {
    pub(super) errand: Errand,
    pub(super) id: ReportId,
    pub(super) t: Time,
    pub(super) answers: Vec<(oneshot::Sender<Outcome>, CancellationToken)>,
}

/// What the workers have right now: so that one that hangs can be named, that nobody waits for a worker that was given up, and that none
/// is given more than it has room for.
#[derive(Debug, Default)]
pub(super) struct Running {
    workers: Mutex<HashMap<WorkerId, Named>>,
    /// Whether there are any: asked of each worker for each report, which takes no lock as long as there are none.
    any: AtomicBool,
    ended: Notify,
}

type Named = HashMap<ReportId, (String, CancellationToken)>;

impl Running {
    /// The worker has it until the guard goes.
    pub(super) fn begin(self: &Arc<Self>, worker: WorkerId, sent: &Sent) -> WhileRunning {
        let named = (sent.errand.to_string(), sent.gone.clone());
        let mut workers = self.lock();
        workers.entry(worker).or_default().insert(sent.id, named);
        self.any.store(true, Ordering::Relaxed);
        drop(workers);
        WhileRunning { running: Arc::clone(self), worker, id: sent.id }
    }

    /// What the worker has under this id, for people.
    pub(super) fn name(&self, worker: WorkerId, id: ReportId) -> Option<String> {
        self.lock().get(&worker)?.get(&id).map(|(name, _)| name.clone())
    }

    /// How many the worker has.
    pub(super) fn count(&self, worker: WorkerId) -> usize {
        if self.any.load(Ordering::Relaxed) { self.lock().get(&worker).map_or(0, HashMap::len) } else { 0 }
    }

    /// Resolves when one has ended since the last time: its worker has room.
    pub(super) async fn ended(&self) {
        self.ended.notified().await;
    }

    /// The worker is given up: whoever waits for what it has is told.
    pub(super) fn give_up(&self, worker: WorkerId) {
        self.lock().get(&worker).into_iter().flat_map(HashMap::values).for_each(|(_, gone)| gone.cancel());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WorkerId, Named>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Running::begin`].
#[derive(Debug)]
pub(super) struct WhileRunning {
    running: Arc<Running>,
    worker: WorkerId,
    id: ReportId,
}

impl Drop for WhileRunning {
    fn drop(&mut self) {
        let mut workers = self.running.lock();
        if let Some(named) = workers.get_mut(&self.worker) {
            named.remove(&self.id);
            if named.is_empty() {
                workers.remove(&self.worker);
            }
        }
        self.running.any.store(!workers.is_empty(), Ordering::Relaxed);
        drop(workers);
        self.running.ended.notify_one();
    }
}

/// What a worker says of what it was sent.
async fn answered(
    answer: oneshot::Receiver<Outcome>,
    gone: CancellationToken,
    by: Instant,
) -> Result<Outcome, ErrandError> {
    tokio::select! {
        biased;
        outcome = tokio::time::timeout_at(by, answer) => match outcome {
            Ok(Ok(outcome)) => Ok(outcome),
            // Dropped where it waited, and never begun.
            Ok(Err(_)) if !gone.is_cancelled() => Err(ErrandError::NoRoom),
            Ok(Err(_)) | Err(_) => Err(ErrandError::Gone),
        },
        () = gone.cancelled() => Err(ErrandError::Gone),
    }
}

/// What bounds errands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// `policy.time_limit`.
    pub(super) time: Duration,
    pub(super) workers: usize,
    /// `detect.errands`: those included whose effects wait for a store.
    pub(super) at_once: usize,
    /// `detect.errand_effects`: while a store is out, each would hold a connection.
    pub(super) effects: Duration,
}

/// The way to the workers. Cheap to clone.
#[derive(Clone)]
pub struct Errands {
    control: mpsc::Sender<Control>,
    settler: Arc<Settler>,
    limits: Limits,
    /// The detector's, which waits for them when it drains.
    tasks: TaskTracker,
    cut: CancellationToken,
    places: Arc<Semaphore>,
    complaints: Arc<Complaints>,
}

impl Errands {
    /// Its tasks are among `tasks`, and end where `cut` is cancelled.
    pub(super) fn new(
        control: mpsc::Sender<Control>,
        settler: Arc<Settler>,
        limits: Limits,
        tasks: TaskTracker,
        cut: CancellationToken,
    ) -> Self {
        let places = Arc::new(Semaphore::new(limits.at_once.min(Semaphore::MAX_PERMITS)));
        Self { control, settler, limits, tasks, cut, places, complaints: Arc::default() }
    }

    /// Runs it in a worker, at a time; resolves when its effects are safe, however long a store is out. `id` is what those are told by
    /// when it runs again. It goes on where nobody waits for it any more, and a drain waits for it.
    pub async fn run(&self, errand: Errand, id: ReportId, t: Time) -> Result<Answered, ErrandError> {
        let this = self.clone();
        let running = self.spawn(async move {
            let (effects, answered) = this.ask(errand, id, t).await?;
            this.apply(effects).await;
            Ok(answered)
        });
        ended(running).await
    }

    /// The same for somebody who waits for the answer: only so long for its effects, and one of not too many.
    pub async fn answer(&self, errand: Errand, id: ReportId, t: Time) -> Result<Answered, ErrandError> {
        let place = self.place()?;
        let this = self.clone();
        let running = self.spawn(async move {
            let (effects, answered) = this.ask(errand, id, t).await?;
            this.apply_soon(effects, place).await.map(|()| answered)
        });
        ended(running).await
    }

    /// Runs it in every worker; gives what each answered, in their order. What the first in which it worked raised and wrote takes effect,
    /// and not the same again for each other one.
    pub async fn run_everywhere(&self, errand: Errand, id: ReportId, t: Time) -> Vec<Result<Answered, ErrandError>> {
        let place = match self.place() {
            Ok(place) => place,
            Err(error) => return vec![Err(error)],
        };
        let this = self.clone();
        let running = self.spawn(async move { Ok(this.ask_all(errand, id, t, place).await) });
        ended(running).await.unwrap_or_else(|error| vec![Err(error)])
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, ErrandError> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| ErrandError::Busy(self.limits.at_once))
    }

    async fn ask_all(
        &self,
        errand: Errand,
        id: ReportId,
        t: Time,
        place: OwnedSemaphorePermit,
    ) -> Vec<Result<Answered, ErrandError>> {
        let places = (0..self.limits.workers).map(|_| (oneshot::channel(), CancellationToken::new()));
        let each = places.map(|((answer, waits), gone)| ((answer, gone.clone()), (waits, gone)));
        let (answers, waiting): (Vec<_>, Vec<_>) = each.unzip();
        let sent = Control::Everywhere(Everywhere { errand, id, t, answers });
        let deadline = Instant::now() + self.limits.time + GRACE;
        if !matches!(tokio::time::timeout_at(deadline, self.control.send(sent)).await, Ok(Ok(()))) {
            return vec![Err(ErrandError::NoRoom)];
        }
        let (mut all, mut place) = (Vec::with_capacity(waiting.len()), Some(place));
        for (answer, gone) in waiting {
            let outcome = answered(answer, gone, deadline).await;
            all.push(match outcome.and_then(done) {
                Ok((effects, answered)) => match place.take() {
                    Some(place) => self.apply_soon(effects, place).await.map(|()| answered),
                    None => Ok(answered),
                },
                Err(error) => Err(error),
            });
        }
        all
    }

    async fn ask(&self, errand: Errand, id: ReportId, t: Time) -> Result<(Effects, Answered), ErrandError> {
        let ((answer, waits), gone) = (oneshot::channel(), CancellationToken::new());
        // Who schedules background functions tells of each that fails; the client of an endpoint tells nobody.
        let (what, told) = (errand.to_string(), !matches!(errand, Errand::Endpoint { .. }));
        let begin_by = Instant::now() + GRACE;
        let by = begin_by + self.limits.time;
        let sent = Control::Errand(Sent { errand, id, t, answer, begin_by, gone: gone.clone() });
        if !matches!(tokio::time::timeout_at(by, self.control.send(sent)).await, Ok(Ok(()))) {
            return Err(ErrandError::NoRoom);
        }
        let outcome = answered(waits, gone, by).await;
        outcome.and_then(done).inspect_err(|error| self.failed(&what, told, error))
    }

    fn failed(&self, what: &str, told: bool, error: &ErrandError) {
        let (why, kind) = match error {
            ErrandError::Failed(failure) => (failure.why(), format!("{what} {}", failure.why())),
            // Whether there is such an endpoint only a worker can tell: anybody could have a kind for each name that they make up.
            ErrandError::NoRoom => ("no_room", "no room".to_owned()),
            ErrandError::Gone => ("gone", "gone".to_owned()),
            ErrandError::Unknown | ErrandError::Late | ErrandError::Busy(_) => return,
        };
        self.settler.metrics.errand_failures.with_label_values(&[why]).inc();
        // Anybody may ask for an endpoint, as often as they like.
        if !told && let Some(kept_back) = self.complaints.due(&kind) {
            tracing::warn!(what, %error, kept_back, "a custom endpoint failed");
        }
    }

    /// Waits for the effects only so long; they go on, and hold their place, until they are safe.
    async fn apply_soon(&self, effects: Effects, place: OwnedSemaphorePermit) -> Result<(), ErrandError> {
        let this = self.clone();
        let applying = self.spawn(async move {
            this.apply(effects).await;
            drop(place);
            Ok(())
        });
        tokio::time::timeout(self.limits.effects, ended(applying)).await.unwrap_or(Err(ErrandError::Late))
    }

    async fn apply(&self, effects: Effects) {
        let Effects { alerts, hooks, writes, claims } = effects;
        let batch = Batch { writes, handled: None, claims };
        self.settler.effects(Collected { alerts, hooks, batch }).await;
    }

    fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, ErrandError>> + Send + 'static,
    ) -> JoinHandle<Result<T, ErrandError>> {
        let cut = self.cut.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                ended = work => ended,
                () = cut.cancelled() => Err(ErrandError::Gone),
            }
        })
    }
}

async fn ended<T>(task: JoinHandle<Result<T, ErrandError>>) -> Result<T, ErrandError> {
    task.await.unwrap_or(Err(ErrandError::Gone))
}

fn done(outcome: Outcome) -> Result<(Effects, Answered), ErrandError> {
    Ok(outcome.ok_or(ErrandError::Unknown)??)
}
