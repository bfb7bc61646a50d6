//! On each driver a flood of one login does not make the others wait: the 99th percentile of their latency, with it and without it, in
//! one run.
//!
//! Latency is taken from outside: from the report's own time, which is the moment it is sent, to the arrival of an alert that the
//! policy raises for one report in ten (in the small form, which has few, one in two). Phases without and with the flood take turns, and
//! the medians are compared: a program that lets the others wait does so in each round, a machine that stalls for a moment in one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;

use support::driver::{Driver, on_each_driver};
use support::inbox::Inbox;
use support::program::Site;
use support::sender::{Progress, client, send_all};
use support::trial;

const POLICY: &str = r#"
function report(lt)
  time.sleep(0.05)
  if lt.attrs.sample then
    alert { kind = lt.attrs.sample, title = "sample" }
  end
end
"#;

on_each_driver!(flood_of_one_login_leaves_the_others_their_latency);

/// One driver after the other: each would measure what the others take of the machine.
static MEASURES: Mutex<()> = Mutex::new(());

/// How many times as long the others' 99th percentile may be with the flood. A broker on this machine takes its part of the cores, and
/// most of it while the flood comes; without the rule for hot logins they would wait for minutes.
const fn most(driver: Driver) -> f64 {
    match driver {
        Driver::Embedded => 2.0,
        Driver::Kafka(_) | Driver::Amqp(_) => 4.0,
    }
}

const ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(120);

/// What the others send in a phase.
#[derive(Clone, Copy)]
struct Others {
    total: usize,
    /// Reports a second.
    rate: usize,
    /// One report in so many is a sample.
    sampled: usize,
}

/// Sends the others' reports at an even rate: every 20 ms the share of that time, each stamped with the moment of sending.
async fn send_others(address: String, phase: &str, others: Others) {
    let client = client();
    let url = format!("http://{address}/v1/reports");
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let share = others.rate / 50;
    for start in (0..others.total).step_by(share) {
        tick.tick().await;
        let t = trial::now();
        let lines: Vec<String> = (start..start + share)
            .map(|n| {
                let attrs = if n.is_multiple_of(others.sampled) { json!({ "sample": phase }) } else { json!({}) };
                json!({ "t": t, "login": format!("{phase}{n}"), "remote": "192.0.2.1", "attrs": attrs }).to_string()
            })
            .collect();
        let answer = client.post(&url).body(lines.join("\n")).send().await.unwrap();
        assert!(answer.status().is_success());
    }
}

/// The percentile of the latencies of a phase, in milliseconds.
fn percentile(inbox: &Inbox, phase: &str, p: f64) -> f64 {
    let mut latencies: Vec<f64> =
        inbox.of_kind(phase).iter().map(|arrival| arrival.at - sent(&arrival.alert)).collect();
    latencies.sort_by(f64::total_cmp);
    latencies[((latencies.len() - 1) as f64 * p) as usize] * 1000.0
}

fn sent(alert: &serde_json::Value) -> f64 {
    let time: jiff::Timestamp = alert["time"].as_str().unwrap().parse().unwrap();
    time.as_microsecond() as f64 / 1e6
}

fn flood(total: usize) -> Vec<String> {
    let one = |n: usize| {
        json!({ "t": trial::now(), "login": "flooded", "remote": "192.0.2.9", "session_id": n.to_string() }).to_string()
    };
    (0..total).map(one).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn flood_of_one_login_leaves_the_others_their_latency(driver: Driver) {
    // A broker that starts meanwhile takes most of the machine: all are there before anything is measured.
    let _brokers = (Driver::kafka(), Driver::amqp());
    let _alone = MEASURES.lock().unwrap_or_else(PoisonError::into_inner);
    let (others, flooded) = trial::size(
        (Others { total: 750, rate: 500, sampled: 2 }, 10_000),
        (Others { total: 50_000, rate: 2_000, sampled: 10 }, 50_000),
    );
    let (inbox, receiver) = Inbox::start();
    let site = Site::new(&format!(
        "{}history.kind = \"none\"\n[[notify.channels]]\nkind = \"webhook\"\nurl = \"http://{receiver}/\"\n",
        driver.settings(0, driver.port())
    ));
    site.policy("flood", POLICY);
    let program = site.start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let unordered = || program.metric("trackalert_unordered_reports_total").unwrap_or_default();
    let mut sent = 0;
    let mut run = |phase: &str, flooded: usize| {
        sent += others.total + flooded;
        runtime.block_on(async {
            let (address, reports) = (site.address.clone(), flood(flooded));
            let flood =
                tokio::spawn(async move { send_all(&address, reports, 500, Arc::new(Progress::default())).await });
            send_others(site.address.clone(), phase, others).await;
            flood.await.unwrap();
        });
        // Nothing of a flood is left for the quiet phase behind it.
        program.wait_until(phase, PATIENCE, |program| {
            program.metric("trackalert_handled_reports_total") >= Some(sent as f64)
                && inbox.of_kind(phase).len() == others.total / others.sampled
        });
        (percentile(&inbox, phase, 0.5), percentile(&inbox, phase, 0.99))
    };
    let (mut before, mut during) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        before.push(run(&format!("quiet{round}"), 0));
        let unordered_before = unordered();
        during.push(run(&format!("flood{round}"), flooded));
        assert!(unordered() > unordered_before, "there was no flood in round {round}");
    }

    let row = |phases: &[(f64, f64)]| {
        phases.iter().map(|(p50, p99)| format!("{p50:.0} / {p99:.0} ms")).collect::<Vec<_>>().join(", ")
    };
    let p99 = |phases: &[(f64, f64)]| median(phases.iter().map(|(_, p99)| *p99).collect());
    let rows = [
        ("reports of the others, and of the one login", format!("{} and {flooded} a phase", others.total)),
        ("the others' latency without, p50 / p99", row(&before)),
        ("the others' latency with the flood, p50 / p99", row(&during)),
        ("ratio of the medians of the p99", format!("{:.2}", p99(&during) / p99(&before))),
        ("out of order", unordered().to_string()),
    ];
    trial::print(&format!("flood on {}", driver.name()), 0, &rows);
    let (before, during) = (p99(&before), p99(&during));
    assert!(during <= most(driver) * before, "the others' p99 went from {before:.0} to {during:.0} ms");
    assert_eq!(program.terminate(), Some(0));
}
