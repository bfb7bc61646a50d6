//! The source: the one thread that polls, hands deliveries out and takes settlements back.
//!
//! Owns the consumer. It never stops polling for longer than a moment, however much is in flight: at its limit it pauses its partitions,
//! so that the group never takes it for dead.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::{mpsc, oneshot, watch};

use super::super::flights::Stage;
use super::super::{AckToken, Backoff, Delivery, Message, Tag, Unsettled};
use super::publisher::lock;
use super::queue::{Shared, Subscribed, with_lanes};
use super::rebalance::Member;
use super::settling::Came;
use super::{client, record};

/// The most that is taken from the client before it is handed out: in messages, and in bytes, one message more than that at most. The
/// client's own bounds do not count keys and headers, of which a few bytes on the wire can be megabytes here.
const AHEAD: usize = 1024;
const AHEAD_BYTES: usize = 16 << 20;
/// How long there may be no place for more before the partitions are paused. Pausing throws away what the client has fetched ahead.
const PATIENCE: Duration = Duration::from_millis(100);
/// The waits for messages while settlements may come, and while they may not.
const BUSY: Duration = Duration::from_millis(4);
const IDLE: Duration = Duration::from_millis(25);
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// How often positions are committed that did not move: nobody says whether a commit arrived.
const COMMIT_ALL_EVERY: Duration = Duration::from_secs(10);
/// How long the end of a source waits for the broker to take its position, and for its place in the group that it is about to leave.
const SETTLE: Duration = Duration::from_secs(4);
/// How long it waits to hear of a broker at all. Where none answers, the position has [`LAST_TRY`], and there is nothing more to wait for.
const SILENCE: Duration = Duration::from_secs(2);
/// For the coordinator, which may answer all the same: the question goes to one broker, and behind what was asked there before.
const LAST_TRY: Duration = Duration::from_millis(500);

/// What a source is made of.
pub(super) struct Parts {
    pub(super) shared: Arc<Shared>,
    pub(super) subscribed: Subscribed,
    pub(super) limit: Unsettled,
    pub(super) backoff: Backoff,
    pub(super) out: mpsc::Sender<Delivery>,
    pub(super) paused: watch::Receiver<bool>,
    /// Dropped when nothing more is to be waited for.
    pub(super) _ended: oneshot::Sender<()>,
}

/// A message that was taken from the client and not handed out.
struct Taken {
    tag: Tag,
    message: Message,
}

struct Source {
    parts: Parts,
    consumer: BaseConsumer<Member>,
    /// The group is to be left and joined again: the client would not go on by itself.
    again: bool,
    ahead: VecDeque<Taken>,
    ahead_bytes: usize,
    /// Since when there is no place for what is ahead.
    blocked: Option<Instant>,
    commit_at: Instant,
    commit_all_at: Instant,
}

/// Runs a subscription to its end, after the one before has ended.
pub(super) fn run(mut parts: Parts) {
    let shared = Arc::clone(&parts.shared);
    let _running = lock(&shared.running);
    with_lanes(&shared, super::lanes::Lanes::clear);
    let mut joins = 0;
    while !parts.subscribed.over(&shared) && !parts.out.is_closed() {
        let began = Instant::now();
        match join(&parts) {
            Ok(consumer) => match Source::new(parts, consumer).run() {
                Some(again) => parts = again,
                None => return,
            },
            // Its settings are tried at the start: files that they name may be gone since.
            Err(error) => {
                tracing::error!(queue = shared.name, %error, "kafka: the consumer could not be made, trying again");
            }
        }
        // Each time that it joins, the others' partitions may move, too.
        joins = if began.elapsed() > parts.backoff.most { 1 } else { joins + 1 };
        let until = Instant::now() + parts.backoff.wait(joins, rand::random());
        while Instant::now() < until && !parts.subscribed.over(&shared) && !parts.out.is_closed() {
            client::rest(IDLE);
        }
    }
}

fn join(parts: &Parts) -> Result<BaseConsumer<Member>, KafkaError> {
    let member = Member {
        shared: Arc::clone(&parts.shared),
        backoff: parts.backoff,
        subscribed: parts.subscribed.clone(),
        ending: AtomicBool::new(false),
        halted: AtomicBool::new(false),
        joined: AtomicBool::new(false),
    };
    let consumer: BaseConsumer<Member> = client::consumer(&parts.shared.settings).create_with_context(member)?;
    consumer.subscribe(&[&parts.shared.name])?;
    Ok(consumer)
}

/// Whether partitions of ours will bring nothing: where their position was asked of a broker that is not the group's coordinator any
/// more, or not yet, the client says so, and never asks again (librdkafka 2.12, confluentinc/librdkafka#5586).
fn strands(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{CoordinatorLoadInProgress, CoordinatorNotAvailable, NotCoordinator};
    matches!(
        error,
        KafkaError::MessageConsumption(NotCoordinator | CoordinatorNotAvailable | CoordinatorLoadInProgress)
    )
}

impl Source {
    fn new(parts: Parts, consumer: BaseConsumer<Member>) -> Self {
        let now = Instant::now();
        let (commit_at, commit_all_at) = (now + COMMIT_EVERY, now + COMMIT_ALL_EVERY);
        let ahead = VecDeque::new();
        Self { parts, consumer, again: false, ahead, ahead_bytes: 0, blocked: None, commit_at, commit_all_at }
    }

    /// Until the subscription is over. `Some`: it is not, and the group is to be joined again.
    fn run(mut self) -> Option<Parts> {
        self.work();
        self.end()
    }

    fn work(&mut self) {
        let shared = Arc::clone(&self.parts.shared);
        while !self.again && !self.parts.subscribed.over(&shared) {
            let settled = self.parts.shared.settle_pending(self.parts.backoff);
            let nobody_takes = self.parts.out.is_closed();
            if nobody_takes {
                // What was sent while the other end went lies in the channel until that goes: its tokens would never come back.
                self.parts.out = mpsc::channel(1).0;
            }
            if nobody_takes && lock(&self.parts.shared.lanes).at_rest() {
                return;
            }
            let blocked = !self.hand_out() || nobody_takes;
            self.halt_or_go_on(blocked);
            self.commit_when_due();
            self.take(blocked, settled);
        }
    }

    /// Hands out what is due and what is new. `false`: there is no place for all of it.
    fn hand_out(&mut self) -> bool {
        if *self.parts.paused.borrow() {
            return false;
        }
        let shared = Arc::clone(&self.parts.shared);
        let mut lanes = lock(&shared.lanes);
        let now = tokio::time::Instant::now();
        while lanes.is_due(now) {
            let Ok(place) = self.parts.out.try_reserve() else { return false };
            let Some(tag) = lanes.due(now) else { break };
            match lanes.get(tag).map(|open| &open.stage) {
                Some(Stage::Waiting) => {
                    if let Some((message, redelivered)) = lanes.out_again(tag) {
                        place.send(delivery(&shared, tag, message, redelivered));
                    }
                }
                Some(Stage::Rejected(_)) => shared.bury(&mut lanes, tag),
                Some(Stage::Out) | None => {}
            }
        }
        while let Some(next) = self.ahead.front() {
            let size = next.message.size();
            // The partition went while the message waited here: its next owner has it. Or it went back, which was told.
            if lanes.has(next.tag) {
                if !lanes.room(size, self.parts.limit) {
                    return false;
                }
                let Ok(place) = self.parts.out.try_reserve() else { return false };
                let Some(Taken { tag, message }) = self.ahead.pop_front() else { break };
                let message = Arc::new(message);
                if lanes.add(tag, Arc::clone(&message)) {
                    place.send(delivery(&shared, tag, message, 0));
                }
            } else {
                self.ahead.pop_front();
            }
            self.ahead_bytes -= size;
        }
        true
    }

    /// Pauses the partitions where there was no place for a while, and resumes them when there is plenty.
    fn halt_or_go_on(&mut self, blocked: bool) {
        let halted = self.consumer.context().halted.load(Ordering::Acquire);
        if !blocked {
            self.blocked = None;
            if halted && lock(&self.parts.shared.lanes).plenty(self.parts.limit) {
                self.set_halted(false);
            }
            return;
        }
        let since = *self.blocked.get_or_insert_with(Instant::now);
        if !halted && since.elapsed() >= PATIENCE {
            self.set_halted(true);
        }
    }

    fn set_halted(&self, halted: bool) {
        let done = self
            .consumer
            .assignment()
            .and_then(|mine| if halted { self.consumer.pause(&mine) } else { self.consumer.resume(&mine) });
        match done {
            Ok(()) => self.consumer.context().halted.store(halted, Ordering::Release),
            // As it was, until the next round: taken for paused, they would go on to fill the memory.
            Err(error) => {
                self.parts.shared.to_log.complain("pause", &error, "partitions could not be paused or resumed");
            }
        }
    }

    /// Takes what the client has, and serves its events. `settled`: there is work without it.
    fn take(&mut self, blocked: bool, settled: bool) {
        let halted = self.consumer.context().halted.load(Ordering::Acquire);
        if blocked && !halted {
            // For a moment only: then the partitions are paused, and it polls again.
            client::rest(Duration::from_millis(1));
            return;
        }
        let quiet = lock(&self.parts.shared.lanes).is_empty() && !blocked;
        let mut wait = match (settled, quiet) {
            (true, _) => Duration::ZERO,
            (false, true) => IDLE,
            (false, false) => BUSY,
        };
        // Once at least, however much is ahead: a group is served only in here.
        loop {
            match self.consumer.poll(wait) {
                None => break,
                Some(Ok(record)) => {
                    let (lane, sequence) = (u32::try_from(record.partition()), u64::try_from(record.offset()));
                    let (Ok(lane), Ok(sequence)) = (lane, sequence) else { continue };
                    match self.parts.shared.came(lane, sequence) {
                        Came::Of(generation) => {
                            let message = record::message(&record);
                            self.ahead_bytes += message.size();
                            self.ahead.push_back(Taken { tag: Tag { lane, generation, sequence }, message });
                        }
                        Came::NotOurs => {}
                        Came::Behind => {
                            self.again = true;
                            break;
                        }
                    }
                }
                Some(Err(error)) => {
                    self.parts.shared.to_log.failed(&error, "");
                    self.again = strands(&error);
                    break;
                }
            }
            if self.ahead.len() >= AHEAD || self.ahead_bytes >= AHEAD_BYTES {
                break;
            }
            wait = Duration::ZERO;
        }
    }

    fn commit_when_due(&mut self) {
        let now = Instant::now();
        if now >= self.commit_at {
            self.commit_at = now + COMMIT_EVERY;
            if now >= self.commit_all_at {
                self.commit_all_at = now + COMMIT_ALL_EVERY;
                with_lanes(&self.parts.shared, |lanes| lanes.give_again(None));
            }
            self.commit();
        }
    }

    /// Hands the positions to the client. What becomes of them is not told: they are given again from time to time, and for certain at
    /// the end.
    fn commit(&self) {
        let Some(offsets) = self.parts.shared.offsets(None) else { return };
        if let Err(error) = self.consumer.commit(&offsets, CommitMode::Async) {
            tracing::debug!(queue = self.parts.shared.name, %error, "position not committed, trying again");
            with_lanes(&self.parts.shared, |lanes| lanes.give_again(None));
        }
    }

    /// Commits the exact position and leaves the group at once, or, where that is joined again, when what is in flight is done, as at any
    /// revoke.
    fn end(mut self) -> Option<Parts> {
        self.consumer.context().ending.store(!self.again, Ordering::Release);
        self.ahead.clear();
        self.set_halted(true);
        let began = Instant::now();
        let answers = self.consumer.fetch_metadata(Some(&self.parts.shared.name), SILENCE).is_ok();
        let deadline = if answers { began + SETTLE } else { Instant::now() + LAST_TRY };
        let committed = self.committed(deadline);
        if committed == Some(false) {
            let queue = &self.parts.shared.name;
            tracing::warn!(queue, "position not committed at the end of a source; the next one starts earlier");
        }
        self.leave_empty_handed(deadline);
        let Self { parts, consumer, again, .. } = self;
        let shared = Arc::clone(&parts.shared);
        // What is in flight of a group that is left to be joined again is waited for, be it in a drain, and its position committed.
        let waits = again && !lock(&shared.lanes).at_rest();
        let again = again && !parts.subscribed.over(&shared) && !parts.out.is_closed();
        // Closing waits for the commits that the client still has, and they wait for the broker until the session is over: whoever waits
        // for the end of the source need not.
        let parts = (again || waits || answers || committed == Some(true)).then_some(parts);
        // Closing gives the partitions up and tells the group, so that it need not wait for the session to run out.
        drop(consumer);
        with_lanes(&shared, super::lanes::Lanes::clear);
        parts.filter(|_| again)
    }

    /// Tells the group where there is no partition to give up. The client says nothing then when it is closed (librdkafka 2.12 leaves
    /// with the last partition revoked, and where there is none it ends): the group would keep the place for `session_timeout`, and
    /// each change of members in that time would wait for it.
    fn leave_empty_handed(&self, deadline: Instant) {
        let joined = &self.consumer.context().joined;
        // A member that is about to join has to be one before it can leave.
        while !joined.load(Ordering::Acquire) {
            if Instant::now() >= deadline {
                return;
            }
            let _ = self.consumer.poll(IDLE);
        }
        if self.consumer.assignment().is_ok_and(|mine| mine.count() == 0) {
            self.consumer.unsubscribe();
        }
    }

    /// Commits until the broker says that it has all positions. `Some(false)`: not by the deadline; `None`: there is none to commit.
    fn committed(&self, deadline: Instant) -> Option<bool> {
        let shared = &self.parts.shared;
        loop {
            shared.settle_pending(self.parts.backoff);
            with_lanes(shared, |lanes| lanes.give_again(None));
            let offsets = shared.offsets(None)?;
            let given = self.consumer.commit(&offsets, CommitMode::Async);
            let left = deadline.saturating_duration_since(Instant::now());
            // Asked on the same connection, so that the answer comes after the commit.
            let stored = given.and_then(|()| self.consumer.committed_offsets(offsets.clone(), left));
            let same = |stored: rdkafka::TopicPartitionList| {
                offsets.elements().iter().all(|given| {
                    let found = stored.find_partition(given.topic(), given.partition());
                    found.is_some_and(|found| found.offset() == given.offset())
                })
            };
            if stored.is_ok_and(same) {
                return Some(true);
            }
            if Instant::now() >= deadline {
                return Some(false);
            }
            // A rebalance that is under way goes on only here. What comes out is not handed out: the next member starts at the position.
            let _ = self.consumer.poll(IDLE);
        }
    }
}

fn delivery(shared: &Shared, tag: Tag, message: Arc<Message>, redelivered: u32) -> Delivery {
    let token = AckToken::new(tag, shared.settlements.clone());
    let coordinates = format!("{}/{}/{}", shared.name, tag.lane, tag.sequence);
    Delivery { message, redelivered, coordinates, token }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_is_joined_again_where_its_coordinator_is_another_and_for_no_other_error() {
        use RDKafkaErrorCode::*;
        for code in [NotCoordinator, CoordinatorNotAvailable, CoordinatorLoadInProgress] {
            assert!(strands(&KafkaError::MessageConsumption(code)), "{code:?}");
        }
        for code in [BrokerTransportFailure, AllBrokersDown, UnknownTopicOrPartition, GroupAuthorizationFailed] {
            assert!(!strands(&KafkaError::MessageConsumption(code)), "{code:?}");
        }
    }
}
