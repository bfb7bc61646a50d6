//! One connection after the other: what a process that was killed had in hand goes back to its old place when the broker has seen its
//! connection end. Whoever takes before that takes what follows first, and a login's order is lost.
//!
//! Owns the queue by which the source of a process shows the broker that it is there: exclusive, so that it goes with the connection.
//! Knows only processes of the same data folder, and nothing of shards: there a single active consumer does the same for all processes.

use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, Error, ErrorKind};
use tokio::time::{Instant, sleep, timeout};

use super::broker::{Broker, Failure};

/// The broker ends a connection first and then its channels, with which the messages go back: a matter of milliseconds. Not so where it
/// is starved of CPU: what comes back later than this is handled after what followed it.
const CHANNELS_END: Duration = Duration::from_millis(100);

/// How often a turn that was given up is asked for again.
const AGAIN: Duration = Duration::from_secs(10);

/// How long the broker may take to answer then.
const LATE: Duration = Duration::from_secs(2);

/// How a process stands with its earlier connection.
#[derive(Clone, Default)]
pub(super) struct Turn {
    /// Since when that is waited for.
    since: Option<Instant>,
    /// It was waited for in vain, and looked for last at this time.
    given_up: Option<Instant>,
}

enum Asked {
    Mine,
    /// An earlier connection has it.
    Locked,
    /// The broker lets this user make no such queue.
    Refused,
}

impl Turn {
    /// Takes the turn for this connection. The error says that an earlier one is still there; after `queue.amqp.predecessor_timeout` it
    /// is none any more.
    pub(super) async fn take(&mut self, broker: &Broker, connection: &Connection) -> Result<(), Failure> {
        if broker.sharded() || !broker.settings.declare {
            return Ok(());
        }
        match ask(broker, connection).await? {
            Asked::Mine => {
                self.given_up = None;
                if self.since.take().is_some() {
                    sleep(CHANNELS_END).await;
                }
                Ok(())
            }
            // Waited for in vain once, it is not waited for at each new connection.
            Asked::Locked if self.given_up.is_some() => Ok(()),
            Asked::Locked => self.wait(broker),
            Asked::Refused => Ok(()),
        }
    }

    fn wait(&mut self, broker: &Broker) -> Result<(), Failure> {
        let (since, most) = (*self.since.get_or_insert_with(Instant::now), broker.settings.predecessor_timeout);
        if since.elapsed() < most {
            let error = broker.unavailable(format!(
                "the broker has not seen the end of this process's last connection yet, and what that had in hand comes first; \
                 it is waited for, {most:?} at most (queue.amqp.predecessor_timeout)"
            ));
            return Err(Failure { error, lasting: false });
        }
        *self = Self { since: None, given_up: Some(Instant::now()) };
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
        Ok(())
    }

    /// Once given up, it is taken as soon as it is free: the process that comes after this one needs something to wait for.
    pub(super) async fn take_late(&mut self, broker: &Broker, connection: &Connection) {
        if self.given_up.is_none_or(|at| at.elapsed() < AGAIN) {
            return;
        }
        // The session waits meanwhile, and may do well without it.
        let asked = timeout(LATE, ask(broker, connection)).await;
        self.given_up = matches!(asked, Ok(Ok(Asked::Locked) | Err(_)) | Err(_)).then(Instant::now);
    }
}

async fn ask(broker: &Broker, connection: &Connection) -> Result<Asked, Failure> {
    let channel = broker.within("channel", connection.create_channel()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let declare = channel.queue_declare(broker.queue(&broker.process)?, options, arguments);
    let free = async {
        match declare.await {
            Ok(_) => Ok(true),
            Err(error) if is_locked(&error) => Ok(false),
            Err(error) => Err(error),
        }
    };
    match broker.within("turn", free).await {
        Ok(true) => {
            broker.done(&channel).await;
            Ok(Asked::Mine)
        }
        Ok(false) => Ok(Asked::Locked),
        // A user with no right to this queue works without it.
        Err(failure) if failure.lasting => {
            if let Some(kept_back) = broker.complaints.due("turn") {
                let (queue, error) = (&broker.process, &failure.error);
                tracing::warn!(
                    queue,
                    %error,
                    kept_back,
                    "this queue keeps the order of a login over a kill, and cannot be made; without it that order is best effort"
                );
            }
            Ok(Asked::Refused)
        }
        Err(failure) => Err(failure),
    }
}

fn is_locked(error: &Error) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    matches!(error.kind(), AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED))
}
