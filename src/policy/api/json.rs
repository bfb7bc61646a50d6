//! `json.encode`, `json.decode`, `json.null`, `json.empty_array`; and the way between Lua values and JSON that the other modules use.

use std::rc::Rc;

use mlua::{LightUserData, Lua, Table, Value as Lua_};
use serde_json::{Map, Number, Value};

use super::address::Address;
use super::args::{self, Args};
use crate::policy::call::{Answer, Host};

/// Levels of tables in tables: deeper ones are loops.
const MAX_DEPTH: usize = 32;
/// Values in one table with all that is in it.
const MAX_VALUES: usize = 50_000;
/// Bytes of all strings in one value.
const MAX_BYTES: usize = 1 << 20;
/// The largest whole number that a Lua number tells from its neighbours.
const EXACT: f64 = 9_007_199_254_740_992.0;

pub(super) fn module(lua: &Lua, host: &Rc<Host>) -> mlua::Result<Table> {
    let json = lua.create_table()?;
    json.set(
        "encode",
        host.pure(lua, |_, values| {
            let value = Args::new("json.encode", values).value();
            let value = to_json(&value).map_err(|reason| format!("json.encode: value{reason}"))?;
            serde_json::to_string(&value).map_err(|error| format!("json.encode: value: {error}"))
        })?,
    )?;
    json.set(
        "decode",
        host.pure(lua, |lua, values| {
            let text = Args::new("json.decode", values).string("text")?;
            let value: Value = serde_json::from_str(&text).map_err(|error| format!("json.decode: text: {error}"))?;
            to_lua(lua, &value).map_err(|error| format!("json.decode: {error}"))
        })?,
    )?;
    json.set("null", Lua_::NULL)?;
    json.set("empty_array", empty_array())?;
    Ok(json)
}

/// What an empty array is in Lua, where `{}` is an empty object.
fn empty_array() -> LightUserData {
    static EMPTY_ARRAY: u8 = 0;
    LightUserData((&raw const EMPTY_ARRAY).cast_mut().cast())
}

/// A Lua value as JSON. A table with the keys 1..n is an array, `{}` an object; what JSON has no number for is null. The error is the
/// path in the value and the reason: `.hits[2]: a function is no JSON`.
pub(in crate::policy) fn to_json(value: &Lua_) -> Answer<Value> {
    let mut budget = Budget { values: MAX_VALUES, bytes: MAX_BYTES };
    budget.value(value, MAX_DEPTH)
}

struct Budget {
    values: usize,
    bytes: usize,
}

impl Budget {
    fn spend(&mut self, bytes: usize) -> Answer<()> {
        self.values = self.values.checked_sub(1).ok_or_else(|| format!(": has more than {MAX_VALUES} values"))?;
        self.bytes =
            self.bytes.checked_sub(bytes).ok_or_else(|| format!(": has more than {MAX_BYTES} bytes of text"))?;
        Ok(())
    }

    fn value(&mut self, value: &Lua_, depth: usize) -> Answer<Value> {
        self.spend(0)?;
        Ok(match value {
            Lua_::Nil => Value::Null,
            Lua_::Boolean(value) => Value::Bool(*value),
            Lua_::Integer(number) => Value::from(*number),
            Lua_::Number(value) => number(*value),
            Lua_::String(text) => {
                self.spend(text.as_bytes().len())?;
                Value::String(args::string(value).unwrap_or_default())
            }
            Lua_::LightUserData(data) if data.0.is_null() => Value::Null,
            Lua_::LightUserData(data) if *data == empty_array() => Value::Array(Vec::new()),
            Lua_::Table(table) => return self.table(table, depth),
            Lua_::UserData(data) => match data.borrow::<Address>() {
                Ok(address) => Value::String(address.0.to_string()),
                Err(_) => return Err(": a userdata is no JSON".to_owned()),
            },
            other => return Err(format!(": a {} is no JSON", other.type_name())),
        })
    }

    fn table(&mut self, table: &Table, depth: usize) -> Answer<Value> {
        let depth = depth.checked_sub(1).ok_or_else(|| format!(": is nested deeper than {MAX_DEPTH}"))?;
        let length = table.raw_len();
        let mut items = Vec::new();
        let mut map = Map::new();
        for pair in table.pairs::<Lua_, Lua_>() {
            let (key, value) = pair.map_err(|error| format!(": {error}"))?;
            // `pairs` meets the keys 1..n in order where they are an array.
            let next = items.len() + 1;
            if map.is_empty() && next <= length && args::number(&key) == Some(next as f64) {
                items.push(self.value(&value, depth).map_err(|error| format!("[{next}]{error}"))?);
                continue;
            }
            for (at, item) in items.drain(..).enumerate() {
                map.insert((at + 1).to_string(), item);
            }
            let Some(name) = args::string(&key) else {
                return Err(format!(": a {} is no key in JSON", key.type_name()));
            };
            self.spend(name.len())?;
            let value = self.value(&value, depth).map_err(|error| format!(".{}{error}", args::cut(&name, 64)))?;
            map.insert(name, value);
        }
        Ok(if items.is_empty() { Value::Object(map) } else { Value::Array(items) })
    }
}

fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() <= EXACT {
        return Value::from(value as i64);
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// JSON as a Lua value; null is `json.null`.
pub(in crate::policy) fn to_lua(lua: &Lua, value: &Value) -> mlua::Result<Lua_> {
    give(lua, value, true)
}

/// JSON as a Lua value; a key whose value is null is left out, so that `if answer.value then` means what it says.
pub(in crate::policy) fn to_lua_without_null(lua: &Lua, value: &Value) -> mlua::Result<Lua_> {
    give(lua, value, false)
}

fn give(lua: &Lua, value: &Value, nulls: bool) -> mlua::Result<Lua_> {
    Ok(match value {
        Value::Null => Lua_::NULL,
        Value::Bool(value) => Lua_::Boolean(*value),
        Value::Number(number) => Lua_::Number(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Lua_::String(lua.create_string(text)?),
        Value::Array(items) => {
            let table = lua.create_table_with_capacity(items.len(), 0)?;
            for (at, item) in items.iter().enumerate() {
                table.raw_set(at + 1, give(lua, item, nulls)?)?;
            }
            Lua_::Table(table)
        }
        Value::Object(map) => {
            let table = lua.create_table_with_capacity(0, map.len())?;
            for (key, value) in map.iter().filter(|(_, value)| nulls || !value.is_null()) {
                table.raw_set(key.as_str(), give(lua, value, nulls)?)?;
            }
            Lua_::Table(table)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(code: &str) -> Answer<String> {
        let lua = Lua::new();
        lua.globals().set("empty_array", empty_array()).unwrap();
        lua.globals().set("null", Lua_::NULL).unwrap();
        to_json(&lua.load(code).eval().unwrap()).map(|value| value.to_string())
    }

    #[test]
    fn tables_become_what_a_person_means_by_them() {
        assert_eq!(encode("return {1, 2.5, 'x', true}").unwrap(), r#"[1,2.5,"x",true]"#);
        assert_eq!(encode("return {}").unwrap(), "{}");
        assert_eq!(encode("return {a = empty_array, b = null}").unwrap(), r#"{"a":[],"b":null}"#);
        assert_eq!(encode("return {1, 2, x = 3}").unwrap(), r#"{"1":1,"2":2,"x":3}"#);
        assert_eq!(encode("return {[3] = 'c'}").unwrap(), r#"{"3":"c"}"#);
        assert_eq!(encode("return 0/0").unwrap(), "null");
        assert_eq!(encode("return '\\195'").unwrap(), "\"\u{fffd}\"");
    }

    #[test]
    fn loops_functions_and_floods_are_refused_with_their_path() {
        assert!(encode("local t = {}; t.t = t; return t").unwrap_err().ends_with("is nested deeper than 32"));
        assert_eq!(encode("return {a = {1, print}}").unwrap_err(), ".a[2]: a function is no JSON");
        assert!(encode("local t = {}; for i = 1, 60000 do t[i] = i end; return t").unwrap_err().contains("more than"));
        assert!(encode("return {('x'):rep(2000000)}").unwrap_err().contains("bytes of text"));
    }
}
