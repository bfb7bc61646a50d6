//! A fresh virtual machine, and the environment of each policy in it.
//!
//! Owns which of LuaJIT's libraries a policy gets, what `require` gives it, and how large the arguments of C functions may be. What a policy may call of ours is
//! in [`super::api`].

use std::cell::RefCell;
use std::rc::Rc;

use mlua::chunk::ChunkMode;
use mlua::{Function, Lua, LuaOptions, LuaString, StdLib, Table, Value};

use super::api::{self, args};
use super::call::Host;
use super::legacy::{self, OldConfig, Registered};
use super::load::Policy;
use super::lua_error::text;

/// Bytes of a string that `string.rep` may make.
const MAX_RESULT: usize = 16 << 20;
/// Bytes of a subject and of a pattern of `string.find`, `match`, `gmatch` and `gsub`.
const MAX_SUBJECT: usize = 1 << 20;
const MAX_PATTERN: usize = 1 << 10;
/// Threads that are kept for further calls.
const THREADS_KEPT: usize = 256;

/// A machine without policies.
pub(super) struct Sandbox {
    pub(super) lua: Lua,
    environment: Function,
    api: Table,
    old: Option<legacy::Environment>,
    /// Where lines of the console run: the environment of an old configuration, else one of their own.
    console: RefCell<Option<Table>>,
}

impl Sandbox {
    /// A machine whose API functions find their call in `host`. `old`: it can hold a configuration of the old program.
    pub(super) fn new(host: &Rc<Host>, memory: usize, old: bool) -> mlua::Result<Self> {
        // The compiler is off unless its library is loaded; no policy sees that library.
        let mut libraries = StdLib::TABLE | StdLib::STRING | StdLib::MATH | StdLib::BIT | StdLib::JIT;
        if old {
            libraries |= StdLib::IO | StdLib::OS;
        }
        let lua = Lua::new_with(libraries, LuaOptions::new().thread_pool_size(THREADS_KEPT))?;
        lua.set_memory_limit(memory)?;
        let shared = Rc::downgrade(host);
        let whose = lua.create_function(move |_, ()| Ok(shared.upgrade().map_or(0, |host| host.number())))?;
        let (environment, guard): (Function, Function) = lua
            .load(include_str!("sandbox.lua"))
            .set_name("=__mlua_async_poll")
            .call((Value::LightUserData(Lua::poll_pending()), whose, MAX_RESULT, MAX_SUBJECT, MAX_PATTERN))?;
        host.set_guard(guard);
        let api = api::install(&lua, host)?;
        let old = old.then(|| legacy::Environment::new(&lua, &environment)).transpose()?;
        Ok(Self { lua, environment, api, old, console: RefCell::default() })
    }

    /// Compiles a policy in an environment of its own. Gives the chunk and the environment.
    pub(super) fn compile(&self, policy: &Policy) -> mlua::Result<(Function, Table)> {
        let found = policy.clone();
        let find = self.lua.create_function(move |lua, (name, environment): (LuaString, Table)| {
            Ok(match find(lua, &found, &name.to_string_lossy(), environment) {
                Ok(module) => (Some(module), None),
                Err(why) => (None, Some(why)),
            })
        })?;
        let environment: Table = self.environment.call((&self.api, find))?;
        Ok((self.compile_in(&environment, &policy.chunk(), &policy.source)?, environment))
    }

    /// Compiles a configuration of the old program. What its calls say goes into `config` and `registered`.
    pub(super) fn compile_old(
        &self,
        host: &Rc<Host>,
        policy: &Policy,
        config: &Rc<RefCell<OldConfig>>,
        registered: &Rc<RefCell<Registered>>,
    ) -> mlua::Result<Function> {
        let Some(old) = &self.old else { return Err(mlua::Error::runtime("this machine has no old environment")) };
        let environment = old.make(&self.lua, host, &self.api, config, registered)?;
        *self.console.borrow_mut() = Some(environment.clone());
        self.compile_in(&environment, &policy.chunk(), &policy.source)
    }

    /// Compiles a line of the console: an expression, else a statement.
    pub(super) fn compile_line(&self, host: &Rc<Host>, line: &str) -> mlua::Result<Function> {
        let kept = self.console.borrow().clone();
        let environment = match kept {
            Some(environment) => environment,
            None => {
                let fresh: Table = self.environment.call(&self.api)?;
                legacy::operator::install(&self.lua, host, &fresh, None)?;
                *self.console.borrow_mut() = Some(fresh.clone());
                fresh
            }
        };
        let expression = self.compile_in(&environment, "console", &format!("return {line}"));
        expression.or_else(|_| self.compile_in(&environment, "console", line))
    }

    fn compile_in(&self, environment: &Table, name: &str, source: &str) -> mlua::Result<Function> {
        chunk(&self.lua, name, source).set_environment(environment.clone()).into_function()
    }
}

/// Lua as it is compiled everywhere: text only, under a short name.
pub(super) fn chunk<'a>(lua: &Lua, name: &str, source: &'a str) -> mlua::chunk::Chunk<'a> {
    lua.load(source).set_name(format!("@{name}")).set_mode(ChunkMode::Text)
}

/// The module that a policy may require under this name, compiled in the policy's environment.
fn find(lua: &Lua, policy: &Policy, name: &str, environment: Table) -> Result<Function, String> {
    let module = policy.module(name).map_err(|why| format!("require: {}: {why}", args::cut(name, 64)))?;
    let compiled = chunk(lua, &module.chunk, &module.source).set_environment(environment).into_function();
    compiled.map_err(|error| text(&error))
}
