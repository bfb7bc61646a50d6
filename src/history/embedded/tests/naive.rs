//! The answers of the index against those of a plain evaluation over the reports in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::super::columns::Key;
use super::dice::{Dice, aggs, clause, reports};
use super::*;
use crate::history::query::field::{Flag, Group, Number, Text};
use crate::history::query::{
    Agg, AggKind, Clause, Field, Hits, Interval, Metric, OrderBy, Query, SortBy, Terms, date_math, parse,
};

fn values(field: &Field, report: &LoginReport) -> BTreeSet<Key> {
    let text = |text: &str| BTreeSet::from([Key::Text(text.into())]);
    match field {
        Field::Timestamp => BTreeSet::from([Key::Millis(report.t.millis())]),
        Field::T => BTreeSet::from([Key::Micros(report.t.micros())]),
        Field::Text(Text::Plain(name)) => match *name {
            "login" => text(&report.login),
            "protocol" => text(&report.protocol),
            "fail_type" => text(&report.fail_type),
            "type" => text("wforce_report"),
            "geoip.country_code2" => report.geo.country.iter().map(|c| Key::Text(c.as_str().into())).collect(),
            other => panic!("{other} is not generated"),
        },
        Field::Text(Text::Sub(group, key)) => {
            let single = if *group == Group::Attrs { &report.attrs } else { &report.device_attrs };
            let several = report.attrs_mv.iter().filter(|(k, _)| *group == Group::Attrs && k == key);
            let single = single.iter().filter(|(k, _)| k == key).map(|(_, v)| v);
            single.chain(several.flat_map(|(_, v)| v)).map(|v| Key::Text(v.as_str().into())).collect()
        }
        Field::Remote => BTreeSet::from([Key::Address(address(report))]),
        Field::Flag(flag) => BTreeSet::from([Key::Flag(self::flag(*flag, report))]),
        Field::Number(Number::Asn) => report.geo.asn.iter().map(|asn| Key::Whole(u64::from(*asn))).collect(),
        Field::Number(_) => report.geo.location.iter().map(|(lat, _)| Key::Float(tantivy::f64_to_u64(*lat))).collect(),
        other => panic!("{other:?} is not generated"),
    }
}

fn address(report: &LoginReport) -> u128 {
    match report.remote {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn flag(flag: Flag, report: &LoginReport) -> bool {
    match flag {
        Flag::Success => report.success,
        Flag::PolicyReject => report.policy_reject,
        Flag::Tls => report.tls,
    }
}

fn number(key: &Key) -> f64 {
    match key {
        Key::Millis(n) => *n as f64,
        Key::Micros(n) => *n as f64 / 1e6,
        Key::Whole(n) => *n as f64,
        Key::Flag(flag) => f64::from(u8::from(*flag)),
        Key::Float(code) => tantivy::u64_to_f64(*code),
        other => panic!("{other:?} is no number"),
    }
}

fn fits(clause: &Clause, report: &LoginReport) -> bool {
    let texts = |text: &Text| -> Vec<String> {
        let keys = values(&Field::Text(text.clone()), report);
        keys.into_iter().map(|key| key.json().as_str().unwrap().to_owned()).collect()
    };
    match clause {
        Clause::All => true,
        Clause::Nothing => false,
        Clause::Text(text, wanted) => texts(text).iter().any(|value| wanted.contains(value)),
        Clause::Prefix(text, prefix) => texts(text).iter().any(|value| value.starts_with(prefix)),
        Clause::TextSpan(text, low, high) => texts(text).iter().any(|value| {
            use std::ops::RangeBounds;
            (low.clone(), high.clone()).contains(value)
        }),
        Clause::Flag(name, wanted) => flag(*name, report) == *wanted,
        Clause::Remote(spans) => spans.iter().any(|(first, last)| (*first..=*last).contains(&address(report))),
        Clause::NumberSpan(name, low, high) => values(&Field::Number(*name), report).iter().any(|key| {
            let value = number(key);
            let above = match low {
                Bound::Included(low) => value >= *low,
                Bound::Excluded(low) => value > *low,
                Bound::Unbounded => true,
            };
            above
                && match high {
                    Bound::Included(high) => value <= *high,
                    Bound::Excluded(high) => value < *high,
                    Bound::Unbounded => true,
                }
        }),
        Clause::Time(span) => span.contains(report.t.micros()),
        Clause::Exists(field) => !values(field, report).is_empty(),
        Clause::Bool(bool) => {
            bool.all.iter().all(|clause| fits(clause, report))
                && !bool.none.iter().any(|clause| fits(clause, report))
                && bool.some.iter().filter(|clause| fits(clause, report)).count() >= bool.minimum
        }
        other => panic!("{other:?} is not generated"),
    }
}

fn top(hits: &Hits, reports: &[&LoginReport]) -> Vec<String> {
    let mut all = reports.to_vec();
    all.sort_by(|a, b| {
        let mut sort = hits.sort.clone();
        if sort.is_empty() {
            return b.t.cmp(&a.t);
        }
        sort.drain(..).fold(std::cmp::Ordering::Equal, |so_far, sort| {
            let SortBy::Field(field) = &sort.by else { panic!("not generated") };
            let key = |report| {
                if sort.descending { values(field, report).pop_last() } else { values(field, report).pop_first() }
            };
            so_far.then(match (key(a), key(b)) {
                (None, None) => std::cmp::Ordering::Equal,
                (None, _) => std::cmp::Ordering::Greater,
                (_, None) => std::cmp::Ordering::Less,
                (Some(a), Some(b)) if sort.descending => b.cmp(&a),
                (Some(a), Some(b)) => a.cmp(&b),
            })
        })
    });
    all.iter().skip(hits.from).take(hits.size).map(|report| report.id.to_string()).collect()
}

fn buckets(agg: &Agg, groups: Vec<(Key, Vec<&LoginReport>)>) -> Value {
    groups
        .into_iter()
        .map(|(key, reports)| {
            let mut bucket = evaluate(&agg.subs, &reports);
            bucket["doc_count"] = json!(reports.len());
            bucket["key"] = match key {
                Key::Flag(flag) => json!(u8::from(flag)),
                key => key.json(),
            };
            bucket
        })
        .collect()
}

fn terms(agg: &Agg, terms: &Terms, reports: &[&LoginReport]) -> Value {
    let mut groups: BTreeMap<Key, Vec<&LoginReport>> = BTreeMap::new();
    for report in reports {
        let mut keys = values(&terms.field, report);
        if let Some(missing) = terms.missing.as_ref().filter(|_| keys.is_empty()) {
            keys.insert(Key::Text(missing.as_str().into()));
        }
        keys.into_iter().for_each(|key| groups.entry(key).or_default().push(report));
    }
    let mut groups: Vec<_> = groups.into_iter().filter(|(_, all)| all.len() as u64 >= terms.min_doc_count).collect();
    match &terms.order[0] {
        (OrderBy::Count, true) => groups.sort_by_key(|(_, all)| std::cmp::Reverse(all.len())),
        (OrderBy::Count, false) => groups.sort_by_key(|(_, all)| all.len()),
        (_, true) => groups.reverse(),
        (_, false) => {}
    }
    let others: usize = groups.iter().skip(terms.size).map(|(_, all)| all.len()).sum();
    groups.truncate(terms.size);
    json!({"buckets": buckets(agg, groups), "sum_other_doc_count": others, "doc_count_error_upper_bound": 0})
}

fn histogram(agg: &Agg, interval: Interval, least: u64, reports: &[&LoginReport]) -> Value {
    let span = |millis: i64| match interval {
        Interval::Fixed(width) => (millis / width * width, millis / width * width + width),
        Interval::Calendar(unit) => date_math::span_of(millis, unit).unwrap(),
    };
    let mut groups: BTreeMap<i64, Vec<&LoginReport>> = BTreeMap::new();
    reports.iter().for_each(|report| groups.entry(span(report.t.millis()).0).or_default().push(report));
    if let (0, Some(first), Some(last)) = (least, groups.keys().next().copied(), groups.keys().last().copied()) {
        let mut next = first;
        while next < last {
            groups.entry(next).or_default();
            next = span(next).1;
        }
    }
    groups.retain(|_, all| all.len() as u64 >= least);
    json!({"buckets": buckets(agg, groups.into_iter().map(|(start, all)| (Key::Millis(start), all)).collect())})
}

fn evaluate(aggs: &[Agg], reports: &[&LoginReport]) -> Value {
    let mut answer = json!({});
    for agg in aggs {
        answer[&agg.name] = match &agg.kind {
            AggKind::Terms(t) => terms(agg, t, reports),
            AggKind::DateHistogram(interval, least) => histogram(agg, *interval, *least, reports),
            AggKind::Cardinality(field) => {
                json!({"value": reports.iter().flat_map(|r| values(field, r)).collect::<BTreeSet<_>>().len()})
            }
            AggKind::TopHits(hits) => json!({"total": reports.len(), "ids": top(hits, reports)}),
            AggKind::Filter(clause) => {
                let reports: Vec<_> = reports.iter().copied().filter(|report| fits(clause, report)).collect();
                let mut bucket = evaluate(&agg.subs, &reports);
                bucket["doc_count"] = json!(reports.len());
                bucket
            }
            AggKind::Metric(metric, field) => {
                let all: Vec<f64> = reports.iter().flat_map(|r| values(field, r)).map(|key| number(&key)).collect();
                let some = |value: f64| if all.is_empty() { Value::Null } else { json!(value) };
                let sum = all.iter().fold(0.0, |sum, n| sum + n);
                let min = some(all.iter().copied().fold(f64::INFINITY, f64::min));
                let max = some(all.iter().copied().fold(f64::NEG_INFINITY, f64::max));
                match metric {
                    Metric::Min => json!({ "value": min }),
                    Metric::Max => json!({ "value": max }),
                    Metric::Count => json!({"value": all.len()}),
                    Metric::Avg => json!({"value": some(sum / all.len() as f64)}),
                    _ => {
                        json!({"count": all.len(), "min": min, "max": max, "sum": sum, "avg": some(sum / all.len() as f64)})
                    }
                }
            }
        };
    }
    answer
}

/// The parts of an answer that a plain evaluation gives too; sums and means to nine digits, since they add up in another order.
fn reduce(value: Value) -> Value {
    match value {
        Value::Object(mut map) => {
            if let Some(hits) = map.remove("hits") {
                let ids: Vec<_> = hits["hits"].as_array().unwrap().iter().map(|hit| hit["_id"].clone()).collect();
                return json!({"total": hits["total"]["value"], "ids": ids});
            }
            map.retain(|key, _| !key.ends_with("as_string"));
            Value::Object(map.into_iter().map(|(key, value)| (key, reduce(value))).collect())
        }
        Value::Array(all) => all.into_iter().map(reduce).collect(),
        Value::Number(number) if number.is_f64() => json!(format!("{:.8e}", number.as_f64().unwrap())),
        other => other,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_of_a_plain_evaluation() {
    let dir = TempDir::new().unwrap();
    let mut dice = Dice(0x5eed_5eed_5eed_5eed);
    let reports = reports(&mut dice, 2_000);
    let history = open(dir.path(), &settings());
    // Several commits, so that there are several segments in each day.
    for some in reports.chunks(400) {
        store_all(&history, some).await;
    }
    let now = Time::from_seconds(START + 10.0 * DAY).unwrap();
    let mut found = 0;
    for n in 0..400 {
        let body = json!({"query": clause(&mut dice, 0), "aggs": aggs(&mut dice, 0), "size": dice.roll(30), "from": dice.roll(3)});
        let query: Query = parse(&body, now).unwrap();
        let up_to = (dice.roll(3) == 0).then(|| dice.pick(&reports).t);
        let without = (dice.roll(3) == 0).then(|| dice.pick(&reports).id);
        let matching: Vec<&LoginReport> = reports
            .iter()
            .filter(|r| up_to.is_none_or(|t| r.t <= t) && Some(r.id) != without && fits(&query.filter, r))
            .collect();
        found += usize::from(!matching.is_empty());
        let answer = history.search(Search { body: body.clone(), now, up_to, without }).await.unwrap();
        assert_eq!(answer["hits"]["total"]["value"], matching.len(), "search {n}: {body}");
        let ids: Vec<_> = answer["hits"]["hits"].as_array().unwrap().iter().map(|hit| hit["_id"].clone()).collect();
        assert_eq!(ids, top(&query.hits, &matching), "search {n}: {body}");
        let expected = reduce(evaluate(&query.aggs, &matching));
        assert_eq!(reduce(answer["aggregations"].clone()), expected, "search {n}: {body}");
    }
    assert!(found > 150, "most searches must find something, {found} did");
    history.close().await;
}
