//! From the alerts queue to people: the log and the webhooks; and what policies send to custom webhooks.
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
//!
//! An alert stays in flight until its last channel is done with it, and there are thousands of places, so that a channel that is down
//! for minutes holds up nobody else; what is scarce is the tries at once on one channel, and each channel has its own.

mod channel;
mod custom;
mod deliver;
mod log;
mod render;
mod suppress;
mod webhook;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

pub use channel::{Channel, ChannelSettings, build_channels, build_hooks};
pub use custom::HookSettings;
pub use render::line;
pub use webhook::Webhook;

use crate::health::{Beat, Health};
use crate::outbound::Tls;
use crate::queue::delivery::ReasonKind;
use crate::queue::{Delivery, Message, Settlement, Subscription};
use crate::state::State;
use crate::telemetry::Metrics;
use deliver::{Shared, decode, decode_hook, reason};
use suppress::{Suppression, Turns};

/// Settings of notify.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    #[serde(with = "humantime_serde")]
    pub suppress: Duration,
    pub in_flight: usize,
    pub channel_in_flight: usize,
    pub custom_in_flight: usize,
    pub max_attempts: u32,
    #[serde(with = "humantime_serde")]
    pub give_up_after: Duration,
    #[serde(with = "humantime_serde")]
    pub retry_first: Duration,
    #[serde(with = "humantime_serde")]
    pub retry_most: Duration,
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    pub channels: Vec<ChannelSettings>,
    pub custom_webhooks: Vec<HookSettings>,
}

/// How long the source may take to store its position after everything was settled.
const SOURCE_END: Duration = Duration::from_secs(10);
/// How often the loop shows that it is alive.
const BEAT: Duration = Duration::from_secs(1);

/// What the role is made of.
pub struct Parts {
    /// `[notify]`.
    pub settings: Settings,
    /// For webhooks to `https://`.
    pub tls: Tls,
    /// The alerts queue.
    pub alerts: Subscription,
    /// Where the windows of suppression lie.
    pub state: Arc<dyn State>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Where a receiver that does not answer is named.
    pub health: Arc<Health>,
}

/// Why the role ended although nobody had told it to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotifyError {
    /// The alerts queue hands nothing more out.
    #[error("the source of the alerts queue has ended: no alert goes out any more; see the log, then restart")]
    SourceEnded,
    /// A fault of this program.
    #[error("the task of notify panicked: no alert goes out any more; see the log, then restart")]
    Panicked,
}

/// The notify role, running.
#[must_use = "alerts go out until it is drained"]
pub struct Notify {
    stop: CancellationToken,
    /// How long a drain may take; read when `stop` was cancelled.
    within: Arc<OnceLock<Duration>>,
    task: JoinHandle<Option<NotifyError>>,
}

impl Notify {
    /// Builds the channels and starts taking alerts. All errors of the settings at once. Needs a tokio runtime.
    pub fn start(parts: Parts) -> Result<Self, Vec<String>> {
        let (channels, hooks) =
            match (build_channels(&parts.settings, &parts.tls), build_hooks(&parts.settings, &parts.tls)) {
                (Ok(channels), Ok(hooks)) => (channels, hooks),
                (channels, hooks) => return Err(channels.err().into_iter().chain(hooks.err()).flatten().collect()),
            };
        for channel in channels.iter().chain(hooks.values()) {
            channel.show_waiting(&parts.metrics, false);
        }
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            suppression: Suppression::new(parts.state, parts.settings.suppress),
            settings: parts.settings,
            channels,
            hooks,
            turns: Turns::default(),
            metrics: parts.metrics,
            health: parts.health,
            stop: stop.clone(),
        });
        let beat = shared.health.beat("notify");
        let within = Arc::new(OnceLock::new());
        let task = tokio::spawn(run(shared, parts.alerts, beat, Arc::clone(&within)));
        Ok(Self { stop, within, task })
    }

    /// Whether it has ended by itself. [`Self::drain`] says why.
    pub fn ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Takes nothing more, finishes what is in flight within the time given (a channel that waits for its next try is not waited
    /// for), hands the rest back, and returns when the source has stored its position. Gives the error for which it had ended before.
    pub async fn drain(self, within: Duration) -> Option<NotifyError> {
        let _ = self.within.set(within);
        self.stop.cancel();
        self.task.await.unwrap_or_else(|_| {
            tracing::error!("the task of notify panicked; what was in flight is handed out again at the next start");
            Some(NotifyError::Panicked)
        })
    }
}

async fn run(
    shared: Arc<Shared>,
    alerts: Subscription,
    beat: Beat,
    within: Arc<OnceLock<Duration>>,
) -> Option<NotifyError> {
    let Subscription { mut deliveries, pause, source } = alerts;
    let mut tasks = JoinSet::new();
    let mut tick = tokio::time::interval(BEAT);
    let ended = loop {
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => break None,
            _ = tick.tick() => beat.beat(),
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            taken = deliveries.recv(), if tasks.len() < shared.settings.in_flight => match taken {
                Some(delivery) => start(&shared, delivery, &mut tasks),
                None => break Some(NotifyError::SourceEnded),
            },
        }
    };
    match &ended {
        None => beat.done(),
        // Its silence is a fault, and livez says so where nobody acts on it.
        Some(error) => tracing::error!(%error, "notify has ended"),
    }
    // Closed before it is paused: see detect's drain. What waits in the channel goes back at once, with its tokens.
    deliveries.close();
    let _ = pause.send(true);
    while deliveries.recv().await.is_some() {}
    let finish = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(within.get().copied().unwrap_or(SOURCE_END), finish).await.is_err() {
        tracing::warn!(alerts = tasks.len(), "not all alerts were sent in time; they go back to the queue");
        tasks.shutdown().await;
    }
    let abort = source.abort_handle();
    if tokio::time::timeout(SOURCE_END, source).await.is_err() {
        tracing::warn!("the source of the alerts queue did not stop in time; alerts may be sent again");
        abort.abort();
    }
    ended
}

fn start(shared: &Arc<Shared>, delivery: Delivery, tasks: &mut JoinSet<()>) {
    let Delivery { message, token, coordinates, .. } = delivery;
    let work = match work(shared, message) {
        Ok(work) => work,
        Err(why) => {
            tracing::warn!(coordinates, why, "a message in the alerts queue is no alert; it becomes a dead letter");
            return token.reject(reason(ReasonKind::Malformed, why));
        }
    };
    tasks.spawn(async move {
        // The token stays out here: a panic in there makes a dead letter, and a cancelled task hands the alert back.
        match AssertUnwindSafe(work).catch_unwind().await {
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

/// What is to be done with a message, or why it is nothing that this queue carries.
fn work(shared: &Arc<Shared>, message: Arc<Message>) -> Result<BoxFuture<'static, Settlement>, String> {
    let shared = Arc::clone(shared);
    if let Some(hook) = decode_hook(&message) {
        let (hook, published) = (hook?, message.published);
        return Ok(Box::pin(async move { shared.send_hook(hook, published).await }));
    }
    let mut job = decode(message)?;
    // The place in the line is taken here, in the order of the queue, and not by whichever task runs first.
    job.turn = job.only.is_none().then(|| shared.turns.take(&job.alert));
    Ok(Box::pin(async move { shared.handle(job).await }))
}
