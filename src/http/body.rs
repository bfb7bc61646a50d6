//! Reads a request's body within its limits, before any handler runs.
//!
//! Owns the size, the time and the encoding: a slow or an endless sender costs one connection and no handler.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::receive::answer;
use crate::telemetry::Metrics;

/// What a body may be.
#[derive(Clone)]
pub(super) struct Limits {
    pub(super) most: usize,
    pub(super) timeout: Duration,
    pub(super) metrics: Arc<Metrics>,
}

impl Limits {
    fn refuse(&self, reason: &'static str, status: StatusCode, text: &str) -> Response {
        self.metrics.refused.with_label_values(&[reason]).inc();
        let mut refused = answer::failure(status, text);
        // What is left of the body would be read as the next request.
        refused.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        refused
    }
}

pub(super) async fn read(State(limits): State<Limits>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    if parts.headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        let text = "Content-Encoding: only uncompressed bodies are taken";
        return limits.refuse("header", StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
    }
    match tokio::time::timeout(limits.timeout, Limited::new(body, limits.most).collect()).await {
        Ok(Ok(body)) => next.run(Request::from_parts(parts, Body::from(body.to_bytes()))).await,
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let text = format!("the body is over http.max_body ({} bytes)", limits.most);
            limits.refuse("too_large", StatusCode::PAYLOAD_TOO_LARGE, &text)
        }
        Ok(Err(error)) => {
            limits.refuse("malformed", StatusCode::BAD_REQUEST, &format!("the body did not arrive whole: {error}"))
        }
        Err(_) => {
            let text = format!("the body did not arrive within http.body_timeout ({:?})", limits.timeout);
            limits.refuse("time_out", StatusCode::REQUEST_TIMEOUT, &text)
        }
    }
}
