//! A file that is read again while the program runs: which of its calls wait for a restart.
//!
//! Owns which of them that may do. A function whose webhook or GeoIP file is not there would fail at each report, or find nothing and
//! say so to nobody: such a file is refused. Of any other the operator is told. Shows no value but a name or a path: the rest may be a
//! secret.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;

use super::{Place, Setting};

/// Webhooks, and GeoIP files: what functions use by name and cannot do without.
const HOOKS: &str = "notify.custom_webhooks";
const GEOIP: &str = "geoip.files";
/// Counters, which are taken over live.
pub(in crate::policy) const STATS: &str = "policy.custom_stats";

/// What is in force until the program ends.
#[derive(Debug, Default)]
pub struct InForce {
    /// What the file said at the start.
    pub file: Vec<Setting>,
    /// Keys that something above the file sets: what it says of them does not count.
    pub overruled: BTreeSet<String>,
    /// The names of `notify.custom_webhooks`.
    pub webhooks: Vec<String>,
    /// `geoip.files`.
    pub geoip: Vec<PathBuf>,
}

/// What waits for a restart, one a line.
#[derive(Debug, Default)]
pub(in crate::policy) struct Waits {
    /// Functions cannot do without it.
    pub(in crate::policy) refused: Vec<String>,
    /// The program goes on as it is.
    pub(in crate::policy) told: Vec<String>,
}

impl InForce {
    /// What of these settings is not in force.
    pub(in crate::policy) fn against(&self, file: &[Setting]) -> Waits {
        let mut waits = Waits::default();
        for setting in file {
            match setting.key {
                HOOKS => self.hooks(setting, &mut waits),
                GEOIP => self.files(setting, &mut waits),
                STATS => {}
                key if self.overruled.contains(key) => {}
                key => {
                    let before = self.file.iter().find(|before| before.key == key);
                    let same = |before: &Setting| {
                        (&before.value, before.after_default) == (&setting.value, setting.after_default)
                    };
                    if !before.is_some_and(same) {
                        waits.told.push(said(&setting.place, &format!("{key} changes at a restart only")));
                    }
                }
            }
        }
        let named = |key: &str| [HOOKS, GEOIP, STATS].contains(&key) || self.overruled.contains(key);
        for before in self.file.iter().filter(|before| !named(before.key)) {
            if !file.iter().any(|setting| setting.key == before.key) {
                let text = format!("{}: stays as {} has set it, until a restart", before.key, before.place.call);
                waits.told.push(text);
            }
        }
        waits
    }

    fn hooks(&self, setting: &Setting, waits: &mut Waits) {
        let before = self.file.iter().find(|before| before.key == HOOKS);
        let before = before.and_then(|before| before.value.as_array());
        for (hook, place) in entries(setting) {
            let name = hook["name"].as_str().unwrap_or_default();
            if !self.webhooks.iter().any(|known| known == name) {
                let text =
                    format!("webhook {name} is there after a restart only, and functions that use it would fail");
                waits.refused.push(said(place, &text));
            } else if before.into_iter().flatten().any(|before| before["name"] == hook["name"] && before != hook) {
                waits.told.push(said(place, &format!("webhook {name} changes at a restart only")));
            }
        }
    }

    fn files(&self, setting: &Setting, waits: &mut Waits) {
        for (file, place) in entries(setting) {
            let path = file.as_str().unwrap_or_default();
            if !self.geoip.iter().any(|known| known.as_os_str() == path) {
                let text = format!("{path} is opened at a restart only, and functions that ask it would find nothing");
                waits.refused.push(said(place, &text));
            }
        }
    }
}

fn entries(setting: &Setting) -> impl Iterator<Item = (&Value, &Place)> {
    setting.value.as_array().into_iter().flatten().zip(&setting.entries)
}

fn said(Place { path, line, call }: &Place, text: &str) -> String {
    format!("{}:{line}: {call}: {text}", path.display())
}
