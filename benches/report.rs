//! One report on its way, as shares of a yardstick that each machine has: reading the same 442 bytes into a `serde_json::Value`.
//! Times differ from machine to machine and from minute to minute; the shares, which it prints at its end, hardly do.
//!
//! `cargo bench --bench report`; half a minute, with `-- --quick` some seconds. Never opens a store: `benches/history.rs` does.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a benchmark that cannot run says so and ends")]
#![allow(unreachable_pub, clippy::type_complexity, reason = "the machine is that of tests/policy.rs")]

#[path = "../tests/support/policy.rs"]
mod policy;
#[path = "../tests/support/stores.rs"]
mod stores;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use policy::Bench;
use trackalert::decode::{Limits, decode};
use trackalert::report::Time;

/// As wforce's report webhook sends it.
const REPORT: &str = concat!(
    r#"{"attrs":{"cos":"gold","server":"mx-1"},"device_attrs":{"imapc.family":"Thunderbird","imapc.major":"128","os.family":"Linux"},"#,
    r#""device_id":"\"name\" \"Thunderbird\" \"version\" \"128.5.0esr\" \"os\" \"Linux\"","fail_type":"","#,
    r#""login":"ann.example@example.com","policy_reject":false,"protocol":"imap","pwhash":"5a5f","#,
    r#""remote":"198.51.100.77","session_id":"8f3a2b1c9d0e4f5a","success":true,"t":1772323200.123456,"tls":true,"#,
    r#""type":"wforce_report"}"#
);
/// `receive.*` of the default configuration.
const LIMITS: Limits = Limits { max_report: 64 << 10, max_field: 4 << 10, max_attrs: 256 };
const MAX_SKEW: Duration = Duration::from_secs(600);
const RECEIVED: Time = Time::from_micros(1_772_323_201_000_000);

const YARDSTICK: &str = "yardstick: serde_json::Value";
const SIX_FIELDS: &str = "local all = { lt.login, lt.remote, lt.success, lt.protocol, lt.t, lt.attrs }";

/// What was measured: a name, and the fastest sample's time for one.
#[derive(Default)]
struct Shares(Vec<(&'static str, f64)>);

impl Shares {
    fn measure<T>(
        &mut self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        name: &'static str,
        mut work: impl FnMut() -> T,
    ) {
        let mut fastest = f64::INFINITY;
        group.bench_function(name, |bench| {
            bench.iter_custom(|times| {
                let began = Instant::now();
                for _ in 0..times {
                    black_box(work());
                }
                let took = began.elapsed();
                fastest = fastest.min(took.as_nanos() as f64 / times as f64);
                took
            });
        });
        // A filter on the command line may leave it out.
        if fastest.is_finite() {
            self.0.push((name, fastest));
        }
    }

    fn print(&self) {
        let Some((_, yardstick)) = self.0.iter().find(|(name, _)| *name == YARDSTICK) else { return };
        for (name, time) in &self.0 {
            println!("{:5.2} × the yardstick ({time:5.0} ns at best): {name}", time / yardstick);
        }
    }
}

fn report(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bytes = black_box(REPORT.as_bytes());
    assert_eq!(bytes.len(), 442);
    let read = || decode(bytes, &LIMITS).unwrap_or_else(|error| panic!("{error}"));
    let mut stamped = read().stamp(RECEIVED, MAX_SKEW).report;
    let shared = Arc::new(stamped.clone());

    let mut group = criterion.benchmark_group("a report of 442 bytes");
    let mut shares = Shares::default();
    shares.measure(&mut group, YARDSTICK, || {
        serde_json::from_slice::<serde_json::Value>(bytes).unwrap_or_else(|error| panic!("{error}"))
    });
    shares.measure(&mut group, "decode", read);
    shares.measure(&mut group, "stamp", || stamped.stamp());
    let mut call = |name, handler: &str| {
        let bench = Bench::handler(handler);
        shares.measure(&mut group, name, || {
            runtime.block_on(bench.vm.run(0, &shared)).unwrap_or_else(|failure| panic!("{failure}"))
        });
    };
    call("a policy that returns at once", "");
    call("a policy that reads 6 fields of lt", SIX_FIELDS);
    group.finish();
    shares.print();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    targets = report
}
criterion_main!(benches);
