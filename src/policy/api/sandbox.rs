//! What a policy sees besides its own globals: the safe part of Lua's libraries and the modules of this API, each a copy of its own.
//!
//! Owns the list of what is left out, and why. The losses prevented: one policy that changes a library under another; a policy that
//! reads files, starts programs or loads bytecode, which could crash the process.

use mlua::{Function, Lua, Table, Value};

use super::{alert, geo, history, json, log, state, time};

/// Copied into each environment. Left out: what reaches files or other environments (`dofile`, `loadfile`, `require`, `getfenv`,
/// `setfenv`, `rawset` on shared tables is harmless because nothing is shared), bytecode (`string.dump`), the collector
/// (`collectgarbage`: it would stall the neighbours), `os`, `io`, `package`, `debug`, `ffi`, `jit`.
const GLOBALS: &[&str] = &[
    "assert", "error", "ipairs", "next", "pairs", "pcall", "rawequal", "rawget", "rawlen", "rawset", "select", "setmetatable",
    "getmetatable", "tonumber", "tostring", "type", "unpack", "xpcall", "_VERSION",
];

const LIBRARIES: &[&str] = &["string", "table", "math", "bit", "coroutine"];

/// The largest string that `string.rep` makes: C code cannot be stopped by the watchdog, and a large one takes the VM's memory at once.
const MAX_REP: usize = 16 * 1024 * 1024;

/// Lua that runs once in each VM. `coroutine.resume` and `wrap` pass the marker on by which an awaiting call gives up its turn: without
/// that, an await inside a policy's own coroutine would come back as a strange value instead of waiting.
const PRELUDE: &str = r##"
local pending, max_rep = ...
local create, resume, yield = coroutine.create, coroutine.resume, coroutine.yield
local select, error, rep, format = select, error, string.rep, string.format

local function forward(co, ok, ...)
  if ok and select("#", ...) == 1 and (...) == pending then
    return forward(co, resume(co, yield(pending)))
  end
  return ok, ...
end

function coroutine.resume(co, ...)
  return forward(co, resume(co, ...))
end

local function unwrap(ok, ...)
  if not ok then error((...), 0) end
  return ...
end

function coroutine.wrap(f)
  local co = create(f)
  return function(...) return unwrap(forward(co, resume(co, ...))) end
end

function string.rep(s, n, sep)
  if #s * n + (sep and #sep * n or 0) > max_rep then
    error(format("string.rep: the result would be over %d bytes", max_rep), 2)
  end
  return rep(s, n, sep)
end

string.dump = nil
getmetatable("").__metatable = false
"##;

/// Prepares a new VM: the prelude, and the types that values of this API have.
pub(in crate::policy) fn prepare(lua: &Lua) -> mlua::Result<()> {
    lua.load(PRELUDE).set_name("=prelude").call::<()>((Lua::poll_pending(), MAX_REP))?;
    // The string methods come from the shared table behind the metatable: nobody can reach that table any more.
    Ok(())
}

/// A new environment for one policy.
pub(in crate::policy) fn environment(lua: &Lua) -> mlua::Result<Table> {
    let (shared, own) = (lua.globals(), lua.create_table()?);
    for name in GLOBALS {
        own.raw_set(*name, shared.raw_get::<Value>(*name)?)?;
    }
    for name in LIBRARIES {
        own.raw_set(*name, copy(lua, &shared.raw_get::<Table>(*name)?)?)?;
    }
    own.raw_set("_G", &own)?;
    let load = text_only_load(lua, &own)?;
    own.raw_set("load", &load)?;
    own.raw_set("loadstring", load)?;
    own.raw_set("alert", alert::function(lua)?)?;
    own.raw_set("geo", geo::module(lua)?)?;
    own.raw_set("history", history::module(lua)?)?;
    own.raw_set("json", json::module(lua)?)?;
    own.raw_set("log", log::module(lua)?)?;
    own.raw_set("state", state::module(lua)?)?;
    own.raw_set("time", time::module(lua)?)?;
    own.raw_set("print", own.raw_get::<Table>("log")?.raw_get::<Function>("info")?)?;
    Ok(own)
}

fn copy(lua: &Lua, table: &Table) -> mlua::Result<Table> {
    let copy = lua.create_table()?;
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair?;
        copy.raw_set(key, value)?;
    }
    Ok(copy)
}

/// `load` for text only, in the policy's own environment.
fn text_only_load(lua: &Lua, environment: &Table) -> mlua::Result<Function> {
    let environment = environment.clone();
    lua.create_function(move |lua, (text, name): (mlua::String, Option<String>)| {
        let name = name.unwrap_or_else(|| "=(load)".to_owned());
        let chunk = lua.load(text.as_bytes().to_vec()).set_name(name).set_mode(mlua::chunk::ChunkMode::Text);
        match chunk.set_environment(environment.clone()).into_function() {
            Ok(function) => Ok((Value::Function(function), None)),
            Err(error) => Ok((Value::Nil, Some(error.to_string()))),
        }
    })
}
