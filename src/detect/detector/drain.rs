//! The end: what is still finished when nothing more is taken, and what is handed back.
//!
//! A part of [`Detector`]. It decides how long the loop goes on, and never what a report comes to: what is not finished goes back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::Detector;
use crate::detect::dispatch::Place;
use crate::detect::slot::{Phase, Slot};

/// How long the source has to store its position.
const LAST_POSITION: Duration = Duration::from_secs(5);

impl Detector {
    /// Begins a drain: what was not looked at yet goes back. Gives its end.
    pub(super) async fn take_no_more(&mut self) -> Instant {
        // Closed first: a source that is paused while somebody takes from it gives back what it has held for long, and what is still
        // finished of that would not count.
        self.parts.reports.deliveries.close();
        self.parts.reports.pause.send_replace(true);
        while self.parts.reports.deliveries.recv().await.is_some() {}
        Instant::now() + self.parts.settings.drain_timeout
    }

    /// Whether a drain goes on. All that was taken is finished, whether it runs or waits for its turn: where a queue stores one position
    /// a partition, a report that is handed back brings all that was handled behind it again. What waits for a dependency or for a
    /// broken policy is not waited for; nor is the call that hangs because of which the process ends, and what waits behind it for its
    /// login's turn.
    pub(super) fn can_finish_more(&self, deadline: Instant) -> bool {
        let stuck = self.is_stuck();
        let hangs = |slot: &Slot| self.ends_for.iter().any(|worker| slot.phase == Phase::Hanging(*worker));
        let in_order = |slot: &Slot| slot.place == Place::InOrder;
        let held: Vec<&str> = match self.ends_for.as_slice() {
            [] => Vec::new(),
            _ => self
                .slots
                .values()
                .filter(|slot| hangs(slot) && in_order(slot))
                .map(|slot| &*slot.report.login)
                .collect(),
        };
        let more = self.slots.values().any(|slot| match slot.phase {
            Phase::Waiting => {
                let behind = in_order(slot) && held.contains(&slot.report.login.as_str());
                !stuck && !behind
            }
            Phase::Running(_) | Phase::Applying => true,
            Phase::Hanging(_) => !hangs(slot),
        });
        let late = deadline <= Instant::now();
        if more && late {
            tracing::warn!(
                reports = self.slots.len(),
                "detect.drain_timeout is over; the rest is handed out again later"
            );
        }
        more && !late
    }

    /// Until what is decided has settled and all errands have ended; those that wait for room begin when they have it.
    async fn finish_tasks(&mut self) {
        let (tasks, errands) = (self.tasks.clone(), Arc::clone(&self.running_errands));
        loop {
            self.pool.send_waiting();
            tokio::select! {
                () = tasks.wait() => return,
                () = errands.ended() => {}
            }
        }
    }

    /// Lets what is decided settle until the end of the drain; everything else is dropped, and so handed out again later.
    pub(super) async fn hand_back(mut self, deadline: Instant) {
        self.slots.clear();
        self.tasks.close();
        if timeout_at(deadline, self.finish_tasks()).await.is_err() {
            let unsettled = self.tasks.len();
            tracing::warn!(
                unsettled,
                "detect.drain_timeout is over, and what was decided is not all stored: reports are handed out again later; what an endpoint raised or wrote and was not answered for is given up"
            );
            self.cut.cancel();
            self.tasks.wait().await;
        }
        if timeout(LAST_POSITION, self.parts.reports.source).await.is_err() {
            tracing::warn!("the source did not store its position in time; a little will be handed out again");
        }
    }
}
