//! What must hold for the generated reports: each story can be found in them, and a model of the four policies finds nothing else.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use serde_json::Value;

use super::stories::{Ledger, Story, Subject, Verdict};
use super::traffic::{DAY, FEWEST, Generated, SECOND, TrafficOptions, traffic};
use super::world::Net;
use crate::alert::{Alert, Severity};
use crate::report::Time;

/// A Tuesday evening in 2025.
const UNTIL: Time = Time::from_micros(1_763_500_000 * SECOND);

fn options(reports: usize) -> TrafficOptions {
    TrafficOptions { reports, until: UNTIL }
}

pub(super) fn alert(kind: &str, login: &str, remote: &str, key: &str, at: Time) -> Alert {
    Alert {
        id: format!("{kind} {key} {}", at.micros()),
        time: at.rfc3339(),
        kind: kind.to_owned(),
        severity: Severity::Medium,
        title: format!("{key}: {kind}"),
        text: String::new(),
        login: Some(login.to_owned()),
        remote: Some(remote.to_owned()),
        evidence: Value::Null,
        attack: None,
        audience: None,
        key: key.to_owned(),
        policy: kind.to_owned(),
    }
}

/// What the shipped policies do, in as few words as possible.
#[derive(Default)]
pub(super) struct Model {
    logins: HashMap<String, (i64, i64, usize, HashSet<&'static str>, HashSet<u32>)>,
    failures: HashMap<String, Vec<(i64, IpAddr)>>,
    failing: HashMap<IpAddr, Vec<(i64, String)>>,
    /// Does not count what is later than the report, though it came before.
    strict: bool,
}

impl Model {
    pub(super) fn report(&mut self, report: &Generated) -> Vec<Alert> {
        let (_, country, asn) = Net::of(report.remote).expect("an address of the demo");
        let (t, login, mut alerts) = (report.t.micros(), &report.login, Vec::new());
        let mut raise = |kind, key: &str| {
            alerts.push(alert(kind, login, &report.remote.to_string(), key, report.t));
        };
        if !report.success {
            self.failures.entry(login.clone()).or_default().push((t, report.remote));
            let failing = self.failing.entry(report.remote).or_default();
            failing.push((t, login.clone()));
            let earliest = if self.strict { 0 } else { i64::MIN };
            let seen = |at| t - at < 300 * SECOND && t - at >= earliest;
            let names: BTreeSet<_> = failing.iter().filter(|(at, _)| seen(*at)).map(|(_, name)| name).collect();
            if names.len() >= 15 {
                raise("one_address_many_logins", &report.remote.to_string());
            }
            return alerts;
        }
        let failures = self.failures.get(login).map(Vec::as_slice).unwrap_or_default();
        let addresses: BTreeSet<_> =
            failures.iter().filter(|(at, _)| t - at < 3600 * SECOND).map(|(_, address)| address).collect();
        if addresses.len() >= 5 {
            raise("success_after_failures", login);
        }
        let known = self.logins.entry(login.clone()).or_insert_with(|| (t, t, 0, HashSet::new(), HashSet::new()));
        if t - known.1 >= 90 * DAY {
            raise("dormant_account", login);
        }
        if known.2 >= 10 || known.2 > 0 && t - known.0 >= 14 * DAY {
            if !known.3.contains(country) {
                raise("new_country", login);
            } else if !known.4.contains(&asn) {
                raise("new_network", login);
            }
        }
        (known.1, known.2) = (t, known.2 + 1);
        known.3.insert(country);
        known.4.insert(asn);
        alerts
    }
}

#[test]
fn model_of_the_policies_finds_every_story_and_nothing_else() {
    for (seed, reports) in [(1, 40_000), (2, FEWEST), (7, 25_000)] {
        let stream = traffic(seed, &options(reports));
        let (mut ledger, mut model) = (Ledger::new(stream.stories()), Model::default());
        for report in stream {
            for alert in model.report(&report) {
                ledger.take(&alert);
            }
        }
        let titles: Vec<_> = ledger.false_alarms().iter().map(|alert| (&alert.time, &alert.title)).collect();
        assert!(titles.is_empty(), "seed {seed}: {titles:?}");
        for (story, finds) in ledger.stories() {
            assert!(finds.iter().all(Option::is_some), "seed {seed}: {}: {finds:?}", story.title);
        }
        assert!(ledger.all_found());
    }
}

#[test]
fn stories_are_found_although_the_reports_of_hours_come_in_any_order_but_that_of_their_login() {
    let stream = traffic(3, &options(40_000));
    let (mut ledger, mut model) = (Ledger::new(stream.stories()), Model { strict: true, ..Model::default() });
    let mut reports: Vec<_> = stream.collect();
    let mut dice = super::dice::Dice::of(&[3]);
    for chunk in reports.chunks_mut(600) {
        let mut places: Vec<_> = chunk.iter().map(|report| (dice.next(), report.login.clone())).collect();
        let mut by_login: HashMap<String, Vec<u64>> = HashMap::new();
        places.iter().for_each(|(place, login)| by_login.entry(login.clone()).or_default().push(*place));
        by_login.values_mut().for_each(|places| places.sort_unstable_by_key(|place| std::cmp::Reverse(*place)));
        places.iter_mut().for_each(|(place, login)| *place = by_login.get_mut(login).unwrap().pop().unwrap());
        let mut mixed: Vec<_> = places.into_iter().map(|(place, _)| place).zip(chunk.iter().cloned()).collect();
        mixed.sort_by_key(|(place, _)| *place);
        chunk.iter_mut().zip(mixed).for_each(|(to, (_, report))| *to = report);
    }
    for report in &reports {
        for alert in model.report(report) {
            ledger.take(&alert);
        }
    }
    assert!(ledger.all_found() && ledger.false_alarms().is_empty(), "{:?}", ledger.stories());
}

#[test]
fn same_seed_gives_the_same_bytes_and_another_gives_others() {
    let bytes = |seed| traffic(seed, &options(FEWEST)).map(|report| report.body).collect::<Vec<_>>();
    let first = bytes(3);
    assert_eq!(first, bytes(3));
    assert_ne!(first, bytes(4));
}

#[test]
fn stream_has_the_asked_number_of_reports_in_order_of_time_from_allowed_addresses() {
    let allowed: Vec<ipnet::IpNet> =
        ["198.18.0.0/15", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"]
            .map(|net| net.parse().unwrap())
            .to_vec();
    for reports in [FEWEST, 30_000] {
        let (mut count, mut last, mut bodies) = (0, Time::from_micros(0), HashSet::new());
        for report in traffic(11, &options(reports)) {
            assert!(report.t >= last && report.t <= UNTIL);
            assert!(UNTIL.since(report.t).as_secs() <= 134 * 86_400);
            assert!(allowed.iter().any(|net| net.contains(&report.remote)), "{}", report.remote);
            last = report.t;
            count += 1;
            assert!(bodies.insert(report.body), "two reports that are the same");
        }
        assert!(count * 100 >= reports * 99 && count * 100 <= reports * 101, "{count} of {reports}");
    }
}

#[test]
fn body_is_what_wforce_sends() {
    let report = traffic(1, &options(FEWEST)).next().unwrap();
    let text = String::from_utf8(report.body.clone()).unwrap();
    let body: Value = serde_json::from_str(&text).unwrap();
    let keys = [
        "attrs",
        "device_attrs",
        "device_id",
        "fail_type",
        "login",
        "policy_reject",
        "protocol",
        "pwhash",
        "remote",
        "session_id",
        "success",
        "t",
        "tls",
        "type",
    ];
    assert_eq!(body.as_object().unwrap().len(), keys.len());
    let places: Vec<_> = keys.iter().map(|key| text.find(&format!("\"{key}\":")).expect(key)).collect();
    assert!(places.is_sorted(), "{text}");
    assert_eq!(body["login"], report.login);
    assert_eq!(body["remote"], report.remote.to_string());
    assert_eq!(Time::from_seconds(body["t"].as_f64().unwrap()), Some(report.t));
    assert_eq!(body["type"], "wforce_report");
}

fn story<'a>(stories: &'a [Story], words: &str) -> &'a Story {
    stories.iter().find(|story| story.title.contains(words)).expect(words)
}

fn login_of(story: &Story) -> String {
    let all = story.expected.iter().map(|expected| &expected.subject).chain(&story.about);
    all.filter_map(|subject| match subject {
        Subject::Login(login) => Some(login.clone()),
        Subject::Address(_) => None,
    })
    .next()
    .unwrap()
}

#[test]
fn every_story_is_in_the_stream_as_its_title_says() {
    let stream = traffic(5, &options(20_000));
    let stories = stream.stories().to_vec();
    assert!((8..=12).contains(&stories.iter().filter(|story| story.is_attack()).count()));
    let reports: Vec<_> = stream.collect();
    let during = |story: &Story| {
        let (from, until) = (story.from, story.until);
        reports.iter().filter(move |report| report.t >= from && report.t <= until).collect::<Vec<_>>()
    };
    for (words, most) in [("60 names", 300), ("4 names", 300), ("80 names", 300)] {
        let story = story(&stories, words);
        let Subject::Address(address) = &story.expected[0].subject else { panic!("{words}: no address") };
        let here: Vec<_> = during(story).into_iter().filter(|report| report.remote.to_string() == *address).collect();
        let names = |from: Time| {
            let near = here.iter().filter(|r| !r.success && r.t >= from && r.t.since(from).as_secs() < most);
            near.map(|r| &r.login).collect::<HashSet<_>>().len()
        };
        assert!(here.iter().map(|report| names(report.t)).max() >= Some(15), "{words}");
    }
    for words in ["24 bots", "9 hijacked"] {
        let story = story(&stories, words);
        let login = login_of(story);
        let (mut addresses, mut hit) = (HashSet::new(), false);
        for report in during(story).into_iter().filter(|report| report.login == login) {
            assert!(!hit || report.success, "{words}: a failure after the hit");
            hit |= report.success;
            if !report.success {
                addresses.insert(report.remote);
            }
        }
        assert!(hit && addresses.len() >= 5, "{words}: {addresses:?}");
    }
    for words in ["woken from home", "woken from Nigeria"] {
        let story = story(&stories, words);
        let login = login_of(story);
        let good = |r: &&Generated| r.success && r.login == login;
        let before = reports.iter().filter(good).take_while(|r| r.t < story.from).last().expect("seen before");
        assert!(story.from.since(before.t).as_secs() >= 90 * 86_400, "{words}");
        assert!(during(story).into_iter().any(|r| good(&r)), "{words}");
    }
}

#[test]
fn what_must_stay_quiet_is_tempting() {
    let stream = traffic(5, &options(20_000));
    let stories = stream.stories().to_vec();
    let reports: Vec<_> = stream.collect();
    let of = |login: String| reports.iter().filter(move |report| report.login == login).collect::<Vec<_>>();

    let traveller = of(login_of(story(&stories, "traveller")));
    let abroad: Vec<_> = traveller.iter().filter(|r| Net::of(r.remote).unwrap().1 == "IT").map(|r| r.t).collect();
    let fortnight = UNTIL.minus(std::time::Duration::from_secs(14 * 86_400));
    assert_eq!(abroad.iter().filter(|t| **t < fortnight).count(), 2, "twice before");

    let leave = of(login_of(story(&stories, "sixty days")));
    let gap = leave.windows(2).map(|pair| pair[1].t.since(pair[0].t).as_secs() / 86_400).max();
    assert!((Some(58)..=Some(62)).contains(&gap), "{gap:?}");

    let office = story(&stories, "office");
    let Subject::Address(gateway) = &office.about[0] else { panic!("no address") };
    let failing: HashSet<_> = reports
        .iter()
        .filter(|r| r.t >= office.from && r.t <= office.until && r.remote.to_string() == *gateway && !r.success)
        .map(|r| &r.login)
        .collect();
    assert!((5..15).contains(&failing.len()), "{}", failing.len());
}

#[test]
fn ledger_tells_a_find_from_a_false_alarm_and_from_a_repetition() {
    let stream = traffic(1, &options(FEWEST));
    let stories = stream.stories().to_vec();
    let mut ledger = Ledger::new(&stories);
    let index = stories.iter().position(|story| story.title.contains("woken from Nigeria")).unwrap();
    let (story, login) = (&stories[index], login_of(&stories[index]));
    let woken = alert("dormant_account", &login, "198.19.96.1", &login, story.until);

    assert_eq!(ledger.take(&woken), Verdict::Story(index));
    assert_eq!(ledger.take(&woken), Verdict::Again);
    assert!(ledger.stories()[index].1[0].is_some() && ledger.stories()[index].1[1].is_none());
    // Of the story, though not what was asked for.
    let also = alert("new_network", &login, "198.19.96.1", &login, story.until);
    assert_eq!(ledger.take(&also), Verdict::Story(index));
    // Right account, wrong time.
    let early =
        alert("dormant_account", &login, "198.19.96.1", &login, story.from.minus(std::time::Duration::from_secs(7200)));
    assert_eq!(ledger.take(&early), Verdict::FalseAlarm);
    // An alert about an address is not of a story because the last of its names is the victim's.
    let nat = alert("one_address_many_logins", &login, "192.0.2.10", "192.0.2.10", story.until);
    assert_eq!(ledger.take(&nat), Verdict::FalseAlarm);
    assert_eq!((ledger.alerts(), ledger.false_alarms().len(), ledger.all_found()), (4, 2, false));

    let quiet = stories.iter().find(|story| story.title.contains("mistypes")).unwrap();
    let owner = login_of(quiet);
    let known = alert("success_after_failures", &owner, "198.18.0.9", &owner, quiet.until);
    assert_eq!(ledger.take(&known), Verdict::FalseAlarm);
    assert_eq!(ledger.raised_by(quiet).count(), 1);
}
