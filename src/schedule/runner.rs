//! Runs background functions when they are due, in one process: no two processes agree here who does.
//!
//! Owns the clock of each function. One that still runs when it is due again, by whatever clock, misses that time: it is counted and told,
//! and nothing piles up. Never looks at what a function does, and never cuts one off.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Zoned};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::cron::{Plan, Scheduled};
use crate::report::Time;
use crate::telemetry::Metrics;

/// The longest sleep: how late a function is after the machine's clock was set forward.
const SLICE: Duration = Duration::from_secs(10);
/// How far the machine's clock may be set back without the times of a cron plan coming again: a correction must run none twice, and after
/// a clock that was years ahead none may rest for years.
const CORRECTION: SignedDuration = SignedDuration::from_hours(1);

/// Runs the function of this name that was due at this time. The error is for people.
pub type Run = Arc<dyn Fn(String, Time) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Starts the runner; it ends when `stop` is cancelled. What is to be run changes with a reload: what stays goes on as it was.
pub fn start(
    scheduled: watch::Receiver<Arc<[Scheduled]>>,
    run: Run,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let runner = Runner { run, metrics, running: Mutex::default(), now: Zoned::now, slice: SLICE };
    tokio::spawn(Arc::new(runner).keep(scheduled, stop))
}

struct Runner {
    run: Run,
    metrics: Arc<Metrics>,
    /// The functions that run now.
    running: Mutex<HashSet<String>>,
    now: fn() -> Zoned,
    slice: Duration,
}

/// A function's clock, and what ends it. What runs then is finished.
struct Clock {
    scheduled: Scheduled,
    over: CancellationToken,
}

impl Runner {
    async fn keep(self: Arc<Self>, mut scheduled: watch::Receiver<Arc<[Scheduled]>>, stop: CancellationToken) {
        let (mut clocks, mut tasks) = (Vec::<Clock>::new(), JoinSet::new());
        loop {
            let mut new = scheduled.borrow_and_update().to_vec();
            clocks.retain(|clock| match new.iter().position(|one| *one == clock.scheduled) {
                Some(at) => {
                    new.swap_remove(at);
                    true
                }
                None => {
                    clock.over.cancel();
                    false
                }
            });
            for scheduled in new {
                let over = CancellationToken::new();
                tasks.spawn(Arc::clone(&self).tick(scheduled.clone(), over.clone()));
                clocks.push(Clock { scheduled, over });
            }
            tokio::select! {
                () = stop.cancelled() => return,
                Some(_) = tasks.join_next() => {}
                changed = scheduled.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn tick(self: Arc<Self>, scheduled: Scheduled, over: CancellationToken) {
        let mut last = (self.now)();
        let mut due = scheduled.plan.next(&last);
        while let Some(at) = due {
            let at = tokio::select! {
                () = over.cancelled() => return,
                at = self.wait(&scheduled.plan, &last, at) => at,
            };
            let ran = self.run_once(&scheduled.name, &at).await;
            if over.is_cancelled() {
                return;
            }
            let (mut next, now, mut missed) = (scheduled.plan.next(&at), (self.now)(), u64::from(!ran));
            while let Some(at) = next.as_ref().filter(|at| **at <= now) {
                missed += 1;
                // After a long sleep of the machine only the last one would be counted otherwise.
                next = if missed < 1000 { scheduled.plan.next(at) } else { scheduled.plan.next(&now) };
            }
            if missed > 0 {
                self.metrics.background_runs.with_label_values(&["missed"]).inc_by(missed);
                tracing::warn!(
                    function = scheduled.name,
                    missed,
                    "a background function was still running when it was due, or the clock was set forward"
                );
            }
            // Not the time that was due alone: the clock may have been years behind it when that was reckoned.
            (last, due) = (at.max(now), next);
        }
    }

    /// Waits for a time of the wall clock, which may be set meanwhile: forward, then it is due at once; back, then an interval begins
    /// anew, or a function of every second would rest for an hour. `last` is the time that it was due before. Gives the time that it was.
    async fn wait(&self, plan: &Plan, last: &Zoned, mut at: Zoned) -> Zoned {
        loop {
            let now = (self.now)();
            let begins_anew = match plan {
                Plan::Every(_) => true,
                Plan::Cron(_) => last.timestamp().duration_since(now.timestamp()) > CORRECTION,
            };
            if begins_anew
                && let Some(soonest) = plan.next(&now)
                && soonest < at
            {
                at = soonest;
            }
            let left = Duration::try_from(at.timestamp().duration_since(now.timestamp())).unwrap_or_default();
            if left.is_zero() {
                return at;
            }
            tokio::time::sleep(left.min(self.slice)).await;
        }
    }

    /// `false`: it still runs.
    async fn run_once(&self, name: &str, at: &Zoned) -> bool {
        let Some(_running) = Running::begin(&self.running, name) else { return false };
        let count = |result: &str| self.metrics.background_runs.with_label_values(&[result]).inc();
        let time = Time::from_micros(at.timestamp().as_microsecond());
        match (self.run)(name.to_owned(), time).await {
            Ok(()) => count("done"),
            Err(error) => {
                count("failed");
                tracing::error!(function = name, error, "a background function failed");
            }
        }
        true
    }
}

/// While it lives, the function of this name runs.
struct Running<'a> {
    all: &'a Mutex<HashSet<String>>,
    name: &'a str,
}

impl<'a> Running<'a> {
    fn begin(all: &'a Mutex<HashSet<String>>, name: &'a str) -> Option<Self> {
        let new = all.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        // Only where it is new: one that is made and dropped would take the name of the one that runs away.
        new.then(|| Self { all, name })
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(self.name);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use jiff::Timestamp;
    use jiff::tz::TimeZone;
    use tokio::sync::mpsc;

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

    /// Tells each beginning and each end, and asserts that they take turns.
    fn told(millis: u64) -> (Run, mpsc::UnboundedReceiver<&'static str>) {
        let (tell, told) = mpsc::unbounded_channel();
        let run: Run = Arc::new(move |_, _| {
            let tell = tell.clone();
            Box::pin(async move {
                let _ = tell.send("begin");
                tokio::time::sleep(Duration::from_millis(millis)).await;
                let _ = tell.send("end");
                Ok(())
            })
        });
        (run, told)
    }

    #[tokio::test]
    async fn reload_lets_what_runs_finish_and_begins_it_no_second_time() {
        for after in [vec![every("f", 10)], vec![every("f", 11)], Vec::new()] {
            let (stop, (run, mut runs)) = (CancellationToken::new(), told(60));
            let (change, scheduled) = watch::channel(Arc::from([every("f", 10)]));
            let task = start(scheduled, run, Arc::default(), stop.clone());
            assert_eq!(runs.recv().await, Some("begin"));
            change.send(after.into()).unwrap();
            assert_eq!(runs.recv().await, Some("end"), "it was cut off, or began twice");
            stop.cancel();
            task.await.unwrap();
        }
    }

    #[tokio::test]
    async fn reload_that_changes_nothing_leaves_a_clock_where_it_is() {
        let (stop, (run, mut runs)) = (CancellationToken::new(), told(0));
        let (change, scheduled) = watch::channel(Arc::from([every("f", 200)]));
        let task = start(scheduled, run, Arc::default(), stop.clone());
        let reloads = async {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                change.send(Arc::from([every("f", 200)])).unwrap();
            }
        };
        tokio::select! {
            begun = tokio::time::timeout(Duration::from_secs(10), runs.recv()) => assert_eq!(begun.unwrap(), Some("begin")),
            () = reloads => {}
        }
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn clock_that_is_set_forward_or_back_is_followed() {
        static SECOND: AtomicI64 = AtomicI64::new(1_000_000);
        let now = || Timestamp::from_second(SECOND.load(Ordering::Relaxed)).unwrap().to_zoned(TimeZone::UTC);
        let (run, _) = told(0);
        let slice = Duration::from_millis(5);
        let runner = Runner { run, metrics: Arc::default(), running: Mutex::default(), now, slice };
        let hourly = Plan::Every(Duration::from_secs(3600));
        let set = async |second: i64| {
            tokio::time::sleep(Duration::from_millis(30)).await;
            SECOND.store(second, Ordering::Relaxed);
        };
        let began = now();
        let due = hourly.next(&began).unwrap();
        let (at, ()) = tokio::join!(runner.wait(&hourly, &began, due.clone()), set(1_003_600));
        assert_eq!(at, due);
        // Back by an hour: it runs an hour from there, and not two.
        SECOND.store(1_000_000, Ordering::Relaxed);
        let later = hourly.next(&due).unwrap();
        let (at, ()) = tokio::join!(runner.wait(&hourly, &due, later), set(1_003_600));
        assert_eq!(at, due);
        // A clock that was years ahead, and one that is a little corrected: what has been does not come again.
        let cron = Plan::cron("0 * * * *").unwrap();
        let years_ahead = Timestamp::from_second(100_000_000).unwrap().to_zoned(TimeZone::UTC);
        SECOND.store(1_000_000, Ordering::Relaxed);
        let resting = cron.next(&years_ahead).unwrap();
        let (at, ()) = tokio::join!(runner.wait(&cron, &years_ahead, resting), set(1_000_800));
        assert_eq!(at.timestamp().as_second(), 1_000_800);
        SECOND.store(1_000_790, Ordering::Relaxed);
        let next = cron.next(&at).unwrap();
        let (again, ()) = tokio::join!(runner.wait(&cron, &at, next.clone()), set(1_004_400));
        assert_eq!(again, next);
    }

    #[tokio::test]
    async fn clock_that_was_years_ahead_for_a_moment_keeps_no_cron_plan_from_running() {
        static SECOND: AtomicI64 = AtomicI64::new(1_000_000);
        let now = || Timestamp::from_second(SECOND.load(Ordering::Relaxed)).unwrap().to_zoned(TimeZone::UTC);
        let (told, mut runs) = mpsc::unbounded_channel();
        let run: Run = Arc::new(move |_, time| {
            told.send(time.micros() / 1_000_000).unwrap();
            Box::pin(async { Ok(()) })
        });
        let slice = Duration::from_millis(5);
        let runner = Arc::new(Runner { run, metrics: Arc::default(), running: Mutex::default(), now, slice });
        let hourly = Scheduled { name: "f".to_owned(), plan: Plan::cron("0 * * * *").unwrap() };
        let over = CancellationToken::new();
        let ticking = tokio::spawn(runner.tick(hourly, over.clone()));
        for (second, due) in [(100_000_000, 1_000_800), (1_004_400, 1_004_400)] {
            // Until it has seen the clock as it is.
            tokio::time::sleep(Duration::from_millis(50)).await;
            SECOND.store(second, Ordering::Relaxed);
            let ran = tokio::time::timeout(Duration::from_secs(10), runs.recv()).await;
            assert_eq!(ran.ok().flatten(), Some(due));
            SECOND.store(1_000_900, Ordering::Relaxed);
        }
        over.cancel();
        ticking.await.unwrap();
    }
}
