//! Points in report time as a test file writes them: `"+2h"`, `"2026-03-01T12:00:00Z"`, `2026-03-01T12:00:00Z`, `1772366400`.
//!
//! Pure: the case's start is given, and the clock is never asked, so that a case is the same on every day.

use std::time::Duration;

use jiff::Timestamp;
use toml::Value;

use crate::report::Time;

const HELP: &str = "write a time from the case's start (\"+2h\", \"-10days\"), a time (2026-03-01T12:00:00Z), a day (2026-03-01, UTC) \
                    or seconds since 1970";

/// The time that `value` means in a case that starts at `start`.
pub(super) fn at(value: &Value, start: Time) -> Result<Time, String> {
    match value {
        Value::String(text) => text_at(text, start),
        Value::Datetime(time) => text_at(&time.to_string(), start),
        Value::Integer(seconds) => Time::from_seconds(*seconds as f64).ok_or_else(|| HELP.to_owned()),
        Value::Float(seconds) => Time::from_seconds(*seconds).ok_or_else(|| HELP.to_owned()),
        _ => Err(HELP.to_owned()),
    }
}

fn text_at(text: &str, start: Time) -> Result<Time, String> {
    let moved = |by: &str| humantime::parse_duration(by.trim()).map_err(|error| format!("\"{text}\": {error}; {HELP}"));
    let time = if let Some(by) = text.strip_prefix('+') {
        start.plus(moved(by)?)
    } else if let Some(by) = text.strip_prefix('-') {
        start.minus(moved(by)?)
    } else if let Ok(time) = text.parse::<Timestamp>() {
        Time::from_micros(time.as_microsecond())
    } else if let Ok(day) = text.parse::<jiff::civil::Date>()
        && text.len() == "2026-03-01".len()
        && let Ok(midnight) = day.to_zoned(jiff::tz::TimeZone::UTC)
    {
        Time::from_micros(midnight.timestamp().as_microsecond())
    } else {
        return Err(format!("\"{text}\" is no time; {HELP}"));
    };
    // The years that a report may have.
    Time::from_seconds(time.seconds()).ok_or_else(|| format!("\"{text}\" is outside of the years 1970 to 9999"))
}

/// A length of time: `"30s"`, `"3days"`.
pub(super) fn length(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("\"{text}\": {error}; write a length such as \"30s\", \"10m\", \"3days\""))
}

/// A time as the distance from the start, for people: `+1day 2h`, `-10days`, `the start`.
pub(super) fn from_start(time: Time, start: Time) -> String {
    let (sign, distance) = if time >= start { ('+', time.since(start)) } else { ('-', start.since(time)) };
    if distance.is_zero() { "the start".to_owned() } else { format!("{sign}{}", humantime::format_duration(distance)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_a_time_is_understood() {
        let start = Time::from_seconds(1_772_366_400.0).unwrap();
        let read = |toml: &str| {
            let table: toml::Table = toml::from_str(&format!("t = {toml}")).unwrap();
            at(&table["t"], start).map(Time::rfc3339)
        };
        for (text, expected) in [
            ("\"+2h\"", "2026-03-01T14:00:00.000Z"),
            ("\"+1day 30m\"", "2026-03-02T12:30:00.000Z"),
            ("\"-10days\"", "2026-02-19T12:00:00.000Z"),
            ("\"+1500ms\"", "2026-03-01T12:00:01.500Z"),
            ("\"2026-03-01T10:00:00+02:00\"", "2026-03-01T08:00:00.000Z"),
            ("2026-03-01T10:00:00Z", "2026-03-01T10:00:00.000Z"),
            ("2026-01-31", "2026-01-31T00:00:00.000Z"),
            ("1772366400", "2026-03-01T12:00:00.000Z"),
            ("1772366400.25", "2026-03-01T12:00:00.250Z"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected), "{text}");
        }
        for wrong in
            ["\"yesterday\"", "\"+2 parsecs\"", "true", "-5", "2026-03-01T10:00:00", "\"-99years\"", "10:00:00"]
        {
            assert!(read(wrong).is_err(), "{wrong}: {:?}", read(wrong));
        }
    }

    #[test]
    fn distance_from_the_start_is_said_in_words() {
        let start = Time::from_seconds(1_000_000.0).unwrap();
        let said = |seconds: f64| from_start(Time::from_seconds(seconds).unwrap(), start);
        assert_eq!(said(1_000_000.0), "the start");
        assert_eq!(said(1_093_600.0), "+1day 2h");
        assert_eq!(said(999_940.0), "-1m");
    }
}
