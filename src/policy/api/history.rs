//! `history.search{…}`: asks the history, up to the report's time and without the report itself.

use std::rc::Rc;

use mlua::{Lua, Table, Value};

use super::args::Args;
use super::json;
use crate::history::{HistoryError, Search};
use crate::policy::call::Host;

const SEARCH: &str = "history.search";

pub(super) fn module(lua: &Lua, host: &Rc<Host>) -> mlua::Result<Table> {
    let history = lua.create_table()?;
    let search = host.waiting(
        lua,
        SEARCH,
        |call, values| {
            let body = Args::new(SEARCH, values).table("body")?;
            let body = json::to_json(&Value::Table(body)).map_err(|reason| format!("{SEARCH}: body{reason}"))?;
            let without = call.report().map(|report| report.id);
            let search = Search { body, now: call.t(), up_to: Some(call.t()), without };
            Ok(async move {
                call.services.history.search(search).await.map_err(|error| match error {
                    HistoryError::Query { path, reason } => format!("{SEARCH}: body: {path}: {reason}"),
                    HistoryError::Unavailable(said) => call.unavailable(SEARCH, "history", said),
                })
            })
        },
        |lua, answer| json::to_lua_without_null(lua, &answer),
    )?;
    history.set("search", search)?;
    Ok(history)
}
