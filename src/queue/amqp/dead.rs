//! The dead letters: a queue that is looked at by taking all of it without an ack and giving it back.
//!
//! Owns the rule that a look changes nothing: the queue has no limit of returns, and a look ends when the broker has got back what it
//! had handed out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{SelectAll, StreamExt};
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::super::{DeadLetter, DeadLetters, Filter, QueueError};
use super::broker::Broker;
use super::form;
use super::link::Link;
use super::publisher::To;

/// How long the next of the letters that the broker has counted may take.
const NEXT: Duration = Duration::from_secs(2);
/// How long the broker may take to show again what it got back.
const RETURN: Duration = Duration::from_secs(5);

/// Single acks on one channel before it is closed: a quorum queue that is behind holds back what comes after some thirty, and forgets
/// it with the channel, so that letters that were taken out would be there again.
const ACKS: usize = 16;

/// The most letters that one consumer is shown, which is all that the protocol can say. Where it is not said, a quorum queue shows 2,000
/// and holds the rest back.
const SHOWN: u16 = u16::MAX;

/// The dead-letter place of one AMQP queue.
pub(super) struct Dead {
    pub(super) link: Link,
    pub(super) looking: Arc<Mutex<()>>,
}

/// All dead letters, as long as the channel is open.
struct Look {
    broker: Arc<Broker>,
    channel: Channel,
    letters: Vec<Found>,
}

/// A letter of the queue.
struct Found {
    tag: u64,
    letter: DeadLetter,
    /// We wrote it: what has the same id is the same letter, which the broker confirmed too late, so that it was sent again.
    ours: bool,
}

impl Look {
    async fn open(broker: Arc<Broker>) -> Result<Self, QueueError> {
        let channel = broker.looking().await?;
        let mut look = Self { broker, channel, letters: Vec::new() };
        if let Err(error) = look.take().await {
            look.broker.done(&look.channel).await;
            return Err(error);
        }
        Ok(look)
    }

    async fn take(&mut self) -> Result<(), QueueError> {
        let (broker, channel) = (&self.broker, &self.channel);
        let count = usize::try_from(broker.ready(channel, &broker.dead).await?).unwrap_or(usize::MAX);
        if count == 0 {
            return Ok(());
        }
        broker.within("look", channel.basic_qos(SHOWN, BasicQosOptions::default())).await?;
        let queue = broker.queue(&broker.dead)?;
        let mut consumers = SelectAll::new();
        for number in 0..count.div_ceil(usize::from(SHOWN)) {
            let name = format!("trackalert-look-{number}");
            let options = BasicConsumeOptions::default();
            let consume = channel.basic_consume(queue.clone(), name.into(), options, FieldTable::default());
            consumers.push(broker.within("look", consume).await?);
        }
        while self.letters.len() < count {
            let next = match timeout(NEXT, consumers.next()).await {
                Ok(next) => next,
                Err(_) => {
                    // The answer comes behind what is on its way here.
                    let left = broker.ready(channel, &broker.dead).await?;
                    match (consumers.next().now_or_never(), left) {
                        (Some(next), _) => next,
                        // Fewer: another process looks at the same time, or has dropped some.
                        (None, 0) => break,
                        (None, left) => {
                            let late = format!("{left} dead letters did not come within {NEXT:?}");
                            return Err(broker.unavailable(late));
                        }
                    }
                }
            };
            let next = next.ok_or_else(|| broker.unavailable("it ended a look at the dead letters"))?;
            let next = next.map_err(|error| broker.failed(&error))?;
            let (letter, ours) = form::letter(&broker.name, &next.properties, Bytes::from(next.data));
            self.letters.push(Found { tag: next.delivery_tag, letter, ours });
        }
        // An ack for many goes by the tags.
        self.letters.sort_unstable_by_key(|found| found.tag);
        Ok(())
    }

    /// Takes those with these ids out for good, and gives the rest back. `true`: some of them may be left, look again.
    async fn close(self, gone: &BTreeSet<String>) -> Result<bool, QueueError> {
        let taken_out = self.take_out(gone).await;
        let Self { broker, channel, letters } = self;
        // However that went: what is held here nobody else sees.
        let closed = broker.within("close", channel.close(200, "done".into())).await;
        let (taken_out, left) = taken_out?;
        closed?;
        // The queue gets them back a little later than the channel is closed; whoever looks next must find them.
        let rest = (letters.len() - taken_out) as u64;
        let channel = broker.looking().await?;
        let deadline = Instant::now() + RETURN;
        let mut ready = broker.ready(&channel, &broker.dead).await?;
        while ready < rest && Instant::now() < deadline {
            sleep(Duration::from_millis(5)).await;
            ready = broker.ready(&channel, &broker.dead).await?;
        }
        broker.done(&channel).await;
        Ok(left || (taken_out > 0 && ready > rest))
    }

    /// Acks letters with these ids: how many, and whether some of them are left.
    async fn take_out(&self, gone: &BTreeSet<String>) -> Result<(usize, bool), QueueError> {
        let Self { broker, channel, letters } = self;
        let goes = |found: &&Found| gone.contains(&found.letter.id);
        let front = letters.iter().take_while(goes).count();
        if let Some(last) = front.checked_sub(1).and_then(|last| letters.get(last)) {
            broker.within("ack", channel.basic_ack(last.tag, BasicAckOptions { multiple: true })).await?;
        }
        let others: Vec<u64> = letters.iter().skip(front).filter(goes).map(|found| found.tag).collect();
        let singly = others.len().min(ACKS);
        for tag in others.iter().take(singly) {
            broker.within("ack", channel.basic_ack(*tag, BasicAckOptions::default())).await?;
        }
        Ok((front + singly, singly < others.len()))
    }

    /// Those that are meant, each once, oldest first.
    fn find(&self, meant: impl Fn(&DeadLetter) -> bool) -> Vec<DeadLetter> {
        let meant = self.letters.iter().filter(|found| meant(&found.letter));
        let each = meant.map(|found| ((&found.letter.id, (!found.ours).then_some(found.tag)), &found.letter));
        each.collect::<BTreeMap<_, _>>().into_values().cloned().collect()
    }
}

impl Dead {
    /// Looks, and does something with letters before the look ends; those with the ids that it gives go then.
    fn with<T, F>(&self, work: impl FnOnce(Link, &Look) -> F + Send + 'static) -> BoxFuture<'_, Result<T, QueueError>>
    where
        T: Send + 'static,
        F: Future<Output = Result<(T, Vec<String>), QueueError>> + Send + 'static,
    {
        let (link, looking) = (self.link.clone(), Arc::clone(&self.looking));
        Box::pin(self.link.run(async move {
            let _alone = looking.lock().await;
            let broker = Arc::clone(&link.broker);
            let mut look = Look::open(Arc::clone(&broker)).await?;
            let done = work(link, &look).await;
            let gone = done.as_ref().map(|(_, gone)| gone.iter().cloned().collect()).unwrap_or_default();
            while look.close(&gone).await? {
                look = Look::open(Arc::clone(&broker)).await?;
            }
            done.map(|(value, _)| value)
        }))
    }
}

impl DeadLetters for Dead {
    fn list(
        &self,
        filter: Filter,
        after: Option<String>,
        most: usize,
    ) -> BoxFuture<'_, Result<Vec<DeadLetter>, QueueError>> {
        self.with(move |_, look| {
            let is_after = |letter: &DeadLetter| after.as_ref().is_none_or(|after| letter.id > *after);
            let mut letters = look.find(|letter| filter.matches(letter) && is_after(letter));
            letters.truncate(most);
            std::future::ready(Ok((letters, Vec::new())))
        })
    }

    fn resend(&self, id: String) -> BoxFuture<'_, Result<bool, QueueError>> {
        Box::pin(async move { Ok(!self.resend_all(vec![id]).await?.is_empty()) })
    }

    fn drop_letter(&self, id: String) -> BoxFuture<'_, Result<bool, QueueError>> {
        Box::pin(async move { Ok(!self.drop_all(vec![id]).await?.is_empty()) })
    }

    fn resend_all(&self, ids: Vec<String>) -> BoxFuture<'_, Result<Vec<String>, QueueError>> {
        self.with(move |link, look| {
            let letters = look.find(|letter| ids.contains(&letter.id));
            async move {
                let found: Vec<String> = letters.iter().map(|letter| letter.id.clone()).collect();
                let mut copies = Vec::new();
                for letter in letters {
                    let id = letter.id.clone();
                    let copy = form::outgoing(&letter.into_copy());
                    copies.push(copy.map_err(|_| link.broker.unavailable(format!("the letter {id} is too large")))?);
                }
                // Every copy is confirmed before the first letter goes.
                link.publish(To::Queue, copies).await?;
                Ok((found.clone(), found))
            }
        })
    }

    fn drop_all(&self, ids: Vec<String>) -> BoxFuture<'_, Result<Vec<String>, QueueError>> {
        self.with(move |_, look| {
            let found = look.find(|letter| ids.contains(&letter.id)).into_iter().map(|letter| letter.id);
            let found: Vec<String> = found.collect();
            std::future::ready(Ok((found.clone(), found)))
        })
    }
}
