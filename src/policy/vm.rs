//! One Lua virtual machine with every policy in an environment of its own.
//!
//! Owns the limits of a call: its wall time, its CPU (with the watchdog), the VM's memory. A call that fails leaves no effect. Never
//! retries a call and never blames a policy: it says what happened.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use mlua::{Function, Lua, LuaOptions, StdLib, Table, Value};
use tokio_util::sync::CancellationToken;

use super::api::{self, report::Lt};
use super::context::{Context, InContext};
use super::load::{LoadError, PolicySet, Source};
use super::watchdog::{ThreadSeat, Watchdog, state_of};
use super::{Effects, Failure, Services, Settings};
use crate::report::LoginReport;

/// The longest error text of a policy that is kept.
const MAX_ERROR: usize = 2000;

/// One virtual machine. It belongs to the thread that made it.
pub struct Vm {
    lua: Lua,
    names: Vec<String>,
    hooks: Vec<(Rc<str>, Function)>,
    services: Services,
    settings: Settings,
    seat: ThreadSeat,
    spoiled: Cell<Option<Spoiled>>,
    /// Ends what is in flight here: the VM is over its memory.
    retired: CancellationToken,
}

/// Why a VM must not take another report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoiled {
    /// A call in it was cut off in the middle.
    Cancelled,
    /// It was over its memory.
    Memory,
}

impl Vm {
    /// Loads the policies into a new VM of this thread.
    pub fn new(
        policies: &PolicySet,
        services: &Services,
        settings: &Settings,
        watchdog: &Arc<Watchdog>,
    ) -> Result<Self, LoadError> {
        let seat = watchdog.seat()?;
        let lua = new_lua().map_err(|error| LoadError::one(format!("a virtual machine cannot be made: {error}")))?;
        let mut hooks = Vec::new();
        for source in policies.sources() {
            let hook = load_policy(&lua, source).map_err(LoadError::one)?;
            hooks.push((Rc::from(source.name.as_str()), hook));
        }
        let memory = usize::try_from(settings.memory.as_u64()).unwrap_or(usize::MAX);
        lua.set_memory_limit(memory).map_err(|error| LoadError::one(format!("policy.memory: {error}")))?;
        Ok(Self {
            lua,
            names: policies.names(),
            hooks,
            services: services.clone(),
            settings: settings.clone(),
            seat,
            spoiled: Cell::new(None),
            retired: CancellationToken::new(),
        })
    }

    /// The policies' names, in the order of their indices.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Why it must not take another report, if so.
    pub const fn spoiled(&self) -> Option<Spoiled> {
        self.spoiled.get()
    }

    /// Bytes of Lua memory in use.
    pub fn used_memory(&self) -> usize {
        self.lua.used_memory()
    }

    /// Calls the `report` of policy `policy` (its index in [`Vm::names`]) on a report.
    pub async fn run(&self, policy: usize, report: &Arc<LoginReport>) -> Result<Effects, Failure> {
        if self.retired.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        let Some((name, hook)) = self.hooks.get(policy) else { return Ok(Effects::default()) };
        let context = Rc::new(Context::new(self.services.clone(), Arc::clone(report), Rc::clone(name)));
        let lt = match self.lua.create_userdata(Lt::new(Arc::clone(report))) {
            Ok(lt) => lt,
            Err(error) => return Err(self.failure(&context, &error)),
        };
        let mut call = std::pin::pin!(InContext {
            call: Box::pin(hook.call_async::<Value>(lt)),
            context: Rc::clone(&context),
            seat: self.seat.clone(),
            lua: state_of(&self.lua),
            cpu_limit: self.settings.cpu_limit,
        });
        // Most calls end at their first poll: those pay for no timer.
        let result = match futures_util::poll!(call.as_mut()) {
            Poll::Ready(result) => result,
            Poll::Pending => tokio::select! {
                biased;
                result = call => result,
                () = self.retired.cancelled() => return Err(Failure::Cancelled),
                () = tokio::time::sleep(self.settings.time_limit) => {
                    self.spoil(Spoiled::Cancelled);
                    return Err(Failure::Time(self.settings.time_limit));
                }
            },
        };
        if context.over_cpu().get() {
            return Err(Failure::Cpu(self.settings.cpu_limit));
        }
        if let Err(error) = &result {
            return Err(self.failure(&context, error));
        }
        if let Some((dependency, said)) = context.unanswered.take() {
            return Err(Failure::Dependency { dependency, said });
        }
        Ok(context.into_effects())
    }

    fn failure(&self, context: &Context, error: &mlua::Error) -> Failure {
        if is_memory(error) {
            self.spoil(Spoiled::Memory);
            self.retired.cancel();
            return Failure::Memory;
        }
        if let Some((dependency, said)) = context.unanswered.take() {
            return Failure::Dependency { dependency, said };
        }
        Failure::Error(message(error))
    }

    fn spoil(&self, why: Spoiled) {
        self.spoiled.set(Some(self.spoiled.get().unwrap_or(why)));
    }
}

/// Compiles a policy and runs its top level in a VM that is thrown away.
pub(super) fn check(source: &Source) -> Result<(), String> {
    let lua = new_lua().map_err(|error| format!("{}: {error}", source.file))?;
    load_policy(&lua, source).map(drop)
}

fn new_lua() -> mlua::Result<Lua> {
    let libs = StdLib::TABLE | StdLib::STRING | StdLib::MATH | StdLib::BIT;
    let lua = Lua::new_with(libs, LuaOptions::new().catch_rust_panics(true))?;
    api::sandbox::prepare(&lua)?;
    Ok(lua)
}

fn load_policy(lua: &Lua, source: &Source) -> Result<Function, String> {
    let load = || -> mlua::Result<Table> {
        let environment = api::sandbox::environment(lua)?;
        let chunk = lua.load(&source.text).set_name(format!("@{}", source.file)).set_mode(mlua::chunk::ChunkMode::Text);
        chunk.set_environment(environment.clone()).exec()?;
        Ok(environment)
    };
    let environment = load().map_err(|error| {
        let text = message(&error);
        if text.starts_with(&source.file) { text } else { format!("{}: {text}", source.file) }
    })?;
    match environment.raw_get("report") {
        Ok(Value::Function(report)) => Ok(report),
        _ => Err(format!("{}: defines no global function `report`; a policy is `function report(lt) … end`", source.file)),
    }
}

fn is_memory(error: &mlua::Error) -> bool {
    match error {
        mlua::Error::MemoryError(_) => true,
        mlua::Error::CallbackError { cause, .. } | mlua::Error::WithContext { cause, .. } => is_memory(cause),
        mlua::Error::RuntimeError(text) => text.ends_with("not enough memory"),
        _ => false,
    }
}

/// What to tell the policy's author: the message with file and line, without Rust's and Lua's traces.
fn message(error: &mlua::Error) -> String {
    let text = match error {
        mlua::Error::CallbackError { cause, .. } => return message(cause),
        mlua::Error::RuntimeError(text) | mlua::Error::SyntaxError { message: text, .. } => text.clone(),
        other => other.to_string(),
    };
    let text = text.split("\nstack traceback:").next().unwrap_or_default().trim();
    match text.char_indices().nth(MAX_ERROR) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
