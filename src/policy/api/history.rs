//! `history.search { … }`: an Elasticsearch search body, answered as Elasticsearch would.
//!
//! Owns what a handler may see: documents up to its report's time, without the report itself, so that a report that is handed out
//! again does not find its own traces.

use mlua::{Lua, Result, Table, Value};

use super::{current, json, kind, wrong};
use crate::history::{HistoryError, Search};

pub(super) fn module(lua: &Lua) -> Result<Table> {
    let module = lua.create_table()?;
    module.raw_set("search", lua.create_async_function(search)?)?;
    Ok(module)
}

async fn search(lua: Lua, body: Value) -> Result<Value> {
    let context = current(&lua, "history.search")?;
    if !body.is_table() {
        return Err(wrong(&lua, "history.search", format!("takes a search body (a table), not {}", kind(&body))));
    }
    let body = json::from_lua(&lua, "history.search", "body", &body)?;
    let report = &context.report;
    let search = Search { body, now: report.t, up_to: Some(report.t), without: Some(report.id) };
    match context.services.history.search(search).await {
        Ok(answer) => json::to_lua(&lua, &answer),
        Err(error @ HistoryError::Query { .. }) => Err(wrong(&lua, "history.search", error.to_string())),
        Err(error @ HistoryError::Unavailable(_)) => {
            context.unanswered.replace(Some(("history", error.to_string())));
            Err(wrong(&lua, "history.search", error.to_string()))
        }
    }
}
