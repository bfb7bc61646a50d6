//! One channel after the other: what a process that was killed had in hand goes back to its old place when the broker has seen its
//! channel end. Whoever takes before that takes what follows first, and a login's order is lost.
//!
//! Owns the queue by which the source of a process shows the broker that it is there: the channel that has the deliveries is its one
//! consumer. Knows only processes of the same data folder, and nothing of shards: there a single active consumer does the same for all
//! processes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer, Error, ErrorKind};
use tokio::task::JoinError;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::broker::{Broker, Failure};

/// How often a turn that was given up is asked for again.
const AGAIN: Duration = Duration::from_secs(10);

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

/// What a channel has of the turn.
#[derive(Default)]
pub(super) enum Held {
    #[default]
    Nothing,
    /// Whether it is free is asked.
    Looking(AbortOnDropHandle<Result<(), No>>),
    /// It was free, and is asked for.
    Asked(AbortOnDropHandle<Result<Consumer, No>>),
    /// As long as this is kept.
    Turn(Consumer),
}

/// Why a channel does not have the turn.
pub(super) enum No {
    /// An earlier channel has it.
    Taken,
    /// The broker lets this user have no such queue. `denied`: now and later.
    Refused {
        denied: bool,
    },
    Failed(Failure),
}

impl From<Failure> for No {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Turn {
    /// Takes the turn for this channel. The error says that an earlier one is still there; after `queue.amqp.predecessor_timeout` it is
    /// none any more.
    pub(super) async fn take(
        &mut self,
        broker: &Broker,
        connection: &Connection,
        channel: &Channel,
    ) -> Result<Held, Failure> {
        if broker.sharded() || !broker.settings.declare || self.denied {
            return Ok(Held::Nothing);
        }
        let asked = async {
            look(broker, connection).await?;
            broker.within("turn", consume(broker, channel)).await?
        };
        match asked.await {
            Ok(consumer) => {
                (self.since, self.given_up) = (None, None);
                until_given_back(broker, connection).await?;
                Ok(Held::Turn(consumer))
            }
            // Waited for in vain once, it is not waited for at each new connection.
            Err(No::Taken) if self.given_up.is_some() => Ok(Held::Nothing),
            Err(No::Taken) => self.wait(broker),
            Err(No::Refused { denied }) => {
                (self.since, self.given_up, self.denied) = (None, Some(Instant::now()), denied);
                Ok(Held::Nothing)
            }
            Err(No::Failed(failure)) => Err(failure),
        }
    }

    fn wait(&mut self, broker: &Broker) -> Result<Held, Failure> {
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
        Ok(Held::Nothing)
    }

    /// Once given up or lost, it is taken as soon as it is free: the process that comes after this one needs something to wait for. The
    /// session does well without it, and does not wait for the answer.
    pub(super) fn keep(
        &mut self,
        broker: &Arc<Broker>,
        connection: &Arc<Connection>,
        channel: &Channel,
        held: &mut Held,
    ) {
        match held {
            Held::Turn(consumer) => {
                // The queue was deleted, or its node is gone.
                if matches!(consumer.next().now_or_never(), Some(None | Some(Err(_)))) {
                    (*held, self.given_up) = (Held::Nothing, Some(Instant::now()));
                }
            }
            Held::Nothing if !self.denied && self.given_up.is_some_and(|at| at.elapsed() >= AGAIN) => {
                let (broker, connection) = (Arc::clone(broker), Arc::clone(connection));
                let looking = tokio::spawn(async move { look(&broker, &connection).await });
                *held = Held::Looking(AbortOnDropHandle::new(looking));
            }
            Held::Nothing => {}
            Held::Looking(looking) => match looking.now_or_never() {
                None => {}
                Some(Ok(Ok(()))) => {
                    let (broker, channel) = (Arc::clone(broker), channel.clone());
                    let asked =
                        async move { consume(&broker, &channel).await.map_err(|error| broker.failure(&error))? };
                    // The broker may do it, and its answer not come any more: the next channel waits for this one.
                    self.given_up = None;
                    *held = Held::Asked(AbortOnDropHandle::new(tokio::spawn(asked)));
                }
                Some(no) => *held = self.refused(&no),
            },
            Held::Asked(asked) => match asked.now_or_never() {
                None => {}
                Some(Ok(Ok(consumer))) => *held = Held::Turn(consumer),
                Some(no) => *held = self.refused(&no),
            },
        }
    }

    fn refused<T>(&mut self, no: &Result<Result<T, No>, JoinError>) -> Held {
        self.denied = matches!(no, Ok(Err(No::Refused { denied: true })));
        self.given_up = Some(Instant::now());
        Held::Nothing
    }
}

/// Whether the turn is free, on a channel of its own: with a "no" the broker ends a channel.
async fn look(broker: &Broker, connection: &Connection) -> Result<(), No> {
    let scout = broker.within("channel", connection.create_channel()).await?;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
    arguments.insert("x-expires".into(), AMQPValue::LongInt(EXPIRES));
    let queue = broker.queue(&broker.process)?;
    let declared = answer(broker, scout.queue_declare(queue, options, arguments));
    let seen = broker.within("turn", declared).await??;
    broker.done(&scout).await;
    if seen.consumer_count() > 0 { Err(No::Taken) } else { Ok(()) }
}

/// Takes it, where it is free. The broker says no, and ends the channel, only where another has taken it since it was looked for.
async fn consume(broker: &Broker, channel: &Channel) -> lapin::Result<Result<Consumer, No>> {
    let queue = match broker.queue(&broker.process) {
        Ok(queue) => queue,
        Err(failure) => return Ok(Err(failure.into())),
    };
    let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
    answer(broker, channel.basic_consume(queue, "".into(), options, FieldTable::default())).await
}

/// Where the broker refuses, it works without: a user may have no right to this queue, or the node that keeps it may be away.
async fn answer<T>(broker: &Broker, asked: impl Future<Output = lapin::Result<T>>) -> lapin::Result<Result<T, No>> {
    let error = match asked.await {
        Ok(granted) => return Ok(Ok(granted)),
        Err(error) => error,
    };
    let no = match refusal(&error) {
        None => return Err(error),
        // The same number as for a user without the right.
        Some((_, said)) if said.contains("in exclusive use") => No::Taken,
        Some((kind, _)) => {
            if let Some(kept_back) = broker.complaints.due("turn") {
                let (queue, error) = (&broker.process, broker.failed(&error));
                tracing::warn!(
                    queue,
                    %error,
                    kept_back,
                    "this queue keeps the order of a login over a kill, and cannot be had; without it that order is best effort"
                );
            }
            No::Refused { denied: matches!(kind, AMQPSoftError::ACCESSREFUSED) }
        }
    };
    Ok(Err(no))
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
