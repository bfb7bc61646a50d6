//! The operators' routes under `/v1/admin/`: what the command line asks a running process.
//!
//! Owns their form. Every answer is JSON; a wrong argument is 400 with its name.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::Response;
use axum::routing::{delete, get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Value, json};

use super::auth::{self, Passwords};
use super::path;
use crate::health::Health;
use crate::history::{History, HistoryError, Search};
use crate::queue::{DeadLetter, Filter, Queue, QueueError, ReasonKind};
use crate::receive::answer;
use crate::report::Time;
use crate::telemetry::Metrics;

/// Reloads the policies; gives what to tell a person in either case.
pub type ReloadFn = Arc<dyn Fn() -> BoxFuture<'static, Result<String, String>> + Send + Sync>;

/// What the routes work on.
#[derive(Clone)]
pub struct Services {
    /// The queues, by the names that operators know them by.
    pub queues: Vec<(&'static str, Arc<dyn Queue>)>,
    /// The history.
    pub history: Arc<dyn History>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The latches.
    pub health: Arc<Health>,
    /// The roles that run here.
    pub roles: Vec<String>,
    /// Exchanges the policies.
    pub reload: ReloadFn,
}

struct Admin {
    services: Services,
    started: Instant,
}

/// The most letters in one answer, or named in one request.
const MOST_LETTERS: usize = 1000;

pub(super) fn router(services: Services, passwords: Arc<Passwords>) -> Router {
    Router::new()
        .route("/v1/admin/status", get(status))
        .route("/v1/admin/query", post(query))
        .route("/v1/admin/reload", post(reload))
        .route("/v1/admin/dead-letters/{queue}", get(list))
        .route("/v1/admin/dead-letters/{queue}/resend", post(resend_all))
        .route("/v1/admin/dead-letters/{queue}/drop", post(drop_all))
        .route("/v1/admin/dead-letters/{queue}/{id}", delete(forget))
        .route("/v1/admin/dead-letters/{queue}/{id}/resend", post(resend))
        .layer(middleware::from_fn_with_state(passwords, auth::operators_only))
        .with_state(Arc::new(Admin { services, started: Instant::now() }))
}

async fn status(State(admin): State<Arc<Admin>>) -> Response {
    let services = &admin.services;
    let mut queues = serde_json::Map::new();
    for (label, queue) in &services.queues {
        let depth = match queue.depth().await {
            Ok(depth) => json!({
                "name": queue.name(), "messages": depth.messages, "bytes": depth.bytes, "dead_letters": depth.dead,
                "oldest": depth.oldest.map(Time::rfc3339),
            }),
            Err(error) => json!({ "name": queue.name(), "error": error.to_string() }),
        };
        queues.insert((*label).to_owned(), depth);
    }
    let body = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime": admin.started.elapsed().as_secs(),
        "roles": services.roles,
        "ready": services.health.ready(),
        "waiting_for": services.health.waiting(),
        "queues": queues,
    });
    answer::json(StatusCode::OK, &body)
}

async fn query(State(admin): State<Arc<Admin>>, body: Bytes) -> Response {
    let body = match serde_json::from_slice::<Value>(&body) {
        Ok(body) => body,
        Err(error) => return answer::failure(StatusCode::BAD_REQUEST, &format!("the body is not JSON: {error}")),
    };
    let search = Search { body, now: Time::now(), up_to: None, without: None };
    match admin.services.history.search(search).await {
        Ok(found) => answer::json(StatusCode::OK, &found),
        Err(error @ HistoryError::Query { .. }) => answer::failure(StatusCode::BAD_REQUEST, &error.to_string()),
        Err(error @ HistoryError::Unavailable(_)) => {
            answer::unavailable(&error.to_string(), std::time::Duration::from_secs(1))
        }
    }
}

async fn reload(State(admin): State<Arc<Admin>>) -> Response {
    match (admin.services.reload)().await {
        Ok(done) => answer::json(StatusCode::OK, &json!({ "status": "ok", "done": done })),
        Err(reason) => answer::failure(StatusCode::UNPROCESSABLE_ENTITY, &reason),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Selection {
    kind: Option<ReasonKind>,
    only: Option<String>,
    since: Option<String>,
    until: Option<String>,
    id: Option<String>,
    after: Option<String>,
    most: Option<usize>,
}

impl Admin {
    fn queue(&self, name: &str) -> Result<&Arc<dyn Queue>, Box<Response>> {
        let queues = &self.services.queues;
        queues.iter().find(|(label, _)| *label == name).map(|(_, queue)| queue).ok_or_else(|| {
            let names: Vec<&str> = queues.iter().map(|(label, _)| *label).collect();
            let text = format!("there is no such queue here; there are {}", names.join(", "));
            Box::new(answer::failure(StatusCode::NOT_FOUND, &text))
        })
    }
}

fn time(name: &str, text: Option<&String>) -> Result<Option<Time>, Box<Response>> {
    let Some(text) = text else { return Ok(None) };
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => Ok(Some(Time::from_micros(time.as_microsecond()))),
        Err(_) => {
            let text = format!("{name}: not a time; write 2026-01-31T12:00:00Z");
            Err(Box::new(answer::failure(StatusCode::BAD_REQUEST, &text)))
        }
    }
}

async fn list(
    State(admin): State<Arc<Admin>>,
    queue: Result<Path<String>, PathRejection>,
    selection: Result<Query<Selection>, QueryRejection>,
) -> Response {
    match select(&admin, queue, selection).await {
        Ok(answer) => answer,
        Err(refused) => *refused,
    }
}

async fn select(
    admin: &Admin,
    queue: Result<Path<String>, PathRejection>,
    selection: Result<Query<Selection>, QueryRejection>,
) -> Result<Response, Box<Response>> {
    let queue = path(queue)?;
    let queue_of_letters = admin.queue(&queue)?;
    let Query(selection) =
        selection.map_err(|error| Box::new(answer::failure(StatusCode::BAD_REQUEST, &error.body_text())))?;
    let filter = Filter {
        ids: selection.id.into_iter().collect(),
        kind: selection.kind,
        only: selection.only,
        since: time("since", selection.since.as_ref())?,
        until: time("until", selection.until.as_ref())?,
    };
    let most = selection.most.unwrap_or(100).min(MOST_LETTERS);
    // One more than asked for shows whether there are more.
    let found = queue_of_letters.dead_letters().list(filter, selection.after, most + 1).await;
    let mut letters = found.map_err(|error| Box::new(failed(&error)))?;
    let more = letters.len() > most;
    letters.truncate(most);
    let letters: Vec<Value> = letters.iter().map(|letter| show(&queue, letter)).collect();
    Ok(answer::json(StatusCode::OK, &json!({ "letters": letters, "more": more })))
}

fn show(queue: &str, letter: &DeadLetter) -> Value {
    let mut shown = json!({
        "id": letter.id,
        "queue": queue,
        "key": letter.message.key,
        "headers": letter.message.headers,
        "published": letter.message.published.rfc3339(),
        "rejected": Time::from_micros(letter.rejected_micros).rfc3339(),
        "reason": letter.reason,
        "coordinates": letter.coordinates,
    });
    match std::str::from_utf8(&letter.message.body) {
        Ok(text) => shown["body"] = text.into(),
        Err(_) => shown["body_base64"] = STANDARD.encode(&letter.message.body).into(),
    }
    shown
}

fn failed(error: &QueueError) -> Response {
    answer::unavailable(&error.to_string(), std::time::Duration::from_secs(1))
}

fn found(outcome: Result<bool, QueueError>) -> Response {
    match outcome {
        Ok(found) => answer::json(StatusCode::OK, &json!({ "found": found })),
        Err(error) => failed(&error),
    }
}

type Letter = Result<Path<(String, String)>, PathRejection>;

async fn resend(State(admin): State<Arc<Admin>>, letter: Letter) -> Response {
    match path(letter).and_then(|(queue, id)| Ok((admin.queue(&queue)?, id))) {
        Ok((queue, id)) => found(queue.dead_letters().resend(id).await),
        Err(refused) => *refused,
    }
}

async fn forget(State(admin): State<Arc<Admin>>, letter: Letter) -> Response {
    match path(letter).and_then(|(queue, id)| Ok((admin.queue(&queue)?, id))) {
        Ok((queue, id)) => found(queue.dead_letters().drop_letter(id).await),
        Err(refused) => *refused,
    }
}

/// Some letters of a queue, as the body of a request names them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Letters {
    ids: Vec<String>,
}

type Named<'a> = (&'a Arc<dyn Queue>, Vec<String>);

/// The queue and the ids, or the answer where they are none.
fn letters<'a>(
    admin: &'a Admin,
    queue: Result<Path<String>, PathRejection>,
    body: &[u8],
) -> Result<Named<'a>, Box<Response>> {
    let queue = admin.queue(&path(queue)?)?;
    let refused = |text: String| Box::new(answer::failure(StatusCode::BAD_REQUEST, &text));
    let Letters { ids } = serde_json::from_slice(body).map_err(|error| refused(format!("the body: {error}")))?;
    if ids.len() > MOST_LETTERS {
        return Err(refused(format!("ids: at most {MOST_LETTERS} at once")));
    }
    Ok((queue, ids))
}

fn found_of(outcome: Result<Vec<String>, QueueError>) -> Response {
    match outcome {
        Ok(found) => answer::json(StatusCode::OK, &json!({ "found": found })),
        Err(error) => failed(&error),
    }
}

async fn resend_all(
    State(admin): State<Arc<Admin>>,
    queue: Result<Path<String>, PathRejection>,
    body: Bytes,
) -> Response {
    match letters(&admin, queue, &body) {
        Ok((queue, ids)) => found_of(queue.dead_letters().resend_all(ids).await),
        Err(refused) => *refused,
    }
}

async fn drop_all(
    State(admin): State<Arc<Admin>>,
    queue: Result<Path<String>, PathRejection>,
    body: Bytes,
) -> Response {
    match letters(&admin, queue, &body) {
        Ok((queue, ids)) => found_of(queue.dead_letters().drop_all(ids).await),
        Err(refused) => *refused,
    }
}
