//! What one call of one policy's `report` carries with it: the report, the state as it sees it, and what it has raised so far.
//!
//! Owns how a function of the API finds the call it serves: thousands of calls take turns in one VM, so the context is put in place
//! around each poll of the call, and taken away after it. Nothing here outlives the call.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use mlua::ffi;

use super::watchdog::ThreadSeat;
use super::{Effects, Services};
use crate::alert::Alert;
use crate::report::LoginReport;
use crate::state::Session;

/// One call.
pub(super) struct Context {
    pub(super) services: Services,
    pub(super) report: Arc<LoginReport>,
    pub(super) policy: Rc<str>,
    pub(super) session: Session,
    pub(super) alerts: RefCell<Vec<Alert>>,
    /// What the policy asked and got no answer from. Kept here because a policy may catch the error and go on without the answer:
    /// the call fails all the same, and is run again.
    pub(super) unanswered: RefCell<Option<(&'static str, String)>>,
    /// Lines it has logged.
    pub(super) logged: Cell<u32>,
    /// It used more CPU than it may.
    over_cpu: Cell<bool>,
}

thread_local!(static CURRENT: RefCell<Option<Rc<Context>>> = const { RefCell::new(None) });

impl Context {
    pub(super) fn new(services: Services, report: Arc<LoginReport>, policy: Rc<str>) -> Self {
        let session = Session::new(Arc::clone(&services.state), Arc::clone(&services.tentative), &policy, report.t);
        Self {
            services,
            report,
            policy,
            session,
            alerts: RefCell::default(),
            unanswered: RefCell::default(),
            logged: Cell::new(0),
            over_cpu: Cell::new(false),
        }
    }

    /// The call that runs on this thread now; `None` while no handler runs (a policy's top level).
    pub(super) fn current() -> Option<Rc<Self>> {
        CURRENT.with_borrow(Clone::clone)
    }

    pub(super) const fn over_cpu(&self) -> &Cell<bool> {
        &self.over_cpu
    }

    pub(super) fn into_effects(&self) -> Effects {
        let (writes, claims) = self.session.take();
        Effects { alerts: self.alerts.take(), writes, claims }
    }
}

/// A call's future, with its context around each poll and the watchdog beside it.
pub(super) struct InContext<F> {
    pub(super) call: Pin<Box<F>>,
    pub(super) context: Rc<Context>,
    pub(super) seat: ThreadSeat,
    pub(super) lua: *mut ffi::lua_State,
    pub(super) cpu_limit: Duration,
}

impl<F: Future> Future for InContext<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.seat.name_call(this.context.report.id, &this.context.policy);
        let outer = CURRENT.replace(Some(Rc::clone(&this.context)));
        let (result, over) = this.seat.watch(this.lua, this.cpu_limit, || this.call.as_mut().poll(task));
        CURRENT.set(outer);
        if over {
            this.context.over_cpu.set(true);
        }
        result
    }
}
