//! The generator: four months and a half of logins at a small provider, in order of time, the same for the same seed.
//!
//! Pure: no clock, no network. Holds one day in memory at a time. Owns the rhythm of the ordinary traffic;
//! what is hidden in it is [`super::stories`], the form of a report `wire`.

use std::net::IpAddr;

use super::accounts::{Account, DAYS, Kind, THIN, cast};
use super::dice::Dice;
use super::plant::plant;
use super::stories::Story;
use super::wire::write;
use super::world::FAR;
use crate::report::Time;

pub(super) const SECOND: i64 = 1_000_000;
pub(super) const DAY: i64 = 86_400 * SECOND;
/// The fewest reports among which the stories still drown.
pub const FEWEST: usize = 5_000;
/// So many reports come on one account, over the whole time.
const PER_ACCOUNT: usize = 33;

/// What is generated.
#[derive(Debug, Clone, Copy)]
pub struct TrafficOptions {
    /// How many reports, to within one per cent. At least [`FEWEST`].
    pub reports: usize,
    /// The time of the last one; the first is 134 days before.
    pub until: Time,
}

/// A report as wforce would send it.
#[derive(Debug, Clone)]
pub struct Generated {
    /// When the login was tried.
    pub t: Time,
    /// The account's name.
    pub login: String,
    /// Where it was tried from.
    pub remote: IpAddr,
    /// Whether it succeeded.
    pub success: bool,
    /// The JSON object, with all keys in wforce's order.
    pub body: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Account(u32),
    /// A name that nobody has.
    Nobody(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    Phone,
    Desktop,
    Smtp,
    Webmail,
    Script,
}

/// A report to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// Microseconds.
    pub(super) t: i64,
    pub(super) who: Who,
    pub(super) remote: IpAddr,
    pub(super) via: Via,
    pub(super) success: bool,
}

/// What the whole time is made from.
#[derive(Debug)]
pub(super) struct Town {
    pub(super) seed: u64,
    pub(super) accounts: Vec<Account>,
    /// The start of the first day, in microseconds.
    pub(super) start: i64,
}

impl Town {
    /// The start of a day; days count from 0, the fortnight begins with [`THIN`].
    pub(super) fn day(&self, day: u64) -> i64 {
        self.start + day as i64 * DAY
    }

    /// The moment within a day at which clocks show this hour of local time (UTC+1).
    pub(super) fn at(&self, day: u64, hour: i64) -> i64 {
        let start = self.day(day);
        start + ((hour - 1) * 3600 * SECOND - start).rem_euclid(DAY)
    }

    pub(super) fn login(&self, who: Who) -> String {
        match who {
            Who::Account(number) => self.accounts[number as usize].login.clone(),
            Who::Nobody(number) => {
                const NAMES: [&str; 8] = ["info", "admin", "test", "office", "sales", "backup", "scan", "support"];
                format!("{}{}@alpennet.example", NAMES[number as usize % 8], number / 8)
            }
        }
    }
}

/// Hour of the day (0 to 23) and weekday (0 is Monday) in local time.
pub(super) fn local(t: i64) -> (u64, u64) {
    let hours = (t + 3600 * SECOND).div_euclid(3600 * SECOND);
    // The first of January 1970 was a Thursday.
    ((hours.rem_euclid(24)) as u64, (hours.div_euclid(24) + 3).rem_euclid(7) as u64)
}

/// The reports, in order of time.
#[derive(Debug)]
pub struct Traffic {
    town: Town,
    stories: Vec<Story>,
    /// What the stories add, latest first.
    hidden: Vec<Entry>,
    /// Sums of the accounts' weights.
    weights: Vec<u64>,
    ordinary: usize,
    thin: usize,
    next_day: u64,
    today: std::vec::IntoIter<Entry>,
}

/// Generates the reports.
pub fn traffic(seed: u64, options: &TrafficOptions) -> Traffic {
    let reports = options.reports.max(FEWEST);
    let count = u32::try_from(reports / PER_ACCOUNT).unwrap_or(u32::MAX);
    let accounts: Vec<_> = (0..count).map(|number| Account::new(seed, number, count)).collect();
    let town = Town { seed, accounts, start: options.until.micros() - DAYS as i64 * DAY };
    let (stories, mut hidden) = plant(&town);
    hidden.sort_by_key(|entry| std::cmp::Reverse(entry.t));
    let thin = town.accounts.iter().map(|account| visits(account).len()).sum();
    let weights = town.accounts.iter().scan(0, |sum, account| {
        *sum += u64::from(account.weight);
        Some(*sum)
    });
    let weights = weights.collect();
    let ordinary = reports.saturating_sub(hidden.len() + thin);
    let today = Vec::new().into_iter();
    Traffic { town, stories, hidden, weights, ordinary, thin, next_day: 0, today }
}

/// Every day of an account's that is certain, with the address: its first days, the thin history, the return.
fn visits(account: &Account) -> Vec<(u64, IpAddr)> {
    let mut days = account.first_days();
    if let Kind::Newcomer(opened) = account.kind {
        // A new customer sets up everything on the first day.
        for (day, _) in &mut days {
            *day = THIN + opened;
        }
    }
    days.extend(account.later_days().into_iter().map(|day| (day, account.home())));
    if let Kind::Vacation(back) = account.kind {
        days.push((THIN + back, account.home()));
    }
    days
}

impl Traffic {
    /// What is hidden among the reports, and what only looks as if.
    pub fn stories(&self) -> &[Story] {
        &self.stories
    }

    /// How many reports there are in the thin history before the fortnight.
    pub fn thin(&self) -> usize {
        self.thin
    }

    /// How many accounts there are.
    pub fn accounts(&self) -> usize {
        self.town.accounts.len()
    }

    fn make_day(&self, day: u64) -> Vec<Entry> {
        let mut dice = Dice::of(&[self.town.seed, 5, day]);
        let mut entries = Vec::new();
        for account in &self.town.accounts {
            for (at, remote) in visits(account) {
                if at == day {
                    let t = self.moment(day, &mut dice);
                    let via = via(account, remote, &mut dice);
                    entries.push(Entry { t, who: Who::Account(account.number), remote, via, success: true });
                }
            }
        }
        if day >= THIN {
            let share = |days: u64| (0..days).map(|day| self.share(THIN + day)).sum::<usize>();
            let before = self.ordinary * share(day - THIN) / share(14);
            let with = self.ordinary * share(day - THIN + 1) / share(14);
            let goal = entries.len() + with - before;
            while entries.len() < goal {
                self.somebody(day, &mut dice, &mut entries);
            }
        }
        entries.sort_by_key(|entry| entry.t);
        entries
    }

    /// Weekends are quieter.
    fn share(&self, day: u64) -> usize {
        if local(self.town.day(day) + DAY / 2).1 < 5 { 10 } else { 7 }
    }

    /// A moment of the day, by its rhythm; a little before its end, so that what follows at once is in the same day.
    fn moment(&self, day: u64, dice: &mut Dice) -> i64 {
        loop {
            let t = self.town.day(day) + dice.below((DAY - 60 * SECOND) as u64) as i64;
            let busy = match local(t).0 {
                0..5 => 8.0,
                5..7 => 35.0,
                7..10 => 95.0,
                10..17 => 70.0,
                17..22 => 85.0,
                _ => 35.0,
            };
            if dice.percent(busy) {
                return t;
            }
        }
    }

    fn somebody(&self, day: u64, dice: &mut Dice, entries: &mut Vec<Entry>) {
        let t = self.moment(day, dice);
        if dice.percent(2.5) {
            // The noise of the internet: a bot tries a name, once.
            let remote = dice.pick(&FAR).address(dice.next());
            let who = match dice.below(self.town.accounts.len() as u64 * 2) as u32 {
                number if (number as usize) < self.town.accounts.len() && number >= cast::EXTRAS => {
                    Who::Account(number)
                }
                number => Who::Nobody(number % 4000),
            };
            entries.push(Entry { t, who, remote, via: Via::Script, success: false });
            return;
        }
        let Some(all) = self.weights.last() else { return };
        let drawn = dice.below(*all);
        let account = &self.town.accounts[self.weights.partition_point(|sum| *sum <= drawn)];
        if !account.is_there(day - THIN) || self.stories.iter().any(|story| story.quiet(account.number, t)) {
            return;
        }
        let (hour, weekday) = local(t);
        let remote = account.place(day, hour, weekday < 5);
        let via = via(account, remote, dice);
        let entry = Entry { t, who: Who::Account(account.number), remote, via, success: true };
        if dice.percent(1.5) {
            entries.push(Entry { success: false, ..entry });
            entries.push(Entry { t: t + (4 + dice.below(20) as i64) * SECOND, ..entry });
        } else {
            entries.push(entry);
        }
    }
}

impl Iterator for Traffic {
    type Item = Generated;

    fn next(&mut self) -> Option<Generated> {
        while self.today.as_slice().is_empty() && self.next_day < DAYS {
            self.today = self.make_day(self.next_day).into_iter();
            self.next_day += 1;
        }
        // A day's stories lie between its first and its last entry or wait for the next day's first: both come in order of time.
        let ordinary = self.today.as_slice().first().map(|entry| entry.t);
        let entry = match (self.hidden.last().map(|entry| entry.t), ordinary) {
            (Some(hidden), Some(ordinary)) if hidden < ordinary => self.hidden.pop(),
            (_, Some(_)) => self.today.next(),
            (_, None) => self.hidden.pop(),
        }?;
        Some(write(&self.town, &entry))
    }
}

fn via(account: &Account, remote: IpAddr, dice: &mut Dice) -> Via {
    let at_work = account.company.is_some_and(|company| Account::gateway(company) == remote);
    match dice.below(10) {
        0..5 if account.phone && !at_work => Via::Phone,
        0..5 => Via::Desktop,
        5..7 => Via::Smtp,
        7..9 => Via::Webmail,
        _ => Via::Desktop,
    }
}
