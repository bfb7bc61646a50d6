//! A real Kafka broker for a test binary: started when a test first asks for it, stopped when the binary ends, however it ends.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// A broker on loopback.
pub(crate) struct Broker {
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    port: u16,
    folder: PathBuf,
    /// What the script gets beyond the port and the folder.
    variables: Vec<(&'static str, String)>,
    /// Waits for this process to end, then stops the broker and removes its folder: also when a test fails, or is killed.
    _guard: Child,
}

/// The broker of this binary. `None`: it cannot run here, which was said; with `CI=true` that fails the test.
pub(crate) fn broker() -> Option<&'static Broker> {
    broker_with(Vec::new)
}

/// The same, started with variables for the script: one broker a binary, so always the same ones.
pub(crate) fn broker_with(variables: impl FnOnce() -> Vec<(&'static str, String)>) -> Option<&'static Broker> {
    static BROKER: OnceLock<Result<Broker, String>> = OnceLock::new();
    match BROKER.get_or_init(|| Broker::start(variables())) {
        Ok(broker) => Some(broker),
        Err(why) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("no Kafka to test with: {why}"),
        Err(why) => {
            println!("skipped: no Kafka to test with: {why}");
            None
        }
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/kafka.sh")
}

/// A port below those that the system gives to outgoing connections, with three free ones above it.
fn free_port() -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    loop {
        let port = rand::random_range(20_000..31_900_u16);
        if (port..port + 4).all(free) {
            return port;
        }
    }
}

impl Broker {
    fn start(variables: Vec<(&'static str, String)>) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?.keep();
        let port = free_port();
        let guard = Command::new("setsid")
            .args(["sh", "-c", r#"read -r _; "$1" stop; rm -rf "$DATA_DIR""#, "guard"])
            .arg(script())
            .env("DATA_DIR", &folder)
            .env("PORT", port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        let broker = Self { address: format!("127.0.0.1:{port}"), port, folder, variables, _guard: guard };
        broker.script("install")?;
        broker.script("start")?;
        Ok(broker)
    }

    fn script(&self, what: &str) -> Result<(), String> {
        let output = Command::new(script())
            .arg(what)
            .env("DATA_DIR", &self.folder)
            .env("PORT", self.port.to_string())
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr);
        output.status.success().then_some(()).ok_or_else(|| format!("{what}: {said}"))
    }

    /// The address of a further listener.
    pub(crate) fn listener(&self, above: u16) -> String {
        format!("127.0.0.1:{}", self.port + above)
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&self) {
        self.script("kill").unwrap();
    }

    /// Starts it again on the same address and data.
    pub(crate) fn start_again(&self) {
        self.script("start").unwrap();
    }
}
