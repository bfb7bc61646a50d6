//! Policies: Lua files that compare a report with what is remembered, and raise alerts.
//!
//! ```text
//! PolicySet (files, checked)  ──▶  Vm (one per worker thread: every policy in an environment of its own)
//!                                    └─ run(policy, report) ──▶ Effects | Failure
//! ```
//!
//! Owns the loading of policies, the virtual machine, its limits and what a policy may call. Never settles a report and never retries
//! one: it says what a call did, and [`crate::detect`] decides.

pub mod api;
mod call;
mod errand;
pub mod legacy;
pub mod load;
mod lua_error;
mod modules;
pub mod networks;
mod sandbox;
mod set;
mod top_level;
pub mod vm;
pub mod watchdog;
pub mod web;
pub mod wforce;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::alert::{Alert, Hook};
use crate::history::History;
use crate::state::{State, Tentative, Write, tentative::Claim};
use crate::telemetry::Metrics;

pub use errand::{Answered, Errand};
pub use legacy::{Operator, Show};
pub use load::LoadError;
pub use set::PolicySet;
pub use vm::Vm;

/// Settings of the policies; the meaning of each stands in `config/default.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    pub path: Vec<PathBuf>,
    pub legacy_config: PathBuf,
    pub custom_stats: Vec<String>,
    #[serde(with = "humantime_serde")]
    pub time_limit: Duration,
    #[serde(with = "humantime_serde")]
    pub cpu_limit: Duration,
    pub memory: ByteSize,
    #[serde(with = "humantime_serde")]
    pub vm_age: Duration,
    #[serde(with = "humantime_serde")]
    pub socket_timeout: Duration,
    pub max_alert: ByteSize,
    pub in_flight: usize,
    pub max_attempts: u32,
    #[serde(with = "humantime_serde")]
    pub retry_first: Duration,
    #[serde(with = "humantime_serde")]
    pub retry_most: Duration,
    pub breaker: f64,
    pub breaker_calls: usize,
    #[serde(with = "humantime_serde")]
    pub breaker_pause: Duration,
    #[serde(with = "humantime_serde")]
    pub stuck_after: Duration,
    #[serde(with = "humantime_serde")]
    pub abort_after: Duration,
    #[serde(with = "humantime_serde")]
    pub check_files_every: Duration,
    #[serde(with = "humantime_serde")]
    pub reload_timeout: Duration,
    pub http: web::Settings,
    pub wforce: wforce::Settings,
}

/// What a policy's calls reach.
#[derive(Clone)]
pub struct Services {
    /// For `history.search`.
    pub history: Arc<dyn History>,
    /// For `state.*`.
    pub state: Arc<dyn State>,
    /// Adds of handlers that run right now, counted by the others.
    pub tentative: Arc<Tentative>,
    /// For `geo.*`.
    pub geoip: Arc<crate::geoip::GeoIp>,
    /// For `http.*` and `wforce.*`.
    pub web: Arc<dyn web::Fetch>,
    /// For `wforce.*`: whom to ask.
    pub wforce: Arc<wforce::Siblings>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// `policy.custom_stats`: the counters that `incCustomStat` may count.
    pub custom_stats: Arc<[String]>,
    /// `notify.custom_webhooks`: the names that `runCustomWebHook` may use.
    pub custom_webhooks: Arc<[String]>,
    /// The program, for lines of the console.
    pub operator: Option<Arc<dyn Operator>>,
    /// `policy.socket_timeout`: one command or mail of an old configuration's modules.
    pub socket_timeout: Duration,
    /// `policy.http.max_answer`: one answer to those modules.
    pub max_answer: ByteSize,
    /// `state.max_value`: the largest value of `state.set`.
    pub state_max_value: ByteSize,
    /// `policy.max_alert`: the largest alert.
    pub max_alert: ByteSize,
}

/// What one successful call of one policy's `report` wants to take effect. Nothing has yet.
#[derive(Debug, Default)]
pub struct Effects {
    /// In the order in which they were raised.
    pub alerts: Vec<Alert>,
    /// The custom webhooks, in the order of their calls.
    pub hooks: Vec<Hook>,
    /// In the order in which they were made.
    pub writes: Vec<Write>,
    /// Adds that others already count.
    pub claims: Vec<Claim>,
}

/// Why a call of a policy's `report` failed. Its effects are gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The policy raised an error, or called a function wrongly. The text has file and line.
    #[error("{0}")]
    Error(String),
    /// It took longer than `policy.time_limit`. The VM must not be used again.
    #[error("took longer than policy.time_limit ({0:?})")]
    Time(Duration),
    /// It used more CPU than `policy.cpu_limit`.
    #[error("used more CPU than policy.cpu_limit ({0:?})")]
    Cpu(Duration),
    /// The VM is over `policy.memory`: this handler, or a neighbour in the same VM, took it. The VM must not be used again.
    #[error("the virtual machine is over policy.memory")]
    Memory,
    /// The handler was ended because of something that is not its fault (the VM is being replaced).
    #[error("ended together with its virtual machine")]
    Cancelled,
    /// Something that the policy asked does not answer. Not the policy's fault; asking again may help.
    #[error("{dependency} does not answer: {said}")]
    Dependency {
        /// `history` or `state`.
        dependency: &'static str,
        /// What it said.
        said: String,
    },
    /// This program's own code panicked while it ran the policy. The VM must not be used again.
    #[error("a fault of this program: {0}")]
    Internal(String),
}

impl Failure {
    /// What stopped the call: the label `why` of what counts failures.
    pub const fn why(&self) -> &'static str {
        match self {
            Self::Error(_) => "error",
            Self::Time(_) => "time",
            Self::Cpu(_) => "cpu",
            Self::Memory => "memory",
            Self::Cancelled => "cancelled",
            Self::Internal(_) => "internal",
            Self::Dependency { .. } => "dependency",
        }
    }
}
