//! How many reports wait on searches at once, how fast that goes, and what a report costs while it waits: an old configuration whose
//! report function searches by its module `elasticsearch`, against an HTTP server that answers after 50 ms.
//!
//! The server has a core's worth of the same machine: at the end of the curve both are busy. The small form runs with the tests, where they
//! have less than a core each: it waits for ten times as long, so that the waits make the rates and not the machine.
//! `tests/trials/search` prints the whole curve.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;
#[path = "support/web.rs"]
mod web;

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::runtime::Runtime;

use support::program::{Program, Site};
use support::sender::{Progress, send_all};
use support::trial;
use web::Slow;

const PATIENCE: Duration = Duration::from_secs(300);
/// Some hits, as a search for the last logins of an account has them.
const ANSWER: &str = r#"{"took":3,"timed_out":false,"_shards":{"total":1,"successful":1,"skipped":0,"failed":0},"hits":{"total":{"value":2,"relation":"eq"},"max_score":null,"hits":[
{"_index":"logins","_id":"a","_score":null,"_source":{"login":"user","remote":"192.0.2.7","t":1700000000,"success":true,"geoip":{"country_code":"NL"}}},
{"_index":"logins","_id":"b","_score":null,"_source":{"login":"user","remote":"192.0.2.8","t":1700000060,"success":true,"geoip":{"country_code":"NL"}}}]}}"#;

/// An old configuration whose reports each make one search.
fn site(server: &Slow, workers: usize, in_flight: usize) -> Site {
    let site = Site::new(&format!(
        "policy.in_flight = {in_flight}\npolicy.time_limit = \"300s\"\n\
         policy.http = {{ in_flight = {all}, timeout = \"120s\" }}\n\
         detect = {{ workers = {workers}, in_flight = {all} }}\nhistory.kind = \"none\"\n",
        all = workers * in_flight
    ));
    let conf = format!(
        r#"
        local client = require("elasticsearch").client {{ hosts = {{ {{ host = "127.0.0.1", port = {} }} }} }}
        setReport(function(lt)
            local data, err = client:search {{
                index = "logins-*",
                body = {{ size = 10, sort = {{ {{ t = "desc" }} }}, query = {{ bool = {{ filter = {{
                    {{ term = {{ login = lt.login }} }}, {{ range = {{ t = {{ gte = "now-30d" }} }} }} }} }} }} }},
            }}
            if err then error(err) end
            if data.hits.total.value ~= #data.hits.hits then error("the answer is not whole") end
        end)"#,
        server.port()
    );
    let file = site.folder.path().join("trackalert.conf");
    std::fs::write(&file, conf).unwrap();
    let mut config = std::fs::File::options().append(true).open(site.config()).unwrap();
    writeln!(config, "policy.legacy_config = \"{}\"", file.display()).unwrap();
    site
}

fn reports(total: usize) -> Vec<String> {
    let t = trial::now() - 60.0;
    let one = |n: usize| {
        json!({ "t": t, "login": format!("user{n:06}@example.net"), "remote": format!("192.0.2.{}", n % 250), "success": true,
                "protocol": "imap", "attrs": { "cos": "premium" } })
        .to_string()
    };
    (0..total).map(one).collect()
}

fn handled(program: &Program) -> usize {
    program.metric("trackalert_handled_reports_total").unwrap_or_default() as usize
}

struct Row {
    workers: usize,
    in_flight: usize,
    rate: f64,
    cost: f64,
    /// The most handlers that ran at once, as far as was looked.
    running: usize,
    /// The most requests that waited at the server at once. Fewer, where they are not sent faster than they are answered.
    waiting: usize,
}

/// So many reports, queued before the clock runs.
fn row(runtime: &Runtime, server: &Slow, workers: usize, in_flight: usize, total: usize) -> Row {
    let site = site(server, workers, in_flight);
    let mut receive = site.command();
    receive.args(["--roles", "receive"]);
    let program = site.start_command(receive);
    runtime.block_on(send_all(&site.address, reports(total), 1000, Arc::new(Progress::default())));
    assert_eq!(program.terminate(), Some(0));
    server.most();
    let mut detect = site.command();
    detect.args(["--roles", "detect"]);
    let program = site.start_command(detect);
    let (mut first, mut running) = (None, 0.0_f64);
    program.wait_until("all handled", PATIENCE, |program| {
        running = running.max(program.metric("trackalert_in_flight").unwrap_or_default());
        let now = handled(program);
        if now > 0 && first.is_none() {
            first = Some((now, Instant::now(), program.cpu_seconds()));
        }
        now >= total
    });
    let (before, began, cpu) = first.unwrap();
    let (seconds, cpu, done) = (began.elapsed().as_secs_f64(), program.cpu_seconds() - cpu, (total - before) as f64);
    assert_eq!(handled(&program), total, "a report was handled twice");
    assert_eq!(program.terminate(), Some(0));
    let (running, waiting) = (running as usize, server.most());
    Row { workers, in_flight, rate: done / seconds, cost: cpu / done * 100_000.0, running, waiting }
}

#[test]
fn searches_wait_side_by_side_on_one_machine_and_over_several() {
    let runtime = Runtime::new().unwrap();
    let wait = trial::size(Duration::from_millis(500), Duration::from_millis(50));
    let server = runtime.block_on(Slow::start(wait, ANSWER));
    let rows = trial::size(
        vec![(1, 1, 10), (1, 100, 1_000), (1, 2000, 10_000)],
        vec![
            (1, 1, 200),
            (1, 10, 2_000),
            (1, 100, 20_000),
            (1, 500, 60_000),
            (1, 1000, 100_000),
            (1, 2000, 100_000),
            (2, 2000, 100_000),
            (5, 2000, 200_000),
        ],
    );
    println!(
        "{:>8}{:>12}{:>14}{:>12}{:>12}{:>12}",
        "machines", "in flight", "at the server", "reports/s", "of ideal", "CPU s/100k"
    );
    let mut seen = Vec::new();
    for (workers, in_flight, total) in rows {
        let row = row(&runtime, &server, workers, in_flight, total);
        let ideal = (row.workers * row.in_flight) as f64 / wait.as_secs_f64();
        println!(
            "{:>8}{:>12}{:>14}{:>12.0}{:>12.2}{:>12.2}",
            row.workers,
            row.running,
            row.waiting,
            row.rate,
            row.rate / ideal,
            row.cost
        );
        seen.push(row);
    }
    let at = |in_flight| seen.iter().find(|row| row.in_flight == in_flight).unwrap();
    for row in &seen {
        let limit = row.workers * row.in_flight;
        assert!(row.waiting <= limit, "{} waited at once with a limit of {limit}", row.waiting);
        assert!(row.running * 10 >= limit * 9, "only {} of {limit} were in flight", row.running);
    }
    assert!(at(100).rate > 30.0 * at(1).rate, "a hundred at once are not faster by a factor of thirty");
    assert!(at(2000).rate > at(100).rate, "two thousand at once are slower than a hundred");
}

/// What the program takes of memory with so many reports waiting, in KiB. They never end: it is killed.
fn resident(program: &Program, waiting: usize) -> f64 {
    program.wait_until("the reports to wait", PATIENCE, |program| {
        program.metric("trackalert_in_flight") == Some(waiting as f64)
    });
    program.anonymous_kib()
}

/// KiB for one report among ten thousand that wait.
fn each(runtime: &Runtime, site: &Site, waiting: impl Fn(usize)) -> f64 {
    let program = site.start();
    let mut all = reports(10_000);
    let rest = all.split_off(1_000);
    let send = |reports| runtime.block_on(send_all(&site.address, reports, 500, Arc::new(Progress::default())));
    send(all);
    waiting(1_000);
    let few = resident(&program, 1_000);
    send(rest);
    waiting(10_000);
    let many = resident(&program, 10_000);
    program.kill();
    (many - few) / 9_000.0
}

/// The least of what is measured, three times at most while it is over the bound: what else takes memory meanwhile, as what Lua has not
/// collected yet, only adds.
fn least(most: f64, measure: impl Fn() -> f64) -> f64 {
    let mut least = f64::MAX;
    for _ in 0..3 {
        least = least.min(measure());
        if least < most {
            break;
        }
    }
    least
}

#[test]
fn report_that_waits_takes_little_memory() {
    const WITH: f64 = 64.0;
    const WITHOUT: f64 = 8.0;
    let runtime = Runtime::new().unwrap();
    let with = least(WITH, || {
        let server = runtime.block_on(Slow::start(Duration::from_secs(600), ANSWER));
        each(&runtime, &site(&server, 5, 2000), |count| {
            let began = Instant::now();
            while server.waiting() < count {
                assert!(began.elapsed() < PATIENCE, "only {} requests came", server.waiting());
                std::thread::park_timeout(Duration::from_millis(10));
            }
        })
    });
    let without = least(WITHOUT, || {
        let site = Site::new(
            "policy.time_limit = \"900s\"\nhistory.kind = \"none\"\ndetect = { workers = 5, in_flight = 10000 }\n",
        );
        site.policy("sleeper", "function report(lt) time.sleep(600) end");
        each(&runtime, &site, |_| {})
    });
    println!("KiB for a report that waits: {with:.1} with its HTTP connection, {without:.1} without one");
    assert!(with < WITH, "{with:.1} KiB with the HTTP connection");
    assert!(without < WITHOUT, "{without:.1} KiB without an HTTP connection");
}
