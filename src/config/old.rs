//! A configuration of the old program as a layer: the settings that its calls stand for.
//!
//! Owns which setting names that file. Never runs Lua itself: that is [`crate::policy::legacy`].

use std::path::Path;

use serde_json::Value;

use super::error::{Error, Errors};
use super::sources::{Entry, Layer, Source};
use super::unknown::{Known, Name};
use crate::policy::legacy::{self, OldConfig, Place, Setting};

/// The setting that names the file.
const KEY: &str = "policy.legacy_config";
/// Lists whose entries the functions of the file use by name: an entry that is named elsewhere must not take theirs away.
const JOINED: [&str; 3] = ["geoip.files", "policy.custom_stats", "notify.custom_webhooks"];
/// Where the console listens, and what it must have for it.
const CONSOLE: &str = "console.listen";
const CONSOLE_KEYS: [&str; 2] = ["console.key", "console.key_file"];

/// The layer of a `-C` that names such a file.
pub(super) fn named(file: &Path) -> Layer {
    let source = Source::File { path: file.to_owned(), line: 0 };
    let value = Value::from(file.display().to_string());
    Layer(vec![Entry { key: KEY.to_owned(), value, source, parts: Vec::new() }])
}

/// What was read of the file.
#[derive(Default)]
pub(super) struct Read {
    pub(super) layer: Layer,
    /// What to tell of calls that are not needed.
    pub(super) notes: Vec<Error>,
    /// All that it says, as it says it.
    pub(super) settings: Vec<Setting>,
}

/// Runs the file that the layers name, where they name one.
pub(super) fn read(layers: &[Layer], known: &Known, errors: &mut Vec<Error>) -> Result<Read, Errors> {
    let named = layers.iter().rev().flat_map(|layer| &layer.0).find(|entry| entry.key == KEY);
    let Some((entry, path)) = named.and_then(|entry| Some((entry, entry.value.as_str()?))) else {
        return Ok(Read::default());
    };
    if path.is_empty() {
        return Ok(Read::default());
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
    Ok(Read { layer, notes: config.notes.into_iter().map(note).chain(shut).collect(), settings })
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
