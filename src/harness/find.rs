//! Which policies and which test files a path means.
//!
//! Owns what a folder with tests looks like: `<policy>/policy.lua` and `<policy>/tests/*.toml`, or an old configuration and `tests/*.toml`
//! beside it. Reads no file.

use std::path::{Path, PathBuf};

use crate::policy::{PolicySet, legacy};

/// The folder of a policy's tests, and how a test file's name ends.
const TESTS: &str = "tests";
const ENDING: &str = "toml";

/// Where a policy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In a folder of its own.
    Folder(PathBuf),
    /// It is the report function of a configuration of the old program.
    Old(PathBuf),
}

impl Origin {
    /// Its Lua file.
    pub fn file(&self) -> PathBuf {
        match self {
            Self::Folder(folder) => PolicySet::file_in(folder),
            Self::Old(file) => file.clone(),
        }
    }

    /// The folder of its tests.
    pub fn tests(&self) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(TESTS),
            Self::Old(file) => file.with_file_name(TESTS),
        }
    }

    /// The policy's name: that of its folder, or of its file without the ending.
    fn name(&self) -> String {
        let named = match self {
            Self::Folder(folder) => whole(folder).file_name().map(ToOwned::to_owned),
            Self::Old(file) => file.file_stem().map(ToOwned::to_owned),
        };
        named.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// The same for two paths that mean the same.
fn whole(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// One policy with its test files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tested {
    /// Its name.
    pub policy: String,
    /// Where it is.
    pub origin: Origin,
    /// Sorted by name.
    pub files: Vec<PathBuf>,
}

/// All that was found.
#[derive(Debug, Clone, Default)]
pub struct Suite {
    /// In the order of the paths; policies of one folder by name.
    pub policies: Vec<Tested>,
    /// What a person should know: a file that is no test and lies among them.
    pub notes: Vec<String>,
}

impl Suite {
    /// What these paths mean: a folder of policies, one policy's folder, an old configuration, or one test file. With `named` (a person
    /// has typed them) a path without any test is an error: it was meant to have some. `configured`: `policy.legacy_config`.
    pub fn find(paths: &[PathBuf], configured: &Path, named: bool) -> Result<Self, String> {
        let mut suite = Self::default();
        for path in paths {
            if suite.add(path, configured)? == 0 && named {
                return Err(format!(
                    "{}: no tests there; a policy's tests are {TESTS}/*.{ENDING} beside its policy.lua, and those of an old configuration \
                     are {TESTS}/*.{ENDING} beside it",
                    path.display()
                ));
            }
        }
        Ok(suite)
    }

    /// The number of test files.
    pub fn files(&self) -> usize {
        self.policies.iter().map(|tested| tested.files.len()).sum()
    }

    /// Gives how many test files the path has, those that are known already included.
    fn add(&mut self, path: &Path, configured: &Path) -> Result<usize, String> {
        if is_old(path, configured) {
            return self.add_policy(Origin::Old(path.to_owned()));
        }
        if path.is_file() {
            return self.add_file(path);
        }
        if PolicySet::is_policy(path) {
            return self.add_policy(Origin::Folder(path.to_owned()));
        }
        let mut files = 0;
        for folder in PolicySet::folders_in(path).map_err(|error| error.to_string())? {
            files += self.add_policy(Origin::Folder(folder))?;
        }
        Ok(files)
    }

    fn add_file(&mut self, file: &Path) -> Result<usize, String> {
        if file.extension().is_none_or(|ending| ending != ENDING) {
            return Err(format!("{}: a test file's name ends with .{ENDING}", file.display()));
        }
        let Some(folder) = policy_of(file).filter(|folder| PolicySet::is_policy(folder)) else {
            return Err(format!(
                "{}: no policy.lua in the folder above; a test file stands in <policy>/{TESTS}/. Those of an old configuration run by its \
                 own name",
                file.display()
            ));
        };
        self.put(Origin::Folder(folder), vec![file.to_owned()]);
        Ok(1)
    }

    fn add_policy(&mut self, origin: Origin) -> Result<usize, String> {
        let tests = origin.tests();
        let mut files = Vec::new();
        if tests.is_dir() {
            let failed = |error: std::io::Error| format!("{}: {error}", tests.display());
            for entry in std::fs::read_dir(&tests).map_err(failed)? {
                let path = entry.map_err(failed)?.path();
                if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) || path.is_dir() {
                    continue;
                }
                if path.extension().is_some_and(|ending| ending == ENDING) {
                    files.push(path);
                } else {
                    // A test that never runs is worse than none.
                    self.notes.push(format!("{}: left out; a test file's name ends with .{ENDING}", path.display()));
                }
            }
        }
        files.sort();
        self.notes.sort();
        let count = files.len();
        self.put(origin, files);
        Ok(count)
    }

    /// Two paths may mean the same file: it is run once.
    fn put(&mut self, origin: Origin, files: Vec<PathBuf>) {
        let at = self.policies.iter().position(|tested| whole(&tested.origin.file()) == whole(&origin.file()));
        let at = at.unwrap_or_else(|| {
            self.policies.push(Tested { policy: origin.name(), origin, files: Vec::new() });
            self.policies.len() - 1
        });
        let known = &mut self.policies[at].files;
        for file in files {
            if known.iter().all(|other| whole(other) != whole(&file)) {
                known.push(file);
            }
        }
    }
}

/// The folder of the policy that a test file is about: `<policy>/tests/x.toml`.
pub fn policy_of(file: &Path) -> Option<PathBuf> {
    let folder = file.parent()?;
    let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    Some(here.canonicalize().ok()?.parent()?.to_owned())
}

/// Whether a path means a configuration of the old program: the one that is configured, whatever it is called, or one that is called like
/// one. The Lua in a policy's folder is none.
pub fn is_old(path: &Path, configured: &Path) -> bool {
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    path == configured || legacy::is_old(path) && !path.is_dir() && !PolicySet::is_policy(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(paths: &[PathBuf], named: bool) -> Result<Suite, String> {
        Suite::find(paths, Path::new(""), named)
    }

    fn policy(folder: &Path, name: &str, tests: &[&str]) {
        std::fs::create_dir_all(folder.join(name).join(TESTS)).unwrap();
        std::fs::write(folder.join(name).join("policy.lua"), "function report(lt) end").unwrap();
        for test in tests {
            std::fs::write(folder.join(name).join(TESTS).join(test), "").unwrap();
        }
    }

    #[test]
    fn each_sort_of_path_is_understood_and_a_file_named_twice_runs_once() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        policy(root, "b", &["two.toml", "one.toml", ".hidden.toml", "notes.yaml"]);
        policy(root, "a", &[]);
        std::fs::create_dir(root.join("lib")).unwrap();
        let suite = find(&[root.to_owned()], true).unwrap();
        let names: Vec<_> = suite.policies.iter().map(|tested| (tested.policy.as_str(), tested.files.len())).collect();
        assert_eq!(names, [("a", 0), ("b", 2)]);
        assert!(suite.policies[1].files[0].ends_with("b/tests/one.toml"));
        assert!(suite.notes.len() == 1 && suite.notes[0].contains("notes.yaml"), "{:?}", suite.notes);
        let file = root.join("b/tests/two.toml");
        let same = find(&[file.clone(), root.join("b"), file], true).unwrap();
        assert_eq!((same.policies.len(), same.files()), (1, 2));
    }

    #[test]
    fn a_path_that_was_typed_and_has_no_test_is_told() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        policy(root, "a", &[]);
        assert!(find(&[root.join("a")], true).unwrap_err().contains("no tests there"));
        assert_eq!(find(&[root.join("a")], false).unwrap().files(), 0);
        assert!(find(&[root.join("nowhere")], false).unwrap_err().contains("nowhere: no folder of policies"));
        std::fs::write(root.join("stray.toml"), "").unwrap();
        assert!(find(&[root.join("stray.toml")], true).unwrap_err().contains("<policy>/tests/"));
        assert!(find(&[root.join("a/policy.lua")], true).unwrap_err().contains("ends with .toml"));
        assert!(find(&[root.join("old.conf")], true).unwrap_err().contains("beside it"));
    }

    #[test]
    fn old_configuration_has_the_tests_beside_it_and_the_lua_of_a_policy_is_none() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        policy(root, "a", &[]);
        std::fs::create_dir(root.join(TESTS)).unwrap();
        std::fs::write(root.join("tests/x.toml"), "").unwrap();
        std::fs::write(root.join("trackalert.conf"), "").unwrap();
        let suite = find(&[root.join("trackalert.conf")], true).unwrap();
        assert_eq!((suite.policies[0].policy.as_str(), suite.files()), ("trackalert", 1));
        assert_eq!(suite.policies[0].origin, Origin::Old(root.join("trackalert.conf")));
        let none = Path::new("");
        assert!(is_old(&root.join("trackalert.lua"), none) && !is_old(&root.join("a/part.lua"), none));
        // What is configured may have any name, and lie anywhere.
        for name in ["main.cfg", "a/part.lua"] {
            let path = root.join(name);
            let suite = Suite::find(std::slice::from_ref(&path), &path, false).unwrap();
            assert_eq!(suite.policies[0].origin, Origin::Old(path));
        }
        assert!(find(&[root.join("tests/x.toml")], true).unwrap_err().contains("run by its own name"));
    }
}
