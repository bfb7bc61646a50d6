//! Small tasks that run beside the roles: what the queues hold, for the metrics, and the sweeping of expired state.
//!
//! Owns their clocks. None of them may end the program; a failure is logged and tried again.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Stores;
use crate::queue::Queue;
use crate::report::Time;
use crate::state;
use crate::telemetry::Metrics;

/// How often the queues are asked what they hold.
const DEPTH_EVERY: Duration = Duration::from_secs(1);

/// Waits for the next time that work is due; `false`: the program stops.
async fn due(clock: &mut Interval, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        _ = clock.tick() => true,
    }
}

fn clock(period: Duration) -> Interval {
    let mut clock = interval(period);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    clock
}

/// Keeps the gauges of the queues.
pub(super) fn queues(
    queues: Vec<(&'static str, Arc<dyn Queue>)>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut clock = clock(DEPTH_EVERY);
        while due(&mut clock, &stop).await {
            for (label, queue) in &queues {
                // A drain waits for this task, and it would wait for a broker that is away until that has its time-out.
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = observe(label, queue.as_ref(), &metrics) => {}
                }
            }
        }
    })
}

async fn observe(label: &str, queue: &dyn Queue, metrics: &Metrics) {
    match queue.depth().await {
        Ok(depth) => {
            let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            metrics.queue_messages.with_label_values(&[label]).set(gauge(depth.messages));
            metrics.queue_bytes.with_label_values(&[label]).set(gauge(depth.bytes));
            let age = depth.oldest.map_or(0, |oldest| Time::now().since(oldest).as_secs());
            metrics.queue_oldest.with_label_values(&[label]).set(gauge(age));
            metrics.dead_letters.with_label_values(&[label]).set(gauge(depth.dead));
        }
        // Of a broker that is away the parts that need it complain.
        Err(error) => {
            tracing::debug!(queue = label, %error, "the queue does not say what it holds: its metrics stay as they were");
        }
    }
}

/// Sweeps the state.
pub(super) fn sweep(
    stores: &Stores,
    settings: &state::Settings,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let state = Arc::clone(&stores.state);
    let period = settings.sweep_every;
    tokio::spawn(async move {
        let mut clock = clock(period);
        while due(&mut clock, &stop).await {
            match state.sweep().await {
                Ok(removed) => metrics.swept.inc_by(removed as u64),
                Err(error) => tracing::warn!(%error, "the state could not be swept"),
            }
        }
    })
}
