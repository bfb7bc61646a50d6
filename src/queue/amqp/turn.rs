//! One channel after the other: what a process that was killed had in hand goes back to its old place when the broker has seen its
//! channel end. Whoever takes before that takes what follows first, and a login's order is lost.
//!
//! Owns the queue by which the source of a process shows the broker that it is there. The channel that has the deliveries is its one
//! consumer: the broker takes that away with the same end of the channel for which it puts the deliveries back, and not when it has
//! closed the connection, which is earlier. Knows only processes of the same data folder, and nothing of shards: there a single active
//! consumer does the same for all processes.

use std::time::Duration;

use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::protocol::AMQPErrorKind;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer, Error, ErrorKind};
use tokio::time::{Instant, timeout};

use super::broker::{Broker, Failure};

/// How often a turn that was given up is asked for again.
const AGAIN: Duration = Duration::from_secs(10);

/// How long the broker may take to answer then.
const LATE: Duration = Duration::from_secs(2);

/// After how many milliseconds without a consumer the broker removes the queue: a folder that is gone for good leaves nothing behind.
const EXPIRES: i32 = 60_000;

/// How a process stands with its earlier channel.
#[derive(Clone, Default)]
pub(super) struct Turn {
    /// Since when that is waited for.
    since: Option<Instant>,
    /// It was waited for in vain, and looked for last at this time.
    given_up: Option<Instant>,
    /// This user may make the queue and not take from it. Asked again, the broker would end the channel again.
    unreadable: bool,
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
        if broker.sharded() || !broker.settings.declare || self.unreadable {
            return Ok(None);
        }
        match self.ask(broker, connection, channel).await? {
            Asked::Mine(held) => {
                (self.since, self.given_up) = (None, None);
                Ok(Some(held))
            }
            // Waited for in vain once, it is not waited for at each new connection.
            Asked::Taken if self.given_up.is_some() => Ok(None),
            Asked::Taken => self.wait(broker),
            Asked::Refused => Ok(None),
        }
    }

    fn wait(&mut self, broker: &Broker) -> Result<Option<Consumer>, Failure> {
        let (since, most) = (*self.since.get_or_insert_with(Instant::now), broker.settings.predecessor_timeout);
        if since.elapsed() < most {
            let error = broker.unavailable(format!(
                "the broker has not seen the end of this process's last connection yet, and what that had in hand comes first; \
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

    /// Once given up, it is taken as soon as it is free: the process that comes after this one needs something to wait for.
    pub(super) async fn take_late(
        &mut self,
        broker: &Broker,
        connection: &Connection,
        channel: &Channel,
    ) -> Option<Consumer> {
        if self.given_up.is_none_or(|at| at.elapsed() < AGAIN) {
            return None;
        }
        // The session waits meanwhile, and may do well without it.
        let asked = timeout(LATE, self.ask(broker, connection, channel)).await;
        self.given_up = matches!(asked, Ok(Ok(Asked::Taken) | Err(_)) | Err(_)).then(Instant::now);
        match asked {
            Ok(Ok(Asked::Mine(held))) => Some(held),
            _ => None,
        }
    }

    /// On a channel of its own as far as the answer may be no, with which the broker ends a channel.
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
        let seen = match answer(broker, scout.queue_declare(queue.clone(), options, arguments)).await? {
            Asked::Mine(seen) => seen,
            Asked::Taken => return Ok(Asked::Taken),
            Asked::Refused => return Ok(Asked::Refused),
        };
        broker.done(&scout).await;
        if seen.consumer_count() > 0 {
            return Ok(Asked::Taken);
        }
        let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
        let held = answer(broker, channel.basic_consume(queue, "".into(), options, FieldTable::default())).await;
        self.unreadable = matches!(held, Ok(Asked::Refused));
        held
    }
}

/// Where the broker refuses, it works without: a user may have no right to this queue, or the node that keeps it may be away.
async fn answer<T>(broker: &Broker, asked: impl Future<Output = lapin::Result<T>>) -> Result<Asked<T>, Failure> {
    let answered = async {
        match asked.await {
            Ok(granted) => Ok(Asked::Mine(granted)),
            // The same number as for a user without the right.
            Err(error) if refusal(&error).is_some_and(|said| said.contains("in exclusive use")) => Ok(Asked::Taken),
            Err(error) if refusal(&error).is_some() => {
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
            Err(error) => Err(error),
        }
    };
    broker.within("turn", answered).await
}

/// What the broker said when it ended the channel and not the connection.
fn refusal(error: &Error) -> Option<&str> {
    let ErrorKind::ProtocolError(error) = error.kind() else { return None };
    matches!(error.kind(), AMQPErrorKind::Soft(_)).then(|| error.get_message().as_str())
}
