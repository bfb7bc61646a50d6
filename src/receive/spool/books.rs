//! Who may go to the broker, who goes behind the spool, and in which order what did not get through is written down. Pure.
//!
//! Owns the order of one login's reports. A report takes a number when it comes. It goes into the spool only when every one with a lower
//! number has been confirmed or is in the spool, and while its login has anything there no later one goes past it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The books of one spool. `E` is what waits to be written.
pub(super) struct Books<E> {
    next: u64,
    /// Numbers of those that are on their way to the broker.
    direct: BTreeSet<u64>,
    /// What is to be written, by number.
    held: BTreeMap<u64, E>,
    /// How many reports of each login are in the spool or on their way into it.
    logins: HashMap<String, u64>,
    most_logins: usize,
    /// All go behind the spool: it is not known, or not kept, whose reports are in it.
    everybody: bool,
    /// All reports in the spool or on their way into it.
    total: u64,
}

/// Where a request's reports go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To the broker.
    Direct(u64),
    /// Into the spool: some of them have to stay behind what is there.
    Behind(u64),
}

impl<E> Books<E> {
    /// Books of a spool that has `total` reports of before, nobody remembers whose.
    pub(super) fn new(total: u64, most_logins: usize) -> Self {
        Self {
            next: 0,
            direct: BTreeSet::new(),
            held: BTreeMap::new(),
            logins: HashMap::new(),
            most_logins,
            everybody: total > 0,
            total,
        }
    }

    /// A request with reports of these logins has come. `down`: the broker takes nothing at the moment.
    pub(super) fn way<'a>(&mut self, down: bool, mut logins: impl Iterator<Item = &'a str>) -> Way {
        let number = self.next;
        self.next += 1;
        if down || self.everybody || (!self.logins.is_empty() && logins.any(|login| self.logins.contains_key(login))) {
            return Way::Behind(number);
        }
        self.direct.insert(number);
        Way::Direct(number)
    }

    /// The broker has confirmed, or nobody waits for that any more.
    pub(super) fn resolved(&mut self, number: u64) {
        self.direct.remove(&number);
    }

    /// These go into the spool, in the place that their number gives them.
    pub(super) fn hold<'a>(&mut self, number: u64, logins: impl Iterator<Item = &'a str>, entry: E) {
        self.direct.remove(&number);
        logins.for_each(|login| self.count(login));
        self.held.insert(number, entry);
    }

    /// Whoever waited for this to be written does so no longer. `None`: it is written, or being written.
    pub(super) fn withdraw(&mut self, number: u64) -> Option<E> {
        self.held.remove(&number)
    }

    /// One more report of a login: held, or in the spool without having been, as a dead letter of it that was sent again.
    pub(super) fn count(&mut self, login: &str) {
        self.total += 1;
        if self.everybody {
            return;
        }
        if let Some(count) = self.logins.get_mut(login) {
            *count += 1;
        } else if self.logins.len() < self.most_logins {
            self.logins.insert(login.to_owned(), 1);
        } else {
            self.everybody = true;
            self.logins = HashMap::new();
        }
    }

    /// Something is held, written or not.
    pub(super) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// The next one that may be written.
    pub(super) fn writable(&mut self) -> Option<E> {
        let (number, _) = self.held.first_key_value()?;
        if self.direct.first().is_some_and(|direct| direct < number) {
            return None;
        }
        self.held.pop_first().map(|(_, entry)| entry)
    }

    /// Reports of these logins are not in the spool any more, or did not get into it. `true`: the spool is empty now.
    pub(super) fn gone<'a>(&mut self, logins: impl Iterator<Item = &'a str>) -> bool {
        let before = self.total;
        for login in logins {
            self.total = self.total.saturating_sub(1);
            if let Some(count) = self.logins.get_mut(login) {
                *count -= 1;
                if *count == 0 {
                    self.logins.remove(login);
                }
            }
        }
        self.empty_since(before)
    }

    /// The spool itself says that nothing is in it, and nothing is on its way into it.
    pub(super) fn emptied(&mut self) -> bool {
        let before = std::mem::take(&mut self.total);
        self.logins.clear();
        self.empty_since(before)
    }

    fn empty_since(&mut self, before: u64) -> bool {
        let emptied = before > 0 && self.total == 0;
        if emptied {
            self.everybody = false;
            self.logins = HashMap::new();
        }
        emptied
    }

    /// All reports in the spool or on their way into it.
    pub(super) const fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(login: &str) -> impl Iterator<Item = &str> {
        std::iter::once(login)
    }

    #[test]
    fn later_report_of_a_spooled_login_goes_behind_it_and_another_login_does_not() {
        let mut books = Books::new(0, 10);
        assert_eq!(books.way(false, one("ann")), Way::Direct(0));
        books.hold(0, one("ann"), "first");
        assert_eq!(books.way(false, one("ann")), Way::Behind(1));
        assert_eq!(books.way(false, ["bob", "ann"].into_iter()), Way::Behind(2));
        assert_eq!(books.way(false, one("bob")), Way::Direct(3));
        books.hold(1, one("ann"), "second");
        assert_eq!((books.writable(), books.writable(), books.writable()), (Some("first"), Some("second"), None));
        assert!(!books.gone(one("ann")));
        assert_eq!(books.way(false, one("ann")), Way::Behind(4));
        assert!(books.gone(one("ann")));
        assert_eq!(books.way(false, one("ann")), Way::Direct(5));
    }

    #[test]
    fn letter_that_was_sent_again_ahead_of_a_report_does_not_stand_for_it() {
        for letter_first in [false, true] {
            let mut books = Books::new(0, 10);
            books.way(false, one("ann"));
            if letter_first {
                books.count("ann");
            }
            books.hold(0, one("ann"), ());
            if !letter_first {
                books.count("ann");
            }
            assert!(!books.gone(one("ann")));
            assert_eq!(books.way(false, one("ann")), Way::Behind(1), "letter first: {letter_first}");
            assert!(books.gone(one("ann")));
        }
    }

    #[test]
    fn one_that_failed_waits_until_those_before_it_have_failed_or_are_confirmed() {
        let mut books = Books::new(0, 10);
        for number in 0..3 {
            assert_eq!(books.way(false, one("ann")), Way::Direct(number));
        }
        books.hold(2, one("ann"), 2);
        assert_eq!(books.writable(), None, "it would overtake");
        books.hold(0, one("ann"), 0);
        assert_eq!((books.writable(), books.writable()), (Some(0), None));
        books.resolved(1);
        assert_eq!(books.writable(), Some(2));
    }

    #[test]
    fn too_many_logins_or_reports_of_before_send_everybody_behind_until_it_is_empty() {
        let mut books = Books::new(0, 2);
        for (number, login) in ["a", "b", "c"].into_iter().enumerate() {
            books.way(false, one(login));
            books.hold(number as u64, one(login), ());
        }
        assert_eq!(books.way(false, one("z")), Way::Behind(3));
        assert!(!books.gone(["a", "b"].into_iter()));
        assert_eq!(books.way(false, one("z")), Way::Behind(4));
        assert!(books.gone(one("c")));
        assert_eq!(books.way(false, one("z")), Way::Direct(5));

        let mut books = Books::<()>::new(2, 2);
        assert_eq!(books.way(false, one("z")), Way::Behind(0));
        assert!(books.gone(["a", "b"].into_iter()));
        assert_eq!(books.way(false, one("z")), Way::Direct(1));
    }

    proptest! {
        /// Whatever fails when, and is forwarded when: each login's reports come out in the order in which they came.
        #[test]
        fn order_of_a_login_is_the_order_in_which_it_came(
            steps in proptest::collection::vec((0_u8..6, 0_usize..4, any::<prop::sample::Index>()), 1..300),
            most in 1_usize..4,
        ) {
            const LOGINS: [&str; 4] = ["a", "b", "c", "d"];
            let mut books = Books::new(0, most);
            let (mut on_their_way, mut spool, mut out) = (Vec::new(), std::collections::VecDeque::new(), Vec::new());
            let mut arrivals = 0_u64;
            let write = |books: &mut Books<(u64, usize)>, spool: &mut std::collections::VecDeque<(u64, usize)>| {
                while let Some(entry) = books.writable() {
                    spool.push_back(entry);
                }
            };
            for (step, login, index) in steps {
                match step {
                    0..3 => {
                        let entry = (arrivals, login);
                        arrivals += 1;
                        match books.way(false, one(LOGINS[login])) {
                            Way::Direct(number) => on_their_way.push((number, entry)),
                            Way::Behind(number) => books.hold(number, one(LOGINS[login]), entry),
                        }
                    }
                    // Of one login the broker confirms in order; and what came before one that failed fails with it, or was confirmed.
                    3 if !on_their_way.is_empty() => {
                        let login = on_their_way[index.index(on_their_way.len())].1.1;
                        let at = on_their_way.iter().position(|(_, entry)| entry.1 == login).unwrap();
                        let (number, entry) = on_their_way.remove(at);
                        books.resolved(number);
                        out.push(entry);
                    }
                    // The broker is gone: all fail, in any order.
                    4 => {
                        while !on_their_way.is_empty() {
                            let (number, entry) = on_their_way.remove(index.index(on_their_way.len()));
                            books.hold(number, one(LOGINS[entry.1]), entry);
                        }
                    }
                    5 => if let Some(entry) = spool.pop_front() {
                        out.push(entry);
                        books.gone(one(LOGINS[entry.1]));
                    },
                    _ => {}
                }
                write(&mut books, &mut spool);
            }
            for (number, entry) in on_their_way {
                books.hold(number, one(LOGINS[entry.1]), entry);
            }
            write(&mut books, &mut spool);
            prop_assert!(!books.is_holding());
            out.extend(spool);
            prop_assert_eq!(out.len() as u64, arrivals, "a report is lost or there twice");
            for (login, name) in LOGINS.iter().enumerate() {
                let order: Vec<u64> = out.iter().filter(|entry| entry.1 == login).map(|entry| entry.0).collect();
                prop_assert!(order.is_sorted(), "{} of {:?}", name, order);
            }
        }
    }
}
