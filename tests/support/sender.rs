//! A client that sends reports in batches and keeps each until it was answered 2xx, as a careful sender would: the same bytes again
//! after a cut connection, so that what was accepted twice has the same id.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Counts what senders do, while they do it.
#[derive(Default)]
pub(crate) struct Progress {
    /// Reports answered 2xx.
    pub(crate) accepted: AtomicUsize,
    /// Requests that wait for their answer.
    pub(crate) outstanding: AtomicUsize,
    /// Tries that ended without a 2xx.
    pub(crate) failed: AtomicUsize,
    /// Set to end early.
    pub(crate) stop: AtomicBool,
}

/// Sends `reports` (JSON texts, in order) in batches of `batch` over one connection until all were accepted. Gives up when no try
/// has worked for two minutes.
pub(crate) async fn send_all(address: &str, reports: Vec<String>, batch: usize, progress: Arc<Progress>) {
    let client = client();
    let url = format!("http://{address}/v1/reports");
    for lines in reports.chunks(batch) {
        let body = lines.join("\n");
        let mut tries = 0;
        while !progress.stop.load(Ordering::Relaxed) {
            progress.outstanding.fetch_add(1, Ordering::Relaxed);
            let answer = client.post(&url).body(body.clone()).send().await;
            progress.outstanding.fetch_sub(1, Ordering::Relaxed);
            match answer {
                Ok(answer) if answer.status().is_success() => {
                    progress.accepted.fetch_add(lines.len(), Ordering::Relaxed);
                    break;
                }
                _ => {
                    progress.failed.fetch_add(1, Ordering::Relaxed);
                    tries += 1;
                    assert!(tries < 2400, "the program did not take a batch for two minutes");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

/// An HTTP client for loopback.
pub(crate) fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap()
}

/// Asks the history, as `trackalert query` does.
pub(crate) async fn query(address: &str, body: serde_json::Value) -> serde_json::Value {
    try_query(address, body).await.unwrap()
}

/// The same of a program that may be killed meanwhile.
pub(crate) async fn try_query(address: &str, body: serde_json::Value) -> reqwest::Result<serde_json::Value> {
    let answer = client().post(format!("http://{address}/v1/admin/query")).json(&body).send().await?;
    assert!(answer.status().is_success(), "{}", answer.text().await?);
    answer.json().await
}

/// The dead letters of a queue, as `trackalert dead-letters list` shows them.
pub(crate) async fn dead_letters(address: &str, queue: &str) -> Vec<serde_json::Value> {
    let url = format!("http://{address}/v1/admin/dead-letters/{queue}?most=1000");
    let answer = client().get(url).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    let mut answer: serde_json::Value = answer.json().await.unwrap();
    // An answer of another form must not pass for a queue without any.
    serde_json::from_value(answer["letters"].take()).unwrap()
}
