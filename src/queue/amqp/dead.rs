//! The dead letters: a queue that is looked at by taking all of it without an ack and giving it back.
//!
//! Owns the rule that a look changes nothing: the queue has no limit of returns, and a look ends when the broker has got back what it
//! had handed out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::StreamExt;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicConsumeOptions};
use lapin::types::FieldTable;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::super::{DeadLetter, DeadLetters, Filter, QueueError};
use super::broker::Broker;
use super::form;
use super::link::Link;

/// How long the next of the letters that the broker has counted may take.
const NEXT: Duration = Duration::from_secs(2);
/// How long the broker may take to show again what it got back.
const RETURN: Duration = Duration::from_secs(5);

/// The dead-letter place of one AMQP queue.
pub(super) struct Dead {
    pub(super) link: Link,
    pub(super) looking: Arc<Mutex<()>>,
}

/// All dead letters, as long as the channel is open.
struct Look {
    broker: Arc<Broker>,
    channel: Channel,
    letters: Vec<(u64, DeadLetter)>,
}

impl Look {
    async fn open(broker: Arc<Broker>) -> Result<Self, QueueError> {
        let channel = broker.channel().await?;
        let count = usize::try_from(broker.ready(&channel, &broker.dead).await?).unwrap_or(usize::MAX);
        let mut look = Self { broker, channel, letters: Vec::new() };
        if count == 0 {
            return Ok(look);
        }
        let broker = Arc::clone(&look.broker);
        let options = BasicConsumeOptions::default();
        let queue = broker.queue(&broker.dead)?;
        let consume = look.channel.basic_consume(queue, "trackalert-look".into(), options, FieldTable::default());
        let mut consumer = broker.within("look", consume).await?;
        while look.letters.len() < count {
            // Fewer: another process looks at the same time, or has dropped some.
            let Ok(Some(next)) = timeout(NEXT, consumer.next()).await else { break };
            let next = next.map_err(|error| broker.failed(&error))?;
            let letter = form::letter(&broker.name, &next.properties, Bytes::from(next.data));
            look.letters.push((next.delivery_tag, letter));
        }
        Ok(look)
    }

    /// Takes one out for good, and gives the rest back.
    async fn close(self, without: Option<u64>) -> Result<(), QueueError> {
        let Self { broker, channel, letters } = self;
        if let Some(tag) = without {
            broker.within("ack", channel.basic_ack(tag, BasicAckOptions::default())).await?;
        }
        broker.within("close", channel.close(200, "done".into())).await?;
        let rest = letters.len() - usize::from(without.is_some());
        // The queue gets them back a little later than the channel is closed; whoever looks next must find them.
        let channel = broker.channel().await?;
        let deadline = Instant::now() + RETURN;
        while broker.ready(&channel, &broker.dead).await? < rest as u64 && Instant::now() < deadline {
            sleep(Duration::from_millis(5)).await;
        }
        broker.within("close", channel.close(200, "done".into())).await
    }

    fn find(&self, id: &str) -> Option<(u64, DeadLetter)> {
        self.letters.iter().find(|(_, letter)| letter.id == id).cloned()
    }
}

impl Dead {
    /// Looks, and does something with one letter before the look ends; `true`: then it goes.
    fn with<T, F>(&self, work: impl FnOnce(Link, &Look) -> F + Send + 'static) -> BoxFuture<'_, Result<T, QueueError>>
    where
        T: Send + 'static,
        F: Future<Output = Result<(T, Option<u64>), QueueError>> + Send + 'static,
    {
        let (link, looking) = (self.link.clone(), Arc::clone(&self.looking));
        Box::pin(self.link.run(async move {
            let _alone = looking.lock().await;
            let look = Look::open(Arc::clone(&link.broker)).await?;
            let done = work(link, &look).await;
            let without = done.as_ref().ok().and_then(|(_, without)| *without);
            look.close(without).await?;
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
            let meant =
                |letter: &&DeadLetter| filter.matches(letter) && after.as_ref().is_none_or(|after| letter.id > *after);
            let mut letters: Vec<_> = look.letters.iter().map(|(_, letter)| letter).filter(meant).cloned().collect();
            letters.sort_by(|a, b| a.id.cmp(&b.id));
            letters.truncate(most);
            std::future::ready(Ok((letters, None)))
        })
    }

    fn resend(&self, id: String) -> BoxFuture<'_, Result<bool, QueueError>> {
        self.with(move |link, look| {
            let found = look.find(&id);
            async move {
                let Some((tag, letter)) = found else { return Ok((false, None)) };
                let copy = letter.into_copy();
                let copy = form::outgoing(&copy).map_err(|_| link.broker.unavailable("the letter is too large"))?;
                link.publish(&link.broker.name, vec![copy]).await?;
                Ok((true, Some(tag)))
            }
        })
    }

    fn drop_letter(&self, id: String) -> BoxFuture<'_, Result<bool, QueueError>> {
        self.with(move |_, look| {
            let tag = look.find(&id).map(|(tag, _)| tag);
            std::future::ready(Ok((tag.is_some(), tag)))
        })
    }
}
