//! What is hidden in the demo's traffic: the attacks that the shipped policies must find, and what looks like one and must stay quiet.
//!
//! Owns the table of which alert means which find, and the comparison of what was planted with what was found.

use std::collections::HashSet;

use super::accounts::{DAYS, THIN, cast};
use super::dice::Dice;
use super::traffic::{DAY, Entry, SECOND, Town, Via, Who, local};
use super::world::{FAR, Net};
use crate::alert::Alert;
use crate::report::Time;

const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;

/// What an alert can be about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// An account's name.
    Login(String),
    /// An address.
    Address(String),
}

/// The kinds of alert that the shipped policies raise. What is said here of an address is found by the alert's key, the rest by its
/// login.
mod kinds {
    pub(super) const NEW_COUNTRY: &str = "new_country";
    pub(super) const NEW_NETWORK: &str = "new_network";
    pub(super) const GUESSED: &str = "success_after_failures";
    pub(super) const SPRAY: &str = "one_address_many_logins";
    pub(super) const WOKEN: &str = "dormant_account";
    pub(super) const OF_ADDRESSES: [&str; 1] = [SPRAY];
}

/// An alert that must come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The alert's kind.
    pub kind: &'static str,
    /// Whom it names.
    pub subject: Subject,
}

/// Something that happens, over some time.
#[derive(Debug, Clone)]
pub struct Story {
    /// One line for people.
    pub title: String,
    /// The alerts that must come; none where it must stay quiet.
    pub expected: Vec<Expected>,
    /// Whom else an alert may name in that time without being a false alarm.
    pub about: Vec<Subject>,
    /// Its first report.
    pub from: Time,
    /// Its last report.
    pub until: Time,
    /// While it goes on, these accounts' owners do not log in.
    owners: Vec<u32>,
}

impl Story {
    /// Whether it is an attack, and not what only looks like one.
    pub fn is_attack(&self) -> bool {
        !self.expected.is_empty()
    }

    pub(super) fn quiet(&self, account: u32, t: i64) -> bool {
        (self.from.micros() - 2 * HOUR..self.until.micros() + 2 * HOUR).contains(&t) && self.owners.contains(&account)
    }

    fn covers(&self, at: Option<Time>) -> bool {
        // Suppression and windows reach an hour beyond the last report.
        at.is_none_or(|at| (self.from.micros() - MINUTE..=self.until.micros() + HOUR).contains(&at.micros()))
    }
}

fn subject_of(alert: &Alert) -> Subject {
    if kinds::OF_ADDRESSES.contains(&alert.kind.as_str()) {
        Subject::Address(alert.key.clone())
    } else {
        Subject::Login(alert.login.clone().unwrap_or_else(|| alert.key.clone()))
    }
}

/// Writes stories down.
struct Pen<'a> {
    town: &'a Town,
    dice: Dice,
    stories: Vec<Story>,
    entries: Vec<Entry>,
    /// Where the story that is being written begins in `entries`.
    mark: usize,
}

impl Pen<'_> {
    fn tries(&mut self, t: i64, who: Who, remote: std::net::IpAddr, via: Via, success: bool) {
        self.entries.push(Entry { t, who, remote, via, success });
    }

    fn account(&self, number: u32) -> Subject {
        Subject::Login(self.town.login(Who::Account(number)))
    }

    /// Any account that is nobody in particular.
    fn anybody(&mut self) -> u32 {
        let extras = self.town.accounts.len() as u64 - u64::from(cast::EXTRAS);
        cast::EXTRAS + self.dice.below(extras) as u32
    }

    fn end(&mut self, title: &str, expected: Vec<(&'static str, Subject)>, about: Vec<Subject>, owners: &[u32]) {
        let times = || self.entries[self.mark..].iter().map(|entry| entry.t);
        let (from, until) = (times().min().unwrap_or_default(), times().max().unwrap_or_default());
        self.stories.push(Story {
            title: title.to_owned(),
            expected: expected.into_iter().map(|(kind, subject)| Expected { kind, subject }).collect(),
            about,
            from: Time::from_micros(from),
            until: Time::from_micros(until),
            owners: owners.to_vec(),
        });
        self.mark = self.entries.len();
    }

    /// Somebody has the password and reads the mail from elsewhere.
    fn stolen(&mut self, title: &str, victim: u32, net: Net, when: i64, via: Via, kind: &'static str) {
        let remote = net.address(self.dice.next());
        for n in 0..5 {
            let t = when + n * 7 * MINUTE + self.dice.below(90) as i64 * SECOND;
            self.tries(t, Who::Account(victim), remote, if n == 0 { via } else { Via::Script }, true);
        }
        self.end(title, vec![(kind, self.account(victim))], vec![], &[]);
    }

    /// One address tries one password on many names, `gap` apart. Some names nobody has.
    fn spray(&mut self, remote: std::net::IpAddr, when: i64, names: i64, gap: i64) {
        let mut tried = HashSet::new();
        while (tried.len() as i64) < names {
            let number = if self.dice.percent(75.0) { self.anybody() } else { 1 << 30 | self.dice.below(4000) as u32 };
            if !tried.insert(number) {
                continue;
            }
            let who = if number < 1 << 30 { Who::Account(number) } else { Who::Nobody(number - (1 << 30)) };
            let t = when + (tried.len() as i64 - 1) * gap + self.dice.below(gap as u64 / 3) as i64;
            self.tries(t, who, remote, Via::Script, false);
        }
    }

    /// Many addresses try many passwords on one account; the last try succeeds.
    fn guessed(&mut self, title: &str, victim: u32, bots: &[(Net, u64)], end: Net, when: i64, also: &[&'static str]) {
        let gap = 40 * MINUTE / bots.len() as i64;
        for (n, (net, address)) in bots.iter().enumerate() {
            let t = when + n as i64 * gap + self.dice.below(gap as u64 / 2) as i64;
            self.tries(t, Who::Account(victim), net.address(*address), Via::Script, false);
        }
        let remote = end.address(self.dice.next());
        let hit = when + 41 * MINUTE;
        self.tries(hit, Who::Account(victim), remote, Via::Script, true);
        self.tries(hit + 3 * MINUTE, Who::Account(victim), remote, Via::Script, true);
        let mut expected = vec![(kinds::GUESSED, self.account(victim))];
        expected.extend(also.iter().map(|kind| (*kind, self.account(victim))));
        self.end(title, expected, vec![], &[victim]);
    }

    fn attacks(&mut self) {
        let at = |day, hour| self.town.at(THIN + day, hour);
        let [a, b, c, d, e, f, g, h, i, j, k] = [
            at(1, 3) + 12 * MINUTE,
            at(2, 19) + 4 * MINUTE,
            at(3, 23) + 31 * MINUTE,
            at(4, 10) + 9 * MINUTE,
            at(5, 2) + 40 * MINUTE,
            at(6, 4) + 17 * MINUTE,
            at(7, 14) + 25 * MINUTE,
            at(8, 1) + 2 * MINUTE,
            at(9, 16) + 44 * MINUTE,
            at(10, 5) + 5 * MINUTE,
            at(12, 21) + 20 * MINUTE,
        ];
        self.stolen(
            "A stolen password is used from Brazil",
            cast::BRAZIL,
            Net::Brazil,
            a,
            Via::Desktop,
            kinds::NEW_COUNTRY,
        );
        let spray = Net::HostingSc.address(65);
        self.spray(spray, b, 60, 3 * SECOND);
        self.end("One address sprays 60 names in 3 minutes", vec![(kinds::SPRAY, address(spray))], vec![], &[]);
        self.stolen(
            "A stolen password is used by webmail from Vietnam",
            cast::VIETNAM,
            Net::Vietnam,
            c,
            Via::Webmail,
            kinds::NEW_COUNTRY,
        );
        self.stolen(
            "A thief hides behind a proxy in the victim's own country",
            cast::PROXY,
            Net::Hosting,
            d,
            Via::Webmail,
            kinds::NEW_NETWORK,
        );
        let slow = Net::HostingNl.address(22);
        self.spray(slow, e, 360, 15 * SECOND);
        self.end(
            "One address sprays 4 names a minute, for 90 minutes",
            vec![(kinds::SPRAY, address(slow))],
            vec![],
            &[],
        );
        let bots: Vec<_> = (0..24).map(|_| (self.dice.pick(&FAR), self.dice.next())).collect();
        let title = "24 bots in many countries guess a password, and hit";
        self.guessed(title, cast::GUESSED_FAR, &bots, Net::Romania, f, &[kinds::NEW_COUNTRY]);
        let bots: Vec<_> = (0..9).map(|n| (Net::Home, self.dice.next() ^ n)).collect();
        let title = "9 hijacked routers in the victim's own network guess a password, and hit";
        self.guessed(title, cast::GUESSED_NEAR, &bots, Net::Home, g, &[]);
        self.wake("An account that slept for months is woken from home", cast::WOKEN_NEAR, Net::Home, h, &[]);
        self.wake(
            "An account that slept for months is woken from Nigeria",
            cast::WOKEN_FAR,
            Net::Nigeria,
            i,
            &[kinds::NEW_COUNTRY],
        );
        self.spray_that_hits(j);
        self.stolen(
            "A stolen password is used over IPv6 from Argentina",
            cast::ARGENTINA,
            Net::ArgentinaV6,
            k,
            Via::Phone,
            kinds::NEW_COUNTRY,
        );
    }

    fn wake(&mut self, title: &str, who: u32, net: Net, when: i64, also: &[&'static str]) {
        let remote = net.address(self.dice.next());
        for (n, success) in [false, false, true, true].into_iter().enumerate() {
            self.tries(when + n as i64 * 50 * SECOND, Who::Account(who), remote, Via::Script, success);
        }
        let mut expected = vec![(kinds::WOKEN, self.account(who))];
        expected.extend(also.iter().map(|kind| (*kind, self.account(who))));
        self.end(title, expected, vec![], &[]);
    }

    fn spray_that_hits(&mut self, when: i64) {
        let remote = Net::Romania.address(3000);
        self.spray(remote, when, 80, 6 * SECOND);
        for minutes in [9, 11, 16] {
            self.tries(when + minutes * MINUTE, Who::Account(cast::SPRAYED), remote, Via::Script, true);
        }
        let victim = self.account(cast::SPRAYED);
        let expected = vec![(kinds::SPRAY, address(remote)), (kinds::NEW_COUNTRY, victim)];
        self.end("One address sprays 80 names, finds a password and uses it", expected, vec![], &[]);
    }

    /// What must stay quiet.
    fn temptations(&mut self) {
        let monday = (1..9).find(|day| local(self.town.at(THIN + day, 8)).1 == 0).unwrap_or(1);
        let (t, gateway) = (self.town.at(THIN + monday, 8), super::accounts::Account::gateway(0));
        let staff = self.town.accounts.iter().filter(|account| account.company == Some(0));
        let staff: Vec<_> =
            staff.filter(|account| account.is_there(monday)).map(|account| account.number).take(60).collect();
        for (n, number) in staff.into_iter().enumerate() {
            let at = t + n as i64 * 5 * SECOND;
            if n % 7 == 3 {
                self.tries(at, Who::Account(number), gateway, Via::Desktop, false);
            }
            self.tries(at + 9 * SECOND, Who::Account(number), gateway, Via::Desktop, true);
        }
        self.end("Monday morning behind the gateway of an office, with typos", vec![], vec![address(gateway)], &[]);

        let (t, who) = (self.town.at(THIN + 4, 18), cast::MISTYPER);
        let home = self.town.accounts[who as usize].home();
        for n in 0..7 {
            self.tries(t + n * 20 * SECOND, Who::Account(who), home, Via::Webmail, n == 6);
        }
        self.end("Somebody mistypes six times and then remembers", vec![], vec![self.account(who)], &[who]);

        let (t, who) = (self.town.at(THIN + 2, 9), cast::SCANNER);
        let home = self.town.accounts[who as usize].home();
        for n in 0..96 {
            self.tries(t + n * 15 * MINUTE, Who::Account(who), home, Via::Smtp, false);
        }
        self.end("A scanner sends with an old password, all day", vec![], vec![self.account(who)], &[]);

        self.ordinary("A customer is back after sixty days of leave", cast::VACATION);
        self.ordinary("A traveller in a country where she was before", cast::TRAVELLER);
    }

    /// Nothing is added: what the account does by itself must not alarm anybody.
    fn ordinary(&mut self, title: &str, who: u32) {
        self.end(title, vec![], vec![self.account(who)], &[]);
        if let Some(story) = self.stories.last_mut() {
            story.from = Time::from_micros(self.town.day(THIN));
            story.until = Time::from_micros(self.town.start + DAYS as i64 * DAY);
        }
    }
}

fn address(remote: std::net::IpAddr) -> Subject {
    Subject::Address(remote.to_string())
}

/// Writes all stories: what they are, and the reports that they add.
pub(super) fn plant(town: &Town) -> (Vec<Story>, Vec<Entry>) {
    let dice = Dice::of(&[town.seed, 8]);
    let mut pen = Pen { town, dice, stories: Vec::new(), entries: Vec::new(), mark: 0 };
    pen.attacks();
    pen.temptations();
    (pen.stories, pen.entries)
}

/// A find: when, and what the alert said.
pub type Find = Option<(String, String)>;

/// What was planted against what was found.
#[derive(Debug)]
pub struct Ledger {
    stories: Vec<(Story, Vec<Find>)>,
    false_alarms: Vec<Alert>,
    seen: HashSet<String>,
    alerts: usize,
}

/// What an alert turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Of the story with this index.
    Story(usize),
    /// Of none.
    FalseAlarm,
    /// The same alert came before.
    Again,
}

impl Ledger {
    /// Nothing found yet.
    pub fn new(stories: &[Story]) -> Self {
        let stories = stories.iter().map(|story| (story.clone(), vec![None; story.expected.len()])).collect();
        Self { stories, false_alarms: Vec::new(), seen: HashSet::new(), alerts: 0 }
    }

    /// Takes an alert.
    pub fn take(&mut self, alert: &Alert) -> Verdict {
        if !self.seen.insert(alert.id.clone()) {
            return Verdict::Again;
        }
        self.alerts += 1;
        let (at, subject) = (alert.at(), subject_of(alert));
        let mut about = None;
        for (index, (story, finds)) in self.stories.iter_mut().enumerate() {
            if !story.is_attack() || !story.covers(at) {
                continue;
            }
            if story.expected.iter().any(|expected| expected.subject == subject) || story.about.contains(&subject) {
                about = Some(index);
            }
            let wanted = story.expected.iter().zip(finds).find(|(e, _)| e.kind == alert.kind && e.subject == subject);
            if let Some((_, find)) = wanted {
                find.get_or_insert_with(|| (alert.time.clone(), alert.title.clone()));
                return Verdict::Story(index);
            }
        }
        about.map_or_else(
            || {
                self.false_alarms.push(alert.clone());
                Verdict::FalseAlarm
            },
            Verdict::Story,
        )
    }

    /// Every story with what was found of it, in the order of what is expected.
    pub fn stories(&self) -> &[(Story, Vec<Find>)] {
        &self.stories
    }

    /// Alerts that belong to no attack.
    pub fn false_alarms(&self) -> &[Alert] {
        &self.false_alarms
    }

    /// The false alarms that a story which should have stayed quiet has raised.
    pub fn raised_by<'a>(&'a self, story: &'a Story) -> impl Iterator<Item = &'a Alert> {
        self.false_alarms.iter().filter(|alert| story.covers(alert.at()) && story.about.contains(&subject_of(alert)))
    }

    /// How many different alerts came.
    pub fn alerts(&self) -> usize {
        self.alerts
    }

    /// Whether every alert that must come has come.
    pub fn all_found(&self) -> bool {
        self.stories.iter().all(|(_, finds)| finds.iter().all(Option::is_some))
    }
}
