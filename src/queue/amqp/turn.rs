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
use tokio::time::{Instant, sleep};

use super::broker::{Broker, Failure};

/// The broker ends a connection first and then its channels, with which the messages go back: a matter of milliseconds.
const CHANNELS_END: Duration = Duration::from_millis(100);

/// Since when an earlier connection is waited for.
#[derive(Clone, Default)]
pub(super) struct Turn(Option<Instant>);

impl Turn {
    /// Takes the turn for this connection. The error says that an earlier one is still there; after `queue.amqp.predecessor_timeout` it
    /// is none any more.
    pub(super) async fn take(&mut self, broker: &Broker, connection: &Connection) -> Result<(), Failure> {
        if broker.sharded() || !broker.settings.declare {
            return Ok(());
        }
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
                if self.0.take().is_some() {
                    sleep(CHANNELS_END).await;
                }
                Ok(())
            }
            Ok(false) => self.wait(broker),
            // Whoever gives this user names of queues gives it those that it was told.
            Err(failure) if failure.lasting => {
                if let Some(kept_back) = broker.complaints.due("turn") {
                    let (queue, error) = (&broker.process, &failure.error);
                    tracing::warn!(queue, %error, kept_back, "the queue that keeps the order of a login over a restart cannot be made");
                }
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    fn wait(&mut self, broker: &Broker) -> Result<(), Failure> {
        let (since, most) = (*self.0.get_or_insert_with(Instant::now), broker.settings.predecessor_timeout);
        if since.elapsed() < most {
            let error = broker.unavailable(format!(
                "the broker has not seen the end of this process's last connection yet, and what that had in hand comes first; \
                 it is waited for, {most:?} at most (queue.amqp.predecessor_timeout)"
            ));
            return Err(Failure { error, lasting: false });
        }
        if let Some(kept_back) = broker.complaints.due("turn") {
            let queue = &broker.name;
            tracing::warn!(
                queue,
                kept_back,
                "the broker still has a connection of this data folder: what that has in hand is handled late (queue.amqp.predecessor_timeout)"
            );
        }
        Ok(())
    }
}

fn is_locked(error: &Error) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    matches!(error.kind(), AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED))
}
