//! The embedded history: how many reports a second it takes, what one costs on disk, how quick the question of a policy is.
//!
//! `cargo bench --bench history`; under a minute.

#![allow(
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark says what it found, or that it cannot run, and ends"
)]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use futures_util::StreamExt;
use futures_util::stream::iter;
use serde_json::json;
use tempfile::TempDir;
use trackalert::history::embedded::EmbeddedHistory;
use trackalert::history::{History, Kind, Search, Settings};
use trackalert::report::{Geo, LoginReport, ReportId, Time};
use trackalert::telemetry::Metrics;

/// 2026-03-01 in seconds.
const START: u64 = 1_772_323_200;
const DAYS: u64 = 30;

fn settings() -> Settings {
    Settings {
        kind: Kind::Embedded,
        retention_days: 100_000,
        commit_every: Duration::from_secs(1),
        commit_at: 20_000,
        max_hits: 10_000,
        max_buckets: 65_536,
        writer_memory: ByteSize::mib(64),
        search_timeout: Duration::from_secs(10),
    }
}

/// A number that looks random, the same in every run.
fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (n ^ (n >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 11
}

fn report(n: u64, seconds: f64) -> LoginReport {
    let login = mix(n) % 20_000;
    let source = mix(login * 7 + n % 3);
    let bad = mix(n + 1).is_multiple_of(12);
    let mut report = LoginReport {
        id: ReportId::default(),
        t: Time::from_seconds(seconds).unwrap_or_default(),
        login: format!("user{login}@example.com"),
        remote: std::net::Ipv4Addr::new(198, 18, (source >> 8) as u8, source as u8).into(),
        pwhash: format!("{:04x}", login % 4096),
        success: !bad,
        policy_reject: false,
        fail_type: if bad { "credentials".to_owned() } else { String::new() },
        session_id: format!("{:016x}", mix(n + 2)),
        protocol: ["imap", "imap", "pop3", "smtp", "http"][(login % 5) as usize].to_owned(),
        tls: true,
        device_id: format!("\"name\" \"Client {}\" \"version\" \"{}.2\" \"os\" \"Linux\"", login % 40, login % 7),
        device_attrs: vec![
            ("imapc.family".to_owned(), format!("Client {}", login % 40)),
            ("os.family".to_owned(), "Linux".to_owned()),
        ],
        attrs: vec![("cos".to_owned(), ["gold", "silver"][(login % 2) as usize].to_owned())],
        attrs_mv: Vec::new(),
        parsed_device: std::sync::OnceLock::new(),
        geo: Geo {
            country: Some(["DE", "NL", "FR", "IT"][(source % 4) as usize].to_owned()),
            city: Some(format!("City {}", source % 30)),
            location: Some((50.0 + (source % 40) as f64 / 10.0, 8.0 + (source % 30) as f64 / 10.0)),
            asn: Some(64_500 + (source % 30) as u32),
            as_org: Some(format!("Network {}", source % 30)),
        },
    };
    report.stamp();
    report
}

async fn store(history: &EmbeddedHistory, reports: Vec<Arc<LoginReport>>) {
    let mut stored = iter(reports).map(|report| history.store(report)).buffer_unordered(50_000);
    while let Some(stored) = stored.next().await {
        assert!(stored.is_ok(), "{stored:?}");
    }
}

fn size(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|e| if e.path().is_dir() { size(&e.path()) } else { e.metadata().map_or(0, |m| m.len()) }).sum()
}

fn open(dir: &Path) -> Arc<EmbeddedHistory> {
    match EmbeddedHistory::open(dir, &settings(), Arc::new(Metrics::new())) {
        Ok(history) => history,
        Err(error) => panic!("{error}"),
    }
}

fn cpu_seconds() -> f64 {
    nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
        let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
        seconds(usage.user_time()) + seconds(usage.system_time())
    })
}

fn history(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let Ok(runtime) = runtime else { panic!("no runtime") };
    let Ok(dir) = TempDir::new() else { panic!("no folder") };

    let history = runtime.block_on(async { open(dir.path()) });
    let count = DAYS * 10_000;
    let all: Vec<_> = (0..count)
        .map(|n| Arc::new(report(n, START as f64 + n as f64 * (DAYS * 86_400) as f64 / count as f64)))
        .collect();
    let (started, cpu) = (Instant::now(), cpu_seconds());
    runtime.block_on(store(&history, all));
    let (took, cpu) = (started.elapsed(), cpu_seconds() - cpu);
    println!(
        "stored {count} reports over {DAYS} days in {took:.1?}: {:.0} a second, {:.1} µs of CPU each",
        count as f64 / took.as_secs_f64(),
        cpu * 1e6 / count as f64
    );
    runtime.block_on(history.close());
    println!("{} bytes on disk each", size(dir.path()) / count);

    let history = runtime.block_on(async { open(dir.path()) });
    let now = Time::from_seconds((START + DAYS * 86_400) as f64).unwrap_or_default();
    let mut search = |name: &str, body: serde_json::Value| {
        let search = Search { body, now, up_to: Some(now), without: None };
        criterion.bench_function(name, |bench| {
            bench.iter(|| assert!(black_box(runtime.block_on(history.search(search.clone()))).is_ok()));
        });
    };
    let week = json!({"range": {"@timestamp": {"gte": "now-7d"}}});
    search(
        "one login, 7 days, by country and addresses",
        json!({
            "size": 0,
            "query": {"bool": {"filter": [{"term": {"login": "user77@example.com"}}, week]}},
            "aggs": {"countries": {"terms": {"field": "geoip.country_code2"}}, "addresses": {"cardinality": {"field": "remote"}}},
        }),
    );
    search("one login, the last hit", json!({"size": 1, "query": {"term": {"login": "user77@example.com"}}}));
    search(
        "country and distinct logins, 7 days",
        json!({
            "size": 0, "query": week,
            "aggs": {"countries": {"terms": {"field": "geoip.country_code2"}, "aggs": {"logins": {"cardinality": {"field": "login"}}}}},
        }),
    );
    search("by country, all", json!({"size": 0, "aggs": {"countries": {"terms": {"field": "geoip.country_code2"}}}}));
    search(
        "addresses by failures, all",
        json!({"size": 0, "query": {"term": {"success": false}}, "aggs": {"from": {"terms": {"field": "remote"}}}}),
    );
    runtime.block_on(history.close());

    criterion.bench_function("store 40,000 reports of one day", |bench| {
        bench.iter_batched(
            || {
                let dir = TempDir::new();
                let reports = (0..40_000).map(|n| Arc::new(report(n, (START + n) as f64))).collect();
                (dir, reports)
            },
            |(dir, reports): (std::io::Result<TempDir>, Vec<_>)| {
                let Ok(dir) = dir else { panic!("no folder") };
                runtime.block_on(async {
                    let history = open(dir.path());
                    store(&history, reports).await;
                    history.close().await;
                });
            },
            BatchSize::PerIteration,
        );
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    targets = history
}
criterion_main!(benches);
