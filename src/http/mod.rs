//! The one HTTP server of a process: the reports' way in, the operators' routes, metrics and probes, behind one set of limits.
//!
//! Owns the listening, the limits, the ACL and the passwords. Never decodes a report.

pub mod admin;
mod auth;
mod body;
pub mod endpoints;
mod listen;
mod probes;
mod server;
pub(crate) mod stats;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::StatusCode;
use axum::middleware;
use axum::response::Response;
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

pub use listen::Listen;
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
    pub tls_min: TlsVersion,
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

/// The oldest version of TLS that a client may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[serde(rename = "1.2")]
    V12,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    V13,
}

impl Settings {
    /// The entries of `listen` that are right; the configuration's checks tell of the others.
    pub fn listeners(&self) -> impl Iterator<Item = Listen> {
        let certificate = !self.tls_cert.as_os_str().is_empty();
        self.listen.iter().filter_map(move |text| Listen::parse(text, certificate))
    }
}

/// Reads certificate and key as [`start`] will, and forgets them.
pub(crate) fn check_tls(settings: &Settings) -> Result<(), HttpError> {
    tls::Tls::open(settings).map(|_| ())
}

/// All routes of a process, behind the passwords and the limits of a body. `receive`: the routes of that role, where it runs;
/// `endpoints`: where policies run.
pub fn router(
    settings: &Settings,
    receive: Option<Router>,
    endpoints: Option<endpoints::Endpoints>,
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
    if let Some(endpoints) = endpoints {
        router = router.merge(endpoints::router(endpoints, Arc::clone(&metrics)));
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

/// What stands in the path, or the answer where that is no text.
fn path<T>(path: Result<Path<T>, PathRejection>) -> Result<T, Box<Response>> {
    path.map(|Path(parts)| parts).map_err(|error| {
        Box::new(answer::failure(StatusCode::BAD_REQUEST, &format!("the path: {}", error.body_text())))
    })
}

fn not_found(metrics: &Metrics) -> Response {
    metrics.refused.with_label_values(&["not_found"]).inc();
    answer::failure(StatusCode::NOT_FOUND, "Not found")
}

fn not_allowed(metrics: &Metrics) -> Response {
    metrics.refused.with_label_values(&["method"]).inc();
    answer::failure(StatusCode::METHOD_NOT_ALLOWED, "this route takes another method; see Allow")
}
