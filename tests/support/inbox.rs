//! A receiver of alerts on a real socket, in a thread of its own: what a webhook channel posts to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use serde_json::Value;

/// The alerts that arrived.
#[derive(Clone, Default)]
pub(crate) struct Inbox {
    alerts: Arc<Mutex<HashMap<String, Arrival>>>,
}

/// One alert that arrived.
#[derive(Clone)]
pub(crate) struct Arrival {
    pub(crate) times: u32,
    pub(crate) alert: Value,
    /// Seconds since 1970, the first time.
    pub(crate) at: f64,
}

impl Inbox {
    /// Starts it; it ends with the test.
    pub(crate) fn start() -> (Self, SocketAddr) {
        let inbox = Self::default();
        let router = Router::new().route("/", post(take)).with_state(inbox.clone());
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                axum::serve(listener, router).await.unwrap();
            });
        });
        (inbox, told.recv().unwrap())
    }

    /// What arrived, by id.
    pub(crate) fn alerts(&self) -> HashMap<String, Arrival> {
        self.alerts.lock().unwrap().clone()
    }

    /// The alerts of one kind.
    pub(crate) fn of_kind(&self, kind: &str) -> Vec<Arrival> {
        self.alerts.lock().unwrap().values().filter(|arrival| arrival.alert["kind"] == kind).cloned().collect()
    }

    /// How many came more than once.
    pub(crate) fn repeated(&self) -> usize {
        self.alerts.lock().unwrap().values().filter(|arrival| arrival.times > 1).count()
    }
}

async fn take(State(inbox): State<Inbox>, headers: HeaderMap, body: axum::body::Bytes) {
    let id = headers.get("idempotency-key").and_then(|id| id.to_str().ok()).unwrap_or("none").to_owned();
    let alert = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let mut alerts = inbox.alerts.lock().unwrap();
    alerts.entry(id).or_insert_with(|| Arrival { times: 0, alert, at: super::trial::now() }).times += 1;
}
