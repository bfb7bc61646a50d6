//! Settings of the role `schedule`; the meaning of each stands in `config/default.toml`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Section `[schedule]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    #[serde(with = "humantime_serde")]
    pub retention_every: Duration,
    pub election: Election,
}

/// Section `[schedule.election]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Election {
    pub kind: ElectionKind,
}

/// How it is found out which replica leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ElectionKind {
    /// This process leads.
    None,
    /// By a Lease.
    Kubernetes,
    /// By a partition of a topic.
    Kafka,
    /// By an exclusive consumer.
    Amqp,
}
