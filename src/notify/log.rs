//! The log as a way out: each alert that is sent is one event of the target `alert`, whatever other channels there are.
//!
//! Owns the names of the fields. On a text log the line reads well alone; on a JSON log each field stands by itself.

use super::render;
use crate::alert::Alert;

/// The name by which a dead letter's list of channels means the log.
pub(super) const NAME: &str = "log";

/// Writes the event.
pub(super) fn write(alert: &Alert) {
    let evidence = alert.evidence.to_string();
    tracing::info!(
        target: "alert",
        id = alert.id,
        time = alert.time,
        kind = alert.kind,
        severity = alert.severity.name(),
        login = alert.login,
        remote = alert.remote,
        key = alert.key,
        policy = alert.policy,
        text = alert.text,
        evidence,
        "{}",
        render::line(alert)
    );
}
