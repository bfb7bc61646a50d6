//! What the workers run besides reports: background functions and custom endpoints.
//!
//! Owns the way to a worker and back, and that what such a function raised and wrote takes effect as a report's does. An errand holds no
//! delivery: one that is cut off with its worker is not run again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::Control;
use super::settle::{Collected, Settler};
use super::worker::WorkerId;
use crate::policy::{Answered, Effects, Errand, Failure};
use crate::report::{ReportId, Time};
use crate::state::Batch;

/// Beyond `policy.time_limit`: a worker that is gone for so long says nothing any more.
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
    /// The program is draining, or the worker hung.
    #[error("no worker has done it; the log says why")]
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
}

/// The same errand for every worker: an answer each, in their order.
#[derive(Debug)]
pub(super) struct Everywhere {
    pub(super) errand: Errand,
    pub(super) id: ReportId,
    pub(super) t: Time,
    pub(super) answers: Vec<oneshot::Sender<Outcome>>,
}

/// What runs in the workers right now, so that one that hangs can be named: its worker says nothing any more.
#[derive(Debug, Default)]
pub(super) struct Running(Mutex<HashMap<(WorkerId, ReportId), String>>);

impl Running {
    /// It runs until the guard goes.
    pub(super) fn begin(self: &Arc<Self>, worker: WorkerId, id: ReportId, errand: &Errand) -> WhileRunning {
        let key = (worker, id);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, errand.to_string());
        WhileRunning { running: Arc::clone(self), key }
    }

    /// What runs there under this id, for people.
    pub(super) fn name(&self, worker: WorkerId, id: ReportId) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&(worker, id)).cloned()
    }
}

/// See [`Running::begin`].
pub(super) struct WhileRunning {
    running: Arc<Running>,
    key: (WorkerId, ReportId),
}

impl Drop for WhileRunning {
    fn drop(&mut self) {
        self.running.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

/// The way to the workers. Cheap to clone.
#[derive(Clone)]
pub struct Errands {
    pub(super) control: mpsc::Sender<Control>,
    pub(super) settler: Arc<Settler>,
    pub(super) time_limit: Duration,
    pub(super) workers: usize,
}

impl Errands {
    /// Runs it in a worker, at a time; resolves when its effects are safe. `id` is what those are told by when it runs again.
    pub async fn run(&self, errand: Errand, id: ReportId, t: Time) -> Result<Answered, ErrandError> {
        let (answer, answered) = oneshot::channel();
        let sent = Control::Errand(Sent { errand, id, t, answer });
        let outcome = async {
            self.control.send(sent).await.map_err(|_| ErrandError::Gone)?;
            answered.await.map_err(|_| ErrandError::Gone)
        };
        let outcome = tokio::time::timeout(self.time_limit + GRACE, outcome).await.map_err(|_| ErrandError::Gone)??;
        let (effects, answered) = outcome.ok_or(ErrandError::Unknown)??;
        self.apply(effects).await;
        Ok(answered)
    }

    /// Runs it in every worker; gives what each answered, in their order. What the first raised and wrote takes effect, and not the same
    /// again for each other one.
    pub async fn run_everywhere(&self, errand: Errand, id: ReportId, t: Time) -> Vec<Result<Answered, ErrandError>> {
        let (answers, answered): (Vec<_>, Vec<_>) = (0..self.workers).map(|_| oneshot::channel()).unzip();
        let sent = Control::Everywhere(Everywhere { errand, id, t, answers });
        if self.control.send(sent).await.is_err() {
            return vec![Err(ErrandError::Gone)];
        }
        let deadline = tokio::time::Instant::now() + self.time_limit + GRACE;
        let mut all = Vec::with_capacity(answered.len());
        for answer in answered {
            let outcome = tokio::time::timeout_at(deadline, answer).await;
            let outcome = outcome.ok().and_then(Result::ok).ok_or(ErrandError::Gone);
            let done = outcome.and_then(|outcome| Ok(outcome.ok_or(ErrandError::Unknown)??));
            all.push(match done {
                Ok((effects, answered)) => {
                    if all.is_empty() {
                        self.apply(effects).await;
                    }
                    Ok(answered)
                }
                Err(error) => Err(error),
            });
        }
        all
    }

    async fn apply(&self, effects: Effects) {
        let Effects { alerts, hooks, writes, claims } = effects;
        let batch = Batch { writes, handled: None, claims };
        self.settler.effects(Collected { alerts, hooks, batch }).await;
    }
}
