//! `trackalert test` by the real binary, on a folder of one policy with its cases.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a run may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trackalert"));
    command.current_dir(folder).env_clear().stdin(Stdio::null()).arg("test");
    command
}

pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {}\n{}\n--- stderr\n{}", self.code, self.out, self.err)
    }
}

pub(crate) fn run(folder: &Path, args: &[&str]) -> Ran {
    let output = program(folder).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

pub(crate) fn json(folder: &Path, args: &[&str]) -> (i32, Value) {
    let ran = run(folder, &[args, &["--format", "json"]].concat());
    (ran.code, serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran}")))
}

pub(crate) fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A folder with one policy `p` and its tests.
pub(crate) fn site(policy: &str, tests: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("policies/p/policy.lua"), policy);
    write(&folder.path().join("policies/p/tests/cases.toml"), tests);
    folder
}

pub(crate) const QUIET: &str = "function report(lt) end";

/// A case of one report, in which no alert is raised.
pub(crate) fn case(name: &str) -> String {
    format!("[[case]]\nname = \"{name}\"\nreports = [{{ login = \"{name}\", remote = \"192.0.2.1\" }}]\nalerts = []\n")
}

/// Each element with its attributes and the text in it; an error where it is no XML.
pub(crate) fn elements(xml: &str) -> Vec<(String, BTreeMap<String, String>, String)> {
    use quick_xml::events::Event;
    let mut reader = quick_xml::Reader::from_str(xml);
    let (mut found, mut open) = (Vec::new(), Vec::new());
    loop {
        let event = reader.read_event().unwrap_or_else(|error| panic!("{error}: {xml}"));
        match &event {
            Event::Start(start) | Event::Empty(start) => {
                let attributes = start.attributes().map(|attribute| {
                    let attribute = attribute.unwrap();
                    let value = quick_xml::escape::unescape(&attribute.value).unwrap().into_owned();
                    (attribute.key.0.to_owned(), value)
                });
                let name = start.name();
                found.push((name.0.to_owned(), attributes.collect(), String::new()));
                if matches!(event, Event::Start(_)) {
                    open.push(found.len() - 1);
                }
            }
            Event::End(_) => drop(open.pop().unwrap()),
            Event::Text(text) => {
                if let Some(at) = open.last() {
                    found[*at].2.push_str(text);
                }
            }
            Event::GeneralRef(_) | Event::Decl(_) => {}
            Event::Eof => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(open.is_empty());
    found
}

/// A running `--watch`, with what it has written so far.
pub(crate) struct Watching {
    pub(crate) child: Child,
    pub(crate) said: Arc<Mutex<String>>,
}

impl Watching {
    pub(crate) fn start(folder: &Path, args: &[&str]) -> Self {
        let mut child = program(folder)
            .args(["--watch", "--interval", "20ms"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said: Arc<Mutex<String>> = Arc::default();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for mut stream in streams {
            let said = Arc::clone(&said);
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    said.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
                }
            });
        }
        Self { child, said }
    }

    /// Waits until all of this was said since the last time, and forgets it.
    pub(crate) fn wait_for(&self, words: &[&str]) {
        let began = Instant::now();
        loop {
            let mut said = self.said.lock().unwrap();
            if words.iter().all(|word| said.contains(word)) {
                said.clear();
                return;
            }
            assert!(began.elapsed() < PATIENCE, "waited for {words:?} in\n{said}");
            drop(said);
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// Ctrl-C, and the exit code.
    pub(crate) fn interrupt(mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(began.elapsed() < PATIENCE, "it does not end at Ctrl-C");
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
