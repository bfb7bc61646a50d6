//! The places that settings come from: the embedded defaults, the file, the environment, the command line.
//!
//! Owns how each is read, and where in it a value stands. Never decides whether a value is right.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use toml_edit::{Document, Item, TableLike};

use super::error::{Error, Errors};
use super::unknown::{Known, Name};

/// The environment variables that are settings begin with this.
pub const ENV_PREFIX: &str = "TRACKALERT__";
/// A larger file is no configuration.
const MAX_FILE: u64 = 4 << 20;

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The embedded `config/default.toml`.
    Default,
    /// A line of a file.
    File {
        /// The file, as it was named.
        path: PathBuf,
        /// From 1; 0 where it is about the file as a whole.
        line: usize,
    },
    /// The name of an environment variable.
    Env(String),
    /// The key of a `--set`.
    Set(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => f.write_str(name),
            Self::Set(key) => write!(f, "--set {key}"),
        }
    }
}

/// One setting of one source.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// `section.key`.
    pub(super) key: String,
    pub(super) value: Value,
    pub(super) source: Source,
    /// The places of parts of the value: `notify.channels[0].url`.
    pub(super) parts: Vec<(String, Source)>,
}

/// All settings of one source, as the `config` crate takes them.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer(pub(super) Vec<Entry>);

impl config::Source for Layer {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<config::Map<String, config::Value>, config::ConfigError> {
        Ok(self.0.iter().map(|entry| (entry.key.clone(), to_config(&entry.value, &entry.source))).collect())
    }
}

fn to_config(value: &Value, source: &Source) -> config::Value {
    let kind = match value {
        Value::Null => config::ValueKind::Nil,
        Value::Bool(value) => config::ValueKind::Boolean(*value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => config::ValueKind::I64(whole),
            (None, Some(float)) => config::ValueKind::Float(float),
            (None, None) => config::ValueKind::Nil,
        },
        Value::String(text) => config::ValueKind::String(text.clone()),
        Value::Array(items) => config::ValueKind::Array(items.iter().map(|item| to_config(item, source)).collect()),
        Value::Object(map) => {
            config::ValueKind::Table(map.iter().map(|(key, item)| (key.clone(), to_config(item, source))).collect())
        }
    };
    config::Value::new(Some(&source.to_string()), kind)
}

/// Back from the `config` crate, without its own coercions: a password `1234` in a file is a mistake to be told, because its leading
/// zeros are gone.
pub(super) fn from_config(value: &config::Value) -> Value {
    match &value.kind {
        config::ValueKind::Boolean(value) => Value::from(*value),
        config::ValueKind::I64(value) => Value::from(*value),
        config::ValueKind::Float(value) => Value::from(*value),
        config::ValueKind::String(text) => Value::from(text.as_str()),
        config::ValueKind::Array(items) => Value::Array(items.iter().map(from_config).collect()),
        config::ValueKind::Table(map) => {
            Value::Object(map.iter().map(|(key, value)| (key.clone(), from_config(value))).collect())
        }
        // No other kind is made by `to_config`.
        _ => Value::Null,
    }
}

/// Reads a file and takes its settings.
pub(super) fn read_file(path: &Path, known: &Known, errors: &mut Vec<Error>) -> Result<Layer, Errors> {
    let source = || Source::File { path: path.to_owned(), line: 0 };
    let fail = |said: String| Errors::one(source(), said);
    let meta = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => fail(
            "there is no such file; name your configuration with -C FILE, or leave -C out to run with the defaults"
                .into(),
        ),
        _ => fail(format!("cannot be read: {error}")),
    })?;
    if meta.is_dir() {
        return Err(fail("is a folder; -C takes a file".into()));
    }
    if meta.len() > MAX_FILE {
        return Err(fail(format!("has {} bytes; a configuration has at most {MAX_FILE}", meta.len())));
    }
    let text = std::fs::read_to_string(path).map_err(|error| fail(format!("cannot be read: {error}")))?;
    parse(&text, known, errors, &|line| Source::File { path: path.to_owned(), line })
}

/// Takes the settings of a TOML text. Mistakes of syntax end it; unknown keys are added to `errors` and left out.
pub(super) fn parse(
    text: &str,
    known: &Known,
    errors: &mut Vec<Error>,
    at: &dyn Fn(usize) -> Source,
) -> Result<Layer, Errors> {
    let document = Document::parse(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        Errors::one(at(line), format!("column {column}: not TOML: {}", said(error.message())))
    })?;
    let place = |offset: usize| at(position(text, offset).0);
    let mut walk = Walk { known, errors, place: &place, layer: Layer::default() };
    walk.table("", document.as_table());
    Ok(walk.layer)
}

/// Line and column, both from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

struct Walk<'a> {
    known: &'a Known,
    errors: &'a mut Vec<Error>,
    place: &'a dyn Fn(usize) -> Source,
    layer: Layer,
}

impl Walk<'_> {
    fn table(&mut self, prefix: &str, table: &dyn TableLike) {
        for (name, item) in table.iter() {
            let key = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
            let offset = table.get_key_value(name).and_then(|(key, _)| key.span()).or_else(|| item.span());
            let source = (self.place)(offset.map_or(0, |span| span.start));
            match (self.known.get(&key), item.as_table_like()) {
                (Some(Name::Section), Some(inner)) => self.table(&key, inner),
                (Some(Name::Section), None) => {
                    self.error(source, &key, format!("is a section; write [{key}] and its keys below"));
                }
                // Each key of an unknown section is told, because each has a nearest name of its own.
                (None, Some(inner)) if !inner.is_empty() => self.table(&key, inner),
                (None, _) => {
                    let text = self.known.say_unknown(&key);
                    self.error(source, &key, text);
                }
                (Some(Name::Key), _) => self.leaf(key, item, source),
            }
        }
    }

    fn leaf(&mut self, key: String, item: &Item, source: Source) {
        let mut parts = Vec::new();
        if let Some(tables) = item.as_array_of_tables() {
            for (index, table) in tables.iter().enumerate() {
                self.parts(&format!("{key}[{index}]"), table, &source, &mut parts);
            }
        } else if let Some(array) = item.as_array() {
            for (index, value) in array.iter().enumerate() {
                let name = format!("{key}[{index}]");
                match value.as_inline_table() {
                    Some(table) => self.parts(&name, table, &source, &mut parts),
                    None => parts.push((name, value.span().map_or(source.clone(), |span| (self.place)(span.start)))),
                }
            }
        }
        // The first entry of [[notify.channels]] stands where its header stands.
        let value = from_toml(item);
        self.layer.0.push(Entry { key, value, source, parts });
    }

    fn parts(&self, name: &str, table: &dyn TableLike, source: &Source, parts: &mut Vec<(String, Source)>) {
        let mut first = None;
        for (inner, item) in table.iter() {
            let span = table.get_key_value(inner).and_then(|(key, _)| key.span()).or_else(|| item.span());
            let place = span.map_or(source.clone(), |span| (self.place)(span.start));
            first.get_or_insert_with(|| place.clone());
            parts.push((format!("{name}.{inner}"), place));
        }
        parts.push((name.to_owned(), first.unwrap_or_else(|| source.clone())));
    }

    fn error(&mut self, source: Source, key: &str, text: String) {
        self.errors.push(Error { source: Some(source), key: key.to_owned(), text });
    }
}

fn from_toml(item: &Item) -> Value {
    if let Some(tables) = item.as_array_of_tables() {
        return Value::Array(tables.iter().map(|table| from_table(table)).collect());
    }
    match item {
        Item::Value(value) => from_toml_value(value),
        Item::Table(table) => from_table(table),
        _ => Value::Null,
    }
}

fn from_toml_value(value: &toml_edit::Value) -> Value {
    match value {
        toml_edit::Value::String(text) => Value::from(text.value().as_str()),
        toml_edit::Value::Integer(number) => Value::from(*number.value()),
        // "nan" and "inf" have no JSON form; as text they are refused where a number is expected.
        toml_edit::Value::Float(number) => serde_json::Number::from_f64(*number.value())
            .map_or_else(|| Value::from(number.value().to_string()), Value::Number),
        toml_edit::Value::Boolean(value) => Value::from(*value.value()),
        toml_edit::Value::Datetime(time) => Value::from(time.value().to_string()),
        toml_edit::Value::Array(items) => Value::Array(items.iter().map(from_toml_value).collect()),
        toml_edit::Value::InlineTable(table) => from_table(table),
    }
}

fn from_table(table: &dyn TableLike) -> Value {
    Value::Object(table.iter().map(|(key, item)| (key.to_owned(), from_toml(item))).collect())
}

/// Takes the settings among the environment's variables.
pub(super) fn read_env(
    variables: impl IntoIterator<Item = (String, String)>,
    known: &Known,
    errors: &mut Vec<Error>,
) -> Layer {
    let mut layer = Layer::default();
    let mut variables: Vec<_> = variables.into_iter().filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
    variables.sort();
    for (name, text) in variables {
        let key = name[ENV_PREFIX.len()..].replace("__", ".").to_lowercase();
        take(key, &text, Source::Env(name), known, errors, &mut layer);
    }
    layer
}

/// Takes the settings of `--set key=value`.
pub(super) fn read_sets(sets: &[String], known: &Known, errors: &mut Vec<Error>) -> Layer {
    let mut layer = Layer::default();
    for set in sets {
        match set.split_once('=') {
            Some((key, text)) => {
                let key = key.trim().to_owned();
                take(key.clone(), text.trim(), Source::Set(key), known, errors, &mut layer);
            }
            None => {
                let text = "has no value; write --set section.key=value".to_owned();
                errors.push(Error { source: Some(Source::Set(set.clone())), key: set.clone(), text });
            }
        }
    }
    layer
}

fn take(key: String, text: &str, source: Source, known: &Known, errors: &mut Vec<Error>, layer: &mut Layer) {
    match known.get(&key) {
        Some(Name::Key) => match from_text(&key, text, known.default_of(&key)) {
            Ok(value) => layer.0.push(Entry { key, value, source, parts: Vec::new() }),
            Err(text) => errors.push(Error { source: Some(source), key, text }),
        },
        Some(Name::Section) => {
            let text = "is a section; name one of its keys".to_owned();
            errors.push(Error { source: Some(source), key, text });
        }
        None => {
            let text = known.say_unknown(&key);
            errors.push(Error { source: Some(source), key, text });
        }
    }
}

/// A value written without TOML's quotes is read as what the default is. What does not fit stays text, and is refused as such; a list
/// that is broken is refused here, without a word of it: it may hold secrets.
fn from_text(key: &str, text: &str, default: &Value) -> Result<Value, String> {
    let toml = || text.parse::<toml_edit::Value>().map(|value| from_toml_value(&value));
    Ok(match default {
        Value::Array(_) if text.trim().is_empty() => Value::Array(Vec::new()),
        Value::Array(_) if text.trim_start().starts_with('[') => toml().map_err(|error| {
            let (_, column) = position(text, error.span().map_or(0, |span| span.start));
            format!("column {column} of the value: no list as TOML writes it: {}", said(error.message()))
        })?,
        Value::Array(_) if key == "notify.channels" => {
            return Err("is no list of channels; write [{kind = \"webhook\", url = \"…\"}]".to_owned());
        }
        Value::Object(_) => toml().map_err(|_| "is no table; write {\"name\" = \"value\"}".to_owned())?,
        Value::Array(_) => Value::Array(text.split(',').map(|part| Value::from(part.trim())).collect()),
        Value::Bool(_) | Value::Number(_) => match toml() {
            Ok(value) if value.is_boolean() || value.is_number() => value,
            _ => Value::from(text),
        },
        _ => Value::from(text),
    })
}

/// What the parser says, on one line. Its picture of the text is left out: the text may hold a password.
fn said(message: &str) -> String {
    message.trim().replace('\n', ", ")
}
