//! How fast it is and what it costs, from the first byte sent to the last report handled, on the real binary: one run, one table.
//!
//! The load generator runs beside it on the same cores, so the ratios of the rows say more than the rows. The small form only shows
//! that every row runs to its end; `tests/trials/figures` prints the figures.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use support::program::Site;
use support::sender::{Progress, send_all};
use support::trial;

const AT_ONCE: &str = "function report(lt) end";
const WAIT: &str = "function report(lt) time.sleep(0.05) end";

struct Row {
    name: &'static str,
    config: &'static str,
    policy: &'static str,
    reports: usize,
    /// Lines in a request; 1: one report a request, as wforce sends them.
    batch: usize,
}

/// 440 bytes, as a webmail's report is.
fn report(n: usize, t: f64) -> String {
    json!({
        "t": t, "login": format!("user{:06}@example.net", n % 50_000), "remote": format!("192.0.2.{}", n % 250), "success": !n.is_multiple_of(5),
        "protocol": "imap", "tls": true, "pwhash": "a1b2", "policy_reject": false, "fail_type": "", "session_id": format!("s{n:010}"),
        "device_id": "\"name\" \"Mail\" \"version\" \"15.0\" \"os\" \"Mac OS X\" \"os-version\" \"12.4 (21F79)\"",
        "device_attrs": { "imapc.family": "Mail", "imapc.major": "15", "os.family": "Mac OS X", "os.major": "12" },
        "attrs": { "cos": "premium", "mail_host": "imap3" }
    })
    .to_string()
}

/// One report a request over one keep-alive connection, each after the answer to the one before.
async fn one_by_one(address: String, reports: Vec<String>) {
    let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut answer = [0; 4096];
    for report in reports {
        let request = format!(
            "POST /command/report HTTP/1.1\r\nHost: t\r\nX-Wforce-Event: report\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{report}",
            report.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut read = 0;
        while !answer[..read].ends_with(b"}") {
            let more = stream.read(&mut answer[read..]).await.unwrap();
            assert!(more > 0, "the connection was cut");
            read += more;
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..read]));
    }
}

async fn send(address: &str, reports: Vec<String>, batch: usize) {
    let clients = if batch == 1 { 32 } else { 8 };
    let mut lanes = vec![Vec::new(); clients];
    for (n, report) in reports.into_iter().enumerate() {
        lanes[n % clients].push(report);
    }
    let senders: Vec<_> = lanes
        .into_iter()
        .map(|lane| {
            let address = address.to_owned();
            tokio::spawn(async move {
                if batch == 1 {
                    one_by_one(address, lane).await;
                } else {
                    send_all(&address, lane, batch, Arc::new(Progress::default())).await;
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await.unwrap();
    }
}

fn measure(row: &Row) -> [String; 6] {
    let site = Site::new(row.config);
    site.policy("figures", row.policy);
    let began = Instant::now();
    let program = site.start();
    let start = began.elapsed();
    let (idle, _) = program.memory_mib();
    let t = trial::now() - 60.0;
    let reports: Vec<String> = (0..row.reports).map(|n| report(n, t)).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let cpu = program.cpu_seconds();
    let began = Instant::now();
    runtime.block_on(send(&site.address, reports, row.batch));
    program.wait_until("all handled", Duration::from_secs(300), |program| {
        program.metric("trackalert_handled_reports_total") == Some(row.reports as f64)
    });
    let seconds = began.elapsed().as_secs_f64();
    let cpu = (program.cpu_seconds() - cpu) / row.reports as f64 * 100_000.0;
    let (_, peak) = program.memory_mib();
    assert_eq!(program.terminate(), Some(0));
    [
        row.name.to_owned(),
        format!("{:.0}", row.reports as f64 / seconds),
        format!("{cpu:.2}"),
        format!("{idle:.0}"),
        format!("{peak:.0}"),
        format!("{:.0}", start.as_secs_f64() * 1000.0),
    ]
}

#[test]
fn figures() {
    const NONE: &str = "history.kind = \"none\"\n";
    let n = |full: usize| trial::size(full / 50, full);
    let wait = |name, config, reports| Row { name, config, policy: WAIT, reports, batch: 500 };
    let rows = [
        Row { name: "one by one, at once, history none", config: NONE, policy: AT_ONCE, reports: n(200_000), batch: 1 },
        Row {
            name: "one by one, at once, embedded history",
            config: "",
            policy: AT_ONCE,
            reports: n(200_000),
            batch: 1,
        },
        Row {
            name: "batches of 500, at once, history none",
            config: NONE,
            policy: AT_ONCE,
            reports: n(500_000),
            batch: 500,
        },
        Row {
            name: "batches of 500, at once, embedded history",
            config: "",
            policy: AT_ONCE,
            reports: n(500_000),
            batch: 500,
        },
        wait(
            "wait 50 ms, 1 in flight, one VM",
            "history.kind = \"none\"\ndetect = { workers = 1, in_flight = 1 }\n",
            n(1_000),
        ),
        wait(
            "wait 50 ms, 100 in flight, one VM",
            "history.kind = \"none\"\ndetect = { workers = 1, in_flight = 100 }\n",
            n(40_000),
        ),
        wait(
            "wait 50 ms, 1,000 in flight, one VM",
            "history.kind = \"none\"\ndetect = { workers = 1, in_flight = 1000 }\n",
            n(200_000),
        ),
        wait(
            "wait 50 ms, 2,000 in flight, one VM",
            "history.kind = \"none\"\ndetect = { workers = 1, in_flight = 2000 }\n",
            n(200_000),
        ),
        wait(
            "wait 50 ms, 10,000 in flight, 5 VMs",
            "history.kind = \"none\"\ndetect = { workers = 5, in_flight = 10000 }\n",
            n(200_000),
        ),
    ];
    println!("{:<44}{:>10}{:>14}{:>10}{:>10}{:>10}", "", "reports/s", "CPU s/100k", "idle MiB", "peak MiB", "start ms");
    for row in &rows {
        let [name, rate, cpu, idle, peak, start] = measure(row);
        println!("{name:<44}{rate:>10}{cpu:>14}{idle:>10}{peak:>10}{start:>10}");
    }
}
