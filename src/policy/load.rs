//! Reads policies from folders and checks them, before anything runs with them.
//!
//! Owns what counts as a policy, and the errors that tell its author what is wrong: all of them at once, with file and line. Never
//! runs a handler.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::vm;

/// The largest policy file. A policy is code that somebody reads; a larger file is something else.
const MAX_FILE: u64 = 1024 * 1024;

/// The folder for shared Lua, which is no policy.
const LIB: &str = "lib";

/// The policies that the program brings with it, used where no folder is named and `./policies` does not exist.
const SHIPPED: &[(&str, &str)] = &[
    ("dormant_account", include_str!("../../policies/dormant_account/policy.lua")),
    ("new_origin", include_str!("../../policies/new_origin/policy.lua")),
    ("one_address_many_logins", include_str!("../../policies/one_address_many_logins/policy.lua")),
    ("success_after_failures", include_str!("../../policies/success_after_failures/policy.lua")),
];

/// Why policies do not load: every reason, each with its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError(Vec<String>);

impl LoadError {
    pub(super) fn one(text: impl Into<String>) -> Self {
        Self(vec![text.into()])
    }

    /// The reasons, one a line for people.
    pub fn reasons(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for LoadError {}

impl From<io::Error> for LoadError {
    fn from(error: io::Error) -> Self {
        Self::one(format!("a policy worker cannot be started: {error}"))
    }
}

/// One policy's text.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: String,
    /// What Lua calls the file in its errors.
    pub(super) file: String,
    pub(super) text: String,
}

/// Policies that were read and checked. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PolicySet {
    sources: Arc<[Source]>,
    generation: u64,
}

impl PolicySet {
    /// The policies of the folders named; where none is: of `./policies` if it exists, else the shipped ones. Checked: each file
    /// compiles, runs its top level, and has a `report`.
    pub fn resolve(paths: &[PathBuf]) -> Result<Self, LoadError> {
        if !paths.is_empty() {
            return Self::load(paths);
        }
        let here = PathBuf::from("policies");
        if here.is_dir() { Self::load(&[here]) } else { Self::shipped() }
    }

    /// The policies that the program brings with it.
    pub fn shipped() -> Result<Self, LoadError> {
        let source = |(name, text): &(&str, &str)| Source {
            name: (*name).to_owned(),
            file: format!("policies/{name}/policy.lua"),
            text: (*text).to_owned(),
        };
        Self::check(SHIPPED.iter().map(source).collect())
    }

    /// The policies of these folders, by name.
    pub fn load(paths: &[PathBuf]) -> Result<Self, LoadError> {
        let (mut sources, mut errors) = (Vec::new(), Vec::new());
        for path in paths {
            match folders(path) {
                Ok(folders) => folders.into_iter().for_each(|folder| match read(&folder) {
                    Ok(source) => sources.push(source),
                    Err(error) => errors.push(error),
                }),
                Err(error) => errors.push(format!("policy.path: {}: {error}", path.display())),
            }
        }
        sources.sort_by(|a: &Source, b| a.name.cmp(&b.name));
        for pair in sources.windows(2) {
            if pair[0].name == pair[1].name {
                errors.push(format!("{} and {}: two policies of one name; rename one folder", pair[0].file, pair[1].file));
            }
        }
        if sources.is_empty() && errors.is_empty() {
            let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            errors.push(format!("policy.path: no <name>/policy.lua in {}", paths.join(", ")));
        }
        if errors.is_empty() { Self::check(sources) } else { Err(LoadError(errors)) }
    }

    fn check(sources: Vec<Source>) -> Result<Self, LoadError> {
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        let errors: Vec<String> = sources.iter().filter_map(|source| vm::check(source).err()).collect();
        if !errors.is_empty() {
            return Err(LoadError(errors));
        }
        Ok(Self { sources: sources.into(), generation: GENERATION.fetch_add(1, Ordering::Relaxed) })
    }

    /// The policies' names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.sources.iter().map(|source| source.name.clone()).collect()
    }

    /// Rises with each load.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn sources(&self) -> &[Source] {
        &self.sources
    }
}

/// The folders in `path` that hold a policy.
fn folders(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let folder = entry?.path();
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name != LIB && !name.starts_with('.') && folder.join("policy.lua").exists() {
            folders.push(folder);
        }
    }
    Ok(folders)
}

fn read(folder: &Path) -> Result<Source, String> {
    let file = folder.join("policy.lua");
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let shown = file.display().to_string();
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
        return Err(format!("{shown}: a policy's folder is named with letters, digits, `_` and `-`"));
    }
    let size = std::fs::metadata(&file).map_err(|error| format!("{shown}: {error}"))?.len();
    if size > MAX_FILE {
        return Err(format!("{shown}: {size} bytes; a policy has at most {MAX_FILE}"));
    }
    let text = std::fs::read_to_string(&file).map_err(|error| format!("{shown}: {error}"))?;
    Ok(Source { name, file: shown, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(policies: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in policies {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("policy.lua"), text).unwrap();
        }
        folder
    }

    #[test]
    fn shipped_policies_load() {
        assert_eq!(PolicySet::shipped().unwrap().names().len(), SHIPPED.len());
    }

    #[test]
    fn all_broken_files_are_named_at_once_with_their_lines() {
        let folder = folder_with(&[
            ("fine", "function report(lt) end"),
            ("syntax", "function report(lt)\n  if then\nend"),
            ("no_hook", "local x = 1"),
            ("raises", "\nerror('at load')"),
            ("bytecode", "\u{1b}LJ\u{2}"),
        ]);
        let error = PolicySet::load(&[folder.path().to_owned()]).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.reasons().len(), 4, "{text}");
        assert!(text.contains("syntax/policy.lua:2:"), "{text}");
        assert!(text.contains("no_hook/policy.lua: defines no global function `report`"), "{text}");
        assert!(text.contains("raises/policy.lua:2: at load"), "{text}");
    }

    #[test]
    fn lib_is_no_policy_and_an_empty_folder_is_an_error() {
        let folder = folder_with(&[("lib", "return {}")]);
        let error = PolicySet::load(&[folder.path().to_owned()]).unwrap_err();
        assert!(error.to_string().contains("no <name>/policy.lua"), "{error}");
    }
}
