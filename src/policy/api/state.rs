//! `state.get`, `state.set`, `state.add`, `state.count`: what a policy remembers between reports, under keys of its own.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use mlua::{Lua, MultiValue, Table, Value};

use super::args::Args;
use super::json;
use crate::policy::call::{Answer, Call, Host};
use crate::state::session::SessionError;

pub(super) fn module(lua: &Lua, host: &Rc<Host>) -> mlua::Result<Table> {
    let state = lua.create_table()?;
    let get = host.waiting(
        lua,
        "state.get",
        |call, values| {
            let key = Args::new("state.get", values).string("key")?;
            Ok(async move {
                match call.session.get(&key).await {
                    Ok(value) => value.map(|json| parse(&json)).transpose(),
                    Err(error) => Err(told(&call, "state.get", error)),
                }
            })
        },
        |lua, value: Option<serde_json::Value>| match value {
            Some(value) => json::to_lua(lua, &value),
            None => Ok(Value::Nil),
        },
    )?;
    state.set("get", get)?;
    state.set("set", host.function(lua, "state.set", |_, call, values| set(call, values))?)?;
    let add = host.waiting(
        lua,
        "state.add",
        |call, values| {
            let (key, member, within) = add_arguments(values)?;
            Ok(async move {
                let added = call.session.add(&key, &member, within).await;
                added.map_err(|error| told(&call, "state.add", error))
            })
        },
        |_, count: usize| Ok(Value::Number(count as f64)),
    )?;
    state.set("add", add)?;
    let count = host.waiting(
        lua,
        "state.count",
        |call, values| {
            let mut args = Args::new("state.count", values);
            let key = args.string("key")?;
            let within = window(&mut args)?;
            Ok(async move {
                let counted = call.session.count(&key, within).await;
                counted.map_err(|error| told(&call, "state.count", error))
            })
        },
        |_, count: usize| Ok(Value::Number(count as f64)),
    )?;
    state.set("count", count)?;
    Ok(state)
}

fn set(call: &Call, values: MultiValue) -> Answer<()> {
    let mut args = Args::new("state.set", values);
    let key = args.string("key")?;
    let value = args.value();
    let ttl = match args.value() {
        Value::Nil => None,
        Value::Table(options) => {
            let [ttl] = args.fields(&options, ["ttl"])?;
            if ttl.is_nil() { None } else { Some(args.seconds("ttl", &ttl)?) }
        }
        number => Some(args.seconds("ttl", &number)?),
    };
    let value = match value {
        Value::Nil => None,
        value => {
            let value = json::to_json(&value).map_err(|reason| format!("state.set: value{reason}"))?;
            Some(Bytes::from(serde_json::to_vec(&value).map_err(|error| args.error("value", error))?))
        }
    };
    call.session.set(&key, value, ttl).map_err(|error| told(call, "state.set", error))
}

fn add_arguments(values: MultiValue) -> Answer<(String, String, Duration)> {
    let mut args = Args::new("state.add", values);
    let key = args.string("key")?;
    let member = match args.value() {
        address @ Value::UserData(_) => {
            super::address::Address::of(&address).map(|address| address.to_string()).ok_or(address)
        }
        other => super::args::string(&other).ok_or(other),
    };
    let member = member.map_err(|other| args.wrong("member", "a string", &other))?;
    let within = window(&mut args)?;
    Ok((key, member, within))
}

fn window(args: &mut Args) -> Answer<Duration> {
    let options = args.table("options")?;
    let [within] = args.fields(&options, ["within"])?;
    args.seconds("within", &within)
}

fn told(call: &Call, function: &str, error: SessionError) -> String {
    match error {
        SessionError::Wrong(reason) => format!("{function}: {reason}"),
        SessionError::Store(error) => call.unavailable(function, "state", error.0),
    }
}

fn parse(json: &[u8]) -> Answer<serde_json::Value> {
    serde_json::from_slice(json).map_err(|error| format!("state.get: the stored value is no JSON: {error}"))
}
