//! A fresh virtual machine, and the environment of each policy in it.
//!
//! Owns which of LuaJIT's libraries a policy gets and how large the arguments of C functions may be. What a policy may call of ours is
//! in [`super::api`].

use std::rc::Rc;

use mlua::chunk::ChunkMode;
use mlua::{Function, Lua, LuaOptions, StdLib, Table, Value};

use super::api;
use super::call::Host;

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
}

impl Sandbox {
    /// A machine whose API functions find their call in `host`.
    pub(super) fn new(host: &Rc<Host>, memory: usize) -> mlua::Result<Self> {
        // The compiler is off unless its library is loaded; no policy sees that library.
        let libraries = StdLib::TABLE | StdLib::STRING | StdLib::MATH | StdLib::BIT | StdLib::JIT;
        let lua = Lua::new_with(libraries, LuaOptions::new().thread_pool_size(THREADS_KEPT))?;
        lua.set_memory_limit(memory)?;
        let (environment, guard): (Function, Function) = lua
            .load(include_str!("sandbox.lua"))
            .set_name("=__mlua_async_poll")
            .call((Value::LightUserData(Lua::poll_pending()), MAX_RESULT, MAX_SUBJECT, MAX_PATTERN))?;
        host.set_guard(guard);
        let api = api::install(&lua, host)?;
        Ok(Self { lua, environment, api })
    }

    /// Compiles a policy in an environment of its own. Gives the chunk and the environment.
    pub(super) fn compile(&self, chunk: &str, source: &str) -> mlua::Result<(Function, Table)> {
        let environment: Table = self.environment.call(&self.api)?;
        let loaded = self.lua.load(source).set_name(format!("@{chunk}")).set_mode(ChunkMode::Text);
        Ok((loaded.set_environment(environment.clone()).into_function()?, environment))
    }
}
