//! What a device says of itself, as attributes: `device_id` → `device_attrs`, where the sender made none of it.
//!
//! ```text
//! http       User-Agent       regexes of uap-core     browser.*  os.*  device.*
//! imap       ID list          pairs                   imapc.*    os.*
//! mobileapi  an app's string  product or pairs        app.*      os.*  device.*
//! ```
//!
//! Owns the file of regexes and its exchange, the cache, and the bounds. The reading itself is pure, a file for each protocol. Never
//! fails a report: a text that cannot be read has no attributes.

mod http;
mod imap;
mod mobile;
mod regexes;
mod text;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use quick_cache::Equivalent;
use quick_cache::sync::Cache;
use tokio_util::sync::CancellationToken;

pub use regexes::RegexesError;

use crate::report::{DeviceAttributes, LoginReport};
use crate::stamp::{self, Reread, Seen, Stamp};
use crate::telemetry::Metrics;

/// Settings of the reading of devices, a part of section `[detect]`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `detect.device_regexes`; empty: one of the usual places.
    pub regexes: PathBuf,
    /// `detect.device_max`: bytes of a text that are read.
    pub max: usize,
    /// `detect.device_cache`: texts that are remembered.
    pub cache: usize,
}

/// How a text is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Protocol {
    Http,
    Imap,
    MobileApi,
}

impl Protocol {
    fn of(protocol: &str) -> Option<Self> {
        match protocol {
            "http" => Some(Self::Http),
            "imap" => Some(Self::Imap),
            "mobileapi" => Some(Self::MobileApi),
            _ => None,
        }
    }
}

/// What is remembered by.
#[derive(PartialEq, Eq)]
struct Key(Protocol, Box<str>);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Asked(self.0, &self.1).hash(state);
    }
}

/// A key that is only asked for.
#[derive(Hash)]
struct Asked<'a>(Protocol, &'a str);

impl Equivalent<Key> for Asked<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.0 == key.0 && *self.1 == *key.1
    }
}

/// The regexes in use, and what was made with them: both go together when others take their place.
struct Current {
    regexes: Option<http::Compiled>,
    cache: Cache<Key, DeviceAttributes>,
}

impl Current {
    fn new(regexes: Option<http::Compiled>, settings: &Settings) -> Self {
        Self { regexes, cache: Cache::new(settings.cache) }
    }

    fn read(&self, protocol: Protocol, text: &str) -> text::Found {
        match (protocol, &self.regexes) {
            (Protocol::Http, Some(regexes)) => http::attributes(regexes, text),
            (Protocol::Http, None) => text::Found::default(),
            (Protocol::Imap, _) => imap::attributes(text),
            (Protocol::MobileApi, _) => mobile::attributes(text),
        }
    }
}

/// Reads what devices say of themselves.
pub struct Devices {
    settings: Settings,
    current: ArcSwap<Current>,
    /// What the file looked like when it was last read, well or not. Also what keeps two readings of it apart.
    seen: Mutex<(PathBuf, Seen)>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Devices").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Devices {
    /// Reads the file. Without one, and without one of those that nobody named that works, the rest works, and the log says what is
    /// missed. An error: the one that was named is broken. Blocks, for a tenth of a second.
    pub fn open(settings: Settings, metrics: Arc<Metrics>) -> Result<Self, RegexesError> {
        let named = !settings.regexes.as_os_str().is_empty();
        let devices = Self {
            current: ArcSwap::from_pointee(Current::new(None, &settings)),
            settings,
            seen: Mutex::default(),
            metrics,
        };
        let (taken, _) = devices.take(&mut devices.lock());
        match taken {
            Err(error) if named && !error.is_absent() => return Err(error),
            Err(error) => tracing::warn!("{error}"),
            Ok(taken) => tracing::debug!(file = %taken.file.display(), "the regexes of User-Agents were read"),
        }
        Ok(devices)
    }

    /// Whether User-Agents are read: there are regexes.
    pub fn reads_user_agents(&self) -> bool {
        self.current.load().regexes.is_some()
    }

    /// Whether there are regexes that work, and which: `1234 regexes in FILE`. Blocks.
    pub fn check(named: &Path) -> Result<String, RegexesError> {
        let path = regexes::find(named);
        let compiled = regexes::read(named, &path)?;
        Ok(format!("{} regexes in {}", compiled.count, path.display()))
    }

    /// Reads a report's device, once, where its sender gave no attributes.
    ///
    /// For the policy workers, of which there are as many as cores, and not for the detector's one task, which every report passes: a
    /// User-Agent that is not remembered takes 5 to 10 µs, one that was made to take long 0.1 ms and in the worst case 2.
    pub fn read(&self, report: &LoginReport) {
        if !report.device_attrs.is_empty() || report.device_id.is_empty() {
            return;
        }
        let Some(protocol) = Protocol::of(&report.protocol) else { return };
        report.parsed_device.get_or_init(|| self.attributes(protocol, &report.device_id));
    }

    fn attributes(&self, protocol: Protocol, text: &str) -> DeviceAttributes {
        let count = |how: &str| self.metrics.devices.with_label_values(&[how]).inc();
        let current = self.current.load();
        if protocol == Protocol::Http && current.regexes.is_none() {
            count("no_regexes");
            return DeviceAttributes::default();
        }
        let read = &text[..text.floor_char_boundary(self.settings.max)];
        let too_long = read.len() < text.len();
        if let Some(known) = current.cache.get(&Asked(protocol, read)) {
            count(if too_long { "too_long" } else { "cached" });
            return known;
        }
        // What an attacker wrote must not make a dead letter of the report that shows the attack.
        let found = catch_unwind(AssertUnwindSafe(|| current.read(protocol, read))).unwrap_or_else(|_| {
            tracing::error!(protocol = ?protocol, "a fault of this program in the reading of a device_id; it has no attributes");
            text::Found::default()
        });
        count(match (too_long, found.is_empty()) {
            (true, _) => "too_long",
            (false, true) => "unknown",
            (false, false) => "parsed",
        });
        let attributes = found.done();
        current.cache.insert(Key(protocol, read.into()), Arc::clone(&attributes));
        attributes
    }

    /// Reads the file and puts it to use. An error leaves what is in use. Gives also whether it is news that it cannot be read.
    fn take(&self, seen: &mut (PathBuf, Seen)) -> (Result<Reread, RegexesError>, bool) {
        let path = regexes::find(&self.settings.regexes);
        let now = Stamp::of(&path);
        if seen.0 != path {
            *seen = (path.clone(), Seen::default());
        }
        let compiled = match regexes::read(&self.settings.regexes, &path) {
            Ok(compiled) => compiled,
            Err(error) if error.is_unreadable() => {
                let news = seen.1.note_unreadable(&error.to_string());
                return (Err(error), news);
            }
            Err(error) => {
                seen.1 = Seen::read(now);
                return (Err(error), true);
            }
        };
        seen.1 = Seen::read(now);
        let outcome = Ok(format!("{} regexes", compiled.count));
        self.current.store(Arc::new(Current::new(Some(compiled), &self.settings)));
        (Ok(Reread { file: path, outcome }), true)
    }

    /// Reads the file again, whether it has changed or not, and says what became of it. Nothing where there is none and was none. One
    /// that cannot be taken leaves its predecessor in use. Blocks.
    pub fn reload(&self) -> Vec<Reread> {
        self.take_again(&mut self.lock(), true)
    }

    /// The same where it has changed since it was last read. Blocks.
    pub fn reload_changed(&self) -> Vec<Reread> {
        let mut seen = self.lock();
        let path = regexes::find(&self.settings.regexes);
        let due = seen.0 != path || seen.1.is_due(Stamp::of(&path));
        if due { self.take_again(&mut seen, false) } else { Vec::new() }
    }

    /// `asked`: what is no news is told, too.
    fn take_again(&self, seen: &mut (PathBuf, Seen), asked: bool) -> Vec<Reread> {
        let in_use = self.current.load().regexes.is_some();
        let (taken, news) = self.take(seen);
        match taken {
            Ok(taken) => vec![taken],
            Err(error) if (error.is_absent() && !in_use) || !(asked || news) => Vec::new(),
            Err(error) => vec![Reread { file: seen.0.clone(), outcome: Err(error.to_string()) }],
        }
    }

    fn lock(&self) -> MutexGuard<'_, (PathBuf, Seen)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the file every `check_every` and takes a changed one, until stopped.
    pub async fn watch(self: Arc<Self>, check_every: Duration, stop: CancellationToken) {
        let metrics = Arc::clone(&self.metrics);
        stamp::watch(check_every, metrics, stop, move || self.reload_changed()).await;
    }
}

#[cfg(test)]
mod tests;
