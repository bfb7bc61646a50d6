//! The watchdog's own thread: it looks at every lane, sets the hook where a poll is over its limit, and tells of one that does not come
//! back. One thread for the process.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mlua::ffi;

use super::{Event, Slot, lock, read_clock};
use crate::report::ReportId;

/// How often the watchdog looks while something runs, and while nothing does: how far over its limit a call may get.
const TICK: Duration = Duration::from_millis(10);
const IDLE_TICK: Duration = Duration::from_millis(100);

/// Raises in the running Lua code. Called by LuaJIT on the worker's thread, before an instruction.
unsafe extern "C-unwind" fn stop(state: *mut ffi::lua_State, _: *mut ffi::lua_Debug) {
    // SAFETY: LuaJIT calls a hook with the state that runs; raising is what a hook may do, and this frame owns nothing to drop.
    unsafe { ffi::luaL_error(state, c"the handler is over its limit".as_ptr()) };
}

/// # Safety
/// The state's machine must be alive, and the caller must hold the slot's lock.
pub(super) unsafe fn unhook(state: *mut ffi::lua_State) {
    // SAFETY: as above. Cleared twice with a hook in between: LuaJIT rewrites its dispatch table only on a change of mode, and a
    // trace that ended while the other thread wrote it may have left half of it behind.
    unsafe {
        ffi::lua_sethook(state, None, 0, 0);
        ffi::lua_sethook(state, Some(stop), ffi::LUA_MASKCOUNT, i32::MAX);
        ffi::lua_sethook(state, None, 0, 0);
    }
}

/// What the watchdog's thread remembers of a lane between two looks.
struct Watched {
    slot: Arc<Slot>,
    sequence: u64,
    cpu: Duration,
    since: Instant,
    over: Option<Instant>,
    /// When the hook is to be set anew, since it was over.
    fire_after: Duration,
    stuck: Option<(usize, ReportId)>,
}

impl Watched {
    fn new(slot: Arc<Slot>) -> Self {
        Self {
            slot,
            sequence: 0,
            cpu: Duration::ZERO,
            since: Instant::now(),
            over: None,
            fire_after: Duration::ZERO,
            stuck: None,
        }
    }

    /// Looks once. Gives whether a poll runs.
    fn look(&mut self) -> bool {
        let sequence = self.slot.sequence.load(Ordering::Acquire);
        if sequence != self.sequence {
            self.came_back();
            self.sequence = sequence;
            (self.over, self.fire_after) = (None, Duration::ZERO);
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
        // Each time later: setting it anew lets the code run for a moment, and a deep recursion that is being unwound through `pcall`s grew in
        // that moment by as much as it had lost since the last time, for ever.
        if since.elapsed() >= self.fire_after {
            self.fire();
            self.fire_after = since.elapsed() * 2;
        }
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

    fn fire(&self) {
        let slot = &*self.slot;
        let _held = lock(&slot.hook);
        let before = slot.fired.swap(true, Ordering::SeqCst);
        if slot.sequence.load(Ordering::SeqCst) != self.sequence {
            slot.fired.store(before, Ordering::SeqCst);
            return;
        }
        let state = slot.state.load(Ordering::Relaxed);
        // SAFETY: the poll with this number has not returned, and cannot get past `leave` while this lock is held, so the machine is
        // alive. LuaJIT lets a hook be set from outside of the running code (it is how its own interpreter handles an interrupt). Set
        // anew by way of none, because a trace that ends at the same moment may undo it.
        unsafe {
            ffi::lua_sethook(state, None, 0, 0);
            ffi::lua_sethook(state, Some(stop), ffi::LUA_MASKCOUNT, 1);
        }
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
        lock(&self.new)
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
