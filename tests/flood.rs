//! A flood of one login does not make the others wait: the 99th percentile of their latency, with and without it, in one run.
//!
//! Latency is taken from outside: from the report's own time, which is the moment it is sent, to the arrival of an alert that the
//! policy raises for one report in ten.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

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

/// Sends the others' reports at an even rate: every 20 ms the share of that time, each stamped with the moment of sending.
async fn send_others(address: String, phase: &'static str, total: usize, rate: usize) {
    let client = client();
    let url = format!("http://{address}/v1/reports");
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let share = rate / 50;
    for start in (0..total).step_by(share) {
        tick.tick().await;
        let t = trial::now();
        let lines: Vec<String> = (start..start + share)
            .map(|n| {
                let attrs = if n.is_multiple_of(10) { json!({ "sample": phase }) } else { json!({}) };
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

#[test]
fn flood_of_one_login_leaves_the_others_their_latency() {
    let (others, rate) = trial::size((10_000, 2_000), (50_000, 2_000));
    let (inbox, receiver) = Inbox::start();
    let site = Site::new(&format!(
        "history.kind = \"none\"\n[[notify.channels]]\nkind = \"webhook\"\nurl = \"http://{receiver}/\"\n"
    ));
    site.policy("flood", POLICY);
    let program = site.start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let arrived = |phase: &str| inbox.of_kind(phase).len() == others / 10;
    let patience = Duration::from_secs(120);

    runtime.block_on(send_others(site.address.clone(), "quiet", others, rate));
    program.wait_until("the quiet phase", patience, |program| program.idle() && arrived("quiet"));

    let flood: Vec<String> = (0..others)
        .map(|n| {
            json!({ "t": trial::now(), "login": "flooded", "remote": "192.0.2.9", "session_id": n.to_string() })
                .to_string()
        })
        .collect();
    runtime.block_on(async {
        let flood = tokio::spawn({
            let address = site.address.clone();
            async move { send_all(&address, flood, 500, Arc::new(Progress::default())).await }
        });
        send_others(site.address.clone(), "flood", others, rate).await;
        flood.await.unwrap();
    });
    program.wait_until("the flood", patience, |program| program.idle() && arrived("flood"));

    let (before, during) = (percentile(&inbox, "quiet", 0.99), percentile(&inbox, "flood", 0.99));
    let row = |phase| format!("{:.0} / {:.0} ms", percentile(&inbox, phase, 0.5), percentile(&inbox, phase, 0.99));
    trial::print(
        "flood",
        0,
        &[
            ("reports of the others, and of the one login", format!("{others} and {others}")),
            ("the others' latency without, p50 / p99", row("quiet")),
            ("the others' latency with the flood, p50 / p99", row("flood")),
            ("ratio of the p99", format!("{:.2}", during / before)),
            ("out of order", format!("{}", program.metric("trackalert_unordered_reports_total").unwrap_or_default())),
        ],
    );
    assert!(program.metric("trackalert_unordered_reports_total").unwrap_or_default() > 0.0, "there was no flood");
    assert!(during <= 2.0 * before, "the others' p99 went from {before:.0} to {during:.0} ms");
    assert_eq!(program.terminate(), Some(0));
}
