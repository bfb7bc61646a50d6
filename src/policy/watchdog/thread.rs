//! The watchdog's own thread: it looks at every lane, has a poll stopped that is over its limit, and tells of one that does not come
//! back. One thread for the process.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::{Event, Slot, read_clock};
use crate::report::ReportId;

/// How often the watchdog looks while something runs, and while nothing does: how far over its limit a call may get.
const TICK: Duration = Duration::from_millis(10);
const IDLE_TICK: Duration = Duration::from_millis(100);

/// What the watchdog's thread remembers of a lane between two looks.
struct Watched {
    slot: Arc<Slot>,
    sequence: u64,
    cpu: Duration,
    since: Instant,
    over: Option<Instant>,
    stuck: Option<(usize, ReportId)>,
}

impl Watched {
    fn new(slot: Arc<Slot>) -> Self {
        Self { slot, sequence: 0, cpu: Duration::ZERO, since: Instant::now(), over: None, stuck: None }
    }

    /// Looks once. Gives whether a poll runs.
    fn look(&mut self) -> bool {
        let sequence = self.slot.sequence.load(Ordering::Acquire);
        if sequence != self.sequence {
            self.came_back();
            self.sequence = sequence;
            self.over = None;
            self.since = Instant::now();
            self.cpu = read_clock(self.slot.clock).unwrap_or_default();
            return sequence % 2 == 1;
        }
        if sequence.is_multiple_of(2) {
            return false;
        }
        if self.over.is_none() && !self.is_over() {
            return true;
        }
        let since = *self.over.get_or_insert_with(Instant::now);
        self.fire();
        if self.stuck.is_none() && since.elapsed() >= self.slot.stuck_after {
            let (policy, report) = self.running();
            let set = self.slot.set.load(Ordering::Relaxed);
            // Read under the same number as at the start of this look, or they belong to the next poll; and read before it is.
            fence(Ordering::Acquire);
            if self.slot.sequence.load(Ordering::Acquire) == sequence {
                self.stuck = Some((policy, report));
                (self.slot.on_event)(Event::Stuck { worker: self.slot.worker, set, policy, report });
            }
        }
        true
    }

    /// Says that a call which was told as stuck has ended.
    fn came_back(&mut self) {
        if let Some((policy, report)) = self.stuck.take() {
            (self.slot.on_event)(Event::Unstuck { worker: self.slot.worker, policy, report });
        }
    }

    /// Whether the thread is still there. An abandoned one ends as soon as its call comes back, often between two looks: unsaid, that
    /// return would leave the process to end itself for a hang that is over.
    fn is_there(&mut self) -> bool {
        let gone = self.slot.gone.load(Ordering::Acquire);
        if gone {
            self.came_back();
        }
        !gone
    }

    fn is_over(&self) -> bool {
        if self.since.elapsed() > Duration::from_micros(self.slot.wall_micros.load(Ordering::Relaxed)) {
            return true;
        }
        let limit = Duration::from_micros(self.slot.cpu_micros.load(Ordering::Relaxed));
        read_clock(self.slot.clock).is_some_and(|cpu| cpu.saturating_sub(self.cpu) > limit)
    }

    /// Has the poll stopped. At each look anew: what the signal interrupted may have undone it.
    fn fire(&self) {
        self.slot.stop.store(self.sequence, Ordering::SeqCst);
        self.slot.thread.interrupt();
    }

    fn running(&self) -> (usize, ReportId) {
        let high = self.slot.report[0].load(Ordering::Relaxed);
        let low = self.slot.report[1].load(Ordering::Relaxed);
        // The bytes come from an id, so that its text is one.
        let report = format!("{high:016x}{low:016x}").parse().unwrap_or_default();
        (self.slot.policy.load(Ordering::Relaxed), report)
    }
}

pub(super) struct Shared {
    new: Mutex<Vec<Arc<Slot>>>,
    pub(super) wake: Condvar,
}

impl Shared {
    pub(super) fn slots(&self) -> MutexGuard<'_, Vec<Arc<Slot>>> {
        self.new.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One watchdog for the process: it is started by the first registration and waits while there is none.
pub(super) fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    static STARTED: OnceLock<bool> = OnceLock::new();
    let shared = SHARED.get_or_init(|| Shared { new: Mutex::default(), wake: Condvar::new() });
    STARTED.get_or_init(|| {
        let started = std::thread::Builder::new().name("watchdog".to_owned()).spawn(|| run(shared));
        if let Err(error) = &started {
            tracing::error!(%error, "no thread for the watchdog: handlers are not stopped");
        }
        started.is_ok()
    });
    shared
}

fn run(shared: &Shared) {
    let mut watched: Vec<Watched> = Vec::new();
    let mut tick = IDLE_TICK;
    loop {
        let mut new = shared.slots();
        if watched.is_empty() && new.is_empty() {
            new = shared.wake.wait(new).unwrap_or_else(PoisonError::into_inner);
        } else if new.is_empty() {
            new = shared.wake.wait_timeout(new, tick).unwrap_or_else(PoisonError::into_inner).0;
        }
        watched.extend(new.drain(..).map(Watched::new));
        drop(new);
        watched.retain_mut(Watched::is_there);
        let running = watched.iter_mut().fold(false, |running, lane| lane.look() | running);
        tick = if running { TICK } else { IDLE_TICK };
    }
}
