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
    static BROKER: OnceLock<Result<Broker, String>> = OnceLock::new();
    usable("Kafka", BROKER.get_or_init(Broker::start))
}

impl Broker {
    /// It takes a port for itself and one for its controller.
    fn start() -> Result<Self, String> {
        let server = Server::start("kafka", 2)?;
        Ok(Self { address: format!("127.0.0.1:{}", server.port), server })
    }
}
