//! What is hidden in the demo's traffic: the attacks that the shipped policies must find, and what looks like one and must stay quiet.
//!
//! Owns what a story is, and the table of which alert means which find. What happens in each is `plant`.

use super::traffic::SECOND;
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
pub(super) mod kinds {
    pub(in crate::demo) const NEW_COUNTRY: &str = "new_country";
    pub(in crate::demo) const NEW_NETWORK: &str = "new_network";
    pub(in crate::demo) const GUESSED: &str = "success_after_failures";
    pub(in crate::demo) const SPRAY: &str = "one_address_many_logins";
    pub(in crate::demo) const WOKEN: &str = "dormant_account";
    pub(in crate::demo) const OF_ADDRESSES: [&str; 1] = [SPRAY];
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
    pub(super) owners: Vec<u32>,
}

impl Story {
    /// Whether it is an attack, and not what only looks like one.
    pub fn is_attack(&self) -> bool {
        !self.expected.is_empty()
    }

    pub(super) fn quiet(&self, account: u32, t: i64) -> bool {
        (self.from.micros() - 2 * HOUR..self.until.micros() + 2 * HOUR).contains(&t) && self.owners.contains(&account)
    }

    pub(super) fn covers(&self, at: Option<Time>) -> bool {
        // Suppression and windows reach an hour beyond the last report.
        at.is_none_or(|at| (self.from.micros() - MINUTE..=self.until.micros() + HOUR).contains(&at.micros()))
    }
}

/// Whom an alert is about.
pub(super) fn subject_of(alert: &Alert) -> Subject {
    if kinds::OF_ADDRESSES.contains(&alert.kind.as_str()) {
        Subject::Address(alert.key.clone())
    } else {
        Subject::Login(alert.login.clone().unwrap_or_else(|| alert.key.clone()))
    }
}
