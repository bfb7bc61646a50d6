//! The role `schedule`: what runs on a clock in one replica only: the policies' background functions, and the keeping of house (the
//! history's retention).
//!
//! Owns when such work is due. Never does the work itself.

pub mod cron;
pub mod runner;
mod settings;

use std::sync::Arc;

pub use settings::{Election, ElectionKind, Settings};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::history::History;
use crate::report::Time;

/// Starts the role; it ends when `stop` is cancelled.
pub fn start(settings: &Settings, history: Arc<dyn History>, stop: CancellationToken) -> JoinHandle<()> {
    let mut due = tokio::time::interval(settings.retention_every);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = due.tick() => {}
            }
            match history.retain(Time::now()).await {
                Ok(0) => {}
                Ok(days) => tracing::info!(days, "days older than history.retention_days were dropped"),
                Err(error) => {
                    tracing::error!(%error, "the history's retention failed; tried again after schedule.retention_every")
                }
            }
        }
    })
}
