//! Custom endpoints: POST `/command/NAME`, answered by a function that a policy of the old program has registered.
//!
//! Owns their form, which clients of the old program know. Never knows who runs the function.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};

use crate::decode::{self, Attributes, Limits};
use crate::receive::{Authenticated, answer};
use crate::telemetry::Metrics;

/// When whoever was refused is to ask again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why an endpoint gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unanswered {
    /// There is none of this name.
    Unknown,
    /// Too many are asked for at once: to be asked again. For people.
    Busy(String),
    /// It failed; for people.
    Failed(String),
}

/// Whether it went well, and what goes back.
pub type Answered = Result<(bool, Map<String, Value>), Unanswered>;

/// Runs the endpoint of a name.
pub type Run = Arc<dyn Fn(String, Attributes) -> BoxFuture<'static, Answered> + Send + Sync>;

/// What the route works with.
#[derive(Clone)]
pub struct Endpoints {
    /// Runs one.
    pub run: Run,
    /// What the attributes may be: as those of a report.
    pub limits: Limits,
}

#[derive(Clone)]
struct Shared {
    endpoints: Endpoints,
    metrics: Arc<Metrics>,
}

pub(super) fn router(endpoints: Endpoints, metrics: Arc<Metrics>) -> Router {
    // There is no command of any name that takes another method.
    let other = Arc::clone(&metrics);
    let route = post(custom).fallback(async move || super::not_found(&other));
    Router::new().route("/command/{name}", route).with_state(Shared { endpoints, metrics })
}

async fn custom(
    State(shared): State<Shared>,
    Extension(Authenticated(authenticated)): Extension<Authenticated>,
    name: Result<Path<String>, PathRejection>,
    body: Bytes,
) -> Response {
    let refused = |reason: &str| shared.metrics.refused.with_label_values(&[reason]).inc();
    if !authenticated {
        refused("unauthorized");
        return answer::unauthorized("Unauthorized");
    }
    let name = match super::path(name) {
        Ok(name) => name,
        Err(answer) => {
            refused("malformed");
            return *answer;
        }
    };
    // A client that has nothing to say may send nothing.
    let body = if body.trim_ascii().is_empty() { &b"{}"[..] } else { &body[..] };
    let attributes = match decode::attributes(body, &shared.endpoints.limits) {
        Ok(attributes) => attributes,
        Err(malformed) => {
            refused("malformed");
            return answer::failure(StatusCode::BAD_REQUEST, &malformed.to_string());
        }
    };
    match (shared.endpoints.run)(name, attributes).await {
        Ok((success, attrs)) => {
            shared.metrics.commands.with_label_values(&["custom"]).inc();
            answer::json(StatusCode::OK, &json!({ "success": success, "r_attrs": attrs }))
        }
        Err(Unanswered::Unknown) => super::not_found(&shared.metrics),
        Err(Unanswered::Busy(reason)) => {
            refused("busy");
            answer::unavailable(&reason, RETRY_AFTER)
        }
        Err(Unanswered::Failed(reason)) => {
            shared.metrics.commands.with_label_values(&["custom"]).inc();
            answer::json(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "success": false, "reason": reason }))
        }
    }
}
