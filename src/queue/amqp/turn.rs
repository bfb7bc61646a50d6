//! One channel after the other: what a process that was killed had in hand goes back to its old place when the broker has seen its
//! channel end. Whoever takes before that takes what follows first, and a login's order is lost.
//!
//! Owns the queue by which the source of a process shows the broker that it is there: the channel that has the deliveries is its one
//! consumer. Knows only processes of the same data folder, and nothing of shards: there a single active consumer does the same for all
//! processes.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer, Error, ErrorKind};
use tokio::time::{Instant, sleep, timeout};

use super::broker::{Broker, Failure};

/// How often a turn that was given up is asked for again.
const AGAIN: Duration = Duration::from_secs(10);

/// How long the broker may take to answer then.
const LATE: Duration = Duration::from_secs(2);

/// How long the queue may still have a consumer when the turn is free. The leader of a quorum queue hears of a channel's end by itself,
/// and puts what that had in hand back in the same step in which it takes its consumer away; the turn is free a little before. A consumer
/// that stays is another process's, and with several no order is promised.
const GIVEN_BACK: Duration = Duration::from_secs(3);

/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// After how many milliseconds without a consumer the broker removes the queue: a folder that is gone for good leaves nothing behind.
const EXPIRES: i32 = 60_000;

/// How a process stands with its earlier channel.
#[derive(Clone, Default)]
pub(super) struct Turn {
    /// Since when that is waited for.
    since: Option<Instant>,
    /// It was waited for in vain, and looked for last at this time.
    given_up: Option<Instant>,
    /// This user has no right to it: asked again, the broker would say the same, and complain in its log each time.
    denied: bool,
}

enum Asked<T> {
    Mine(T),
    /// An earlier channel has it.
    Taken,
    /// The broker lets this user have no such queue.
    Refused,
}

impl Turn {
    /// Takes the turn for this channel, which has it as long as what comes back is kept. The error says that an earlier one is still
    /// there; after `queue.amqp.predecessor_timeout` it is none any more.
    pub(super) async fn take(
        &mut self,
        broker: &Broker,
        connection: &Connection,
        channel: &Channel,
    ) -> Result<Option<Consumer>, Failure> {
        if broker.sharded() || !broker.settings.declare || self.denied {
            return Ok(None);
        }
        match self.ask(broker, connection, channel).await? {
            Asked::Mine(held) => {
                (self.since, self.given_up) = (None, None);
                until_given_back(broker, connection).await?;
                Ok(Some(held))
            }
            // Waited for in vain once, it is not waited for at each new connection.
            Asked::Taken if self.given_up.is_some() => Ok(None),
            Asked::Taken => self.wait(broker),
            Asked::Refused => {
                (self.since, self.given_up) = (None, Some(Instant::now()));
                Ok(None)
            }
        }
    }

    fn wait(&mut self, broker: &Broker) -> Result<Option<Consumer>, Failure> {
        let (since, most) = (*self.since.get_or_insert_with(Instant::now), broker.settings.predecessor_timeout);
        if since.elapsed() < most {
            let error = broker.unavailable(format!(
                "the broker has not seen the end of this process's last channel yet, and what that had in hand comes first; \
                 it is waited for, {most:?} at most (queue.amqp.predecessor_timeout)"
            ));
            return Err(Failure { error, lasting: false });
        }
        (self.since, self.given_up) = (None, Some(Instant::now()));
        if let Some(kept_back) = broker.complaints.due("turn") {
            let queue = &broker.name;
            tracing::warn!(
                queue,
                kept_back,
                "the broker still has a connection of this data folder: what that has in hand is handled late \
                 (queue.amqp.predecessor_timeout). Close it at the broker; where two processes run on copies of one data_dir, remove the \
                 file `id` of one of them"
            );
        }
        Ok(None)
    }

    /// Once given up or lost, it is taken as soon as it is free: the process that comes after this one needs something to wait for.
    pub(super) async fn keep(
        &mut self,
        broker: &Broker,
        connection: &Connection,
        channel: &Channel,
        held: &mut Option<Consumer>,
    ) {
        // The queue was deleted, or its node is gone.
        let lost = held.as_mut().and_then(|held| held.next().now_or_never());
        if matches!(lost, Some(None | Some(Err(_)))) {
            (*held, self.given_up) = (None, Some(Instant::now()));
        }
        if self.denied || self.given_up.is_none_or(|at| at.elapsed() < AGAIN) {
            return;
        }
        // The session waits meanwhile, and may do well without it.
        let asked = timeout(LATE, self.ask(broker, connection, channel)).await;
        self.given_up = Some(Instant::now());
        if let Ok(Ok(Asked::Mine(taken))) = asked {
            (*held, self.given_up) = (Some(taken), None);
        }
    }

    /// On a channel of its own first: with a "no" the broker ends a channel. On `channel` it says no only where two have asked at once.
    async fn ask(
        &mut self,
        broker: &Broker,
        connection: &Connection,
        channel: &Channel,
    ) -> Result<Asked<Consumer>, Failure> {
        let scout = broker.within("channel", connection.create_channel()).await?;
        let queue = broker.queue(&broker.process)?;
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
        arguments.insert("x-expires".into(), AMQPValue::LongInt(EXPIRES));
        let declared = self.answer(broker, scout.queue_declare(queue.clone(), options, arguments)).await?;
        let Asked::Mine(seen) = declared else { return Ok(Asked::Refused) };
        broker.done(&scout).await;
        if seen.consumer_count() > 0 {
            return Ok(Asked::Taken);
        }
        let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
        self.answer(broker, channel.basic_consume(queue, "".into(), options, FieldTable::default())).await
    }

    /// Where the broker refuses, it works without: a user may have no right to this queue, or the node that keeps it may be away.
    async fn answer<T>(
        &mut self,
        broker: &Broker,
        asked: impl Future<Output = lapin::Result<T>>,
    ) -> Result<Asked<T>, Failure> {
        let answered = async {
            match asked.await {
                Ok(granted) => Ok(Asked::Mine(granted)),
                Err(error) => match refusal(&error) {
                    None => Err(error),
                    // The same number as for a user without the right.
                    Some((_, said)) if said.contains("in exclusive use") => Ok(Asked::Taken),
                    Some((kind, _)) => {
                        self.denied = matches!(kind, AMQPSoftError::ACCESSREFUSED);
                        if let Some(kept_back) = broker.complaints.due("turn") {
                            let (queue, error) = (&broker.process, broker.failed(&error));
                            tracing::warn!(
                                queue,
                                %error,
                                kept_back,
                                "this queue keeps the order of a login over a kill, and cannot be had; without it that order is best effort"
                            );
                        }
                        Ok(Asked::Refused)
                    }
                },
            }
        };
        broker.within("turn", answered).await
    }
}

/// Until nothing of the queue is in hand of a channel that has ended.
async fn until_given_back(broker: &Broker, connection: &Connection) -> Result<(), Failure> {
    let channel = broker.within("channel", connection.create_channel()).await?;
    let (began, mut told, mut nobody) = (Instant::now(), false, 0);
    loop {
        let seen = broker.look(&channel, &broker.name).await?;
        nobody = if seen.consumers == 0 && seen.sure() { nobody + 1 } else { 0 };
        // An empty one that says so at once may have a leader that cannot be reached: that counts when it says so twice.
        if nobody == 2 || nobody == 1 && seen.messages > 0 {
            break;
        }
        if !told && seen.consumers > 0 {
            told = true;
            let queue = &broker.name;
            tracing::info!(queue, at_most = ?GIVEN_BACK, "what an earlier channel had in hand is not back yet, or another process takes from the queue, too");
        }
        if began.elapsed() >= GIVEN_BACK {
            if seen.consumers > 0
                && let Some(kept_back) = broker.complaints.due("given back")
            {
                let queue = &broker.name;
                tracing::warn!(
                    queue,
                    kept_back,
                    "the queue has another consumer: with several processes and without queue.amqp.shards the order of a login is best effort"
                );
            }
            break;
        }
        sleep(LOOK).await;
    }
    broker.done(&channel).await;
    Ok(())
}

/// What the broker said when it ended the channel and not the connection.
fn refusal(error: &Error) -> Option<(AMQPSoftError, &str)> {
    let ErrorKind::ProtocolError(error) = error.kind() else { return None };
    let AMQPErrorKind::Soft(kind) = error.kind() else { return None };
    Some((kind.clone(), error.get_message().as_str()))
}
