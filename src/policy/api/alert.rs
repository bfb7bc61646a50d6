//! `alert{…}`: raises an alert, once the handler has returned.

use std::rc::Rc;

use mlua::{Function, Lua, Value};

use super::args::{Args, cut, describe, string};
use super::json;
use crate::alert::{Alert, Severity};
use crate::policy::call::{Answer, Call, Host};

/// Alerts of one call: more is a loop.
const MAX_ALERTS: usize = 100;
/// Bytes; longer texts are cut, for they hold what an attacker wrote, and a policy must not fail on it.
const MAX_KIND: usize = 128;
const MAX_TITLE: usize = 1 << 10;
const MAX_TEXT: usize = 16 << 10;
const MAX_KEY: usize = 8 << 10;

pub(super) fn function(lua: &Lua, host: &Rc<Host>) -> mlua::Result<Function> {
    host.function(lua, "alert", |_, call, values| raise(call, Args::new("alert", values)))
}

fn raise(call: &Call, mut args: Args) -> Answer<()> {
    let table = args.table("alert")?;
    let [kind, title, severity, key, text, evidence, attack, audience] =
        args.fields(&table, ["kind", "title", "severity", "key", "text", "evidence", "attack", "audience"])?;
    let required = |name: &str, value: &Value| match string(value) {
        Some(text) if !text.is_empty() => Ok(text),
        Some(_) => Err(args.error(name, "must not be empty")),
        None => Err(args.wrong(name, "a string", value)),
    };
    let optional = |name: &str, value: &Value| if value.is_nil() { Ok(None) } else { required(name, value).map(Some) };
    let kind = required("kind", &kind)?;
    if kind.len() > MAX_KIND {
        return Err(args.error("kind", format!("has more than {MAX_KIND} bytes")));
    }
    let title = required("title", &title)?;
    let severity = level(&args, &severity)?;
    let report = call.report();
    let key = optional("key", &key)?.or_else(|| report.map(|report| report.login.clone()));
    let key = key.ok_or_else(|| args.error("key", "is required where there is no report whose login it could be"))?;
    let text = if text.is_nil() {
        String::new()
    } else {
        string(&text).ok_or_else(|| args.wrong("text", "a string", &text))?
    };
    let given = |name: &str, value: &Value| json::to_json(value).map_err(|reason| format!("alert: {name}{reason}"));
    let evidence = match evidence {
        Value::Nil => serde_json::Value::Object(serde_json::Map::new()),
        Value::Table(_) => given("evidence", &evidence)?,
        other => return Err(args.wrong("evidence", "a table", &other)),
    };
    let some = |name: &str, value: &Value| (!value.is_nil()).then(|| given(name, value)).transpose();
    let (attack, audience) = (some("attack", &attack)?, some("audience", &audience)?);
    let key = cut(&key, MAX_KEY);
    let alert = Alert {
        id: Alert::make_id(&kind, &key, call.id()),
        time: call.t().rfc3339(),
        kind,
        severity,
        title: cut(&title, MAX_TITLE),
        text: cut(&text, MAX_TEXT),
        login: report.map(|report| report.login.clone()),
        remote: report.map(|report| report.remote.to_string()),
        evidence,
        attack,
        audience,
        key,
        policy: call.policy.to_string(),
    };
    // Here, where the policy can be told: an alert that its queue does not take would hold up every report behind it.
    let (size, most) = (serde_json::to_vec(&alert).map_or(0, |json| json.len() as u64), call.services.max_alert);
    if size > most.as_u64() {
        return Err(format!("alert: {size} bytes as JSON; policy.max_alert is {most}"));
    }
    let mut alerts = call.alerts.borrow_mut();
    // The same kind and key twice in one call is the same alert: its id is the same, so the second could not be told from the first.
    if alerts.iter().any(|raised| raised.id == alert.id) {
        return Ok(());
    }
    if alerts.len() >= MAX_ALERTS {
        return Err(format!("alert: more than {MAX_ALERTS} alerts in one call"));
    }
    alerts.push(alert);
    Ok(())
}

fn level(args: &Args, value: &Value) -> Answer<Severity> {
    if value.is_nil() {
        return Ok(Severity::Medium);
    }
    let name = string(value).unwrap_or_else(|| describe(value));
    Severity::ALL.into_iter().find(|severity| severity.name() == name).ok_or_else(|| {
        let names = Severity::ALL.map(Severity::name).join(", ");
        args.error("severity", format!("{} is none of {names}", cut(&name, 64)))
    })
}
