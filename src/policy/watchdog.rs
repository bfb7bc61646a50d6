//! Stops a handler that runs away, from outside of its thread.
//!
//! One thread looks at every worker some times a second. While a worker polls a call it has a *turn*, a number that is never used
//! twice. A turn that has used more CPU than its limit gets a debug hook that raises at every instruction, so that no pcall can
//! swallow it; the worker clears the hook when the poll returns. C code never looks at a hook: a turn that does not come back after
//! that is reported as stuck, and its worker is to be given up.
//!
//! CPU is the worker thread's own clock, not the wall: a handler is not guilty of a busy machine. While nothing is over its limit a
//! poll costs four atomic stores. Owns all unsafe code of the program: the hook is set from another thread, which LuaJIT allows
//! (`lua_sethook` only stores a function, a mask and a count, and is meant to be called from signal handlers).
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::c_int;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use mlua::{Lua, ffi};
use tokio::sync::mpsc;

use crate::report::ReportId;

/// How often the workers are looked at.
const TICK: Duration = Duration::from_millis(10);

/// How long the self-test lets an endless loop run before it says that the hook does not work.
const SELF_TEST: Duration = Duration::from_secs(10);

/// What happened to a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A call does not come back from C code.
    Stuck {
        /// On which report.
        report: ReportId,
        /// Of which policy.
        policy: String,
    },
    /// It came back after all.
    Back {
        /// On which report.
        report: ReportId,
    },
}

/// The thread that looks at the workers. It ends with the last clone.
#[derive(Debug)]
pub struct Watchdog {
    seats: Arc<Mutex<Vec<Weak<Seat>>>>,
    /// Dropped with the watchdog: ends the thread.
    _stop: SyncSender<()>,
}

/// One worker thread, as the watchdog sees it.
#[derive(Debug)]
struct Seat {
    clock: libc::clockid_t,
    /// The turn that is being polled; 0: none.
    turn: AtomicU64,
    last_turn: AtomicU64,
    limit_nanos: AtomicU64,
    lua: AtomicPtr<ffi::lua_State>,
    /// The watchdog is setting, or has set, the hook for the current turn.
    fired: AtomicBool,
    /// Held while the hook is set or cleared, so that the VM cannot go away under the watchdog.
    hook: Mutex<()>,
    call: Mutex<Option<(ReportId, String)>>,
}

/// What the watchdog remembers of a seat between two looks.
#[derive(Default, Clone)]
struct Look {
    turn: u64,
    cpu_at_first_look: u64,
    hooked_at: Option<Instant>,
    stuck: Option<ReportId>,
}

impl Watchdog {
    /// Starts the thread. A call that does not come back `stuck_after` its hook was set is an event.
    pub fn start(stuck_after: Duration) -> io::Result<(Arc<Self>, mpsc::UnboundedReceiver<Event>)> {
        let seats: Arc<Mutex<Vec<Weak<Seat>>>> = Arc::default();
        let (tell, events) = mpsc::unbounded_channel();
        let (stop, stopped) = sync_channel::<()>(1);
        let watched = Arc::clone(&seats);
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let mut looks: Vec<(Weak<Seat>, Look)> = Vec::new();
            while matches!(stopped.recv_timeout(TICK), Err(RecvTimeoutError::Timeout)) {
                looks.append(&mut lock(&watched).drain(..).map(|seat| (seat, Look::default())).collect());
                looks.retain_mut(|(seat, look)| {
                    let Some(seat) = seat.upgrade() else { return false };
                    seat.look(look, stuck_after, &tell);
                    true
                });
            }
        })?;
        Ok((Arc::new(Self { seats, _stop: stop }), events))
    }

    /// The seat of the calling thread; the same one for all its virtual machines.
    pub(super) fn seat(&self) -> io::Result<ThreadSeat> {
        thread_local!(static SEATS: RefCell<Vec<(usize, Arc<Seat>)>> = const { RefCell::new(Vec::new()) });
        let me = Arc::as_ptr(&self.seats) as usize;
        SEATS.with_borrow_mut(|seats| {
            if let Some((_, seat)) = seats.iter().find(|(watchdog, _)| *watchdog == me) {
                return Ok(ThreadSeat { seat: Arc::clone(seat), not_send: std::marker::PhantomData });
            }
            let seat = Arc::new(Seat::of_this_thread()?);
            lock(&self.seats).push(Arc::downgrade(&seat));
            seats.push((me, Arc::clone(&seat)));
            Ok(ThreadSeat { seat, not_send: std::marker::PhantomData })
        })
    }
}

/// The right to have calls watched on this thread.
#[derive(Debug, Clone)]
pub(super) struct ThreadSeat {
    seat: Arc<Seat>,
    /// It is this thread's clock that is read.
    not_send: std::marker::PhantomData<*const ()>,
}

impl ThreadSeat {
    /// Watches one poll of a call in `lua`. Gives what the poll gave, and whether it was over the limit.
    pub(super) fn watch<T>(&self, lua: *mut ffi::lua_State, limit: Duration, poll: impl FnOnce() -> T) -> (T, bool) {
        let seat = &self.seat;
        let turn = seat.last_turn.load(Ordering::Relaxed) + 1;
        seat.last_turn.store(turn, Ordering::Relaxed);
        seat.lua.store(lua, Ordering::Relaxed);
        seat.limit_nanos.store(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        seat.turn.store(turn, Ordering::SeqCst);
        let end = EndTurn { seat, lua, over: false };
        let result = poll();
        let over = end.finish();
        (result, over)
    }

    /// Names the call that is polled next, for the event of a worker that hangs.
    pub(super) fn name_call(&self, report: ReportId, policy: &str) {
        let mut call = lock(&self.seat.call);
        match &mut *call {
            Some((id, name)) if name == policy => *id = report,
            other => *other = Some((report, policy.to_owned())),
        }
    }
}

/// Ends the turn also when the poll panics: a hook that stays set would stop innocent calls.
struct EndTurn<'a> {
    seat: &'a Seat,
    lua: *mut ffi::lua_State,
    over: bool,
}

impl EndTurn<'_> {
    fn finish(mut self) -> bool {
        self.end();
        self.over
    }

    fn end(&mut self) {
        if self.seat.turn.swap(0, Ordering::SeqCst) == 0 {
            return;
        }
        // Either the watchdog sees that the turn is over and sets no hook, or this sees that it is about to, and waits for it.
        if self.seat.fired.load(Ordering::SeqCst) {
            let _held = lock(&self.seat.hook);
            if self.seat.fired.swap(false, Ordering::SeqCst) {
                self.over = true;
                // SAFETY: the state belongs to this thread's VM, which is alive: it was just polled.
                unsafe { ffi::lua_sethook(self.lua, None, 0, 0) };
            }
        }
    }
}

impl Drop for EndTurn<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

impl Seat {
    fn of_this_thread() -> io::Result<Self> {
        let mut clock: libc::clockid_t = 0;
        // SAFETY: the thread that asks is alive, and the result goes to a variable of the right type.
        let failed = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        Ok(Self {
            clock,
            turn: AtomicU64::new(0),
            last_turn: AtomicU64::new(0),
            limit_nanos: AtomicU64::new(0),
            lua: AtomicPtr::new(std::ptr::null_mut()),
            fired: AtomicBool::new(false),
            hook: Mutex::new(()),
            call: Mutex::new(None),
        })
    }

    /// The CPU time that the thread has used; `None` where it has ended.
    fn cpu_nanos(&self) -> Option<u64> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: reads a clock into a variable of the right type; a clock of a thread that ended gives an error.
        let failed = unsafe { libc::clock_gettime(self.clock, &raw mut time) };
        (failed == 0).then(|| time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs())
    }

    fn look(&self, look: &mut Look, stuck_after: Duration, tell: &mpsc::UnboundedSender<Event>) {
        let turn = self.turn.load(Ordering::SeqCst);
        if turn != look.turn {
            if let Some(report) = look.stuck {
                let _ = tell.send(Event::Back { report });
            }
            // The clock is read only for a turn that lasts from one look to the next.
            *look = Look { turn, cpu_at_first_look: 0, hooked_at: None, stuck: None };
            return;
        }
        if turn == 0 {
            return;
        }
        let Some(cpu) = self.cpu_nanos() else { return };
        if look.cpu_at_first_look == 0 {
            look.cpu_at_first_look = cpu;
            return;
        }
        if cpu - look.cpu_at_first_look < self.limit_nanos.load(Ordering::Relaxed) {
            return;
        }
        match look.hooked_at {
            None => {
                look.hooked_at = Some(Instant::now());
                self.fire(turn);
            }
            Some(at) if look.stuck.is_none() && at.elapsed() >= stuck_after => {
                if let Some((report, policy)) = &*lock(&self.call) {
                    look.stuck = Some(*report);
                    let _ = tell.send(Event::Stuck { report: *report, policy: policy.clone() });
                }
            }
            Some(_) => {}
        }
    }

    fn fire(&self, turn: u64) {
        let _held = lock(&self.hook);
        self.fired.store(true, Ordering::SeqCst);
        if self.turn.load(Ordering::SeqCst) != turn {
            self.fired.store(false, Ordering::SeqCst);
            return;
        }
        let lua = self.lua.load(Ordering::Relaxed);
        // SAFETY: the turn is not over, and its end waits for the lock that is held here, so the VM is alive. Setting a hook from
        // another thread is what LuaJIT's own signal handlers do.
        unsafe { ffi::lua_sethook(lua, Some(raise), ffi::LUA_MASKCOUNT, 1) };
    }
}

/// Raises in whatever Lua code runs.
///
/// # Safety
/// Called by Lua with its own state.
unsafe extern "C-unwind" fn raise(lua: *mut ffi::lua_State, _: *mut ffi::lua_Debug) {
    // SAFETY: called by Lua from a hook, where raising is allowed; no Rust value is alive in this frame.
    unsafe {
        ffi::lua_pushstring(lua, c"used more CPU than policy.cpu_limit".as_ptr());
        let _: c_int = ffi::lua_error(lua);
    }
}

/// Stops an endless loop in compiled code, to show that the hook works in this build. Takes some 50 ms. An error says how to build
/// it so that it does.
pub fn self_test() -> Result<(), String> {
    let (done, ended) = sync_channel(1);
    let spawned = std::thread::Builder::new().name("watchdog-test".to_owned()).spawn(move || {
        let run = || -> Result<bool, String> {
            let (watchdog, _events) = Watchdog::start(SELF_TEST).map_err(|error| error.to_string())?;
            let lua = Lua::new();
            let endless = lua.load("while true do end").into_function().map_err(|error| error.to_string())?;
            let seat = watchdog.seat().map_err(|error| error.to_string())?;
            let (result, over) = seat.watch(state_of(&lua), Duration::from_millis(20), || endless.call::<()>(()));
            Ok(over && result.is_err())
        };
        let _ = done.send(run());
    });
    spawned.map_err(|error| format!("the watchdog's self-test cannot start: {error}"))?;
    match ended.recv_timeout(SELF_TEST) {
        Ok(Ok(true)) => Ok(()),
        Ok(Err(error)) => Err(format!("the watchdog's self-test failed: {error}")),
        Ok(Ok(false)) | Err(_) => Err("the watchdog cannot stop an endless loop in this build: LuaJIT was built without \
             -DLUAJIT_ENABLE_CHECKHOOK. Build with the project's .cargo/config.toml (`cargo clean -p mlua-sys`, then build again)"
            .to_owned()),
    }
}

/// The state of a VM's main thread: hooks are set for the whole VM.
pub(super) fn state_of(lua: &Lua) -> *mut ffi::lua_State {
    lua.exec_raw_lua(|raw| raw.state())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_loop_in_compiled_code_is_stopped() {
        self_test().unwrap();
    }

    #[test]
    fn vm_works_after_a_hundred_hogs_inside_pcall() {
        let (watchdog, _events) = Watchdog::start(SELF_TEST).unwrap();
        let seat = watchdog.seat().unwrap();
        let lua = Lua::new();
        let hog = lua.load("while true do pcall(function() while true do end end) end").into_function().unwrap();
        let good = lua.load("local n = 0 for i = 1, 1000 do n = n + i end return n").into_function().unwrap();
        for _ in 0..20 {
            let (result, over) = seat.watch(state_of(&lua), Duration::from_millis(5), || hog.call::<()>(()));
            assert!(over && result.is_err());
            let (result, over) = seat.watch(state_of(&lua), Duration::from_secs(5), || good.call::<u64>(()));
            assert_eq!((result.unwrap(), over), (500_500, false));
        }
    }

    #[test]
    fn call_that_hangs_in_c_code_is_reported_and_its_return_too() {
        let (watchdog, mut events) = Watchdog::start(Duration::from_millis(20)).unwrap();
        let report = ReportId::of(b"hangs");
        let worker = std::thread::spawn(move || {
            let seat = watchdog.seat().unwrap();
            let lua = Lua::new();
            // Some seconds of backtracking: long enough to be seen, short enough to end.
            let hang = "return string.find(string.rep('a', 24), string.rep('a?', 24) .. string.rep('a', 24))";
            let hang = lua.load(hang).into_function().unwrap();
            seat.name_call(report, "slow");
            let _ = seat.watch(state_of(&lua), Duration::from_millis(5), || hang.call::<mlua::Value>(()));
            (watchdog, seat)
        });
        let mut next = || {
            let began = Instant::now();
            loop {
                match events.try_recv() {
                    Ok(event) => return event,
                    Err(_) => assert!(began.elapsed() < Duration::from_secs(60), "no event"),
                }
                std::thread::yield_now();
            }
        };
        assert_eq!(next(), Event::Stuck { report, policy: "slow".to_owned() });
        assert_eq!(next(), Event::Back { report });
        drop(worker.join());
    }
}
