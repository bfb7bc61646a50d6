//! Moves the reports of a topic that is not keyed by login into the reports queue, which is: wforce's `kafka=true`, say, writes one
//! login's reports to any partition, and who reads them there has no order.
//!
//! Owns what becomes of a record: decoded and stamped as `receive` does, in order of arrival; confirmed by the reports queue before it is
//! done where it comes from. What is no report is a dead letter there. The stamp goes by the record's own time, so that a record which is
//! moved again after a crash has the same time and the same id.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::carry::{Carried, Carrier, Step};
use super::{Settings, Stamper};
use crate::health::Health;
use crate::queue::{Backoff, Delivery, Publisher, Queue, Reason, ReasonKind, Subscription, Unsettled};
use crate::report::Time;
use crate::telemetry::Metrics;

/// What is taken from the topic ahead of the reports queue.
const AHEAD: Unsettled = Unsettled { messages: 8000, bytes: 64 * 1024 * 1024 };
/// The name of what is waited for, in readyz and the metrics.
const WAITS_FOR: &str = "rekey";

/// What is needed.
pub struct Parts<'a> {
    /// The settings of the role.
    pub settings: &'a Settings,
    /// The first wait before something is tried again; the longest is a setting of the role.
    pub retry_first: Duration,
    /// The topic that is not keyed.
    pub from: Arc<dyn Queue>,
    /// The reports queue.
    pub target: Arc<dyn Publisher>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The latches.
    pub health: Arc<Health>,
}

struct Rekey {
    from: Arc<dyn Queue>,
    carrier: Carrier,
    stamper: Stamper,
    max_skew: Duration,
    backoff: Backoff,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

/// Starts it; it ends after `stop`.
pub fn start(parts: Parts<'_>, stop: CancellationToken) -> JoinHandle<()> {
    let backoff = Backoff { first: parts.retry_first, most: parts.settings.spool_retry_most };
    let rekey = Rekey {
        from: parts.from,
        carrier: Carrier::new(parts.target, backoff),
        stamper: Stamper::new(parts.settings, Arc::clone(&parts.metrics)),
        max_skew: parts.settings.max_skew,
        backoff,
        metrics: parts.metrics,
        health: parts.health,
    };
    tokio::spawn(rekey.run(stop))
}

impl Rekey {
    async fn run(mut self, stop: CancellationToken) {
        let mut failures = 0;
        while !stop.is_cancelled() {
            match self.from.subscribe(AHEAD, self.backoff) {
                Ok(subscription) => {
                    failures = 0;
                    tracing::info!(from = self.from.name(), "reports of this topic are moved into the reports queue");
                    self.take_from(subscription, &stop).await;
                }
                Err(error) => tracing::debug!(%error, "the topic cannot be read yet"),
            }
            failures += 1;
            tokio::select! {
                () = tokio::time::sleep(self.backoff.wait(failures, rand::random())) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Until the program stops, or the source hands nothing out any more.
    async fn take_from(&mut self, subscription: Subscription, stop: &CancellationToken) {
        let Subscription { mut deliveries, pause, source } = subscription;
        let mut got = Vec::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                count = deliveries.recv_many(&mut got, self.carrier.room()) => {
                    if count == 0 {
                        break;
                    }
                }
            }
            got.drain(..).for_each(|delivery| self.take(delivery));
            if !self.carry(stop).await {
                break;
            }
        }
        // What is not confirmed comes again at the next start: nothing of it is done.
        self.carrier.clear();
        drop((deliveries, pause));
        let _ = source.await;
    }

    fn take(&mut self, delivery: Delivery) {
        let Delivery { message, coordinates, token, .. } = delivery;
        match self.stamper.message(&message.body, received(message.published, self.max_skew)) {
            Ok(message) => self.carrier.push(Carried { message, token, coordinates }),
            Err(malformed) => {
                let text = malformed.to_string();
                token.reject(Reason { kind: ReasonKind::Malformed, text, only: Vec::new(), attempts: 1 });
            }
        }
    }

    /// Until all that was taken is done. `false`: the program stops.
    async fn carry(&mut self, stop: &CancellationToken) -> bool {
        while !self.carrier.is_empty() {
            match self.carrier.step(stop).await {
                Step::Done(logins) => {
                    self.metrics.received.with_label_values(&["rekey"]).inc_by(logins.len() as u64);
                    self.waits(None);
                }
                Step::TooLarge(_) if self.carrier.is_empty() => self.waits(None),
                Step::TooLarge(_) => {}
                Step::Failed(error) => self.waits(Some(error.to_string())),
                Step::Over => return false,
            }
        }
        !stop.is_cancelled()
    }

    fn waits(&self, said: Option<String>) {
        self.metrics.waiting.with_label_values(&[WAITS_FOR]).set(i64::from(said.is_some()));
        self.health.set_waiting(WAITS_FOR, said);
    }
}

/// When a record was received: its own time, unless a clock is so far off that it is none.
fn received(published: Time, max_skew: Duration) -> Time {
    let now = Time::now();
    if published > now.plus(max_skew) { now } else { published }
}
