//! What happens to one alert between its delivery and its settlement.
//!
//! Owns the steps: decode, turn, suppression, log, channels, settlement. Never touches a token: it says what becomes of a delivery.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::channel::{Channel, Outcome, Post};
use super::suppress::{Suppression, Turn, Turns, Verdict};
use super::{Settings, log};
use crate::alert::{Alert, Hook};
use crate::health::Health;
use crate::queue::delivery::ReasonKind;
use crate::queue::{Backoff, Message, Reason, Settlement, headers};
use crate::report::Time;
use crate::state::StateError;
use crate::telemetry::Metrics;

/// The state as a dependency of notify. Not detect's word for it: each takes its own away when it gets an answer.
const WAITS_FOR_STATE: &str = "state (notify)";

/// What all alerts share.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) channels: Vec<Arc<Channel>>,
    /// Custom webhooks, by the name that policies have for them.
    pub(super) hooks: HashMap<String, Arc<Channel>>,
    pub(super) suppression: Suppression,
    pub(super) turns: Turns,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) stop: CancellationToken,
}

/// An alert that is to be handled, and where it may go.
pub(super) struct Job {
    pub(super) alert: Alert,
    at: Time,
    /// The channels that a resent dead letter is limited to; such a letter passes suppression.
    pub(super) only: Option<Vec<String>>,
    /// Absent where suppression is passed.
    pub(super) turn: Option<Turn>,
    message: Arc<Message>,
}

impl Shared {
    /// All steps of one alert.
    pub(super) async fn handle(&self, mut job: Job) -> Settlement {
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
        let post = Post { id: job.alert.id.clone(), body: job.message.body.clone(), time: job.at };
        let channels: Vec<_> = self.channels.iter().filter(|channel| wanted(channel.name())).collect();
        let sending = channels
            .iter()
            .map(|channel| channel.deliver(&post, &self.settings, &self.metrics, &self.health, &self.stop));
        let outcomes = join_all(sending).await;
        self.metrics.notify.observe(Time::now().since(job.message.published).as_secs_f64());
        self.settle(&job, &channels, outcomes).await
    }

    /// Sends what a policy has for a custom webhook: neither suppressed nor logged, for it is no alert.
    pub(super) async fn send_hook(&self, hook: Hook, published: Time) -> Settlement {
        let Some(channel) = self.hooks.get(&hook.name) else {
            let text = format!("there is no custom webhook {} here any more", hook.name);
            let only = vec![super::custom::channel(&hook.name)];
            return Settlement::Reject(Reason { kind: ReasonKind::Channel, text, only, attempts: 1 });
        };
        let post = Post { id: hook.id, body: hook.body, time: hook.time };
        let outcome = channel.deliver(&post, &self.settings, &self.metrics, &self.health, &self.stop).await;
        self.metrics.notify.observe(Time::now().since(published).as_secs_f64());
        match outcome {
            Outcome::Sent => Settlement::Ack,
            Outcome::Stopped => Settlement::Nack,
            Outcome::Failed { said, attempts } => {
                let text = format!("{}: {said}", channel.name());
                tracing::warn!(id = post.id, why = text, "custom webhook not sent; it becomes a dead letter");
                let only = vec![channel.name().to_owned()];
                Settlement::Reject(Reason { kind: ReasonKind::Channel, text, only, attempts })
            }
        }
    }

    /// What becomes of an alert whose channels have answered so.
    async fn settle(&self, job: &Job, channels: &[&Arc<Channel>], outcomes: Vec<Outcome>) -> Settlement {
        let mut failed = Vec::new();
        let mut texts = Vec::new();
        let mut tried = None;
        for (channel, outcome) in channels.iter().zip(outcomes) {
            match outcome {
                Outcome::Sent => {}
                Outcome::Stopped => return Settlement::Nack,
                Outcome::Failed { said, attempts } => {
                    failed.push(channel.name().to_owned());
                    texts.push(format!("{}: {said}", channel.name()));
                    tried = tried.max(Some(attempts));
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
        Settlement::Reject(Reason { kind: ReasonKind::Channel, text, only: failed, attempts: tried.unwrap_or(1) })
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
                        self.health.set_waiting(WAITS_FOR_STATE, None);
                        self.metrics.waiting.with_label_values(&[WAITS_FOR_STATE]).set(0);
                    }
                    return Some(answer);
                }
                Err(error) => {
                    self.health.set_waiting(WAITS_FOR_STATE, Some(error.to_string()));
                    self.metrics.waiting.with_label_values(&[WAITS_FOR_STATE]).set(1);
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

/// A dead letter that is not a channel's fault.
pub(super) fn reason(kind: ReasonKind, text: String) -> Reason {
    Reason { kind, text, only: Vec::new(), attempts: 1 }
}

/// The custom webhook of a message; `None`: it carries an alert. The error says why it is neither.
pub(super) fn decode_hook(message: &Message) -> Option<Result<Hook, String>> {
    let name = message.header(headers::WEBHOOK)?.to_owned();
    let id = message.header(headers::ID).filter(|id| fits_a_header(id));
    let time = message.header(headers::TIME).and_then(|micros| micros.parse().ok()).map(Time::from_micros);
    Some(match id.zip(time) {
        Some((id, time)) => Ok(Hook { id: id.to_owned(), name, time, body: message.body.clone() }),
        None => Err(format!("a webhook without {} and {} among its headers", headers::ID, headers::TIME)),
    })
}

fn fits_a_header(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The alert of a message, or why it is none.
pub(super) fn decode(message: Arc<Message>) -> Result<Job, String> {
    let mut json = serde_json::Deserializer::from_slice(&message.body);
    let alert: Alert = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| format!("not an alert: {}: {}", error.path(), error.inner()))?;
    json.end().map_err(|error| format!("not an alert: {error}"))?;
    let at = alert.at().ok_or("not an alert: time: not a time as in 2026-01-31T12:00:00Z")?;
    if !fits_a_header(&alert.id) {
        return Err("not an alert: id: must be printable ASCII, for it goes into a header".to_owned());
    }
    let only = message.header(headers::ONLY).map(|names| {
        names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    });
    Ok(Job { alert, at, only: only.filter(|names| !names.is_empty()), turn: None, message })
}
