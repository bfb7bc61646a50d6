use proptest::prelude::*;
use serde_json::json;

use super::*;

fn refused(body: &Value) -> (String, String) {
    match parse(body, Time::default()) {
        Err(HistoryError::Query { path, reason }) => (path, reason),
        other => panic!("{body}: {other:?}"),
    }
}

#[test]
fn empty_lua_table_is_an_empty_list() {
    assert!(parse(&json!({"query": {"terms": {"attrs.groups": {}}}}), Time::default()).is_ok());
    assert_eq!(refused(&json!({"query": {"terms": {"login": {"a": 1}}}})).1, "must be a list, is an object");
}

#[test]
fn what_is_unknown_or_wrong_is_named_by_its_path() {
    for (body, path, reason) in [
        (json!([]), "body", "must be an object, is a list"),
        (json!({"qeury": {}}), "qeury", "unknown key; did you mean query?"),
        (json!({"query": {}}), "query", "is empty; must have one key, such as bool, term, range"),
        (json!({"query": {"trem": {}}}), "query.trem", "unknown query; did you mean term?"),
        (
            json!({"query": {"term": {"a": 1}, "range": {}}}),
            "query.term",
            "one key too many; must have one key, such as bool, term, range",
        ),
        (
            json!({"query": {"bool": {"filter": [{"range": {"@timestamp": {"gtee": "now"}}}]}}}),
            "query.bool.filter[0].range.@timestamp.gtee",
            "unknown key; did you mean gte?",
        ),
        (
            json!({"query": {"bool": {"must": {"term": {"lgoin": "a"}}}}}),
            "query.bool.must.term.lgoin",
            "unknown field; did you mean login?",
        ),
        (json!({"query": {"term": {"success": "yes"}}}), "query.term.success", "must be true or false, is a string"),
        (
            json!({"query": {"term": {"remote": "192.0.2.1:80"}}}),
            "query.term.remote",
            "is neither an address nor a network such as 192.0.2.0/24",
        ),
        (json!({"query": {"terms": {"login": ["a", null]}}}), "query.terms.login[1]", "must be a string, is null"),
        (
            json!({"query": {"range": {"t": {"gt": 1, "gte": 1}}}}),
            "query.range.t.gt",
            "stands beside gte; keep one of the two",
        ),
        (json!({"size": -1}), "size", "must be a whole number of 0 or more"),
        (json!({"sort": [{"login": "up"}]}), "sort[0].login", "must be asc or desc"),
        (json!({"sort": "attrs"}), "sort.attrs", "cannot be sorted by"),
        (json!({"aggs": {"a": {"terms": {"field": "login", "size": 0}}}}), "aggs.a.terms.size", "must be 1 or more"),
        (
            json!({"aggs": {"a": {"terms": {"filed": "login"}}}}),
            "aggs.a.terms.filed",
            "unknown key; did you mean field?",
        ),
        (json!({"aggs": {"a": {"term": {}}}}), "aggs.a.term", "unknown aggregation; did you mean terms?"),
        (json!({"aggs": {"a": {"avg": {"field": "login"}}}}), "aggs.a.avg.field", "login is no number"),
        (
            json!({"aggregations": {"a": {"terms": {"field": "login", "order": {"b": "asc"}}}}}),
            "aggregations.a.terms.order.b",
            "must be _count, _key or the name of a sub-aggregation",
        ),
        (json!({"aggs": {"a": {"top_hits": {"size": 101}}}}), "aggs.a.top_hits.size", "must be 100 or less, is 101"),
        (
            json!({"aggs": {"a": {"min": {"field": "t"}, "aggs": {"b": {"min": {"field": "t"}}}}}}),
            "aggs.a.aggs",
            "this kind has no buckets, so nothing can be computed for each",
        ),
        (json!({"aggs": {}, "aggregations": {}}), "aggregations", "stands beside aggs; keep one of the two"),
    ] {
        assert_eq!(refused(&body), (path.to_owned(), reason.to_owned()), "{body}");
    }
}

#[test]
fn what_lies_deep_or_is_much_is_refused_before_it_costs_anything() {
    let mut deep = json!({"match_all": {}});
    let mut nested = json!({"a": {"min": {"field": "t"}}});
    for _ in 0..100 {
        deep = json!({"bool": {"must": [deep]}});
        nested = json!({"a": {"terms": {"field": "login"}, "aggs": nested}});
    }
    assert!(refused(&json!({"query": deep})).1.contains("nested more than 32"));
    assert!(refused(&json!({"aggs": nested})).1.contains("nested more than 8"));
    let many = vec![json!({"match_all": {}}); MAX_CLAUSES];
    assert!(refused(&json!({"query": {"bool": {"should": many}}})).1.contains("1024 are allowed"));
    let values = vec![json!("a"); MAX_TERMS + 1];
    assert_eq!(refused(&json!({"query": {"terms": {"login": values}}})).0, "query.terms.login");
    let aggs: Value =
        (0..300).map(|n| (format!("a{n}"), json!({"min": {"field": "t"}}))).collect::<serde_json::Map<_, _>>().into();
    assert!(refused(&json!({ "aggs": aggs })).1.contains("256 are allowed"));
}

#[test]
fn the_span_of_time_is_what_must_hold() {
    let second = |n: i64| n * 1_000_000;
    let span = |query: Value| parse(&json!({ "query": query }), Time::from_micros(second(1_000_000))).unwrap().span();
    let range = |low: Value, high: Value| json!({"range": {"@timestamp": {"gte": low, "lt": high}}});
    assert_eq!(span(range(json!(5_000), json!(9_000))), Span { from: second(5), to: second(9) });
    assert_eq!(span(range(json!(null), json!("now"))), Span { from: i64::MIN, to: second(1_000_000) });
    let both = json!({"bool": {"filter": [range(json!(5_000), json!(9_000))], "must": {"bool": {"must": {"range": {"t": {"gt": 6}}}}}}});
    assert_eq!(span(both), Span { from: second(6) + 1, to: second(9) });
    let either = json!({"bool": {"should": [range(json!(5_000), json!(9_000)), {"match_all": {}}]}});
    assert_eq!(span(either), Span::ALL);
    let not = json!({"bool": {"must_not": [range(json!(5_000), json!(9_000))]}});
    assert_eq!(span(not), Span::ALL);
    let millis = json!({"range": {"@timestamp": {"gt": 5_000, "lte": 9_000}}});
    assert_eq!(span(millis), Span { from: second(5) + 1_000, to: second(9) + 1_000 });
    let seconds = json!({"range": {"@timestamp": {"gte": 5, "lt": "9", "format": "epoch_second"}}});
    assert_eq!(span(seconds), Span { from: second(5), to: second(9) });
}

#[test]
fn should_counts_only_where_nothing_else_must_hold() {
    let minimum = |query: Value| match parse(&json!({ "query": query }), Time::default()).unwrap().filter {
        Clause::Bool(bool) => bool.minimum,
        other => panic!("{other:?}"),
    };
    let one = json!([{"match_all": {}}]);
    assert_eq!(minimum(json!({"bool": {"should": one}})), 1);
    assert_eq!(minimum(json!({"bool": {"should": one, "must_not": one}})), 1);
    assert_eq!(minimum(json!({"bool": {"should": one, "filter": one}})), 0);
    assert_eq!(minimum(json!({"bool": {"should": one, "filter": one, "minimum_should_match": "1"}})), 1);
}

#[test]
fn more_than_is_allowed_is_refused_from_the_body_alone() {
    let check = |body: Value| match parse(&body, Time::default()).unwrap().check(100, 50) {
        Err(HistoryError::Query { path, .. }) => path,
        other => panic!("{other:?}"),
    };
    assert_eq!(check(json!({"size": 90, "from": 11})), "size");
    assert_eq!(check(json!({"size": u64::MAX, "from": u64::MAX})), "size");
    assert_eq!(check(json!({"aggs": {"a": {"terms": {"field": "t", "size": 51}}}})), "aggs.a.terms.size");
}

/// JSON made of the words of the language, so that it comes far into the parser.
fn bodies() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "query",
        "bool",
        "must",
        "filter",
        "should",
        "must_not",
        "term",
        "terms",
        "range",
        "@timestamp",
        "t",
        "login",
        "remote",
        "success",
        "gt",
        "gte",
        "lt",
        "lte",
        "format",
        "exists",
        "field",
        "prefix",
        "aggs",
        "aggregations",
        "cardinality",
        "date_histogram",
        "fixed_interval",
        "calendar_interval",
        "top_hits",
        "size",
        "from",
        "sort",
        "_source",
        "order",
        "min",
        "stats",
        "value",
        "ids",
        "values",
        "minimum_should_match",
        "missing",
        "attrs.x",
        "geoip.asn",
        "includes",
        "_key",
        "a",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        words.clone().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        "now[-+/0-9dMy]{0,6}".prop_map(Value::from),
        "[0-9a-f:.]{1,10}/?[0-9]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(8, 96, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(words.clone().prop_map(str::to_owned), inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Queries that are understood, now and then deeper than they may be.
fn queries() -> impl Strategy<Value = Value> {
    let address =
        prop_oneof![any::<[u8; 4]>().prop_map(Into::into), any::<[u8; 16]>().prop_map(std::net::IpAddr::from)];
    let leaf = prop_oneof![
        Just(json!({"match_all": {}})),
        "\\PC{0,5}".prop_map(|text| json!({"prefix": {"login": text}})),
        (address.clone(), 0..129_u8).prop_map(|(ip, bits)| json!({"term": {"remote": format!("{ip}/{bits}")}})),
        (address.clone(), address).prop_map(|(low, high)| json!({"range": {"remote": {"gt": low, "lt": high}}})),
        any::<[f64; 2]>().prop_map(|[low, high]| json!({"range": {"t": {"gt": low, "lte": high}}})),
        any::<[i64; 2]>().prop_map(|[low, high]| json!({"range": {"@timestamp": {"gte": low, "lte": high}}})),
    ];
    let nested = leaf.prop_recursive(3, 24, 4, |inner| {
        let some = || prop::collection::vec(inner.clone(), 0..4);
        (some(), some(), some(), 0..4_usize).prop_map(|(must, should, not, least)| {
            json!({"bool": {"filter": must, "should": should, "must_not": not, "minimum_should_match": least}})
        })
    });
    (nested, 0..34_usize).prop_map(|(query, deeper)| {
        (0..deeper).fold(query, |query, _| json!({"constant_score": {"filter": {"bool": {"must": query}}}}))
    })
}

/// The levels of a condition. What is in it holds what the drivers rely on.
fn levels(clause: &Clause) -> usize {
    match clause {
        Clause::Remote(spans) => assert!(spans.iter().all(|(first, last)| first <= last), "{spans:?}"),
        Clause::Bool(bool) => {
            let inner = bool.all.iter().chain(&bool.some).chain(&bool.none);
            return 1 + inner.map(levels).max().unwrap_or(0);
        }
        _ => {}
    }
    1
}

proptest! {
    #[test]
    fn what_is_understood_is_within_the_limits(query in queries(), size: u16, from: u16) {
        match parse(&json!({ "query": query, "size": size, "from": from }), Time::default()) {
            Ok(query) => {
                prop_assert!(levels(&query.filter) <= MAX_DEPTH);
                prop_assert_eq!(query.check(10_000, 10).is_ok(), usize::from(size) + usize::from(from) <= 10_000);
            }
            Err(HistoryError::Query { path, reason }) => prop_assert!(path.starts_with("query.") && !reason.is_empty()),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn no_body_makes_it_panic(query in bodies(), aggs in bodies(), other in bodies()) {
        let _ = parse(&other, Time::default());
        let _ = parse(&json!({ "query": query }), Time::default());
        let _ = parse(&json!({ "aggs": aggs, "sort": other }), Time::default());
        for name in ["bool", "term", "terms", "range", "exists", "prefix", "ids"] {
            let _ = parse(&json!({ "query": { name: query } }), Time::from_micros(i64::MAX)).map(|query| query.span());
        }
        for name in ["terms", "date_histogram", "top_hits", "filter", "stats"] {
            let _ = parse(&json!({ "aggs": { "x": { name: aggs, "aggs": other } } }), Time::default());
        }
    }
}
