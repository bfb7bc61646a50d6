//! What a queue on Kafka holds: how far the group is behind, partition by partition, and how many dead letters there are.
//!
//! Changes nothing. Of the partitions that this process has it knows the position better than the broker, which hears of it once a second.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::super::{Depth, QueueError};
use super::client::{self, EndsBeside, ToLog};
use super::dead::Dead;
use super::publisher::lock;
use super::queue::Shared;

/// How long one question may take.
const ASK: Duration = Duration::from_secs(2);
/// Events of the client that are listened to after each question.
const HEARD: usize = 100;
/// Partitions of one queue that get a metric of their own.
const SHOWN: u32 = 256;

/// A client to ask with, made when it is needed first.
#[derive(Default)]
pub(super) struct Asker(Mutex<Option<EndsBeside<BaseConsumer<ToLog>>>>);

impl Asker {
    /// Asks one question at a time.
    pub(super) fn with<T>(
        &self,
        shared: &Shared,
        ask: impl FnOnce(&BaseConsumer<ToLog>) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        let mut held = lock(&self.0);
        let consumer = match held.take() {
            Some(consumer) => consumer,
            None => {
                let made = client::reader(&shared.settings).create_with_context(shared.to_log.clone());
                EndsBeside::new(made.map_err(|error| shared.unavailable(super::topic::client_error(&error)))?)
            }
        };
        let answer = ask(&consumer);
        // What it has to tell waits in the same queue as what it would read, which is nothing here: unheard, it is kept for ever.
        for _ in 0..HEARD {
            // Nothing is assigned: it hears one event and reads nothing.
            drop(consumer.poll(Duration::ZERO));
        }
        *held = Some(consumer);
        answer
    }
}

/// The partitions of a topic.
pub(super) fn partitions(shared: &Shared, consumer: &BaseConsumer<ToLog>, topic: &str) -> Result<Vec<i32>, QueueError> {
    let metadata = consumer.fetch_metadata(Some(topic), ASK).map_err(|error| shared.unavailable(error))?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    Ok(found.map_or_else(Vec::new, |found| found.partitions().iter().map(|partition| partition.id()).collect()))
}

/// First and next offset of a partition.
pub(super) fn bounds(
    shared: &Shared,
    consumer: &BaseConsumer<ToLog>,
    topic: &str,
    partition: i32,
) -> Result<(u64, u64), QueueError> {
    let (low, high) = consumer.fetch_watermarks(topic, partition, ASK).map_err(|error| shared.unavailable(error))?;
    Ok((u64::try_from(low).unwrap_or(0), u64::try_from(high).unwrap_or(0)))
}

/// Asks the broker. Blocks.
pub(super) fn ask(shared: &Shared, dead: &Dead) -> Result<Depth, QueueError> {
    let lags = dead.asker().with(shared, |consumer| lags(shared, consumer))?;
    for (partition, lag) in lags.iter().filter(|(partition, _)| **partition < SHOWN) {
        let label = format!("{}/{partition}", shared.label);
        shared.metrics.partition_lag.with_label_values(&[&label]).set(i64::try_from(*lag).unwrap_or(i64::MAX));
    }
    let (bytes, oldest) = lock(&shared.lanes).unfinished();
    Ok(Depth { messages: lags.values().sum(), bytes, oldest, dead: dead.count()? })
}

fn lags(shared: &Shared, consumer: &BaseConsumer<ToLog>) -> Result<BTreeMap<u32, u64>, QueueError> {
    let all = partitions(shared, consumer, &shared.name)?;
    let mut list = TopicPartitionList::with_capacity(all.len());
    for partition in &all {
        list.add_partition(&shared.name, *partition);
    }
    let committed = consumer.committed_offsets(list, ASK).map_err(|error| shared.unavailable(error))?;
    let mut lags = BTreeMap::new();
    for partition in all {
        let (low, high) = bounds(shared, consumer, &shared.name, partition)?;
        let Ok(lane) = u32::try_from(partition) else { continue };
        let stored = match committed.find_partition(&shared.name, partition).map(|found| found.offset()) {
            Some(Offset::Offset(offset)) => u64::try_from(offset).unwrap_or(0),
            _ => low,
        };
        // Looked at after the end of the partition: a position is never ahead of it by more than what came in between.
        let position = lock(&shared.lanes).positions().get(&lane).copied().flatten().unwrap_or(stored);
        lags.insert(lane, high.saturating_sub(position.max(low)));
    }
    Ok(lags)
}
