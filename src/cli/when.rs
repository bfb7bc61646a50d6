//! Points in time as people type them: `7d`, `90m`, `2026-03-01`, `2026-03-01T12:00:00Z`.

use std::str::FromStr;

use jiff::Timestamp;

use crate::report::Time;

/// A point in time, already resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct When(pub(super) Time);

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::at(text, Time::now())
    }
}

impl When {
    fn at(text: &str, now: Time) -> Result<Self, String> {
        if let Ok(ago) = humantime::parse_duration(text) {
            return Ok(Self(now.minus(ago)));
        }
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Self(Time::from_micros(time.as_microsecond())));
        }
        if let Ok(day) = text.parse::<jiff::civil::Date>()
            && let Ok(midnight) = day.to_zoned(jiff::tz::TimeZone::UTC)
        {
            return Ok(Self(Time::from_micros(midnight.timestamp().as_microsecond())));
        }
        Err("write how long ago (90m, 7d, 2weeks), a day (2026-03-01, UTC) or a time (2026-03-01T12:00:00Z)".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_a_time_is_understood() {
        let now = Time::from_seconds(1_772_366_400.0).unwrap();
        let at = |text: &str| When::at(text, now).unwrap().0.rfc3339();
        assert_eq!(now.rfc3339(), "2026-03-01T12:00:00.000Z");
        assert_eq!(at("7d"), "2026-02-22T12:00:00.000Z");
        assert_eq!(at("90m"), "2026-03-01T10:30:00.000Z");
        assert_eq!(at("2026-01-31"), "2026-01-31T00:00:00.000Z");
        assert_eq!(at("2026-01-31T10:00:00+02:00"), "2026-01-31T08:00:00.000Z");
        assert!(When::at("yesterday", now).unwrap_err().contains("7d"));
    }
}
