//! From the alerts queue to people: the log and the webhooks.
//!
//! ```text
//! delivery ──▶ decode ──▶ turn of its kind and key ──▶ suppression ──▶ log, then every channel side by side ──▶ ack
//!                │ malformed                              │ in a window          │ one given up
//!                ▼                                        ▼                      ▼
//!           dead letter                                  ack             dead letter that names it
//! ```
//!
//! Owns the order of these steps and the settlement of each delivery. An alert goes out at least once: a crash between a channel's
//! answer and the ack sends it again, under the same `Idempotency-Key`. Never raises an alert and never changes one.

mod channel;
mod log;
mod render;
mod suppress;
mod webhook;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use channel::{Channel, ChannelSettings, build_channels};
pub use render::line;
pub use webhook::Webhook;

use crate::alert::Alert;
use crate::health::Health;
use crate::queue::delivery::ReasonKind;
use crate::queue::{Backoff, Delivery, Message, Reason, Settlement, Subscription, headers};
use crate::report::Time;
use crate::state::{State, StateError};
use crate::telemetry::Metrics;
use channel::{Outcome, Post};
use suppress::{Suppression, Turn, Turns, Verdict};

/// Settings of notify.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    #[serde(with = "humantime_serde")]
    pub suppress: Duration,
    pub in_flight: usize,
    pub max_attempts: u32,
    #[serde(with = "humantime_serde")]
    pub retry_first: Duration,
    #[serde(with = "humantime_serde")]
    pub retry_most: Duration,
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    pub channels: Vec<ChannelSettings>,
}

/// How long the source may take to store its position after everything was settled.
const SOURCE_END: Duration = Duration::from_secs(10);
/// How often the loop shows that it is alive.
const BEAT: Duration = Duration::from_secs(1);

/// The notify role.
pub struct Notifier(Arc<Parts>);

struct Parts {
    settings: Settings,
    channels: Vec<Arc<Channel>>,
    suppression: Suppression,
    turns: Turns,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    stop: CancellationToken,
}

/// An alert that is to be handled, and where it may go.
struct Job {
    alert: Alert,
    at: Time,
    /// The channels that a resent dead letter is limited to; such a letter passes suppression.
    only: Option<Vec<String>>,
    /// Absent where suppression is passed.
    turn: Option<Turn>,
    message: Arc<Message>,
}

impl Notifier {
    /// Builds the channels. All errors of the settings at once. `stop` ends [`Notifier::run`].
    pub fn new(
        settings: Settings,
        state: Arc<dyn State>,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        stop: CancellationToken,
    ) -> Result<Self, Vec<String>> {
        let channels = build_channels(&settings)?;
        let suppression = Suppression::new(state, settings.suppress);
        Ok(Self(Arc::new(Parts { settings, channels, suppression, turns: Turns::default(), metrics, health, stop })))
    }

    /// Takes alerts until stopped or until the source ends. Then finishes what is in flight within `drain` (a channel that waits for
    /// its next try is not waited for), hands the rest back, and returns when the source has stored its position.
    pub async fn run(self, subscription: Subscription, drain: Duration) {
        let Self(parts) = self;
        let Subscription { mut deliveries, pause, source } = subscription;
        let mut tasks = JoinSet::new();
        let beat = parts.health.beat("notify");
        let mut tick = tokio::time::interval(BEAT);
        loop {
            tokio::select! {
                biased;
                () = parts.stop.cancelled() => break,
                _ = tick.tick() => beat.beat(),
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
                taken = deliveries.recv(), if tasks.len() < parts.settings.in_flight => match taken {
                    Some(delivery) => parts.start(delivery, &mut tasks),
                    None => break,
                },
            }
        }
        beat.done();
        let _ = pause.send(true);
        // What waits in the channel goes back at once: its tokens are dropped with it.
        drop(deliveries);
        let finish = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(drain, finish).await.is_err() {
            tracing::warn!(alerts = tasks.len(), "not all alerts were sent in time; they go back to the queue");
            tasks.shutdown().await;
        }
        let abort = source.abort_handle();
        if tokio::time::timeout(SOURCE_END, source).await.is_err() {
            tracing::warn!("the source of the alerts queue did not stop in time; alerts may be sent again");
            abort.abort();
        }
    }
}

impl Parts {
    fn start(self: &Arc<Self>, delivery: Delivery, tasks: &mut JoinSet<()>) {
        let Delivery { message, token, coordinates, .. } = delivery;
        let job = match decode(message) {
            Ok(job) => job,
            Err(why) => {
                tracing::warn!(coordinates, why, "a message in the alerts queue is no alert; it becomes a dead letter");
                return token.reject(reason(ReasonKind::Malformed, why));
            }
        };
        // The place in the line is taken here, in the order of the queue, and not by whichever task runs first.
        let turn = job.only.is_none().then(|| self.turns.take(&job.alert));
        let job = Job { turn, ..job };
        let parts = Arc::clone(self);
        tasks.spawn(async move {
            // The token stays out here: a panic in there makes a dead letter, and a cancelled task hands the alert back.
            match AssertUnwindSafe(parts.handle(job)).catch_unwind().await {
                Ok(Settlement::Ack) => token.ack(),
                Ok(Settlement::Nack) => token.nack(),
                Ok(Settlement::Reject(reason)) => token.reject(reason),
                Err(_) => {
                    tracing::error!(coordinates, "sending an alert panicked; it becomes a dead letter");
                    token.reject(reason(ReasonKind::Internal, "a fault of this program; see its log".to_owned()));
                }
            }
        });
    }

    async fn handle(&self, mut job: Job) -> Settlement {
        if let Some(mut turn) = job.turn.take() {
            turn.come().await;
            match self.until_answered(|| self.suppression.check(&job.alert, job.at)).await {
                None => return Settlement::Nack,
                Some(Verdict::Send) => {}
                Some(Verdict::Suppressed(by)) => {
                    self.metrics.suppressed.inc();
                    tracing::debug!(
                        id = job.alert.id,
                        kind = job.alert.kind,
                        key = job.alert.key,
                        by,
                        "alert suppressed"
                    );
                    return Settlement::Ack;
                }
            }
        }
        let wanted = |name: &str| job.only.as_ref().is_none_or(|only| only.iter().any(|one| one == name));
        if wanted(log::NAME) {
            log::write(&job.alert);
            self.metrics.sent.with_label_values(&[log::NAME]).inc();
        }
        let post = Post { id: job.alert.id.clone(), body: job.message.body.clone() };
        let channels: Vec<_> = self.channels.iter().filter(|channel| wanted(channel.name())).collect();
        let sending = channels
            .iter()
            .map(|channel| channel.deliver(&post, &self.settings, &self.metrics, &self.health, &self.stop));
        let outcomes = join_all(sending).await;
        self.metrics.notify.observe(Time::now().since(job.message.published).as_secs_f64());
        self.settle(&job, &channels, outcomes).await
    }

    /// What becomes of an alert whose channels have answered so.
    async fn settle(&self, job: &Job, channels: &[&Arc<Channel>], outcomes: Vec<Outcome>) -> Settlement {
        let mut failed = Vec::new();
        let mut texts = Vec::new();
        let mut tried = 1;
        for (channel, outcome) in channels.iter().zip(outcomes) {
            match outcome {
                Outcome::Sent => {}
                Outcome::Stopped => return Settlement::Nack,
                Outcome::Failed { said, attempts } => {
                    failed.push(channel.name().to_owned());
                    texts.push(format!("{}: {said}", channel.name()));
                    tried = tried.max(attempts);
                }
            }
        }
        let nobody_told = !channels.is_empty() && failed.len() == channels.len();
        for name in job.only.iter().flatten() {
            let known = name == log::NAME || self.channels.iter().any(|channel| channel.name() == name);
            if !known {
                failed.push(name.clone());
                texts.push(format!("{name}: there is no such channel any more"));
            }
        }
        if failed.is_empty() {
            return Settlement::Ack;
        }
        if job.only.is_none() && nobody_told {
            // Before the letter: with its window left open nobody would hear of what follows either.
            let mut turn = self.turns.take(&job.alert);
            turn.come().await;
            if self.until_answered(|| self.suppression.close(&job.alert, job.at)).await.is_none() {
                return Settlement::Nack;
            }
        }
        let text = texts.join("; ");
        tracing::warn!(
            id = job.alert.id,
            kind = job.alert.kind,
            why = text,
            "alert not sent; it becomes a dead letter"
        );
        Settlement::Reject(Reason { kind: ReasonKind::Channel, text, only: failed, attempts: tried })
    }

    /// Asks the state until it answers: without it an alert could be sent twice or never. `None`: stopped meanwhile.
    async fn until_answered<T, F>(&self, ask: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, StateError>>,
    {
        let backoff = Backoff { first: self.settings.retry_first, most: self.settings.retry_most };
        let mut attempt = 1_u32;
        loop {
            match ask().await {
                Ok(answer) => {
                    if attempt > 1 {
                        self.health.set_waiting("state", None);
                        self.metrics.waiting.with_label_values(&["state"]).set(0);
                    }
                    return Some(answer);
                }
                Err(error) => {
                    self.health.set_waiting("state", Some(error.to_string()));
                    self.metrics.waiting.with_label_values(&["state"]).set(1);
                    self.metrics.retries.with_label_values(&["dependency"]).inc();
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(backoff.wait(attempt, rand::random())) => attempt = attempt.saturating_add(1),
            }
        }
    }
}

fn reason(kind: ReasonKind, text: String) -> Reason {
    Reason { kind, text, only: Vec::new(), attempts: 1 }
}

fn decode(message: Arc<Message>) -> Result<Job, String> {
    let mut json = serde_json::Deserializer::from_slice(&message.body);
    let alert: Alert = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| format!("not an alert: {}: {}", error.path(), error.inner()))?;
    json.end().map_err(|error| format!("not an alert: {error}"))?;
    let at = alert.at().ok_or("not an alert: time: not a time as in 2026-01-31T12:00:00Z")?;
    let odd = alert.id.is_empty() || !alert.id.bytes().all(|byte| byte.is_ascii_graphic());
    if odd {
        return Err("not an alert: id: must be printable ASCII, for it goes into a header".to_owned());
    }
    let only = message.header(headers::ONLY).map(|names| {
        names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    });
    Ok(Job { alert, at, only: only.filter(|names| !names.is_empty()), turn: None, message })
}
