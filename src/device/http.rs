//! A browser's User-Agent: which browser, system and device it is, by the regexes of uap-core.
//!
//! Owns the names `browser.*`, `os.*` and `device.*` that come from it, and what a file of regexes must be. Pure.

use serde::de::DeserializeOwned;
use ua_parser::{Extractor, Regexes, device, os, user_agent};

use super::text::Found;

/// The compiled regexes of a file.
pub(super) struct Compiled {
    all: Extractor<'static>,
    /// How many there are.
    pub(super) count: usize,
}

/// Compiles the text of a `regexes.yaml`. An error says which regex is wrong. Takes a tenth of a second and
/// 26 MB for the 1,162 of version 0.16.
pub(super) fn compile(text: &str) -> Result<Compiled, String> {
    let Regexes { user_agent_parsers, os_parsers, device_parsers } = yaml::<Regexes<'static>>(text)?;
    let count = user_agent_parsers.len() + os_parsers.len() + device_parsers.len();
    let mut ua = user_agent::Builder::new();
    for (at, parser) in user_agent_parsers.into_iter().enumerate() {
        let regex = parser.regex.clone();
        ua = ua.push(parser).map_err(|error| wrong("user_agent_parsers", at, &regex, &error))?;
    }
    let mut os = os::Builder::new();
    for (at, parser) in os_parsers.into_iter().enumerate() {
        let regex = parser.regex.clone();
        os = os.push(parser).map_err(|error| wrong("os_parsers", at, &regex, &error))?;
    }
    let mut dev = device::Builder::new();
    for (at, parser) in device_parsers.into_iter().enumerate() {
        let regex = parser.regex.clone();
        dev = dev.push(parser).map_err(|error| wrong("device_parsers", at, &regex, &error))?;
    }
    let failed = |error: ua_parser::BuildError| format!("the regexes cannot be used together: {error}");
    let all = Extractor {
        ua: ua.build().map_err(failed)?,
        os: os.build().map_err(failed)?,
        dev: dev.build().map_err(failed)?,
    };
    Ok(Compiled { all, count })
}

fn yaml<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| {
        let said = error.to_string();
        let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it cannot be read").trim().to_owned();
        format!("not a regexes.yaml of uap-core: {line}")
    })
}

fn wrong(list: &str, at: usize, regex: &str, error: &impl std::fmt::Display) -> String {
    let cut = |text: &str| text[..text.floor_char_boundary(200)].replace('\n', " ");
    format!("{list}, number {}: the regex {} is wrong: {}", at + 1, cut(regex), cut(&error.to_string()))
}

/// What the regexes find in a User-Agent. What none of them knows is left out.
pub(super) fn attributes(regexes: &Compiled, text: &str) -> Found {
    // What the regexes themselves call "none of these".
    const OTHER: &str = "Other";
    let (browser, os, device) = regexes.all.extract(text);
    let mut found = Found::default();
    if let Some(browser) = browser.filter(|browser| browser.family != OTHER) {
        found.add("browser.family", Some(&browser.family));
        found.add("browser.major", browser.major);
        found.add("browser.minor", browser.minor);
    }
    if let Some(os) = os.filter(|os| os.os != OTHER) {
        found.add("os.family", Some(&os.os));
        found.add("os.major", os.major.as_deref());
        found.add("os.minor", os.minor.as_deref());
    }
    if let Some(device) = device.filter(|device| device.device != OTHER) {
        found.add("device.family", Some(&device.device));
        found.add("device.brand", device.brand.as_deref());
        found.add("device.model", device.model.as_deref());
    }
    found
}

/// A small file of regexes, for the tests of this folder.
#[cfg(test)]
pub(super) const SMALL: &str = r"
user_agent_parsers:
  - regex: '(Firefox)/(\d+)\.(\d+)'
  - regex: 'Rest(less)'
    family_replacement: 'Other'
os_parsers:
  - regex: '(Android) (\d+)'
  - regex: 'Mac OS X (\d+)[_.](\d+)'
    os_replacement: 'Mac OS X'
    os_v1_replacement: '$1'
    os_v2_replacement: '$2'
device_parsers:
  - regex: '; (SM-\w+)'
    regex_flag: 'i'
    device_replacement: 'Samsung $1'
    brand_replacement: 'Samsung'
    model_replacement: '$1'
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browser_system_and_device_are_read_and_what_is_unknown_is_left_out() {
        let regexes = compile(SMALL).unwrap();
        assert_eq!(regexes.count, 5);
        let shown = |text: &str| {
            let all = attributes(&regexes, text).done();
            all.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
        };
        for (text, expected) in [
            (
                "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15) Firefox/68.0",
                "browser.family=Firefox browser.major=68 browser.minor=0 os.family=Mac OS X os.major=10 os.minor=15",
            ),
            (
                "x (Linux; Android 10; sm-G960U)",
                "device.brand=Samsung device.family=Samsung sm-G960U device.model=sm-G960U os.family=Android os.major=10",
            ),
            ("Restless", ""),
            ("curl/8", ""),
            ("", ""),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn each_way_a_file_can_be_wrong_is_said_in_one_line() {
        let said = |text: &str| {
            let error = compile(text).map(|_| ()).unwrap_err();
            assert!(!error.contains('\n') && error.len() < 700, "{error}");
            error
        };
        assert!(said("").contains("not a regexes.yaml"), "{}", said(""));
        assert!(said("user_agent_parsers: [").contains("not a regexes.yaml"));
        assert!(said("a: 1").contains("not a regexes.yaml"));
        assert!(said("<html>please log in</html>").contains("not a regexes.yaml"));
        let broken = SMALL.replace("(Android) (", "(Android (");
        assert!(said(&broken).contains("os_parsers, number 1: the regex (Android ("), "{}", said(&broken));
        let huge = SMALL.replace("'Rest(less)'", "'(?:a{900}){900}'");
        assert!(said(&huge).contains("user_agent_parsers, number 2"), "{}", said(&huge));
    }
}
