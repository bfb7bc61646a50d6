//! Partitions that come and go.
//!
//! Owns giving one up: what is in flight of it is waited for within a bound, its position is committed before another member starts there,
//! and what is still out afterwards is of an old generation. Runs on the thread that polls, inside of the poll.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::{ClientContext, TopicPartitionList};

use super::super::Backoff;
use super::super::patience::Patience;
use super::client;
use super::publisher::lock;
use super::queue::{Shared, Subscribed, with_lanes};

/// How often a wait looks again.
const LOOK: Duration = Duration::from_millis(2);

/// What the consumer of a source tells.
pub(super) struct Member {
    pub(super) shared: Arc<Shared>,
    pub(super) backoff: Backoff,
    pub(super) subscribed: Subscribed,
    /// Set when the source ends.
    pub(super) ending: AtomicBool,
    /// Set while the source takes no messages: what is assigned then is paused, too.
    pub(super) halted: AtomicBool,
    /// Set while it has its share, be it nothing: only then the client tells the group that it leaves.
    pub(super) joined: AtomicBool,
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.shared.to_log.log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.shared.to_log.error(error, reason);
    }
}

fn partitions(list: &TopicPartitionList) -> Vec<u32> {
    list.elements().iter().filter_map(|element| u32::try_from(element.partition()).ok()).collect()
}

impl Member {
    /// Whether nothing in flight is to be waited for.
    fn ends(&self) -> bool {
        self.ending.load(Ordering::Acquire) || self.subscribed.over(&self.shared)
    }

    fn give_up(&self, consumer: &BaseConsumer<Self>, lanes: &[u32]) {
        let began = Instant::now();
        let in_flight = || lock(&self.shared.lanes).busy(lanes);
        let mut patience = Patience::new(self.shared.settings.revoke_timeout, in_flight(), began);
        let left = loop {
            self.shared.settle_pending(self.backoff);
            let left = in_flight();
            if left == 0 || self.ends() || patience.is_over(left, Instant::now()) {
                break left;
            }
            client::rest(LOOK);
        };
        let (queue, waited) = (&self.shared.name, began.elapsed());
        if left > 0 && !self.ends() {
            tracing::warn!(
                queue,
                partitions = ?lanes,
                in_flight = left,
                ?waited,
                "partitions go to another member before all of theirs is handled: the rest is handled twice (queue.kafka.revoke_timeout)"
            );
        } else {
            tracing::info!(queue, partitions = ?lanes, in_flight = left, ?waited, "partitions given up");
        }
        // Earlier commits of theirs may not have arrived.
        with_lanes(&self.shared, |all| all.give_again(Some(lanes)));
        if let Some(offsets) = self.shared.offsets(Some(lanes)) {
            // The group takes no commit of a member that it has put out, and while its coordinator is away the client would wait for the
            // session to hear that.
            let stored = if consumer.assignment_lost() {
                Err("the group has put this member out, or the topic is gone".to_owned())
            } else {
                consumer.commit(&offsets, CommitMode::Sync).map_err(|error| error.to_string())
            };
            if let Err(error) = stored {
                tracing::warn!(queue, error, "position not committed; the next member starts a little earlier");
            }
        }
        with_lanes(&self.shared, |all| lanes.iter().for_each(|lane| all.remove(*lane)));
    }
}

impl ConsumerContext for Member {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        // A member that gives something up joins anew.
        self.joined.store(matches!(rebalance, Rebalance::Assign(_)), Ordering::Release);
        match rebalance {
            Rebalance::Revoke(list) => {
                let lanes = partitions(list);
                self.give_up(consumer, &lanes);
            }
            Rebalance::Assign(list) => {
                let lanes = partitions(list);
                if !lanes.is_empty() {
                    tracing::info!(queue = self.shared.name, partitions = ?lanes, "partitions taken");
                }
                for lane in lanes {
                    lock(&self.shared.lanes).assign(lane, self.shared.next_generation());
                }
            }
            Rebalance::Error(error) => {
                tracing::warn!(queue = self.shared.name, %error, "the group could not share its partitions out");
            }
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(list) = rebalance else { return };
        // A partition that was paused when it went comes back paused.
        let done = if self.halted.load(Ordering::Acquire) { consumer.pause(list) } else { consumer.resume(list) };
        if let Err(error) = done {
            tracing::warn!(queue = self.shared.name, %error, "partitions could not be paused or resumed");
        }
    }
}
