//! `newCA`, `newNetmask`, `newNetmaskFromCA`, `newNetmaskGroup`: addresses and networks.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use ipnet::IpNet;
use mlua::{Lua, MetaMethod, MultiValue, Table, UserData, UserDataFields, UserDataMethods, UserDataRef};

use crate::policy::api::address::Address;
use crate::policy::api::args::{Args, number};
use crate::policy::api::net::{Given, MAX_ALL, MAX_SET, NotAdded};
use crate::policy::call::{Answer, Host};

/// A network; `10.1.2.3/8` is `10.0.0.0/8`.
struct Netmask(IpNet);

impl UserData for Netmask {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("toStringNetwork", |_, this, ()| Ok(this.0.to_string()));
        methods.add_meta_method(MetaMethod::ToString, |_, this, ()| Ok(this.0.to_string()));
    }
}

/// Where the machine keeps the methods of a group.
const METHODS: &str = "trackalert.netmask_group";

/// Networks that are in or out; the one with the longest prefix decides.
struct Group(RefCell<Given>);

impl UserData for Group {
    fn add_fields<F: UserDataFields<Self>>(fields: &mut F) {
        // Functions of the API, so that a policy that catches an error of theirs can read it.
        fields.add_meta_field_with(MetaMethod::Index, |lua| lua.named_registry_value::<Table>(METHODS));
    }
}

fn group(args: &mut Args) -> Answer<UserDataRef<Group>> {
    let value = args.value();
    let group = value.as_userdata().and_then(|data| data.borrow::<Group>().ok());
    group.ok_or_else(|| args.wrong("group", "a newNetmaskGroup() before a colon", &value))
}

fn groups(lua: &Lua, host: &Rc<Host>) -> mlua::Result<Table> {
    let methods = lua.create_table()?;
    let add = host.pure(lua, |lua, values| {
        let args = &mut Args::new("addMask", values);
        let (group, mask) = (group(args)?, args.string("mask")?);
        let added = group.0.borrow_mut().add(lua, &mask);
        added.map_err(|why| match why {
            NotAdded::Text(why) => args.error("mask", format!("{} {why}", super::shown(&mask))),
            NotAdded::Full(why) => args.error("group", why),
        })
    })?;
    methods.set("addMask", add)?;
    let has = host.pure(lua, |_, values| {
        let args = &mut Args::new("match", values);
        let (group, value) = (group(args)?, args.value());
        let address = Address::of(&value).ok_or_else(|| args.wrong("ca", "an address", &value))?;
        Ok(group.0.borrow().has(address))
    })?;
    methods.set("match", has)?;
    let size = host.pure(lua, |_, values| Ok(group(&mut Args::new("size", values))?.0.borrow().len()))?;
    methods.set("size", size)?;
    let clear = host.pure(lua, |_, values| {
        group(&mut Args::new("clear", values))?.0.borrow_mut().clear();
        Ok(())
    })?;
    methods.set("clear", clear)?;
    Ok(methods)
}

pub(super) fn install(lua: &Lua, host: &Rc<Host>, names: &Table) -> mlua::Result<()> {
    names.set("newCA", host.pure(lua, |_, values| address(&mut Args::new("newCA", values)))?)?;
    names.set("newNetmask", host.pure(lua, |_, values| netmask(&mut Args::new("newNetmask", values)))?)?;
    lua.set_named_registry_value(METHODS, groups(lua, host)?)?;
    let shared = Rc::downgrade(host);
    let new_group = host.pure(lua, move |_, _| match shared.upgrade() {
        // A file of the old program may read a long list into one; what a report makes must not take the room of all others.
        Some(host) => {
            let most = if host.is_loading() { MAX_ALL } else { MAX_SET };
            Ok(Group(RefCell::new(Given::new(&host, most))))
        }
        None => Err("newNetmaskGroup: the virtual machine is gone".to_owned()),
    })?;
    names.set("newNetmaskGroup", new_group)?;
    names.set("newNetmaskFromCA", host.pure(lua, |_, values: MultiValue| around(values))?)
}

/// `IP`, `IP:PORT`, `[IP]:PORT`; the port is no part of it.
fn address(args: &mut Args) -> Answer<Address> {
    let text = args.string("address")?;
    let text = text.trim();
    let bare = || text.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    let ip = text.parse::<SocketAddr>().map(|whole| whole.ip()).ok().or_else(bare);
    ip.map(Address).ok_or_else(|| args.error("address", format!("{} is no IP address", super::shown(text))))
}

fn netmask(args: &mut Args) -> Answer<Netmask> {
    let text = args.string("network")?;
    network(&text).map(Netmask).ok_or_else(|| args.error("network", format!("{} is no network", super::shown(&text))))
}

/// A network, or an address as the network of it alone.
pub(super) fn network(text: &str) -> Option<IpNet> {
    let text = text.trim();
    let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))?;
    Some(net.trunc())
}

fn around(values: MultiValue) -> Answer<Netmask> {
    let mut args = Args::new("newNetmaskFromCA", values);
    let value = args.value();
    let ip = Address::of(&value).ok_or_else(|| args.wrong("ca", "an address", &value))?;
    let value = args.value();
    let bits = number(&value).ok_or_else(|| args.wrong("bits", "a number", &value))?;
    let most = if ip.is_ipv4() { 32.0 } else { 128.0 };
    if !(0.0..=most).contains(&bits) || bits.fract() != 0.0 {
        return Err(args.error("bits", format!("must be a whole number from 0 to {most}")));
    }
    let net = IpNet::new(ip, bits as u8).map_err(|error| args.error("bits", error))?;
    Ok(Netmask(net.trunc()))
}
