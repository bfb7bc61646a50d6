//! The forms of answers that clients rely on.
//!
//! Owns their JSON. Every answer that is not well says why in `reason`, and every body is valid JSON.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};

/// An answer with a JSON body.
pub fn json(status: StatusCode, body: &Value) -> Response {
    let mut answer = Response::new(Body::from(body.to_string()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// `{"status":"ok"}`.
pub fn ok() -> Response {
    json(StatusCode::OK, &json!({ "status": "ok" }))
}

/// `{"status":"failure","reason":"…"}`.
pub fn failure(status: StatusCode, reason: &str) -> Response {
    json(status, &json!({ "status": "failure", "reason": reason }))
}

/// 401 with the challenge that the old program sends.
pub fn unauthorized(reason: &str) -> Response {
    let mut answer = failure(StatusCode::UNAUTHORIZED, reason);
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("basic realm=\"wforce\""));
    answer
}

/// 503 with the number of seconds after which to try again.
pub fn unavailable(reason: &str, retry_after: std::time::Duration) -> Response {
    let mut answer = failure(StatusCode::SERVICE_UNAVAILABLE, reason);
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after.as_secs().max(1)));
    answer
}
