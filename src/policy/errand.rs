//! What a machine runs besides reports: background functions, custom endpoints, lines of the console.
//!
//! Owns how each is called, what it is called in the log, and what its answer is. Never decides when one runs, and applies no effect.

use std::fmt;
use std::rc::Rc;

use mlua::{Function, Lua, MultiValue, Table, Value as Lua_};
use serde_json::{Map, Value};

use super::api::args::{cut, describe, string};
use super::api::json;
use super::call::Cause;
use super::lua_error::text;
use super::vm::{Ended, Vm};
use super::{Effects, Failure};
use crate::report::{ReportId, Time};

/// Bytes of a name that the log repeats.
const MAX_SHOWN: usize = 64;

/// What is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Errand {
    /// A background function, by its name.
    Background(String),
    /// A custom endpoint, by its name.
    Endpoint {
        /// Its name.
        name: String,
        /// Attributes with one value each.
        attrs: Vec<(String, String)>,
        /// Attributes with several values each.
        attrs_mv: Vec<(String, Vec<String>)>,
    },
    /// Lua from the console.
    Line(String),
}

impl fmt::Display for Errand {
    /// For the log: of a line nothing, because it may have a secret in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Background(name) => write!(f, "the background function `{}`", cut(name, MAX_SHOWN)),
            Self::Endpoint { name, .. } => write!(f, "the custom endpoint `{}`", cut(name, MAX_SHOWN)),
            Self::Line(_) => f.write_str("a line of the console"),
        }
    }
}

/// What it answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Answered {
    /// A background function answers nothing.
    Nothing,
    /// What a custom endpoint returned.
    Endpoint {
        /// Its first value.
        success: bool,
        /// Its second value.
        attrs: Map<String, Value>,
    },
    /// What a line printed and gave, for people.
    Line(String),
}

impl Vm {
    /// Runs it at a time; `id` is what its effects are told by when it runs again. `None`: no policy has registered such a function.
    pub async fn errand(&self, errand: &Errand, id: ReportId, t: Time) -> Option<Result<(Effects, Answered), Failure>> {
        let services = self.services.as_ref()?;
        let cause = Cause::Other(id, t);
        if let Errand::Line(line) = errand {
            return Some(self.run_line(line, services, cause).await);
        }
        let (index, function) = self.policies.iter().enumerate().find_map(|(index, loaded)| {
            let registered = loaded.registered.as_ref()?.borrow();
            let function = match errand {
                Errand::Background(name) => registered.background.get(name).cloned(),
                Errand::Endpoint { name, .. } => registered.endpoints.get(name).cloned(),
                Errand::Line(_) => None,
            };
            Some((index, function?))
        })?;
        Some(self.run_errand(errand, index, &function, services, cause).await)
    }

    /// Runs a line in the environment of the old configuration, where there is one, else in one of its own.
    async fn run_line(
        &self,
        line: &str,
        services: &Rc<super::Services>,
        cause: Cause,
    ) -> Result<(Effects, Answered), Failure> {
        let chunk = self.sandbox.compile_line(&self.host, line).map_err(|error| Failure::Error(text(&error)))?;
        let call = self.begin(services, &Rc::from("console"), cause)?;
        call.0.listen();
        let ended = self.drive(0, chunk.call_async::<MultiValue>(()), &call.0).await;
        let printed = call.0.printed();
        let (effects, returned) = self.end(&call, ended)?;
        let values: Vec<String> = returned.iter().map(shown).collect();
        let parts = [printed, values.join("\t")];
        let said = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n");
        Ok((effects, Answered::Line(said)))
    }

    async fn run_errand(
        &self,
        errand: &Errand,
        index: usize,
        function: &Function,
        services: &Rc<super::Services>,
        cause: Cause,
    ) -> Result<(Effects, Answered), Failure> {
        let call = self.begin(services, &self.policies[index].name, cause)?;
        let lua = &self.sandbox.lua;
        match errand {
            Errand::Background(_) => {
                let ended = self.drive(index, function.call_async::<()>(()), &call.0).await;
                self.end(&call, ended).map(|(effects, ())| (effects, Answered::Nothing))
            }
            Errand::Endpoint { attrs, attrs_mv, .. } => {
                let ended = match arguments(lua, attrs, attrs_mv) {
                    Ok(arguments) => self.drive(index, function.call_async::<MultiValue>(arguments), &call.0).await,
                    Err(error) => Ended::Raised(error),
                };
                let (effects, returned) = self.end(&call, ended)?;
                Ok((effects, answer(returned).map_err(Failure::Error)?))
            }
            Errand::Line(line) => self.run_line(line, services, call.0.cause.clone()).await,
        }
    }
}

/// A value for people: a table as JSON, where it has such a form.
fn shown(value: &Lua_) -> String {
    match value {
        Lua_::Nil => "nil".to_owned(),
        Lua_::Boolean(flag) => flag.to_string(),
        Lua_::Table(_) => match json::to_json(value) {
            Ok(value) => value.to_string(),
            Err(_) => "a table that has no form in JSON".to_owned(),
        },
        other => string(other).or_else(|| other.to_string().ok()).unwrap_or_else(|| describe(other)),
    }
}

fn arguments(lua: &Lua, attrs: &[(String, String)], attrs_mv: &[(String, Vec<String>)]) -> mlua::Result<Table> {
    let arguments = lua.create_table()?;
    arguments
        .raw_set("attrs", lua.create_table_from(attrs.iter().map(|(key, value)| (key.as_str(), value.as_str())))?)?;
    let lists = lua.create_table()?;
    for (key, values) in attrs_mv {
        lists.raw_set(key.as_str(), lua.create_sequence_from(values.iter().map(String::as_str))?)?;
    }
    arguments.raw_set("attrs_mv", lists)?;
    Ok(arguments)
}

/// `ok, {k = v}`; the values go as the strings that they are.
fn answer(mut returned: MultiValue) -> Result<Answered, String> {
    let success = match returned.pop_front() {
        Some(Lua_::Boolean(success)) => success,
        other => {
            return Err(format!(
                "the endpoint must return a boolean first, got {}",
                describe(&other.unwrap_or(Lua_::Nil))
            ));
        }
    };
    let attrs = match returned.pop_front() {
        None | Some(Lua_::Nil) => Map::new(),
        Some(Lua_::Table(table)) => {
            let mut attrs = Map::new();
            for pair in table.pairs::<Lua_, Lua_>() {
                let (key, value) = pair.map_err(|error| error.to_string())?;
                let key = string(&key).ok_or_else(|| format!("a {} is no name of an attribute", key.type_name()))?;
                let value = json::to_json(&value).map_err(|reason| format!("r_attrs.{key}{reason}"))?;
                attrs.insert(key, value);
            }
            attrs
        }
        Some(other) => return Err(format!("the endpoint must return a table second, got {}", describe(&other))),
    };
    Ok(Answered::Endpoint { success, attrs })
}
