use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytesize::ByteSize;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::history::{Kind, Search};
use crate::report::{Geo, ReportId};

mod dice;
mod naive;
mod searches;

/// 2026-03-01T00:00:00Z in seconds: all tests live around it, with a retention that reaches back to it for ever.
const START: f64 = 1_772_323_200.0;
const DAY: f64 = 86_400.0;

fn settings() -> Settings {
    Settings {
        kind: Kind::Embedded,
        retention_days: 100_000,
        commit_every: Duration::from_millis(20),
        commit_at: 20_000,
        max_hits: 10_000,
        max_buckets: 10_000,
        writer_memory: ByteSize::mib(64),
        search_timeout: Duration::from_secs(30),
    }
}

fn open(dir: &Path, settings: &Settings) -> Arc<EmbeddedHistory> {
    EmbeddedHistory::open(dir, settings, Arc::new(Metrics::new())).unwrap()
}

fn report(login: &str, seconds: f64) -> LoginReport {
    let mut report = LoginReport {
        id: ReportId::default(),
        t: Time::from_seconds(seconds).unwrap(),
        login: login.to_owned(),
        remote: "192.0.2.1".parse().unwrap(),
        pwhash: "1a2b".to_owned(),
        success: true,
        policy_reject: false,
        fail_type: String::new(),
        session_id: String::new(),
        protocol: "imap".to_owned(),
        tls: true,
        device_id: String::new(),
        device_attrs: Vec::new(),
        attrs: Vec::new(),
        attrs_mv: Vec::new(),
        parsed_device: OnceLock::new(),
        geo: Geo::default(),
    };
    report.stamp();
    report
}

async fn store_all(history: &EmbeddedHistory, reports: &[LoginReport]) -> Vec<Stored> {
    let all = reports.iter().map(|report| history.store(Arc::new(report.clone())));
    futures_util::future::join_all(all).await.into_iter().map(|stored| stored.unwrap()).collect()
}

async fn ask(history: &EmbeddedHistory, body: Value) -> Result<Value, HistoryError> {
    let now = Time::from_seconds(START + 10.0 * DAY).unwrap();
    history.search(Search { body, now, up_to: None, without: None }).await
}

async fn total(history: &EmbeddedHistory) -> u64 {
    ask(history, json!({"size": 0})).await.unwrap()["hits"]["total"]["value"].as_u64().unwrap()
}

/// What a kill leaves: the folder as it is, byte by byte.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to)
        } else {
            drop(std::fs::copy(entry.path(), to))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn delivered_twice_is_stored_once() {
    let dir = TempDir::new().unwrap();
    let one = report("ann", START);
    let history = open(dir.path(), &settings());
    assert_eq!(store_all(&history, &[one.clone(), one.clone()]).await, [Stored::New, Stored::Already], "in one commit");
    assert_eq!(store_all(&history, std::slice::from_ref(&one)).await, [Stored::Already], "across commits");
    history.close().await;
    let history = open(dir.path(), &settings());
    assert_eq!(store_all(&history, std::slice::from_ref(&one)).await, [Stored::Already], "across a restart");
    assert_eq!(total(&history).await, 1);
    history.close().await;
    assert!(matches!(history.store(Arc::new(one)).await, Err(HistoryError::Unavailable(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_agree_in_their_first_half_are_two_reports() {
    let dir = TempDir::new().unwrap();
    let history = open(dir.path(), &settings());
    let (mut one, mut two) = (report("ann", START), report("bob", START));
    one.id = "00112233445566778899aabbccddeeff".parse().unwrap();
    two.id = "0011223344556677ffffffffffffffff".parse().unwrap();
    assert_eq!(store_all(&history, std::slice::from_ref(&one)).await, [Stored::New]);
    assert_eq!(store_all(&history, &[two, one]).await, [Stored::New, Stored::Already]);
    assert_eq!(total(&history).await, 2);
    history.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_commits_keeps_what_was_confirmed() {
    let (dir, after) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let slow = Settings { commit_every: Duration::from_secs(60), commit_at: 100, ..settings() };
    let reports: Vec<_> = (0..130).map(|n| report("ann", START + f64::from(n) * 2_400.0)).collect();
    let history = open(dir.path(), &slow);
    assert!(store_all(&history, &reports[..100]).await.iter().all(|stored| *stored == Stored::New));
    let waiting = futures_util::future::join_all(reports[100..].iter().map(|r| history.store(Arc::new(r.clone()))));
    assert!(tokio::time::timeout(Duration::from_millis(200), waiting).await.is_err(), "these wait for their commit");
    copy(dir.path(), after.path());
    // A day that the crash caught while it was made, in both of its states.
    std::fs::create_dir(after.path().join("2026.04.01")).unwrap();
    std::fs::create_dir(after.path().join(".rubbish-2026.04.02")).unwrap();

    let again = open(after.path(), &settings());
    assert_eq!(total(&again).await, 100);
    let mut more = reports.clone();
    more.extend([report("bob", START + 31.0 * DAY), report("bob", START + 32.0 * DAY)]);
    let stored = store_all(&again, &more).await;
    assert!(stored[..100].iter().all(|stored| *stored == Stored::Already));
    assert!(stored[100..].iter().all(|stored| *stored == Stored::New));
    assert_eq!(total(&again).await, 132);
    again.close().await;
    history.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn close_commits_what_waits() {
    let dir = TempDir::new().unwrap();
    let history = open(dir.path(), &Settings { commit_every: Duration::from_secs(60), ..settings() });
    let mut store = history.store(Arc::new(report("ann", START)));
    tokio::select! {
        biased;
        stored = &mut store => panic!("{stored:?} a minute early"),
        () = std::future::ready(()) => {}
    }
    history.close().await;
    assert_eq!(store.await.unwrap(), Stored::New);
    let history = open(dir.path(), &settings());
    assert_eq!(total(&history).await, 1);
    history.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_drops_folders_and_refuses_what_is_older() {
    let dir = TempDir::new().unwrap();
    let history = open(dir.path(), &settings());
    let reports: Vec<_> = (0..10).map(|day| report("ann", START + f64::from(day) * DAY)).collect();
    store_all(&history, &reports).await;
    history.close().await;
    let now = Time::now();
    let days_ago = |t: Time| (now.since(t).as_secs() / 86_400) as u32;
    let kept = Settings { retention_days: days_ago(reports[4].t), ..settings() };
    let history = open(dir.path(), &kept);
    store_all(&history, &[report("bob", START + 4.0 * DAY)]).await;
    assert_eq!(store_all(&history, &[report("eve", START + 1.0 * DAY)]).await, [Stored::TooOld]);
    assert_eq!(history.retain(now).await.unwrap(), 4);
    assert_eq!(total(&history).await, 7);
    assert!(!dir.path().join("2026.03.04").exists() && dir.path().join("2026.03.05").exists());
    assert_eq!(history.retain(now).await.unwrap(), 0);
    // The day being written may go as well.
    assert_eq!(history.retain(now.plus(Duration::from_secs(86_400))).await.unwrap(), 1);
    assert_eq!(total(&history).await, 5);
    history.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn day_of_an_earlier_version_takes_reports_with_what_came_since() {
    let dir = TempDir::new().unwrap();
    let history = open(dir.path(), &settings());
    let mut bob = report("bob", START + 1.0);
    bob.geo.city = Some("Berlin".to_owned());
    bob.stamp();
    store_all(&history, &[report("ann", START)]).await;
    history.close().await;
    drop(history);
    // The city is the field that came last.
    let meta = dir.path().join("2026.03.01/meta.json");
    let mut text: Value = serde_json::from_slice(&std::fs::read(&meta).unwrap()).unwrap();
    let gone = text["schema"].as_array_mut().unwrap().pop().unwrap();
    assert_eq!(gone["name"], "city");
    std::fs::write(&meta, text.to_string()).unwrap();

    let history = open(dir.path(), &settings());
    let city = json!({"query": {"term": {"geoip.city_name": "Berlin"}}});
    let cities = json!({"size": 0, "aggs": {"c": {"terms": {"field": "geoip.city_name", "missing": "?"}}}});
    assert_eq!(ask(&history, city.clone()).await.unwrap()["hits"]["total"]["value"], 0, "before anything is written");
    assert_eq!(store_all(&history, &[report("ann", START), bob]).await, [Stored::Already, Stored::New]);
    assert_eq!(ask(&history, city).await.unwrap()["hits"]["total"]["value"], 1);
    let found = ask(&history, cities).await.unwrap();
    let found: Vec<_> = found["aggregations"]["c"]["buckets"].as_array().unwrap().iter().map(|b| &b["key"]).collect();
    assert_eq!(found, ["?", "Berlin"]);
    assert_eq!(total(&history).await, 2);
    history.close().await;
    drop(history);

    // One of another program is not touched.
    text["schema"][0]["name"] = json!("stranger");
    std::fs::write(&meta, text.to_string()).unwrap();
    let history = open(dir.path(), &settings());
    let refused = ask(&history, json!({})).await.unwrap_err().to_string();
    assert!(refused.contains("2026.03.01") && refused.contains("another program"), "{refused}");
    history.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_days_than_open_writers_in_any_order() {
    let dir = TempDir::new().unwrap();
    let history = open(dir.path(), &settings());
    let reports: Vec<_> = (0..120).map(|n| report("ann", START + f64::from(n * 7 % 12) * DAY + f64::from(n))).collect();
    for some in reports.chunks(40) {
        assert!(store_all(&history, some).await.iter().all(|stored| *stored == Stored::New));
    }
    assert!(store_all(&history, &reports).await.iter().all(|stored| *stored == Stored::Already));
    assert_eq!(total(&history).await, 120);
    history.close().await;
    let history = open(dir.path(), &settings());
    assert_eq!(total(&history).await, 120);
    history.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_written_refuses_and_then_recovers() {
    let dir = TempDir::new().unwrap();
    let history = open(dir.path(), &settings());
    // A file where the day's folder must be: what any user, root too, is refused by.
    let in_the_way = dir.path().join("2026.03.01");
    std::fs::write(&in_the_way, b"").unwrap();
    let one = Arc::new(report("ann", START));
    assert!(matches!(history.store(one.clone()).await, Err(HistoryError::Unavailable(_))));
    std::fs::remove_file(&in_the_way).unwrap();
    assert_eq!(history.store(one).await.unwrap(), Stored::New);
    history.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_vanishes_while_it_is_written_refuses_what_waits_and_then_recovers() {
    let dir = TempDir::new().unwrap();
    let history = open(dir.path(), &settings());
    let (one, two) = (report("ann", START), Arc::new(report("ann", START + 1.0)));
    assert_eq!(store_all(&history, std::slice::from_ref(&one)).await, [Stored::New]);
    std::fs::remove_dir_all(dir.path().join("2026.03.01")).unwrap();
    assert!(matches!(history.store(two.clone()).await, Err(HistoryError::Unavailable(_))));
    assert_eq!(history.store(two).await.unwrap(), Stored::New, "what was refused is not held for stored");
    assert_eq!(total(&history).await, 1);
    history.close().await;
}
