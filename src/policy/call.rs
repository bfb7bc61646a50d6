//! One call of one policy's function: what its API calls find when they ask whom they work for.
//!
//! Owns what the call has raised and written until it has returned. Thousands of calls take turns in one machine, so the one that runs
//! is put in place before each poll and taken out after it ([`Host::during`]).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{Either, ready};
use mlua::debug::DebugSource;
use mlua::{Function, IntoLuaMulti, Lua, MultiValue, Value};

use super::load::Policy;
use super::networks::{File, Networks};
use super::web::{Until, left};
use super::{Effects, Services};
use crate::alert::{Alert, Hook};
use crate::geoip::GeoIp;
use crate::report::{LoginReport, ReportId, Time};
use crate::state::Session;

/// What a policy is told when it calls something wrongly: `function: argument: reason`.
pub(super) type Answer<T> = Result<T, String>;

/// What is left of a call's time for the policy when a server has not answered: a tenth of all, and no more than this.
const LEFT_TO_ACT: Duration = Duration::from_secs(1);

/// Bytes that a line of the console may print.
const MAX_PRINTED: usize = 1 << 20;

/// What a call is for.
#[derive(Clone)]
pub(super) enum Cause {
    /// A report.
    Report(Arc<LoginReport>),
    /// Something else, under an id of its own and at a time of its own.
    Other(ReportId, Time),
}

/// One running call.
pub(super) struct Call {
    /// Larger for each call of the machine; the first has 1.
    number: u64,
    /// How long it may wait for a server.
    asks_until: Instant,
    pub(super) cause: Cause,
    pub(super) policy: Rc<str>,
    pub(super) services: Rc<Services>,
    pub(super) session: Session,
    pub(super) alerts: RefCell<Vec<Alert>>,
    pub(super) hooks: RefCell<Vec<Hook>>,
    /// What a line of the console has printed; `None`: it is no such line.
    printed: RefCell<Option<String>>,
    /// What did not answer. Kept even where the policy caught the error: it could not do its work.
    pub(super) dependency: RefCell<Option<(&'static str, String)>>,
    host: Rc<Host>,
}

impl Call {
    /// `limit` is how long it may last.
    pub(super) fn new(
        host: &Rc<Host>,
        services: &Rc<Services>,
        policy: &Rc<str>,
        cause: Cause,
        limit: Duration,
    ) -> Rc<Self> {
        let max_value = usize::try_from(services.state_max_value.as_u64()).unwrap_or(usize::MAX);
        let (state, tentative) = (Arc::clone(&services.state), Arc::clone(&services.tentative));
        host.live.set(host.live.get() + 1);
        host.started.set(host.started.get() + 1);
        Rc::new(Self {
            number: host.started.get(),
            asks_until: Instant::now() + limit.saturating_sub(LEFT_TO_ACT.min(limit / 10)),
            session: Session::new(state, tentative, cause.t(), policy, max_value),
            cause,
            policy: Rc::clone(policy),
            services: Rc::clone(services),
            alerts: RefCell::default(),
            hooks: RefCell::default(),
            printed: RefCell::default(),
            dependency: RefCell::default(),
            host: Rc::clone(host),
        })
    }

    /// The report that it is for.
    pub(super) fn report(&self) -> Option<&Arc<LoginReport>> {
        match &self.cause {
            Cause::Report(report) => Some(report),
            Cause::Other(..) => None,
        }
    }

    /// What its effects are told by when it runs again.
    pub(super) fn id(&self) -> ReportId {
        self.cause.id()
    }

    /// The way to the servers that it asks.
    pub(super) fn web(&self) -> Until<'_> {
        Until { web: &*self.services.web, until: self.asks_until }
    }

    /// How long it may wait for another server: `most`, or what is left. The error says that it is too late.
    pub(super) fn may_wait(&self, most: Duration) -> Answer<Duration> {
        Ok(left(self.asks_until)?.min(most))
    }

    /// Its now.
    pub(super) fn t(&self) -> Time {
        self.cause.t()
    }

    /// From now on what is printed is kept for [`Call::printed`].
    pub(super) fn listen(&self) {
        *self.printed.borrow_mut() = Some(String::new());
    }

    /// Whether it is a line of the console.
    pub(super) fn is_line(&self) -> bool {
        self.printed.borrow().is_some()
    }

    /// What was printed.
    pub(super) fn printed(&self) -> String {
        self.printed.take().unwrap_or_default()
    }

    /// Keeps what is printed, where somebody listens.
    pub(super) fn print(&self, line: &str) -> bool {
        let mut printed = self.printed.borrow_mut();
        let Some(text) = &mut *printed else { return false };
        if text.len() + line.len() < MAX_PRINTED {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(line);
        }
        true
    }

    /// Notes that something did not answer, and says so to the policy.
    pub(super) fn unavailable(&self, function: &str, dependency: &'static str, said: String) -> String {
        let text = format!("{function}: {dependency} does not answer: {said}");
        self.dependency.borrow_mut().get_or_insert((dependency, said));
        text
    }

    /// Ends the call: nothing can be raised or written any more. Gives what there was.
    pub(super) fn end(&self) -> Effects {
        let (writes, claims) = self.session.take();
        Effects { alerts: self.alerts.take(), hooks: self.hooks.take(), writes, claims }
    }
}

impl Cause {
    pub(super) fn id(&self) -> ReportId {
        match self {
            Self::Report(report) => report.id,
            Self::Other(id, _) => *id,
        }
    }

    fn t(&self) -> Time {
        match self {
            Self::Report(report) => report.t,
            Self::Other(_, t) => *t,
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.host.live.set(self.host.live.get() - 1);
    }
}

/// The policy whose top level runs.
struct Loading {
    folder: Option<PathBuf>,
    networks: Arc<Networks>,
}

/// While it lives, a policy is loaded.
pub(super) struct WhileLoading<'a>(&'a Host);

impl Drop for WhileLoading<'_> {
    fn drop(&mut self) {
        *self.0.loading.borrow_mut() = None;
    }
}

/// What the API functions of one machine share.
#[derive(Default)]
pub(super) struct Host {
    current: RefCell<Option<Rc<Call>>>,
    live: Cell<usize>,
    started: Cell<u64>,
    loading: RefCell<Option<Loading>>,
    guard: RefCell<Option<Function>>,
    /// Networks that the policies have given: they lie outside of the machine's memory.
    pub(super) networks: Rc<Cell<usize>>,
    /// What is known of addresses; `None`: the machine only shows whether its policies load.
    geoip: RefCell<Option<Arc<GeoIp>>>,
    /// Log lines left, by policy.
    pub(super) log_budget: RefCell<HashMap<Rc<str>, super::api::log::Budget>>,
}

impl Host {
    /// Calls that are not gone, coroutines that nobody resumes included.
    pub(super) fn live(&self) -> usize {
        self.live.get()
    }

    /// Which call runs; 0: none, a policy is being loaded.
    pub(super) fn number(&self) -> u64 {
        self.current.borrow().as_ref().map_or(0, |call| call.number)
    }

    /// Until the guard goes, it is this policy's top level that runs.
    pub(super) fn load(&self, policy: &Policy, networks: &Arc<Networks>) -> WhileLoading<'_> {
        let loading = Loading { folder: policy.folder.clone(), networks: Arc::clone(networks) };
        *self.loading.borrow_mut() = Some(loading);
        WhileLoading(self)
    }

    pub(super) fn set_geoip(&self, geoip: &Arc<GeoIp>) {
        *self.geoip.borrow_mut() = Some(Arc::clone(geoip));
    }

    /// For look-ups that work while a policy is loaded, too.
    pub(super) fn geoip(&self) -> Option<Arc<GeoIp>> {
        self.geoip.borrow().clone()
    }

    /// Whether a policy's top level runs.
    pub(super) fn is_loading(&self) -> bool {
        self.loading.borrow().is_some()
    }

    /// A file of networks that the policy which is being loaded names. In a handler none is opened: it would hold up all others, and
    /// an attacker may have written its name.
    pub(super) fn file(&self, path: &str) -> Answer<Arc<File>> {
        let loading = self.loading.borrow();
        let Some(Loading { folder, networks }) = &*loading else {
            return Err("works while the policy is loaded only: call it outside of report, and keep the set".to_owned());
        };
        let path = Path::new(path);
        let path = match folder {
            Some(folder) => folder.join(path),
            None if path.is_absolute() => path.to_owned(),
            None => return Err("this policy has no folder; name an absolute path".to_owned()),
        };
        networks.file(&path)
    }

    /// Runs `f` with `call` as the one that runs.
    pub(super) fn during<R>(&self, call: &Rc<Call>, f: impl FnOnce() -> R) -> R {
        struct Restore<'a>(&'a Host, Option<Rc<Call>>);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                *self.0.current.borrow_mut() = self.1.take();
            }
        }
        let before = self.current.borrow_mut().replace(Rc::clone(call));
        let _restore = Restore(self, before);
        f()
    }

    /// The call that runs; `None` while a policy is loaded.
    pub(super) fn running(&self) -> Option<Rc<Call>> {
        self.current.borrow().clone()
    }

    fn call(&self, name: &str) -> Answer<Rc<Call>> {
        self.running().ok_or_else(|| format!("{name}: works in a handler only, not while the policy is loaded"))
    }

    /// The Lua function that turns `(false, text)` into an error whose value is the text, so that a policy that catches it can read it.
    pub(super) fn set_guard(&self, guard: Function) {
        *self.guard.borrow_mut() = Some(guard);
    }

    fn guarded(&self, raw: Function) -> mlua::Result<Function> {
        match &*self.guard.borrow() {
            Some(guard) => guard.call(raw),
            None => Ok(raw),
        }
    }

    /// An API function that answers at once.
    pub(super) fn function<R: IntoLuaMulti>(
        self: &Rc<Self>,
        lua: &Lua,
        name: &'static str,
        f: impl Fn(&Lua, &Rc<Call>, MultiValue) -> Answer<R> + 'static,
    ) -> mlua::Result<Function> {
        let host = Rc::downgrade(self);
        let raw = lua.create_function(move |lua, args: MultiValue| {
            let host = host.upgrade().ok_or(mlua::Error::CallbackDestructed)?;
            let result = host.call(name).and_then(|call| f(lua, &call, args));
            answer_many(lua, result)
        })?;
        self.guarded(raw)
    }

    /// An API function that needs no call: it works while the policy is loaded, too.
    pub(super) fn pure<R: IntoLuaMulti>(
        self: &Rc<Self>,
        lua: &Lua,
        f: impl Fn(&Lua, MultiValue) -> Answer<R> + 'static,
    ) -> mlua::Result<Function> {
        let raw = lua.create_function(move |lua, args: MultiValue| answer_many(lua, f(lua, args)))?;
        self.guarded(raw)
    }

    /// An API function that may wait. `start` takes the arguments out of Lua; its future holds no handle while it waits (a machine
    /// has some 8,000), and `give` turns the answer into Lua values.
    pub(super) fn waiting<T: 'static, F, R: IntoLuaMulti>(
        self: &Rc<Self>,
        lua: &Lua,
        name: &'static str,
        start: impl Fn(Rc<Call>, MultiValue) -> Answer<F> + 'static,
        give: impl Fn(&Lua, T) -> mlua::Result<R> + Copy + 'static,
    ) -> mlua::Result<Function>
    where
        F: Future<Output = Answer<T>> + 'static,
    {
        let host = Rc::downgrade(self);
        let raw = lua.create_async_function(move |lua, args: MultiValue| {
            let started = match host.upgrade() {
                Some(host) => host.call(name).and_then(|call| start(call, args)),
                None => Err(format!("{name}: the virtual machine is gone")),
            };
            // No block of `async`: it would keep room for the future twice, and thousands wait at once.
            let result = started.map_or_else(|text| Either::Right(ready(Err(text))), Either::Left);
            result.map(move |result| match result {
                Ok(value) => answer_many(&lua, Ok(give(&lua, value)?)),
                Err(text) => answer_many::<()>(&lua, Err(text)),
            })
        })?;
        self.guarded(raw)
    }
}

fn answer_many<R: IntoLuaMulti>(lua: &Lua, result: Answer<R>) -> mlua::Result<MultiValue> {
    match result {
        Ok(values) => {
            let mut values = values.into_lua_multi(lua)?;
            values.push_front(Value::Boolean(true));
            Ok(values)
        }
        Err(text) => (false, place(lua, &text)).into_lua_multi(lua),
    }
}

/// Puts the place of the policy's code that runs in front: `new_origin/policy.lua:12: `.
pub(super) fn place(lua: &Lua, text: &str) -> String {
    let placed = |source: &DebugSource, line| format!("{}:{line}: {text}", source.short_src.as_deref().unwrap_or("?"));
    innermost(lua, placed).unwrap_or_else(|| text.to_owned())
}

/// The name of the chunk whose code runs, and the line in it.
pub(super) fn position(lua: &Lua) -> Option<(String, usize)> {
    innermost(lua, |source, line| {
        let name = source.source.as_deref().unwrap_or_default();
        (name.strip_prefix('@').unwrap_or(name).to_owned(), line)
    })
}

/// What there is of the innermost function that is a policy's and not ours.
fn innermost<T>(lua: &Lua, give: impl Fn(&DebugSource, usize) -> T) -> Option<T> {
    for level in 0..12 {
        let here = lua.inspect_stack(level, |frame| {
            let source = frame.source();
            let ours = source.source.as_deref().is_none_or(|name| name.starts_with("=__") || name.starts_with("=[C]"));
            let line = frame.current_line().filter(|_| !ours)?;
            Some(give(&source, line))
        });
        if let Some(found) = here? {
            return Some(found);
        }
    }
    None
}
