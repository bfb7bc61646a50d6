//! Reports as a test file writes them: with times from the case's start, repeated, on top of defaults; as the bytes that the program
//! would get, and decoded by the program's own decoder.
//!
//! Owns the keys `t`, `after`, `repeat` and `every`, and the numbers in texts (`user{n}`). What a report may have is [`crate::decode`]'s.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Map, Value as Json};
use toml::{Spanned, Table, Value};

use super::file::{Lines, Mistake, did_you_mean};
use super::when;
use crate::decode::{self, Limits};
use crate::report::{ATTEMPT_FIELDS, LoginReport, ReportId, Time};

/// Reports of one case, those in its history included.
const MAX_REPORTS: usize = 100_000;
/// What a report has besides its fields.
const TIMES: [&str; 4] = ["t", "after", "repeat", "every"];
/// What a webhook has besides: it may be pasted whole, and this says nothing of the login.
const KIND: &str = "type";
/// From one report to the next, where nothing else is said: two reports of one time with the same fields would be the same report.
const STEP: Duration = Duration::from_secs(1);

/// A report of a case.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    /// Without enrichment.
    pub(super) report: LoginReport,
    /// Where it stands in the test file.
    pub(super) line: usize,
}

/// Reads a case's reports.
pub(super) struct Reader<'a> {
    pub(super) start: Time,
    /// The file's, then the case's.
    pub(super) defaults: Table,
    pub(super) limits: Limits,
    pub(super) lines: &'a Lines<'a>,
}

/// The field of the list that is read, for messages, and whether each report must say when it was.
pub(super) struct List {
    pub(super) name: &'static str,
    pub(super) must_say_when: bool,
}

impl Reader<'_> {
    /// The reports of a list, one after another, each repeated as it says.
    pub(super) fn read(&self, list: &List, texts: &[Spanned<Table>], mistakes: &mut Vec<Mistake>) -> Vec<Placed> {
        let (mut placed, mut last) = (Vec::new(), None);
        let mut seen: HashMap<ReportId, usize> = HashMap::new();
        for text in texts {
            let line = self.lines.of(text.span());
            let mut wrong = |said: String| {
                mistakes.push(Mistake { line: Some(line), text: format!("{}: {said}", list.name) });
            };
            let table = text.get_ref();
            if let Err(said) = known(table, true) {
                wrong(said);
                continue;
            }
            let series = match self.series(list, table, last) {
                Ok(series) => series,
                Err(said) => {
                    wrong(said);
                    continue;
                }
            };
            if placed.len().saturating_add(series.repeat) > MAX_REPORTS {
                wrong(format!("repeat: more than {MAX_REPORTS} reports in one case"));
                return placed;
            }
            for n in 1..=series.repeat {
                let at = series.first.plus(series.every.saturating_mul(u32::try_from(n - 1).unwrap_or(u32::MAX)));
                last = Some(at);
                let number = table.contains_key("repeat").then_some(n);
                let report = match self.report(table, at, number) {
                    Ok(report) => report,
                    Err(said) => {
                        wrong(said);
                        break;
                    }
                };
                if let Some(before) = seen.insert(report.id, line) {
                    wrong(format!(
                        "the same report as on line {before}: the same time and fields, so the program would take it for one that \
                         comes again; give it another t, or a field with {{n}}"
                    ));
                    break;
                }
                placed.push(Placed { report, line });
            }
        }
        placed
    }

    fn series(&self, list: &List, table: &Table, last: Option<Time>) -> Result<Series, String> {
        let length = |key: &str| match table.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => when::length(text).map(Some).map_err(|said| format!("{key}: {said}")),
            Some(_) => Err(format!("{key}: a length such as \"30s\" is needed, in quotes")),
        };
        let (after, every) = (length("after")?, length("every")?);
        let first = match (table.get("t"), after) {
            (Some(_), Some(_)) => return Err("t and after: give one of the two".to_owned()),
            (Some(t), None) => when::at(t, self.start).map_err(|said| format!("t: {said}"))?,
            (None, Some(after)) => last.unwrap_or(self.start).plus(after),
            (None, None) if list.must_say_when && last.is_none() => {
                return Err("t is missing: say when it was, such as \"-10days\" before the case's start".to_owned());
            }
            (None, None) => last.map_or(self.start, |last| last.plus(STEP)),
        };
        let repeat = match table.get("repeat") {
            None if every.is_some() => return Err("every: is of use with repeat only".to_owned()),
            None => 1,
            Some(Value::Integer(times)) if (1..=MAX_REPORTS as i64).contains(times) => *times as usize,
            Some(_) => return Err(format!("repeat: a number from 1 to {MAX_REPORTS} is needed")),
        };
        Ok(Series { first, repeat, every: every.unwrap_or(STEP) })
    }

    /// The report as `receive` would have queued it.
    fn report(&self, table: &Table, at: Time, number: Option<usize>) -> Result<LoginReport, String> {
        let mut map = Map::new();
        for (key, value) in self.defaults.iter().chain(table) {
            if !TIMES.contains(&key.as_str()) {
                map.insert(key.clone(), json(value, number));
            }
        }
        map.insert("t".to_owned(), Json::from(at.seconds()));
        let body = serde_json::to_vec(&map).map_err(|error| error.to_string())?;
        let decoded = decode::decode(&body, &self.limits).map_err(|malformed| malformed.to_string())?;
        if decoded.dropped > 0 {
            return Err("a value in attrs or device_attrs is of a type that the program drops; write a text".to_owned());
        }
        Ok(decoded.stamp(at, Duration::ZERO).report)
    }
}

struct Series {
    first: Time,
    repeat: usize,
    every: Duration,
}

/// Whether every key is one of a report.
pub(super) fn known(table: &Table, with_times: bool) -> Result<(), String> {
    let times: &[&str] = if with_times { &TIMES } else { &[] };
    let all = || ATTEMPT_FIELDS.iter().chain([&KIND]).chain(times).copied();
    match table.keys().find(|key| !all().any(|known| known == key.as_str())) {
        Some(key) => Err(format!("a report has no key `{key}`{}", did_you_mean(key, all()))),
        None => Ok(()),
    }
}

/// TOML as JSON. In texts `{n}` becomes the number, and `{n%7}` its rest.
pub(super) fn json(value: &Value, number: Option<usize>) -> Json {
    match value {
        Value::String(text) => Json::from(number.map_or_else(|| text.clone(), |number| filled(text, number))),
        Value::Integer(number) => Json::from(*number),
        Value::Float(number) => Json::from(*number),
        Value::Boolean(flag) => Json::from(*flag),
        Value::Datetime(time) => Json::from(time.to_string()),
        Value::Array(values) => values.iter().map(|value| json(value, number)).collect(),
        Value::Table(table) => {
            Json::Object(table.iter().map(|(key, value)| (key.clone(), json(value, number))).collect())
        }
    }
}

fn filled(text: &str, number: usize) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{n") {
        out.push_str(before);
        let inside = after.split_once('}');
        let value = match inside {
            Some(("", _)) => Some(number),
            Some((inside, _)) => {
                let by = inside.strip_prefix('%').and_then(|by| by.parse::<usize>().ok()).filter(|by| *by > 0);
                by.map(|by| number % by)
            }
            None => None,
        };
        match (value, inside) {
            (Some(value), Some((_, after))) => {
                out.push_str(&value.to_string());
                rest = after;
            }
            _ => {
                out.push_str("{n");
                rest = after;
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(toml: &str) -> (Vec<Placed>, Vec<Mistake>) {
        #[derive(serde::Deserialize)]
        struct Texts {
            reports: Vec<Spanned<Table>>,
        }
        let texts: Texts = toml::from_str(toml).unwrap();
        let lines = Lines(toml);
        let defaults: Table = toml::from_str("protocol = \"imap\"\nremote = \"192.0.2.1\"\nlogin = \"ann\"").unwrap();
        let limits = Limits { max_report: 65_536, max_field: 4_096, max_attrs: 256 };
        let reader = Reader { start: Time::from_seconds(1_000_000.0).unwrap(), defaults, limits, lines: &lines };
        let mut mistakes = Vec::new();
        let list = List { name: "reports", must_say_when: false };
        let placed = reader.read(&list, &texts.reports, &mut mistakes);
        (placed, mistakes)
    }

    #[test]
    fn reports_stand_in_their_order_with_times_defaults_and_numbers() {
        let (placed, mistakes) = read(
            "reports = [\n  { success = true },\n  { },\n  { t = \"+1h\", login = \"u{n}\", remote = \"192.0.2.{n%2}\", repeat = 3, \
             every = \"10s\", attrs = { a = \"{n}\", m = [\"x{n}\"] } },\n  { after = \"1m\", login = \"{n}\" },\n]",
        );
        assert_eq!(mistakes, []);
        let seen: Vec<_> = placed
            .iter()
            .map(|one| {
                (one.report.t.seconds() - 1e6, one.report.login.as_str(), one.report.remote.to_string(), one.line)
            })
            .collect();
        let address = |text: &str| text.to_owned();
        assert_eq!(
            seen,
            [
                (0.0, "ann", address("192.0.2.1"), 2),
                (1.0, "ann", address("192.0.2.1"), 3),
                (3600.0, "u1", address("192.0.2.1"), 4),
                (3610.0, "u2", address("192.0.2.0"), 4),
                (3620.0, "u3", address("192.0.2.1"), 4),
                (3680.0, "{n}", address("192.0.2.1"), 5),
            ]
        );
        assert_eq!(placed[3].report.attrs, [("a".to_owned(), "2".to_owned())]);
        assert_eq!(placed[3].report.attrs_mv, [("m".to_owned(), vec!["x2".to_owned()])]);
        assert!(placed[0].report.success && placed[0].report.protocol == "imap");
        assert_ne!(placed[0].report.id, placed[1].report.id);
    }

    #[test]
    fn each_mistake_names_the_line_and_the_key() {
        for (reports, expected) in [
            ("{ remot = \"x\" }", "no key `remot`; did you mean remote?"),
            ("{ remote = \"x\" }", "`remote`: not an IP address"),
            ("{ login = 5 }", "`login`: invalid type"),
            ("{ t = \"soon\" }", "t: \"soon\" is no time"),
            ("{ t = \"+1h\", after = \"1h\" }", "one of the two"),
            ("{ every = \"1h\" }", "with repeat only"),
            ("{ repeat = 0 }", "repeat: a number from 1"),
            ("{ repeat = 2, every = 5 }", "every: a length"),
            ("{ repeat = 2, every = \"0s\" }", "the same report as on line 2"),
            ("{ repeat = 100001 }", "repeat: a number from 1"),
            (
                "{ login = \"x{n}\", repeat = 99999, every = \"0s\" },\n  { login = \"y{n}\", repeat = 9, every = \"0s\" }",
                "more than",
            ),
            ("{ attrs = { x = { y = 1 } } }", "that the program drops"),
            ("{ attrs_mv = 5 }", "no key `attrs_mv`; did you mean attrs?"),
        ] {
            let (_, mistakes) = read(&format!("reports = [\n  {reports},\n]"));
            assert!(mistakes.len() == 1 && mistakes[0].text.contains(expected), "{reports}: {mistakes:?}");
            assert!(mistakes[0].line >= Some(2), "{reports}: {mistakes:?}");
        }
    }

    #[test]
    fn only_what_is_a_number_is_filled_in() {
        assert_eq!(filled("{n}-{n%4}-{n%0}-{name}-{n", 10), "10-2-{n%0}-{name}-{n");
        assert_eq!(filled("none", 1), "none");
    }
}
