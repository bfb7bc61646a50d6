//! The ID list of an IMAP client (RFC 2971): which program it is, of which version, on which system.
//!
//! Owns the names `imapc.*` and `os.*` that come from it. Pure.

use super::text::{Found, pairs};

/// What the list says.
pub(super) fn attributes(text: &str) -> Found {
    let pairs = pairs(text);
    let get = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_ref());
    let mut found = Found::default();
    found.add("imapc.family", get("name"));
    found.version("imapc", get("version"));
    found.add("os.family", get("os"));
    found.version("os", get("os-version").or_else(|| get("os_version")));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        attributes(text).done().iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn client_and_system_are_read_from_the_lists_of_common_clients() {
        for (text, expected) in [
            (
                r#""name" "Mac OS X Mail" "version" "11.2 (3259)" "os" "Mac OS X" "os-version" "10.12.6 (16G29)" "vendor" "Apple Inc.""#,
                "imapc.family=Mac OS X Mail imapc.major=11 imapc.minor=2 os.family=Mac OS X os.major=10 os.minor=12",
            ),
            (
                r#"("name" "iPhone Mail" "version" "17F80" "os" "iOS" "os-version" "13.5.1 (17F80)")"#,
                "imapc.family=iPhone Mail imapc.major=17F80 os.family=iOS os.major=13 os.minor=5",
            ),
            (
                r#""name" "Thunderbird" "version" "128.3.0esr""#,
                "imapc.family=Thunderbird imapc.major=128 imapc.minor=3",
            ),
            ("name=K-9 Mail, version=6.802", "imapc.family=K-9 Mail imapc.major=6 imapc.minor=802"),
            (r#""vendor" "Example" "support-url" "x""#, ""),
            ("NIL", ""),
            ("nonsense", ""),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }
}
