//! What all protocols share: attributes as they are collected, versions, and lists of pairs.
//!
//! Owns the bounds of what a text can become. Pure.

use std::borrow::Cow;
use std::sync::Arc;

/// A longer value is cut: it goes into every document of the device.
const LONGEST: usize = 128;
/// Pairs that are read of a list; RFC 2971 allows 30.
const MOST_PAIRS: usize = 32;

/// The attributes of one device while they are collected.
#[derive(Debug, Default)]
pub(super) struct Found(Vec<(String, String)>);

impl Found {
    /// Notes a value; one that is empty or not there says nothing, and the first of a key stays.
    pub(super) fn add(&mut self, key: &str, value: Option<&str>) {
        let value = value.map(str::trim).filter(|value| !value.is_empty());
        if let Some(value) = value
            && !self.0.iter().any(|(known, _)| known == key)
        {
            self.0.push((key.to_owned(), value[..value.floor_char_boundary(LONGEST)].to_owned()));
        }
    }

    /// Notes the first two parts of a version as `WHAT.major` and `WHAT.minor`: 13 and 5 of "13.5.1 (17F80)".
    pub(super) fn version(&mut self, what: &str, version: Option<&str>) {
        let version = version.unwrap_or_default().trim_start();
        let end = version.find(|c: char| c.is_whitespace() || "(),;".contains(c)).unwrap_or(version.len());
        let mut parts = version[..end].split(['.', '_']);
        let major = parts.next().filter(|part| !part.is_empty());
        self.add(&format!("{what}.major"), major);
        // A minor without a major would pass for one of another version.
        self.add(&format!("{what}.minor"), major.and_then(|_| parts.next()));
    }

    /// Nothing was found.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sorted by key, as those of a report are.
    pub(super) fn done(mut self) -> Arc<[(String, String)]> {
        self.0.sort();
        self.0.into()
    }
}

/// The pairs of an IMAP ID list, `("name" "Mail" "version" "1.2")` with or without the brackets, or of `name=Mail, version=1.2`.
/// Keys are lower case. Empty where the text is neither.
pub(super) fn pairs(text: &str) -> Vec<(String, Cow<'_, str>)> {
    let text = text.trim();
    let inner = text.strip_prefix('(').map_or(text, |rest| rest.strip_suffix(')').unwrap_or(rest));
    if inner.trim_start().starts_with('"') { quoted(inner) } else { equated(inner) }
}

fn quoted(text: &str) -> Vec<(String, Cow<'_, str>)> {
    let mut rest = text;
    let mut pairs = Vec::new();
    while pairs.len() < MOST_PAIRS {
        let Some((key, after)) = token(rest) else { break };
        let Some((value, after)) = token(after) else { break };
        rest = after;
        // NIL: the client has no value for it.
        if let (Some(key), Some(value)) = (key, value) {
            pairs.push((key.to_ascii_lowercase(), value));
        }
    }
    pairs
}

/// The next string of a list; `None` in it stands for NIL. Also gives what is behind it.
fn token(text: &str) -> Option<(Option<Cow<'_, str>>, &str)> {
    let text = text.trim_start();
    let Some(inner) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        let value = Some(Cow::Borrowed(word)).filter(|word| !word.eq_ignore_ascii_case("nil"));
        return (!word.is_empty()).then_some((value, rest));
    };
    let mut plain = String::new();
    let mut from = 0;
    let mut bytes = inner.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' if plain.is_empty() && from == 0 => {
                return Some((Some(Cow::Borrowed(&inner[..at])), &inner[at + 1..]));
            }
            b'"' => {
                plain.push_str(&inner[from..at]);
                return Some((Some(Cow::Owned(plain)), &inner[at + 1..]));
            }
            b'\\' => {
                plain.push_str(&inner[from..at]);
                // Only a quote and a backslash are ever quoted; whatever it is, it stands for itself.
                from = at + 1;
                bytes.next();
            }
            _ => {}
        }
    }
    // Cut off: what there is of it.
    plain.push_str(&inner[from.min(inner.len())..]);
    Some((Some(Cow::Owned(plain)), ""))
}

fn equated(text: &str) -> Vec<(String, Cow<'_, str>)> {
    let parts = text.split([',', ';', '&']).filter_map(|part| part.split_once('='));
    let word = |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    parts
        .map(|(key, value)| (key.trim().to_ascii_lowercase(), Cow::Borrowed(value.trim().trim_matches('"'))))
        .filter(|(key, _)| word(key))
        .take(MOST_PAIRS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> String {
        pairs(text).iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn lists_are_read_in_each_of_their_spellings() {
        for (text, expected) in [
            (r#""name" "Mail" "VERSION" "1.2""#, "name=Mail|version=1.2"),
            (r#"("name" "Mail" "os" NIL "vendor" "Apple \"Inc\"\\")"#, r#"name=Mail|vendor=Apple "Inc"\"#),
            (r#" ( "name" "" ) "#, "name="),
            (r#""a\"b" "c" x y "cut o"#, r#"a"b=c|x=y"#),
            (r#""name" "cut o"#, "name=cut o"),
            (r#""name" "cut \"#, "name=cut "),
            ("name=Mail, version=1.2;os=\"Mac OS\"&x=", "name=Mail|version=1.2|os=Mac OS|x="),
            ("Mozilla/5.0 (x; y)", ""),
            ("no pair at all", ""),
            ("two words=1", ""),
            ("", ""),
            ("\"", ""),
            ("()", ""),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
        assert_eq!(pairs(&"\"a\" \"b\" ".repeat(100)).len(), MOST_PAIRS);
        assert_eq!(pairs(&"a=b,".repeat(100)).len(), MOST_PAIRS);
    }

    #[test]
    fn versions_give_two_parts_and_no_more() {
        for (text, major, minor) in [
            ("13.5.1 (17F80)", Some("13"), Some("5")),
            ("10_15_7", Some("10"), Some("15")),
            ("17F80", Some("17F80"), None),
            (" 91", Some("91"), None),
            ("9.", Some("9"), None),
            ("(1.2)", None, None),
            (".5", None, None),
            ("", None, None),
        ] {
            let mut found = Found::default();
            found.version("os", Some(text));
            let all = found.done();
            let get = |key: &str| all.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
            assert_eq!((get("os.major"), get("os.minor")), (major, minor), "{text}");
        }
    }

    #[test]
    fn first_value_of_a_key_stays_and_long_ones_are_cut() {
        let mut found = Found::default();
        found.add("b", Some("1"));
        found.add("b", Some("2"));
        found.add("c", Some(" "));
        found.add("a", Some(&"é".repeat(200)));
        let all = found.done();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].0.as_str(), all[0].1.len()), ("a", LONGEST));
        assert_eq!(all[1], ("b".to_owned(), "1".to_owned()));
    }

    proptest! {
        #[test]
        fn no_text_breaks_it_and_what_was_quoted_comes_back(text in ".*", key in "[a-z]{1,9}", value in "[^\u{0}]{0,40}") {
            let _ = pairs(&text);
            let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            let list = format!("{} {}", quote(&key), quote(&value));
            prop_assert_eq!(pairs(&list), [(key, Cow::Borrowed(value.as_str()))]);
        }
    }
}
