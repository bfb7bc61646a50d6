//! What a policy may call: one file a Lua module, and `docs/policies.md` for its users.
//!
//! Owns the list. Each function checks its arguments and says what is wrong with which; what it raises or writes goes into its call
//! (`super::call`) and nowhere else.

pub(super) mod address;
mod alert;
pub(super) mod args;
mod geo;
mod history;
pub(super) mod http;
pub(super) mod json;
pub(super) mod log;
pub(super) mod lt;
pub(super) mod net;
mod state;
mod time;
mod wforce;

use std::rc::Rc;

use mlua::{Lua, Table};

use super::call::Host;

/// The global names that every environment gets a copy of.
pub(super) fn install(lua: &Lua, host: &Rc<Host>) -> mlua::Result<Table> {
    let api = lua.create_table()?;
    api.set("alert", alert::function(lua, host)?)?;
    api.set("geo", geo::module(lua, host)?)?;
    api.set("history", history::module(lua, host)?)?;
    api.set("http", http::module(lua, host)?)?;
    api.set("json", json::module(lua, host)?)?;
    api.set("log", log::module(lua, host)?)?;
    api.set("_print", log::print(lua, host)?)?;
    api.set("net", net::module(lua, host)?)?;
    api.set("state", state::module(lua, host)?)?;
    api.set("time", time::module(lua, host)?)?;
    api.set("wforce", wforce::module(lua, host)?)?;
    Ok(api)
}
