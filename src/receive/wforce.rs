//! What wforce and Dovecot send: the report webhook, the report API, and the old spelling of both.
//!
//! Owns the two ways in: a valid signature stands for the password. Dovecot's `allow` is answered and counted, never acted on.

use std::sync::Arc;

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::{Authenticated, Receiver, answer, signature};
use crate::report::Time;

#[derive(Deserialize)]
pub(super) struct Command {
    #[serde(default)]
    command: String,
}

/// `/?command=NAME`.
pub(super) async fn old_form(
    receiver: State<Arc<Receiver>>,
    authenticated: Extension<Authenticated>,
    query: Result<Query<Command>, QueryRejection>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Ok(Query(Command { command })) = query else {
        receiver.refused("malformed");
        return answer::failure(StatusCode::BAD_REQUEST, "`command`: one name is expected, as in /?command=report");
    };
    match command.as_str() {
        "report" => report(receiver, authenticated, headers, body).await,
        "allow" => allow(receiver, authenticated).await,
        _ => {
            receiver.refused("not_found");
            answer::failure(StatusCode::NOT_FOUND, "Not found")
        }
    }
}

/// Dovecot with `check_before_auth` asks before it checks the password: it is told to go on.
pub(super) async fn allow(
    State(receiver): State<Arc<Receiver>>,
    Extension(Authenticated(authenticated)): Extension<Authenticated>,
) -> Response {
    if !authenticated {
        return receiver.unauthorized("unauthorized", "Unauthorized");
    }
    receiver.metrics.allow_ignored.inc();
    answer::json(StatusCode::OK, &json!({ "status": 0, "msg": "" }))
}

/// `/command/report`, by hand, by Dovecot, or as wforce's webhook.
pub(super) async fn report(
    State(receiver): State<Arc<Receiver>>,
    Extension(Authenticated(authenticated)): Extension<Authenticated>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let event = headers.get("x-wforce-event").map(|event| event.as_bytes());
    if event.is_some() && !receiver.webhook_secrets.is_empty() {
        let given = headers.get("x-wforce-signature").map_or(&b""[..], |signature| signature.as_bytes());
        if !signature::fits(&receiver.webhook_secrets, &body, given) {
            let text = "X-Wforce-Signature is missing or fits none of receive.webhook_secrets";
            return receiver.unauthorized("signature", text);
        }
    } else if !authenticated {
        return receiver.unauthorized("unauthorized", "Unauthorized");
    }
    match event {
        Some(b"ping") => return answer::ok(),
        None | Some(b"report") => {}
        Some(_) => {
            receiver.refused("header");
            return answer::failure(StatusCode::BAD_REQUEST, "X-Wforce-Event: only `report` and `ping` are taken here");
        }
    }
    receiver.metrics.commands.with_label_values(&["report"]).inc();
    let message = match receiver.message(&body, Time::now()) {
        Ok(message) => message,
        Err(malformed) => return answer::failure(StatusCode::BAD_REQUEST, &malformed.to_string()),
    };
    let form = if event.is_some() { "webhook" } else { "report" };
    match receiver.publish(vec![message], form).await {
        Ok(()) => answer::ok(),
        Err(refused) => *refused,
    }
}
