//! `time.now()`, `time.iso([seconds])`, `time.sleep(seconds)`.
//!
//! Policies live in report time: `now` is the time of the report that is handled, so that a backlog or a replay raises what was due
//! then. Only `sleep` is real time.

use std::time::Duration;

use mlua::{Lua, Result, Table, Value};

use super::{current, number, wrong};
use crate::report::Time;

/// The longest sleep; `policy.time_limit` ends longer ones anyway.
const MAX_SLEEP: f64 = 3600.0;

pub(super) fn module(lua: &Lua) -> Result<Table> {
    let module = lua.create_table()?;
    module.raw_set("now", lua.create_function(|lua, ()| Ok(current(lua, "time.now")?.report.t.seconds()))?)?;
    module.raw_set("iso", lua.create_function(iso)?)?;
    module.raw_set("sleep", lua.create_async_function(sleep)?)?;
    Ok(module)
}

/// RFC 3339 in UTC.
fn iso(lua: &Lua, seconds: Value) -> Result<String> {
    let time = match seconds {
        Value::Nil => current(lua, "time.iso")?.report.t,
        seconds => Time::from_seconds(number(lua, "time.iso", "seconds", &seconds)?)
            .ok_or_else(|| wrong(lua, "time.iso", "`seconds` is no time between 1970 and 9999"))?,
    };
    Ok(time.rfc3339())
}

async fn sleep(lua: Lua, seconds: Value) -> Result<()> {
    let seconds = number(&lua, "time.sleep", "seconds", &seconds)?;
    if !(0.0..=MAX_SLEEP).contains(&seconds) {
        return Err(wrong(&lua, "time.sleep", format!("`seconds` is 0 to {MAX_SLEEP}, not {seconds}")));
    }
    drop(lua);
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    Ok(())
}
