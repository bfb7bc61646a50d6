//! The debug hook that stops Lua code, set by the thread that runs it.
//!
//! Owns the signal by which the watchdog asks that thread for it, and never decides what is stopped. The loss prevented: LuaJIT keeps in one
//! byte which hooks are set and whether one (or a finalizer) runs, and changes it by no atomic means. Set from another thread, the hook was
//! now and then taken for one that runs, for ever: it was never called again, and the handler never stopped.

use std::cell::Cell;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{Ordering, compiler_fence};

use mlua::ffi;

use super::Slot;

/// Ignored where nobody waits for it, and nobody does: it tells of urgent data on a connection.
const SIGNAL: libc::c_int = libc::SIGURG;

thread_local! {
    /// What runs on this thread. A pointer, because a handler of signals may meet nothing that is borrowed, made late or dropped.
    static RUNS: Cell<*const Slot> = const { Cell::new(ptr::null()) };
}

/// A thread that can be asked to stop what it runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thread(libc::pid_t);

impl Thread {
    /// The one that calls this. From now on it takes the signal.
    pub(super) fn this() -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(listen);
        // SAFETY: `set` is a valid place for a set of signals, and is filled before it is used.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, SIGNAL);
            // Whoever has started the program may have blocked it.
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut());
            Self(libc::gettid())
        }
    }

    /// Has it look whether it runs the poll that is to be stopped. Nothing where it is gone.
    pub(super) fn interrupt(self) {
        // SAFETY: this call takes three numbers. Where the thread is gone and another one of this process has its number, that one looks.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.0, SIGNAL) };
    }
}

fn listen() {
    let handler: extern "C" fn(libc::c_int) = interrupted;
    // SAFETY: all zero is a valid action, and the handler does nothing that one may not do.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        // What the thread was waiting for in the kernel goes on.
        action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(SIGNAL, &raw const action, ptr::null_mut()) != 0
    };
    if failed {
        let error = std::io::Error::last_os_error();
        tracing::error!(%error, "no handler for SIGURG: handlers of policies are not stopped");
    }
}

/// Runs on the thread of the poll, between two instructions of it.
extern "C" fn interrupted(_: libc::c_int) {
    // SAFETY: it is set while `begin` and `end` enclose the use of a lane, which has the slot.
    let Some(slot) = (unsafe { RUNS.get().as_ref() }) else { return };
    if slot.sequence.load(Ordering::SeqCst) != slot.stop.load(Ordering::SeqCst) {
        return;
    }
    slot.hooked.store(true, Ordering::Relaxed);
    let state = slot.state.load(Ordering::Relaxed);
    // SAFETY: the poll with this number runs, so its machine is alive. LuaJIT lets a handler of signals set a hook (it is how its own
    // interpreter handles an interrupt). By way of none, because it may have interrupted what writes the table of instructions: the hook
    // is set in all of it only where that is written anew.
    unsafe {
        ffi::lua_sethook(state, None, 0, 0);
        ffi::lua_sethook(state, Some(stop), ffi::LUA_MASKCOUNT, 1);
    }
}

/// Raises in the running Lua code. Called by LuaJIT before an instruction.
unsafe extern "C-unwind" fn stop(state: *mut ffi::lua_State, _: *mut ffi::lua_Debug) {
    // SAFETY: LuaJIT calls a hook with the state that runs; raising is what a hook may do, and this frame owns nothing to drop.
    unsafe { ffi::luaL_error(state, c"the handler is over its limit".as_ptr()) };
}

/// A poll of this slot begins on this thread: its number is odd from here on. Until [`end`] the slot must stay where it is.
pub(super) fn begin(slot: &Slot) {
    RUNS.set(slot);
    slot.sequence.fetch_add(1, Ordering::Release);
}

/// It has ended, and no hook is left in its machine.
pub(super) fn end(slot: &Slot) {
    slot.sequence.fetch_add(1, Ordering::SeqCst);
    // A signal that comes from here on finds another number, and one that came before has said what it did.
    compiler_fence(Ordering::SeqCst);
    if slot.hooked.swap(false, Ordering::Relaxed) {
        let state = slot.state.load(Ordering::Relaxed);
        // SAFETY: the state belongs to the machine whose poll just returned on this thread; the caller borrows that machine, so it is
        // alive. Cleared twice with a hook in between: LuaJIT writes its table of instructions only on a change, and what was interrupted
        // while it did so may have left half of it behind.
        unsafe {
            ffi::lua_sethook(state, None, 0, 0);
            ffi::lua_sethook(state, Some(stop), ffi::LUA_MASKCOUNT, i32::MAX);
            ffi::lua_sethook(state, None, 0, 0);
        }
    }
    RUNS.set(ptr::null());
}
