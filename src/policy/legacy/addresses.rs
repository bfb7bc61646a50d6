//! `newCA`, `newNetmask`, `newNetmaskFromCA`, `newNetmaskGroup`: addresses and networks.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use ipnet::IpNet;
use mlua::{Lua, MetaMethod, MultiValue, Table, UserData, UserDataMethods, Value};

use crate::policy::api::address::Address;
use crate::policy::api::args::{Args, number};
use crate::policy::call::{Answer, Host, place};
use crate::policy::networks;

/// A network; `10.1.2.3/8` is `10.0.0.0/8`.
struct Netmask(IpNet);

impl UserData for Netmask {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("toStringNetwork", |_, this, ()| Ok(this.0.to_string()));
        methods.add_meta_method(MetaMethod::ToString, |_, this, ()| Ok(this.0.to_string()));
    }
}

/// Networks that are in or out; the one with the longest prefix decides.
#[derive(Default)]
struct Group(RefCell<networks::Table>);

impl UserData for Group {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("addMask", |lua, this, mask: String| {
            let added = this.0.borrow_mut().add(mask.trim());
            added.map_err(|why| {
                mlua::Error::runtime(place(lua, &format!("addMask: mask: {} {why}", super::shown(&mask))))
            })
        });
        methods.add_method("match", |lua, this, ca: Value| match Address::of(&ca) {
            Some(address) => Ok(this.0.borrow().has(address)),
            None => Err(mlua::Error::runtime(place(lua, "match: ca: an address is required"))),
        });
        methods.add_method("size", |_, this, ()| Ok(this.0.borrow().len()));
        methods.add_method("clear", |_, this, ()| {
            *this.0.borrow_mut() = networks::Table::default();
            Ok(())
        });
    }
}

pub(super) fn install(lua: &Lua, host: &Rc<Host>, names: &Table) -> mlua::Result<()> {
    names.set("newCA", host.pure(lua, |_, values| address(&mut Args::new("newCA", values)))?)?;
    names.set("newNetmask", host.pure(lua, |_, values| netmask(&mut Args::new("newNetmask", values)))?)?;
    names.set("newNetmaskGroup", host.pure(lua, |_, _| Ok(Group::default()))?)?;
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
