//! `log.error`, `log.warn`, `log.info`, `log.debug`: lines in the program's log, at once and bounded.

use std::rc::Rc;
use std::time::Instant;

use mlua::{Function, Lua, MultiValue, Table, Value};

use super::args::{Args, cut};
use super::json;
use crate::policy::call::{Answer, Host};

/// Lines a second of one policy in one machine, and how many it may save up: a policy that logs each report of a flood must not fill
/// the disk.
const LINES_PER_SECOND: f64 = 50.0;
const SAVED_UP: f64 = 500.0;
const MAX_MESSAGE: usize = 1 << 10;
const MAX_FIELDS: usize = 4 << 10;

/// What a policy may still log.
pub(in crate::policy) struct Budget {
    left: f64,
    at: Instant,
    dropped: u64,
}

impl Budget {
    fn new() -> Self {
        Self { left: SAVED_UP, at: Instant::now(), dropped: 0 }
    }

    /// Takes one line. `Some` is how many were dropped before it.
    fn take(&mut self) -> Option<u64> {
        let now = Instant::now();
        self.left = (self.left + now.duration_since(self.at).as_secs_f64() * LINES_PER_SECOND).min(SAVED_UP);
        self.at = now;
        if self.left < 1.0 {
            self.dropped += 1;
            return None;
        }
        self.left -= 1.0;
        Some(std::mem::take(&mut self.dropped))
    }
}

pub(super) fn module(lua: &Lua, host: &Rc<Host>) -> mlua::Result<Table> {
    let log = lua.create_table()?;
    let levels = [
        ("error", "log.error", tracing::Level::ERROR),
        ("warn", "log.warn", tracing::Level::WARN),
        ("info", "log.info", tracing::Level::INFO),
        ("debug", "log.debug", tracing::Level::DEBUG),
    ];
    for (name, function, level) in levels {
        log.set(name, self::function(lua, host, function, level)?)?;
    }
    Ok(log)
}

/// A function that writes lines of a level. It works while a policy is loaded, too.
pub(in crate::policy) fn function(
    lua: &Lua,
    host: &Rc<Host>,
    name: &'static str,
    level: tracing::Level,
) -> mlua::Result<Function> {
    let shared = Rc::downgrade(host);
    host.pure(lua, move |_, values| {
        let (message, fields) = line(name, values)?;
        if let Some(host) = shared.upgrade() {
            write(&host, level, &message, &fields);
        }
        Ok(())
    })
}

/// `print`: a line of the log, or of the answer to a line of the console.
pub(super) fn print(lua: &Lua, host: &Rc<Host>) -> mlua::Result<Function> {
    let shared = Rc::downgrade(host);
    host.pure(lua, move |_, values| {
        let text = Args::new("print", values).string("text")?;
        if let Some(host) = shared.upgrade()
            && !host.running().is_some_and(|call| call.print(&text))
        {
            write(&host, tracing::Level::INFO, &cut(&text, MAX_MESSAGE), "");
        }
        Ok(())
    })
}

fn line(function: &'static str, values: MultiValue) -> Answer<(String, String)> {
    let mut args = Args::new(function, values);
    let message = args.string("message")?;
    let fields = match args.optional_table("fields")? {
        Some(fields) => {
            json::to_json(&Value::Table(fields)).map_err(|reason| format!("{function}: fields{reason}"))?.to_string()
        }
        None => String::new(),
    };
    Ok((cut(&message, MAX_MESSAGE), cut(&fields, MAX_FIELDS)))
}

/// Writes a line for whoever runs, within the bounds of that.
pub(in crate::policy) fn write(host: &Host, level: tracing::Level, message: &str, fields: &str) {
    let call = host.running();
    let policy: Rc<str> = call.as_ref().map_or_else(|| Rc::from("loading"), |call| Rc::clone(&call.policy));
    let allowed = host.log_budget.borrow_mut().entry(Rc::clone(&policy)).or_insert_with(Budget::new).take();
    let Some(dropped) = allowed else { return };
    let (policy, report) = (&*policy, call.and_then(|call| call.report().map(|report| report.id.to_string())));
    if dropped > 0 {
        tracing::warn!(policy, dropped, "a policy logs too much; lines were dropped");
    }
    match level {
        tracing::Level::ERROR => tracing::error!(policy, report, fields, "{message}"),
        tracing::Level::WARN => tracing::warn!(policy, report, fields, "{message}"),
        tracing::Level::INFO => tracing::info!(policy, report, fields, "{message}"),
        _ => tracing::debug!(policy, report, fields, "{message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_of_lines_is_cut_and_counted() {
        let mut budget = Budget::new();
        let written = (0..100_000).filter(|_| budget.take().is_some()).count();
        assert!((500..5_000).contains(&written), "{written}");
        assert_eq!(budget.dropped, 100_000 - written as u64);
    }
}
