//! The dead letters of one queue: a compacted topic, keyed by the id of the letter; a record without a payload forgets one.
//!
//! Owns reading it. Nothing is consumed: it is read from its beginning to its end, by a consumer that belongs to no group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Offset, TopicPartitionList};

use super::super::{DeadLetter, DeadLetters, Filter, QueueError};
use super::client::ToLog;
use super::depth::{self, Asker};
use super::publisher::lock;
use super::queue::Shared;
use super::record;

/// How long reading may stand still before it is given up.
const STILL: Duration = Duration::from_secs(5);

/// The ids that are there, as far as the topic was read.
#[derive(Default)]
struct Index {
    alive: BTreeSet<String>,
    /// Where to go on, by partition.
    next: BTreeMap<i32, u64>,
}

/// The dead-letter place of one queue.
pub(super) struct Dead {
    shared: Arc<Shared>,
    asker: Asker,
    index: Mutex<Index>,
    /// One change at a time: a letter is not sent twice.
    changing: tokio::sync::Mutex<()>,
}

impl Dead {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, asker: Asker::default(), index: Mutex::default(), changing: tokio::sync::Mutex::new(()) }
    }

    /// The client to ask with.
    pub(super) const fn asker(&self) -> &Asker {
        &self.asker
    }

    /// How many letters there are. Blocks.
    pub(super) fn count(&self) -> Result<u64, QueueError> {
        self.asker.with(&self.shared, |consumer| self.follow(consumer, |index| index.alive.len() as u64))
    }

    /// Brings the index up to the end of the topic.
    fn follow<T>(&self, consumer: &BaseConsumer<ToLog>, look: impl FnOnce(&Index) -> T) -> Result<T, QueueError> {
        let mut index = lock(&self.index);
        loop {
            let Index { alive, next } = &mut *index;
            let went_back = !read(&self.shared, consumer, next, |record| {
                if let Some(id) = record::letter_id(record) {
                    if record.payload().is_some() {
                        alive.insert(id)
                    } else {
                        alive.remove(&id)
                    };
                }
            })?;
            if !went_back {
                return Ok(look(&index));
            }
            let topic = &self.shared.dead;
            tracing::warn!(topic, "kafka: the topic of the dead letters was made anew; it is read from its beginning");
            *index = Index::default();
        }
    }

    /// The letters that match, oldest first, after an id. Blocks.
    fn look(&self, filter: &Filter, after: Option<&str>, most: usize) -> Result<Vec<DeadLetter>, QueueError> {
        self.asker.with(&self.shared, |consumer| {
            let wanted: BTreeSet<String> = self.follow(consumer, |index| {
                let is_after = |id: &&String| after.is_none_or(|after| id.as_str() > after);
                index.alive.iter().filter(is_after).cloned().collect()
            })?;
            let mut letters = BTreeMap::new();
            if wanted.is_empty() || most == 0 {
                return Ok(Vec::new());
            }
            read(&self.shared, consumer, &mut BTreeMap::new(), |record| {
                let id = record::letter_id(record).filter(|id| wanted.contains(id));
                let letter = id.filter(|_| record.payload().is_some()).and_then(|_| record::read_letter(record));
                if let Some(letter) = letter.filter(|letter| filter.matches(letter)) {
                    letters.insert(letter.id.clone(), letter);
                    if letters.len() > most {
                        letters.pop_last();
                    }
                }
            })?;
            Ok(letters.into_values().collect())
        })
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, QueueError> + Send + 'static,
    ) -> Result<T, QueueError> {
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&this)).await.map_err(|error| self.shared.unavailable(error))?
    }

    /// The letters with these ids that are there; one reading for all of them.
    async fn these(self: &Arc<Self>, ids: Vec<String>) -> Result<Vec<DeadLetter>, QueueError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let most = ids.len();
        let filter = Filter { ids, ..Filter::default() };
        self.blocking(move |this| this.look(&filter, None, most)).await
    }

    /// Forgets these, all at once, and gives their ids.
    async fn forget(&self, ids: Vec<String>) -> Result<Vec<String>, QueueError> {
        let forgotten = futures_util::future::join_all(ids.iter().map(|id| self.shared.dead_producer.forget(id))).await;
        forgotten.into_iter().collect::<Result<(), QueueError>>()?;
        Ok(ids)
    }
}

/// Reads the topic on from `next` (or its beginning) to where it ended when the reading began. `false`: it ends before that, so that it is
/// another one, and nothing was read. One that has become as long as the old one was looks like that one.
fn read(
    shared: &Shared,
    consumer: &BaseConsumer<ToLog>,
    next: &mut BTreeMap<i32, u64>,
    mut take: impl FnMut(&BorrowedMessage<'_>),
) -> Result<bool, QueueError> {
    let failed = |error| shared.unavailable(error);
    let mut ends = BTreeMap::new();
    let mut list = TopicPartitionList::new();
    for partition in depth::partitions(shared, consumer, &shared.dead)? {
        let (low, high) = depth::bounds(shared, consumer, &shared.dead, partition)?;
        let from = next.entry(partition).or_insert(low);
        if *from > high {
            return Ok(false);
        }
        *from = (*from).max(low);
        if *from < high {
            ends.insert(partition, high);
            let offset = Offset::Offset(i64::try_from(*from).unwrap_or(i64::MAX));
            list.add_partition_offset(&shared.dead, partition, offset).map_err(failed)?;
        }
    }
    if ends.is_empty() {
        return Ok(true);
    }
    consumer.assign(&list).map_err(failed)?;
    let done = until_the_ends(shared, consumer, &ends, next, &mut take);
    consumer.unassign().map_err(failed)?;
    done.map(|()| true)
}

fn until_the_ends(
    shared: &Shared,
    consumer: &BaseConsumer<ToLog>,
    ends: &BTreeMap<i32, u64>,
    next: &mut BTreeMap<i32, u64>,
    take: &mut impl FnMut(&BorrowedMessage<'_>),
) -> Result<(), QueueError> {
    let mut moved = Instant::now();
    loop {
        // Records before the end may be gone (compacted), so it is the client's position that tells, too.
        let position = consumer.position().map_err(|error| shared.unavailable(error))?;
        let at_end = |(partition, end): (&i32, &u64)| {
            let read = next.get(partition).is_some_and(|next| next >= end);
            let passed = position.find_partition(&shared.dead, *partition).is_some_and(|found| {
                matches!(found.offset(), Offset::Offset(offset) if u64::try_from(offset).is_ok_and(|at| at >= *end))
            });
            read || passed
        };
        if ends.iter().all(at_end) {
            ends.iter().for_each(|(partition, end)| {
                next.insert(*partition, *end);
            });
            return Ok(());
        }
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(record)) => {
                moved = Instant::now();
                let offset = u64::try_from(record.offset()).unwrap_or(0);
                let end = ends.get(&record.partition()).copied().unwrap_or(0);
                if offset < end {
                    take(&record);
                    next.insert(record.partition(), offset + 1);
                }
            }
            Some(Err(error)) => return Err(shared.unavailable(error)),
            None if moved.elapsed() > STILL => {
                return Err(shared.unavailable("the dead letters could not be read to their end"));
            }
            None => {}
        }
    }
}

impl DeadLetters for Arc<Dead> {
    fn list(
        &self,
        filter: Filter,
        after: Option<String>,
        most: usize,
    ) -> BoxFuture<'_, Result<Vec<DeadLetter>, QueueError>> {
        Box::pin(self.blocking(move |this| this.look(&filter, after.as_deref(), most)))
    }

    fn resend(&self, id: String) -> BoxFuture<'_, Result<bool, QueueError>> {
        Box::pin(async move { Ok(!self.resend_all(vec![id]).await?.is_empty()) })
    }

    fn drop_letter(&self, id: String) -> BoxFuture<'_, Result<bool, QueueError>> {
        Box::pin(async move { Ok(!self.drop_all(vec![id]).await?.is_empty()) })
    }

    fn resend_all(&self, ids: Vec<String>) -> BoxFuture<'_, Result<Vec<String>, QueueError>> {
        Box::pin(async move {
            let _one = self.changing.lock().await;
            let letters = self.these(ids).await?;
            let found = letters.iter().map(|letter| letter.id.clone()).collect();
            let copies: Vec<_> = letters.into_iter().map(DeadLetter::into_copy).collect();
            // Every copy is confirmed before the first letter goes.
            self.shared.producer.publish(&copies).await?;
            self.forget(found).await
        })
    }

    fn drop_all(&self, ids: Vec<String>) -> BoxFuture<'_, Result<Vec<String>, QueueError>> {
        Box::pin(async move {
            let _one = self.changing.lock().await;
            let letters = self.these(ids).await?;
            self.forget(letters.into_iter().map(|letter| letter.id).collect()).await
        })
    }
}
