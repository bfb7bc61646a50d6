//! The role `receive`: reports come in over HTTP, are checked and stamped, and are answered when the queue has them on disk.
//!
//! ```text
//! body ─▶ decode (400 names the field) ─▶ stamp t and id, once ─▶ reports queue, keyed by login ─▶ 2xx
//!                                                                     │ full, or out: `spool`
//!                                                                     └─▶ 503 with Retry-After
//! ```
//!
//! On its own it is the bridge from wforce to a broker. `spool` stands between it and a broker that is down, `rekey` moves reports that
//! came to Kafka another way; both `carry` messages from one queue into another.
//!
//! Owns what each form of request means. Never looks at a password (the HTTP server says whether it was right) and never runs a policy.

pub mod answer;
mod batch;
mod carry;
mod kafka_rest;
mod readiness;
pub mod rekey;
mod signature;
pub mod spool;
mod wforce;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use self::readiness::Readiness;
use crate::decode::{Decoded, Limits, Malformed, decode};
use crate::health::Health;
use crate::queue::{Message, Publisher, QueueError};
use crate::report::Time;
use crate::settings::Secret;
use crate::telemetry::Metrics;

/// The most that `receive.max_reports` may be.
pub const MAX_REPORTS: usize = 1_000_000;

/// Section `[receive]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    pub webhook_secrets: Vec<Secret>,
    pub webhook_secrets_file: PathBuf,
    pub max_reports: usize,
    pub max_report: ByteSize,
    pub max_field: ByteSize,
    pub max_attrs: usize,
    #[serde(with = "humantime_serde")]
    pub max_skew: Duration,
    #[serde(with = "humantime_serde")]
    pub publish_timeout: Duration,
    pub spool: bool,
    #[serde(with = "humantime_serde")]
    pub spool_after: Duration,
    pub spool_max_bytes: ByteSize,
    pub spool_logins: usize,
    #[serde(with = "humantime_serde")]
    pub spool_retry_most: Duration,
    pub rekey_from: String,
}

impl Settings {
    /// The limits of one report.
    pub fn limits(&self) -> Limits {
        let bytes = |size: ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        Limits { max_report: bytes(self.max_report), max_field: bytes(self.max_field), max_attrs: self.max_attrs }
    }
}

/// Whether the request came with the right password, or none is asked for. The HTTP server puts it beside each request.
#[derive(Debug, Clone, Copy)]
pub struct Authenticated(pub bool);

/// Makes the message for the reports queue out of what a sender wrote, whichever way it came.
struct Stamper {
    limits: Limits,
    max_skew: Duration,
    metrics: Arc<Metrics>,
}

impl Stamper {
    fn new(settings: &Settings, metrics: Arc<Metrics>) -> Self {
        Self { limits: settings.limits(), max_skew: settings.max_skew, metrics }
    }

    /// Decodes and stamps one report that was received at this time.
    fn message(&self, body: &[u8], received: Time) -> Result<Message, Malformed> {
        let decoded: Decoded = decode(body, &self.limits)?;
        let dropped = decoded.dropped;
        let stamped = decoded.stamp(received, self.max_skew);
        let (size, most) = (stamped.body.len(), self.limits.max_report);
        // The queue's reader has the same limit: what only just fits here would be answered 2xx and then be a dead letter.
        if size > most {
            let reason = format!("{size} bytes with every field written out; receive.max_report is {most}");
            return Err(Malformed { field: String::new(), reason });
        }
        self.metrics.dropped_values.inc_by(u64::from(dropped));
        self.metrics.skewed.inc_by(u64::from(stamped.skewed));
        Ok(Message::new(stamped.report.login, stamped.body))
    }
}

/// What every form shares.
pub struct Receiver {
    webhook_secrets: Vec<Secret>,
    stamper: Stamper,
    /// Of one request.
    max_reports: usize,
    publish_timeout: Duration,
    publisher: Arc<dyn Publisher>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
}

impl Receiver {
    /// A receiver that writes to `publisher`.
    pub fn new(settings: &Settings, publisher: Arc<dyn Publisher>, metrics: Arc<Metrics>, health: Arc<Health>) -> Self {
        Self {
            webhook_secrets: settings.webhook_secrets.clone(),
            stamper: Stamper::new(settings, Arc::clone(&metrics)),
            max_reports: settings.max_reports,
            publish_timeout: settings.publish_timeout,
            publisher,
            metrics,
            readiness: Readiness::new(health),
        }
    }

    /// Decodes and stamps one report: the message for the queue.
    fn message(&self, body: &[u8], received: Time) -> Result<Message, Malformed> {
        self.stamper.message(body, received).inspect_err(|_| self.refused("malformed"))
    }

    /// Resolves when the messages are on disk. An error is the answer for the client.
    async fn publish(&self, messages: Vec<Message>, form: &'static str) -> Result<(), Box<Response>> {
        let (began, count) = (Instant::now(), messages.len() as u64);
        let error = match tokio::time::timeout(self.publish_timeout, self.publisher.publish(messages)).await {
            Ok(Ok(())) => {
                self.metrics.publish.observe(began.elapsed().as_secs_f64());
                self.metrics.received.with_label_values(&[form]).inc_by(count);
                self.readiness.accepted();
                return Ok(());
            }
            Ok(Err(error)) => error,
            Err(_) => QueueError::Unavailable {
                queue: "reports".to_owned(),
                reason: "it did not confirm within receive.publish_timeout".to_owned(),
            },
        };
        let text = error.to_string();
        Err(Box::new(match error {
            QueueError::TooLarge { .. } => {
                self.refused("too_large");
                answer::failure(StatusCode::PAYLOAD_TOO_LARGE, &text)
            }
            QueueError::Full { retry_after, .. } => {
                self.refused("queue_full");
                self.readiness.refused(retry_after);
                answer::unavailable(&text, retry_after)
            }
            QueueError::Unavailable { .. } | QueueError::Closed(_) => {
                self.refused("queue_unavailable");
                let retry_after = Duration::from_secs(1);
                self.readiness.refused(retry_after);
                answer::unavailable(&text, retry_after)
            }
        }))
    }

    fn refused(&self, reason: &'static str) {
        self.metrics.refused.with_label_values(&[reason]).inc();
    }

    fn unauthorized(&self, reason: &'static str, text: &str) -> Response {
        self.refused(reason);
        answer::unauthorized(text)
    }
}

/// Why a request is refused as a whole.
fn too_many(most: usize) -> String {
    format!("more than {most} reports in one request (receive.max_reports); send them in several")
}

/// A refusal in the form of the route of a path, for whoever refuses a request before that route has it.
pub fn refusal(path: &str, status: StatusCode, text: &str) -> Response {
    if path.starts_with(kafka_rest::PATH) { kafka_rest::error(status, text) } else { answer::failure(status, text) }
}

/// The routes of this role.
pub fn router(receiver: Arc<Receiver>) -> Router {
    Router::new()
        .route("/command/report", post(wforce::report))
        .route("/command/allow", post(wforce::allow))
        .route("/", post(wforce::old_form))
        .route("/topics/{topic}", post(kafka_rest::records))
        .route("/v1/reports", post(batch::reports))
        .with_state(receiver)
}
