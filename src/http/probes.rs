//! readyz and livez, in both spellings, for everybody.
//!
//! Owns their answers. Readiness follows the work: it names a dependency that is waited for and stays 200, because taking `receive`
//! out of service loses what wforce sends once. livez is 500 for a hang only.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use serde_json::json;

use crate::health::Health;
use crate::receive::answer;

/// A task that was silent for so long hangs: each says that it is alive every second.
const HUNG_AFTER: Duration = Duration::from_secs(60);

pub(super) fn router(health: Arc<Health>) -> Router {
    Router::new()
        .route("/readyz", get(ready))
        .route("/command/readyz", get(ready))
        .route("/livez", get(live))
        .route("/command/livez", get(live))
        .with_state(health)
}

async fn ready(State(health): State<Arc<Health>>) -> Response {
    let ready = health.ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "status": if ready { "ok" } else { "failure" },
        "draining": health.draining(),
        // The names only: this route asks for no password, and what a policy said may quote a report. /v1/admin/status has the words.
        "waiting_for": health.waiting().into_keys().collect::<Vec<_>>(),
    });
    answer::json(status, &body)
}

async fn live(State(health): State<Arc<Health>>) -> Response {
    let hung = health.hung(HUNG_AFTER);
    if hung.is_empty() {
        return answer::ok();
    }
    let text = format!("silent for {} s: {}", HUNG_AFTER.as_secs(), hung.join(", "));
    answer::failure(StatusCode::INTERNAL_SERVER_ERROR, &text)
}
