//! The ways out that can fail: their settings, their names, and how one alert is tried on one of them until it is through or given
//! up.
//!
//! Owns the retries. A channel says of a failed try whether another may help; it never decides what becomes of the alert (that is
//! [`super`]).

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::webhook::{self, Webhook};
use crate::health::Health;
use crate::outbound::Tls;
use crate::queue::Backoff;
use crate::report::Time;
use crate::settings::{MASK, Secret};
use crate::telemetry::Metrics;

/// One entry of `notify.channels`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct ChannelSettings {
    pub kind: String,
    pub url: String,
    // An entry of a list has no defaults in config/default.toml: these two may be left out.
    #[serde(default)]
    pub secret: Secret,
    #[serde(default)]
    pub secret_file: PathBuf,
}

impl fmt::Debug for ChannelSettings {
    /// Of the URL the host only: the rest of it is a password as often as not.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelSettings")
            .field("kind", &self.kind)
            .field("host", &webhook::host(&self.url).unwrap_or_else(|| MASK.to_owned()))
            .field("secret", &self.secret)
            .field("secret_file", &self.secret_file)
            .finish_non_exhaustive()
    }
}

/// What goes out.
pub(super) struct Post {
    /// The alert's id: the same for each try and each redelivery, so that a receiver can tell.
    pub(super) id: String,
    /// The alert as JSON, or the body of a custom webhook.
    pub(super) body: bytes::Bytes,
    /// The report's time.
    pub(super) time: Time,
}

/// One try failed.
#[derive(Debug)]
pub(super) struct SendError {
    /// Another try may help.
    pub(super) again: bool,
    /// What the receiver asked to wait.
    pub(super) wait: Option<Duration>,
    /// For people; no secret in it.
    pub(super) said: String,
}

/// One way out, and how many alerts may be tried on it at once: each channel has places of its own, which an alert holds while it is
/// being sent and not while it waits for its next try. So a receiver that is down takes nobody else's. Custom webhooks share theirs where
/// `notify.custom_in_flight` says so.
#[derive(Debug)]
pub struct Channel {
    way: Way,
    places: Arc<Semaphore>,
    /// The setting that says how many there are.
    places_key: &'static str,
}

#[derive(Debug)]
enum Way {
    /// HTTP POST.
    Webhook(Webhook),
}

/// What became of an alert on one channel.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The receiver has it.
    Sent,
    /// Given up.
    Failed {
        /// For people.
        said: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The program stops while it waits for the next try.
    Stopped,
}

impl Channel {
    /// Unique among the channels, and stable while its address is: dead letters name it. `webhook:example.com:8443`.
    pub fn name(&self) -> &str {
        match &self.way {
            Way::Webhook(webhook) => webhook.name(),
        }
    }

    /// The word that its settings and metrics have for it.
    pub const fn kind(&self) -> &'static str {
        match self.way {
            Way::Webhook(_) => "webhook",
        }
    }

    async fn send(&self, post: &Post) -> Result<(), SendError> {
        match &self.way {
            Way::Webhook(webhook) => webhook.send(post).await,
        }
    }

    /// In the metrics, under the channel's name: there are as many as are configured.
    pub(super) fn show_waiting(&self, metrics: &Metrics, waits: bool) {
        metrics.waiting.with_label_values(&[self.name()]).set(i64::from(waits));
    }

    /// Says that the receiver does not take alerts (`Some`) or does.
    fn note(&self, metrics: &Metrics, health: &Health, said: Option<String>) {
        self.show_waiting(metrics, said.is_some());
        health.set_waiting(self.name(), said);
    }

    /// Tries until it is sent, until no further try would help or is left in number or time, or until `stop` while it waits.
    pub(super) async fn deliver(
        &self,
        post: &Post,
        settings: &Settings,
        metrics: &Metrics,
        health: &Health,
        stop: &CancellationToken,
    ) -> Outcome {
        let backoff = Backoff { first: settings.retry_first, most: settings.retry_most };
        let last_try = Instant::now() + settings.give_up_after;
        let in_time = |said: &str| format!("{said} (no further try within notify.give_up_after)");
        let mut attempt = 1;
        let mut last_said = format!("all of {} were taken", self.places_key);
        loop {
            let place = tokio::select! {
                biased;
                place = self.places.acquire() => place,
                () = stop.cancelled() => return Outcome::Stopped,
                () = tokio::time::sleep_until(last_try) => {
                    return Outcome::Failed { said: in_time(&last_said), attempts: attempt - 1 };
                }
            };
            let sent = self.send(post).await;
            drop(place);
            let error = match sent {
                Ok(()) => {
                    self.note(metrics, health, None);
                    metrics.sent.with_label_values(&[self.kind()]).inc();
                    return Outcome::Sent;
                }
                Err(error) => error,
            };
            if !error.again || attempt >= settings.max_attempts {
                // A receiver that refuses one alert is there; one that never answered is still waited for by the next alert.
                if !error.again {
                    self.note(metrics, health, None);
                }
                return Outcome::Failed { said: error.said, attempts: attempt };
            }
            let wait = backoff.wait(attempt, rand::random());
            // A receiver's wish counts up to our own longest wait: it must not hold an alert for a day.
            let wait = error.wait.map_or(wait, |asked| asked.max(wait).min(settings.retry_most.max(wait)));
            tracing::debug!(channel = self.name(), alert = post.id, attempt, said = error.said, "alert not sent yet");
            self.note(metrics, health, Some(error.said.clone()));
            if Instant::now() + wait >= last_try {
                return Outcome::Failed { said: in_time(&error.said), attempts: attempt };
            }
            metrics.retries.with_label_values(&["channel"]).inc();
            last_said = error.said;
            tokio::select! {
                () = stop.cancelled() => return Outcome::Stopped,
                () = tokio::time::sleep(wait) => {}
            }
            attempt += 1;
        }
    }
}

/// Builds the channels of the settings. All errors at once, each with its key.
pub fn build_channels(settings: &Settings, tls: &Tls) -> Result<Vec<Arc<Channel>>, Vec<String>> {
    let mut errors = Vec::new();
    for (key, value) in [
        ("in_flight", settings.in_flight),
        ("channel_in_flight", settings.channel_in_flight),
        ("max_attempts", settings.max_attempts as usize),
    ] {
        if value == 0 {
            errors.push(format!("notify.{key}: must be at least 1"));
        }
    }
    let places = settings.channel_in_flight.clamp(1, Semaphore::MAX_PERMITS);
    if settings.timeout.is_zero() {
        errors.push("notify.timeout: must be longer than 0s".to_owned());
    }
    if settings.retry_most < settings.retry_first {
        errors.push("notify.retry_most: must not be shorter than notify.retry_first".to_owned());
    }
    let mut channels: Vec<Arc<Channel>> = Vec::with_capacity(settings.channels.len());
    for (index, entry) in settings.channels.iter().enumerate() {
        let path = format!("notify.channels[{index}]");
        match entry.kind.as_str() {
            "webhook" => {
                let taken = |name: &str| channels.iter().any(|channel| channel.name() == name);
                match Webhook::new(&path, index, entry, settings.timeout, tls, taken) {
                    Ok(webhook) => {
                        let way = Way::Webhook(webhook);
                        let places = Arc::new(Semaphore::new(places));
                        channels.push(Arc::new(Channel { way, places, places_key: "notify.channel_in_flight" }));
                    }
                    Err(found) => errors.extend(found),
                }
            }
            other => errors.push(format!("{path}.kind: \"{other}\" is not a kind of channel; there is: webhook")),
        }
    }
    if errors.is_empty() { Ok(channels) } else { Err(errors) }
}

/// Builds the custom webhooks of the settings, by name. All errors at once, each with its key.
pub fn build_hooks(settings: &Settings, tls: &Tls) -> Result<HashMap<String, Arc<Channel>>, Vec<String>> {
    let places = |most: usize| Arc::new(Semaphore::new(most.clamp(1, Semaphore::MAX_PERMITS)));
    let together = (settings.custom_in_flight > 0).then(|| places(settings.custom_in_flight));
    let (mut hooks, mut errors) = (HashMap::new(), Vec::new());
    for (index, entry) in settings.custom_webhooks.iter().enumerate() {
        let path = format!("notify.custom_webhooks[{index}]");
        match Webhook::custom(&path, index, entry, settings.timeout, tls) {
            Ok(webhook) => {
                let (places, places_key) = match &together {
                    Some(places) => (Arc::clone(places), "notify.custom_in_flight"),
                    None => (places(settings.channel_in_flight), "notify.channel_in_flight"),
                };
                let channel = Channel { way: Way::Webhook(webhook), places, places_key };
                if hooks.insert(entry.name.clone(), Arc::new(channel)).is_some() {
                    errors.push(format!("{path}.name: {} is the name of an earlier one", entry.name));
                }
            }
            Err(found) => errors.extend(found),
        }
    }
    if errors.is_empty() { Ok(hooks) } else { Err(errors) }
}
