//! The form of a test file: TOML, every key known, every mistake with its line.
//!
//! Owns the names that a test file may use. What they mean is in [`super::reports`], [`super::places`], [`super::answers`] and
//! [`super::expected`]. Reads no other file and runs nothing.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use toml::{Spanned, Table, Value};

use super::alerts::AlertText;
use super::answers::AnswerText;
use super::calls::{CallText, HookText};
use super::expected::CountText;
use super::places::Place;

/// Bytes of one test file.
const MAX_FILE: u64 = 1 << 20;

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TestFile {
    pub(super) start: Option<Spanned<Value>>,
    pub(super) defaults: Option<Spanned<Table>>,
    #[serde(default)]
    pub(super) geo: BTreeMap<String, Spanned<Place>>,
    #[serde(default)]
    pub(super) http: Vec<Spanned<AnswerText>>,
    #[serde(default, rename = "case")]
    pub(super) cases: Vec<CaseText>,
}

/// One `[[case]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CaseText {
    pub(super) name: Spanned<String>,
    pub(super) start: Option<Spanned<Value>>,
    pub(super) defaults: Option<Spanned<Table>>,
    #[serde(default)]
    pub(super) geo: BTreeMap<String, Spanned<Place>>,
    #[serde(default)]
    pub(super) http: Vec<Spanned<AnswerText>>,
    #[serde(default)]
    pub(super) history: Vec<Spanned<Table>>,
    #[serde(default)]
    pub(super) state: Table,
    #[serde(default)]
    pub(super) reports: Vec<Spanned<Table>>,
    pub(super) alerts: Option<Vec<Spanned<AlertText>>>,
    pub(super) calls: Option<Vec<Spanned<CallText>>>,
    pub(super) webhooks: Option<Vec<Spanned<HookText>>>,
    #[serde(default)]
    pub(super) state_after: Table,
    #[serde(default)]
    pub(super) state_without: Vec<String>,
    #[serde(default)]
    pub(super) counts_after: Vec<Spanned<CountText>>,
    pub(super) searches: Option<usize>,
}

/// Something wrong in a test file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) line: Option<usize>,
    pub(super) text: String,
}

/// The text of a file, to tell the line of a place in it.
pub(super) struct Lines<'a>(pub(super) &'a str);

impl Lines<'_> {
    /// The line, from 1, on which this part of the text begins.
    pub(super) fn of(&self, span: Range<usize>) -> usize {
        let before = &self.0.as_bytes()[..span.start.min(self.0.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    /// A mistake there.
    pub(super) fn mistake(&self, span: Range<usize>, text: impl Into<String>) -> Mistake {
        Mistake { line: Some(self.of(span)), text: text.into() }
    }
}

/// Reads the file's text.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_FILE {
        return Err(format!("is {size} bytes; a test file may have {MAX_FILE}"));
    }
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}

/// What the text says.
pub(super) fn parse(text: &str) -> Result<TestFile, Mistake> {
    toml::from_str(text).map_err(|error| {
        // One line: the place is told by the line number.
        let said = error.message().lines().map(str::trim).collect::<Vec<_>>().join("; ");
        Mistake { line: error.span().map(|span| Lines(text).of(span)), text: said }
    })
}

/// The nearest of the known names, as a question behind a message.
pub(super) fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = known.into_iter().map(|known| (strsim::jaro_winkler(name, known), known));
    let best = near.filter(|(likeness, _)| *likeness > 0.75).max_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, known)| format!("; did you mean {known}?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_and_broken_toml_are_told_with_their_line() {
        for (text, line, expected) in [
            ("[[case]]\nname = \"x\"\nalets = []\n", 3, "unknown field `alets`"),
            ("\n[[cse]]\nname = \"x\"\n", 2, "unknown field `cse`"),
            (
                "[[case]]\nname = \"x\"\nalerts = [\n  { kind = \"k\", sevrity = \"low\" },\n]\n",
                4,
                "unknown field `sevrity`",
            ),
            ("[[case]]\nname = \"x\"\nalerts = [ { kind = \"k\", severity = \"lo\" } ]\n", 3, "unknown variant `lo`"),
            ("[[case]]\nname = 5\n", 2, "invalid type"),
            ("[geo.\"192.0.2.1\"]\ncuntry = \"DE\"\n", 2, "unknown field `cuntry`"),
            ("[[case]\nname = \"x\"\n", 1, ""),
            (
                "[[case]]\nname = \"x\"\nalerts = [ { kind = \"k\", title = { match = \"x\" } } ]\n",
                3,
                "unknown field `match`",
            ),
            ("[[case]]\nname = \"x\"\nalerts = [ { kind = \"k\", title = { matches = \"(\" } } ]\n", 3, "matches: "),
            ("[[case]]\nname = \"x\"\nalerts = [ { severity = \"low\" } ]\n", 3, "missing field `kind`"),
        ] {
            let mistake = parse(text).unwrap_err();
            assert_eq!(mistake.line, Some(line), "{text}: {mistake:?}");
            assert!(mistake.text.contains(expected), "{text}: {mistake:?}");
        }
    }

    #[test]
    fn near_name_is_suggested_and_a_far_one_is_not() {
        assert_eq!(did_you_mean("remot", ["login", "remote"]), "; did you mean remote?");
        assert_eq!(did_you_mean("colour", ["login", "remote"]), "");
    }
}
