//! POST `/v1/reports`: many reports in one request, one JSON object a line.
//!
//! Owns the answer: how many were accepted, and each line that was not, with its reason. The lines around a bad one go on.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Authenticated, Receiver, answer};
use crate::report::Time;

/// The refused lines that an answer names; the further ones are only counted, so that a bad batch is not answered with a larger one.
const MAX_NAMED: usize = 1000;

/// The lines that are not empty, with their numbers, counted from 0.
fn lines(body: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let lines = body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).enumerate();
    lines.filter(|(_, line)| !line.is_empty())
}

pub(super) async fn reports(
    State(receiver): State<Arc<Receiver>>,
    Extension(Authenticated(authenticated)): Extension<Authenticated>,
    body: Bytes,
) -> Response {
    if !authenticated {
        return receiver.unauthorized("unauthorized", "Unauthorized");
    }
    let most = receiver.max_reports;
    if lines(&body).take(most + 1).count() > most {
        receiver.refused("too_large");
        return answer::failure(StatusCode::PAYLOAD_TOO_LARGE, &super::too_many(most));
    }
    let received = Time::now();
    let (mut messages, mut refused, mut unnamed) = (Vec::new(), Vec::<Value>::new(), 0_usize);
    for (index, line) in lines(&body) {
        match receiver.message(line, received) {
            Ok(message) => messages.push(message),
            Err(_) if refused.len() >= MAX_NAMED => unnamed += 1,
            Err(malformed) => refused.push(json!({ "line": index + 1, "reason": malformed.to_string() })),
        }
    }
    let accepted = messages.len();
    if accepted > 0
        && let Err(refused) = receiver.publish(messages, "batch").await
    {
        return *refused;
    }
    let status = if accepted > 0 { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    let mut body = json!({ "accepted": accepted, "refused": refused });
    if unnamed > 0 {
        body["refused_and_not_named"] = unnamed.into();
    }
    if accepted == 0 {
        body["status"] = "failure".into();
        body["reason"] = match refused.first() {
            Some(first) => format!(
                "no line was accepted; line {}: {}",
                first["line"],
                first["reason"].as_str().unwrap_or_default()
            ),
            None => {
                receiver.refused("malformed");
                "the body has no line".to_owned()
            }
        }
        .into();
    }
    answer::json(status, &body)
}
