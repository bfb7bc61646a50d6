//! Reports over HTTP as wforce sends them: one POST each, signed, over connections that stay open.
//!
//! Owns the connections, the order of one login's reports and the retries. Reports go out in their order of time, and no connection
//! gets ahead of the others by more than a few: what a policy counts within minutes must not be fed hours apart.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::traffic::Generated;

/// Connections.
const LANES: usize = 64;
/// Reports that wait for one connection: with the lanes, the bound of how far one gets ahead.
const WAITING: usize = 8;
/// One POST and its answer.
const TIMEOUT: Duration = Duration::from_secs(20);
/// One report with all its tries.
const PATIENCE: Duration = Duration::from_secs(120);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// What of an answer is read.
const ANSWER: usize = 4 << 20;

/// Why a report could not be delivered.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The program said no, and would say it again.
    #[error("the program refused a report with {0}: {1}")]
    Refused(StatusCode, String),
    /// It did not take the report in two minutes.
    #[error("the program at {0} does not take reports: {1}")]
    Down(SocketAddr, String),
}

/// Where the reports go.
#[derive(Debug, Clone)]
pub struct Door {
    /// The program's address.
    pub address: SocketAddr,
    /// Signs each body, unless empty.
    pub secret: String,
}

/// How far it is, for those who watch.
#[derive(Debug, Default)]
pub struct Progress {
    /// Reports answered with 2xx.
    pub sent: AtomicU64,
    /// The time of the latest of them, in microseconds.
    pub t: AtomicI64,
    /// POSTs that had to be made again.
    pub again: AtomicU64,
}

/// base64 of HMAC-SHA256 of the body.
pub(super) fn sign(secret: &str, body: &[u8]) -> String {
    // A key of any length is taken.
    Hmac::<Sha256>::new_from_slice(secret.as_bytes()).map_or_else(
        |_| String::new(),
        |mut mac| {
            mac.update(body);
            BASE64.encode(mac.finalize().into_bytes())
        },
    )
}

/// Sends all reports. Gives their number when each has been answered with 2xx; the first that cannot be delivered ends it.
pub async fn feed(
    door: Door,
    reports: impl Iterator<Item = Generated>,
    progress: Arc<Progress>,
) -> Result<u64, FeedError> {
    let (mut lanes, mut ways) = (JoinSet::new(), Vec::with_capacity(LANES));
    for _ in 0..LANES {
        let (way, waiting) = mpsc::channel(WAITING);
        ways.push(way);
        lanes.spawn(Lane { door: door.clone(), progress: Arc::clone(&progress), open: None }.run(waiting));
    }
    let mut count = 0;
    for report in reports {
        let lane = hash(&report.login) as usize % LANES;
        if ways[lane].send(report).await.is_err() {
            break;
        }
        count += 1;
    }
    drop(ways);
    while let Some(ended) = lanes.join_next().await {
        ended.map_err(|error| FeedError::Down(door.address, error.to_string()))??;
    }
    Ok(count)
}

/// FNV-1a: the same login always takes the same connection.
fn hash(login: &str) -> u64 {
    login.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

struct Lane {
    door: Door,
    progress: Arc<Progress>,
    open: Option<SendRequest<Full<Bytes>>>,
}

impl Lane {
    async fn run(mut self, mut reports: mpsc::Receiver<Generated>) -> Result<(), FeedError> {
        while let Some(report) = reports.recv().await {
            self.deliver(Bytes::from(report.body)).await?;
            self.progress.sent.fetch_add(1, Ordering::Relaxed);
            self.progress.t.fetch_max(report.t.micros(), Ordering::Relaxed);
        }
        Ok(())
    }

    async fn deliver(&mut self, body: Bytes) -> Result<(), FeedError> {
        let (began, mut wait) = (Instant::now(), FIRST_WAIT);
        loop {
            let tried = tokio::time::timeout(TIMEOUT, self.post(body.clone())).await;
            let (said, asked) = match tried {
                Ok(Ok(answer)) if answer.status.is_success() => return Ok(()),
                Ok(Ok(answer)) if answer.status == StatusCode::SERVICE_UNAVAILABLE => (answer.text, answer.wait),
                Ok(Ok(answer)) => return Err(FeedError::Refused(answer.status, answer.text)),
                Ok(Err(said)) => (said, None),
                Err(_) => (format!("no answer within {TIMEOUT:?}"), None),
            };
            if asked.is_none() {
                self.open = None;
            }
            if began.elapsed() > PATIENCE {
                return Err(FeedError::Down(self.door.address, said));
            }
            self.progress.again.fetch_add(1, Ordering::Relaxed);
            let jitter = 0.5 + rand::random::<f64>() / 2.0;
            tokio::time::sleep(asked.unwrap_or(wait).min(LONGEST_WAIT).mul_f64(jitter)).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    async fn post(&mut self, body: Bytes) -> Result<Answer, String> {
        let mut open = match self.open.take() {
            Some(open) if !open.is_closed() => open,
            _ => connect(self.door.address).await?,
        };
        let mut request = Request::post("/command/report")
            .header("host", self.door.address.to_string())
            .header("content-type", "application/json")
            .header("x-wforce-event", "report")
            .header("x-wforce-hookid", "1")
            .header("x-wforce-delivery", BASE64.encode(Sha256::digest(&body)));
        if !self.door.secret.is_empty() {
            request = request.header("x-wforce-signature", sign(&self.door.secret, &body));
        }
        let answer = exchange(&mut open, request.body(Full::new(body)).map_err(text)?).await?;
        self.open = Some(open);
        Ok(answer)
    }
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    wait: Option<Duration>,
    text: String,
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

pub(super) async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(address).await.map_err(text)?;
    stream.set_nodelay(true).map_err(text)?;
    let (open, connection) = handshake(TokioIo::new(stream)).await.map_err(text)?;
    // Ends with the connection, which ends when the sender is dropped.
    tokio::spawn(connection);
    Ok(open)
}

pub(super) async fn exchange(
    open: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<Answer, String> {
    open.ready().await.map_err(text)?;
    let answer: Response<_> = open.send_request(request).await.map_err(text)?;
    let wait = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER).collect().await.map_err(text)?.to_bytes();
    Ok(Answer { status, wait: wait.map(Duration::from_secs), text: String::from_utf8_lossy(&body).into_owned() })
}

/// One GET on a connection of its own.
pub(super) async fn get(address: SocketAddr, path: &str) -> Result<String, FeedError> {
    let ask = async {
        let mut open = connect(address).await?;
        let request = Request::get(path).header("host", address.to_string()).body(Full::default());
        exchange(&mut open, request.map_err(text)?).await
    };
    let answer = tokio::time::timeout(TIMEOUT, ask).await.map_err(text).flatten();
    let answer = answer.map_err(|said| FeedError::Down(address, said))?;
    if answer.status.is_success() { Ok(answer.text) } else { Err(FeedError::Refused(answer.status, answer.text)) }
}
