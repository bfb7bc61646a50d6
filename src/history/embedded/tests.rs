use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytesize::ByteSize;
use futures_util::FutureExt;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::history::{Kind, Search, document};
use crate::report::{Geo, ReportId};

mod naive;

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
async fn a_search_finds_neither_its_own_report_nor_later_ones() {
    let dir = TempDir::new().unwrap();
    let history = open(dir.path(), &settings());
    let reports: Vec<_> = (0..6).map(|n| report("ann", START + f64::from(n) * DAY / 2.0)).collect();
    store_all(&history, &reports).await;
    let own = &reports[3];
    let body = json!({"query": {"term": {"login": "ann"}}, "aggs": {"n": {"value_count": {"field": "login"}}}});
    let search = Search { body, now: own.t, up_to: Some(own.t), without: Some(own.id) };
    let answer = history.search(search).await.unwrap();
    assert_eq!(answer["hits"]["total"]["value"], 3);
    assert_eq!(answer["aggregations"]["n"]["value"], 3);
    let found: Vec<_> = answer["hits"]["hits"].as_array().unwrap().iter().map(|hit| hit["_id"].clone()).collect();
    assert_eq!(found, [&reports[2], &reports[1], &reports[0]].map(|r| Value::String(r.id.to_string())));
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
async fn a_hit_has_the_form_of_elasticsearch() {
    let dir = TempDir::new().unwrap();
    let history = open(dir.path(), &settings());
    let mut one = report("ann", START + 0.123_456);
    one.remote = "2001:db8::1".parse().unwrap();
    one.device_attrs =
        vec![("os.family".to_owned(), "Linux".to_owned()), ("os.major".to_owned(), "10.12 (16A323)".to_owned())];
    one.attrs = vec![("cos".to_owned(), "gold".to_owned())];
    one.attrs_mv = vec![("lists".to_owned(), vec!["a".to_owned(), "b".to_owned()])];
    one.geo = Geo {
        country: Some("DE".to_owned()),
        city: Some("Berlin".to_owned()),
        location: Some((52.5, 13.25)),
        asn: Some(3320),
        as_org: Some("DTAG".to_owned()),
    };
    one.stamp();
    store_all(&history, std::slice::from_ref(&one)).await;
    let body = json!({"query": {"term": {"device_attrs.os.family": "Linux"}}, "sort": [{"@timestamp": "desc"}, "login", "geoip.asn"]});
    let answer = ask(&history, body).await.unwrap();
    let hit = &answer["hits"]["hits"][0];
    assert_eq!(hit["_index"], "trackalert-reports-2026.03.01");
    assert_eq!(hit["_id"], one.id.to_string());
    assert_eq!(hit["_score"], Value::Null);
    assert_eq!(hit["sort"], json!([1_772_323_200_123_i64, "ann", 3320]));
    assert_eq!(hit["_source"], document::document(&one));
    assert_eq!(hit["_source"]["@timestamp"], "2026-03-01T00:00:00.123Z");
    assert_eq!(hit["_source"]["device_attrs"]["os"]["major"], "10.12 (16A323)");
    assert_eq!(hit["_source"]["attrs"], json!({"cos": "gold", "lists": ["a", "b"]}));
    assert_eq!(hit["_source"]["geoip"]["city_name"], "Berlin");
    assert_eq!(hit["_source"]["geoip"]["location"], json!({"lat": 52.5, "lon": 13.25}));
    let body = json!({"_source": ["geoip.*", "login"], "query": {"term": {"remote": "2001:db8::/32"}}});
    let answer = ask(&history, body).await.unwrap();
    let source = answer["hits"]["hits"][0]["_source"].as_object().unwrap();
    assert_eq!(source.keys().collect::<Vec<_>>(), ["geoip", "login"]);
    for (body, found) in [
        (json!({"query": {"exists": {"field": "attrs.cos"}}}), 1),
        (json!({"query": {"exists": {"field": "attrs.co"}}}), 0),
        (json!({"query": {"exists": {"field": "device_attrs"}}}), 1),
        (json!({"query": {"exists": {"field": "geoip.location"}}}), 1),
        (json!({"query": {"exists": {"field": "geoip.city_name"}}}), 1),
        (json!({"query": {"term": {"geoip.city_name": "Berlin"}}}), 1),
        (json!({"query": {"prefix": {"geoip.city_name": "Bo"}}}), 0),
        (json!({"query": {"term": {"attrs.lists": "b"}}}), 1),
        (json!({"query": {"prefix": {"attrs.cos": "go"}}}), 1),
        (json!({"query": {"prefix": {"attrs.cos": "x"}}}), 0),
        (json!({"query": {"ids": {"values": [one.id.to_string(), "no id"]}}}), 1),
        (json!({"query": {"term": {"fail_type": ""}}}), 1),
        (json!({"query": {"terms": {"geoip.asn": [1, 3320]}}}), 1),
        (json!({"query": {"range": {"geoip.latitude": {"gt": 52, "lt": 53}}}}), 1),
        (json!({"query": {"range": {"login": {"gte": "anm", "lt": "b"}}}}), 1),
        (json!({"query": {"range": {"attrs.cos": {"gt": "h"}}}}), 0),
        (json!({"query": {"range": {"@timestamp": {"gte": "now-10d/d", "lt": "now"}}}}), 1),
        (json!({"query": {"range": {"t": {"gt": START + 0.123_456}}}}), 0),
        (json!({"query": {"range": {"t": {"gte": START + 0.123_456}}}}), 1),
    ] {
        let answer = ask(&history, body.clone()).await.unwrap();
        assert_eq!(answer["hits"]["total"]["value"], found, "{body}");
    }
    history.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_would_be_too_large_is_refused_with_its_path() {
    let dir = TempDir::new().unwrap();
    let history = open(dir.path(), &Settings { max_buckets: 50, max_hits: 60, ..settings() });
    let reports: Vec<_> = (0..100).map(|n| report(&format!("user{n}"), START + f64::from(n))).collect();
    store_all(&history, &reports).await;
    for (body, path) in [
        (json!({"size": 61}), "size"),
        (json!({"from": 60, "size": 1}), "size"),
        (json!({"aggs": {"a": {"terms": {"field": "login", "size": 51}}}}), "aggs.a.terms.size"),
        (json!({"aggs": {"a": {"date_histogram": {"field": "@timestamp", "fixed_interval": "1ms"}}}}), "aggs.a"),
        (
            json!({"aggs": {"a": {"terms": {"field": "login", "size": 30}, "aggs": {"b": {"top_hits": {"size": 3}},
            "c": {"terms": {"field": "protocol"}}}}}}),
            "aggs.a.aggs.c",
        ),
    ] {
        match ask(&history, body.clone()).await {
            Err(HistoryError::Query { path: found, .. }) => assert_eq!(found, path, "{body}"),
            other => panic!("{body}: {other:?}"),
        }
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn a_history_of_nothing_answers_as_an_empty_one() {
    let dir = TempDir::new().unwrap();
    let history = open(dir.path(), &settings());
    let number = |kind: &str| json!({kind: {"field": "t"}});
    let body = json!({"size": 0, "aggs": {
        "a": {"terms": {"field": "login"}, "aggs": {"b": number("min")}}, "c": number("cardinality"), "d": number("stats"),
        "e": {"filter": {"match_all": {}}, "aggs": {"f": number("max"), "g": number("sum"), "h": number("value_count")}},
        "i": {"top_hits": {}}, "j": {"date_histogram": {"field": "@timestamp", "fixed_interval": "1d"}}, "k": number("avg"),
    }});
    let search = Search { body: body.clone(), now: Time::default(), up_to: None, without: None };
    let mut answer = ask(&history, body).await.unwrap();
    answer["took"] = json!(0);
    assert_eq!(answer, crate::history::NoHistory.search(search).await.unwrap());
    history.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_that_runs_too_long_is_its_askers_fault_and_one_that_only_waited_is_not() {
    let dir = TempDir::new().unwrap();
    let history = open(dir.path(), &Settings { search_timeout: Duration::ZERO, ..settings() });
    store_all(&history, &[report("ann", START)]).await;
    // Taken for an outage it would be repeated for ever, with every report waiting behind it.
    match ask(&history, json!({})).await {
        Err(HistoryError::Query { reason, .. }) => {
            assert!(reason.contains("history.search_timeout") && reason.contains("@timestamp"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(history.metrics.search.get_sample_count(), 1, "the slowest searches are missing in the histogram");
    let _busy = history.searches.clone().acquire_many_owned(SEARCHES as u32).await.unwrap();
    match ask(&history, json!({})).await {
        Err(HistoryError::Unavailable(reason)) => assert!(reason.contains("history.search_timeout"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(history.metrics.search.get_sample_count(), 2);
    history.close().await;
}

/// A policy's worker has thousands of reports to look after before it comes back to one that asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_search_whose_asker_looks_elsewhere_takes_no_turn_from_the_others() {
    let dir = TempDir::new().unwrap();
    let history = open(dir.path(), &Settings { search_timeout: Duration::from_secs(5), ..settings() });
    store_all(&history, &[report("ann", START)]).await;
    let mut asked: Vec<_> = (0..4 * SEARCHES).map(|_| Box::pin(ask(&history, json!({"size": 0})))).collect();
    asked.iter_mut().for_each(|search| drop(search.as_mut().now_or_never()));
    assert_eq!(total(&history).await, 1);
}
