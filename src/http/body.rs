//! Reads a request's body within its limits, before any handler runs.
//!
//! Owns the size, the time and the encoding: a slow or an endless sender costs one connection and no handler.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
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
    fn too_large(&self) -> Response {
        let text = format!("the body is over http.max_body ({} bytes)", self.most);
        self.refuse("too_large", StatusCode::PAYLOAD_TOO_LARGE, &text)
    }

    fn refuse(&self, reason: &'static str, status: StatusCode, text: &str) -> Response {
        self.metrics.refused.with_label_values(&[reason]).inc();
        let mut refused = answer::failure(status, text);
        // What is left of the body would be read as the next request.
        refused.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        refused
    }
}

/// Throws away up to so many bytes more. Most clients read nothing before they have sent everything, and closing the connection on
/// them would lose the answer that says why.
async fn discard(mut body: Body, most: usize) {
    let mut read = 0;
    while read <= most
        && let Some(Ok(frame)) = body.frame().await
    {
        read += frame.data_ref().map_or(0, Bytes::len);
    }
}

pub(super) async fn read(State(limits): State<Limits>, request: Request, next: Next) -> Response {
    let (parts, mut body) = request.into_parts();
    if parts.headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        let text = "Content-Encoding: only uncompressed bodies are taken";
        return limits.refuse("header", StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
    }
    // Such a client waits to be told before it sends the body, and reading would tell it to.
    let told_first = parts.headers.contains_key(header::EXPECT);
    if told_first && body.size_hint().lower() > limits.most as u64 {
        return limits.too_large();
    }
    match tokio::time::timeout(limits.timeout, Limited::new(&mut body, limits.most).collect()).await {
        Ok(Ok(body)) => next.run(Request::from_parts(parts, Body::from(body.to_bytes()))).await,
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let _ = tokio::time::timeout(limits.timeout, discard(body, limits.most)).await;
            limits.too_large()
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
