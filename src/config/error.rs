//! What is wrong with a configuration, all of it at once, each with the place to correct it.
//!
//! Owns how a mistake is said. Never holds a value of a secret.

use std::fmt;

use super::sources::Source;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Where it stands. `None`: nowhere (a value that is missing).
    pub source: Option<Source>,
    /// The setting, as `section.key`; empty where the mistake is not about one (a file that cannot be read).
    pub key: String,
    /// What is wrong and what to do.
    pub text: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = &self.source {
            write!(f, "{source}: ")?;
        }
        // `--set http.listen` and the name of an environment variable say the key already, but a file's line does not.
        if !self.key.is_empty() && !matches!(self.source, Some(Source::Set(_))) {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)
    }
}

/// All mistakes of a configuration, in the order file, environment, `--set`, then what no source names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Errors(pub Vec<Error>);

impl Errors {
    /// One mistake that is not about a setting.
    pub(super) fn one(source: Source, text: impl Into<String>) -> Self {
        Self(vec![Error { source: Some(source), key: String::new(), text: text.into() }])
    }

    /// Sorted by place.
    pub(super) fn sorted(mut self) -> Self {
        self.0.sort_by(|a, b| (a.source.is_none(), &a.source).cmp(&(b.source.is_none(), &b.source)));
        self
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => write!(f, "the configuration has a mistake:\n  {one}"),
            all => {
                write!(f, "the configuration has {} mistakes:", all.len())?;
                for error in all {
                    write!(f, "\n  {error}")?;
                }
                Ok(())
            }
        }
    }
}
