//! The shipped policies, as they are shipped, against streams of reports: what each must tell, what it must keep silent about, and
//! that a report delivered again tells the same.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

#[path = "support/memory_history.rs"]
mod memory_history;
#[path = "support/memory_state.rs"]
mod memory_state;
#[path = "support/policy_bench.rs"]
mod policy_bench;

use memory_history::attempt;
use policy_bench::Bench;
use trackalert::alert::{Alert, Severity};
use trackalert::report::{Geo, LoginReport};

const POLICIES: [&str; 4] = ["new_origin", "success_after_failures", "one_address_many_logins", "dormant_account"];
const DAY: f64 = 86_400.0;
const MINUTE: f64 = 60.0;
/// Some day in report time, far from now: what goes by the wall clock fails here.
const START: f64 = 1_600_000_000.0;

fn success(login: &str, remote: &str, t: f64) -> LoginReport {
    attempt(login, remote, START + t, true)
}

fn failure(login: &str, remote: &str, t: f64) -> LoginReport {
    attempt(login, remote, START + t, false)
}

fn from(mut report: LoginReport, country: &str, asn: u32) -> LoginReport {
    report.geo = Geo { country: Some(country.to_owned()), asn: Some(asn), ..Geo::default() };
    report
}

fn kinds(alerts: &[Alert]) -> Vec<&str> {
    alerts.iter().map(|alert| alert.kind.as_str()).collect()
}

/// Twelve logins of alice within twelve hours, from Germany.
async fn learnt(bench: &Bench) {
    for hour in 0..12 {
        let alerts = bench.run(from(success("alice", "192.0.2.7", f64::from(hour) * 3600.0), "DE", 64496)).await;
        assert!(alerts.is_empty(), "while it learns: {alerts:?}");
    }
}

#[tokio::test]
async fn new_origin_tells_of_a_country_never_seen_and_only_once() {
    let bench = Bench::new("new_origin").await;
    learnt(&bench).await;
    let alerts = bench.run(from(success("alice", "198.51.100.9", DAY), "BR", 64500)).await;
    assert_eq!(kinds(&alerts), ["new_country"]);
    let alert = &alerts[0];
    assert_eq!((alert.severity, alert.key.as_str()), (Severity::Medium, "alice"));
    assert!(alert.title.contains("alice") && alert.title.contains("BR"), "{}", alert.title);
    assert_eq!(alert.evidence["country"], "BR");
    assert_eq!(alert.evidence["asn"], 64500);
    assert_eq!(alert.evidence["known_countries"], serde_json::json!(["DE"]));
    assert_eq!(alert.evidence["logins"], 12);
    assert!(alert.evidence["last_login"].as_str().unwrap().starts_with("2020-09-13T23:26:40"), "{}", alert.evidence);
    assert!(bench.run(from(success("alice", "198.51.100.9", DAY + 60.0), "BR", 64500)).await.is_empty());
    assert!(bench.run(from(failure("alice", "203.0.113.9", DAY + 90.0), "FR", 64501)).await.is_empty(), "a failure");
}

#[tokio::test]
async fn new_origin_tells_of_a_network_and_falls_back_to_prefixes() {
    let bench = Bench::new("new_origin").await;
    learnt(&bench).await;
    let alerts = bench.run(from(success("alice", "198.51.100.9", DAY), "DE", 64500)).await;
    assert_eq!(kinds(&alerts), ["new_network"]);
    assert_eq!(alerts[0].severity, Severity::Low);

    for n in 0..10 {
        assert!(bench.run(success("bob", "2001:db8:1::7", f64::from(n))).await.is_empty());
    }
    assert!(bench.run(success("bob", "2001:db8:1:ffff::8", 20.0)).await.is_empty(), "the same /48");
    let alerts = bench.run(success("bob", "2001:db8:2::8", 30.0)).await;
    assert_eq!(alerts[0].evidence["network"], "2001:db8:2::/48");
    let alerts = bench.run(success("bob", "192.0.2.8", 40.0)).await;
    assert_eq!(alerts[0].evidence["network"], "192.0.2.0/24");
}

#[tokio::test]
async fn new_origin_learns_for_fourteen_days_or_ten_logins() {
    let bench = Bench::new("new_origin").await;
    let at = |day: f64, country: &str, asn| from(success("carol", "192.0.2.1", day * DAY), country, asn);
    assert!(bench.run(at(0.0, "DE", 1)).await.is_empty());
    assert!(bench.run(at(13.9, "FR", 2)).await.is_empty(), "13.9 days and one login");
    assert_eq!(kinds(&bench.run(at(14.0, "NL", 3)).await), ["new_country"], "14 days and two logins");

    for n in 0..10 {
        let login = from(success("dave", "192.0.2.1", f64::from(n)), if n == 9 { "FR" } else { "DE" }, 1);
        assert!(bench.run(login).await.is_empty(), "the tenth login is still learnt");
    }
    assert_eq!(kinds(&bench.run(from(success("dave", "192.0.2.1", 60.0), "NL", 1)).await), ["new_country"]);
}

#[tokio::test]
async fn new_origin_asks_the_history_only_when_something_is_new() {
    let bench = Bench::new("new_origin").await;
    // The history is older than the state: a policy that was added to a running system.
    for hour in 0..20 {
        let country = if hour < 3 { "AT" } else { "DE" };
        bench.history.put(from(success("alice", "192.0.2.7", f64::from(hour) * 3600.0), country, 64496));
    }
    let searches = || bench.history.searches();
    assert!(bench.run(from(success("alice", "192.0.2.7", DAY), "AT", 64496)).await.is_empty(), "known to the history");
    assert_eq!(searches(), 1);
    for n in 0..5 {
        bench.run(from(success("alice", "192.0.2.7", DAY + f64::from(n)), "DE", 64496)).await;
    }
    assert_eq!(searches(), 1, "nothing new, no search");
    let alerts = bench.run(from(success("alice", "192.0.2.7", 2.0 * DAY), "BR", 64496)).await;
    assert_eq!(kinds(&alerts), ["new_country"]);
    assert_eq!(searches(), 2);
    assert_eq!(alerts[0].evidence["known_countries"], serde_json::json!(["AT", "DE"]));
}

#[tokio::test]
async fn new_origin_writes_only_what_is_new_and_once_a_day() {
    let bench = Bench::new("new_origin").await;
    learnt(&bench).await;
    let writes = async |remote: &str, t: f64, country: &str, asn| {
        let report = from(success("alice", remote, t), country, asn);
        let effects = bench.call(&report).await;
        let writes = effects.writes.len();
        bench.apply(&report, effects).await;
        writes
    };
    assert_eq!(writes("192.0.2.7", 0.6 * DAY, "DE", 64496).await, 0, "where it always logs in from");
    let searches = bench.history.searches();
    assert_eq!(writes("198.51.100.9", 0.7 * DAY, "BR", 64500).await, 1, "a new place");
    assert_eq!(writes("198.51.100.9", 0.8 * DAY, "BR", 64500).await, 0, "it is known now");
    assert_eq!(bench.history.searches(), searches + 1);
    assert_eq!(writes("192.0.2.7", 1.5 * DAY, "DE", 64496).await, 1, "noted again after a day");
    assert_eq!(writes("192.0.2.7", 1.6 * DAY, "DE", 64496).await, 0);
    // So one that is used every day is never learnt anew.
    for day in 2..400 {
        assert_eq!(writes("192.0.2.7", f64::from(day) * DAY + 60_000.0, "DE", 64496).await, 1, "{day}");
    }
    assert_eq!(kinds(&bench.run(from(success("alice", "203.0.113.1", 400.0 * DAY), "FR", 3)).await), ["new_country"]);
}

#[tokio::test]
async fn new_origin_is_silent_when_a_geoip_file_is_new() {
    let bench = Bench::new("new_origin").await;
    for hour in 0..12 {
        bench.run(success("alice", "192.0.2.7", f64::from(hour) * 3600.0)).await;
    }
    assert!(bench.run(from(success("alice", "192.0.2.7", DAY), "DE", 64496)).await.is_empty());
}

#[tokio::test]
async fn success_after_failures_from_many_addresses() {
    let bench = Bench::new("success_after_failures").await;
    // Known to the history only: the policy is new here.
    bench.history.put(success("alice", "192.0.2.7", -10.0 * DAY));
    for n in 0..6 {
        let guess = failure("alice", &format!("203.0.113.{n}"), f64::from(n) * MINUTE);
        assert!(bench.run(guess).await.is_empty(), "a failure alone says nothing");
    }
    let alerts = bench.run(success("alice", "203.0.113.99", 10.0 * MINUTE)).await;
    assert_eq!(kinds(&alerts), ["success_after_failures"]);
    assert_eq!((alerts[0].severity, alerts[0].key.as_str()), (Severity::High, "alice"));
    assert_eq!(alerts[0].evidence["failing_addresses"], 6);
    assert_eq!(alerts[0].evidence["some_addresses"].as_array().unwrap().len(), 6);
    assert!(alerts[0].title.contains("from 6 addresses"), "{}", alerts[0].title);

    let owner = bench.run(success("alice", "192.0.2.7", 11.0 * MINUTE)).await;
    assert_eq!(owner[0].severity, Severity::Low, "an address with a success before");
    assert_ne!(owner[0].key, alerts[0].key, "and it must not suppress the other");
    let again = bench.run(success("alice", "203.0.113.99", 40.0 * MINUTE)).await;
    assert_eq!(again[0].severity, Severity::High, "an address does not become known under attack");
    assert!(bench.run(success("bob", "203.0.113.99", 11.0 * MINUTE)).await.is_empty(), "another login");

    // What the history shows too late, the state knows at once.
    let lagging = Bench::new("success_after_failures").await;
    let owner = success("alice", "192.0.2.7", -DAY);
    lagging.apply(&owner, lagging.call(&owner).await).await;
    for n in 0..5 {
        lagging.run(failure("alice", &format!("203.0.113.{n}"), f64::from(n))).await;
    }
    assert_eq!(lagging.run(success("alice", "192.0.2.7", MINUTE)).await[0].severity, Severity::Low);
}

#[tokio::test]
async fn success_after_failures_asks_once_for_a_client_that_logs_in_all_the_time() {
    let bench = Bench::new("success_after_failures").await;
    for n in 0..6 {
        bench.run(failure("alice", &format!("203.0.113.{n}"), f64::from(n))).await;
    }
    let mut raised = 0;
    for n in 0..300 {
        raised += bench.run(success("alice", "192.0.2.7", MINUTE + f64::from(n) * 10.0)).await.len();
    }
    assert!((4..=7).contains(&raised), "told once in ten minutes of fifty: {raised}");
    assert_eq!(bench.history.searches(), raised, "a search only where something is told");
    let thief = bench.run(success("alice", "198.51.100.3", MINUTE + 2995.0)).await;
    assert_eq!(kinds(&thief), ["success_after_failures"], "another address is news at once");
}

#[tokio::test]
async fn success_after_failures_counts_addresses_within_an_hour() {
    let bench = Bench::new("success_after_failures").await;
    for n in 0..20 {
        bench.run(failure("alice", "203.0.113.1", f64::from(n))).await;
    }
    for n in 2..5 {
        bench.run(failure("alice", &format!("203.0.113.{n}"), f64::from(n))).await;
    }
    assert!(bench.run(success("alice", "198.51.100.1", 5.0 * MINUTE)).await.is_empty(), "four addresses");
    let mut expired = failure("alice", "203.0.113.77", 6.0 * MINUTE);
    expired.fail_type = "expired".to_owned();
    bench.run(expired).await;
    assert!(bench.run(success("alice", "198.51.100.1", 7.0 * MINUTE)).await.is_empty(), "not a guess");
    bench.run(failure("alice", "203.0.113.5", 59.0 * MINUTE)).await;
    assert!(
        bench.run(success("alice", "198.51.100.1", 61.0 * MINUTE)).await.is_empty(),
        "spread over more than an hour"
    );
}

#[tokio::test]
async fn one_address_many_logins_counts_each_login_once() {
    let bench = Bench::new("one_address_many_logins").await;
    for n in 0..14 {
        for again in 0..3 {
            let guess = failure(&format!("user{n}"), "203.0.113.5", f64::from(n * 10 + again));
            assert!(bench.run(guess).await.is_empty(), "{n} logins");
        }
    }
    let alerts = bench.run(failure("user14", "203.0.113.5", 150.0)).await;
    assert_eq!(kinds(&alerts), ["one_address_many_logins"]);
    assert_eq!((alerts[0].severity, alerts[0].key.as_str()), (Severity::High, "203.0.113.5"));
    assert_eq!(alerts[0].evidence["failing_logins"], 15);
    assert_eq!(alerts[0].evidence["fail_types"]["credentials"], 42, "the history lags: without the fifteenth");
    assert_eq!(alerts[0].remote.as_deref(), Some("203.0.113.5"));

    let raised = bench.run_all((15..200).map(|n| failure(&format!("user{n}"), "203.0.113.5", 151.0)).collect()).await;
    let sizes: Vec<_> = raised.iter().map(|alert| alert.evidence["failing_logins"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [30, 60, 120], "a flood of reports is not a flood of alerts");
    assert_eq!(bench.history.searches(), 4);
}

#[tokio::test]
async fn one_address_many_logins_tells_again_of_an_attack_that_goes_on_and_not_of_repeats() {
    let bench = Bench::new("one_address_many_logins").await;
    for n in 0..20 {
        bench.run(failure(&format!("user{n}"), "203.0.113.5", f64::from(n))).await;
    }
    let repeats = bench.run_all((0..50).map(|n| failure("user3", "203.0.113.5", 20.0 + f64::from(n))).collect()).await;
    assert!(repeats.is_empty(), "one login tried again and again: {}", repeats.len());
    assert_eq!(bench.history.searches(), 1);

    // New logins all the time, some 35 in each five minutes; and the same 35 round and round.
    for (address, login) in [("203.0.113.6", (|n| n) as fn(u32) -> u32), ("203.0.113.7", |n| n % 35)] {
        let hours = (0..1200).map(|n| failure(&format!("user{}", login(n)), address, f64::from(n) * 8.5)).collect();
        let raised = bench.run_all(hours).await;
        let late = raised.iter().filter(|alert| alert.time.as_str() > "2020-09-13T14:30:00Z").count();
        assert!((20..=45).contains(&raised.len()), "{address}: {}", raised.len());
        assert!(late >= 8, "{address}: after hours it is told of still: {late}");
    }
}

#[tokio::test]
async fn lists_in_evidence_stay_lists_when_they_are_empty() {
    let spray = Bench::new("one_address_many_logins").await;
    let report = |n: u32| failure(&format!("user{n}"), "203.0.113.5", f64::from(n));
    // Nothing of it is in the history yet.
    for n in 0..14 {
        spray.apply(&report(n), spray.call(&report(n)).await).await;
    }
    let alerts = spray.call(&report(14)).await.alerts;
    for list in ["some_logins", "protocols"] {
        assert_eq!(alerts[0].evidence[list], serde_json::json!([]), "{list}");
    }
    let guessed = Bench::new("success_after_failures").await;
    for n in 0..5 {
        let report = failure("alice", &format!("203.0.113.{n}"), f64::from(n));
        guessed.apply(&report, guessed.call(&report).await).await;
    }
    let alerts = guessed.call(&success("alice", "203.0.113.99", MINUTE)).await.alerts;
    for list in ["some_addresses", "countries"] {
        assert_eq!(alerts[0].evidence[list], serde_json::json!([]), "{list}");
    }
    let networks = Bench::new("new_origin").await;
    for n in 0..10 {
        networks.run(success("bob", "192.0.2.7", f64::from(n))).await;
    }
    let alerts = networks.run(success("bob", "198.51.100.7", MINUTE)).await;
    assert_eq!(alerts[0].evidence["known_countries"], serde_json::json!([]));
}

#[tokio::test]
async fn one_address_many_logins_slow_or_shared() {
    let bench = Bench::new("one_address_many_logins").await;
    for n in 0..60 {
        let slow = failure(&format!("user{n}"), "203.0.113.5", f64::from(n) * 25.0);
        assert!(bench.run(slow).await.is_empty(), "twelve in five minutes");
    }
    for n in 0..40 {
        bench.run(success(&format!("customer{n}"), "198.51.100.1", f64::from(n))).await;
    }
    let raised = bench.run_all((0..15).map(|n| failure(&format!("user{n}"), "198.51.100.1", 60.0)).collect()).await;
    assert_eq!(
        raised.iter().map(|alert| alert.severity).collect::<Vec<_>>(),
        [Severity::Low],
        "many people behind one address"
    );
}

#[tokio::test]
async fn dormant_account_wakes_after_ninety_days() {
    let bench = Bench::new("dormant_account").await;
    assert!(bench.run(from(success("alice", "192.0.2.7", 0.0), "DE", 1)).await.is_empty(), "a first login");
    assert!(bench.run(from(success("alice", "192.0.2.7", 89.9 * DAY), "DE", 1)).await.is_empty());
    assert!(bench.run(failure("alice", "192.0.2.7", 150.0 * DAY)).await.is_empty(), "a failure wakes nobody");
    let alerts = bench.run(from(success("alice", "198.51.100.1", 180.0 * DAY), "BR", 2)).await;
    assert_eq!(kinds(&alerts), ["dormant_account"]);
    assert_eq!(alerts[0].severity, Severity::High, "from another country");
    assert_eq!(alerts[0].evidence["days"], 90);
    assert_eq!(alerts[0].evidence["last_country"], "DE");
    assert!(bench.run(from(success("alice", "198.51.100.1", 181.0 * DAY), "BR", 2)).await.is_empty(), "awake");
    assert!(bench.run(success("alice", "192.0.2.7", 60.0 * DAY)).await.is_empty(), "an old report, late");
    let alerts = bench.run(from(success("alice", "198.51.100.1", 271.0 * DAY), "BR", 2)).await;
    assert_eq!((alerts.len(), alerts[0].severity), (1, Severity::Medium), "the late report did not set the clock back");
}

#[tokio::test]
async fn dormant_account_falls_back_to_the_history() {
    let bench = Bench::new("dormant_account").await;
    bench.history.put(from(success("alice", "192.0.2.7", 0.0), "DE", 1));
    bench.history.put(from(failure("alice", "192.0.2.8", 50.0 * DAY), "FR", 1));
    let alerts = bench.run(from(success("alice", "192.0.2.7", 100.0 * DAY), "DE", 1)).await;
    assert_eq!((alerts.len(), alerts[0].severity), (1, Severity::Medium));
    assert_eq!(alerts[0].evidence["days"], 100);
    assert_eq!(alerts[0].evidence["last_remote"], "192.0.2.7");
    bench.run(success("alice", "192.0.2.7", 101.0 * DAY)).await;
    assert_eq!(bench.history.searches(), 1, "from then on the state knows");
}

#[tokio::test]
async fn odd_reports_fail_no_policy() {
    for policy in POLICIES {
        let bench = Bench::new(policy).await;
        for login in ["x".repeat(4000), "\u{0}".to_owned(), "ä\u{202e}%s%d".to_owned(), "[]".to_owned()] {
            for n in 0..12 {
                bench.run(failure(&login, &format!("203.0.113.{n}"), f64::from(n))).await;
                bench.run(success(&login, &format!("2001:db8:{n}::"), f64::from(n) * DAY)).await;
            }
        }
        for address in ["::", "::1", "2001:db8::", "1:2:3:4:5:6:7:8", "0.0.0.0", "::ffff:0:1"] {
            bench.run(success("alice", address, DAY)).await;
        }
    }
}

#[tokio::test]
async fn new_origin_remembers_a_bounded_number_of_networks() {
    let bench = Bench::new("new_origin").await;
    for n in 0..900 {
        bench.history.put(success("nomad", &format!("10.{}.{}.1", n / 200, n % 200), f64::from(n)));
    }
    for n in 0..100 {
        bench.run(success("nomad", &format!("11.0.{n}.1"), DAY + f64::from(n))).await;
    }
    assert!(bench.run(success("nomad", "11.0.99.7", 2.0 * DAY)).await.is_empty(), "the last ones are there");
}

/// A stream that makes every policy raise something.
fn stories() -> Vec<LoginReport> {
    let mut reports: Vec<_> =
        (0..12).map(|n| from(success("alice", "192.0.2.7", f64::from(n) * 3600.0), "DE", 64496)).collect();
    reports.push(from(success("alice", "198.51.100.9", DAY), "BR", 64500));
    reports.extend((0..7).map(|n| failure("bob", &format!("203.0.113.{n}"), 2.0 * DAY + f64::from(n))));
    reports.push(success("bob", "203.0.113.99", 2.0 * DAY + 60.0));
    reports.extend((0..18).map(|n| failure(&format!("user{n}"), "203.0.113.5", 3.0 * DAY + f64::from(n))));
    reports.push(success("bob", "192.0.2.7", 120.0 * DAY));
    reports
}

#[tokio::test]
async fn redelivered_reports_raise_the_same_alerts() {
    for policy in POLICIES {
        let whole = Bench::new(policy).await;
        let expected = whole.run_all(stories()).await;
        assert!(!expected.is_empty(), "{policy} raises something");
        let ids = |alerts: &[Alert]| alerts.iter().map(|alert| alert.id.clone()).collect::<Vec<_>>();

        // The process dies after a report's alerts are out, and before its writes are: the report runs again.
        let crashed = Bench::new(policy).await;
        let mut raised = Vec::new();
        for report in stories() {
            let before = crashed.call(&report).await;
            let again = crashed.run(report).await;
            assert_eq!(before.alerts, again, "{policy}");
            raised.extend(again);
        }
        assert_eq!(ids(&raised), ids(&expected), "{policy}");

        // It dies after the writes and the history, before the ack: the marker keeps the report from running again, and its own
        // document is left out where it runs all the same (another policy's turn).
        let stored = Bench::new(policy).await;
        let mut raised = Vec::new();
        for report in stories() {
            stored.history.put(report.clone());
            let effects = stored.call(&report).await;
            raised.extend(effects.alerts.iter().map(|alert| alert.id.clone()));
            stored.apply(&report, effects).await;
        }
        assert_eq!(raised, ids(&expected), "{policy}: the report's own document must not be found");
    }
}

#[tokio::test]
async fn embedded_history_answers_as_the_one_in_memory() {
    // The order of equal counts is nobody's promise.
    let sorted = |mut alerts: Vec<Alert>| {
        let values = alerts.iter_mut().filter_map(|alert| alert.evidence.as_object_mut());
        for list in values.flat_map(|evidence| evidence.values_mut()).filter_map(|value| value.as_array_mut()) {
            list.sort_by_key(ToString::to_string);
        }
        alerts
    };
    let compare = async |policy: &str| {
        let folder = tempfile::tempdir().unwrap();
        let (memory, embedded) = (Bench::new(policy).await, Bench::embedded(policy, folder.path()).await);
        for report in stories() {
            let told = sorted(embedded.run(report.clone()).await);
            assert_eq!(told, sorted(memory.run(report).await), "{policy}");
        }
    };
    futures_util::future::join_all(POLICIES.map(compare)).await;
}
