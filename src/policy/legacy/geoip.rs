//! Records of GeoIP files by the names that a file has given them. They are there while the file is loaded, too; where it is only read for
//! its settings, nothing is known.
//!
//! What is read out of a record stands in `modules/geoip.lua`.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use mlua::{Lua, Table, Value};

use super::Registered;
use crate::policy::api::address::Address;
use crate::policy::api::args::Args;
use crate::policy::api::json;
use crate::policy::call::Host;

/// What is asked of a file. Each takes its record and is named in its errors; what it makes of the record stands in Lua.
const LOOKUPS: [&str; 7] = [
    "lookupCountry",
    "lookupISP",
    "lookupCity",
    "lookupStringValue",
    "lookupUIntValue",
    "lookupBoolValue",
    "lookupDoubleValue",
];

pub(super) fn install(
    lua: &Lua,
    host: &Rc<Host>,
    names: &Table,
    registered: &Rc<RefCell<Registered>>,
) -> mlua::Result<()> {
    let records = lua.create_table()?;
    for function in LOOKUPS {
        let (files, shared) = (Rc::clone(registered), Rc::downgrade(host));
        let record = host.pure(lua, move |lua, values| {
            let mut args = Args::new(function, values);
            let name = args.string("name")?;
            let value = args.value();
            let address = Address::of(&value).ok_or_else(|| args.wrong("ca", "an address", &value))?;
            let path = files.borrow().geoip.get(&name).cloned().unwrap_or_default();
            let geoip = shared.upgrade().and_then(|host| host.geoip());
            match geoip.and_then(|geoip| geoip.record(Path::new(&path), address.to_canonical())) {
                Some(record) => json::to_lua_without_null(lua, &record).map_err(|error| args.error("ca", error)),
                None => Ok(Value::Nil),
            }
        })?;
        records.set(function, record)?;
    }
    let files = Rc::clone(registered);
    let has = host.pure(lua, move |_, values| {
        let name = Args::new("getGeoIP2DB", values).string("name")?;
        Ok(files.borrow().geoip.contains_key(&name))
    })?;
    let source = lua.load(include_str!("modules/geoip.lua")).set_name("=__geoip");
    let made: Table = source.call((records, has))?;
    for pair in made.pairs::<String, Value>() {
        let (name, function) = pair?;
        names.set(name, function)?;
    }
    Ok(())
}
