//! What readyz and livez answer from: whether this process should be sent work, and which dependency it waits for.
//!
//! Owns the latches. Readiness follows the work, not its dependencies: an open circuit is named in the body and never takes `receive`
//! out of service, because wforce tries once.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use crate::report::Time;

/// The latches of one process.
#[derive(Debug, Default)]
pub struct Health {
    started: AtomicBool,
    draining: AtomicBool,
    /// Set by `receive` while its queue refuses reports.
    refusing: AtomicBool,
    waiting_for: Mutex<BTreeMap<String, String>>,
    /// The last beat of each task that must never stop, wall clock in microseconds; 0 = done.
    beats: Mutex<BTreeMap<&'static str, std::sync::Arc<AtomicI64>>>,
}

/// One task's heart; [`Beat::beat`] from time to time says that it is alive.
#[derive(Debug, Clone)]
pub struct Beat(std::sync::Arc<AtomicI64>);

impl Beat {
    /// Alive now.
    pub fn beat(&self) {
        self.0.store(Time::now().micros(), Ordering::Relaxed);
    }

    /// The task ended on purpose: its silence is no hang.
    pub fn done(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl Health {
    /// All roles are up.
    pub fn set_started(&self) {
        self.started.store(true, Ordering::Release);
    }

    /// The process is finishing what it has and takes nothing more.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether the process is draining.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Whether the reports queue refuses what `receive` hands it.
    pub fn set_refusing(&self, refusing: bool) {
        self.refusing.store(refusing, Ordering::Relaxed);
    }

    /// Names a dependency that is waited for, with what it said; `None`: it works again.
    pub fn set_waiting(&self, dependency: &str, said: Option<String>) {
        let mut waiting = self.waiting_for.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match said {
            Some(said) => waiting.insert(dependency.to_owned(), said),
            None => waiting.remove(dependency),
        };
    }

    /// The dependencies that are waited for, with what they said.
    pub fn waiting(&self) -> BTreeMap<String, String> {
        self.waiting_for.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Whether this process should be sent work.
    pub fn ready(&self) -> bool {
        self.started.load(Ordering::Acquire) && !self.draining() && !self.refusing.load(Ordering::Relaxed)
    }

    /// Registers a task that must never stop.
    pub fn beat(&self, task: &'static str) -> Beat {
        let beat = Beat(std::sync::Arc::new(AtomicI64::new(Time::now().micros())));
        self.beats.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(task, beat.0.clone());
        beat
    }

    /// The tasks that were silent for longer than `limit`: a hang.
    pub fn hung(&self, limit: Duration) -> Vec<&'static str> {
        let oldest = Time::now().minus(limit).micros();
        let beats = self.beats.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        beats
            .iter()
            .filter(|(_, last)| (1..oldest).contains(&last.load(Ordering::Relaxed)))
            .map(|(task, _)| *task)
            .collect()
    }
}
