//! Configurations of the old program: one Lua file that configures the daemon and registers its functions.
//!
//! ```text
//! trackalert.conf ──run once, when the configuration is read──▶ its calls, as settings of ours ([`read`])
//!                 └─run once in each virtual machine──────────▶ the functions that it registered
//! ```
//!
//! Owns the names of the old program (`docs/legacy.md` lists them) and what each means here. The file is the operator's own: it gets the
//! standard libraries that it had, and is not kept from the other policies as they are from each other.

mod addresses;
mod bounded;
mod calls;
mod counters;
mod duration;
mod environment;
mod geoip;
mod hooks;
mod log;
mod modules;
pub(super) mod operator;
mod redis;
mod registered;
mod restart;
mod smtp;
mod told;

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value;

pub(super) use environment::Environment;
pub use operator::{Operator, Show};
pub(super) use registered::Registered;
pub use restart::InForce;
pub(super) use restart::STATS;
pub use told::{Meaning, Told};

use super::call::Host;
use super::load::{LoadError, Policy};
use super::lua_error::text;
use super::sandbox::Sandbox;
use super::top_level;
use crate::schedule::cron::Scheduled;

/// Lua memory while the file is run for its settings.
const MEMORY: usize = 256 << 20;

/// Where in the file, or in one that it loads, a call stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// From 1; 0 where it is not known.
    pub line: usize,
    /// The name of the call.
    pub call: &'static str,
}

/// One setting that a call stands for.
#[derive(Clone, PartialEq)]
pub struct Setting {
    /// `section.key`.
    pub key: &'static str,
    /// Its value; of a list the entries that the calls add.
    pub value: Value,
    /// The entries come after those of the default.
    pub after_default: bool,
    /// The last call that changed it.
    pub place: Place,
    /// Of a list: the call that added each entry.
    pub entries: Vec<Place>,
}

/// Without the value, which may be a secret.
impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setting").field("key", &self.key).field("place", &self.place).finish_non_exhaustive()
    }
}

/// A call that changes nothing here, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The reason.
    pub text: &'static str,
    /// The first such call.
    pub place: Place,
}

/// What a file says.
#[derive(Debug, Default)]
pub struct OldConfig {
    /// Each key once.
    pub settings: Vec<Setting>,
    /// Each call once.
    pub notes: Vec<Note>,
    /// The background functions, and when each runs.
    pub scheduled: Vec<Scheduled>,
    /// Whether it has set a function for reports.
    pub reports: bool,
    /// Every call that configures, in the order of the run.
    pub told: Vec<Told>,
    /// The call that scheduled each of them, and the name of the function.
    wanted: Vec<(Place, String)>,
    hook_threads: Option<i64>,
    hook_connections: Option<i64>,
}

impl OldConfig {
    fn set(&mut self, key: &'static str, value: impl Into<Value>, place: &Place) {
        self.settings.retain(|setting| setting.key != key);
        let (value, place) = (value.into(), place.clone());
        let entries = value.as_array().map_or_else(Vec::new, |list| vec![place.clone(); list.len()]);
        self.settings.push(Setting { key, value, after_default: false, place, entries });
    }

    /// Adds an entry to a list. The first one takes the place of the default, or comes after it.
    fn push(&mut self, key: &'static str, value: impl Into<Value>, after_default: bool, place: &Place) {
        let index = self.settings.iter().position(|setting| setting.key == key).unwrap_or_else(|| {
            let (value, entries) = (Value::Array(Vec::new()), Vec::new());
            self.settings.push(Setting { key, value, after_default, place: place.clone(), entries });
            self.settings.len() - 1
        });
        let Setting { value: Value::Array(list), entries, place: last, .. } = &mut self.settings[index] else { return };
        let value = value.into();
        last.clone_from(place);
        // Of two with one name the later one counts, as with functions.
        let same = |before: &Value| before.get("name").is_some_and(|name| Some(name) == value.get("name"));
        if let Some(at) = list.iter().position(same) {
            (list[at], entries[at]) = (value, place.clone());
        } else {
            list.push(value);
            entries.push(place.clone());
        }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.settings.iter().find(|setting| setting.key == key).map(|setting| &setting.value)
    }

    /// What is wrong where a scheduled function is not set. The old program looked for it when it was due, so that it may be set below:
    /// it is looked for when all of the file has run.
    pub(super) fn unset(&self, registered: &Registered) -> Option<String> {
        let unset = |(_, name): &&(Place, String)| !registered.background.contains_key(name);
        let (Place { path, line, call }, name) = self.wanted.iter().find(unset)?;
        let path = path.display();
        Some(format!("{path}:{line}: {call}: name: setBackground has set no function with the name {name}"))
    }

    fn note(&mut self, text: &'static str, place: &Place) {
        if !self.notes.iter().any(|note| note.place.call == place.call) {
            self.notes.push(Note { text, place: place.clone() });
        }
    }
}

/// Whether a file of this name is one: its ending says so.
pub fn is_old(file: &Path) -> bool {
    file.extension().is_some_and(|ending| ending == "conf" || ending == "lua")
}

/// Runs a file for the settings in it, in a machine of its own. Blocks for some milliseconds, and for what the file itself does.
pub fn read(path: &Path) -> Result<OldConfig, LoadError> {
    let policy = Policy::read_old(path).map_err(LoadError::one)?;
    let host = Rc::new(Host::default());
    let sandbox = Sandbox::new(&host, MEMORY, true).map_err(|error| LoadError::one(text(&error)))?;
    let config = Rc::new(RefCell::new(OldConfig::default()));
    let networks = Arc::default();
    let _loading = host.load(&policy, &networks);
    let loaded = top_level::load_old(&sandbox, &host, &top_level::loading_lane(), (0, 0), &policy, &config);
    let reports = loaded.map_err(LoadError::one)?.borrow().report.is_some();
    Ok(OldConfig { reports, ..config.take() })
}

/// As much of a text as an error repeats.
fn shown(text: &str) -> String {
    format!("`{}`", super::api::args::cut(text, 64))
}
