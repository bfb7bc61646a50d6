//! One call of one policy's `report`: what its API calls find when they ask whom they work for.
//!
//! Owns what the call has raised and written until it has returned. Thousands of calls take turns in one machine, so the one that runs
//! is put in place before each poll and taken out after it ([`Host::during`]).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use mlua::{Function, IntoLuaMulti, Lua, MultiValue, Value};

use super::load::Policy;
use super::networks::{File, Networks};
use super::{Effects, Services};
use crate::alert::Alert;
use crate::report::LoginReport;
use crate::state::Session;

/// What a policy is told when it calls something wrongly: `function: argument: reason`.
pub(super) type Answer<T> = Result<T, String>;

/// One running call.
pub(super) struct Call {
    /// Larger for each call of the machine; the first has 1.
    number: u64,
    pub(super) report: Arc<LoginReport>,
    pub(super) policy: Rc<str>,
    pub(super) services: Rc<Services>,
    pub(super) session: Session,
    pub(super) alerts: RefCell<Vec<Alert>>,
    /// What did not answer. Kept even where the policy caught the error: it could not do its work.
    pub(super) dependency: RefCell<Option<(&'static str, String)>>,
    host: Rc<Host>,
}

impl Call {
    pub(super) fn new(
        host: &Rc<Host>,
        services: &Rc<Services>,
        policy: &Rc<str>,
        report: &Arc<LoginReport>,
    ) -> Rc<Self> {
        let max_value = usize::try_from(services.state_max_value.as_u64()).unwrap_or(usize::MAX);
        let (state, tentative) = (Arc::clone(&services.state), Arc::clone(&services.tentative));
        host.live.set(host.live.get() + 1);
        host.started.set(host.started.get() + 1);
        Rc::new(Self {
            number: host.started.get(),
            report: Arc::clone(report),
            policy: Rc::clone(policy),
            services: Rc::clone(services),
            session: Session::new(state, tentative, report, policy, max_value),
            alerts: RefCell::default(),
            dependency: RefCell::default(),
            host: Rc::clone(host),
        })
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
        Effects { alerts: self.alerts.take(), writes, claims }
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

    fn call(&self, name: &str) -> Answer<Rc<Call>> {
        self.current
            .borrow()
            .clone()
            .ok_or_else(|| format!("{name}: works in a handler only, not while the policy is loaded"))
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
            async move {
                let result = match started {
                    Ok(future) => future.await,
                    Err(text) => Err(text),
                };
                match result {
                    Ok(value) => answer_many(&lua, Ok(give(&lua, value)?)),
                    Err(text) => answer_many::<()>(&lua, Err(text)),
                }
            }
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
    for level in 0..12 {
        let here = lua.inspect_stack(level, |frame| {
            let source = frame.source();
            let ours = source.source.as_deref().is_none_or(|name| name.starts_with("=__") || name.starts_with("=[C]"));
            let line = frame.current_line().filter(|_| !ours)?;
            Some(format!("{}:{line}: {text}", source.short_src.as_deref().unwrap_or("?")))
        });
        match here {
            Some(Some(placed)) => return placed,
            Some(None) => {}
            None => break,
        }
    }
    text.to_owned()
}
