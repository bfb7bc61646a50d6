//! Runs background functions when they are due, in one process: no two processes agree here who does.
//!
//! Owns the clock of each function. One that still runs when it is due again misses that time: it is counted and told, and nothing piles
//! up. Never looks at what a function does.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::{Timestamp, Zoned};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::cron::Scheduled;
use crate::report::Time;
use crate::telemetry::Metrics;

/// Runs the function of this name that was due at this time. The error is for people.
pub type Run = Arc<dyn Fn(String, Time) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Starts the runner; it ends when `stop` is cancelled. What is to be run changes with a reload: then each interval begins anew.
pub fn start(
    mut scheduled: watch::Receiver<Arc<[Scheduled]>>,
    run: Run,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let mut clocks = JoinSet::new();
            for one in scheduled.borrow_and_update().iter() {
                clocks.spawn(clock(one.clone(), Arc::clone(&run), Arc::clone(&metrics)));
            }
            let changed = tokio::select! {
                () = stop.cancelled() => false,
                changed = scheduled.changed() => changed.is_ok(),
            };
            if !changed {
                return;
            }
        }
    })
}

async fn clock(scheduled: Scheduled, run: Run, metrics: Arc<Metrics>) {
    let count = |result: &str| metrics.background_runs.with_label_values(&[result]).inc();
    let mut due = scheduled.plan.next(&Zoned::now());
    while let Some(at) = due {
        // By the wall clock: one that is set forward or back is followed.
        let wait = at.timestamp().duration_since(Timestamp::now());
        tokio::time::sleep(wait.try_into().unwrap_or_default()).await;
        let time = Time::from_micros(at.timestamp().as_microsecond());
        match run(scheduled.name.clone(), time).await {
            Ok(()) => count("done"),
            Err(error) => {
                count("failed");
                tracing::error!(function = scheduled.name, error, "a background function failed");
            }
        }
        let (mut next, now, mut missed) = (scheduled.plan.next(&at), Zoned::now(), 0_u64);
        while let Some(at) = next.as_ref().filter(|at| **at <= now) {
            missed += 1;
            // After a long sleep of the machine only the last one would be counted otherwise.
            next = if missed < 1000 { scheduled.plan.next(at) } else { scheduled.plan.next(&now) };
        }
        if missed > 0 {
            metrics.background_runs.with_label_values(&["missed"]).inc_by(missed);
            tracing::warn!(
                function = scheduled.name,
                missed,
                "a background function was still running when it was due"
            );
        }
        due = next;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::super::cron::Plan;
    use super::*;

    fn every(name: &str, millis: u64) -> Scheduled {
        Scheduled { name: name.to_owned(), plan: Plan::Every(Duration::from_millis(millis)) }
    }

    #[tokio::test]
    async fn function_that_takes_longer_than_its_interval_misses_times_and_never_runs_twice_at_once() {
        let metrics = Arc::new(Metrics::new());
        let stop = CancellationToken::new();
        let (told, mut runs) = mpsc::unbounded_channel();
        let running = Arc::new(Mutex::new(0));
        let run: Run = Arc::new(move |_, time| {
            let (told, running) = (told.clone(), Arc::clone(&running));
            Box::pin(async move {
                *running.lock().unwrap() += 1;
                assert_eq!(*running.lock().unwrap(), 1, "it runs twice at once");
                tokio::time::sleep(Duration::from_millis(25)).await;
                *running.lock().unwrap() -= 1;
                told.send(time).unwrap();
                Ok(())
            })
        });
        let (change, scheduled) = watch::channel(Arc::from([every("slow", 10)]));
        let task = start(scheduled, run, Arc::clone(&metrics), stop.clone());
        let mut times = Vec::new();
        for _ in 0..5 {
            times.push(runs.recv().await.unwrap());
        }
        assert!(times.is_sorted_by(|a, b| a < b));
        assert!(metrics.background_runs.with_label_values(&["missed"]).get() > 0);
        // A reload takes it away.
        change.send(Arc::from([])).unwrap();
        while tokio::time::timeout(Duration::from_millis(200), runs.recv()).await.is_ok() {}
        stop.cancel();
        task.await.unwrap();
    }
}
