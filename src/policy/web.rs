//! The way out of a policy's HTTP requests.
//!
//! Owns the clients, the bounds on a request (its time, the size of its answer, how many are under way) and the words for one that was
//! not answered. Follows no redirect, asks no proxy of the environment, tries nothing twice, and shows nothing of a request but its host.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use bytesize::ByteSize;
use futures_util::future::{BoxFuture, ready};
use reqwest::header::HeaderMap;
use reqwest::{Client, Method, Url};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::outbound::{self, Tls};
use crate::telemetry::Metrics;

/// Settings of `[policy.http]`; the meaning of each stands in `config/default.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    pub max_answer: ByteSize,
    pub in_flight: usize,
}

/// What a server may be asked to do. The others open a tunnel, or give the request back with its secrets.
const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// The method of this name, in whatever case. The error names those that there are.
pub fn method(name: &str) -> Result<Method, String> {
    let found = METHODS.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(name));
    found.ok_or_else(|| format!("is none of {}", METHODS.map(|method| method.to_string()).join(", ")))
}

/// The words for an answer that is larger than it may be.
pub fn too_large(host: &str, most: ByteSize) -> String {
    format!("the answer of {host} is larger than policy.http.max_answer ({most})")
}

/// One request of a policy, checked.
#[derive(Clone)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: Method,
    /// With the scheme `http` or `https`, and a host.
    pub url: Url,
    /// As the policy gave them.
    pub headers: HeaderMap,
    /// Empty: none.
    pub body: Bytes,
    /// How long it may take, where that is less than `policy.http.timeout`.
    pub timeout: Option<Duration>,
}

impl fmt::Debug for Request {
    /// The host is all of it that is shown: path, query, headers and body may each hold a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.method, outbound::host(&self.url))
    }
}

/// What was answered, whatever its status.
#[derive(Debug, Clone)]
pub struct Answer {
    /// 200, 404, …
    pub status: u16,
    /// The names are in lower case.
    pub headers: HeaderMap,
    /// All of it.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoAnswer {
    /// For the policy; it names the host.
    pub said: String,
    /// The server may have the request all the same: who asks another one then may have it done twice.
    pub sent: bool,
}

/// Who answers the requests of policies: the network, or what stands for it where a policy is tested.
pub trait Fetch: Send + Sync {
    /// Asks, and resolves with what is answered. Dropping the future gives the request up.
    fn request(&self, request: Request) -> BoxFuture<'_, Result<Answer, NoAnswer>>;

    /// Whether the modules of old configurations may open connections of their own (Redis, mail). The error says, for the policy, why
    /// not.
    fn connects(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Whoever answers, asked for no longer than the call that asks may last: a server that hangs is to be told to the policy, and not to end
/// it.
pub(super) struct Until<'a> {
    pub(super) web: &'a dyn Fetch,
    pub(super) until: std::time::Instant,
}

/// How long is left for asking servers, in whole milliseconds, for whoever reads of it. The error says, for the policy, that it is too
/// late.
pub(super) fn left(until: std::time::Instant) -> Result<Duration, String> {
    let left = until.saturating_duration_since(std::time::Instant::now());
    match u64::try_from(left.as_millis()).unwrap_or(u64::MAX) {
        0 => Err("not asked, because the time of this call (policy.time_limit) is nearly up".to_owned()),
        millis => Ok(Duration::from_millis(millis)),
    }
}

impl Fetch for Until<'_> {
    fn request(&self, request: Request) -> BoxFuture<'_, Result<Answer, NoAnswer>> {
        match left(self.until) {
            Ok(left) => {
                let timeout = request.timeout.map_or(left, |wanted| wanted.min(left));
                self.web.request(Request { timeout: Some(timeout), ..request })
            }
            Err(why) => {
                let said = format!("{}: {why}", outbound::host(&request.url));
                Box::pin(ready(Err(NoAnswer { said, sent: false })))
            }
        }
    }
}

/// The network.
///
/// Requests run on the program's own runtime, and not on the worker's that asks. The loss prevented: a worker that hangs, or is busy with
/// a policy that burns its CPU time, would stop the connections that it had made under the requests of others, and keep the turns of its
/// own.
pub struct Web {
    settings: Settings,
    tls: Tls,
    runtime: Handle,
    /// One for each scheme, made when it is first needed.
    plain: OnceLock<Result<Client, String>>,
    secure: OnceLock<Result<Client, String>>,
    turns: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Web").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Why there is no answer.
enum Unanswered {
    NoTurn,
    Time,
    TooLarge,
    NotConnected(String),
    Failed(String),
}

impl Web {
    /// With nothing under way. Its requests run on `runtime`.
    pub fn new(settings: &Settings, tls: Tls, metrics: Arc<Metrics>, runtime: Handle) -> Self {
        Self {
            settings: settings.clone(),
            tls,
            runtime,
            plain: OnceLock::new(),
            secure: OnceLock::new(),
            turns: Arc::new(Semaphore::new(settings.in_flight.clamp(1, Semaphore::MAX_PERMITS))),
            metrics,
        }
    }

    fn client(&self, secure: bool) -> Result<Client, String> {
        let kept = if secure { &self.secure } else { &self.plain };
        let client = kept.get_or_init(|| {
            let timeout = self.settings.timeout;
            let builder = if secure { self.tls.client(timeout) } else { outbound::plain(timeout) };
            // Thousands of reports may wait at once, and each new connection costs more than the request.
            let built = builder.pool_max_idle_per_host(usize::MAX).build();
            built.map_err(|error| format!("cannot set up HTTP: {}", outbound::words(error)))
        });
        client.clone()
    }

    async fn fetch(&self, request: Request, limit: Duration) -> Result<Answer, Unanswered> {
        let client = self.client(request.url.scheme() == "https").map_err(Unanswered::NotConnected)?;
        let turns = Arc::clone(&self.turns);
        let most = usize::try_from(self.settings.max_answer.as_u64()).unwrap_or(usize::MAX);
        let asked = self.runtime.spawn(async move {
            let deadline = Instant::now() + limit;
            // The semaphore is never closed.
            let Ok(Ok(_turn)) = timeout_at(deadline, turns.acquire()).await else { return Err(Unanswered::NoTurn) };
            timeout_at(deadline, exchange(client, request, most)).await.unwrap_or(Err(Unanswered::Time))
        });
        // Where nobody waits for the answer any more, its turn is for others.
        let ended = AbortOnDropHandle::new(asked).await;
        ended.unwrap_or_else(|error| Err(Unanswered::Failed(error.to_string())))
    }

    fn count(&self, outcome: &Result<Answer, Unanswered>, took: Duration) {
        let result = match outcome {
            Ok(answer) => match answer.status / 100 {
                2 => "2xx",
                3 => "3xx",
                4 => "4xx",
                _ => "5xx",
            },
            Err(Unanswered::NoTurn) => "no_turn",
            Err(Unanswered::Time) => "time_out",
            Err(Unanswered::TooLarge) => "too_large",
            Err(Unanswered::NotConnected(_) | Unanswered::Failed(_)) => "failed",
        };
        self.metrics.policy_http.with_label_values(&[result]).inc();
        self.metrics.policy_http_duration.observe(took.as_secs_f64());
    }

    /// The words for a policy, and whoever reads what it logs of them.
    fn told(&self, host: &str, limit: Duration, why: Unanswered) -> String {
        match why {
            Unanswered::NoTurn => format!(
                "{host} was not asked within {limit:?}: policy.http.in_flight ({}) requests are under way",
                self.settings.in_flight
            ),
            Unanswered::Time => format!("no whole answer from {host} within {limit:?}"),
            Unanswered::TooLarge => too_large(host, self.settings.max_answer),
            Unanswered::NotConnected(said) | Unanswered::Failed(said) => format!("no answer from {host}: {said}"),
        }
    }
}

impl Fetch for Web {
    fn request(&self, request: Request) -> BoxFuture<'_, Result<Answer, NoAnswer>> {
        Box::pin(async move {
            let host = outbound::host(&request.url);
            let limit = request.timeout.map_or(self.settings.timeout, |wanted| wanted.min(self.settings.timeout));
            let began = Instant::now();
            let outcome = self.fetch(request, limit).await;
            self.count(&outcome, began.elapsed());
            outcome.map_err(|why| {
                let sent = !matches!(why, Unanswered::NoTurn | Unanswered::NotConnected(_));
                NoAnswer { said: self.told(&host, limit, why), sent }
            })
        })
    }
}

async fn exchange(client: Client, request: Request, most: usize) -> Result<Answer, Unanswered> {
    let failed = |error: reqwest::Error| {
        // Both clocks run for as long; whichever rings first, it is the same to the policy. Not so a connection that is not taken.
        match (error.is_connect(), error.is_timeout()) {
            (true, _) => Unanswered::NotConnected(outbound::words(error)),
            (false, true) => Unanswered::Time,
            (false, false) => Unanswered::Failed(outbound::words(error)),
        }
    };
    let sent = client.request(request.method, request.url).headers(request.headers).body(request.body).send();
    let mut answer = sent.await.map_err(failed)?;
    if answer.content_length().is_some_and(|length| length > most as u64) {
        return Err(Unanswered::TooLarge);
    }
    let (status, headers) = (answer.status().as_u16(), std::mem::take(answer.headers_mut()));
    let mut body = BytesMut::new();
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > most {
            return Err(Unanswered::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, headers, body: body.freeze() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_request_is_shown_but_its_host() {
        let request = Request {
            method: Method::POST,
            url: "https://ann:hunter2@api.example:8443/T0K3N?key=v4lue".parse().unwrap(),
            headers: [("authorization".parse().unwrap(), "Bearer b34rer".parse().unwrap())].into_iter().collect(),
            body: Bytes::from_static(b"p4ssword"),
            timeout: None,
        };
        assert_eq!(format!("{request:?}"), "POST to api.example:8443");
    }
}
