//! The file of the regexes for User-Agents: where it is, and whether it is one.
//!
//! Owns the places where packages put it and every message about it. Never downloads one.

use std::path::{Path, PathBuf};

use super::http::{Compiled, compile};

/// Where Debian's package `uap-core` and npm's of the same name put the file, the first that is there first.
const USUAL: &[&str] = &[
    "/usr/share/uap-core/regexes.yaml",
    "/usr/share/nodejs/uap-core/regexes.yaml",
    "/usr/lib/node_modules/uap-core/regexes.yaml",
    "/usr/local/lib/node_modules/uap-core/regexes.yaml",
    "/usr/local/share/uap-core/regexes.yaml",
];

/// Bytes of a file; the real one has 0.2 million.
const LARGEST: u64 = 8 << 20;

/// Why the regexes cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegexesError {
    /// There is no such file. User-Agents are not parsed then, and the rest works.
    #[error(
        "detect.device_regexes: {there}; User-Agents are not parsed, so that policies see no device_attrs of protocol http where the \
         sender gives none. Install the package uap-core, or name the file regexes.yaml"
    )]
    Absent {
        /// What was looked for.
        there: String,
    },
    /// It may not be read, or is no file.
    #[error("detect.device_regexes: {}: {said}; name a regexes.yaml of uap-core that this user may read", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        said: String,
    },
    /// It is not what it should be.
    #[error("detect.device_regexes: {}: {said}; install the file of uap-core again", .path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where in it.
        said: String,
    },
}

impl RegexesError {
    /// It could not be read, which may be otherwise at the next try.
    pub(super) fn is_unreadable(&self) -> bool {
        matches!(self, Self::Unreadable { .. })
    }

    /// There is no file, which is no mistake.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent { .. })
    }
}

/// The file that the setting means: the one that it names, or else the first of the usual ones that is there.
pub(super) fn find(named: &Path) -> PathBuf {
    if !named.as_os_str().is_empty() {
        return named.to_owned();
    }
    let usual = || USUAL.iter().map(Path::new);
    usual().find(|path| path.exists()).or_else(|| usual().next()).unwrap_or(named).to_owned()
}

/// Reads a file and compiles all of it. Blocks, for a tenth of a second.
pub(super) fn read(named: &Path, path: &Path) -> Result<Compiled, RegexesError> {
    let unreadable = |said: String| RegexesError::Unreadable { path: path.to_owned(), said };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let there = if named.as_os_str().is_empty() {
                format!("is not set, and there is none of {}", USUAL.join(", "))
            } else {
                format!("{}: there is no such file", named.display())
            };
            return Err(RegexesError::Absent { there });
        }
        Err(error) => return Err(unreadable(error.to_string())),
        Ok(about) if !about.is_file() => return Err(unreadable("is no file".to_owned())),
        Ok(about) if about.len() > LARGEST => {
            return Err(unreadable(format!("has {} bytes; {LARGEST} are the most", about.len())));
        }
        Ok(_) => {}
    }
    let wrong = |said: String| RegexesError::Wrong { path: path.to_owned(), said };
    let bytes = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| wrong("is not UTF-8".to_owned()))?;
    // The library may have its own opinion of a regex, and a file must never end the process.
    let compiled = std::panic::catch_unwind(|| compile(&text));
    compiled.unwrap_or_else(|_| Err("a fault of this program while it was compiled".to_owned())).map_err(wrong)
}
