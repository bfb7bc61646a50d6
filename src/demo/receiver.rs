//! The receiver of the demo's alerts: a webhook on loopback, as an operator would run one.
//!
//! Owns the check of the signature. Never judges an alert (that is [`super::stories`]).

use std::net::{Ipv4Addr, SocketAddr};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use bytes::Bytes;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::DemoError;
use super::feed::sign;
use crate::alert::Alert;

/// Alerts that wait for the screen; beyond, their senders wait.
const WAITING: usize = 1024;

/// Listens until it is dropped.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    pub(super) alerts: mpsc::Receiver<Alert>,
    task: JoinHandle<()>,
}

impl Receiver {
    pub(super) async fn listen(secret: &str) -> Result<Self, DemoError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(DemoError::Listen)?;
        let address = listener.local_addr().map_err(DemoError::Listen)?;
        let (tx, alerts) = mpsc::channel(WAITING);
        let router = Router::new().route("/alerts", post(take)).with_state((secret.to_owned(), tx));
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the demo's receiver of alerts has ended");
            }
        });
        Ok(Self { address, alerts, task })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn take(
    State((secret, alerts)): State<(String, mpsc::Sender<Alert>)>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, &'static str) {
    let given = headers.get("x-wforce-signature").map(|value| value.as_bytes()).unwrap_or_default();
    if !bool::from(sign(&secret, &body).as_bytes().ct_eq(given)) {
        return (StatusCode::UNAUTHORIZED, "the signature does not fit");
    }
    let Ok(alert) = serde_json::from_slice(&body) else { return (StatusCode::BAD_REQUEST, "this is no alert") };
    match alerts.send(alert).await {
        Ok(()) => (StatusCode::OK, "thank you"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the demo ends"),
    }
}
