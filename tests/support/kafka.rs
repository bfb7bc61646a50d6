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
    usable("Kafka", BROKER.get_or_init(Broker::start).as_ref())
}

impl Broker {
    /// It takes a port for itself, one for its controller, and the two of the way through a proxy.
    fn start() -> Result<Self, String> {
        let server = Server::start_with("kafka", 4, |port| vec![("ADVERTISED_PORT", (port + 3).to_string())])?;
        Ok(Self { address: format!("127.0.0.1:{}", server.port), server })
    }
}
