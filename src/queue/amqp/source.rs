//! The source: one subscription, on a thread and a connection of its own, over as many channels as the broker's failures make of it.
//!
//! Owns the end of a subscription and the waits between two channels. A channel is a generation: what was handed out on one that is
//! gone is the broker's again, and its settlements are counted and ignored.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::super::way::{Settled, Way};
use super::super::{Backoff, Delivery, QueueError, Unsettled};
use super::broker::InHand;
use super::link::Link;
use super::session::{End, Session};
use super::shards;
use super::turn::Turn;
use super::wire::Wire;

/// What a source is made of. Of a queue with shards, each of ours has a copy.
#[derive(Clone)]
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
    pub(super) wire: Arc<Wire>,
    /// Which of the broker's queues.
    pub(super) lane: u32,
    /// Who this is among the processes that share the shards.
    pub(super) member: Arc<str>,
    /// Over how many lanes the limit is spread.
    pub(super) share: Arc<AtomicUsize>,
    /// The lane is to go to another process.
    pub(super) released: CancellationToken,
    pub(super) turn: Turn,
    /// Of all lanes together.
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

    pub(super) fn sharded(&self) -> bool {
        self.link.broker.sharded()
    }

    /// The broker's queue of this lane.
    pub(super) fn queue(&self) -> &str {
        let broker = &self.link.broker;
        broker.queues.get(self.lane as usize).unwrap_or(&broker.name)
    }

    /// What is held of it.
    pub(super) fn in_hand(&self) -> &InHand {
        &self.link.broker.in_hand[self.lane as usize]
    }

    /// What one lane may have unsettled.
    pub(super) fn limit(&self) -> Unsettled {
        let share = self.share.load(Ordering::Relaxed).max(1);
        Unsettled { messages: self.limit.messages.div_ceil(share), bytes: self.limit.bytes.div_ceil(share) }
    }

    /// Whether this lane is to end.
    pub(super) fn ending(&self) -> bool {
        self.over() || self.out.is_closed() || self.released.is_cancelled()
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
    if parts.sharded() {
        shards::run(&mut parts, settlements).await;
    } else {
        lane(&mut parts, settlements).await;
    }
    parts.wire.close(&parts.link.broker).await;
}

/// One queue of the broker, until its lane is to end.
pub(super) async fn lane(parts: &mut Parts, settlements: &mut mpsc::UnboundedReceiver<Settled>) {
    let broker = Arc::clone(&parts.link.broker);
    let mut failures = 0;
    while !parts.ending() {
        let failed = match Session::open(parts).await {
            Ok(mut session) => {
                if failures > 0 {
                    tracing::info!(queue = broker.name, "the broker hands out again");
                }
                failures = 0;
                let end = session.run(settlements).await;
                session.close(!matches!(end, End::Lost(_))).await;
                parts.in_hand().set(0, 0, 0);
                // The connection of shards is not one's own: where it is gone, the next channel finds out.
                match &end {
                    _ if parts.sharded() => {}
                    End::Lost(_) => parts.wire.forget(),
                    End::Over | End::Renew => parts.wire.close(&broker).await,
                }
                match end {
                    End::Over => return,
                    End::Renew => continue,
                    End::Lost(error) => error,
                }
            }
            Err(error) => error,
        };
        failures += 1;
        let wait = broker.reconnect().wait(failures, rand::random());
        if let Some(kept_back) = broker.complaints.due("source") {
            let queue = parts.queue();
            tracing::warn!(queue, error = %failed, kept_back, "nothing can be taken from the broker, trying again");
        }
        idle(parts, settlements, Instant::now() + wait).await;
    }
}

/// Waits without a channel: what is settled now is of one that is gone.
async fn idle(parts: &mut Parts, settlements: &mut mpsc::UnboundedReceiver<Settled>, until: Instant) {
    while !parts.ending() {
        tokio::select! {
            Some(_) = settlements.recv() => parts.link.broker.metrics.stale_settlements.inc(),
            () = parts.out.closed() => {}
            () = parts.stop.cancelled() => {}
            () = parts.released.cancelled() => {}
            _ = parts.newest.changed() => {}
            () = sleep_until(until) => return,
        }
    }
}
