//! A report's settling is cut between any two of its four steps, and the report is handed out again: nothing is lost, nothing counts
//! twice, and the alerts are the same as if nothing had been cut. On each driver; one report after the other, and hundreds side by side.
//!
//! The process under test is this very program, started again on real stores with a thin layer around each that ends the process with
//! SIGKILL at the n-th call of a step. So nothing in trackalert itself knows of the test.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use trackalert::app::{App, Signals, Stores};
use trackalert::config::{Config, Roles};
use trackalert::telemetry::Metrics;

use support::driver::{Driver, on_each_driver, on_embedded};
use support::inbox::Inbox;
use support::layers::{Watch, watched};
use support::load::{GIVEN_UP, Load, Rig, next_number, repeated};
use support::program::{IDLE_FOR, Site};
use support::sender::{send_all, try_query};
use support::trial;

/// How long a run may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// The settings with which what a killed process held is free soon: it keeps its partitions for so long.
const fn soon(driver: Driver) -> &'static str {
    match driver {
        Driver::Kafka(_) => {
            "queue.kafka.session_timeout = \"2s\"\nqueue.kafka.properties = { \"heartbeat.interval.ms\" = \"500\" }\n"
        }
        Driver::Embedded | Driver::Amqp(_) => "",
    }
}

/// Between which steps the process ends.
const POINTS: [&str; 4] = ["before the alerts", "after the alerts", "after the state", "after the history"];

/// Ends the process with SIGKILL when its count is used up.
struct Fuse {
    point: String,
    left: AtomicI64,
}

impl Fuse {
    fn burn(&self, point: &str) {
        if self.point == point && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
            loop {
                std::thread::park();
            }
        }
    }
}

impl Watch for Fuse {
    fn before_publish(&self) {
        self.burn(POINTS[0]);
    }
    fn after_publish(&self) {
        self.burn(POINTS[1]);
    }
    fn after_apply(&self) {
        self.burn(POINTS[2]);
    }
    fn after_store(&self) {
        self.burn(POINTS[3]);
    }
}

#[test]
#[ignore = "the process under test: the other tests of this file start it"]
fn process_under_test() {
    let Ok(config) = std::env::var("STEPS_CONFIG") else { return };
    let fuse = Arc::new(Fuse {
        point: std::env::var("STEPS_POINT").unwrap_or_default(),
        left: AtomicI64::new(std::env::var("STEPS_COUNT").ok().and_then(|n| n.parse().ok()).unwrap_or(0)),
    });
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let signals = Signals::set().unwrap();
        let config = Config::load(Some(Path::new(&config)), &[]).unwrap();
        trackalert::telemetry::init_log(&config.log).unwrap();
        let metrics = Arc::new(Metrics::new());
        let opening = (config.clone(), Arc::clone(&metrics));
        let open = tokio::task::spawn_blocking(move || Stores::open(&opening.0, &opening.1).unwrap());
        let stores = watched(open.await.unwrap(), &fuse);
        let app = App::assemble(config, Roles::all(), stores, metrics).await.unwrap();
        app.run_until_signal(signals).await.unwrap();
    });
}

fn start(site: &Site, point: &str, count: u64) -> support::program::Program {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["process_under_test", "--exact", "--ignored", "--nocapture"])
        .env("STEPS_CONFIG", site.config())
        .env("STEPS_POINT", point)
        .env("STEPS_COUNT", count.to_string());
    site.start_unasked(command)
}

/// What a run raised and stored.
#[derive(Debug, PartialEq, Eq)]
struct RunResult {
    alerts: BTreeSet<String>,
    stored: serde_json::Value,
}

/// A stream for one policy.
struct Trial {
    driver: Driver,
    policy: &'static str,
    lua: &'static str,
    stream: Vec<String>,
    /// Kills of one run: starting again takes its time on a broker.
    kills: usize,
}

impl Trial {
    fn site(&self, receiver: std::net::SocketAddr) -> Site {
        let queue = self.driver.settings(next_number(), self.driver.port());
        let soon = soon(self.driver);
        let site = Site::new(&format!(
            "notify.suppress = \"0s\"\ndetect = {{ workers = 1, in_flight = 1 }}\n{queue}{soon}\
             [history]\nretention_days = 3650\ncommit_every = \"20ms\"\n[[notify.channels]]\nkind = \"webhook\"\nurl = \"http://{receiver}/\"\n"
        ));
        site.policy(self.policy, self.lua);
        site
    }

    /// Sends the stream; where a point is given, the process is killed there (at a random call, some times over) and started again. Gives
    /// the kills, and the log, too. `alerts`: how many are waited for when nothing seems to be left to be done.
    fn run(&self, point: &str, alerts: usize, random: &mut StdRng) -> (RunResult, usize, String) {
        let (inbox, receiver) = Inbox::start();
        let site = self.site(receiver);
        let mut kills = 0;
        let fuse = |cuts: usize, random: &mut StdRng| {
            let most = match cuts {
                // A stream raises a few alerts only: the first call after each start must be it.
                _ if point.ends_with("alerts") => 1,
                // Not every report changes the state: so many surely do.
                0 => 20,
                // All over the stream, whose stories are at its end.
                _ => 2 * self.stream.len() / self.kills,
            };
            random.random_range(1..=most as u64)
        };
        let mut program = start(&site, point, fuse(0, random));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (address, lines) = (site.address.clone(), self.stream.clone());
        let sender = runtime.spawn(async move { send_all(&address, lines, 20, Arc::default()).await });
        let stored = |address: &str| {
            let answer = runtime.block_on(try_query(address, json!({ "size": 0, "track_total_hits": true })));
            answer.map(|found| found["hits"]["total"]["value"].clone())
        };
        let began = Instant::now();
        // Looked at twice: a process that has just started does not know yet what its queues hold.
        let mut idle_since = None;
        // On a slow machine the metrics of the queues may be late.
        let enough = || if inbox.alerts().len() < alerts { GIVEN_UP } else { IDLE_FOR };
        while idle_since.is_none_or(|since: Instant| since.elapsed() < enough()) {
            assert!(began.elapsed() < PATIENCE, "{} {point}: not done\n{}", self.policy, site.log_text());
            if let Some(code) = program.ended() {
                assert_eq!(code, -1, "it ended by itself, and not by SIGKILL:\n{}", site.log_text());
                kills += 1;
                let (point, count) = if kills < self.kills { (point, fuse(kills, random)) } else { ("", 0) };
                program = start(&site, point, count);
            }
            let idle =
                sender.is_finished() && program.idle() && stored(&site.address).ok() == Some(json!(self.stream.len()));
            idle_since = idle.then(|| idle_since.unwrap_or_else(Instant::now));
            std::thread::park_timeout(Duration::from_millis(10));
        }
        runtime.block_on(sender).unwrap();
        let stored = stored(&site.address).unwrap();
        program.kill();
        (RunResult { alerts: inbox.alerts().into_keys().collect(), stored }, kills, site.log_text())
    }
}

/// A month of five accounts at home, and then one story for each shipped policy, in report time. The instants vary with the seed.
fn stream(random: &mut StdRng) -> Vec<String> {
    const DAY: f64 = 86_400.0;
    let start = trial::now() - 200.0 * DAY;
    let mut reports: Vec<(f64, String)> = Vec::new();
    let mut add = |t: f64, login: &str, remote: &str, success: bool| {
        let fail_type = if success { "" } else { "credentials" };
        let report = json!({ "t": t, "login": login, "remote": remote, "success": success, "fail_type": fail_type, "protocol": "imap" });
        reports.push((t, report.to_string()));
    };
    for day in 0..30 {
        for user in 0..5 {
            let t = start + f64::from(day) * DAY + random.random_range(0.0..DAY / 2.0);
            add(t, &format!("user{user}"), &format!("192.0.2.{}", 10 + user), true);
        }
    }
    let stories = start + 31.0 * DAY;
    add(stories + random.random_range(0.0..DAY), "user0", "203.0.113.5", true);
    let guessing = stories + random.random_range(0.0..DAY);
    for n in 0..8 {
        add(guessing + f64::from(n) * 120.0, "user1", &format!("198.51.100.{n}"), false);
    }
    add(guessing + 1000.0, "user1", "198.51.100.200", true);
    let spraying = stories + random.random_range(0.0..DAY);
    for n in 0..25 {
        add(spraying + f64::from(n) * 8.0, &format!("victim{n}"), "203.0.113.66", false);
    }
    add(stories + 100.0 * DAY + random.random_range(0.0..DAY), "user2", "192.0.2.12", true);
    reports.sort_by(|a, b| a.0.total_cmp(&b.0));
    reports.into_iter().map(|(_, report)| report).collect()
}

fn cut_between_steps_changes_nothing(driver: Driver, policy: &'static str, lua: &'static str) {
    let seed = trial::seed();
    let mut random = StdRng::seed_from_u64(seed);
    let (rounds, kills) = trial::size((1, if driver.name() == "embedded" { 5 } else { 2 }), (5, 5));
    let trial = Trial { driver, policy, lua, stream: stream(&mut random), kills };
    let (whole, ..) = trial.run("", 0, &mut random);
    assert!(!whole.alerts.is_empty(), "{policy} raises nothing in this stream: this proves nothing");
    assert_eq!(whole.stored, json!(trial.stream.len()));
    let mut rows = vec![("alerts of the whole run", whole.alerts.len().to_string())];
    for point in POINTS {
        let mut total = 0;
        for _ in 0..rounds {
            let (cut, kills, log) = trial.run(point, whole.alerts.len(), &mut random);
            assert_eq!(cut, whole, "{policy}, killed {point}, TRACKALERT_SEED={seed}; the log:\n{log}");
            total += kills;
        }
        assert!(total > 0, "{policy}: the process was never killed {point}");
        rows.push((point, format!("{total} kills, the same alerts")));
    }
    trial::print(&format!("steps of {policy} on {}", driver.name()), seed, &rows);
}

on_each_driver!(
    success_after_failures_cut_between_steps_raises_the_same_alerts,
    steps_cut_while_many_reports_are_settled_side_by_side_lose_nothing,
);
on_embedded!(
    new_origin_cut_between_steps_raises_the_same_alerts,
    one_address_many_logins_cut_between_steps_raises_the_same_alerts,
    dormant_account_cut_between_steps_raises_the_same_alerts,
);

/// What it counts, it counts for one login: whose reports have one order on every driver.
fn success_after_failures_cut_between_steps_raises_the_same_alerts(driver: Driver) {
    let lua = include_str!("../policies/success_after_failures/policy.lua");
    cut_between_steps_changes_nothing(driver, "success_after_failures", lua);
}

/// The load of the trial `kill`, with the cuts of this one.
fn steps_cut_while_many_reports_are_settled_side_by_side_lose_nothing(driver: Driver) {
    let (total, kills) = trial::size((20_000, 2), (200_000, 5));
    let mut rig = Rig::new(driver);
    let site = rig.site(soon(driver));
    let points = POINTS.repeat(kills);
    let mut load = Load::new(total, 100, points.len(), 0..=50, &mut rig.random);
    let share = total / points.len();
    let mut senders = None;
    let (mut in_hand, mut again) = (Vec::new(), 0.0);
    for (point, reports) in points.iter().zip(std::mem::take(&mut load.shares)) {
        // One report in fifty raises an alert.
        let calls = if point.ends_with("alerts") { share / 50 } else { share };
        let mut program = start(&site, point, rig.random.random_range(1..=calls as u64 / 2));
        senders = Some(match senders {
            None => rig.send(&site, reports),
            // They go on while it is down: each batch is sent until it is answered 2xx.
            Some(before) => rig.send_after(before, &site, reports),
        });
        let (mut seen, began) = ((0.0, 0.0), Instant::now());
        let code = loop {
            if let Some(code) = program.ended() {
                break code;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "not killed {point}, TRACKALERT_SEED={}\n{}",
                rig.seed,
                site.log_text()
            );
            if let Some(unsettled) = program.metric("trackalert_unsettled") {
                seen = (unsettled, repeated(&program));
            }
            std::thread::park_timeout(Duration::from_millis(10));
        };
        assert_eq!(code, -1, "it ended by itself, and not by SIGKILL:\n{}", site.log_text());
        in_hand.push(seen.0);
        again += seen.1;
    }
    let program = site.start();
    rig.join(senders.unwrap());
    rig.everything_handled(&site, &program, &load);
    again += repeated(&program);
    let table = [
        ("kills at each of the four points", kills.to_string()),
        ("in hand shortly before each", format!("{in_hand:?}")),
        ("reports that came again after they were handled", again.to_string()),
        ("reports handled after a later one of their login", "0".to_owned()),
    ];
    rig.print("steps under load", &table);
    let side_by_side = in_hand.iter().filter(|n| **n > 1.0).count();
    assert!(side_by_side * 2 > in_hand.len(), "little was settled side by side: this proves little");
    assert_eq!(program.terminate(), Some(0));
}

fn new_origin_cut_between_steps_raises_the_same_alerts(driver: Driver) {
    cut_between_steps_changes_nothing(driver, "new_origin", include_str!("../policies/new_origin/policy.lua"));
}

/// What many logins share needs the order of the stream, which is that of the queue inside: see docs/guarantees.md.
fn one_address_many_logins_cut_between_steps_raises_the_same_alerts(driver: Driver) {
    let lua = include_str!("../policies/one_address_many_logins/policy.lua");
    cut_between_steps_changes_nothing(driver, "one_address_many_logins", lua);
}

fn dormant_account_cut_between_steps_raises_the_same_alerts(driver: Driver) {
    cut_between_steps_changes_nothing(
        driver,
        "dormant_account",
        include_str!("../policies/dormant_account/policy.lua"),
    );
}
