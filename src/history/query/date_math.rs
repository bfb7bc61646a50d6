//! Dates as Elasticsearch writes them: `now-7d/d`, `2026-01-01||+1M/d`, ISO dates with parts left out, milliseconds.
//!
//! Owns that one grammar, all in UTC. Never reads a clock: `now` is given.

use jiff::civil::{Date, DateTime, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

use crate::report::Time;

/// The longest date that is looked at.
const LONGEST: usize = 100;

/// Which end of a rounded span is meant: `gt` and `lte` mean its last millisecond, `gte` and `lt` its first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// The first millisecond.
    Down,
    /// The last millisecond.
    Up,
}

/// How a plain number is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unit {
    /// Milliseconds.
    #[default]
    Millis,
    /// Seconds.
    Seconds,
}

/// A calendar unit, as in `/d` and `calendar_interval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calendar {
    /// Second.
    Second,
    /// Minute.
    Minute,
    /// Hour.
    Hour,
    /// Day.
    Day,
    /// Week, from Monday.
    Week,
    /// Month.
    Month,
    /// Quarter of a year.
    Quarter,
    /// Year.
    Year,
}

const ADVICE: &str = "is no date; write now-7d/d, 2026-01-31, 2026-01-31T08:00:00Z, 2026-01-31||+1M/d or milliseconds";

/// The date in milliseconds since the epoch. An error says what is wrong with the text.
pub fn parse(text: &str, now: Time, round: Round, unit: Unit) -> Result<i64, String> {
    if text.len() > LONGEST {
        return Err(format!("is longer than {LONGEST} characters; {ADVICE}"));
    }
    let text = text.trim();
    let (mut at, math) = if let Some(math) = text.strip_prefix("now") {
        (civil(now.millis())?, math)
    } else {
        let (anchor, math) = text.split_once("||").unwrap_or((text, ""));
        if let Some(millis) = plain_number(anchor, unit) {
            (civil(millis)?, math)
        } else {
            let (first, last) = iso(anchor)?;
            (if round == Round::Up && math.is_empty() { last } else { first }, math)
        }
    };
    let mut rest = math;
    while !rest.is_empty() {
        (at, rest) = step(at, rest, round)?;
    }
    millis(at)
}

/// The beginning of the calendar span that this time lies in, and of the one after it; in milliseconds.
pub fn span_of(at: i64, unit: Calendar) -> Option<(i64, i64)> {
    let first = floor(civil(at).ok()?, unit)?;
    Some((millis(first).ok()?, millis(first.checked_add(one(unit)).ok()?).ok()?))
}

/// A number of seconds or milliseconds. Up to four digits are a year, unless seconds are asked for.
fn plain_number(text: &str, unit: Unit) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) || (unit == Unit::Millis && digits.len() <= 4) {
        return None;
    }
    let number: i64 = text.parse().ok()?;
    match unit {
        Unit::Millis => Some(number),
        Unit::Seconds => number.checked_mul(1000),
    }
}

/// One `+1d`, `-2h` or `/d`.
fn step(at: DateTime, math: &str, round: Round) -> Result<(DateTime, &str), String> {
    let out_of_range = || "lies outside of the years that there are".to_owned();
    let mut chars = math.chars();
    match chars.next() {
        Some('/') => {
            let unit = chars.next().and_then(unit).ok_or("after / must come one of y M w d h m s")?;
            let first = floor(at, unit).ok_or_else(out_of_range)?;
            let at = match round {
                Round::Down => first,
                Round::Up => first
                    .checked_add(one(unit))
                    .and_then(|end| end.checked_sub(Span::new().milliseconds(1)))
                    .map_err(|_| out_of_range())?,
            };
            Ok((at, chars.as_str()))
        }
        Some(sign @ ('+' | '-')) => {
            let rest = chars.as_str();
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let amount: i64 = match &rest[..digits] {
                "" => 1,
                digits => digits.parse().map_err(|_| "has a number that is too large")?,
            };
            let amount = if sign == '-' { -amount } else { amount };
            let mut chars = rest[digits..].chars();
            let unit = chars.next().and_then(unit).ok_or("after a number must come one of y M w d h m s")?;
            let at = span(unit, amount).and_then(|span| at.checked_add(span).ok()).ok_or_else(out_of_range)?;
            Ok((at, chars.as_str()))
        }
        _ => Err(ADVICE.to_owned()),
    }
}

fn unit(letter: char) -> Option<Calendar> {
    Some(match letter {
        'y' => Calendar::Year,
        'M' => Calendar::Month,
        'w' => Calendar::Week,
        'd' => Calendar::Day,
        'h' | 'H' => Calendar::Hour,
        'm' => Calendar::Minute,
        's' => Calendar::Second,
        _ => return None,
    })
}

fn span(unit: Calendar, n: i64) -> Option<Span> {
    let span = Span::new();
    match unit {
        Calendar::Second => span.try_seconds(n),
        Calendar::Minute => span.try_minutes(n),
        Calendar::Hour => span.try_hours(n),
        Calendar::Day => span.try_days(n),
        Calendar::Week => span.try_weeks(n),
        Calendar::Month => span.try_months(n),
        Calendar::Quarter => span.try_months(n.checked_mul(3)?),
        Calendar::Year => span.try_years(n),
    }
    .ok()
}

fn one(unit: Calendar) -> Span {
    span(unit, 1).unwrap_or_default()
}

fn floor(at: DateTime, unit: Calendar) -> Option<DateTime> {
    let date = at.date();
    let midnight = |date: Date| date.to_datetime(jiff::civil::Time::midnight());
    Some(match unit {
        Calendar::Second => at.with().subsec_nanosecond(0).build().ok()?,
        Calendar::Minute => at.with().second(0).subsec_nanosecond(0).build().ok()?,
        Calendar::Hour => at.with().minute(0).second(0).subsec_nanosecond(0).build().ok()?,
        Calendar::Day => midnight(date),
        Calendar::Week => {
            let back = date.weekday().since(Weekday::Monday);
            midnight(date.checked_sub(Span::new().days(back)).ok()?)
        }
        Calendar::Month => midnight(date.first_of_month()),
        Calendar::Quarter => midnight(Date::new(date.year(), (date.month() - 1) / 3 * 3 + 1, 1).ok()?),
        Calendar::Year => midnight(date.first_of_year()),
    })
}

fn civil(millis: i64) -> Result<DateTime, String> {
    let at = Timestamp::from_millisecond(millis).map_err(|_| "lies outside of the years that there are")?;
    Ok(at.to_zoned(TimeZone::UTC).datetime())
}

fn millis(at: DateTime) -> Result<i64, String> {
    let zoned = at.to_zoned(TimeZone::UTC).map_err(|_| "lies outside of the years that there are")?;
    Ok(zoned.timestamp().as_millisecond())
}

/// The first and the last millisecond that an ISO date with parts left out means.
fn iso(text: &str) -> Result<(DateTime, DateTime), String> {
    let wrong = || ADVICE.to_owned();
    let (date, rest) = match text.split_once(['T', ' ']) {
        Some((date, rest)) => (date, Some(rest)),
        None => (text, None),
    };
    let mut parts = date.split('-');
    let year: i16 = number(parts.next(), 4).ok_or_else(wrong)?;
    let month: Option<i8> = part(parts.next(), 2).ok_or_else(wrong)?;
    let day: Option<i8> = part(parts.next(), 2).ok_or_else(wrong)?;
    if parts.next().is_some() || (rest.is_some() && day.is_none()) {
        return Err(wrong());
    }
    let date = Date::new(year, month.unwrap_or(1), day.unwrap_or(1)).map_err(|_| "is no day of the calendar")?;
    let (clock, zone) = split_zone(rest.unwrap_or("")).ok_or_else(wrong)?;
    let (time, unit) = read_clock(clock).ok_or_else(wrong)?;
    let unit = match (month, day, unit) {
        (None, ..) => Some(Calendar::Year),
        (_, None, _) => Some(Calendar::Month),
        (.., None) => Some(Calendar::Day),
        (.., Some(fine)) => fine,
    };
    let shift = Span::new().try_minutes(-zone).map_err(|_| wrong())?;
    let first = date.to_datetime(time).checked_add(shift).map_err(|_| wrong())?;
    let last = match unit {
        Some(unit) => first.checked_add(one(unit)).and_then(|end| end.checked_sub(Span::new().milliseconds(1))),
        None => Ok(first),
    };
    Ok((first, last.map_err(|_| wrong())?))
}

/// The clock and the minutes that its zone is ahead of UTC.
fn split_zone(text: &str) -> Option<(&str, i64)> {
    if let Some(clock) = text.strip_suffix('Z') {
        return Some((clock, 0));
    }
    let Some(at) = text.rfind(['+', '-']) else { return Some((text, 0)) };
    let (clock, zone) = text.split_at(at);
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let zone = zone.get(1..)?.replace(':', "");
    let hours: i64 = number(zone.get(..2), 2)?;
    let minutes: i64 = if zone.len() > 2 { number(zone.get(2..), 2)? } else { 0 };
    (hours <= 18 && minutes < 60).then_some((clock, sign * (hours * 60 + minutes)))
}

/// The time of day, and the finest unit that was written: `None` for no clock at all, `Some(None)` for milliseconds.
fn read_clock(text: &str) -> Option<(jiff::civil::Time, Option<Option<Calendar>>)> {
    if text.is_empty() {
        return Some((jiff::civil::Time::midnight(), None));
    }
    let mut parts = text.split(':');
    let hour: i8 = number(parts.next(), 2)?;
    let minute: Option<i8> = part(parts.next(), 2)?;
    let (second, nanos) = match parts.next().map(|s| s.split_once(['.', ',']).unwrap_or((s, ""))) {
        None => (None, None),
        Some((second, "")) => (Some(number::<i8>(Some(second), 2)?), None),
        Some((second, fraction)) if fraction.len() <= 9 && fraction.bytes().all(|b| b.is_ascii_digit()) => {
            let nanos: i32 = format!("{fraction:0<9}").parse().ok()?;
            (Some(number::<i8>(Some(second), 2)?), Some(nanos))
        }
        Some(_) => return None,
    };
    let unit = match (minute, second, nanos) {
        (None, ..) => Some(Calendar::Hour),
        (_, None, _) => Some(Calendar::Minute),
        (.., None) => Some(Calendar::Second),
        _ => None,
    };
    let time = jiff::civil::Time::new(hour, minute.unwrap_or(0), second.unwrap_or(0), nanos.unwrap_or(0)).ok()?;
    parts.next().is_none().then_some((time, Some(unit)))
}

/// A number of exactly so many digits.
fn number<N: std::str::FromStr>(text: Option<&str>, digits: usize) -> Option<N> {
    let text = text?;
    (text.len() == digits && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// The same where it may be left out. The outer `None` is a wrong one.
fn part<N: std::str::FromStr>(text: Option<&str>, digits: usize) -> Option<Option<N>> {
    match text {
        None => Some(None),
        text => number(text, digits).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    #[test]
    fn the_table_of_date_math() {
        let now = Time::from_micros(at("2026-03-11T10:20:30.456Z") * 1000);
        for (text, down, up) in [
            ("now", "2026-03-11T10:20:30.456Z", "2026-03-11T10:20:30.456Z"),
            ("now-7d", "2026-03-04T10:20:30.456Z", "2026-03-04T10:20:30.456Z"),
            ("now-7d/d", "2026-03-04T00:00:00Z", "2026-03-04T23:59:59.999Z"),
            ("now/w", "2026-03-09T00:00:00Z", "2026-03-15T23:59:59.999Z"),
            ("now/M", "2026-03-01T00:00:00Z", "2026-03-31T23:59:59.999Z"),
            ("now/y", "2026-01-01T00:00:00Z", "2026-12-31T23:59:59.999Z"),
            ("now/h", "2026-03-11T10:00:00Z", "2026-03-11T10:59:59.999Z"),
            ("now/m", "2026-03-11T10:20:00Z", "2026-03-11T10:20:59.999Z"),
            ("now-1M+2h", "2026-02-11T12:20:30.456Z", "2026-02-11T12:20:30.456Z"),
            ("now-d", "2026-03-10T10:20:30.456Z", "2026-03-10T10:20:30.456Z"),
            ("2026-01-01||+1M/d", "2026-02-01T00:00:00Z", "2026-02-01T23:59:59.999Z"),
            ("2026-01-31||+1M", "2026-02-28T00:00:00Z", "2026-02-28T00:00:00Z"),
            ("2026", "2026-01-01T00:00:00Z", "2026-12-31T23:59:59.999Z"),
            ("2026-02", "2026-02-01T00:00:00Z", "2026-02-28T23:59:59.999Z"),
            ("2026-02-03", "2026-02-03T00:00:00Z", "2026-02-03T23:59:59.999Z"),
            ("2026-02-03T04", "2026-02-03T04:00:00Z", "2026-02-03T04:59:59.999Z"),
            ("2026-02-03T04:05", "2026-02-03T04:05:00Z", "2026-02-03T04:05:59.999Z"),
            ("2026-02-03T04:05:06", "2026-02-03T04:05:06Z", "2026-02-03T04:05:06.999Z"),
            ("2026-02-03T04:05:06.789", "2026-02-03T04:05:06.789Z", "2026-02-03T04:05:06.789Z"),
            ("2026-02-03T04:05:06+02:00", "2026-02-03T02:05:06Z", "2026-02-03T02:05:06.999Z"),
            ("2026-02-03T04:05:06.5-0130", "2026-02-03T05:35:06.500Z", "2026-02-03T05:35:06.500Z"),
            ("1770091506789", "2026-02-03T04:05:06.789Z", "2026-02-03T04:05:06.789Z"),
            ("1770091506789||/d", "2026-02-03T00:00:00Z", "2026-02-03T23:59:59.999Z"),
        ] {
            assert_eq!(parse(text, now, Round::Down, Unit::Millis), Ok(at(down)), "{text} down");
            assert_eq!(parse(text, now, Round::Up, Unit::Millis), Ok(at(up)), "{text} up");
        }
        assert_eq!(parse("1770091506", now, Round::Up, Unit::Seconds), Ok(1_770_091_506_000));
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in [
            "",
            "tomorrow",
            "now-",
            "now-7",
            "now-7x",
            "now/",
            "now/ö",
            "2026-13-01",
            "2026-02-30",
            "2026-1-1",
            "2026-01-01T25",
            "now+99999999999999999999d",
            "now+9999999y",
            "2026-01-01T00:00:00+99:00",
            "ö",
            "2026-01-01T00:00:00+ö",
            "now||+1d",
            "99999999999999999999",
            "-99999999999999999",
        ] {
            assert!(parse(text, Time::default(), Round::Up, Unit::Millis).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic_or_end_before_it_begins(text in "(now|[0-9]{1,4}(-[0-9]{2}){0,2})?(\\|\\|)?[-+/0-9yMwdhmsTZ:. ö]{0,20}") {
            for unit in [Unit::Millis, Unit::Seconds] {
                let end = |round| parse(&text, Time::default(), round, unit);
                // After /d, the 30th and the 31st may become the same day by +1M or +1y, the later one at an earlier hour.
                if let (Ok(first), Ok(last), false) = (end(Round::Down), end(Round::Up), text.contains(['M', 'y'])) {
                    proptest::prop_assert!(first <= last, "{}: {} to {}", text, first, last);
                }
            }
        }
    }
}
