//! `[schedule]`: what runs on a clock, and who leads.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of the schedule role; the meaning of each stands in `config/default.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    #[serde(with = "humantime_serde")]
    pub retention_every: Duration,
    pub election: Election,
}

/// Settings of the election of the one process that runs what runs on a clock.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Election {
    pub kind: ElectionKind,
}

/// How the leader is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ElectionKind {
    /// This process leads.
    None,
}
