//! Which shards are ours: the processes that take from one queue tell each other that they live, over an exchange of that queue, and
//! each reckons from the same list who takes which shard.
//!
//! Owns the list. It decides nothing about order: where two processes have different lists for a moment, both subscribe to a shard and
//! the broker hands it out to one of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::super::QueueError;
use super::broker::Broker;
use super::wire::Wire;

/// After a change, how long the list may go on changing before shards move: a rollout changes it several times.
const CALM: Duration = Duration::from_secs(1);
/// How long a process that hears nobody waits before it takes all shards. It is no matter of order: where somebody has them, it waits.
const ALONE: Duration = Duration::from_millis(250);
/// How long a process may take to tell the others that it goes: else they find out by themselves.
const GOODBYE: Duration = Duration::from_secs(1);
/// Signs of life within the time after which silence counts as death.
const BEATS: u32 = 4;
/// Signs of life that wait for a process; the oldest go.
const WAITING: i32 = 10_000;

/// One process among those that take from a queue.
pub(super) struct Member {
    pub(super) broker: Arc<Broker>,
    /// A connection of its own, because it publishes: at an alarm the broker reads nothing more from such a one, and no ack either.
    pub(super) wire: Wire,
    pub(super) me: Arc<str>,
    /// Our shards.
    pub(super) mine: watch::Sender<Vec<u32>>,
    /// It tells the others that it goes.
    pub(super) leave: CancellationToken,
}

/// What a process says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// It came: whoever hears it answers.
    Hello,
    Here,
    Bye,
}

impl Word {
    const ALL: [(Self, &'static str); 3] = [(Self::Hello, "hello"), (Self::Here, "here"), (Self::Bye, "bye")];

    fn said(self, member: &str, shards: u32) -> String {
        let word = Self::ALL.iter().find(|(word, _)| *word == self).map_or("", |(_, text)| text);
        format!("{word} {member} {shards}")
    }

    fn heard(text: &str) -> Option<(Self, &str, u32)> {
        let mut parts = text.split(' ');
        let (word, member, shards) = (parts.next()?, parts.next()?, parts.next()?.parse().ok()?);
        let word = Self::ALL.iter().find(|(_, text)| *text == word)?.0;
        Some((word, member, shards))
    }
}

impl Member {
    /// Until it leaves, or a moment longer, where it cannot say so.
    pub(super) async fn run(self) {
        let gone = async {
            self.leave.cancelled().await;
            sleep(GOODBYE).await;
        };
        tokio::select! {
            () = self.stay() => {}
            () = gone => {}
        }
        self.wire.close(&self.broker).await;
    }

    async fn stay(&self) {
        let mut seen = BTreeMap::new();
        let mut failures = 0;
        while !self.leave.is_cancelled() {
            let Err(error) = self.attend(&mut seen, &mut failures).await else { return };
            failures += 1;
            // Those that live are silent as well then. Whoever takes from a shard keeps it; one whose process goes has somebody who waits.
            if self.wire.blocked().await && self.forget_silent(&mut seen) {
                self.reckon(&seen);
            }
            let wait = self.broker.reconnect().wait(failures, rand::random());
            if let Some(kept_back) = self.broker.complaints.due("members") {
                tracing::warn!(queue = self.broker.name, %error, kept_back, "the other processes that take from the shards are not heard, trying again");
            }
            tokio::select! {
                () = sleep(wait) => {}
                () = self.leave.cancelled() => {}
            }
        }
    }

    async fn attend(&self, seen: &mut BTreeMap<String, Instant>, failures: &mut u32) -> Result<(), QueueError> {
        let broker = &self.broker;
        let silence = broker.settings.member_timeout;
        let (_connection, channel) = self.wire.channel(broker, false).await?;
        let mut heard = match self.listen(&channel).await {
            Ok(heard) => heard,
            Err(error) => {
                broker.done(&channel).await;
                return Err(error);
            }
        };
        // Nobody could be heard meanwhile: who is gone is so after another such time.
        seen.values_mut().for_each(|at| *at = Instant::now());
        seen.insert(self.me.to_string(), Instant::now());
        self.say(&channel, Word::Hello).await?;
        let mut calm = Some(Instant::now() + ALONE);
        let mut beat = Instant::now() + silence / BEATS;
        *failures = 0;
        loop {
            let wake = calm.map_or(beat, |calm| calm.min(beat));
            tokio::select! {
                next = heard.next() => {
                    let next = next.ok_or_else(|| broker.unavailable("the broker ended the consumer"))?;
                    let next = next.map_err(|error| broker.failed(&error))?;
                    let text = String::from_utf8_lossy(&next.data).into_owned();
                    let Some((word, member, shards)) = Word::heard(&text) else { continue };
                    if member == &*self.me {
                        continue;
                    }
                    if shards != broker.settings.shards {
                        let (ours, name) = (broker.settings.shards, &broker.name);
                        tracing::error!(queue = name, ours, theirs = shards, "another process has another queue.amqp.shards: stop all of them before it is changed");
                        continue;
                    }
                    let changed = if word == Word::Bye {
                        seen.remove(member).is_some()
                    } else {
                        seen.insert(member.to_owned(), Instant::now()).is_none()
                    };
                    if changed {
                        calm = Some(Instant::now() + CALM);
                    }
                    if word == Word::Hello {
                        self.say(&channel, Word::Here).await?;
                    }
                }
                () = self.leave.cancelled() => {
                    self.say(&channel, Word::Bye).await?;
                    broker.done(&channel).await;
                    return Ok(());
                }
                () = sleep_until(wake) => {
                    let now = Instant::now();
                    if beat <= now {
                        beat = now + silence / BEATS;
                        if self.forget_silent(seen) {
                            calm.get_or_insert(now);
                        }
                        self.say(&channel, Word::Here).await?;
                    }
                    if calm.is_some_and(|calm| calm <= now) {
                        calm = None;
                        self.reckon(seen);
                    }
                }
            }
        }
    }

    /// Forgets the others who were not heard for so long that they count as dead. `true`: there were such.
    fn forget_silent(&self, seen: &mut BTreeMap<String, Instant>) -> bool {
        let (now, silence, before) = (Instant::now(), self.broker.settings.member_timeout, seen.len());
        seen.retain(|member, at| *member == *self.me || *at + silence > now);
        seen.len() != before
    }

    /// A queue that is ours alone and goes with us.
    async fn listen(&self, channel: &Channel) -> Result<lapin::Consumer, QueueError> {
        let broker = &self.broker;
        // A new name each time: the broker may take a moment to see that the connection before is gone.
        let name = format!("{}.{}.{:08x}", broker.members, self.me, rand::random::<u32>());
        let millis = i64::try_from(broker.settings.member_timeout.as_millis()).unwrap_or(i64::MAX);
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(WAITING));
        arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(millis));
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = broker.queue(&name)?;
        broker.within("members", channel.queue_declare(queue.clone(), options, arguments)).await?;
        let exchange = broker.queue(&broker.members)?;
        let bound =
            channel.queue_bind(queue.clone(), exchange, "".into(), QueueBindOptions::default(), FieldTable::default());
        broker.within("members", bound).await?;
        let options = BasicConsumeOptions { no_ack: true, exclusive: true, ..BasicConsumeOptions::default() };
        let consume = channel.basic_consume(queue, "trackalert-members".into(), options, FieldTable::default());
        Ok(broker.within("members", consume).await?)
    }

    async fn say(&self, channel: &Channel, word: Word) -> Result<(), QueueError> {
        let (broker, said) = (&self.broker, word.said(&self.me, self.broker.settings.shards));
        let (exchange, options) = (broker.queue(&broker.members)?, BasicPublishOptions::default());
        let sent = channel.basic_publish(exchange, "".into(), options, said.as_bytes(), BasicProperties::default());
        broker.within("members", sent).await.map(drop).map_err(Into::into)
    }

    fn reckon(&self, seen: &BTreeMap<String, Instant>) {
        let members: Vec<&str> = seen.keys().map(String::as_str).collect();
        let owners = owners(&members, self.broker.settings.shards);
        let mine: Vec<u32> =
            (0..).zip(owners).filter(|(_, owner)| *owner == &*self.me).map(|(shard, _)| shard).collect();
        self.mine.send_if_modified(|before| {
            let changed = *before != mine;
            if changed {
                let (queue, processes) = (&self.broker.name, members.len());
                tracing::info!(queue, processes, shards = ?mine, "the shards that this process takes from");
                *before = mine;
            }
            changed
        });
    }
}

/// Who takes which shard. The same list gives the same answer everywhere; nobody has more than the rounded-up share; a process that
/// comes or goes moves few others' shards: each goes to the first with room, in an order of its own.
fn owners<'a>(members: &[&'a str], shards: u32) -> Vec<&'a str> {
    let most = (shards as usize).div_ceil(members.len().max(1));
    let mut has: BTreeMap<&str, usize> = BTreeMap::new();
    let mut owners = Vec::new();
    for shard in 0..shards {
        let mut order = members.to_vec();
        order.sort_by_cached_key(|member| {
            let hash: [u8; 32] = Sha256::new().chain_update(member).chain_update(shard.to_be_bytes()).finalize().into();
            hash
        });
        let Some(owner) = order.into_iter().find(|member| has.get(member).is_none_or(|has| *has < most)) else {
            continue;
        };
        *has.entry(owner).or_default() += 1;
        owners.push(owner);
    }
    owners
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_shard_has_one_owner_and_nobody_more_than_the_share(count in 1_usize..12, shards in 2_u32..40, salt: u32) {
            let names: Vec<String> = (0..count).map(|n| format!("{salt:x}-{n}")).collect();
            let members: Vec<&str> = names.iter().map(String::as_str).collect();
            let owners = owners(&members, shards);
            prop_assert_eq!(owners.len(), shards as usize);
            let mut other_order = members.clone();
            other_order.reverse();
            prop_assert_eq!(&super::owners(&other_order, shards), &owners);
            for member in members {
                let has = owners.iter().filter(|owner| **owner == member).count();
                prop_assert!(has <= (shards as usize).div_ceil(count), "{} has {}", member, has);
            }
        }
    }

    #[test]
    fn words_are_heard_as_they_were_said_and_others_are_not() {
        for (word, _) in Word::ALL {
            assert_eq!(Word::heard(&word.said("ab", 8)), Some((word, "ab", 8)));
        }
        for text in ["", "here", "here ab", "here ab x", "hallo ab 8"] {
            assert_eq!(Word::heard(text), None, "{text}");
        }
    }
}
