//! The one HTTP server of a process: the reports' way in, the operators' routes, metrics and probes, behind one set of limits.
//!
//! Owns the listening, the limits, the ACL and the passwords. Never decodes a report.

pub mod admin;
mod auth;
mod body;
mod probes;
mod server;
mod stats;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware;
use axum::response::Response;
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

pub use server::{HttpError, Server, start};

use crate::perfstats::PerfStats;
use crate::receive::answer;
use crate::settings::Secret;
use crate::telemetry::Metrics;

/// Section `[http]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    pub listen: Vec<String>,
    pub password: Secret,
    pub password_file: PathBuf,
    pub admin_password: Secret,
    pub admin_password_file: PathBuf,
    pub metrics_password: bool,
    pub acl: Vec<String>,
    pub tls_cert: PathBuf,
    pub tls_key: PathBuf,
    pub max_connections: usize,
    pub max_body: ByteSize,
    pub max_bodies: ByteSize,
    pub max_head: ByteSize,
    pub max_headers: usize,
    #[serde(with = "humantime_serde")]
    pub head_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
}

/// Reads certificate and key as [`start`] will, and forgets them.
pub(crate) fn check_tls(settings: &Settings) -> Result<(), HttpError> {
    tls::Tls::open(&settings.tls_cert, &settings.tls_key).map(|_| ())
}

/// All routes of a process, behind the passwords and the limits of a body. `receive`: the routes of that role, where it runs.
pub fn router(
    settings: &Settings,
    receive: Option<Router>,
    operators: admin::Services,
    perf: Arc<PerfStats>,
) -> Router {
    let metrics = Arc::clone(&operators.metrics);
    let passwords = Arc::new(auth::Passwords::new(settings, Arc::clone(&metrics)));
    let limits = body::Limits::new(settings, Arc::clone(&metrics));
    let mut router = Router::new()
        .merge(probes::router(Arc::clone(&operators.health)))
        .merge(stats::router(Arc::clone(&metrics), perf, settings.metrics_password))
        .merge(admin::router(operators, Arc::clone(&passwords)));
    if let Some(receive) = receive {
        router = router.merge(receive);
    }
    router
        .fallback({
            let metrics = Arc::clone(&metrics);
            async move || not_found(&metrics)
        })
        .method_not_allowed_fallback(async move || not_allowed(&metrics))
        .layer(middleware::from_fn_with_state(limits, body::read))
        .layer(middleware::from_fn_with_state(passwords, auth::authenticate))
}

fn not_found(metrics: &Metrics) -> Response {
    metrics.refused.with_label_values(&["not_found"]).inc();
    answer::failure(StatusCode::NOT_FOUND, "Not found")
}

fn not_allowed(metrics: &Metrics) -> Response {
    metrics.refused.with_label_values(&["method"]).inc();
    answer::failure(StatusCode::METHOD_NOT_ALLOWED, "this route takes another method; see Allow")
}
