//! The harness of policies' tests: what `trackalert test` runs.
//!
//! ```text
//! <policy>/policy.lua ─┐
//! <policy>/tests/*.toml ─▶ find ─▶ load (file, reports, answers, expected) ─▶ Case ─▶ run (a thread, a stage of its own) ─▶ Verdict
//! ```
//!
//! A case runs the real thing: the policy's machine and its limits, the decoding and enrichment of reports, the embedded state and the
//! embedded history on a temporary folder. Owns what a test file may say, and what is compared. Never prints (that is the command line),
//! never opens the data folder, and sends nothing: what a policy raises goes into the verdict, before any suppression, and what it asks
//! of servers is answered by the case.

mod alerts;
mod answers;
mod calls;
mod case;
mod compare;
mod expected;
mod file;
mod find;
mod load;
mod old;
mod past;
mod places;
mod pool;
mod reports;
mod said;
mod stage;
mod when;
mod words;

use std::path::PathBuf;
use std::time::Duration;

pub use case::Case;
pub use compare::{Difference, Field, Sort};
pub use find::{Origin, Suite, Tested, is_old, policy_of};
pub use load::{Loaded, load};
pub use pool::start;

use crate::{decode, device, history, policy, state};

/// What a case is run with: the sections of the configuration that a policy feels.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `[policy]`: the limits of a call, and the wforce servers.
    pub policy: policy::Settings,
    /// The names of `notify.custom_webhooks`.
    pub custom_webhooks: Vec<String>,
    /// The part of `[detect]` that devices are read by.
    pub devices: device::Settings,
    /// `[receive]`: what a report may have.
    pub limits: decode::Limits,
    /// `[history]`: the limits of a search. What is given to a case is kept, however old.
    pub history: history::Settings,
    /// `[state]`.
    pub state: state::Settings,
    /// Cases that run side by side.
    pub jobs: usize,
}

/// Something that cannot be run: a test file or a policy that is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Whose tests.
    pub policy: String,
    /// Which file.
    pub file: PathBuf,
    /// Where in it, where that is known.
    pub line: Option<usize>,
    /// What is wrong and what to do, without the place.
    pub text: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}", self.text)
    }
}

/// How a case ended.
#[derive(Debug)]
pub struct Verdict {
    /// Which one, in the order in which they were given.
    pub number: usize,
    /// How long it took.
    pub took: Duration,
    /// What is not as expected; none: it passed.
    pub differences: Vec<Difference>,
    /// What the policy wrote to its log.
    pub log: Vec<String>,
}

impl Verdict {
    /// All is as expected.
    pub fn passed(&self) -> bool {
        self.differences.is_empty()
    }
}
