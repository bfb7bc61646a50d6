//! What a source does with settlements: done, again later, or to the dead letters; and the commits that follow.
//!
//! Owns the rule that a rejected message is finished only when its dead letter is confirmed.

use rdkafka::Offset;
use rdkafka::TopicPartitionList;
use tokio::time::Instant;

use super::super::flights::Stage;
use super::super::{Backoff, DeadLetter, QueueError, Settlement, Tag};
use super::lanes::Lanes;
use super::publisher::lock;
use super::queue::Shared;

/// Bytes of a body that stand in a letter where the broker refuses the whole.
const BEGINNING: usize = 64 * 1024;
/// Bytes of a body with which the whole is not tried: the client's buffer might have no room for it, however often it is tried.
const HOPELESS: usize = 16 << 20;

/// What a message that came is.
pub(super) enum Came {
    /// One of this generation of its partition.
    Of(u32),
    /// Its partition is not ours.
    NotOurs,
    /// One that came before, and the position is before it: a broker that took over without the end of the log goes on there, or the client
    /// repeats it. Begun anew there, the partition would forget what waits to be tried again.
    Behind,
}

impl Shared {
    /// Takes all settlements that wait. `true`: there were some.
    pub(super) fn settle_pending(&self, backoff: Backoff) -> bool {
        let (mut settled, mut buried) = (lock(&self.settled), lock(&self.buried));
        let mut lanes = lock(&self.lanes);
        let mut some = false;
        while let Ok((tag, settlement)) = settled.try_recv() {
            some = true;
            self.settle_one(&mut lanes, tag, settlement, backoff);
        }
        while let Ok((tag, done)) = buried.try_recv() {
            some = true;
            self.buried(&mut lanes, tag, done, backoff);
        }
        some
    }

    fn settle_one(&self, lanes: &mut Lanes, tag: Tag, settlement: Settlement, backoff: Backoff) {
        if !lanes.has(tag) {
            self.metrics.stale_settlements.inc();
            return;
        }
        match settlement {
            Settlement::Ack => lanes.finish(tag),
            Settlement::Nack => {
                if let Some(open) = lanes.taken_back(tag, Stage::Waiting) {
                    let wait = backoff.wait(open.redelivered + 1, rand::random());
                    lanes.again_at(tag, Instant::now() + wait);
                }
            }
            Settlement::Reject(reason) => {
                if lanes.taken_back(tag, Stage::rejected(reason)).is_some() {
                    self.bury(lanes, tag);
                }
            }
        }
    }

    /// Sends a rejected message to the dead letters; it is finished when that is confirmed.
    pub(super) fn bury(&self, lanes: &mut Lanes, tag: Tag) {
        let Some(open) = lanes.get(tag) else { return };
        let Stage::Rejected(rejection) = &open.stage else { return };
        let Tag { lane, sequence, .. } = tag;
        let coordinates = format!("{}/{lane}/{sequence}", self.name);
        let mut letter = DeadLetter::of(&open.message, rejection, coordinates, &format!("{lane:x}-{sequence:x}"));
        if open.cut || open.message.body.len() > HOPELESS {
            letter.cut(BEGINNING);
        }
        self.dead_producer.bury(tag, &letter, &self.buried_sender);
    }

    fn buried(&self, lanes: &mut Lanes, tag: Tag, done: Result<(), QueueError>, backoff: Backoff) {
        let Some(open) = lanes.get(tag) else { return };
        let Stage::Rejected(rejection) = &open.stage else { return };
        match done {
            Ok(()) => {
                self.metrics.rejected.with_label_values(&[&rejection.reason.kind.to_string()]).inc();
                lanes.finish(tag);
            }
            // Whoever may write to a topic that takes more than the one of the dead letters would hold the partition up for ever.
            // The broker refuses all that is sent together: it is tried again before it is cut.
            Err(QueueError::TooLarge { .. }) if !open.cut && open.too_large => {
                open.cut = true;
                self.bury(lanes, tag);
            }
            Err(error) => {
                open.refused += 1;
                open.too_large |= matches!(error, QueueError::TooLarge { .. });
                let wait = backoff.wait(open.refused, rand::random());
                self.to_log.complain("dead letter", &error, "a dead letter was not taken, trying again");
                lanes.again_at(tag, Instant::now() + wait);
            }
        }
    }

    /// Notes that a message came from the broker.
    pub(super) fn came(&self, lane: u32, sequence: u64) -> Came {
        let mut lanes = lock(&self.lanes);
        if let Some(expected) = lanes.went_back(lane, sequence) {
            let (queue, in_hand) = (&self.name, lanes.in_hand(lane));
            if lanes.ends_at(lane, sequence) {
                tracing::warn!(
                    queue,
                    partition = lane,
                    from = expected,
                    to = sequence,
                    in_hand,
                    "a partition went back into what is in hand of it: the group is joined again, to go on from what is not finished"
                );
                return Came::Behind;
            }
            tracing::error!(
                queue,
                partition = lane,
                from = expected,
                to = sequence,
                in_hand,
                "a partition went back: its topic was made anew, or a broker lost what was not on all replicas; what stands there from here on is handled, and what is in hand of the earlier one is not handed out again"
            );
            lanes.assign(lane, self.next_generation());
        }
        lanes.came(lane, sequence).map_or(Came::NotOurs, Came::Of)
    }

    /// The offsets to be committed, of all partitions or of some. `None`: nothing moved.
    pub(super) fn offsets(&self, only: Option<&[u32]>) -> Option<TopicPartitionList> {
        let moved = lock(&self.lanes).moved(only);
        let mut list = TopicPartitionList::with_capacity(moved.len());
        for (lane, position) in &moved {
            let (Ok(partition), Ok(offset)) = (i32::try_from(*lane), i64::try_from(*position)) else { continue };
            // The one error is an offset below zero.
            let _ = list.add_partition_offset(&self.name, partition, Offset::Offset(offset));
        }
        (list.count() > 0).then_some(list)
    }
}
