//! Whether readyz says that this process should be sent reports.
//!
//! Owns when that ends: a queue that refused is taken to refuse for as long as senders were told to wait, and no longer. Were it until
//! the next report that is accepted, a process that is sent none because it is not ready would never be ready again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::health::Health;

#[derive(Clone)]
pub(super) struct Readiness {
    health: Arc<Health>,
    /// Until when the queue is taken to refuse; there is a task that waits for it as long as this is set.
    until: Arc<Mutex<Option<Instant>>>,
}

impl Readiness {
    pub(super) fn new(health: Arc<Health>) -> Self {
        Self { health, until: Arc::default() }
    }

    /// The queue took something.
    pub(super) fn accepted(&self) {
        self.health.set_refusing(false);
    }

    /// The queue refused, and the sender was told to come back after this time.
    pub(super) fn refused(&self, retry_after: Duration) {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        self.health.set_refusing(true);
        if until.replace(Instant::now() + retry_after).is_none() {
            tokio::spawn(self.clone().wait());
        }
    }

    async fn wait(self) {
        while let Some(until) = self.passed() {
            tokio::time::sleep_until(until).await;
        }
    }

    /// What is still to wait for; where that is nothing, ready again.
    fn passed(&self) -> Option<Instant> {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.is_some_and(|until| until <= Instant::now()) {
            *until = None;
            self.health.set_refusing(false);
        }
        *until
    }
}
