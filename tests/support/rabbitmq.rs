//! One RabbitMQ for a test binary, started when a test first asks for it, and its management API.

use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;

use super::proxy::Lasts;
use super::server::{Server, usable};

/// Whose password a program reads from a file.
pub(crate) const USER: &str = "trackalert";
const PASSWORD: &str = "s3cret of a file";

/// A running broker.
pub(crate) struct Rabbit {
    pub(crate) server: Server,
}

/// A broker's alarm.
#[must_use = "dropped, the alarm is over"]
pub(crate) struct Alarm<'a>(&'a Server);

impl Lasts for Alarm<'_> {}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        let calm = self.0.script("do-calm");
        assert!(calm.is_ok() || std::thread::panicking(), "{calm:?}");
    }
}

/// The broker of this binary. `None`: it cannot run here, which was said.
pub(crate) fn shared() -> Option<&'static Rabbit> {
    static SHARED: OnceLock<Result<Rabbit, String>> = OnceLock::new();
    usable("RabbitMQ", SHARED.get_or_init(Rabbit::start).as_ref())
}

impl Rabbit {
    /// One of its own.
    pub(crate) fn start() -> Result<Self, String> {
        let rabbit = Self::prepare("rabbitmq_management,rabbitmq_consistent_hash_exchange")?;
        rabbit.server.script("start")?;
        let made = rabbit.manage("PUT", &format!("users/{USER}"), &format!(r#"{{"password":"{PASSWORD}","tags":""}}"#));
        let rights = r#"{"configure":".*","write":".*","read":".*"}"#;
        let given = rabbit.manage("PUT", &format!("permissions/%2F/{USER}"), rights);
        if (made.0, given.0) != (201, 201) {
            return Err(format!("the user {USER} could not be made: {made:?}, {given:?}"));
        }
        std::fs::write(rabbit.password_file(), format!("{PASSWORD}\n")).map_err(|error| error.to_string())?;
        Ok(rabbit)
    }

    /// Holds the password of [`USER`].
    pub(crate) fn password_file(&self) -> PathBuf {
        self.server.folder.join("password")
    }

    /// One that does not run yet. It takes five ports: AMQP, management, the node's own two, AMQP with TLS.
    pub(crate) fn prepare(plugins: &str) -> Result<Self, String> {
        let server = Server::prepare("rabbitmq", 5, |_| vec![("PLUGINS", plugins.to_owned())])?;
        let rabbit = Self { server };
        rabbit.write_certificates().map_err(|error| error.to_string())?;
        Ok(rabbit)
    }

    /// An authority with the broker's certificate (`ca`, `cert`, `key`) and a client's (`client`, `client-key`), and another authority
    /// (`other`).
    fn write_certificates(&self) -> Result<(), Box<dyn std::error::Error>> {
        use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
        let write = |name: &str, pem: String| std::fs::write(self.tls(name), pem);
        let authority = || -> Result<_, rcgen::Error> {
            let mut params = CertificateParams::new(Vec::new())?;
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, "tests");
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
            let key = KeyPair::generate()?;
            let pem = params.self_signed(&key)?.pem();
            Ok((Issuer::new(params, key), pem))
        };
        std::fs::create_dir_all(self.server.folder.join("data/tls"))?;
        let (issuer, pem) = authority()?;
        write("ca", pem)?;
        write("other", authority()?.1)?;
        for (certificate, name) in [("cert", "key"), ("client", "client-key")] {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
            params.distinguished_name.push(DnType::CommonName, certificate);
            write(certificate, params.signed_by(&key, &issuer)?.pem())?;
            write(name, key.serialize_pem())?;
        }
        Ok(())
    }

    /// Where a certificate or a key lies.
    pub(crate) fn tls(&self, name: &str) -> PathBuf {
        self.server.folder.join("data/tls").join(format!("{name}.pem"))
    }

    /// Has it take no message, as where it has too little memory.
    pub(crate) fn alarm(&self) -> Alarm<'_> {
        self.server.script("do-alarm").unwrap();
        Alarm(&self.server)
    }

    /// Stops the broker and starts it on the same port and folder.
    pub(crate) fn restart(&self) -> Result<(), String> {
        self.server.script("stop")?;
        self.server.script("start")
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

    /// Has the broker refuse what a queue has no place for.
    pub(crate) fn bound(&self, queue: &str, most: u32) {
        let policy = format!(
            r#"{{"pattern":"^{queue}$","apply-to":"queues","definition":{{"max-length":{most},"overflow":"reject-publish"}}}}"#
        );
        assert_eq!(self.manage("PUT", &format!("policies/%2F/{queue}"), &policy).0, 201);
    }

    /// Takes that bound away.
    pub(crate) fn unbound(&self, queue: &str) {
        assert_eq!(self.manage("DELETE", &format!("policies/%2F/{queue}"), "").0, 204);
    }

    /// Deletes a queue.
    pub(crate) fn delete(&self, queue: &str) {
        assert_eq!(self.manage("DELETE", &format!("queues/%2F/{queue}"), "").0, 204);
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
