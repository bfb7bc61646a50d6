//! `wforce.allow`, `wforce.report`, `wforce.addBLEntry`, `wforce.delBLEntry`: talks to the wforce servers of `policy.wforce.servers`.
//!
//! Owns the check of what a policy gives. A server that does not take it is no error of the policy: it gets `nil` and the reason.

use std::rc::Rc;

use mlua::{IntoLuaMulti, Lua, MultiValue, Table, Value as Lua_};
use serde_json::{Map, Value};

use super::address::Address;
use super::args::{Args, number, string};
use super::json;
use crate::policy::call::{Answer, Call, Host};
use crate::policy::wforce::Command;
use crate::report::ATTEMPT_FIELDS;

/// Those that are known after the login only.
const OF_REPORTS: [&str; 3] = ["success", "policy_reject", "fail_type"];
/// Ten years, in seconds.
const LONGEST: f64 = 10.0 * 366.0 * 86_400.0;

pub(super) fn module(lua: &Lua, host: &Rc<Host>) -> mlua::Result<Table> {
    let wforce = lua.create_table()?;
    let allow = host.waiting(
        lua,
        "wforce.allow",
        |call, values| {
            let body = attempt(&call, &mut Args::new("wforce.allow", values), false)?;
            Ok(async move { Ok(call.services.wforce.ask(&call.web(), Command::Allow, &body).await) })
        },
        |lua, answer: Result<Value, String>| match answer {
            Ok(answer) => (json::to_lua_without_null(lua, &answer)?,).into_lua_multi(lua),
            Err(said) => (Lua_::Nil, said).into_lua_multi(lua),
        },
    )?;
    wforce.set("allow", allow)?;
    telling(lua, host, &wforce, "wforce.report", Command::Report, |call, args| attempt(call, args, true))?;
    telling(lua, host, &wforce, "wforce.addBLEntry", Command::AddEntry, |call, args| entry(call, args, true))?;
    telling(lua, host, &wforce, "wforce.delBLEntry", Command::DeleteEntry, |call, args| entry(call, args, false))?;
    Ok(wforce)
}

fn telling(
    lua: &Lua,
    host: &Rc<Host>,
    module: &Table,
    name: &'static str,
    command: Command,
    parse: fn(&Call, &mut Args) -> Answer<Value>,
) -> mlua::Result<()> {
    let function = host.waiting(
        lua,
        name,
        move |call, values| {
            let body = parse(&call, &mut Args::new(name, values))?;
            Ok(async move { Ok(call.services.wforce.tell(&call.web(), command, &body).await) })
        },
        |lua, told: Result<(), String>| -> mlua::Result<MultiValue> {
            match told {
                Ok(()) => true.into_lua_multi(lua),
                Err(said) => (Lua_::Nil, said).into_lua_multi(lua),
            }
        },
    )?;
    module.set(name.trim_start_matches("wforce."), function)
}

/// A call that can reach nobody is a mistake in the configuration, and not a server that does not answer.
fn reachable(call: &Call, args: &Args) -> Answer<()> {
    if call.services.wforce.is_empty() {
        return Err(args.error("policy.wforce.servers", "is empty; name the wforce servers in the configuration"));
    }
    Ok(())
}

/// What is put together for wforce. Each field is checked: wforce takes a wrong type for a missing value, and says nothing.
struct Body<'a> {
    args: &'a Args,
    map: Map<String, Value>,
}

impl Body<'_> {
    fn text(&mut self, name: &str, value: &Lua_) -> Answer<()> {
        if !value.is_nil() {
            let text = string(value).ok_or_else(|| self.args.wrong(name, "a string", value))?;
            self.map.insert(name.to_owned(), Value::from(text));
        }
        Ok(())
    }

    /// The same, and it must be there.
    fn required(&mut self, name: &str, value: &Lua_) -> Answer<()> {
        match string(value) {
            Some(text) if text.is_empty() => Err(self.args.error(name, "must not be empty")),
            Some(_) => self.text(name, value),
            None => Err(self.args.wrong(name, "a string", value)),
        }
    }

    fn address(&mut self, name: &str, value: &Lua_) -> Answer<()> {
        let address = Address::of(value).ok_or_else(|| self.args.wrong(name, "an address or its text", value))?;
        self.map.insert(name.to_owned(), Value::from(address.to_string()));
        Ok(())
    }

    fn boolean(&mut self, name: &str, value: &Lua_) -> Answer<()> {
        match value {
            Lua_::Nil => {}
            Lua_::Boolean(value) => drop(self.map.insert(name.to_owned(), Value::from(*value))),
            other => return Err(self.args.wrong(name, "true or false", other)),
        }
        Ok(())
    }

    fn table(&mut self, name: &str, value: &Lua_) -> Answer<()> {
        match value {
            Lua_::Nil => {}
            Lua_::Table(_) => {
                let value = json::to_json(value).map_err(|reason| self.args.at(name, &reason))?;
                self.map.insert(name.to_owned(), value);
            }
            other => return Err(self.args.wrong(name, "a table", other)),
        }
        Ok(())
    }
}

/// One login attempt, as `allow` and `report` take it.
fn attempt(call: &Call, args: &mut Args, is_report: bool) -> Answer<Value> {
    reachable(call, args)?;
    let table = args.table("attempt")?;
    let args = &*args;
    let values = args.fields(&table, ATTEMPT_FIELDS)?;
    let mut body = Body { args, map: Map::new() };
    // wforce refuses an attempt without one; not every policy has one to give.
    body.map.insert("pwhash".to_owned(), Value::from(""));
    for (name, value) in ATTEMPT_FIELDS.into_iter().zip(&values) {
        if !is_report && OF_REPORTS.contains(&name) && !value.is_nil() {
            return Err(args.error(name, "is not known before the login; it is part of a report"));
        }
        match name {
            "login" => body.required(name, value)?,
            "remote" => body.address(name, value)?,
            "success" | "policy_reject" | "tls" => body.boolean(name, value)?,
            "attrs" | "device_attrs" => body.table(name, value)?,
            _ => body.text(name, value)?,
        }
        if is_report && name == "success" && value.is_nil() {
            return Err(args.wrong(name, "true or false", value));
        }
    }
    Ok(Value::Object(body.map))
}

/// An entry of the blacklist: what it is for, and, to add it, for how long and why.
fn entry(call: &Call, args: &mut Args, add: bool) -> Answer<Value> {
    reachable(call, args)?;
    let table = args.table("entry")?;
    let args = &*args;
    let [ip, login, netmask, expire_secs, reason] = if add {
        args.fields(&table, ["ip", "login", "netmask", "expire_secs", "reason"])?
    } else {
        let [ip, login, netmask] = args.fields(&table, ["ip", "login", "netmask"])?;
        [ip, login, netmask, Lua_::Nil, Lua_::Nil]
    };
    let mut body = Body { args, map: Map::new() };
    match (ip.is_nil(), login.is_nil(), netmask.is_nil()) {
        (true, true, true) => return Err(args.error("ip", "is required, or login, or netmask, or ip and login")),
        (_, _, true) => {}
        (true, true, false) => {}
        _ => return Err(args.error("netmask", "stands alone; an entry is for ip, login, ip and login, or netmask")),
    }
    if !ip.is_nil() {
        body.address("ip", &ip)?;
    }
    if !login.is_nil() {
        body.required("login", &login)?;
    }
    if !netmask.is_nil() {
        let text = string(&netmask).ok_or_else(|| args.wrong("netmask", "a network such as 192.0.2.0/24", &netmask))?;
        let network: ipnet::IpNet =
            text.trim().parse().map_err(|_| args.error("netmask", "is no network such as 192.0.2.0/24"))?;
        body.map.insert("netmask".to_owned(), Value::from(network.trunc().to_string()));
    }
    if add {
        match number(&expire_secs) {
            Some(seconds) if seconds.fract() == 0.0 && (1.0..=LONGEST).contains(&seconds) => {
                body.map.insert("expire_secs".to_owned(), Value::from(seconds as u64));
            }
            Some(_) => return Err(args.error("expire_secs", "must be a whole number of seconds, up to ten years")),
            None => return Err(args.wrong("expire_secs", "a number of seconds", &expire_secs)),
        }
        body.required("reason", &reason)?;
    }
    Ok(Value::Object(body.map))
}
