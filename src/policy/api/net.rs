//! `net.address`, `net.set`, `net.file`: addresses, and sets of networks. They work while the policy is loaded.
//!
//! Owns what a set is to a policy, and how many networks the sets of one machine may have: they lie outside of its memory.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use mlua::{Lua, MetaMethod, MultiValue, Table as Lua_, UserData, UserDataMethods, Value};

use super::address::Address;
use super::args::{Args, cut, describe, number, string};
use crate::policy::call::{Answer, Host, place};
use crate::policy::networks::{File, Table};

/// Networks of one `net.set`; more belong into a file.
const MAX_SET: usize = 10_000;
/// Networks of all that were made by `net.set` in one machine.
const MAX_ALL: usize = 200_000;

pub(super) fn module(lua: &Lua, host: &Rc<Host>) -> mlua::Result<Lua_> {
    let net = lua.create_table()?;
    net.set("address", host.pure(lua, |_, values| address(values))?)?;
    let in_use = Rc::new(Cell::new(0));
    net.set("set", host.pure(lua, move |lua, values| given(lua, &in_use, values))?)?;
    let shared = Rc::downgrade(host);
    let file = host.pure(lua, move |_, values| {
        let mut args = Args::new("net.file", values);
        let path = args.string("path")?;
        match shared.upgrade() {
            Some(host) => host.file(&path).map(Set::File).map_err(|why| args.error("path", why)),
            None => Err(args.error("path", "the virtual machine is gone")),
        }
    })?;
    net.set("file", file)?;
    Ok(net)
}

fn address(values: MultiValue) -> Answer<Option<Address>> {
    let mut args = Args::new("net.address", values);
    match args.value() {
        value @ (Value::String(_) | Value::UserData(_)) => Ok(Address::of(&value).map(Address)),
        other => Err(args.wrong("text", "a string", &other)),
    }
}

fn given(lua: &Lua, in_use: &Rc<Cell<usize>>, values: MultiValue) -> Answer<Set> {
    let mut args = Args::new("net.set", values);
    let networks = args.table("networks")?;
    let mut table = Table::default();
    let length = networks.raw_len();
    for pair in networks.pairs::<Value, Value>() {
        let (key, value) = pair.map_err(|error| args.error("networks", error))?;
        let index = number(&key).filter(|index| index.fract() == 0.0 && (1.0..=length as f64).contains(index));
        let Some(index) = index else {
            let key = string(&key).unwrap_or_else(|| describe(&key));
            return Err(args.error("networks", format!("must be a list; it has the key {}", cut(&key, 64))));
        };
        let name = format!("networks[{index}]");
        let text = match &value {
            Value::UserData(_) => Address::of(&value).map(|address| address.to_string()),
            other => string(other),
        };
        let text = text.ok_or_else(|| args.wrong(&name, "a network such as \"192.0.2.0/24\"", &value))?;
        table.add(text.trim()).map_err(|why| args.error(&name, format!("{:?} {why}", cut(&text, 64))))?;
        if table.len() > MAX_SET {
            return Err(args.error("networks", format!("has more than {MAX_SET} networks; net.file takes more")));
        }
    }
    let count = table.len();
    if in_use.get() + count > MAX_ALL {
        // What is not used any more is there until it is collected, and Lua sees a few bytes of it.
        lua.gc_collect().map_err(|error| args.error("networks", error))?;
    }
    if in_use.get() + count > MAX_ALL {
        let text = format!("the sets of this machine have more than {MAX_ALL} networks; make them outside of report");
        return Err(args.error("networks", text));
    }
    in_use.set(in_use.get() + count);
    Ok(Set::Given { table, _share: Share { count, in_use: Rc::clone(in_use) } })
}

/// What a set takes of the machine's bound.
struct Share {
    count: usize,
    in_use: Rc<Cell<usize>>,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.in_use.set(self.in_use.get() - self.count);
    }
}

/// A set of networks.
enum Set {
    Given { table: Table, _share: Share },
    File(Arc<File>),
}

impl Set {
    fn has(&self, address: IpAddr) -> bool {
        match self {
            Self::Given { table, .. } => table.has(address),
            Self::File(file) => file.has(address),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Given { table, .. } => table.len(),
            Self::File(file) => file.len(),
        }
    }
}

impl UserData for Set {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("has", |lua, this, value: Value| match Address::of(&value) {
            Some(address) => Ok(this.has(address)),
            None => {
                let text = format!("set:has: address: an address or its text is required, got {}", describe(&value));
                Err(mlua::Error::runtime(place(lua, &text)))
            }
        });
        methods.add_method("size", |_, this, ()| Ok(this.len()));
        methods.add_meta_method(MetaMethod::Len, |_, this, ()| Ok(this.len()));
        methods.add_meta_method(MetaMethod::ToString, |_, this, ()| Ok(format!("set of {} networks", this.len())));
    }
}
