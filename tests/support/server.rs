//! A server of `tests/servers` for a test binary: on free ports, in a folder of its own, stopped when the binary ends, however it ends.
//!
//! With `CI=true` a server that cannot run fails the test; elsewhere the test says that it was skipped, and why.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// A running server.
pub(crate) struct Server {
    name: &'static str,
    /// The first of its ports.
    pub(crate) port: u16,
    pub(crate) folder: PathBuf,
    /// Further settings of its script.
    settings: Vec<(&'static str, String)>,
}

/// The server that was started. `None`: it cannot run here, which was said.
pub(crate) fn usable<T>(name: &str, started: Result<T, impl std::fmt::Display>) -> Option<T> {
    match started {
        Ok(server) => Some(server),
        Err(why) if std::env::var_os("CI").is_some_and(|ci| ci == "true") => panic!("no {name} to test with: {why}"),
        Err(why) => {
            println!("SKIPPED, no {name} to test with: {why}");
            None
        }
    }
}

impl Server {
    /// Installs it where it is missing, and starts it. It takes so many ports in a row.
    pub(crate) fn start(name: &'static str, ports: u16) -> Result<Self, String> {
        Self::start_with(name, ports, |_| Vec::new())
    }

    /// The same with settings that are made of the first port.
    pub(crate) fn start_with(
        name: &'static str,
        ports: u16,
        settings: impl FnOnce(u16) -> Vec<(&'static str, String)>,
    ) -> Result<Self, String> {
        let server = Self::prepare(name, ports, settings)?;
        server.script("start")?;
        Ok(server)
    }

    /// One that does not run yet.
    pub(crate) fn prepare(
        name: &'static str,
        ports: u16,
        settings: impl FnOnce(u16) -> Vec<(&'static str, String)>,
    ) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?.keep();
        let port = free_ports(ports);
        let server = Self { name, port, folder, settings: settings(port) };
        server.stop_with_this_process()?;
        server.script("install")?;
        Ok(server)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("DATA_DIR", self.folder.join("data")).env("PORT", self.port.to_string());
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command
    }

    fn path(&self) -> String {
        format!("{}/tests/servers/{}.sh", env!("CARGO_MANIFEST_DIR"), self.name)
    }

    /// Runs the script with these words; what it said is the error.
    pub(crate) fn script(&self, what: &str) -> Result<(), String> {
        let said = self
            .command(&self.path())
            .args(what.split(' '))
            .stdin(Stdio::null())
            .output()
            .map_err(|e| e.to_string())?;
        if said.status.success() {
            return Ok(());
        }
        Err(format!("{what}: {}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr)))
    }

    /// A process that waits until this one is gone, however that ends (its pipe closes), and stops the server then.
    fn stop_with_this_process(&self) -> Result<(), String> {
        let script = "echo ready; read -r _; \"$0\" stop >/dev/null 2>&1; rm -rf \"$1\"";
        let mut watcher = self
            // In a session of its own: what ends a group of processes must not end it before the server.
            .command("setsid")
            .args(["bash", "-c", script, &self.path()])
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

    /// Ends it as a power cut of its machine would end its process.
    pub(crate) fn kill(&self) {
        self.script("kill").unwrap();
    }

    /// Starts it again on the same ports and folder.
    pub(crate) fn start_again(&self) {
        self.script("start").unwrap();
    }
}

/// The first of so many ports in a row that were free a moment ago, and that nobody else in this process was given: whoever is given one
/// may use it seconds later, or not for a while, as a broker that was killed. Below the range from which the kernel takes the ports of
/// outgoing connections.
pub(crate) fn free_ports(count: u16) -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let first = rand::random_range(20_000..31_990_u16);
        let ports = first..first + count;
        if ports.clone().all(|port| !given.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            given.extend(ports);
            return first;
        }
    }
}

/// The port of a Redis for this binary. `None`: it cannot run here, which was said.
pub(crate) fn redis() -> Option<u16> {
    static REDIS: OnceLock<Result<Server, String>> = OnceLock::new();
    usable("Redis", REDIS.get_or_init(|| Server::start_with("redis", 1, |_| Vec::new())).as_ref())
        .map(|server| server.port)
}
