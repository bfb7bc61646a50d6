//! `state.get`, `state.set`, `state.add`, `state.count`, `state.remove`: what the policy remembers between reports.
//!
//! Owns the argument checks. Reads go to the store, writes are collected; both are the policy's own, whatever names others use.

use mlua::{Lua, Result, Table, Value};

use super::{current, json, kind, options, seconds, text, wrong};
use crate::policy::context::Context;
use crate::state::StateError;

/// The longest name of an entry, and of a member of a set.
const MAX_NAME: usize = 1024;

pub(super) fn module(lua: &Lua) -> Result<Table> {
    let module = lua.create_table()?;
    module.raw_set("get", lua.create_async_function(get)?)?;
    module.raw_set("set", lua.create_function(set)?)?;
    module.raw_set("remove", lua.create_function(remove)?)?;
    module.raw_set("add", lua.create_async_function(add)?)?;
    module.raw_set("count", lua.create_async_function(count)?)?;
    Ok(module)
}

fn name(lua: &Lua, function: &str, argument: &str, value: &Value) -> Result<String> {
    let name = text(lua, function, argument, value)?;
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(wrong(lua, function, format!("`{argument}` has {} bytes; 1 to {MAX_NAME} are allowed", name.len())));
    }
    Ok(name)
}

/// A store that does not answer fails the call, also where the policy catches the error.
fn unanswered(lua: &Lua, context: &Context, function: &str, error: &StateError) -> mlua::Error {
    context.unanswered.replace(Some(("state", error.to_string())));
    wrong(lua, function, error.to_string())
}

async fn get(lua: Lua, key: Value) -> Result<Value> {
    let (context, key) = (current(&lua, "state.get")?, name(&lua, "state.get", "key", &key)?);
    match context.session.get(&key).await {
        Ok(None) => Ok(Value::Nil),
        Ok(Some(bytes)) => match serde_json::from_slice(&bytes) {
            Ok(value) => json::to_lua(&lua, &value),
            Err(error) => Err(wrong(&lua, "state.get", format!("the stored value of `{key}` is damaged: {error}"))),
        },
        Err(error) => Err(unanswered(&lua, &context, "state.get", &error)),
    }
}

fn set(lua: &Lua, (key, value, ttl): (Value, Value, Value)) -> Result<()> {
    let context = current(lua, "state.set")?;
    let key = name(lua, "state.set", "key", &key)?;
    let ttl = match ttl {
        Value::Nil => None,
        Value::Table(table) => {
            options(lua, "state.set", &table, &["ttl"])?;
            match table.raw_get::<Value>("ttl")? {
                Value::Nil => None,
                ttl => Some(seconds(lua, "state.set", "ttl", &ttl)?),
            }
        }
        other => Some(seconds(lua, "state.set", "ttl", &other)?),
    };
    if value.is_nil() {
        context.session.remove(&key);
        return Ok(());
    }
    let text = json::from_lua(lua, "state.set", "value", &value)?.to_string();
    let limit = context.services.max_value;
    if text.len() > limit {
        return Err(wrong(lua, "state.set", format!("the value has {} bytes; state.max_value is {limit}", text.len())));
    }
    context.session.set(&key, text.into(), ttl);
    Ok(())
}

fn remove(lua: &Lua, key: Value) -> Result<()> {
    let context = current(lua, "state.remove")?;
    context.session.remove(&name(lua, "state.remove", "key", &key)?);
    Ok(())
}

fn within(lua: &Lua, function: &str, table: Value) -> Result<std::time::Duration> {
    let Value::Table(table) = table else {
        return Err(wrong(lua, function, format!("the last argument is {{ within = seconds }}, not {}", kind(&table))));
    };
    options(lua, function, &table, &["within"])?;
    seconds(lua, function, "within", &table.raw_get::<Value>("within")?)
}

async fn add(lua: Lua, (key, member, table): (Value, Value, Value)) -> Result<usize> {
    let context = current(&lua, "state.add")?;
    let (key, member) = (name(&lua, "state.add", "key", &key)?, name(&lua, "state.add", "member", &member)?);
    let within = within(&lua, "state.add", table)?;
    context.session.add(&key, &member, within).await.map_err(|error| unanswered(&lua, &context, "state.add", &error))
}

async fn count(lua: Lua, (key, table): (Value, Value)) -> Result<usize> {
    let context = current(&lua, "state.count")?;
    let key = name(&lua, "state.count", "key", &key)?;
    let within = within(&lua, "state.count", table)?;
    context.session.count(&key, within).await.map_err(|error| unanswered(&lua, &context, "state.count", &error))
}
