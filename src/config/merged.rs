//! The merged values, each with its place, while they are checked.
//!
//! Owns the bookkeeping that lets all mistakes be told at once: a value that is refused is noted and its default takes its place, so
//! that what comes after is checked too and nothing is told twice.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::{Error, Errors};
use super::expected;
use super::sources::{Layer, Source, from_config};
use super::unknown::Known;

/// More mistakes of type than this in one section are not all told at once.
const MOST_TYPE_ERRORS: usize = 100;

/// See the module.
#[derive(Debug)]
pub(super) struct Merged {
    root: Value,
    sources: BTreeMap<String, Source>,
    pub(super) known: Known,
    pub(super) errors: Vec<Error>,
    pub(super) warnings: Vec<Error>,
    /// What to say of the place of a value that is not where its key was written.
    pub(super) notes: BTreeMap<String, String>,
}

impl Merged {
    /// Later layers win, key by key; a list wins as a whole.
    pub(super) fn of(known: Known, layers: Vec<Layer>, errors: Vec<Error>) -> Result<Self, Errors> {
        let mut sources = BTreeMap::new();
        let mut builder = config::Config::builder();
        for layer in layers {
            for entry in &layer.0 {
                sources.retain(|key: &String, _| !key.starts_with(&format!("{}[", entry.key)));
                sources.insert(entry.key.clone(), entry.source.clone());
                sources.extend(entry.parts.iter().cloned());
            }
            builder = builder.add_source(layer);
        }
        let merged = builder.build().map_err(|error| Errors::one(Source::Default, error.to_string()))?;
        let mut root = from_config(&merged.cache);
        for section in known.empty_sections() {
            if let Some((parent, name)) = section.rsplit_once('.')
                && let Some(Value::Object(map)) = root.pointer_mut(&pointer(parent))
            {
                map.entry(name).or_insert_with(|| Value::Object(serde_json::Map::new()));
            }
        }
        Ok(Self { root, sources, known, errors, warnings: Vec::new(), notes: BTreeMap::new() })
    }

    pub(super) fn get(&self, key: &str) -> &Value {
        self.root.pointer(&pointer(key)).unwrap_or(&Value::Null)
    }

    pub(super) fn set(&mut self, key: &str, value: Value) {
        if let Some(slot) = self.root.pointer_mut(&pointer(key)) {
            *slot = value;
        } else if let Some((parent, name)) = key.rsplit_once('.')
            && let Some(Value::Object(map)) = self.root.pointer_mut(&pointer(parent))
        {
            map.insert(name.to_owned(), value);
        }
    }

    /// The place of a value, or of the smallest thing around it that has one.
    pub(super) fn source(&self, key: &str) -> Option<&Source> {
        let mut key = key;
        loop {
            if let Some(source) = self.sources.get(key) {
                return Some(source);
            }
            key = &key[..key.rfind(['.', '['])?];
        }
    }

    /// Notes a mistake, and puts the default in the value's place.
    pub(super) fn refuse(&mut self, key: &str, text: impl Into<String>) {
        self.complain(key, text);
        self.reset(key);
    }

    /// Notes a mistake in the combination of several values; the values stay.
    pub(super) fn complain(&mut self, key: &str, text: impl Into<String>) {
        let source = self.source(key).cloned();
        self.errors.push(Error { source, key: key.to_owned(), text: text.into() });
    }

    /// The setting that a key is, or is a part of.
    fn setting_of<'a>(&self, key: &'a str) -> Option<&'a str> {
        let mut setting = key.split('[').next().unwrap_or_default();
        // A path below a setting (a key inside a value) belongs to that setting.
        while self.known.default_of(setting).is_null() {
            setting = &setting[..setting.rfind('.')?];
        }
        Some(setting)
    }

    /// Notes what is allowed and unwise.
    pub(super) fn warn(&mut self, key: &str, text: impl Into<String>) {
        let source = self.source(key).cloned();
        self.warnings.push(Error { source, key: key.to_owned(), text: text.into() });
    }

    /// `false`: it is the default already, or no setting.
    fn reset(&mut self, key: &str) -> bool {
        let Some(setting) = self.setting_of(key) else { return false };
        let default = self.known.default_of(setting).clone();
        if *self.get(setting) == default {
            return false;
        }
        let setting = setting.to_owned();
        self.set(&setting, default);
        true
    }

    /// Where the data lies: what is set, else what systemd gives, else a folder here.
    pub(super) fn data_dir(&mut self, state_directory: Option<&str>) -> PathBuf {
        let set = self.text("data_dir");
        if set.is_none() {
            self.refuse("data_dir", "must be a text: the path of a folder");
        }
        // systemd gives a list where the unit names several.
        let given = state_directory.and_then(|list| list.split(':').next()).filter(|dir| !dir.is_empty());
        let (dir, note) = match (set.filter(|dir| !dir.is_empty()), given) {
            (Some(dir), _) => return PathBuf::from(dir),
            (None, Some(dir)) => (dir, "STATE_DIRECTORY"),
            (None, None) => ("./trackalert-data", "default"),
        };
        self.notes.insert("data_dir".to_owned(), note.to_owned());
        self.set("data_dir", Value::from(dir));
        PathBuf::from(dir)
    }

    /// A section as its own struct. `None` only if the embedded defaults do not fit it.
    pub(super) fn section<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        for _ in 0..MOST_TYPE_ERRORS {
            let value = self.get(name).clone();
            let error = match serde_path_to_error::deserialize::<_, T>(value) {
                Ok(section) => return Some(section),
                Err(error) => error,
            };
            let path = error.path().to_string();
            let key = if path == "." { name.to_owned() } else { format!("{name}.{path}") };
            let default = self.setting_of(&key).map_or(&Value::Null, |setting| self.known.default_of(setting));
            let hide = self.known.may_hold_secret(&key);
            let text = expected::refusal(&key, default, self.get(&key), hide, &error.into_inner().to_string());
            self.complain(&key, text);
            if !self.reset(&key) {
                return None;
            }
        }
        None
    }

    pub(super) fn text(&self, key: &str) -> Option<String> {
        self.get(key).as_str().map(str::to_owned)
    }

    pub(super) fn whole(&self, key: &str) -> Option<i64> {
        self.get(key).as_i64()
    }

    pub(super) fn list(&self, key: &str) -> Option<Vec<Value>> {
        self.get(key).as_array().cloned()
    }

    /// `None` where it is no duration; that is told when the section is read.
    pub(super) fn duration(&self, key: &str) -> Option<Duration> {
        humantime::parse_duration(self.get(key).as_str()?).ok()
    }

    /// In bytes; `None` where it is no size.
    pub(super) fn size(&self, key: &str) -> Option<u64> {
        match self.get(key) {
            Value::String(text) => text.parse::<ByteSize>().ok().map(|size| size.as_u64()),
            other => other.as_u64(),
        }
    }
}

fn pointer(key: &str) -> String {
    format!("/{}", key.replace(['.', '['], "/").replace(']', ""))
}
