//! The configuration: default ← old program's file ← file ← environment ← `--set`, and every mistake in it at once.
//!
//! ```text
//! config/default.toml  <  policy.legacy_config  <  -C FILE  <  TRACKALERT__SECTION__KEY  <  --set section.key=value
//!     │ names and defaults     │ each value keeps the place where it stands
//!     └────────▶ unknown names ──▶ merge ──▶ secrets from files ──▶ checks ──▶ the sections' own structs
//! ```
//!
//! Owns reading, merging and checking. Never opens anything that a setting names, but for the files of secrets.

mod amqp;
mod check;
mod error;
mod expected;
mod explain;
mod hooks;
mod kafka;
mod merged;
mod old;
mod roles;
mod secrets;
mod sources;
mod unknown;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{
    console, detect, geoip, history, http, notify, outbound, policy, queue, receive, schedule, state, telemetry,
};

pub use error::{Error, Errors};
pub use explain::Explained;
pub use old::OldCall;
pub use roles::{BadRoles, Roles};
pub use sources::{ENV_PREFIX, Source};

use merged::Merged;
use unknown::Known;

/// The embedded `config/default.toml`: every setting, its meaning and its default.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// The whole configuration of one process, checked.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// Where the embedded queue, history and state live; resolved, never empty.
    pub data_dir: PathBuf,
    /// `[http]`.
    pub http: http::Settings,
    /// `[receive]`.
    pub receive: receive::Settings,
    /// `[queue]`.
    pub queue: queue::Settings,
    /// `[detect]`.
    pub detect: detect::Settings,
    /// `[policy]`.
    pub policy: policy::Settings,
    /// `[history]`.
    pub history: history::Settings,
    /// `[state]`.
    pub state: state::Settings,
    /// `[geoip]`.
    pub geoip: geoip::Settings,
    /// `[notify]`.
    pub notify: notify::Settings,
    /// `[console]`.
    pub console: console::Settings,
    /// `[outbound]`.
    pub outbound: outbound::Settings,
    /// `[schedule]`.
    pub schedule: schedule::Settings,
    /// `[log]`.
    pub log: telemetry::LogSettings,
    /// What is allowed and unwise, for the log.
    #[serde(skip)]
    pub warnings: Vec<Error>,
    /// What the old program's file says, where there is one.
    #[serde(skip)]
    pub old: Vec<policy::legacy::Setting>,
    /// Keys that something above that file sets: what it says of them does not count.
    #[serde(skip)]
    pub overruled: BTreeSet<String>,
    #[serde(skip)]
    explained: Vec<Explained>,
    #[serde(skip)]
    old_calls: Vec<OldCall>,
}

impl Config {
    /// Reads the configuration of this process: the file if there is one, the environment, and `sets` (`section.key=value`).
    pub fn load(file: Option<&Path>, sets: &[String]) -> Result<Self, Errors> {
        // A variable that is not Unicode is none of ours.
        let variables =
            std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)));
        Self::load_with(file, variables, sets)
    }

    /// Like [`Config::load`], with the environment given.
    pub fn load_with(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
        sets: &[String],
    ) -> Result<Self, Errors> {
        let variables: Vec<_> = variables.into_iter().collect();
        let mut errors = Vec::new();
        let (known, defaults) = defaults()?;
        let mut layers = vec![defaults];
        match file {
            Some(file) if policy::legacy::is_old(file) => layers.push(old::named(file)),
            Some(file) => layers.push(sources::read_file(file, &known, &mut errors)?),
            None => {}
        }
        layers.push(sources::read_env(variables.iter().cloned(), &known, &mut errors));
        layers.push(sources::read_sets(sets, &known, &mut errors));
        let mut old = old::read(&layers, &known, &mut errors)?;
        let overruled = layers.iter().skip(1).flat_map(|layer| &layer.0).map(|entry| entry.key.clone()).collect();
        old::join(&old.layer, &mut layers[1..]);
        // Below the file that names it: what that says wins.
        layers.insert(1, std::mem::take(&mut old.layer));

        let mut merged = Merged::of(known, layers, errors)?;
        merged.warnings.append(&mut old.notes);
        secrets::resolve(&mut merged);
        let state_directory = variables.iter().find(|(name, _)| name == "STATE_DIRECTORY").map(|(_, dir)| dir.as_str());
        let data_dir = merged.data_dir(state_directory);
        check::all(&mut merged);
        let old_calls = old::explain(&old, &merged);
        Ok(Self { old: old.settings, overruled, old_calls, ..Self::assemble(merged, data_dir)? })
    }

    fn assemble(mut merged: Merged, data_dir: PathBuf) -> Result<Self, Errors> {
        let sections = (
            (merged.section("http"), merged.section("receive"), merged.section("queue"), merged.section("detect")),
            (merged.section("policy"), merged.section("history"), merged.section("state"), merged.section("geoip")),
            (merged.section("notify"), merged.section("schedule"), merged.section("log"), merged.section("console")),
            merged.section("outbound"),
        );
        match sections {
            (
                (Some(http), Some(receive), Some(queue), Some(detect)),
                (Some(policy), Some(history), Some(state), Some(geoip)),
                (Some(notify), Some(schedule), Some(log), Some(console)),
                Some(outbound),
            ) if merged.errors.is_empty() => Ok(Self {
                explained: explain::explain(&merged),
                old_calls: Vec::new(),
                warnings: merged.warnings,
                old: Vec::new(),
                overruled: BTreeSet::new(),
                data_dir,
                http,
                receive,
                queue,
                detect,
                policy,
                history,
                state,
                geoip,
                notify,
                outbound,
                console,
                schedule,
                log,
            }),
            _ => Err(Errors(merged.errors).sorted()),
        }
    }

    /// Every setting in the order of `config/default.toml`, with its value (secrets masked) and the place it comes from.
    pub fn explain(&self) -> &[Explained] {
        &self.explained
    }

    /// Every configuring call of a configuration of the old program, where there is one, with what it means here; no secret is shown.
    pub fn old_calls(&self) -> &[OldCall] {
        &self.old_calls
    }
}

/// The names and the values of the embedded defaults. They have a fault only if this program was built from a broken file.
fn defaults() -> Result<(Known, sources::Layer), Errors> {
    let known = Known::of(DEFAULTS).map_err(|error| Errors::one(Source::Default, error.message()))?;
    let mut errors = Vec::new();
    let layer = sources::parse(DEFAULTS, &known, &mut errors, &|_| Source::Default)?;
    Ok((known.with_defaults(&layer), layer))
}

#[cfg(test)]
mod tests;
