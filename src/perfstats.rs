//! How long reports waited and ran, in the buckets that clients of `/command/stats` know.
//!
//! Owns the counters. The same durations go to the histograms of [`crate::telemetry`], for everybody else.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bounds in milliseconds, and the names; the last one is open.
const BUCKETS: [(u128, &str); 5] = [(1, "0_1"), (10, "1_10"), (100, "10_100"), (1000, "100_1000"), (u128::MAX, "Slow")];

/// The counters.
#[derive(Debug, Default)]
pub struct PerfStats {
    waited: [AtomicU64; BUCKETS.len()],
    ran: [AtomicU64; BUCKETS.len()],
}

fn record(counters: &[AtomicU64], duration: Duration) {
    let millis = duration.as_millis();
    if let Some(bucket) = BUCKETS.iter().position(|(bound, _)| millis < *bound) {
        counters[bucket].fetch_add(1, Ordering::Relaxed);
    }
}

impl PerfStats {
    /// A report waited so long for a worker.
    pub fn record_wait(&self, waited: Duration) {
        record(&self.waited, waited);
    }

    /// A report's handlers ran so long.
    pub fn record_run(&self, ran: Duration) {
        record(&self.ran, ran);
    }

    /// `{"WTW_0_1": n, …, "WTR_Slow": n}`.
    pub fn to_json(&self) -> serde_json::Map<String, serde_json::Value> {
        let rows = [("WTW", &self.waited), ("WTR", &self.ran)];
        rows.iter()
            .flat_map(|(prefix, counters)| {
                BUCKETS.iter().zip(counters.iter()).map(move |((_, name), counter)| {
                    (format!("{prefix}_{name}"), counter.load(Ordering::Relaxed).into())
                })
            })
            .collect()
    }
}
