//! Lua that policies share: what `require` finds.
//!
//! Owns which files are modules and under which name. They are read with the policies, so that a reload exchanges all at once, and a
//! file that is changed later does not get into a machine that is replaced. Runs nothing.

use std::collections::BTreeMap;
use std::path::Path;

/// Bytes of one policy, and of one module.
const MAX_SOURCE: u64 = 1 << 20;
/// Modules of one policy, and of one `lib`.
const MAX_MODULES: usize = 256;
/// Folders in one another: `a.b.c.d`.
const MAX_DEPTH: usize = 4;
/// Bytes of a part of a name.
const MAX_PART: usize = 40;
/// The folder of a policy's tests; no module.
const TESTS: &str = "tests";

/// One file.
#[derive(Debug, Clone)]
pub(super) struct Module {
    /// What Lua calls the file, in short: long paths are cut in error messages.
    pub(super) chunk: String,
    pub(super) source: String,
    /// Where it came from, for people.
    pub(super) place: String,
}

/// The modules of one folder, by name: `a.b` is `a/b.lua`.
#[derive(Debug, Clone, Default)]
pub(super) struct Modules(BTreeMap<String, Module>);

impl Modules {
    /// All that are below a folder, which need not be there. Lua calls them `<prefix>/…`; the file `except` is none.
    pub(super) fn read(folder: &Path, prefix: &str, except: &str, problems: &mut Vec<String>) -> Self {
        let mut modules = Self::default();
        modules.read_into(folder, prefix, "", except, problems);
        if modules.0.len() > MAX_MODULES {
            problems.push(format!("{}: more than {MAX_MODULES} files of Lua", folder.display()));
        }
        modules
    }

    fn read_into(&mut self, folder: &Path, prefix: &str, within: &str, except: &str, problems: &mut Vec<String>) {
        // A lib that is not there is an empty one.
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for entry in entries.flatten() {
            let (path, file) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let at_top = within.is_empty();
            if path.is_dir() {
                if is_part(&file) && file != TESTS && within.matches('.').count() + 1 < MAX_DEPTH {
                    let (prefix, within) = (format!("{prefix}/{file}"), format!("{within}{file}."));
                    self.read_into(&path, &prefix, &within, except, problems);
                }
                continue;
            }
            // What is no name of a module (a backup of an editor, say) can be required by nobody.
            let Some(part) = file.strip_suffix(".lua").filter(|part| is_part(part)) else { continue };
            if (at_top && file == except) || self.0.len() > MAX_MODULES {
                continue;
            }
            match read_source(&path) {
                Ok(source) => {
                    let module =
                        Module { chunk: format!("{prefix}/{file}"), source, place: path.display().to_string() };
                    self.0.insert(format!("{within}{part}"), module);
                }
                Err(problem) => problems.push(problem),
            }
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Module> {
        self.0.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Module> {
        self.0.values()
    }
}

fn is_part(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    !text.is_empty() && text.len() <= MAX_PART && text.chars().all(fits)
}

/// Whether `require` may look for it at all: parts of letters, digits, `_` and `-`, with dots between them. Nothing leads out of a folder.
pub(super) fn is_name(text: &str) -> bool {
    text.split('.').all(is_part) && text.matches('.').count() < MAX_DEPTH
}

/// A file of Lua. The error begins with its path.
pub(super) fn read_source(file: &Path) -> Result<String, String> {
    let place = file.display();
    let size = std::fs::metadata(file).map_err(|error| format!("{place}: {error}"))?.len();
    if size > MAX_SOURCE {
        return Err(format!("{place}: is {size} bytes; a policy may have {MAX_SOURCE}"));
    }
    let bytes = std::fs::read(file).map_err(|error| format!("{place}: {error}"))?;
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..good].iter().filter(|byte| **byte == b'\n').count();
        format!("{place}:{line}: is not UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_by_their_names_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8]| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for name in [
            "policy.lua",
            "words.lua",
            "a/b.lua",
            "a/policy.lua",
            "a/b/c/d.lua",
            "a/b/c/d/e.lua",
            "tests/case.lua",
            ".hidden.lua",
            ".git/x.lua",
            "words.old.lua",
            "words.txt",
            "two words.lua",
        ] {
            write(name, b"return 1");
        }
        let mut problems = Vec::new();
        let modules = Modules::read(folder.path(), "p", "policy.lua", &mut problems);
        assert_eq!(modules.0.keys().collect::<Vec<_>>(), ["a.b", "a.b.c.d", "a.policy", "words"]);
        assert_eq!(modules.get("a.b.c.d").unwrap().chunk, "p/a/b/c/d.lua");
        assert!(problems.is_empty(), "{problems:?}");
        write("latin.lua", b"\n\xe9");
        write("large.lua", &vec![b' '; MAX_SOURCE as usize + 1]);
        Modules::read(folder.path(), "p", "policy.lua", &mut problems);
        problems.sort();
        assert!(
            problems[0].contains("large.lua: is 1048577 bytes") && problems[1].ends_with("latin.lua:2: is not UTF-8")
        );
        assert!(Modules::read(&folder.path().join("none"), "p", "", &mut problems).0.is_empty());
        assert_eq!(problems.len(), 2);
    }

    #[test]
    fn name_leads_nowhere_out_of_the_folder() {
        for good in ["a", "a.b", "A-1_b.c", "a.b.c.d"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a..b", "/etc/passwd", "a/b", "a.", ".a", "a b", "é", "a.b.c.d.e", &"x".repeat(41)]
        {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
