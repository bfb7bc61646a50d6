//! The console: an operator's lines of Lua in the running program, over an authenticated and encrypted connection.
//!
//! Owns the listening and the way of a line there and back. Never runs Lua itself, and never listens without a key.

pub mod noise;
mod server;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::settings::Secret;

pub use server::{Console, ConsoleError, Run, check, start};

/// Section `[console]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    pub listen: String,
    pub key: Secret,
    pub key_file: PathBuf,
}

/// A line on its way to the program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// Lua, perhaps of several lines.
    pub lua: String,
}

/// What came of a line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What the first worker said.
    pub text: String,
    /// It was an error.
    pub failed: bool,
    /// The line has a beginning and no end: more is to come.
    pub incomplete: bool,
    /// Workers that said something else, each with its number.
    pub others: Vec<(usize, String)>,
}

/// A line that gives the names a line may have, one each: those of the running program and of its file, so that completion has what is
/// there. A table of a file may be one of all its logins: a part of each has to do, or it would take the time and the memory of its worker.
/// A function ends in `(`.
pub const NAMES: &str = r#"local found = {}
local function add(before, name, value)
  if #found >= 2000 or type(name) ~= "string" or #name > 64 or not name:find("^[%a_][%w_]*$") then return end
  local kind = type(value)
  found[#found + 1] = before .. name .. (kind == "function" and "(" or "")
  return kind == "table" and before == ""
end
for name, value in pairs(_G) do
  if add("", name, value) and value ~= _G then
    local seen = 0
    for inner, one in pairs(value) do
      seen = seen + 1
      if seen > 200 then break end
      add(name .. ".", inner, one)
    end
  end
end
table.sort(found)
return table.concat(found, "\n")"#;
