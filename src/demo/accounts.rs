//! The customers of the demo's provider: who they are, when they were there, and from where they log in at a given hour.
//!
//! Owns what is the case for an account over the whole time. Never makes a report (that is [`super::traffic`]).

use std::net::IpAddr;

use super::dice::Dice;
use super::world::Net;

/// Days of thin history before the fortnight.
pub(super) const THIN: u64 = 120;
/// Days in all.
pub(super) const DAYS: u64 = THIN + 14;

const FIRST: [&str; 60] = [
    "anna", "ben", "carla", "david", "elena", "felix", "greta", "hugo", "ida", "jonas", "karin", "leo", "mara", "nico",
    "olga", "paul", "rosa", "stefan", "tina", "udo", "vera", "walter", "xenia", "yara", "zoe", "alois", "bettina",
    "cornelia", "dieter", "erika", "franz", "gerda", "hans", "ines", "josef", "klara", "lukas", "maria", "norbert",
    "otto", "petra", "quirin", "ruth", "sepp", "theresa", "ulrike", "viktor", "wilma", "alma", "bruno", "celina",
    "doris", "emil", "frieda", "georg", "helga", "irma", "jakob", "kurt", "lena",
];
const LAST: [&str; 50] = [
    "gruber",
    "huber",
    "bauer",
    "wagner",
    "mueller",
    "pichler",
    "steiner",
    "moser",
    "mayer",
    "hofer",
    "leitner",
    "berger",
    "fuchs",
    "eder",
    "fischer",
    "schmid",
    "winkler",
    "weber",
    "schwarz",
    "maier",
    "schneider",
    "reiter",
    "mayr",
    "wimmer",
    "egger",
    "brunner",
    "lang",
    "baumgartner",
    "auer",
    "binder",
    "lechner",
    "wolf",
    "wallner",
    "aigner",
    "ebner",
    "koller",
    "lehner",
    "haas",
    "schuster",
    "koch",
    "holzer",
    "haider",
    "lackner",
    "strasser",
    "stadler",
    "boehm",
    "krenn",
    "lindner",
    "kern",
    "ziegler",
];

/// What sets an account apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// There all the time.
    Regular,
    /// Last seen in the first days.
    Asleep,
    /// Away for about sixty days, back in the fortnight on this day.
    Vacation(u64),
    /// Was twice in this neighbouring country before, and is there again for these days.
    Traveller(Net, u64, u64),
    /// Opened on this day of the fortnight.
    Newcomer(u64),
}

/// Who plays which part in the stories: numbers of accounts.
pub(super) mod cast {
    pub(in super::super) const BRAZIL: u32 = 0;
    pub(in super::super) const VIETNAM: u32 = 1;
    pub(in super::super) const PROXY: u32 = 2;
    pub(in super::super) const ARGENTINA: u32 = 3;
    pub(in super::super) const GUESSED_FAR: u32 = 4;
    pub(in super::super) const GUESSED_NEAR: u32 = 5;
    pub(in super::super) const WOKEN_NEAR: u32 = 6;
    pub(in super::super) const WOKEN_FAR: u32 = 7;
    pub(in super::super) const SPRAYED: u32 = 8;
    pub(in super::super) const MISTYPER: u32 = 9;
    pub(in super::super) const VACATION: u32 = 10;
    pub(in super::super) const TRAVELLER: u32 = 11;
    pub(in super::super) const SCANNER: u32 = 12;
    /// The rest are nobody in particular.
    pub(in super::super) const EXTRAS: u32 = 16;
}

/// One customer.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) number: u32,
    pub(super) login: String,
    pub(super) kind: Kind,
    /// The days between its networks' first uses are drawn with it; whatever else is of the account, too.
    key: u64,
    pub(super) phone: bool,
    pub(super) company: Option<u64>,
    v6: bool,
    /// How often it logs in, against the others.
    pub(super) weight: u32,
}

impl Account {
    pub(super) fn new(seed: u64, number: u32, all: u32) -> Self {
        let mut dice = Dice::of(&[seed, 1, u64::from(number)]);
        let n = Self::shuffled(seed, number, all);
        let (first, last) = (FIRST[n as usize % FIRST.len()], LAST[n as usize / FIRST.len() % LAST.len()]);
        let more = n as usize / (FIRST.len() * LAST.len());
        let more = if more == 0 { String::new() } else { more.to_string() };
        let kind = match number {
            cast::WOKEN_NEAR | cast::WOKEN_FAR => Kind::Asleep,
            cast::VACATION => Kind::Vacation(6),
            cast::TRAVELLER => Kind::Traveller(Net::Italy, 4, 8),
            _ if number < cast::EXTRAS => Kind::Regular,
            _ => match dice.below(200) {
                0..6 => Kind::Asleep,
                6..10 => Kind::Vacation(6 + 3 * dice.below(2)),
                10..16 => {
                    let from = 1 + dice.below(9);
                    Kind::Traveller(dice.pick(&[Net::Italy, Net::Germany, Net::Croatia]), from, from + dice.below(5))
                }
                16..20 => Kind::Newcomer(1 + dice.below(10)),
                _ => Kind::Regular,
            },
        };
        let weight = match dice.below(100) {
            0..50 => 1 + dice.below(4),
            50..90 => 6 + dice.below(10),
            _ => 30 + dice.below(60),
        };
        Self {
            number,
            login: format!("{first}.{last}{more}@alpennet.example"),
            kind,
            key: dice.next(),
            phone: number < cast::EXTRAS || dice.percent(70.0),
            // Half of all employees sit behind the gateway of the largest company.
            company: (number >= cast::EXTRAS && dice.percent(30.0))
                .then(|| if dice.percent(50.0) { 0 } else { dice.below(12) }),
            v6: dice.percent(35.0),
            weight: if kind == Kind::Asleep { 0 } else { weight as u32 },
        }
    }

    /// Neighbours in number must not be neighbours in name; a step without a common factor visits every name once.
    fn shuffled(seed: u64, number: u32, all: u32) -> u64 {
        let gcd = |mut a: u64, mut b: u64| {
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let all = u64::from(all.max(1));
        let mut step = all * 5 / 8 + 1;
        while gcd(step, all) != 1 {
            step += 1;
        }
        (u64::from(number) * step + seed) % all
    }

    /// Its address at home, the same all the time.
    pub(super) fn home(&self) -> IpAddr {
        if self.v6 { Net::HomeV6.address(self.key) } else { Net::Home.address(self.key) }
    }

    /// Its phone's address in this hour: one of few that many share.
    fn mobile(&self, day: u64, hour: u64) -> IpAddr {
        let n = Dice::of(&[self.key, day, hour / 3]).next();
        if self.v6 {
            return Net::MobileV6.address(n);
        }
        // In the last days the operator has opened a new range of addresses.
        let net = if day + 5 >= DAYS && n.is_multiple_of(3) { Net::MobileNew } else { Net::Mobile };
        net.address(n % 64 * 40)
    }

    /// The gateway of a company.
    pub(super) fn gateway(company: u64) -> IpAddr {
        Net::Office.address(9 + company)
    }

    /// Every address from which it must have been seen before it is learnt, with the day in the first fortnight. The thin history is
    /// of few days: each day of it costs the program's own history an index, which a person who waits for the demo would feel.
    pub(super) fn first_days(&self) -> Vec<(u64, IpAddr)> {
        let mut seen = vec![(0, self.home())];
        if self.phone {
            seen.push((4, self.mobile(4, 0)));
        }
        if let Some(company) = self.company {
            seen.push((8, Self::gateway(company)));
        }
        if let Kind::Traveller(net, ..) = self.kind {
            seen.push((4, net.address(self.key)));
            seen.push((11, net.address(self.key.wrapping_add(5))));
        }
        seen
    }

    /// Days of the thin history after the first fortnight on which it was there.
    pub(super) fn later_days(&self) -> Vec<u64> {
        let mut dice = Dice::of(&[self.key, 3]);
        match self.kind {
            Kind::Asleep | Kind::Newcomer(_) => Vec::new(),
            Kind::Vacation(back) => vec![45, THIN + back - 60],
            Kind::Regular | Kind::Traveller(..) => vec![45 + 5 * dice.below(2), 80 + 5 * dice.below(2)],
        }
    }

    /// Whether it logs in by itself on a day of the fortnight (from 0).
    pub(super) fn is_there(&self, day: u64) -> bool {
        match self.kind {
            Kind::Asleep => false,
            Kind::Vacation(back) => day > back,
            Kind::Newcomer(opened) => day > opened,
            Kind::Regular | Kind::Traveller(..) => true,
        }
    }

    /// From where it logs in: the day counts from the start of all, `hour` is local, `work` says whether it is a weekday.
    pub(super) fn place(&self, day: u64, hour: u64, work: bool) -> IpAddr {
        let on_the_way = Dice::of(&[self.key, 4, day, hour]).below(10);
        if let Kind::Traveller(net, from, to) = self.kind
            && (THIN + from..=THIN + to).contains(&day)
        {
            return net.address(self.key.wrapping_add(on_the_way));
        }
        match self.company {
            Some(company) if work && (8..17).contains(&hour) && on_the_way < 8 => Self::gateway(company),
            _ if self.phone && ((7..20).contains(&hour) && on_the_way < 6 || on_the_way == 9) => self.mobile(day, hour),
            _ => self.home(),
        }
    }
}
