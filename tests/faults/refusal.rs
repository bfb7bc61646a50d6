//! Ways to have a broker refuse what is written to the alerts queue, while everything else goes on.

use super::support::driver::Driver;

/// A queue of alerts that can be made to refuse.
pub(crate) enum Refusal {
    #[cfg(feature = "kafka")]
    Kafka(kafka::TooFewReplicas),
    #[cfg(feature = "amqp")]
    Amqp(&'static super::support::rabbitmq::Rabbit, String),
}

impl Refusal {
    /// `None`: what it takes cannot run here, which was said.
    pub(crate) fn prepare(driver: Driver, alerts: &str) -> Option<Self> {
        match driver {
            #[cfg(feature = "kafka")]
            Driver::Kafka(broker) => kafka::TooFewReplicas::prepare(broker, alerts).map(Self::Kafka),
            #[cfg(feature = "amqp")]
            Driver::Amqp(rabbit) => Some(Self::Amqp(rabbit, alerts.to_owned())),
            other => panic!("{} refuses nothing that it has room for", other.name()),
        }
    }

    pub(crate) fn begin(&self) {
        match self {
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.second.kill(),
            #[cfg(feature = "amqp")]
            Self::Amqp(rabbit, alerts) => rabbit.bound(alerts, 100),
        }
    }

    pub(crate) fn end(&self) {
        match self {
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.second.start_again(),
            #[cfg(feature = "amqp")]
            Self::Amqp(rabbit, alerts) => rabbit.unbound(alerts),
        }
    }
}

#[cfg(feature = "kafka")]
mod kafka {
    use std::time::{Duration, Instant};

    use rdkafka::ClientConfig;
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
    use rdkafka::client::DefaultClientContext;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::{Offset, TopicPartitionList};

    use super::super::support::kafka::Broker;
    use super::super::support::server::{Server, usable};

    const WAIT: Duration = Duration::from_secs(60);

    /// A topic with two replicas, both of which must have a record before it is confirmed: it takes nothing while the second broker is
    /// gone. (With one replica the broker lowers `min.insync.replicas` to one.)
    pub(crate) struct TooFewReplicas {
        pub(crate) second: Server,
    }

    impl TooFewReplicas {
        pub(super) fn prepare(broker: &'static Broker, alerts: &str) -> Option<Self> {
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", &broker.address).set("group.id", "nobody");
            let consumer: BaseConsumer = config.create().unwrap();
            // The groups' own topic, before there is another broker that could get a part of it.
            let mut asked = TopicPartitionList::new();
            asked.add_partition_offset(alerts, 0, Offset::Invalid).unwrap();
            until("the topic of the groups", || consumer.committed_offsets(asked.clone(), WAIT).is_ok());
            let controller = (broker.server.port + 1).to_string();
            let second =
                Server::start_with("kafka", 1, |_| vec![("NODE_ID", "2".to_owned()), ("CONTROLLER_PORT", controller)]);
            let second = usable("second Kafka broker", second)?;
            let brokers = || consumer.fetch_metadata(None, WAIT).map_or(0, |metadata| metadata.brokers().len());
            until("two brokers", || brokers() == 2);
            let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
            let (both, first) = ([&[1, 2][..]; 4], [&[1][..]; 4]);
            let topic = |name, replicas| NewTopic::new(name, 4, TopicReplication::Variable(replicas));
            let reports = alerts.replace("alerts", "reports");
            let dead = [format!("{alerts}.dead"), format!("{reports}.dead")];
            let topics = [
                topic(alerts, &both).set("min.insync.replicas", "2"),
                topic(&reports, &first),
                NewTopic::new(&dead[0], 1, TopicReplication::Variable(&first[..1])).set("cleanup.policy", "compact"),
                NewTopic::new(&dead[1], 1, TopicReplication::Variable(&first[..1])).set("cleanup.policy", "compact"),
            ];
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let made = runtime.block_on(admin.create_topics(&topics, &AdminOptions::new())).unwrap();
            assert!(made.iter().all(Result::is_ok), "{made:?}");
            Some(Self { second })
        }
    }

    impl Drop for TooFewReplicas {
        fn drop(&mut self) {
            let _ = self.second.script("stop");
        }
    }

    fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < WAIT, "waited for {what}");
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }
}
