//! Each configuring call as it was made, and what it means here, for whoever asks what a file says.
//!
//! Owns how a call is written down: no argument that may be a secret is. Values of settings are whole here; the configuration masks them.

use std::fmt;

use mlua::{MultiValue, Value as Lua_};
use serde_json::Value;

use super::Place;
use crate::policy::api::args::{cut, string};
use crate::settings::MASK;

/// Calls with a secret, and the first argument that may be one.
const SECRETS: [(&str, usize); 3] = [("webserver", 1), ("setWebserverPassword", 0), ("setKey", 0)];
/// Bytes of a string, and entries of a table, that are written down.
const MOST_TEXT: usize = 64;
const MOST_ENTRIES: usize = 8;

/// One call.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// Where it stands.
    pub place: Place,
    /// Its name and arguments, for people.
    pub call: String,
    /// What it means here.
    pub means: Vec<Meaning>,
}

/// What a call means here.
#[derive(Clone, PartialEq)]
pub enum Meaning {
    /// A setting has this value.
    Setting {
        /// `section.key`.
        key: &'static str,
        /// All of it.
        value: Value,
    },
    /// A list has one more entry.
    Entry {
        /// `section.key`.
        key: &'static str,
        /// The entry.
        value: Value,
    },
    /// A function is registered; a later one of the same kind and name takes its place.
    Function {
        /// Kind and name.
        what: String,
        /// What it does, for people.
        text: String,
    },
    /// A background function of this name is registered. Another call says when it runs, above or below.
    Background(String),
    /// What is neither, for people.
    Is(String),
    /// Nothing, and why.
    Nothing(String),
}

/// Without values, which may be secrets.
impl fmt::Debug for Meaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting { key, .. } => write!(f, "Setting({key})"),
            Self::Entry { key, .. } => write!(f, "Entry({key})"),
            Self::Function { what, .. } | Self::Background(what) => write!(f, "Function({what})"),
            Self::Is(text) | Self::Nothing(text) => f.write_str(text),
        }
    }
}

/// A call as a file has it. Of a table with names only these: a webhook has secrets in it.
pub(super) fn shown(name: &str, arguments: &MultiValue) -> String {
    let secret = SECRETS.iter().find(|(secret, _)| *secret == name).map_or(usize::MAX, |(_, first)| *first);
    let one = |(at, value): (usize, &Lua_)| match value {
        Lua_::Nil => "nil".to_owned(),
        Lua_::Boolean(flag) => flag.to_string(),
        Lua_::Table(table) => entries(table),
        value => match string(value) {
            Some(text) if at >= secret && !text.is_empty() => MASK.to_owned(),
            Some(text) if matches!(value, Lua_::String(_)) => quoted(&text),
            Some(number) => number,
            None => value.type_name().to_owned(),
        },
    };
    let arguments: Vec<String> = arguments.iter().enumerate().map(one).collect();
    format!("{name}({})", arguments.join(", "))
}

fn quoted(text: &str) -> String {
    format!("{:?}", cut(text, MOST_TEXT))
}

fn entries(table: &mlua::Table) -> String {
    let listed = table.sequence_values::<Lua_>().flatten().map(|entry| string(&entry).unwrap_or_default());
    let mut shown: Vec<String> = listed.map(|entry| quoted(&entry)).collect();
    if shown.is_empty() {
        let names = table.pairs::<Lua_, Lua_>().flatten().map(|(name, _)| string(&name).unwrap_or_default());
        shown = names.map(|name| cut(&name, MOST_TEXT)).collect();
        shown.sort();
    }
    if shown.len() > MOST_ENTRIES {
        let more = shown.len() - MOST_ENTRIES;
        shown.truncate(MOST_ENTRIES);
        shown.push(format!("and {more} more"));
    }
    if shown.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", shown.join(", ")) }
}
