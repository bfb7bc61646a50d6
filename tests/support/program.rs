//! The real binary under test: starts it on a folder, waits until it is ready, ends it with SIGKILL or SIGTERM, reads its metrics.
//!
//! Whatever it starts it ends, also when a test fails.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::server::free_ports;
use super::stall::Clock;
use super::wire;

/// How long a start or a drain may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long livez may take before whoever asks takes the program for dead.
const LIVES_WITHIN: Duration = Duration::from_secs(5);

/// How long a program must have been idle to be taken for idle.
pub(crate) const IDLE_FOR: Duration = Duration::from_millis(1500);

/// A running trackalert.
pub(crate) struct Program {
    child: Child,
    pub(crate) address: String,
}

/// A folder with a configuration and policies.
pub(crate) struct Site {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) address: String,
}

/// A port that was free a moment ago, and that no other test of this process was given.
pub(crate) fn free_address() -> String {
    format!("127.0.0.1:{}", free_ports(1))
}

impl Site {
    /// A site whose configuration is the given text plus the address, the data folder and the policies' folder.
    pub(crate) fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        std::fs::create_dir(folder.path().join("policies")).unwrap();
        let head = format!(
            "data_dir = \"{data}\"\npolicy.path = [\"{policies}\"]\nhttp.listen = [\"{address}\"]\n",
            data = folder.path().join("data").display(),
            policies = folder.path().join("policies").display(),
        );
        std::fs::write(folder.path().join("trackalert.toml"), head + config).unwrap();
        Self { folder, address }
    }

    /// Adds or replaces a policy.
    pub(crate) fn policy(&self, name: &str, lua: &str) -> &Self {
        let folder = self.folder.path().join("policies").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("policy.lua"), lua).unwrap();
        self
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("trackalert.toml")
    }

    /// Starts the binary and waits until it is ready.
    pub(crate) fn start(&self) -> Program {
        self.start_command(self.command())
    }

    /// The command line that runs the binary on this site.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trackalert"));
        command.args(["run", "-C"]).arg(self.config());
        command
    }

    /// Starts a program on this site and waits until it is ready.
    pub(crate) fn start_command(&self, command: Command) -> Program {
        let mut program = self.start_unasked(command);
        program.wait_ready(&self.log());
        program
    }

    /// Starts a program on this site and does not wait: how it shows that it is ready is the test's business.
    pub(crate) fn start_unasked(&self, mut command: Command) -> Program {
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Program { child: command.spawn().unwrap(), address: self.address.clone() }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// The text of the program's log.
    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }
}

impl Program {
    fn wait_ready(&mut self, log: &Path) {
        let began = Instant::now();
        while self.get("/readyz").is_none() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended at its start with {status}:\n{}", std::fs::read_to_string(log).unwrap_or_default());
            }
            assert!(began.elapsed() < PATIENCE, "not ready:\n{}", std::fs::read_to_string(log).unwrap_or_default());
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// The body of a 200 answer.
    pub(crate) fn get(&self, path: &str) -> Option<String> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(wire::PATIENCE)).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
    }

    /// Whether livez answers as long as somebody waits for it.
    pub(crate) fn lives(&self) -> bool {
        let asked = Clock::start();
        self.get("/livez").is_some() && asked.elapsed() < LIVES_WITHIN
    }

    /// The value of a metric line, by its name with labels.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let text = self.get("/metrics")?;
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// Whether every queue is empty and nothing is in hand.
    pub(crate) fn idle(&self) -> bool {
        let zero = |name| self.metric(name) == Some(0.0);
        zero("trackalert_queue_messages{queue=\"reports\"}")
            && zero("trackalert_queue_messages{queue=\"alerts\"}")
            && zero("trackalert_unsettled")
    }

    /// Waits until every queue is empty and nothing is in hand, and has been so for a while: a process looks at its queues once a
    /// second, and one that has just started has not looked yet.
    pub(crate) fn wait_idle(&self, patience: Duration) {
        let mut since = None;
        self.wait_until("nothing left in the queues", patience, |program| {
            since = program.idle().then(|| since.unwrap_or_else(Instant::now));
            since.is_some_and(|since| since.elapsed() > IDLE_FOR)
        });
    }

    /// Waits until a condition holds.
    pub(crate) fn wait_until(&self, what: &str, patience: Duration, mut holds: impl FnMut(&Self) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            assert!(
                began.elapsed() < patience,
                "waited {patience:?} for {what}; metrics:\n{}",
                self.relevant_metrics()
            );
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn relevant_metrics(&self) -> String {
        let text = self.get("/metrics").unwrap_or_default();
        let lines =
            text.lines().filter(|line| !line.starts_with('#') && !line.contains("_bucket") && !line.ends_with(" 0"));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// CPU seconds, user and system, that the process has used.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let after_name: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| after_name.get(index).and_then(|t| t.parse::<f64>().ok()).unwrap_or_default();
        (ticks(11) + ticks(12)) / 100.0
    }

    /// Resident memory now and at its highest, in MiB.
    pub(crate) fn memory_mib(&self) -> (f64, f64) {
        (self.kib("VmRSS:") / 1024.0, self.kib("VmHWM:") / 1024.0)
    }

    /// Resident memory that is no page of a file, in KiB.
    pub(crate) fn anonymous_kib(&self) -> f64 {
        self.kib("RssAnon:")
    }

    fn kib(&self, name: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok()).unwrap_or_default()
    }

    /// SIGKILL: nothing is finished, nothing is said.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// SIGTERM, and the exit code.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(began.elapsed() < PATIENCE, "it does not end at SIGTERM");
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// The exit code, where it has ended by itself.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().unwrap().map(|status| status.code().unwrap_or(-1))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
