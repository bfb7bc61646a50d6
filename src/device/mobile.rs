//! The string by which a mobile app names itself to an API: `Name/1.2 (iOS 17.1; iPhone15,2)`, or pairs.
//!
//! Owns the names `app.*` that come from it. There is no standard for these strings, so what fits neither form is a name at most. Pure.

use super::text::{Found, pairs};

/// How systems are written in such strings, and the names that they get. The longer of two that begin alike comes first.
const SYSTEMS: [(&str, &str); 11] = [
    ("iphone os", "iOS"),
    ("ipados", "iPadOS"),
    ("ios", "iOS"),
    ("android", "Android"),
    ("harmonyos", "HarmonyOS"),
    ("windows phone", "Windows Phone"),
    ("windows", "Windows"),
    ("mac os x", "Mac OS X"),
    ("macos", "macOS"),
    ("linux", "Linux"),
    ("watchos", "watchOS"),
];

/// What the string says.
pub(super) fn attributes(text: &str) -> Found {
    let mut found = Found::default();
    let pairs = pairs(text);
    if pairs.is_empty() {
        product(text, &mut found);
        return found;
    }
    let get = |names: &[&str]| {
        names.iter().find_map(|name| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_ref()))
    };
    found.add("app.name", get(&["app", "name", "app.name"]));
    found.add("app.brand", get(&["brand", "vendor", "app.brand"]));
    found.version("app", get(&["version", "app-version", "app_version", "app.version"]));
    found.version("os", get(&["os-version", "os_version", "os.version"]));
    if let Some(os) = get(&["os", "platform", "os.name"]) {
        let known = system(os, &mut found);
        if !known {
            found.add("os.family", Some(os));
        }
    }
    found.add("device.brand", get(&["device-brand", "device_brand", "manufacturer"]));
    found.add("device.family", get(&["device", "model", "device-model", "device_model"]));
    found
}

/// `Name/1.2.3 (iOS 17.1; iPhone15,2) anything`; also `Name 1.2.3` and the name alone.
fn product(text: &str, found: &mut Found) {
    let (head, comment) = text.split_once('(').unwrap_or((text, ""));
    let (name, version) = match head.split_once('/') {
        Some((name, version)) => (name, Some(version)),
        None => match head.trim_end().rsplit_once(' ') {
            Some((name, version)) if version.starts_with(|c: char| c.is_ascii_digit()) => (name, Some(version)),
            _ => (head, None),
        },
    };
    let name = name.trim();
    found.add("app.name", Some(name));
    found.add("app.brand", brand(name));
    found.version("app", version);
    let comment = comment.split_once(')').map_or(comment, |(inner, _)| inner);
    for part in comment.split(';').map(str::trim).take(16) {
        if !system(part, found) {
            found.add("device.family", Some(part));
        }
    }
}

/// `example` of `com.example.mail`: an app's id is the reversed domain of who makes it.
fn brand(name: &str) -> Option<&str> {
    let mut labels = name.split('.');
    let (top, brand, app) = (labels.next()?, labels.next()?, labels.next()?);
    let label =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let domain = label(top) && label(brand) && label(app) && top.bytes().all(|b| b.is_ascii_alphabetic());
    domain.then_some(brand)
}

/// Whether it is a known system, with or without its version; then it is noted.
fn system(text: &str, found: &mut Found) -> bool {
    let known = SYSTEMS.iter().find_map(|(written, name)| {
        let head = text.get(..written.len())?;
        let rest = text.get(written.len()..)?;
        let ends = rest.is_empty() || rest.starts_with([' ', '/', '-', '_']);
        (head.eq_ignore_ascii_case(written) && ends).then_some((*name, rest))
    });
    let Some((name, rest)) = known else { return false };
    found.add("os.family", Some(name));
    found.version("os", Some(rest.trim_start_matches([' ', '/', '-', '_'])));
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> String {
        attributes(text).done().iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn app_system_and_device_are_read_from_each_form() {
        for (text, expected) in [
            (
                "Example Mail/2.14.1 (iOS 17.1.2; iPhone15,2)",
                "app.major=2 app.minor=14 app.name=Example Mail device.family=iPhone15,2 os.family=iOS os.major=17 os.minor=1",
            ),
            (
                "com.example.mail/3 (SM-G960U; Android 10)",
                "app.brand=example app.major=3 app.name=com.example.mail device.family=SM-G960U os.family=Android os.major=10",
            ),
            (
                "MailApp/1.0 (iPhone OS 13_5; x)",
                "app.major=1 app.minor=0 app.name=MailApp device.family=x os.family=iOS os.major=13 os.minor=5",
            ),
            ("MailApp 4.2", "app.major=4 app.minor=2 app.name=MailApp"),
            ("MailApp", "app.name=MailApp"),
            (
                "name=Mail; brand=Example; version=1.2; os=Android 14; model=Pixel 8",
                "app.brand=Example app.major=1 app.minor=2 app.name=Mail device.family=Pixel 8 os.family=Android os.major=14",
            ),
            (
                r#""name" "Mail" "version" "5" "os" "SailfishOS" "os-version" "4.5""#,
                "app.major=5 app.name=Mail os.family=SailfishOS os.major=4 os.minor=5",
            ),
            ("App/1 (Androidish 3)", "app.major=1 app.name=App device.family=Androidish 3"),
            ("", ""),
            ("(((", "device.family=(("),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(text in ".*", comment in ".*") {
            let _ = attributes(&text);
            let found = attributes(&format!("App/1.2 ({comment})")).done();
            prop_assert!(found.len() <= 9 && found.iter().all(|(_, value)| !value.is_empty() && value.len() <= 128));
        }
    }
}
