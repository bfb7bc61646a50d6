//! What a policy may call: one file a module.
//!
//! Owns how arguments are checked and how an error names the function, the argument, the file and the line. Every function turns its
//! arguments into Rust values before it awaits: a Lua handle that is held while waiting counts against LuaJIT's 8,000.

pub(super) mod alert;
pub(super) mod geo;
pub(super) mod history;
pub(super) mod json;
pub(super) mod log;
pub(super) mod report;
pub(super) mod sandbox;
pub(super) mod state;
pub(super) mod time;

use std::rc::Rc;
use std::time::Duration;

use mlua::{Error, Lua, Result, Table, Value};

use super::context::Context;

/// Where the policy's code stands that called: `file:line: `, or nothing where no Lua code is on the stack.
fn here(lua: &Lua) -> String {
    (0..16)
        .find_map(|level| {
            lua.inspect_stack(level, |frame| {
                let line = frame.current_line()?;
                let source = frame.source().short_src?.into_owned();
                (!source.starts_with('[')).then(|| format!("{source}:{line}: "))
            })?
        })
        .unwrap_or_default()
}

/// A wrong argument or a wrong use.
fn wrong(lua: &Lua, function: &str, what: impl AsRef<str>) -> Error {
    Error::RuntimeError(format!("{}{function}: {}", here(lua), what.as_ref()))
}

/// The call that is served; an error at a policy's top level, where there is no report.
fn current(lua: &Lua, function: &str) -> Result<Rc<Context>> {
    Context::current().ok_or_else(|| wrong(lua, function, "works inside report(lt) only, not while the file loads"))
}

/// A string argument; numbers count as their text.
fn text(lua: &Lua, function: &str, argument: &str, value: &Value) -> Result<String> {
    let text = match value {
        Value::String(text) => text.to_str().ok().map(|text| text.to_owned()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    text.ok_or_else(|| wrong(lua, function, format!("`{argument}` must be a string (UTF-8), not {}", kind(value))))
}

/// A number argument.
fn number(lua: &Lua, function: &str, argument: &str, value: &Value) -> Result<f64> {
    match value {
        Value::Integer(number) => Ok(*number as f64),
        Value::Number(number) => Ok(*number),
        _ => Err(wrong(lua, function, format!("`{argument}` must be a number, not {}", kind(value)))),
    }
}

/// A positive number of seconds, up to a hundred years.
fn seconds(lua: &Lua, function: &str, argument: &str, value: &Value) -> Result<Duration> {
    const CENTURY: f64 = 100.0 * 366.0 * 86_400.0;
    let seconds = number(lua, function, argument, value)?;
    if seconds > 0.0 && seconds <= CENTURY {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(wrong(lua, function, format!("`{argument}` must be a number of seconds above 0 and up to a hundred years, not {seconds}")))
}

/// The options of a function that takes a table of them; unknown names are errors that name the nearest known one.
fn options(lua: &Lua, function: &str, table: &Table, known: &[&str]) -> Result<()> {
    for pair in table.pairs::<Value, Value>() {
        let (key, _) = pair?;
        let name = match &key {
            Value::String(name) => name.to_string_lossy(),
            other => return Err(wrong(lua, function, format!("an option has a name, not {}", kind(other)))),
        };
        if !known.contains(&name.as_str()) {
            return Err(wrong(lua, function, format!("unknown key `{name}`; {}", nearest(&name, known))));
        }
    }
    Ok(())
}

/// "did you mean …" or the list of what there is.
fn nearest(name: &str, known: &[&str]) -> String {
    let near = known.iter().map(|known| (strsim::damerau_levenshtein(name, known), known)).min();
    match near {
        Some((distance, near)) if distance <= 2 => format!("did you mean `{near}`?"),
        _ => format!("there is {}", known.join(", ")),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Nil => "nil",
        other => other.type_name(),
    }
}
