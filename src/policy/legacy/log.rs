//! `infoLog`, `vinfoLog`, `warnLog`, `errorLog`, `debugLog`: the log under the old names. They work while the file is loaded, too.

use std::rc::Rc;

use mlua::{Lua, Table};

use crate::policy::api;
use crate::policy::call::Host;

/// Name and level. What is for verbose runs is for those who look closely.
const NAMES: [(&str, tracing::Level); 5] = [
    ("infoLog", tracing::Level::INFO),
    ("vinfoLog", tracing::Level::DEBUG),
    ("warnLog", tracing::Level::WARN),
    ("errorLog", tracing::Level::ERROR),
    ("debugLog", tracing::Level::DEBUG),
];

pub(super) fn install(lua: &Lua, host: &Rc<Host>, names: &Table) -> mlua::Result<()> {
    for (name, level) in NAMES {
        names.set(name, api::log::function(lua, host, name, level)?)?;
    }
    Ok(())
}
