//! The source: one subscription, on a thread and a connection of its own, over as many channels as the broker's failures make of it.
//!
//! Owns the end of a subscription and the waits between two channels. A channel is a generation: what was handed out on one that is
//! gone is the broker's again, and its settlements are counted and ignored.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::super::way::{Settled, Way};
use super::super::{Backoff, Delivery, QueueError, Unsettled};
use super::link::Link;
use super::publisher::RECONNECT_MOST;
use super::session::{End, Session};

/// What a source is made of.
pub(super) struct Parts {
    pub(super) link: Link,
    pub(super) way: Arc<Way>,
    /// Which subscription this is.
    pub(super) subscription: u32,
    /// The newest one.
    pub(super) newest: watch::Receiver<u32>,
    /// Kept, so that `newest` goes on without the queue's own handle.
    pub(super) _newest: Arc<watch::Sender<u32>>,
    /// Numbers for channels, over all subscriptions.
    pub(super) generations: Arc<AtomicU32>,
    pub(super) limit: Unsettled,
    pub(super) backoff: Backoff,
    pub(super) out: mpsc::Sender<Delivery>,
    pub(super) paused: watch::Receiver<bool>,
    /// The subscription was aborted.
    pub(super) stop: CancellationToken,
}

impl Parts {
    /// Whether somebody else has subscribed, or this one was aborted.
    pub(super) fn over(&self) -> bool {
        *self.newest.borrow() != self.subscription || self.stop.is_cancelled()
    }
}

/// Starts the thread. `ended` is dropped at its end.
pub(super) fn start(parts: Parts, label: &str, ended: oneshot::Sender<()>) -> Result<(), QueueError> {
    let broker = Arc::clone(&parts.link.broker);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| broker.unavailable(e))?;
    let thread = std::thread::Builder::new().name(format!("amqp-{label}-in"));
    let work = move || {
        runtime.block_on(run(parts));
        drop(ended);
    };
    thread.spawn(work).map_err(|error| broker.unavailable(error))?;
    Ok(())
}

async fn run(mut parts: Parts) {
    let mut taken = Arc::clone(&parts.way).take().await;
    let Some(settlements) = taken.receiver.as_mut() else { return };
    let broker = Arc::clone(&parts.link.broker);
    let mut failures = 0;
    while !parts.over() && !parts.out.is_closed() {
        let failed = match Session::open(&mut parts).await {
            Ok(mut session) => {
                if failures > 0 {
                    tracing::info!(queue = broker.name, "the broker hands out again");
                }
                failures = 0;
                let end = session.run(settlements).await;
                session.close(!matches!(end, End::Lost(_))).await;
                broker.held.set(0, 0, 0);
                match end {
                    End::Over => return,
                    End::Renew => continue,
                    End::Lost(error) => error,
                }
            }
            Err(error) => error,
        };
        failures += 1;
        let backoff = Backoff { most: parts.backoff.most.min(RECONNECT_MOST), ..parts.backoff };
        let wait = backoff.wait(failures, rand::random());
        if let Some(kept_back) = broker.complaints.due("source") {
            let queue = &broker.name;
            tracing::warn!(queue, error = %failed, kept_back, "nothing can be taken from the broker, trying again");
        }
        idle(&mut parts, settlements, Instant::now() + wait).await;
    }
}

/// Waits without a channel: what is settled now is of one that is gone.
async fn idle(parts: &mut Parts, settlements: &mut mpsc::UnboundedReceiver<Settled>, until: Instant) {
    while !parts.over() && !parts.out.is_closed() {
        tokio::select! {
            Some(_) = settlements.recv() => parts.link.broker.metrics.stale_settlements.inc(),
            () = parts.out.closed() => {}
            () = parts.stop.cancelled() => {}
            _ = parts.newest.changed() => {}
            () = sleep_until(until) => return,
        }
    }
}
