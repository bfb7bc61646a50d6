//! When an entry may go: two clocks, because neither tells it alone. Pure.
//!
//! Policies live in report time, and so do their expiries. But a replay of last month, or a backlog, may run beside live traffic: by
//! the latest report time all that it writes has expired at once, and it would lose its counts and windows between two of its own
//! reports. So an entry stays for a day of wall time after its last write, too. An hour's number beside each entry (four bytes) says
//! when that was; it is the hour and not the microsecond so that it compresses.

use std::time::Duration;

use crate::report::Time;

/// A report may come so much later than one with a later time, and still finds what was there at its own.
const GRACE: Duration = Duration::from_secs(24 * 3600);
/// Hours of wall time for which an entry stays after it was written, whatever its report time.
const STAYS: u32 = 24;
const HOUR_MICROS: i64 = 3_600_000_000;

/// An hour of the wall clock, counted from the epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hour(u32);

impl Hour {
    pub(super) fn of(now: Time) -> Self {
        Self(u32::try_from(now.micros() / HOUR_MICROS).unwrap_or(0))
    }

    pub(super) const fn to_bytes(self) -> [u8; 4] {
        self.0.to_le_bytes()
    }

    pub(super) const fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_le_bytes(bytes))
    }
}

/// What lies behind it is not asked for any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Horizon {
    /// Report time in microseconds.
    expired: i64,
    /// The wall clock.
    pub(super) now: Hour,
}

impl Default for Horizon {
    /// Nothing lies behind it.
    fn default() -> Self {
        Self { expired: i64::MIN, now: Hour::default() }
    }
}

impl Horizon {
    /// Seen from the latest report time and the wall clock. A report from the future moves it by an hour at most.
    pub(super) fn new(latest: Time, now: Time) -> Self {
        let expired = latest.min(now.plus(Duration::from_secs(3600))).minus(GRACE).micros();
        Self { expired, now: Hour::of(now) }
    }

    /// Whether an entry that expires at this report time, in microseconds, and was written in this hour lies behind.
    pub(super) const fn passed(&self, expires: i64, written: Hour) -> bool {
        expires < self.expired && self.now.0.saturating_sub(written.0) > STAYS
    }
}
