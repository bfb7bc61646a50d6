//! The environment of an old configuration: the standard libraries that it had, modules, and the names of the old program.
//!
//! Owns how `require` finds what. What each name does stands in the files beside this one.

use std::cell::RefCell;
use std::rc::Rc;

use mlua::{Function, Lua, Table};

use super::{OldConfig, Registered, addresses, calls, counters, geoip, hooks, log, modules, operator};
use crate::policy::call::Host;

/// Makes environments in one machine.
pub(in crate::policy) struct Environment {
    make: Function,
}

impl Environment {
    /// `fresh` gives what every policy finds in its environment.
    pub(in crate::policy) fn new(lua: &Lua, fresh: &Function) -> mlua::Result<Self> {
        let make = lua.load(include_str!("environment.lua")).set_name("=__old_configuration").call(fresh)?;
        Ok(Self { make })
    }

    /// An environment whose calls are noted in `config` and `registered`.
    pub(in crate::policy) fn make(
        &self,
        lua: &Lua,
        host: &Rc<Host>,
        api: &Table,
        config: &Rc<RefCell<OldConfig>>,
        registered: &Rc<RefCell<Registered>>,
    ) -> mlua::Result<Table> {
        let names = lua.create_table()?;
        calls::install(lua, host, &names, config, registered)?;
        addresses::install(lua, host, &names)?;
        counters::install(lua, host, &names)?;
        geoip::install(lua, host, &names, registered)?;
        hooks::install(lua, host, &names)?;
        log::install(lua, host, &names)?;
        operator::install(lua, host, &names, Some(registered))?;
        self.make.call((api, names, modules::table(lua, host)?))
    }
}
