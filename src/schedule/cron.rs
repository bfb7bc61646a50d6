//! When something is due: by a line as cron has it, or at intervals.
//!
//! Pure: the time is an argument. Owns no clock and runs nothing.

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Zoned;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Five fields, in the time zone of the time that is asked about.
    Cron(Box<Cron>),
    /// So long after the time before.
    Every(Duration),
}

impl Plan {
    /// Five fields with ranges, steps, lists and names (`*/5 8-17 * * mon-fri`), or `@hourly` and its like.
    pub fn cron(line: &str) -> Result<Self, String> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        parser.parse(line).map(|cron| Self::Cron(Box::new(cron))).map_err(|error| error.to_string())
    }

    /// The first time after this one; `None`: never again.
    pub fn next(&self, after: &Zoned) -> Option<Zoned> {
        match self {
            Self::Cron(cron) => cron.find_next_occurrence(after, false).ok(),
            Self::Every(interval) => after.checked_add(*interval).ok(),
        }
    }
}

/// A function and when it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduled {
    /// Its name.
    pub name: String,
    /// When.
    pub plan: Plan,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(line: &str, from: &str) -> String {
        let from: Zoned = from.parse().unwrap();
        Plan::cron(line).unwrap().next(&from).unwrap().to_string()
    }

    #[test]
    fn line_with_ranges_steps_lists_and_names_finds_its_next_time() {
        let from = "2026-01-30T10:02:03+00:00[UTC]"; // a Friday
        assert_eq!(after("*/5 * * * *", from), "2026-01-30T10:05:00+00:00[UTC]");
        assert_eq!(after("0 8-17/2 * * *", from), "2026-01-30T12:00:00+00:00[UTC]");
        assert_eq!(after("30 6,18 * * *", from), "2026-01-30T18:30:00+00:00[UTC]");
        assert_eq!(after("0 0 * * mon-thu", from), "2026-02-02T00:00:00+00:00[UTC]");
        assert_eq!(after("0 0 1 mar *", from), "2026-03-01T00:00:00+00:00[UTC]");
        assert_eq!(after("@hourly", from), "2026-01-30T11:00:00+00:00[UTC]");
        // The time itself is over.
        assert_eq!(after("2 10 * * *", "2026-01-30T10:02:00+00:00[UTC]"), "2026-01-31T10:02:00+00:00[UTC]");
    }

    #[test]
    fn line_that_is_none_is_refused() {
        for wrong in ["", "* * * *", "* * * * * *", "61 * * * *", "* 25 * * *", "x * * * *", "*/0 * * * *"] {
            assert!(Plan::cron(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn hour_that_the_clock_skips_or_has_twice_loses_no_run() {
        let spring = after("30 2 * * *", "2026-03-28T03:00:00+01:00[Europe/Berlin]");
        assert!(spring.starts_with("2026-03-29T03:"), "{spring}");
        let autumn = after("30 2 * * *", "2026-10-25T02:00:00+02:00[Europe/Berlin]");
        assert!(autumn.starts_with("2026-10-25T02:30:00"), "{autumn}");
    }

    #[test]
    fn interval_counts_from_the_time_before() {
        let from: Zoned = "2026-01-30T10:02:03+00:00[UTC]".parse().unwrap();
        let next = Plan::Every(Duration::from_secs(90)).next(&from).unwrap();
        assert_eq!(next.to_string(), "2026-01-30T10:03:33+00:00[UTC]");
    }
}
