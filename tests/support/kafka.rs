//! A real Kafka broker for a test binary, started when a test first asks for it.

use std::sync::OnceLock;

use super::server::{Server, usable};

/// A broker on loopback.
pub(crate) struct Broker {
    pub(crate) server: Server,
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
}

/// The broker of this binary. `None`: it cannot run here, which was said.
pub(crate) fn broker() -> Option<&'static Broker> {
    broker_with(Vec::new)
}

/// The same, started with variables for the script: one broker a binary, so always the same ones.
pub(crate) fn broker_with(variables: impl FnOnce() -> Vec<(&'static str, String)>) -> Option<&'static Broker> {
    static BROKER: OnceLock<Result<Broker, String>> = OnceLock::new();
    usable("Kafka", BROKER.get_or_init(|| Broker::start(variables())).as_ref())
}

/// A second one, for a test that stalls it.
pub(crate) fn broker_to_stall() -> Option<&'static Broker> {
    static BROKER: OnceLock<Result<Broker, String>> = OnceLock::new();
    let start = || Broker::start(Vec::new());
    usable("Kafka", BROKER.get_or_init(start).as_ref())
}

impl Broker {
    /// It takes a port for itself, one for its controller, and two for further ways in: through a proxy, or those of the variables.
    fn start(variables: Vec<(&'static str, String)>) -> Result<Self, String> {
        let through_a_proxy = |port: u16| vec![("ADVERTISED_PORT", (port + 3).to_string())];
        let settings = |port| if variables.is_empty() { through_a_proxy(port) } else { variables };
        let server = Server::start_with("kafka", 4, settings)?;
        Ok(Self { address: format!("127.0.0.1:{}", server.port), server })
    }

    /// The address of a further listener.
    pub(crate) fn listener(&self, above: u16) -> String {
        format!("127.0.0.1:{}", self.server.port + above)
    }

    #[cfg(feature = "kafka")]
    pub(crate) fn admin(&self) -> rdkafka::admin::AdminClient<rdkafka::client::DefaultClientContext> {
        rdkafka::ClientConfig::new().set("bootstrap.servers", &self.address).create().unwrap()
    }

    /// Deletes a topic; when this ends the broker has none of that name any more.
    #[cfg(feature = "kafka")]
    pub(crate) async fn delete_topic(&self, topic: &str) {
        let admin = self.admin();
        let gone = admin.delete_topics(&[topic], &rdkafka::admin::AdminOptions::new()).await.unwrap();
        assert!(gone.iter().all(Result::is_ok), "{gone:?}");
        let began = std::time::Instant::now();
        loop {
            let metadata = admin.inner().fetch_metadata(Some(topic), super::wire::PATIENCE).unwrap();
            if metadata.topics().iter().all(|topic| topic.partitions().is_empty()) {
                return;
            }
            assert!(began.elapsed() < super::wire::PATIENCE, "{topic} is still there");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Deletes what the first partition of a topic has from before this offset.
    #[cfg(feature = "kafka")]
    pub(crate) async fn delete_records(&self, topic: &str, before: i64) {
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_offset(topic, 0, rdkafka::Offset::Offset(before)).unwrap();
        let done = self.admin().delete_records(&list, &rdkafka::admin::AdminOptions::new()).await.unwrap();
        assert!(done.elements().iter().all(|one| one.error().is_ok()), "{done:?}");
    }

    /// Sets one property of a topic, and all others back.
    #[cfg(feature = "kafka")]
    pub(crate) async fn set_property(&self, topic: &str, name: &str, value: &str) {
        use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(name, value);
        let done = self.admin().alter_configs([&change], &AdminOptions::new()).await.unwrap();
        assert!(done.iter().all(Result::is_ok), "{done:?}");
    }
}
