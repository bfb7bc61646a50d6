//! A report's settling is cut between any two of its four steps, and the report is handed out again: nothing is lost, nothing counts
//! twice, and the alerts are the same as if nothing had been cut.
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

use futures_util::future::BoxFuture;
use serde_json::json;
use trackalert::app::{App, Stores};
use trackalert::config::{Config, Roles};
use trackalert::history::{History, HistoryError, Search, Stored};
use trackalert::queue::{Backoff, DeadLetters, Depth, Message, Publisher, Queue, QueueError, Subscription, Unsettled};
use trackalert::report::{LoginReport, ReportId, Time};
use trackalert::state::{Batch, State, StateError};
use trackalert::telemetry::Metrics;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::inbox::Inbox;
use support::program::Site;
use support::sender::query;
use support::trial;

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

struct Alerts(Arc<dyn Queue>, Arc<Fuse>);
struct AlertPublisher(Arc<dyn Publisher>, Arc<Fuse>);
struct Memory(Arc<dyn State>, Arc<Fuse>);
struct Past(Arc<dyn History>, Arc<Fuse>);

impl Queue for Alerts {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(AlertPublisher(self.0.publisher(), Arc::clone(&self.1)))
    }
    fn subscribe(&self, limit: Unsettled, backoff: Backoff) -> Result<Subscription, QueueError> {
        self.0.subscribe(limit, backoff)
    }
    fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        self.0.dead_letters()
    }
    fn depth(&self) -> BoxFuture<'_, Result<Depth, QueueError>> {
        self.0.depth()
    }
}

impl Publisher for AlertPublisher {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move {
            self.1.burn(POINTS[0]);
            let done = self.0.publish(messages).await;
            self.1.burn(POINTS[1]);
            done
        })
    }
}

impl State for Memory {
    fn get<'a>(&'a self, key: &'a str, at: Time) -> BoxFuture<'a, Result<Option<bytes::Bytes>, StateError>> {
        self.0.get(key, at)
    }
    fn members<'a>(&'a self, key: &'a str, after: Time, until: Time) -> BoxFuture<'a, Result<Vec<u64>, StateError>> {
        self.0.members(key, after, until)
    }
    fn handled(&self, report: ReportId) -> BoxFuture<'_, Result<Vec<String>, StateError>> {
        self.0.handled(report)
    }
    fn apply(&self, batch: Batch) -> BoxFuture<'_, Result<(), StateError>> {
        let of_a_report = batch.handled.is_some();
        Box::pin(async move {
            let done = self.0.apply(batch).await;
            if of_a_report {
                self.1.burn(POINTS[2]);
            }
            done
        })
    }
    fn sync(&self) -> BoxFuture<'_, Result<(), StateError>> {
        self.0.sync()
    }
    fn sweep(&self) -> BoxFuture<'_, Result<usize, StateError>> {
        self.0.sweep()
    }
}

impl History for Past {
    fn store(&self, report: Arc<LoginReport>) -> BoxFuture<'_, Result<Stored, HistoryError>> {
        Box::pin(async move {
            let done = self.0.store(report).await;
            self.1.burn(POINTS[3]);
            done
        })
    }
    fn search(&self, search: Search) -> BoxFuture<'_, Result<serde_json::Value, HistoryError>> {
        self.0.search(search)
    }
    fn retain(&self, now: Time) -> BoxFuture<'_, Result<usize, HistoryError>> {
        self.0.retain(now)
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
        let config = Config::load(Some(Path::new(&config)), &[]).unwrap();
        trackalert::telemetry::init_log(&config.log).unwrap();
        let metrics = Arc::new(Metrics::new());
        let stores = Stores::open(&config, &metrics).unwrap();
        let stores = Stores {
            alerts: Arc::new(Alerts(stores.alerts, Arc::clone(&fuse))),
            state: Arc::new(Memory(stores.state, Arc::clone(&fuse))),
            history: Arc::new(Past(stores.history, Arc::clone(&fuse))),
            reports: stores.reports,
        };
        let app = App::assemble(config, Roles::all(), stores, metrics).await.unwrap();
        app.run_until_signal().await.unwrap();
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

/// Sends a stream; where a point is given, the process is killed there (at a random call, some times over) and started again.
fn run(policy: &str, lua: &str, stream: &[String], point: &str, random: &mut StdRng) -> (RunResult, usize) {
    let (inbox, receiver) = Inbox::start();
    let site = Site::new(&format!(
        "notify.suppress = \"0s\"\ndetect = {{ workers = 1, in_flight = 1 }}\n\
         [history]\nretention_days = 3650\ncommit_every = \"20ms\"\n[[notify.channels]]\nkind = \"webhook\"\nurl = \"http://{receiver}/\"\n"
    ));
    site.policy(policy, lua);
    let mut kills = 0;
    // A stream raises a few alerts only: there the first call after each start must be it.
    let most = if point.ends_with("alerts") { 1 } else { 60 };
    let fuse = |random: &mut StdRng| random.random_range(1..=most);
    let mut program = start(&site, point, fuse(random));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (address, lines) = (site.address.clone(), stream.to_vec());
    let sender = runtime.spawn(async move { support::sender::send_all(&address, lines, 100, Arc::default()).await });
    let began = Instant::now();
    while !(sender.is_finished() && program.idle()) {
        assert!(began.elapsed() < Duration::from_secs(120), "{policy} {point}: not done\n{}", site.log_text());
        if program.ended().is_some() {
            kills += 1;
            let (point, count) = if kills < 5 { (point, fuse(random)) } else { ("", 0) };
            program = start(&site, point, count);
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    runtime.block_on(sender).unwrap();
    let stored = runtime.block_on(query(&site.address, json!({ "size": 0 })))["hits"]["total"]["value"].clone();
    program.kill();
    (RunResult { alerts: inbox.alerts().into_keys().collect(), stored }, kills)
}

/// A month of twenty accounts at home, and then one story for each shipped policy, in report time. The instants vary with the seed.
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
        for user in 0..20 {
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

fn cut_between_steps_changes_nothing(policy: &str, lua: &str) {
    let seed = trial::seed();
    let mut random = StdRng::seed_from_u64(seed);
    let stream = stream(&mut random);
    let (whole, _) = run(policy, lua, &stream, "", &mut random);
    assert!(!whole.alerts.is_empty(), "{policy} raises nothing in this stream: this proves nothing");
    assert_eq!(whole.stored, json!(stream.len()));
    let rounds = trial::size(1, 5);
    let mut rows = vec![("alerts of the whole run", whole.alerts.len().to_string())];
    for point in POINTS {
        let mut total = 0;
        for _ in 0..rounds {
            let (cut, kills) = run(policy, lua, &stream, point, &mut random);
            assert_eq!(cut, whole, "{policy}, killed {point}, TRACKALERT_SEED={seed}");
            total += kills;
        }
        assert!(total > 0, "{policy}: the process was never killed {point}");
        rows.push((point, format!("{total} kills, the same alerts")));
    }
    trial::print(&format!("steps of {policy}"), seed, &rows);
}

#[test]
fn new_origin_cut_between_steps_raises_the_same_alerts() {
    cut_between_steps_changes_nothing("new_origin", include_str!("../policies/new_origin/policy.lua"));
}

#[test]
fn success_after_failures_cut_between_steps_raises_the_same_alerts() {
    cut_between_steps_changes_nothing(
        "success_after_failures",
        include_str!("../policies/success_after_failures/policy.lua"),
    );
}

#[test]
fn one_address_many_logins_cut_between_steps_raises_the_same_alerts() {
    cut_between_steps_changes_nothing(
        "one_address_many_logins",
        include_str!("../policies/one_address_many_logins/policy.lua"),
    );
}

#[test]
fn dormant_account_cut_between_steps_raises_the_same_alerts() {
    cut_between_steps_changes_nothing("dormant_account", include_str!("../policies/dormant_account/policy.lua"));
}
