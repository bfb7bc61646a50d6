//! The source of a queue with shards: one channel for each shard that is ours, as long as it is.
//!
//! Owns the way of settlements to those channels, and the order in which a shard goes to another process: what was handed out of it is
//! finished or given up here, then the channel is closed, and with that the broker hands it out to the next one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::way::Settled;
use super::members::Member;
use super::source::{self, Parts};
use super::wire::Wire;

/// A shard that is ours.
struct Lane {
    settlements: mpsc::UnboundedSender<Settled>,
    released: CancellationToken,
}

/// Until the subscription is over and all channels are closed.
pub(super) async fn run(parts: &mut Parts, settlements: &mut mpsc::UnboundedReceiver<Settled>) {
    let (mine_sender, mut mine) = watch::channel(Vec::new());
    let leave = CancellationToken::new();
    let member = Member {
        broker: Arc::clone(&parts.link.broker),
        wire: Wire::new("members"),
        me: Arc::clone(&parts.member),
        mine: mine_sender,
        leave: leave.clone(),
    };
    let member = tokio::spawn(member.run());
    let mut lanes = BTreeMap::<u32, Lane>::new();
    let mut running = JoinSet::new();
    let mut settled = Vec::new();
    loop {
        let ending = parts.over() || parts.out.is_closed();
        if ending {
            // The others subscribe at once, and get each shard when its channel here is closed.
            leave.cancel();
            if lanes.is_empty() {
                break;
            }
        } else {
            balance(parts, &mine.borrow_and_update(), &mut lanes, &mut running);
        }
        tokio::select! {
            _ = settlements.recv_many(&mut settled, 2048) => {}
            Some(ended) = running.join_next() => {
                // One that panicked has not said which it was; a channel of it is gone.
                match ended {
                    Ok(shard) => drop(lanes.remove(&shard)),
                    Err(_) => lanes.retain(|_, lane| !lane.settlements.is_closed()),
                }
            }
            _ = mine.changed(), if !ending => {}
            () = parts.out.closed(), if !ending => {}
            () = parts.stop.cancelled(), if !ending => {}
            _ = parts.newest.changed(), if !ending => {}
        }
        for (tag, settlement) in settled.drain(..) {
            let sent = lanes.get(&tag.lane).map(|lane| lane.settlements.send((tag, settlement)));
            if !matches!(sent, Some(Ok(()))) {
                parts.link.broker.metrics.stale_settlements.inc();
            }
        }
    }
    let _ = member.await;
}

/// Takes from what is ours, and lets go of what is not.
fn balance(parts: &Parts, mine: &[u32], lanes: &mut BTreeMap<u32, Lane>, running: &mut JoinSet<u32>) {
    parts.share.store(mine.len(), Ordering::Relaxed);
    for (shard, lane) in &*lanes {
        if !mine.contains(shard) {
            lane.released.cancel();
        }
    }
    for shard in mine {
        // One that we let go of a moment ago comes again when its channel is closed.
        if lanes.contains_key(shard) {
            continue;
        }
        let released = CancellationToken::new();
        let (settlements, mut receiver) = mpsc::unbounded_channel();
        let mut parts = Parts { lane: *shard, released: released.clone(), ..parts.clone() };
        lanes.insert(*shard, Lane { settlements, released });
        running.spawn(async move {
            source::lane(&mut parts, &mut receiver).await;
            // What was settled and not looked at any more.
            receiver.close();
            while receiver.try_recv().is_ok() {
                parts.link.broker.metrics.stale_settlements.inc();
            }
            parts.lane
        });
    }
}
