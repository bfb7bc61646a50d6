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

/// Networks of one set that is made in a handler, and of each `net.set`; more belong into a file.
pub(in crate::policy) const MAX_SET: usize = 10_000;
/// Networks of all that the policies of one machine have given.
pub(in crate::policy) const MAX_ALL: usize = 200_000;

pub(super) fn module(lua: &Lua, host: &Rc<Host>) -> mlua::Result<Lua_> {
    let net = lua.create_table()?;
    net.set("address", host.pure(lua, |_, values| address(values))?)?;
    let shared = Rc::downgrade(host);
    let set = host.pure(lua, move |lua, values| match shared.upgrade() {
        Some(host) => given(lua, &host, values),
        None => Err("net.set: the virtual machine is gone".to_owned()),
    })?;
    net.set("set", set)?;
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

fn given(lua: &Lua, host: &Host, values: MultiValue) -> Answer<Set> {
    let mut args = Args::new("net.set", values);
    let networks = args.table("networks")?;
    let mut set = Given::new(host, MAX_SET);
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
        set.add(lua, &text).map_err(|why| match why {
            NotAdded::Text(why) => args.error(&name, format!("{:?} {why}", cut(&text, 64))),
            NotAdded::Full(why) => args.error("networks", why),
        })?;
    }
    Ok(Set::Given(set))
}

/// Networks that a policy has given, within the bounds of its machine.
pub(in crate::policy) struct Given {
    table: Table,
    /// What it takes of the machine's bound.
    count: usize,
    most: usize,
    in_use: Rc<Cell<usize>>,
}

/// Why a network was not added.
pub(in crate::policy) enum NotAdded {
    /// What is wrong follows the text.
    Text(&'static str),
    /// There are too many.
    Full(String),
}

impl Given {
    /// `most` of its own.
    pub(in crate::policy) fn new(host: &Host, most: usize) -> Self {
        Self { table: Table::default(), count: 0, most, in_use: Rc::clone(&host.networks) }
    }

    /// A network, an address, or either with a `!` before it.
    pub(in crate::policy) fn add(&mut self, lua: &Lua, text: &str) -> Result<(), NotAdded> {
        let full = |error: mlua::Error| NotAdded::Full(error.to_string());
        if self.in_use.get() >= MAX_ALL {
            // What is not used any more is there until it is collected, and Lua sees a few bytes of it.
            lua.gc_collect().map_err(full)?;
        }
        if self.in_use.get() >= MAX_ALL {
            let text =
                format!("the sets of this machine have more than {MAX_ALL} networks; make them outside of report");
            return Err(NotAdded::Full(text));
        }
        if self.count >= self.most {
            return Err(NotAdded::Full(format!("has more than {} networks; net.file takes more", self.most)));
        }
        self.table.add(text.trim()).map_err(NotAdded::Text)?;
        let more = self.table.len() - self.count;
        self.count += more;
        self.in_use.set(self.in_use.get() + more);
        Ok(())
    }

    pub(in crate::policy) fn has(&self, address: IpAddr) -> bool {
        self.table.has(address)
    }

    pub(in crate::policy) fn len(&self) -> usize {
        self.table.len()
    }

    pub(in crate::policy) fn clear(&mut self) {
        self.table = Table::default();
        self.in_use.set(self.in_use.get() - std::mem::take(&mut self.count));
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A set of networks.
enum Set {
    Given(Given),
    File(Arc<File>),
}

impl Set {
    fn has(&self, address: IpAddr) -> bool {
        match self {
            Self::Given(set) => set.has(address),
            Self::File(file) => file.has(address),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Given(set) => set.len(),
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
