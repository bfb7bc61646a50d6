//! What is said of something that fails again and again, a broker or an endpoint: each kind of failure at once, then no more than once in
//! a while, with how often it was kept back.
//!
//! Owns the pace alone. The loss prevented: an outage, or a flood of requests, that writes a line for each try into the log hides what
//! else happens.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often one kind of failure is said.
const EVERY: Duration = Duration::from_secs(30);

/// What was said. The kinds are few: the program's own words, a client library's, or names that an operator has given.
#[derive(Debug, Default)]
pub(crate) struct Complaints(Mutex<BTreeMap<String, Said>>);

#[derive(Debug)]
struct Said {
    at: Instant,
    kept_back: u64,
}

impl Complaints {
    /// `Some`: it is to be said now; so often it was kept back since the last time.
    pub(crate) fn due(&self, kind: &str) -> Option<u64> {
        self.due_at(kind, Instant::now())
    }

    /// As if all was said long ago.
    #[cfg(test)]
    pub(crate) fn let_time_pass(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn due_at(&self, kind: &str, now: Instant) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(kind) {
            Some(said) if now.saturating_duration_since(said.at) < EVERY => {
                said.kept_back += 1;
                None
            }
            Some(said) => {
                said.at = now;
                Some(std::mem::take(&mut said.kept_back))
            }
            None => {
                all.insert(kind.to_owned(), Said { at: now, kept_back: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_said_at_once_and_then_with_how_often_it_was_kept_back() {
        let (complaints, now) = (Complaints::default(), Instant::now());
        assert_eq!(complaints.due_at("connect", now), Some(0));
        assert_eq!(complaints.due_at("connect", now + Duration::from_secs(1)), None);
        assert_eq!(complaints.due_at("publish", now + Duration::from_secs(2)), Some(0));
        assert_eq!(complaints.due_at("connect", now + Duration::from_secs(29)), None);
        assert_eq!(complaints.due_at("connect", now + Duration::from_secs(30)), Some(2));
        assert_eq!(complaints.due_at("connect", now + Duration::from_secs(61)), Some(0));
    }
}
