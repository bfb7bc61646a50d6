//! `trackalert dead-letters` as a person uses it, on every driver: hundreds of letters are listed, filtered, looked at time and again,
//! dropped and sent again, by the real binary, on real brokers; and nothing is lost when the process is killed while it sends again.
//!
//! The small form runs with the tests; `tests/trials/dead_letters` runs the full one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use support::driver::{Driver, on_each_driver};
use support::inbox::Inbox;
use support::program::{Program, Site};
use support::sender::{Progress, send_all};
use support::trial;

const PATIENCE: Duration = Duration::from_secs(120);

/// Two policies, each of which fails on the reports that are marked for it.
const FAILS: &str =
    r#"function report(lt) if lt.attrs.fails == "NAME" then error("cannot handle " .. lt.attrs.n) end end"#;
/// And as they are after somebody has mended them.
const MENDED: &str = r#"function report(lt)
  if lt.attrs.fails == "NAME" then alert { kind = "handled", title = "handled", key = lt.attrs.n } end
end"#;

on_each_driver!(letters_are_listed_filtered_looked_at_and_dropped, letters_survive_a_kill_while_they_are_sent_again,);

/// A site with letters: `of_a` by the policy `a`, then `of_b` by `b`.
struct Letters {
    site: Site,
    program: Option<Program>,
    inbox: Inbox,
    runtime: tokio::runtime::Runtime,
    of_a: usize,
    /// A time between the two.
    between: String,
}

impl Letters {
    fn make(driver: Driver, of_a: usize, of_b: usize) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let queues = driver.settings(NUMBER.fetch_add(1, Ordering::Relaxed), driver.port());
        let session = driver.short_session();
        let (inbox, receiver) = Inbox::start();
        let site = Site::new(&format!(
            "history.commit_every = \"100ms\"\npolicy.max_attempts = 1\npolicy.breaker = 1.0\n{queues}{session}\n[[notify.channels]]\nkind = \"webhook\"\nurl = \"http://{receiver}/\"\n"
        ));
        for name in ["a", "b"] {
            site.policy(name, &FAILS.replace("NAME", name));
        }
        let program = Some(site.start());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut letters = Self { site, program, inbox, runtime, of_a, between: String::new() };
        letters.send("a", of_a);
        letters.until_letters(of_a);
        letters.between = (jiff::Timestamp::now() + Duration::from_millis(5)).to_string();
        // A time has passed when the clock says so.
        while jiff::Timestamp::now().to_string() <= letters.between {
            std::thread::yield_now();
        }
        letters.send("b", of_b);
        letters.until_letters(of_a + of_b);
        letters
    }

    fn program(&self) -> &Program {
        self.program.as_ref().unwrap()
    }

    fn send(&self, fails: &str, count: usize) {
        let report = |number: usize| {
            json!({ "login": format!("user{}", number % 50), "remote": "192.0.2.1",
                "attrs": { "fails": fails, "n": format!("{fails}{number}") } })
        };
        let reports = (0..count).map(|number| report(number).to_string()).collect();
        self.runtime.block_on(send_all(&self.site.address, reports, 50, Arc::new(Progress::default())));
    }

    fn until_letters(&self, count: usize) {
        let wanted = count as f64;
        self.program().wait_until("the dead letters", PATIENCE, |program| {
            program.idle() && program.metric("trackalert_dead_letters{queue=\"reports\"}") == Some(wanted)
        });
    }

    /// Mends both policies, and has the program read them.
    fn mend(&self) {
        for name in ["a", "b"] {
            self.site.policy(name, &MENDED.replace("NAME", name));
        }
        self.program().signal(Signal::SIGHUP);
        self.program().wait_until("the mended policies", PATIENCE, |program| {
            program.metric("trackalert_reloads_total{outcome=\"done\"}") == Some(1.0)
        });
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trackalert"));
        command.arg("dead-letters").args(args).arg("-C").arg(self.site.config()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What a command that ends well prints.
    fn well(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn list(&self, args: &[&str]) -> Vec<Value> {
        let listed = self.well(&[&["list", "--format", "json"], args].concat());
        serde_json::from_str(&listed).unwrap_or_else(|error| panic!("{error}: {listed}"))
    }

    /// The marks of the reports that are letters.
    fn marks(&self) -> BTreeSet<String> {
        let mark = |letter: &Value| {
            let body: Value = serde_json::from_str(letter["body"].as_str().unwrap()).unwrap();
            body["attrs"]["n"].to_string().trim_matches(['"', '[', ']']).to_owned()
        };
        self.list(&[]).iter().map(mark).collect()
    }

    /// The marks of the reports whose alerts arrived.
    fn handled(&self) -> BTreeSet<String> {
        let alerts = self.inbox.of_kind("handled");
        alerts.iter().map(|arrival| arrival.alert["key"].as_str().unwrap().to_owned()).collect()
    }
}

fn ids(letters: &[Value]) -> Vec<&str> {
    letters.iter().map(|letter| letter["id"].as_str().unwrap()).collect()
}

/// Lists, filters, shows, drops and sends again; looking changes nothing, however often.
fn letters_are_listed_filtered_looked_at_and_dropped(driver: Driver) {
    let (of_a, of_b) = (150, 100);
    let letters = Letters::make(driver, of_a, of_b);
    let all = letters.list(&[]);
    let mut sorted = ids(&all);
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!((all.len(), sorted), (of_a + of_b, ids(&all)), "each once, oldest first, over two pages");
    assert_eq!(letters.well(&["list", "--format", "ndjson"]).lines().count(), of_a + of_b);
    let table = letters.well(&["list"]);
    assert_eq!(table.lines().count(), of_a + of_b + 1, "a line a letter, and the head");
    assert!(!table.contains('\u{1b}') && table.contains("cannot handle a0"), "{table}");

    let count = |args: &[&str]| letters.list(args).len();
    let between = letters.between.as_str();
    assert_eq!((count(&["--policy", "a"]), count(&["--policy", "b"])), (of_a, of_b));
    assert_eq!((count(&["--until", between]), count(&["--since", between])), (of_a, of_b));
    assert_eq!((count(&["--reason", "policy"]), count(&["--reason", "malformed"])), (of_a + of_b, 0));
    assert_eq!(count(&["--policy", "a", "--since", between]), 0);
    let (first, last) = (ids(&all)[0], *ids(&all).last().unwrap());
    assert_eq!(ids(&letters.list(&["--id", first, "--id", last])), [first, last]);
    let shown = letters.well(&["show", last]);
    assert!(shown.contains("cannot handle b") && shown.contains("\"login\": \"user"), "{shown}");

    let looks = trial::size(100, 1000);
    let began = Instant::now();
    for look in 0..looks {
        let seen =
            if look % 2 == 0 { count(&["--policy", "b"]) } else { letters.well(&["show", first]).len().min(of_b) };
        assert_eq!(seen, of_b, "look {look}");
    }
    let took = began.elapsed();
    assert_eq!(ids(&letters.list(&[])), ids(&all), "looking changed something");

    let listed = letters.well(&["drop", "--policy", "b", "--dry-run", "--format", "json"]);
    assert_eq!(serde_json::from_str::<Vec<Value>>(&listed).unwrap().len(), of_b);
    assert_eq!(letters.list(&[]).len(), of_a + of_b, "a dry run changed something");
    let listed = letters.well(&["resend", "--policy", "b", "--dry-run", "--format", "json"]);
    assert_eq!(ids(&serde_json::from_str::<Vec<Value>>(&listed).unwrap()), ids(&all)[of_a..]);
    assert_eq!(ids(&letters.list(&[])), ids(&all), "a dry run sent something again");
    let without_filter = letters.run(&["drop"]);
    assert_eq!(without_filter.status.code(), Some(2), "{without_filter:?}");
    assert_eq!(letters.well(&["drop", "--policy", "b"]), format!("{of_b} dropped\n"));
    let again = letters.run(&["drop", "--format", "json", last, first]);
    assert_eq!(again.status.code(), Some(1), "one of the two was gone: {again:?}");
    let told: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(told, json!({ "done": 1, "missing": [last] }));
    letters.until_letters(of_a - 1);
    let second = ids(&all)[1];
    let again = letters.run(&["resend", "--format", "json", last, second]);
    assert_eq!(again.status.code(), Some(1), "one of the two was gone: {again:?}");
    let told: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(told, json!({ "done": 1, "missing": [last] }));
    // Nobody has mended its policy: it fails again and is another letter, the latest one.
    letters.program().wait_until("the letter that failed again", PATIENCE, |_| {
        let left = letters.list(&[]);
        left.len() == of_a - 1 && !ids(&left).contains(&second)
    });

    // A new process reads anew what is there: what was dropped is gone for good.
    let mut letters = letters;
    assert_eq!(letters.program.take().unwrap().terminate(), Some(0));
    letters.program = Some(letters.site.start());
    let left = letters.list(&[]);
    assert_eq!(left.len(), of_a - 1);
    assert_eq!(ids(&left)[..of_a - 2], ids(&all)[2..of_a]);
    assert_eq!(letters.program.take().unwrap().terminate(), Some(0));
    trial::print(
        "dead letters: looks",
        0,
        &[("looks at 250 letters", looks.to_string()), ("a look", format!("{:?}", took / looks))],
    );
}

/// Sends hundreds again and kills the process meanwhile: every letter is still there, or was handled, or both.
fn letters_survive_a_kill_while_they_are_sent_again(driver: Driver) {
    let seed = trial::seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut letters = Letters::make(driver, trial::size(1000, 5000), 0);
    let all = letters.marks();
    assert_eq!(all.len(), letters.of_a);
    letters.mend();
    let mut rows = Vec::new();
    let (mut kills, mut alive, mut in_the_middle) = (0, 0, 0);
    let began = Instant::now();
    loop {
        let before = letters.marks().len();
        if before == 0 {
            break;
        }
        let in_peace = kills == trial::size(3, 10);
        let mut command = letters.command(&["resend", "--all", "--format", "ndjson"]);
        if !in_peace {
            let (out, into) = std::io::pipe().unwrap();
            if kills == 0 {
                // So little that it waits for us long before its last page: it cannot be done when it is killed.
                fcntl(&into, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
            }
            let mut resend = command.stdout(into).stderr(Stdio::piped()).spawn().unwrap();
            // It has an end of the pipe as well, which would never be closed.
            drop(command);
            // A little after its first page was sent, or somewhere within that: but the first time in the middle for certain.
            let mut said = BufReader::new(out);
            let mut lines = String::new();
            let pause = if kills == 0 || random.random_bool(0.5) {
                said.read_line(&mut lines).unwrap();
                0..5_000
            } else {
                10_000..100_000
            };
            std::thread::park_timeout(Duration::from_micros(random.random_range(pause)));
            let under_way = resend.try_wait().unwrap().is_none();
            letters.program.take().unwrap().kill();
            kills += 1;
            said.read_to_string(&mut lines).unwrap();
            let output = resend.wait_with_output().unwrap();
            letters.program = Some(letters.site.start());
            alive += usize::from(under_way);
            if under_way {
                assert_eq!(output.status.code(), Some(1), "it must not say that all is well: {output:?}");
            }
        } else {
            let output = command.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let lines = String::from_utf8(output.stdout).unwrap();
            assert!(lines.lines().all(|line| line.contains("\"found\":true")), "{lines}");
        }
        // A process that has just started does not know yet what waits for it, so it is the letters themselves that are waited for.
        let missing = |left: &BTreeSet<String>, handled: &BTreeSet<String>| {
            all.iter().filter(|mark| !left.contains(*mark) && !handled.contains(*mark)).count()
        };
        letters.program().wait_until(&format!("each letter there or handled (seed {seed})"), PATIENCE, |_| {
            missing(&letters.marks(), &letters.handled()) == 0
        });
        let (left, handled) = (letters.marks(), letters.handled());
        assert_eq!(missing(&left, &handled), 0, "TRACKALERT_SEED={seed}");
        assert!(!in_peace || left.is_empty(), "TRACKALERT_SEED={seed}: sent again, and {} are there still", left.len());
        in_the_middle += usize::from(!left.is_empty() && left.len() < before);
        rows.push((left.len(), handled.len(), left.intersection(&handled).count()));
    }
    let shown: Vec<_> = rows.iter().map(|row| format!("{row:?}")).collect();
    trial::print(
        &format!("dead letters on {}: killed while sending again", driver.name()),
        seed,
        &[
            ("letters", all.len().to_string()),
            ("kills", kills.to_string()),
            ("of them while letters were being sent", alive.to_string()),
            ("rounds that sent a part", in_the_middle.to_string()),
            ("(left, handled, both) after each", shown.join(" ")),
            ("took", format!("{:?}", began.elapsed())),
        ],
    );
    assert!(alive > 0, "no kill hit the sending");
    assert_eq!(letters.handled(), all);
    assert_eq!(letters.program.take().unwrap().terminate(), Some(0));
}
