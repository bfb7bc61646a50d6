//! What a search answers, and whose fault it is where it does not.

use futures_util::FutureExt;

use super::*;
use crate::history::document;

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
