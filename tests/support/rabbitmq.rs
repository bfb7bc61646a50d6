//! One RabbitMQ for a test binary, started when a test first asks for it, and its management API.

use std::io::Write;
use std::sync::OnceLock;

use super::server::{Server, usable};

/// A running broker.
pub(crate) struct Rabbit {
    pub(crate) server: Server,
}

/// The broker of this binary. `None`: it cannot run here, which was said.
pub(crate) fn shared() -> Option<&'static Rabbit> {
    static SHARED: OnceLock<Result<Rabbit, String>> = OnceLock::new();
    usable("RabbitMQ", SHARED.get_or_init(Rabbit::start).as_ref())
}

impl Rabbit {
    /// It takes four ports: AMQP, management, the node's own two.
    fn start() -> Result<Self, String> {
        Ok(Self { server: Server::start("rabbitmq", 4)? })
    }

    /// The address for `queue.amqp.url`.
    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.server.port)
    }

    /// Asks the broker's management API.
    pub(crate) fn manage(&self, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
        use base64::Engine;
        use std::io::Read;
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.server.port + 1)).unwrap();
        let login = base64::engine::general_purpose::STANDARD.encode("guest:guest");
        write!(
            stream,
            "{method} /api/{path} HTTP/1.0\r\nHost: t\r\nAuthorization: Basic {login}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    /// Cuts every connection whose name contains this. Gives how many.
    pub(crate) fn cut(&self, name: &str) -> usize {
        let mut cut = 0;
        for connection in self.manage("GET", "connections", "").1.as_array().cloned().unwrap_or_default() {
            let called = connection["user_provided_name"].as_str().unwrap_or_default();
            if called.contains(name) {
                let path = connection["name"].as_str().unwrap().replace(' ', "%20").replace('>', "%3E");
                cut += usize::from(self.manage("DELETE", &format!("connections/{path}"), "").0 == 204);
            }
        }
        cut
    }
}
