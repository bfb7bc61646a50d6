//! The real program on a real Kafka broker: nothing is lost when the process or the broker is killed, and a drain leaves nothing to be
//! done twice.
//!
//! The small form runs with the tests; `tests/trials/kafka` runs the full one.

#![cfg(feature = "kafka")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use support::inbox::Inbox;
use support::kafka::{Broker, broker};
use support::program::{Program, Site};
use support::sender::{Progress, query, send_all};
use support::trial;

const PATIENCE: Duration = Duration::from_secs(180);

/// Waits as long as the report says, counts each login's reports in the state, raises an alert for each `mark`ed report and one with the
/// count for each login's `last`.
const POLICY: &str = r#"
function report(lt)
  local name = "n:" .. lt.login
  local n = (state.get(name) or 0) + 1
  state.set(name, n)
  time.sleep(tonumber(lt.attrs.wait) / 1000)
  if lt.attrs.mark then
    alert { kind = "marked", title = "marked", key = lt.attrs.mark }
  end
  if lt.attrs.last then
    alert { kind = "count", title = "count", key = lt.login, evidence = { n = n } }
  end
end
"#;

/// One at a time: a case that kills the broker must not hit another one.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn site(broker: &Broker, receiver: std::net::SocketAddr) -> Site {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let site = Site::new(&format!(
        r#"detect.login_backlog = 0
history.commit_every = "200ms"
[queue]
kind = "kafka"
reports = "reports-{number}"
alerts = "alerts-{number}"
[queue.kafka]
brokers = ["{broker}"]
group = "group-{number}"
create_topics = true
partitions = 8
replication = 1
session_timeout = "6s"
[[notify.channels]]
kind = "webhook"
url = "http://{receiver}/"
"#,
        broker = broker.address,
    ));
    site.policy("kafka", POLICY);
    site
}

struct Load {
    /// By share and sender; all of a login on one sender, so that its order is the order of sending.
    shares: Vec<Vec<Vec<String>>>,
    total: usize,
    per_login: usize,
    logins: usize,
    marked: usize,
}

/// `total` reports of `logins` logins that wait 0–50 ms each, in `shares` shares.
fn load(total: usize, logins: usize, shares: usize, random: &mut StdRng) -> Load {
    const SENDERS: usize = 4;
    let per_login = total / logins;
    let total = per_login * logins;
    let began = trial::now() - 3600.0;
    let mut all = vec![vec![Vec::new(); SENDERS]; shares];
    let mut marked = 0;
    for number in 0..total {
        let (index, login) = (number / logins, number % logins);
        let mut attrs = serde_json::Map::new();
        attrs.insert("wait".into(), json!(random.random_range(0..=50).to_string()));
        if number.is_multiple_of(50) {
            attrs.insert("mark".into(), json!(number.to_string()));
            marked += 1;
        }
        if index == per_login - 1 {
            attrs.insert("last".into(), json!("1"));
        }
        let t = began + number as f64 / total as f64 * 1800.0;
        let report = json!({ "t": t, "login": format!("user{login}"), "remote": "192.0.2.1", "attrs": attrs });
        all[number * shares / total][login % SENDERS].push(report.to_string());
    }
    Load { shares: all, total, per_login, logins, marked }
}

/// Sends a share in the background.
fn send(
    runtime: &tokio::runtime::Runtime,
    site: &Site,
    share: Vec<Vec<String>>,
    progress: &Arc<Progress>,
) -> Vec<tokio::task::JoinHandle<()>> {
    let one = |lane| {
        let (address, progress) = (site.address.clone(), Arc::clone(progress));
        runtime.spawn(async move { send_all(&address, lane, 50, progress).await })
    };
    share.into_iter().map(one).collect()
}

fn join(runtime: &tokio::runtime::Runtime, senders: Vec<tokio::task::JoinHandle<()>>) {
    senders.into_iter().for_each(|sender| runtime.block_on(sender).unwrap());
}

fn in_history(runtime: &tokio::runtime::Runtime, site: &Site) -> serde_json::Value {
    runtime.block_on(query(
        &site.address,
        json!({
            "size": 0, "track_total_hits": true,
            "aggs": { "logins": { "terms": { "field": "login", "size": 10000 } } },
        }),
    ))
}

/// Waits until every report is in the history and the queues are empty, then holds that each stands there once, has counted once, and
/// that its alert arrived.
fn everything_handled(runtime: &tokio::runtime::Runtime, site: &Site, program: &Program, load: &Load, inbox: &Inbox) {
    let total = json!(load.total);
    program.wait_until("every report in the history", PATIENCE, |_| {
        in_history(runtime, site)["hits"]["total"]["value"] == total
    });
    program.wait_until("nothing left in the queues", PATIENCE, Program::idle);
    program.wait_until("every alert", PATIENCE, |_| inbox.of_kind("count").len() >= load.logins);
    let history = in_history(runtime, site);
    assert_eq!(history["hits"]["total"]["value"], total, "reports in the history");
    for bucket in history["aggregations"]["logins"]["buckets"].as_array().unwrap() {
        assert_eq!(bucket["doc_count"], json!(load.per_login), "reports of {}", bucket["key"]);
    }
    assert_eq!(inbox.of_kind("marked").len(), load.marked, "alerts that arrived");
    for count in inbox.of_kind("count") {
        assert_eq!(count.alert["evidence"]["n"], json!(load.per_login), "a report was counted twice or not at all");
    }
}

#[test]
fn killed_again_and_again_under_load_loses_nothing() {
    let _alone = alone();
    let Some(broker) = broker() else { return };
    let (total, kills) = trial::size((20_000, 5), (200_000, 20));
    let seed = trial::seed();
    let mut random = StdRng::seed_from_u64(seed);
    let (inbox, receiver) = Inbox::start();
    let site = site(broker, receiver);
    let mut load = load(total, 500, kills, &mut random);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let progress = Arc::new(Progress::default());
    let began = Instant::now();
    let mut program = site.start();
    let (mut in_flight, mut repeated) = (Vec::new(), 0.0);
    for share in std::mem::take(&mut load.shares) {
        let senders = send(&runtime, &site, share, &progress);
        // Reports are in hand: the kill comes at a random instant from here.
        program.wait_until("reports in hand", PATIENCE, |program| program.metric("trackalert_unsettled") > Some(0.0));
        std::thread::park_timeout(Duration::from_micros(random.random_range(0..600_000)));
        in_flight.push(program.metric("trackalert_unsettled").unwrap_or_default());
        repeated += program.metric("trackalert_repeated_reports_total").unwrap_or_default();
        program.kill();
        program = site.start();
        join(&runtime, senders);
    }
    everything_handled(&runtime, &site, &program, &load, &inbox);
    repeated += program.metric("trackalert_repeated_reports_total").unwrap_or_default();
    let table = [
        ("reports accepted", progress.accepted.load(Ordering::Relaxed).to_string()),
        ("kills", kills.to_string()),
        ("in flight at each kill", format!("{in_flight:?}")),
        ("requests that were cut and sent again", progress.failed.load(Ordering::Relaxed).to_string()),
        ("reports that came again after they were handled", repeated.to_string()),
        ("alerts marked, expected and arrived", format!("{} and {}", load.marked, inbox.of_kind("marked").len())),
        ("seconds", format!("{:.0}", began.elapsed().as_secs_f64())),
    ];
    trial::print("kafka: kill", seed, &table);
    assert!(in_flight.iter().any(|n| *n > 0.0), "nothing was in flight at any kill: this proves nothing");
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn drained_under_load_exits_0_and_the_next_start_handles_nothing_twice() {
    let _alone = alone();
    let Some(broker) = broker() else { return };
    let seed = trial::seed();
    let mut random = StdRng::seed_from_u64(seed);
    let (inbox, receiver) = Inbox::start();
    let site = site(broker, receiver);
    // A hundred reports a login: most of what is in hand waits for its turn.
    let mut load = load(3000, 30, 1, &mut random);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let progress = Arc::new(Progress::default());
    let program = site.start();
    let senders = send(&runtime, &site, load.shares.remove(0), &progress);
    join(&runtime, senders);
    program.wait_until("reports in hand", PATIENCE, |program| program.metric("trackalert_unsettled") > Some(0.0));
    let in_hand = program.metric("trackalert_unsettled").unwrap_or_default();
    let draining = Instant::now();
    assert_eq!(program.terminate(), Some(0));
    let drained = draining.elapsed();
    let program = site.start();
    everything_handled(&runtime, &site, &program, &load, &inbox);
    let repeated = program.metric("trackalert_repeated_reports_total");
    let table = [
        ("reports in hand at SIGTERM", in_hand.to_string()),
        ("seconds of the drain", format!("{:.1}", drained.as_secs_f64())),
        ("reports that came again", format!("{repeated:?}")),
    ];
    trial::print("kafka: drain", seed, &table);
    assert!(in_hand > 0.0, "nothing was in hand at SIGTERM: this proves nothing");
    assert_eq!(repeated, Some(0.0), "reports came again after a drain");
    assert!(drained < Duration::from_secs(25), "the drain took {drained:?}");
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn broker_killed_under_load_and_started_again_loses_nothing() {
    let _alone = alone();
    let Some(broker) = broker() else { return };
    let seed = trial::seed();
    let mut random = StdRng::seed_from_u64(seed);
    let (inbox, receiver) = Inbox::start();
    let site = site(broker, receiver);
    let (total, down) = trial::size((10_000, Duration::from_secs(5)), (100_000, Duration::from_secs(30)));
    let mut load = load(total, 500, 2, &mut random);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let progress = Arc::new(Progress::default());
    let program = site.start();
    let first = send(&runtime, &site, load.shares.remove(0), &progress);
    program.wait_until("reports in hand", PATIENCE, |program| program.metric("trackalert_unsettled") > Some(0.0));
    broker.kill();
    // More comes while it is down: each of these is sent until it is answered 2xx.
    let second = send(&runtime, &site, load.shares.remove(0), &progress);
    std::thread::park_timeout(down);
    assert!(program.get("/livez").is_some(), "it does not live without its broker");
    broker.start_again();
    join(&runtime, first);
    join(&runtime, second);
    let back = Instant::now();
    everything_handled(&runtime, &site, &program, &load, &inbox);
    let table = [
        ("reports accepted", progress.accepted.load(Ordering::Relaxed).to_string()),
        ("requests sent again", progress.failed.load(Ordering::Relaxed).to_string()),
        ("seconds down", down.as_secs().to_string()),
        ("seconds until all was handled afterwards", format!("{:.1}", back.elapsed().as_secs_f64())),
    ];
    trial::print("kafka: broker", seed, &table);
    assert_eq!(program.terminate(), Some(0));
}
