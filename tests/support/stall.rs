//! A clock that stands still while the machine does: what a program may take at most is the same then on a machine that stalls for seconds.
//!
//! A thread that wants to wake every 10 ms adds up by how much it overslept. A program that is slow by itself cannot cause that: the thread
//! needs next to nothing of the machine, and is woken before those that are busy. For what must take a while at least there is [`Instant`].

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the thread wants to sleep.
const TICK: Duration = Duration::from_millis(10);
/// Whoever wakes so late wakes on a machine that is busy, and has lost nothing.
const LATE: Duration = Duration::from_millis(30);

/// What the thread saw. `None`: nobody has asked for a clock yet.
static SEEN: Mutex<Option<Seen>> = Mutex::new(None);

struct Seen {
    /// All that it overslept.
    lost: Duration,
    /// When it woke last.
    woke: Instant,
}

impl Seen {
    /// With a stall that goes on.
    fn lost(&self) -> Duration {
        let overslept = self.woke.elapsed().saturating_sub(TICK);
        if overslept > LATE { self.lost + overslept } else { self.lost }
    }
}

/// A time that begins with it.
pub(crate) struct Clock {
    began: Instant,
    lost: Duration,
}

impl Clock {
    pub(crate) fn start() -> Self {
        // In this order, and the other one in `elapsed`: a stall between the two makes the time shorter and not longer.
        let lost = lost();
        Self { began: Instant::now(), lost }
    }

    /// How long the machine has run since.
    pub(crate) fn elapsed(&self) -> Duration {
        let elapsed = self.began.elapsed();
        elapsed.saturating_sub(lost().saturating_sub(self.lost))
    }
}

fn seen() -> MutexGuard<'static, Option<Seen>> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the machine has lost since somebody asked first.
fn lost() -> Duration {
    let begin = || {
        std::thread::spawn(watch);
        Seen { lost: Duration::ZERO, woke: Instant::now() }
    };
    seen().get_or_insert_with(begin).lost()
}

fn watch() {
    loop {
        std::thread::park_timeout(TICK);
        if let Some(seen) = seen().as_mut() {
            *seen = Seen { lost: seen.lost(), woke: Instant::now() };
        }
    }
}
