//! Reads a request's body within its limits, before any handler runs.
//!
//! Owns the size, the time and the encoding: a slow or an endless sender costs one connection and no handler. `http.max_body` is the only
//! bound: what is within it reaches its handler, and what is over it is refused in the form of its route.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Settings;
use crate::receive;
use crate::telemetry::Metrics;

/// What a body may be.
#[derive(Clone)]
pub(super) struct Limits {
    most: usize,
    timeout: Duration,
    /// Bytes that all bodies together may still take.
    room: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

/// A body, and the room that it takes for as long as somebody works on it.
#[derive(Default)]
struct Whole {
    chunks: Vec<Bytes>,
    size: usize,
    room: Option<OwnedSemaphorePermit>,
}

/// Why a body was not read to its end.
enum Cut {
    TooLarge,
    Broken(axum::Error),
}

impl Whole {
    /// Reads frame by frame, each when there is room for it: thousands of connections that each send as much as they may would
    /// otherwise take the memory of the whole process.
    async fn read(body: &mut Body, limits: &Limits) -> Result<Self, Cut> {
        let mut whole = Self::default();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(Cut::Broken)?.into_data() else { continue };
            whole.size += data.len();
            if whole.size > limits.most {
                return Err(Cut::TooLarge);
            }
            let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
            // The semaphore is never closed.
            if let Ok(room) = Arc::clone(&limits.room).acquire_many_owned(bytes).await {
                match &mut whole.room {
                    Some(held) => held.merge(room),
                    none => *none = Some(room),
                }
            }
            whole.chunks.push(data);
        }
        Ok(whole)
    }

    fn bytes(&mut self) -> Bytes {
        match self.chunks.len() {
            1 => self.chunks.remove(0),
            _ => std::mem::take(&mut self.chunks).concat().into(),
        }
    }
}

impl Limits {
    pub(super) fn new(settings: &Settings, metrics: Arc<Metrics>) -> Self {
        let room = usize::try_from(settings.max_bodies.as_u64()).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self {
            most: usize::try_from(settings.max_body.as_u64()).unwrap_or(usize::MAX),
            timeout: settings.body_timeout,
            room: Arc::new(Semaphore::new(room)),
            metrics,
        }
    }

    fn too_large(&self, path: &str) -> Response {
        let text = format!("the body is over http.max_body ({} bytes)", self.most);
        self.refuse(path, "too_large", StatusCode::PAYLOAD_TOO_LARGE, &text)
    }

    fn refuse(&self, path: &str, reason: &'static str, status: StatusCode, text: &str) -> Response {
        self.metrics.refused.with_label_values(&[reason]).inc();
        let mut refused = receive::refusal(path, status, text);
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
    let path = parts.uri.path();
    if parts.headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        let text = "Content-Encoding: only uncompressed bodies are taken";
        return limits.refuse(path, "header", StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
    }
    // Such a client waits to be told before it sends the body, and reading would tell it to.
    let told_first = parts.headers.contains_key(header::EXPECT);
    if told_first && body.size_hint().lower() > limits.most as u64 {
        return limits.too_large(path);
    }
    match tokio::time::timeout(limits.timeout, Whole::read(&mut body, &limits)).await {
        Ok(Ok(mut whole)) => {
            let mut request = Request::from_parts(parts, Body::from(whole.bytes()));
            // The framework has a bound of its own, of 2 MiB, at which it would refuse in plain text what was taken here.
            DefaultBodyLimit::disable().apply(&mut request);
            next.run(request).await
        }
        Ok(Err(Cut::TooLarge)) => {
            let _ = tokio::time::timeout(limits.timeout, discard(body, limits.most)).await;
            limits.too_large(path)
        }
        Ok(Err(Cut::Broken(error))) => {
            let text = format!("the body did not arrive whole: {error}");
            limits.refuse(path, "malformed", StatusCode::BAD_REQUEST, &text)
        }
        Err(_) => {
            let text = format!(
                "the body did not arrive, or there was no room for it (http.max_bodies), within http.body_timeout ({:?})",
                limits.timeout
            );
            limits.refuse(path, "time_out", StatusCode::REQUEST_TIMEOUT, &text)
        }
    }
}
