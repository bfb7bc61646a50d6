//! `log.debug`, `log.info`, `log.warn`, `log.error`: a line with fields in the program's own log.
//!
//! Owns the bound: a policy that logs at each report must not fill the disk of those who read the log.

use mlua::{Lua, Result, Table, Value};

use super::{current, json, text};

/// Lines that one call may log; further ones are dropped.
const MAX_LINES: u32 = 20;
/// The longest message.
const MAX_MESSAGE: usize = 2000;

pub(super) fn module(lua: &Lua) -> Result<Table> {
    let module = lua.create_table()?;
    module.raw_set("debug", line(lua, "log.debug")?)?;
    module.raw_set("info", line(lua, "log.info")?)?;
    module.raw_set("warn", line(lua, "log.warn")?)?;
    module.raw_set("error", line(lua, "log.error")?)?;
    Ok(module)
}

fn line(lua: &Lua, function: &'static str) -> Result<mlua::Function> {
    lua.create_function(move |lua, (message, fields): (Value, Option<Table>)| {
        let context = current(lua, function)?;
        let mut message = text(lua, function, "message", &message)?;
        if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE) {
            message.truncate(end);
        }
        context.logged.set(context.logged.get() + 1);
        if context.logged.get() > MAX_LINES {
            return Ok(());
        }
        let fields = match fields {
            Some(fields) => json::from_lua(lua, function, "fields", &Value::Table(fields))?.to_string(),
            None => String::new(),
        };
        let (policy, report) = (&*context.policy, context.report.id);
        match function {
            "log.debug" => tracing::debug!(target: "policy", policy, %report, fields, "{message}"),
            "log.info" => tracing::info!(target: "policy", policy, %report, fields, "{message}"),
            "log.warn" => tracing::warn!(target: "policy", policy, %report, fields, "{message}"),
            _ => tracing::error!(target: "policy", policy, %report, fields, "{message}"),
        }
        Ok(())
    })
}
