//! `alert { kind = …, title = … }`: raises an alert when the handler has returned.
//!
//! Owns the check of its fields. Nothing is sent here.

use mlua::{Function, Lua, Result, Table, Value};

use super::{current, json, kind, options, text, wrong};
use crate::alert::{Alert, Severity};

const KEYS: &[&str] =
    &["kind", "title", "severity", "text", "key", "evidence", "attack", "audience", "login", "remote"];

/// The most alerts of one call: a loop that raises for ever must not fill the queue.
const MAX_ALERTS: usize = 100;

/// The longest string of an alert's own fields.
const MAX_TEXT: usize = 16 * 1024;

pub(super) fn function(lua: &Lua) -> Result<Function> {
    lua.create_function(|lua, fields: Value| {
        let Value::Table(fields) = fields else {
            return Err(wrong(lua, "alert", format!("takes a table: alert {{ kind = …, title = … }}, not {}", kind(&fields))));
        };
        raise(lua, &fields)
    })
}

fn raise(lua: &Lua, fields: &Table) -> Result<()> {
    let context = current(lua, "alert")?;
    options(lua, "alert", fields, KEYS)?;
    let report = &context.report;
    let optional = |name: &str| -> Result<Option<String>> {
        match fields.raw_get::<Value>(name)? {
            Value::Nil => Ok(None),
            value => bounded(lua, name, text(lua, "alert", name, &value)?).map(Some),
        }
    };
    let required = |name: &str| -> Result<String> {
        match optional(name)? {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(wrong(lua, "alert", format!("`{name}` is required and must not be empty"))),
        }
    };
    // `false` says that an alert is about no login, or no address.
    let about = |name: &str, default: String| -> Result<Option<String>> {
        match fields.raw_get::<Value>(name)? {
            Value::Boolean(false) => Ok(None),
            Value::Nil => Ok(Some(default)),
            value => bounded(lua, name, text(lua, "alert", name, &value)?).map(Some),
        }
    };
    let any = |name: &str| -> Result<Option<serde_json::Value>> {
        match fields.raw_get::<Value>(name)? {
            Value::Nil => Ok(None),
            value => json::from_lua(lua, "alert", name, &value).map(Some),
        }
    };
    let (kind, key) = (required("kind")?, optional("key")?.unwrap_or_else(|| report.login.clone()));
    let alert = Alert {
        id: Alert::make_id(&kind, &key, report.id),
        time: report.t.rfc3339(),
        severity: severity(lua, optional("severity")?)?,
        title: required("title")?,
        text: optional("text")?.unwrap_or_default(),
        login: about("login", report.login.clone())?,
        remote: about("remote", report.remote.to_string())?,
        evidence: any("evidence")?.unwrap_or_else(|| serde_json::json!({})),
        attack: any("attack")?,
        audience: any("audience")?,
        policy: context.policy.to_string(),
        kind,
        key,
    };
    let mut alerts = context.alerts.borrow_mut();
    if alerts.len() >= MAX_ALERTS {
        return Err(wrong(lua, "alert", format!("a report raises at most {MAX_ALERTS} alerts of a policy")));
    }
    alerts.push(alert);
    Ok(())
}

fn bounded(lua: &Lua, name: &str, text: String) -> Result<String> {
    if text.len() > MAX_TEXT {
        return Err(wrong(lua, "alert", format!("`{name}` has {} bytes; at most {MAX_TEXT}", text.len())));
    }
    Ok(text)
}

fn severity(lua: &Lua, name: Option<String>) -> Result<Severity> {
    let Some(name) = name else { return Ok(Severity::Medium) };
    Severity::ALL.into_iter().find(|severity| severity.name() == name).ok_or_else(|| {
        let names: Vec<&str> = Severity::ALL.iter().map(|severity| severity.name()).collect();
        wrong(lua, "alert", format!("`severity` is one of {}, not `{name}`", names.join(", ")))
    })
}
