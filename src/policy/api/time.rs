//! `time.now`, `time.sleep`, `time.format`: report time, and waiting in real time.

use std::rc::Rc;
use std::time::Duration;

use mlua::{Lua, Table, Value};

use super::args::{Args, number};
use crate::policy::call::{Answer, Host};
use crate::report::Time;

/// Longer than any limit of a call that makes sense.
const LONGEST_SLEEP: f64 = 3_600.0;
/// Below this the millisecond that the runtime's timer adds is more than a twentieth of the sleep.
const SHORT: Duration = Duration::from_millis(20);
const MAX_PATTERN: usize = 128;

pub(super) fn module(lua: &Lua, host: &Rc<Host>) -> mlua::Result<Table> {
    let time = lua.create_table()?;
    time.set("now", host.function(lua, "time.now", |_, call, _| Ok(call.t().seconds()))?)?;
    let sleep = host.waiting(
        lua,
        "time.sleep",
        |_, values| {
            let mut args = Args::new("time.sleep", values);
            let value = args.value();
            match number(&value) {
                Some(seconds) if (0.0..=LONGEST_SLEEP).contains(&seconds) => Ok(async move {
                    rest(Duration::from_secs_f64(seconds)).await;
                    Ok(())
                }),
                Some(_) => Err(args.error("seconds", "must be between 0 and 3600")),
                None => Err(args.wrong("seconds", "a number of seconds", &value)),
            }
        },
        |_, ()| Ok(Value::Nil),
    )?;
    time.set("sleep", sleep)?;
    let format = host.function(lua, "time.format", |_, call, values| {
        let mut args = Args::new("time.format", values);
        let seconds = args.value();
        let at = match number(&seconds) {
            Some(seconds) => Time::from_seconds(seconds)
                .ok_or_else(|| args.error("seconds", "must be a time between 1970 and 9999"))?,
            None if seconds.is_nil() => call.t(),
            None => return Err(args.wrong("seconds", "a number of seconds since 1970", &seconds)),
        };
        match args.value() {
            Value::Nil => Ok(at.rfc3339()),
            pattern => shaped(&args, at, &pattern),
        }
    })?;
    time.set("format", format)?;
    Ok(time)
}

/// Waits in real time. The runtime counts whole milliseconds and rounds up: a sleep of 2 ms would take 3 to 4, and a login's reports wait
/// for one another. A short sleep goes by a finer timer, whose price (a wake of another thread) a long one need not pay.
async fn rest(duration: Duration) {
    if duration.is_zero() {
        tokio::task::yield_now().await;
    } else if duration < SHORT {
        futures_timer::Delay::new(duration).await;
    } else {
        tokio::time::sleep(duration).await;
    }
}

fn shaped(args: &Args, at: Time, pattern: &Value) -> Answer<String> {
    let text = super::args::string(pattern).ok_or_else(|| args.wrong("pattern", "a string", pattern))?;
    if text.len() > MAX_PATTERN {
        return Err(args.error("pattern", format!("has more than {MAX_PATTERN} bytes")));
    }
    let time = jiff::Timestamp::from_microsecond(at.micros()).map_err(|error| args.error("seconds", error))?;
    jiff::fmt::strtime::format(&text, time).map_err(|error| args.error("pattern", error))
}
