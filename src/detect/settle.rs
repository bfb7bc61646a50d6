//! The order in which a report is settled, and nothing else:
//!
//! 1. its alerts and custom webhooks are confirmed by the alerts queue,
//! 2. its writes to the state are applied as one batch, with the marker that says who has handled it,
//! 3. its history document is stored,
//! 4. it is acknowledged.
//!
//! Any other order loses alerts at a crash: a report whose traces are stored before its alert is safe finds itself at the second run,
//! and stays silent. The login's next report may start after step 2.

use std::sync::Arc;
use std::time::Instant;

use super::circuit::Circuits;
use crate::alert::{Alert, Hook};
use crate::history::{History, HistoryError, Stored};
use crate::queue::{AckToken, Message, Publisher, Reason, headers};
use crate::report::{LoginReport, Time};
use crate::state::{Batch, State};
use crate::telemetry::Metrics;

/// The places where a report's effects go.
pub(super) struct Settler {
    pub(super) alerts: Arc<dyn Publisher>,
    pub(super) state: Arc<dyn State>,
    pub(super) history: Arc<dyn History>,
    pub(super) circuits: Arc<Circuits>,
    pub(super) metrics: Arc<Metrics>,
}

/// What a round of handlers wants to take effect.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) alerts: Vec<Alert>,
    pub(super) hooks: Vec<Hook>,
    pub(super) batch: Batch,
}

impl Collected {
    pub(super) const fn is_empty(&self) -> bool {
        self.alerts.is_empty() && self.hooks.is_empty() && self.batch.writes.is_empty() && self.batch.handled.is_none()
    }
}

/// How a report ends.
#[derive(Debug)]
pub(super) enum Ending {
    /// Every policy has handled it.
    Handled,
    /// Some policy never will.
    Dead(Reason),
}

impl Settler {
    /// Steps 1 and 2.
    pub(super) async fn effects(&self, collected: Collected) {
        let alerts = collected.alerts.iter().map(alert_message);
        let messages: Vec<Message> = alerts.chain(collected.hooks.iter().map(hook_message)).collect();
        if !messages.is_empty() {
            self.circuits.until_done("alerts", || self.alerts.publish(messages.clone())).await;
            for alert in &collected.alerts {
                self.metrics.alerts.with_label_values(&[alert.severity.name()]).inc();
            }
        }
        let Batch { writes, handled, claims } = collected.batch;
        if !writes.is_empty() || handled.is_some() {
            let again = || Batch { writes: writes.clone(), handled: handled.clone(), claims: Vec::new() };
            self.circuits.until_done("state", || self.state.apply(again())).await;
        }
        // Until here the adds were counted as claims; from here on they are counted as stored.
        drop(claims);
    }

    /// Step 3. `wrote`: the report has writes in the state, which must be safe from a power cut before the ack.
    pub(super) async fn store(&self, report: Arc<LoginReport>, wrote: bool) {
        let stored = self
            .circuits
            .until_done("history", || async {
                match self.history.store(Arc::clone(&report)).await {
                    // A report that this history will never take must not stop all the others.
                    Err(HistoryError::Query { path, reason }) => {
                        tracing::error!(report = %report.id, path, reason, "the history refuses a report; it is not stored");
                        Ok(Stored::Nothing)
                    }
                    other => other,
                }
            })
            .await;
        if stored == Stored::Already {
            self.metrics.repeated.inc();
        }
        if wrote {
            self.circuits.until_done("state", || self.state.sync()).await;
        }
    }

    /// Step 4. `t`: the report's time; `decided`: when its handlers had ended.
    pub(super) fn end(&self, token: AckToken, ending: Ending, t: Time, decided: Instant) {
        match ending {
            Ending::Handled => token.ack(),
            Ending::Dead(reason) => token.reject(reason),
        }
        self.metrics.handled.inc();
        self.metrics.settle.observe(decided.elapsed().as_secs_f64());
        self.metrics.lag.set(Time::now().since(t).as_secs_f64());
    }
}

fn alert_message(alert: &Alert) -> Message {
    // An alert is strings and JSON values: writing it has no way to fail.
    Message::new(alert.key.clone(), serde_json::to_vec(alert).unwrap_or_default())
}

/// The body exactly as the policy passed it. What goes to one hook stays in order.
fn hook_message(hook: &Hook) -> Message {
    let mut message = Message::new(format!("webhook:{}", hook.name), hook.body.clone());
    let time = hook.time.micros().to_string();
    let headers = [(headers::WEBHOOK, hook.name.clone()), (headers::ID, hook.id.clone()), (headers::TIME, time)];
    message.headers = headers.map(|(name, value)| (name.to_owned(), value)).into();
    message
}
