//! The policies that are in use together, checked.
//!
//! Owns which policies there are, their order and their generation, and what the configuration of the old program among them says. How one
//! is found and read is in `load`. Runs no handler.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::load::{FILE, LIBRARY, LoadError, Policy, folders, name_of, read_folder, read_policy, subfolders};
use super::modules::Modules;
use super::networks::Networks;
use super::top_level::LOAD_WALL;
use super::vm::Vm;
use super::{Settings, legacy};
use crate::schedule::cron::Scheduled;

/// The policies in the program, as name and source.
const SHIPPED: &[(&str, &str)] = &[
    ("dormant_account", include_str!("../../policies/dormant_account/policy.lua")),
    ("new_origin", include_str!("../../policies/new_origin/policy.lua")),
    ("one_address_many_logins", include_str!("../../policies/one_address_many_logins/policy.lua")),
    ("success_after_failures", include_str!("../../policies/success_after_failures/policy.lua")),
];

/// Policies of one set.
const MAX_POLICIES: usize = 256;

/// Checked policies, sorted by name. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct PolicySet {
    policies: Arc<[Policy]>,
    scheduled: Arc<[Scheduled]>,
    /// What a configuration of the old program says.
    settings: Arc<[legacy::Setting]>,
    networks: Arc<Networks>,
    generation: u64,
}

impl PolicySet {
    /// Every `<name>/policy.lua` in these folders, with the modules beside it and in the folder's `lib`. Hidden folders are left out. All
    /// problems are reported at once.
    pub fn load(paths: &[PathBuf]) -> Result<Self, LoadError> {
        let mut found = BTreeMap::new();
        let mut problems = Vec::new();
        for path in paths {
            read_folder(path, &mut found, &mut problems);
        }
        if found.len() > MAX_POLICIES {
            problems.push(format!("{} policies are more than the {MAX_POLICIES} that a set may have", found.len()));
        }
        let set = Self::of(found.into_values().collect());
        // What could be read is checked even where something could not: one run shows every problem.
        if let Err(error) = set.check() {
            problems.extend(error.problems);
        }
        if set.is_empty() && problems.is_empty() {
            let paths = paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
            tracing::warn!(paths, "no policies found: reports are stored and nothing is detected");
        }
        if problems.is_empty() { Ok(set) } else { Err(LoadError { problems }) }
    }

    /// The policies that are in the program.
    pub fn shipped() -> Self {
        let policy = |(name, source): &(&str, &str)| Policy::alone(name, source, format!("shipped policy {name}"));
        Self::of(SHIPPED.iter().map(policy).collect())
    }

    /// Writes the shipped policies into a folder, each as `<name>/policy.lua`.
    pub fn write_shipped(folder: &Path) -> std::io::Result<()> {
        for (name, source) in SHIPPED {
            let folder = folder.join(name);
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join(FILE), source)?;
        }
        Ok(())
    }

    /// What the settings mean: the folders of `policy.path`; where it is empty `./policies` if that exists, else the shipped policies;
    /// and the one that `policy.legacy_config` is.
    pub fn resolve(settings: &Settings) -> Result<Self, LoadError> {
        let set = match folders(&settings.path) {
            Some(folders) => Self::load(&folders)?,
            None => Self::shipped(),
        };
        let set = match settings.legacy_config.as_os_str().is_empty() {
            true => set,
            false => set.with_old(&settings.legacy_config)?,
        };
        set.check().map(|()| set)
    }

    /// The one policy in this folder.
    pub fn load_one(folder: &Path) -> Result<Self, LoadError> {
        let whole = folder
            .canonicalize()
            .map_err(|error| LoadError::one(format!("{}: no folder of a policy: {error}", folder.display())))?;
        let (name, mut problems) = (name_of(&whole), Vec::new());
        let mut policy = read_policy(folder, &name).map_err(LoadError::one)?;
        policy.modules = Arc::new(Modules::read(folder, &name, FILE, &mut problems));
        let library = whole.parent().map(|above| above.join(LIBRARY)).unwrap_or_default();
        policy.library = Arc::new(Modules::read(&library, LIBRARY, "", &mut problems));
        if !problems.is_empty() {
            return Err(LoadError { problems });
        }
        let set = Self::of(vec![policy]);
        set.check().map(|()| set)
    }

    /// The one policy that a configuration of the old program is.
    pub fn load_old(file: &Path) -> Result<Self, LoadError> {
        let set = Self::default().with_old(file)?;
        set.check().map(|()| set)
    }

    /// The folders of policies in a folder, sorted: every one but `lib` and the hidden ones.
    pub fn folders_in(path: &Path) -> Result<Vec<PathBuf>, LoadError> {
        let mut problems = Vec::new();
        let mut folders = subfolders(path, &mut problems);
        folders.sort();
        if problems.is_empty() { Ok(folders) } else { Err(LoadError { problems }) }
    }

    /// The folders that the setting `policy.path` means. `None`: the shipped policies.
    pub fn folders(paths: &[PathBuf]) -> Option<Vec<PathBuf>> {
        folders(paths)
    }

    /// Whether this folder is a policy's, and not one of policies.
    pub fn is_policy(folder: &Path) -> bool {
        Self::file_in(folder).is_file()
    }

    /// The file of the policy whose folder this is.
    pub fn file_in(folder: &Path) -> PathBuf {
        folder.join(FILE)
    }

    /// An error of a policy of this set, with the path of its file in place of the short name that Lua knows.
    pub fn located(&self, policy: usize, error: &str) -> String {
        self.policies.get(policy).map_or_else(|| error.to_owned(), |policy| policy.located(error))
    }

    fn with_old(&self, file: &Path) -> Result<Self, LoadError> {
        let old = Policy::read_old(file).map_err(LoadError::one)?;
        if let Some(taken) = self.policies.iter().find(|policy| policy.name == old.name) {
            return Err(LoadError::one(format!("{}: the name {} is taken by {}", old.place, old.name, taken.place)));
        }
        let legacy::OldConfig { scheduled, settings, .. } = legacy::read(file)?;
        let (scheduled, settings) = (scheduled.into(), settings.into());
        Ok(Self { scheduled, settings, ..Self::of(self.policies.iter().cloned().chain([old]).collect()) })
    }

    /// Where [`PolicySet::resolve`] takes them from, for people.
    pub fn place(settings: &Settings) -> String {
        let mut places = match folders(&settings.path) {
            Some(folders) => folders.iter().map(|path| path.display().to_string()).collect(),
            None => vec!["shipped".to_owned()],
        };
        let old = &settings.legacy_config;
        places.extend((!old.as_os_str().is_empty()).then(|| old.display().to_string()));
        places.join(", ")
    }

    /// One policy from memory, for tests and benchmarks. It is not checked before a machine is built.
    pub fn from_sources<'a>(sources: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let policy = |(name, source): (&str, &str)| Policy::alone(name, source, format!("{name}/{FILE}"));
        Self::of(sources.into_iter().map(policy).collect())
    }

    fn of(mut policies: Vec<Policy>) -> Self {
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
        Self { policies: policies.into(), generation, ..Self::default() }
    }

    /// Loads every policy into a machine of its own and throws it away. Blocks for some milliseconds.
    pub fn check(&self) -> Result<(), LoadError> {
        Vm::scratch(self)
    }

    /// The names, by index.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.policies.iter().map(|policy| policy.name.as_str())
    }

    /// How long all their top levels may take together in a new machine, the old configuration's own included.
    pub fn load_limit(&self) -> Duration {
        LOAD_WALL * u32::try_from(self.len() + 1).unwrap_or(u32::MAX)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.policies.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Larger for each set made in this process: which of two is the newer.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The background functions, and when each runs.
    pub fn scheduled(&self) -> &Arc<[Scheduled]> {
        &self.scheduled
    }

    /// The counters that the configuration of the old program adds to those of `policy.custom_stats`.
    pub fn custom_stats(&self) -> impl Iterator<Item = &str> {
        let stats = self.settings.iter().find(|setting| setting.key == legacy::STATS);
        stats.and_then(|stats| stats.value.as_array()).into_iter().flatten().filter_map(serde_json::Value::as_str)
    }

    /// Whether the functions of the set find what they need in a program where this is in force. Gives what of the configuration of the
    /// old program waits for a restart; the error says what they would miss.
    pub fn against(&self, in_force: &legacy::InForce) -> Result<Vec<String>, LoadError> {
        let waits = in_force.against(&self.settings);
        let old = self.policies.iter().find(|policy| policy.old);
        let located = |said: Vec<String>| -> Vec<String> {
            said.into_iter().map(|said| old.map_or_else(|| said.clone(), |old| old.located(&said))).collect()
        };
        let problems = located(waits.refused);
        if problems.is_empty() { Ok(located(waits.told)) } else { Err(LoadError { problems }) }
    }

    pub(super) fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// The files of networks that the policies have named.
    pub fn networks(&self) -> &Arc<Networks> {
        &self.networks
    }
}
