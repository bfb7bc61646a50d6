//! The role `detect`: takes reports from their queue, runs every policy on each, and settles it.
//!
//! ```text
//! delivery ─▶ decode ─▶ dispatch ─▶ worker ─▶ outcome ─▶ effects (1, 2) ─▶ history, ack (3, 4)
//!                          ▲                     │
//!                          └──── retry, apart ◀──┘
//! ```
//!
//! One task owns all that is undecided about the reports in hand (`detector`); the workers' threads and the settling tasks are lent
//! what they need and report back.

mod circuit;
mod detector;
mod dispatch;
mod errands;
mod hung;
mod intake;
mod machines;
mod outdated;
mod pool;
mod retry;
mod settings;
mod settle;
mod side_by_side;
mod slot;
mod suspects;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

pub use errands::{ErrandError, Errands};
pub use settings::Settings;

use crate::decode;
use crate::device::Devices;
use crate::health::Health;
use crate::perfstats::PerfStats;
use crate::policy::{self, LoadError, PolicySet, Services};
use crate::queue::{Backoff, Publisher, Subscription};
use crate::report::LoginReport;
use crate::schedule::cron::Scheduled;

/// What the role needs.
pub struct Parts {
    /// Section `[detect]`.
    pub settings: Settings,
    /// Section `[policy]`.
    pub policy: policy::Settings,
    /// The limits of one report.
    pub limits: decode::Limits,
    /// How far ahead of this clock a report's time may be.
    pub max_skew: std::time::Duration,
    /// The first and the longest wait of a retry.
    pub backoff: Backoff,
    /// The policies, checked.
    pub policies: PolicySet,
    /// The reports.
    pub reports: Subscription,
    /// Where alerts go.
    pub alerts: Arc<dyn Publisher>,
    /// History, state, GeoIP, metrics.
    pub services: Services,
    /// For `device_attrs`, where the sender gave none.
    pub devices: Arc<Devices>,
    /// Latches.
    pub health: Arc<Health>,
    /// How long reports waited and ran, for `/command/stats`.
    pub perf: Arc<PerfStats>,
    /// Where the list of hung reports is kept.
    pub hung_list: PathBuf,
}

/// Why the role ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// A worker is in C code that does not come back. The report is written down and will be a dead letter after the restart.
    #[error(
        "policy `{policy}` has hung on report {report} for longer than policy.abort_after; the process ends, and after its restart \
         that report is a dead letter"
    )]
    Hung {
        /// Which policy.
        policy: String,
        /// Which report.
        report: crate::report::ReportId,
    },
    /// The same in what is no report: the log says when it began.
    #[error(
        "{what} has hung a worker for longer than policy.abort_after; the process ends. Mend it: what stands in a file hangs again after the \
         restart"
    )]
    HungErrand {
        /// What hangs, for people.
        what: String,
    },
    /// The source of the reports ended without being told to.
    #[error(
        "the source of the reports queue ended by itself; the log says why. Reports stay in the queue: start the program again"
    )]
    Source,
    /// No worker can be started any more.
    #[error("no worker can be started: {0}")]
    Worker(#[from] LoadError),
    /// The task itself failed.
    #[error("the task of the role detect failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Adds to a decoded report what this program knows of it: where its address lies. The tests of policies come here too, so that a case
/// sees what a report of the day would see.
pub fn enrich(report: &mut LoginReport, services: &Services) {
    report.geo = services.geoip.lookup(report.remote);
}

/// What the role is told from outside.
enum Control {
    /// Exchange the policies between two reports.
    Load(PolicySet, oneshot::Sender<()>),
    /// Run something besides reports.
    Errand(errands::Sent),
    /// Run something in every worker.
    Everywhere(errands::Everywhere),
    /// Finish what runs, hand back the rest, end.
    Drain,
}

/// The running role.
pub struct Detect {
    control: mpsc::Sender<Control>,
    errands: Errands,
    scheduled: Arc<[Scheduled]>,
    task: JoinHandle<Result<(), DetectError>>,
}

impl Detect {
    /// Starts the workers and the task. An error: the policies do not load.
    pub fn start(parts: Parts) -> Result<Self, LoadError> {
        let (control, orders) = mpsc::channel(4);
        let scheduled = Arc::clone(parts.policies.scheduled());
        let detector = detector::Detector::new(parts)?;
        let errands = detector.errands(control.clone());
        Ok(Self { control, errands, scheduled, task: tokio::spawn(detector.run(orders)) })
    }

    /// Exchanges the policies; resolves when the workers were told.
    pub async fn load(&self, policies: PolicySet) {
        let (done, told) = oneshot::channel();
        if self.control.send(Control::Load(policies, done)).await.is_ok() {
            let _ = told.await;
        }
    }

    /// The background functions of the policies that it was started with.
    pub fn scheduled(&self) -> Arc<[Scheduled]> {
        Arc::clone(&self.scheduled)
    }

    /// The way to the workers for what is no report.
    pub fn errands(&self) -> Errands {
        self.errands.clone()
    }

    /// Whether the role has ended by itself: [`Detect::drain`] then says why.
    pub fn ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Finishes what was taken within `detect.drain_timeout`; the rest is handed out again later. The source's position is stored when
    /// this resolves.
    pub async fn drain(self) -> Result<(), DetectError> {
        let _ = self.control.send(Control::Drain).await;
        self.task.await?
    }
}
