//! A configuration of the old program as a layer: the settings that its calls stand for.
//!
//! Owns which setting names that file. Never runs Lua itself: that is [`crate::policy::legacy`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::error::{Error, Errors};
use super::explain;
use super::merged::Merged;
use super::sources::{Entry, Layer, Source};
use super::unknown::{Known, Name};
use crate::policy::legacy::{self, Meaning, OldConfig, Place, Setting, Told};

/// The setting that names the file.
const KEY: &str = "policy.legacy_config";
/// Lists whose entries the functions of the file use by name: an entry that is named elsewhere must not take theirs away.
const JOINED: [&str; 3] = ["geoip.files", "policy.custom_stats", "notify.custom_webhooks"];
/// Where the console listens, and what it must have for it.
const CONSOLE: &str = "console.listen";
const CONSOLE_KEYS: [&str; 2] = ["console.key", "console.key_file"];

/// What the file that the layers name says.
#[derive(Debug, Default)]
pub(super) struct Old {
    /// Its settings.
    pub(super) layer: Layer,
    /// What to tell of calls that are not needed.
    pub(super) notes: Vec<Error>,
    /// All that it says, as it says it.
    pub(super) settings: Vec<Setting>,
    /// Every call that configures, in the order of the run, with its place.
    told: Vec<(Source, Told)>,
    /// The names of the background functions that something schedules.
    scheduled: Vec<String>,
}

/// One configuring call of the file, and what it means here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OldCall {
    /// `FILE:LINE`.
    pub source: String,
    /// The call, its secrets masked.
    pub call: String,
    /// What it means here.
    pub here: Vec<String>,
}

/// The layer of a `-C` that names such a file.
pub(super) fn named(file: &Path) -> Layer {
    let source = Source::File { path: file.to_owned(), line: 0 };
    let value = Value::from(file.display().to_string());
    Layer(vec![Entry { key: KEY.to_owned(), value, source, parts: Vec::new() }])
}

/// Runs the file that the layers name, where they name one.
pub(super) fn read(layers: &[Layer], known: &Known, errors: &mut Vec<Error>) -> Result<Old, Errors> {
    let named = layers.iter().rev().flat_map(|layer| &layer.0).find(|entry| entry.key == KEY);
    let Some((entry, path)) = named.and_then(|entry| Some((entry, entry.value.as_str()?))) else {
        return Ok(Old::default());
    };
    if path.is_empty() {
        return Ok(Old::default());
    }
    let said = legacy::read(Path::new(path));
    let mut config = said.map_err(|error| Errors::one(entry.source.clone(), format!("{KEY}: {error}")))?;
    let settings = config.settings.clone();
    let shut = shut_console(&mut config, layers, path);
    let mut layer = Layer::default();
    for setting in config.settings {
        if known.get(setting.key) == Some(Name::Key) {
            layer.0.push(entry_of(setting, known, path));
        } else {
            let (source, key) = (Some(source(&setting.place, path)), setting.key.to_owned());
            errors.push(Error { source, key, text: "is not in this program yet; take the call out".to_owned() });
        }
    }
    let note = |note: legacy::Note| {
        let source = Some(source(&note.place, path));
        Error { source, key: note.place.call.to_owned(), text: note.text.to_owned() }
    };
    let notes = config.notes.into_iter().map(note).chain(shut).collect();
    let told = config.told.into_iter().map(|told| (source(&told.place, path), told)).collect();
    let scheduled = config.scheduled.into_iter().map(|scheduled| scheduled.name).collect();
    Ok(Old { layer, notes, settings, told, scheduled })
}

/// Puts what the file adds to such a list behind what the layers above it say there. Of two webhooks with one name that above counts.
pub(super) fn join(old: &Layer, above: &mut [Layer]) {
    for entry in old.0.iter().filter(|entry| JOINED.contains(&entry.key.as_str())) {
        let wins = above.iter_mut().rev().flat_map(|layer| layer.0.iter_mut().rev()).find(|one| one.key == entry.key);
        let (Some(wins), Value::Array(added)) = (wins, &entry.value) else { continue };
        // What is no list is told as such.
        let Value::Array(list) = &mut wins.value else { continue };
        for (index, value) in added.iter().enumerate() {
            let named_above =
                |one: &Value| one == value || one.get("name").is_some_and(|name| Some(name) == value.get("name"));
            if list.iter().any(named_above) {
                continue;
            }
            let at = |index: usize| format!("{}[{index}]", entry.key);
            let place = entry.parts.iter().find(|(part, _)| *part == at(index));
            wins.parts.extend(place.map(|(_, source)| (at(list.len()), source.clone())));
            list.push(value.clone());
        }
    }
}

/// What each of its calls means, once it is known which layer wins.
pub(super) fn explain(old: &Old, merged: &Merged) -> Vec<OldCall> {
    let means = old.told.iter().flat_map(|(_, told)| &told.means);
    let keys = means.filter_map(|meaning| match meaning {
        Meaning::Setting { key, .. } | Meaning::Entry { key, .. } => Some(*key),
        _ => None,
    });
    // Each list is gone through once: there may be thousands of entries, a call each.
    let unique: BTreeSet<&str> = keys.collect();
    let lists = unique.into_iter().map(|key| (key, entries_of(key, merged))).collect();
    let call = |(at, (source, told)): (usize, &(Source, Told))| OldCall {
        source: source.to_string(),
        call: told.call.clone(),
        here: told.means.iter().map(|meaning| old.words(at, source, meaning, merged, &lists)).collect(),
    };
    old.told.iter().enumerate().map(call).collect()
}

impl Old {
    /// One meaning for people. What another call or a later layer has replaced is said to be so.
    fn words(&self, at: usize, source: &Source, meaning: &Meaning, merged: &Merged, lists: &Lists<'_>) -> String {
        let has_entry = |key: &str| lists.get(key).is_some_and(|sources| sources.contains(source));
        // The same one stands above, and is not there twice.
        let is_above = |key: &str, value: &Value| {
            JOINED.contains(&key) && merged.get(key).as_array().is_some_and(|list| list.contains(value))
        };
        match meaning {
            Meaning::Setting { key, value } => {
                let wins = merged.source(key) == Some(source) || has_entry(key);
                let text = format!("{key} = {}", explain::shown(merged, key, value));
                if wins || value.as_array().is_some_and(Vec::is_empty) { text } else { text + &instead(key, merged) }
            }
            Meaning::Entry { key, value } => {
                let text = format!("{key} has an entry {}", explain::shown(merged, key, value));
                if has_entry(key) || is_above(key, value) { text } else { text + &instead(key, merged) }
            }
            Meaning::Function { what, text } => self.replaced(at, text.clone(), |later| match later {
                Meaning::Function { what: later, .. } => later == what,
                _ => false,
            }),
            Meaning::Background(name) => {
                let when = if self.scheduled.contains(name) {
                    "a background function, which a call below or above schedules"
                } else {
                    "a background function that never runs: no call schedules it"
                };
                self.replaced(at, when.to_owned(), |later| *later == Meaning::Background(name.clone()))
            }
            Meaning::Is(text) => text.clone(),
            Meaning::Nothing(why) => format!("does nothing here: {why}"),
        }
    }

    fn replaced(&self, at: usize, text: String, is_same: impl Fn(&Meaning) -> bool) -> String {
        let later = self.told.iter().skip(at + 1).find(|(_, told)| told.means.iter().any(&is_same));
        later.map_or_else(|| text.clone(), |(place, _)| format!("{text} (not in force: {place} registers another)"))
    }
}

/// Where the entries of each list in force come from.
type Lists<'a> = BTreeMap<&'a str, BTreeSet<&'a Source>>;

fn entries_of<'a>(key: &str, merged: &'a Merged) -> BTreeSet<&'a Source> {
    let count = merged.get(key).as_array().map_or(0, Vec::len);
    (0..count).filter_map(|index| merged.source(&format!("{key}[{index}]"))).collect()
}

/// Why a value is not the one in force.
fn instead(key: &str, merged: &Merged) -> String {
    match merged.source(key) {
        Some(Source::Default) | None => " (not in force: the warnings say why)".to_owned(),
        Some(other) => format!(" (not in force: {other} sets it)"),
    }
}

/// Takes a `controlSocket` away that nobody has given a key to, and says so: the old program went on with its console shut, too.
fn shut_console(config: &mut OldConfig, layers: &[Layer], file: &str) -> Option<Error> {
    let above =
        |keys: &[&str]| layers.iter().skip(1).flat_map(|layer| &layer.0).any(|entry| keys.contains(&&*entry.key));
    let at = config.settings.iter().position(|setting| setting.key == CONSOLE)?;
    let has_key = config.settings.iter().any(|setting| setting.key == CONSOLE_KEYS[0]) || above(&CONSOLE_KEYS);
    if has_key || above(&[CONSOLE]) {
        return None;
    }
    let setting = config.settings.remove(at);
    let text = "setKey has set no key, so that nothing listens; makeKey() makes one".to_owned();
    Some(Error { source: Some(source(&setting.place, file)), key: CONSOLE.to_owned(), text })
}

/// The file's own lines go by the path that named it; what it loads has a path of its own.
fn source(place: &Place, file: &str) -> Source {
    let own = Path::new(file).file_name().is_some_and(|name| name == place.path.as_os_str());
    let path = if own { file.into() } else { place.path.clone() };
    Source::File { path, line: place.line }
}

fn entry_of(setting: Setting, known: &Known, file: &str) -> Entry {
    let key = setting.key;
    let before = match known.default_of(key) {
        Value::Array(default) if setting.after_default => default.clone(),
        _ => Vec::new(),
    };
    let part = |(at, place): (usize, &Place)| (format!("{key}[{}]", before.len() + at), source(place, file));
    let parts = setting.entries.iter().enumerate().map(part).collect();
    let value = match setting.value {
        Value::Array(entries) => Value::Array(before.into_iter().chain(entries).collect()),
        value => value,
    };
    Entry { key: key.to_owned(), value, source: source(&setting.place, file), parts }
}
