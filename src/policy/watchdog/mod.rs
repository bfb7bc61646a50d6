//! Stops handlers that do not come back: one thread that watches every thread with a virtual machine.
//!
//! Owns the CPU accounting of calls and the debug hook that stops one. A worker says before a poll what it runs and how much it may
//! still use; that and two readings of a clock are all it costs while nothing is wrong. When a poll is over its limit this thread has the
//! worker's set a hook that raises at every following instruction, so that a loop around `pcall` cannot swallow it, and clear it when the
//! poll returns. C code runs no instructions: a poll that still does not come back is reported as [`Event::Stuck`].
//! Never decides what becomes of a stuck worker (that is [`crate::detect`]).
#![allow(unsafe_code)]

mod hook;
mod thread;

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use mlua::{Lua, ffi};
use thread::shared;

use crate::report::ReportId;

/// Shorter polls are charged by the wall: cheaper by a system call, and wrong by this much at most.
const SHORT: Duration = Duration::from_millis(1);
/// How long the self-test waits for its endless loop to be stopped.
const SELF_TEST: Duration = Duration::from_secs(10);

/// What the watchdog has to say about a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A call is over its limit and has not come back `policy.stuck_after` later: it is in C code that no hook can stop.
    Stuck {
        /// The worker, by the number it registered with.
        worker: usize,
        /// The generation of the policy's set.
        set: u64,
        /// The index of the policy in its set.
        policy: usize,
        /// The report or errand it was called for; the default id: its top level, while it was loaded.
        report: ReportId,
    },
    /// The call that was reported as stuck came back after all.
    Unstuck {
        /// The worker.
        worker: usize,
        /// The policy.
        policy: usize,
        /// The report.
        report: ReportId,
    },
}

/// What a worker says before a poll.
#[derive(Debug, Clone, Copy)]
pub(super) struct Poll {
    /// The generation of the policy's set.
    pub(super) set: u64,
    /// The policy's index.
    pub(super) policy: usize,
    /// The report.
    pub(super) report: ReportId,
    /// CPU that the call may still use.
    pub(super) cpu: Duration,
    /// Wall time that the call may still take.
    pub(super) wall: Duration,
}

/// The shared part of a lane: what the worker publishes and the watchdog reads.
struct Slot {
    worker: usize,
    stuck_after: Duration,
    on_event: Box<dyn Fn(Event) + Send + Sync>,
    clock: libc::clockid_t,
    /// Odd while a poll runs.
    sequence: AtomicU64,
    set: AtomicU64,
    policy: AtomicUsize,
    report: [AtomicU64; 2],
    cpu_micros: AtomicU64,
    wall_micros: AtomicU64,
    state: AtomicPtr<ffi::lua_State>,
    thread: hook::Thread,
    /// The number of the poll that is to be stopped.
    stop: AtomicU64,
    /// The hook is set. Only the thread that runs the polls sees to it.
    hooked: AtomicBool,
    gone: AtomicBool,
}

/// A thread's registration. Every virtual machine of the thread holds it; the watchdog forgets the thread when all are gone.
pub struct Lane {
    slot: Arc<Slot>,
    sampled_at: Cell<Instant>,
    sampled_cpu: Cell<Duration>,
    began: Cell<Instant>,
}

thread_local! {
    static LANE: RefCell<Weak<Lane>> = const { RefCell::new(Weak::new()) };
}

/// Registers this thread as worker number `worker`. The event function is called on the watchdog's thread, so it must be quick and must
/// not block. Keep the lane for the life of the thread, and register before the first [`super::Vm`] is built.
pub fn register(worker: usize, stuck_after: Duration, on_event: impl Fn(Event) + Send + Sync + 'static) -> Rc<Lane> {
    let lane = Rc::new(Lane::new(worker, stuck_after, Box::new(on_event)));
    LANE.with(|current| *current.borrow_mut() = Rc::downgrade(&lane));
    shared().slots().push(Arc::clone(&lane.slot));
    shared().wake.notify_one();
    lane
}

/// The lane of this thread. A thread that never registered (a test, a check) gets one that tells nobody.
pub(super) fn lane(stuck_after: Duration) -> Rc<Lane> {
    LANE.with(|current| current.borrow().upgrade()).unwrap_or_else(|| register(usize::MAX, stuck_after, |_| {}))
}

impl Lane {
    fn new(worker: usize, stuck_after: Duration, on_event: Box<dyn Fn(Event) + Send + Sync>) -> Self {
        let now = Instant::now();
        let slot = Slot {
            worker,
            stuck_after,
            on_event,
            clock: this_threads_clock(),
            sequence: AtomicU64::new(0),
            set: AtomicU64::new(0),
            policy: AtomicUsize::new(0),
            report: [AtomicU64::new(0), AtomicU64::new(0)],
            cpu_micros: AtomicU64::new(0),
            wall_micros: AtomicU64::new(0),
            state: AtomicPtr::new(std::ptr::null_mut()),
            thread: hook::Thread::this(),
            // No poll has it.
            stop: AtomicU64::new(u64::MAX),
            hooked: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        };
        let cpu = read_clock(slot.clock).unwrap_or_default();
        Self { slot: Arc::new(slot), sampled_at: Cell::new(now), sampled_cpu: Cell::new(cpu), began: Cell::new(now) }
    }

    /// Runs `f`, which runs Lua code of `lua` on this thread, under the limits of `poll`. Gives what `f` gave and the CPU it used.
    pub(super) fn watch<R>(&self, lua: &Lua, poll: Poll, f: impl FnOnce() -> R) -> (R, Duration) {
        self.enter(lua, poll);
        let left = Leave(self);
        let result = f();
        drop(left);
        (result, self.charge())
    }

    fn enter(&self, lua: &Lua, poll: Poll) {
        let slot = &*self.slot;
        let now = Instant::now();
        self.began.set(now);
        if now.duration_since(self.sampled_at.get()) >= SHORT {
            self.sample(now);
        }
        let id = poll.report.as_bytes();
        // The number of the last poll's end is seen before any of what follows is.
        fence(Ordering::Release);
        let half = |i: usize| u64::from_be_bytes(std::array::from_fn(|byte| id[8 * i + byte]));
        slot.set.store(poll.set, Ordering::Relaxed);
        slot.policy.store(poll.policy, Ordering::Relaxed);
        slot.report[0].store(half(0), Ordering::Relaxed);
        slot.report[1].store(half(1), Ordering::Relaxed);
        slot.cpu_micros.store(micros(poll.cpu), Ordering::Relaxed);
        slot.wall_micros.store(micros(poll.wall), Ordering::Relaxed);
        slot.state.store(lua.state(), Ordering::Relaxed);
        hook::begin(slot);
    }

    fn charge(&self) -> Duration {
        let now = Instant::now();
        let wall = now.duration_since(self.began.get());
        if wall < SHORT {
            return wall;
        }
        let before = self.sampled_cpu.get();
        self.sample(now);
        self.sampled_cpu.get().saturating_sub(before).min(wall)
    }

    fn sample(&self, now: Instant) {
        self.sampled_at.set(now);
        if let Some(cpu) = read_clock(self.slot.clock) {
            self.sampled_cpu.set(cpu);
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.slot.gone.store(true, Ordering::Release);
    }
}

/// Ends the watch also where the poll panics: a hook left behind would kill the next call.
struct Leave<'a>(&'a Lane);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        hook::end(&self.0.slot);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn this_threads_clock() -> libc::clockid_t {
    let mut clock = libc::CLOCK_THREAD_CPUTIME_ID;
    // SAFETY: the calling thread is alive, so its handle is valid, and `clock` is a valid place for the answer.
    let failed = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
    if failed != 0 {
        tracing::warn!(error = failed, "no CPU clock for this thread: its limits are not kept");
    }
    clock
}

/// `None` where the thread behind the clock is gone.
fn read_clock(clock: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer; a clock of a thread that is gone gives an error.
    let failed = unsafe { libc::clock_gettime(clock, &raw mut time) };
    (failed == 0).then(|| Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0)))
}

/// Whether a runaway handler can be stopped at all: compiles an endless loop and has it stopped. Blocks for well under a second, ten
/// where it fails. An error means that LuaJIT was built without the check; what to do is in the text.
pub fn self_test() -> Result<(), String> {
    let (done, result) = mpsc::channel();
    let started = std::thread::Builder::new().name("watchdog-test".to_owned()).spawn(move || {
        let _ = done.send(endless_loop());
    });
    started.map_err(|error| format!("no thread for the watchdog's self-test: {error}"))?;
    match result.recv_timeout(SELF_TEST) {
        Ok(outcome) => outcome,
        Err(_) => {
            Err("a policy in an endless loop cannot be stopped: LuaJIT was built without the hook check. Build with \
                       CFLAGS=-DLUAJIT_ENABLE_CHECKHOOK, as .cargo/config.toml sets it, after `cargo clean -p mlua-sys`"
                .to_owned())
        }
    }
}

fn endless_loop() -> Result<(), String> {
    let lua = Lua::new();
    let lane = register(usize::MAX, SELF_TEST, |_| {});
    let spin = |code: &str| lua.load(code).exec();
    let poll = Poll {
        set: 0,
        policy: 0,
        report: ReportId::default(),
        cpu: Duration::from_millis(20),
        wall: Duration::from_secs(5),
    };
    for hog in ["while true do end", "local n = 0; while true do n = n + 1 end", "while true do pcall(error) end"] {
        if lane.watch(&lua, poll, || spin(hog)).0.is_ok() {
            return Err(format!("the watchdog's self-test: {hog:?} came back by itself"));
        }
        spin("local n = 0; for i = 1, 1000 do n = n + i end")
            .map_err(|error| format!("the virtual machine is not usable after the watchdog stopped a call: {error}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_loop_is_stopped_and_the_machine_lives_on() {
        self_test().unwrap();
    }

    #[test]
    fn short_polls_are_charged_and_never_stopped() {
        let lua = Lua::new();
        let lane = lane(Duration::from_secs(1));
        let poll = Poll {
            set: 0,
            policy: 0,
            report: ReportId::default(),
            cpu: Duration::from_millis(200),
            wall: Duration::from_secs(5),
        };
        for _ in 0..10_000 {
            let (result, used) = lane.watch(&lua, poll, || lua.load("return 1 + 1").eval::<i64>());
            assert_eq!(result.unwrap(), 2);
            assert!(used > Duration::ZERO);
        }
    }
}
