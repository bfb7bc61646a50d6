//! One RabbitMQ for a test binary: on a free port, in a folder of its own, stopped when the binary ends, also when a test fails.
//!
//! With `CI=true` a broker that cannot run fails the test; elsewhere the test says that it was skipped, and why.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// A running broker.
pub(crate) struct Rabbit {
    pub(crate) port: u16,
    folder: PathBuf,
    plugins: &'static str,
}

/// The broker of this binary; started with the first question for it. `None`: it cannot run here, which was printed.
pub(crate) fn shared() -> Option<&'static Rabbit> {
    static SHARED: OnceLock<Result<Rabbit, String>> = OnceLock::new();
    usable(SHARED.get_or_init(Rabbit::start).as_ref())
}

#[allow(clippy::print_stderr, clippy::panic, reason = "whoever reads the tests' output must see what was not tested")]
fn usable<T>(started: Result<T, &String>) -> Option<T> {
    match started {
        Ok(rabbit) => Some(rabbit),
        Err(why) if std::env::var_os("CI").is_some_and(|ci| ci == "true") => panic!("no broker: {why}"),
        Err(why) => {
            eprintln!("SKIPPED, no broker: {why}");
            None
        }
    }
}

impl Rabbit {
    fn start() -> Result<Self, String> {
        let rabbit = Self::prepare("rabbitmq_management,rabbitmq_consistent_hash_exchange")?;
        rabbit.script("start")?;
        Ok(rabbit)
    }

    /// One that does not run yet.
    pub(crate) fn prepare(plugins: &'static str) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?.keep();
        let rabbit = Self { port: free_ports(), folder, plugins };
        rabbit.script("install")?;
        rabbit.write_certificates().map_err(|error| error.to_string())?;
        rabbit.stop_with_this_process()?;
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
        std::fs::create_dir_all(self.folder.join("data/tls"))?;
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
        self.folder.join("data/tls").join(format!("{name}.pem"))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("DATA_DIR", self.folder.join("data"))
            .env("PORT", self.port.to_string())
            .env("PLUGINS", self.plugins);
        command
    }

    fn path() -> String {
        format!("{}/tests/servers/rabbitmq.sh", env!("CARGO_MANIFEST_DIR"))
    }

    /// Runs the script; what it said is the error.
    pub(crate) fn script(&self, what: &str) -> Result<(), String> {
        let said = self.command(&Self::path()).arg(what).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
        if said.status.success() {
            return Ok(());
        }
        Err(format!("{what}: {}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr)))
    }

    /// A process that waits until this one is gone, however that ends (its pipe closes), and stops the broker then.
    fn stop_with_this_process(&self) -> Result<(), String> {
        let script = "echo ready; read -r _; \"$0\" stop >/dev/null 2>&1; rm -rf \"$1\"";
        let mut watcher = self
            // In a session of its own: what ends a group of processes must not end it before the broker.
            .command("setsid")
            .args(["bash", "-c", script, &Self::path()])
            .arg(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut ready = String::new();
        let out = watcher.stdout.take().ok_or("no pipe")?;
        BufReader::new(out).read_line(&mut ready).map_err(|error| error.to_string())?;
        // Its end of the pipe is open as long as this process lives.
        std::mem::forget(watcher);
        Ok(())
    }

    /// Stops the broker and starts it on the same port and folder.
    pub(crate) fn restart(&self) {
        self.script("stop").unwrap();
        self.script("start").unwrap();
    }

    /// The address for `queue.amqp.url`.
    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Asks the broker's management API.
    pub(crate) fn manage(&self, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
        use base64::Engine;
        use std::io::Read;
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port + 1)).unwrap();
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

/// The first of five ports in a row (AMQP, management, the node's own two, AMQP with TLS) that were free a moment ago. Below the range from which the
/// kernel takes the ports of outgoing connections.
fn free_ports() -> u16 {
    let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let start = 20_000 + u16::try_from(std::process::id() % 2_390).unwrap() * 5;
    let mut candidates = (start..31_990).step_by(5).chain((20_000..start).step_by(5));
    candidates.find(|port| (*port..port + 5).all(free)).unwrap()
}
