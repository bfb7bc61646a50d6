//! One policy from its folder or file: found and read.
//!
//! Owns what a folder of policies looks like, and every message about one that is wrong. Neither compiles nor runs any.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::modules::{self, Module, Modules};

/// The file of a policy, in a folder of its name.
pub(super) const FILE: &str = "policy.lua";
/// Lua that the policies of one folder share; no policy.
pub(super) const LIBRARY: &str = "lib";
/// Definitions for editors; no policy.
const TYPES: &str = "types";
/// Bytes of a name: it is part of metrics, of keys in the state, and of every place in an error, which Lua cuts at 60.
const MAX_NAME: usize = 40;

/// Every problem of the policies at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct LoadError {
    /// One a line, each with the file, and the line where there is one.
    pub problems: Vec<String>,
}

impl LoadError {
    pub(super) fn one(problem: String) -> Self {
        Self { problems: vec![problem] }
    }
}

impl From<std::io::Error> for LoadError {
    fn from(error: std::io::Error) -> Self {
        Self::one(format!("a policy worker cannot be started: {error}"))
    }
}

/// One policy's source.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) source: Arc<str>,
    /// Where it came from, for people.
    pub(super) place: String,
    /// A configuration of the old program.
    pub(super) old: bool,
    /// Where it lies; `None`: in the program, or in memory.
    pub(super) folder: Option<PathBuf>,
    /// What it may `require`: of its own folder, and of the `lib` beside it.
    pub(super) modules: Arc<Modules>,
    pub(super) library: Arc<Modules>,
}

impl Policy {
    /// One that has no folder.
    pub(super) fn alone(name: &str, source: &str, place: String) -> Self {
        let (name, source) = (name.to_owned(), source.into());
        Self { name, source, place, old: false, folder: None, modules: Arc::default(), library: Arc::default() }
    }

    /// A configuration of the old program. Its name is the file's, without the ending.
    pub(super) fn read_old(file: &Path) -> Result<Self, String> {
        let place = file.display().to_string();
        let name = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let policy = Self::alone(&check_name(&name, &place)?, &modules::read_source(file)?, place);
        Ok(Self { old: true, ..policy })
    }

    /// What Lua calls the file, in short: long paths are cut in error messages.
    pub(super) fn chunk(&self) -> String {
        if !self.old {
            return format!("{}/{FILE}", self.name);
        }
        let name = Path::new(&self.place).file_name();
        name.map_or_else(|| self.place.clone(), |name| name.to_string_lossy().into_owned())
    }

    /// A Lua error with the whole path in place of the short name.
    pub(super) fn located(&self, error: &str) -> String {
        let own = [(self.chunk(), self.place.as_str())];
        let modules = self.modules.iter().chain(self.library.iter());
        let files = own.into_iter().chain(modules.map(|module| (module.chunk.clone(), module.place.as_str())));
        let mut found = files.filter_map(|(chunk, place)| Some((error.strip_prefix(&chunk)?, place)));
        match found.find(|(rest, _)| rest.starts_with(':')) {
            Some((rest, place)) => format!("{place}{rest}"),
            None => format!("{}: {error}", self.place),
        }
    }

    /// What `require` of this name finds. The error says where it was looked for.
    pub(super) fn module(&self, name: &str) -> Result<&Module, String> {
        if !modules::is_name(name) {
            return Err(
                "is no name of a module: letters, digits, _ and -, with dots between up to four of them".to_owned()
            );
        }
        let found = self.modules.get(name).or_else(|| self.library.get(name));
        found.ok_or_else(|| {
            let file = format!("{}.lua", name.replace('.', "/"));
            match &self.folder {
                Some(_) => {
                    format!("there was neither {}/{file} nor {LIBRARY}/{file} when the policies were loaded", self.name)
                }
                None => "this policy has no folder to load it from".to_owned(),
            }
        })
    }
}

/// The folders that `policy.path` means. `None`: the shipped policies.
pub(super) fn folders(paths: &[PathBuf]) -> Option<Vec<PathBuf>> {
    let local = PathBuf::from("./policies");
    if !paths.is_empty() {
        return Some(paths.to_vec());
    }
    local.is_dir().then(|| vec![local])
}

pub(super) fn read_folder(path: &Path, found: &mut BTreeMap<String, Policy>, problems: &mut Vec<String>) {
    let library = Arc::new(Modules::read(&path.join(LIBRARY), LIBRARY, "", problems));
    for folder in subfolders(path, problems) {
        let name = name_of(&folder);
        match read_policy(&folder, &name) {
            Ok(mut policy) => {
                policy.modules = Arc::new(Modules::read(&folder, &name, FILE, problems));
                policy.library = Arc::clone(&library);
                if let Some(other) = found.get(&name) {
                    problems.push(format!("{}: the name {name} is taken by {}", policy.place, other.place));
                } else {
                    found.insert(name, policy);
                }
            }
            Err(problem) => problems.push(problem),
        }
    }
}

pub(super) fn name_of(folder: &Path) -> String {
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The folders in a folder that should be policies.
pub(super) fn subfolders(path: &Path, problems: &mut Vec<String>) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => {
            problems.push(format!("{}: no folder of policies: {error}", path.display()));
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) => found.push(entry.path()),
            Err(error) => problems.push(format!("{}: {error}", path.display())),
        }
    }
    found.retain(|folder| {
        let name = name_of(folder);
        !name.starts_with('.') && ![LIBRARY, TYPES].contains(&name.as_str()) && folder.is_dir()
    });
    found
}

pub(super) fn read_policy(folder: &Path, name: &str) -> Result<Policy, String> {
    let file = folder.join(FILE);
    let place = file.display().to_string();
    let (name, source) = (check_name(name, &place)?, modules::read_source(&file)?.into());
    let folder = Some(folder.to_owned());
    Ok(Policy { name, source, place, old: false, folder, modules: Arc::default(), library: Arc::default() })
}

fn check_name(name: &str, place: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fits) {
        return Err(format!("{place}: a policy's name is of a-z, A-Z, 0-9, _ and -, at most {MAX_NAME} of them"));
    }
    Ok(name.to_owned())
}
