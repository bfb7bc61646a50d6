//! What an old configuration brings into its tests: the webhooks and counters that it names, and its GeoIP files.
//!
//! Owns which of its settings a report function feels. The others (listeners, workers, outbound) mean nothing in a test.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::Settings;
use crate::policy::{LoadError, PolicySet, legacy};

/// What a policy finds besides its own file.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    /// The names that `runCustomWebHook` takes.
    pub(super) webhooks: Arc<[String]>,
    /// The names that `incCustomStat` takes.
    pub(super) stats: Arc<[String]>,
    /// The files that GeoIP is asked for by name.
    pub(super) geoip: Arc<[PathBuf]>,
}

/// Runs the file, as the program does at its start.
pub(super) fn load(file: &Path, settings: &Settings) -> Result<(PolicySet, Found), LoadError> {
    let config = legacy::read(file)?;
    if !config.reports {
        let problem =
            format!("{}: sets no function for reports (setReport), so there is nothing to test", file.display());
        return Err(LoadError { problems: vec![problem] });
    }
    let entries = |key: &str| {
        let setting = config.settings.iter().find(|setting| setting.key == key);
        setting.and_then(|setting| setting.value.as_array()).cloned().unwrap_or_default()
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let hooks = entries("notify.custom_webhooks");
    let hooks = hooks.iter().map(|hook| text(&hook["name"]));
    let stats = entries("policy.custom_stats");
    let geoip = entries("geoip.files");
    let found = Found {
        webhooks: settings.custom_webhooks.iter().cloned().chain(hooks).collect(),
        stats: settings.policy.custom_stats.iter().cloned().chain(stats.iter().map(text)).collect(),
        geoip: geoip.iter().map(|file| PathBuf::from(text(file))).collect(),
    };
    Ok((PolicySet::load_old(file)?, found))
}
