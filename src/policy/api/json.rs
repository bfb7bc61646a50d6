//! `json.encode(value)`, `json.decode(text)`, `json.null`, `json.empty_array`; and the one conversion between Lua and JSON that all
//! modules use.
//!
//! Owns its bounds: a table that contains itself, or is deeper or larger than anybody reads, is an error and not a crash.

use mlua::{Lua, LuaSerdeExt, Result, Table, Value};
use serde_json::{Map, Number, Value as Json};

use super::{kind, wrong};

const MAX_DEPTH: usize = 32;
const MAX_NODES: usize = 10_000;
const MAX_BYTES: usize = 256 * 1024;

/// Marks a table as an array, also when it is empty.
fn array_metatable(lua: &Lua) -> Table {
    lua.array_metatable()
}

pub(super) fn module(lua: &Lua) -> Result<Table> {
    let module = lua.create_table()?;
    module.raw_set("null", lua.null())?;
    let empty = lua.create_table()?;
    empty.set_metatable(Some(array_metatable(lua)))?;
    module.raw_set("empty_array", empty)?;
    let encode = |lua: &Lua, value: Value| Ok(from_lua(lua, "json.encode", "value", &value)?.to_string());
    module.raw_set("encode", lua.create_function(encode)?)?;
    let decode = |lua: &Lua, text: mlua::LuaString| {
        let parsed = serde_json::from_slice::<Json>(&text.as_bytes());
        let value = parsed.map_err(|error| wrong(lua, "json.decode", format!("not JSON: {error}")))?;
        lua.to_value(&value)
    };
    module.raw_set("decode", lua.create_function(decode)?)?;
    Ok(module)
}

/// A Lua value as JSON. A table with the keys 1 to n is an array, any other an object; an empty one is an object unless it is
/// `json.empty_array`.
pub(super) fn from_lua(lua: &Lua, function: &str, argument: &str, value: &Value) -> Result<Json> {
    let mut left = Budget { nodes: MAX_NODES, bytes: MAX_BYTES };
    convert(lua, value, 0, &mut left).map_err(|what| wrong(lua, function, format!("`{argument}` {what}")))
}

/// JSON as a Lua value; null is nil.
pub(super) fn to_lua(lua: &Lua, value: &Json) -> Result<Value> {
    let options = mlua::serde::SerializeOptions::new()
        .set_array_metatable(false)
        .serialize_none_to_null(false)
        .serialize_unit_to_null(false);
    lua.to_value_with(value, options)
}

struct Budget {
    nodes: usize,
    bytes: usize,
}

impl Budget {
    fn take(&mut self, bytes: usize) -> std::result::Result<(), String> {
        self.nodes = self.nodes.checked_sub(1).ok_or_else(|| format!("has more than {MAX_NODES} values"))?;
        self.bytes = self.bytes.checked_sub(bytes).ok_or_else(|| format!("has more than {MAX_BYTES} bytes of text"))?;
        Ok(())
    }
}

fn convert(lua: &Lua, value: &Value, depth: usize, left: &mut Budget) -> std::result::Result<Json, String> {
    left.take(0)?;
    match value {
        Value::Nil => Ok(Json::Null),
        Value::Boolean(value) => Ok(Json::Bool(*value)),
        Value::Integer(number) => Ok(Json::Number((*number).into())),
        Value::Number(number) => Ok(float(*number)),
        Value::String(text) => {
            left.take(text.as_bytes().len())?;
            Ok(Json::String(text.to_string_lossy()))
        }
        Value::Table(table) if depth < MAX_DEPTH => self::table(lua, table, depth, left),
        Value::Table(_) => Err(format!("is deeper than {MAX_DEPTH} tables, or contains itself")),
        Value::LightUserData(pointer) if pointer.0.is_null() => Ok(Json::Null),
        Value::UserData(_) => match value.to_string() {
            Ok(text) => Ok(Json::String(text)),
            Err(_) => Err("contains a value that has no JSON form".to_owned()),
        },
        other => Err(format!("contains a {}, which has no JSON form", kind(other))),
    }
}

fn table(lua: &Lua, table: &Table, depth: usize, left: &mut Budget) -> std::result::Result<Json, String> {
    let length = table.raw_len();
    let is_array = length > 0 || table.metatable().is_some_and(|meta| meta == array_metatable(lua));
    let (mut items, mut object) = (Vec::with_capacity(length.min(64)), Map::new());
    if is_array {
        for item in table.sequence_values::<Value>() {
            items.push(convert(lua, &item.map_err(|error| error.to_string())?, depth + 1, left)?);
        }
    }
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair.map_err(|error| error.to_string())?;
        let name = match &key {
            Value::Integer(index) if is_array && usize::try_from(*index).is_ok_and(|i| i >= 1 && i <= items.len()) => continue,
            Value::Number(index) if is_array && *index >= 1.0 && *index <= items.len() as f64 => continue,
            Value::String(name) => name.to_string_lossy(),
            Value::Integer(number) => number.to_string(),
            Value::Number(number) => float(*number).to_string(),
            other => return Err(format!("has a key that is a {}", kind(other))),
        };
        if is_array {
            return Err(format!("mixes an array with the key `{name}`"));
        }
        left.take(name.len())?;
        object.insert(name, convert(lua, &value, depth + 1, left)?);
    }
    Ok(if is_array { Json::Array(items) } else { Json::Object(object) })
}

/// A whole number is written without a fraction, as everybody who reads it expects. Infinity and NaN have no JSON form: null.
fn float(number: f64) -> Json {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() < EXACT {
        return Json::Number((number as i64).into());
    }
    Number::from_f64(number).map_or(Json::Null, Json::Number)
}
