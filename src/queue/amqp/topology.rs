//! What must be there on the broker, and making it.
//!
//! Owns the form in which queues and exchanges are declared, and the look for messages that another number of shards left behind.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};

use super::broker::{Broker, Failure};

/// For other programs that publish: keeps a routing key on one queue, until all of the broker starts again. A plugin.
pub(super) const EXCHANGE_TYPE: &str = "x-consistent-hash";
/// The first release that limits the returns of a quorum queue where nothing is said, and takes "no limit" for an answer.
pub(super) const LIMITS_RETURNS: u64 = 4;

/// The form of a queue of dead letters on a broker of this major version: replicated as the originals are, and however often somebody
/// looks (takes them and gives them back), none is dropped. A stream would be read without that, but forgets nothing singly.
fn arguments(major: u64) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    // 20 returns by default would turn an outage into dead letters, or into nothing. Before that release there is no limit where none is
    // declared, and -1 is taken for one that is reached at the first return.
    if major >= LIMITS_RETURNS {
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(-1));
    }
    arguments
}

/// The form of all other queues.
fn queue_arguments(major: u64, dead: &str, sharded: bool) -> FieldTable {
    let mut arguments = arguments(major);
    // A net behind our own dead letters: what a policy of the broker has it drop (a limit of returns, an age, a length) lies there and not
    // nowhere.
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
    arguments.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString(dead.into()));
    if sharded {
        // Before the last message of one process is settled, none is handed out to another.
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    arguments
}

impl Broker {
    /// Makes all queues and exchanges, or looks that they are there. A channel each: a refusal closes it.
    pub(super) async fn declare(&self, connection: &Connection) -> Result<(), Failure> {
        let passive = !self.settings.declare;
        let (for_dead, for_queues) = if passive {
            (FieldTable::default(), FieldTable::default())
        } else {
            let major = self.major().await?;
            (arguments(major), queue_arguments(major, &self.dead, self.sharded()))
        };
        self.declare_queue(connection, &self.dead, passive, for_dead).await?;
        for name in &self.queues {
            self.declare_queue(connection, name, passive, for_queues.clone()).await?;
        }
        if self.sharded() { self.declare_exchanges(connection, passive).await } else { Ok(()) }
    }

    async fn declare_queue(
        &self,
        connection: &Connection,
        name: &str,
        passive: bool,
        arguments: FieldTable,
    ) -> Result<(), Failure> {
        let channel = self.within("channel", connection.create_channel()).await?;
        let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
        self.within("declare", channel.queue_declare(self.queue(name)?, options, arguments)).await?;
        self.done(&channel).await;
        Ok(())
    }

    async fn declare_exchanges(&self, connection: &Connection, passive: bool) -> Result<(), Failure> {
        let kinds =
            [(&self.name, ExchangeKind::Custom(EXCHANGE_TYPE.to_owned())), (&self.members, ExchangeKind::Fanout)];
        for (name, kind) in kinds {
            let channel = self.within("channel", connection.create_channel()).await?;
            let options = ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
            let declared = channel.exchange_declare(self.queue(name)?, kind, options, FieldTable::default());
            self.within("declare", declared).await?;
            self.done(&channel).await;
        }
        if passive {
            return Ok(());
        }
        let channel = self.within("channel", connection.create_channel()).await?;
        for name in &self.queues {
            let (queue, exchange) = (self.queue(name)?, self.queue(&self.name)?);
            // The binding's key is the queue's weight.
            let bound =
                channel.queue_bind(queue, exchange, "1".into(), QueueBindOptions::default(), FieldTable::default());
            self.within("bind", bound).await?;
        }
        self.done(&channel).await;
        Ok(())
    }

    /// Messages in queues that nobody takes from with this number of shards would stay for ever, and without a word.
    pub(super) async fn look_for_left(&self, connection: &Connection) -> Result<(), Failure> {
        let refuse = |reason: String| Err(Failure { error: self.unavailable(reason), lasting: true });
        let shards = self.settings.shards;
        if !self.sharded() {
            let first = format!("{}-0", self.name);
            return match self.count(connection, &first).await? {
                Some(count) if count > 0 => refuse(format!(
                    "{first} holds {count} messages, of a time when queue.amqp.shards was set; set it again until they are handled, or delete the queues {}-…",
                    self.name
                )),
                _ => Ok(()),
            };
        }
        if let Some(count) = self.count(connection, &self.name).await?
            && count > 0
        {
            return refuse(format!(
                "{} holds {count} messages, of a time when queue.amqp.shards was not set; run with queue.amqp.shards = 0 until they are handled",
                self.name
            ));
        }
        let beyond = format!("{}-{shards}", self.name);
        if self.count(connection, &beyond).await?.is_some() {
            return refuse(format!(
                "{beyond} is there: queue.amqp.shards was more than {shards}; set what it was, or stop all processes, let one with the old number handle the rest and delete the queues from {beyond} on"
            ));
        }
        Ok(())
    }

    /// How many messages lie ready in a queue. `None`: there is no such queue, or it is not ours to see.
    async fn count(&self, connection: &Connection, name: &str) -> Result<Option<u64>, Failure> {
        let channel = self.within("channel", connection.create_channel()).await?;
        match self.ready(&channel, name).await {
            Ok(count) => {
                self.done(&channel).await;
                Ok(Some(count))
            }
            Err(failure) if failure.lasting => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Closes a channel. To let go of it is not enough where a consumer was asked for and the answer not waited for: the client library
    /// keeps what it expects, and with it the channel, to which the broker goes on handing out.
    pub(super) async fn done(&self, channel: &Channel) {
        let _ = self.within("close", channel.close(200, "done".into())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(table: &FieldTable, name: &str) -> Option<AMQPValue> {
        table.inner().get(name).cloned()
    }

    #[test]
    fn no_limit_of_returns_is_said_to_a_broker_that_has_one_and_only_to_that() {
        for (major, limit) in
            [(0, None), (3, None), (4, Some(AMQPValue::LongInt(-1))), (5, Some(AMQPValue::LongInt(-1)))]
        {
            let (dead, queue) = (arguments(major), queue_arguments(major, "q.dead", false));
            for table in [dead, queue] {
                assert_eq!(asked(&table, "x-queue-type"), Some(AMQPValue::LongString("quorum".into())));
                assert_eq!(asked(&table, "x-delivery-limit"), limit, "of release {major}");
            }
        }
    }

    #[test]
    fn shards_have_one_active_consumer_and_the_dead_letters_as_their_net() {
        for sharded in [false, true] {
            let table = queue_arguments(3, "q.dead", sharded);
            assert_eq!(asked(&table, "x-dead-letter-routing-key"), Some(AMQPValue::LongString("q.dead".into())));
            assert_eq!(asked(&table, "x-single-active-consumer"), sharded.then_some(AMQPValue::Boolean(true)));
        }
        assert_eq!(asked(&arguments(3), "x-dead-letter-routing-key"), None, "a dead letter would come back to itself");
    }
}
