//! `/metrics` for Prometheus and `/command/stats` for clients of the old program.
//!
//! Owns the form of the second. The numbers of both come from the same counters.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use prometheus::core::Collector;
use serde_json::{Map, Value, json};

use crate::perfstats::PerfStats;
use crate::receive::{Authenticated, answer};
use crate::telemetry::Metrics;

#[derive(Clone)]
struct Stats {
    metrics: Arc<Metrics>,
    perf: Arc<PerfStats>,
    metrics_password: bool,
    started: Instant,
}

pub(super) fn router(metrics: Arc<Metrics>, perf: Arc<PerfStats>, metrics_password: bool) -> Router {
    Router::new().route("/metrics", get(prometheus_text)).route("/command/stats", get(stats)).with_state(Stats {
        metrics,
        perf,
        metrics_password,
        started: Instant::now(),
    })
}

fn unauthorized(metrics: &Metrics) -> Response {
    metrics.refused.with_label_values(&["unauthorized"]).inc();
    answer::unauthorized("Unauthorized")
}

async fn prometheus_text(
    State(stats): State<Stats>,
    Extension(Authenticated(authenticated)): Extension<Authenticated>,
) -> Response {
    if stats.metrics_password && !authenticated {
        return unauthorized(&stats.metrics);
    }
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], stats.metrics.render()).into_response()
}

async fn stats(
    State(stats): State<Stats>,
    Extension(Authenticated(authenticated)): Extension<Authenticated>,
) -> Response {
    if !authenticated {
        return unauthorized(&stats.metrics);
    }
    stats.metrics.commands.with_label_values(&["stats"]).inc();
    answer::json(axum::http::StatusCode::OK, &all(&stats.metrics, &stats.perf, stats.started))
}

/// All of it, as an object.
pub(crate) fn all(metrics: &Metrics, perf: &PerfStats, started: Instant) -> Value {
    let usage = getrusage(UsageWho::RUSAGE_SELF);
    let millis = |time: TimeVal| time.tv_sec() * 1000 + time.tv_usec() / 1000;
    let received: u64 = metrics
        .received
        .collect()
        .iter()
        .flat_map(|family| family.get_metric().to_vec())
        .map(|metric| metric.get_counter().get_value() as u64)
        .sum();
    json!({
        "reports": received,
        "user-msec": usage.as_ref().map_or(0, |usage| millis(usage.user_time())),
        "sys-msec": usage.as_ref().map_or(0, |usage| millis(usage.system_time())),
        "uptime": started.elapsed().as_secs(),
        "perfstats": perf.to_json(),
        "commandstats": by_label(&metrics.commands),
        "customstats": by_label(&metrics.custom_stats),
    })
}

/// The counts of a family, by their label.
pub(crate) fn by_label(counters: &prometheus::IntCounterVec) -> Map<String, Value> {
    let metrics = counters.collect().into_iter().flat_map(|family| family.get_metric().to_vec());
    metrics
        .map(|metric| {
            let label = metric.get_label().first().map(|label| label.value().to_owned()).unwrap_or_default();
            (label, json!(metric.get_counter().get_value() as u64))
        })
        .collect()
}
