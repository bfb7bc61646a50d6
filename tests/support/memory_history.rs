//! A history in memory that answers the questions of the shipped policies: bool/filter, term, range with `now-…` and the aggregations
//! terms, min, max and filter. What it does not know it refuses, so that a policy that asks for more fails its test.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use trackalert::history::{History, HistoryError, Search, Stored};
use trackalert::report::{LoginReport, Time};

#[derive(Default)]
pub(crate) struct MemoryHistory {
    reports: Mutex<Vec<Arc<LoginReport>>>,
    searches: Mutex<usize>,
}

impl MemoryHistory {
    /// How often it was asked.
    pub(crate) fn searches(&self) -> usize {
        *self.searches.lock().unwrap()
    }

    pub(crate) fn put(&self, report: LoginReport) {
        self.reports.lock().unwrap().push(Arc::new(report));
    }

    fn answer(&self, search: &Search) -> Result<Value, HistoryError> {
        *self.searches.lock().unwrap() += 1;
        let now = search.now.millis();
        let reports = self.reports.lock().unwrap();
        let mut found = Vec::new();
        for report in reports.iter() {
            let seen = search.without != Some(report.id) && search.up_to.is_none_or(|end| report.t <= end);
            let document = document(report);
            if seen && fits(&search.body["query"], &document, now)? {
                found.push(document);
            }
        }
        found.sort_by_key(|document| std::cmp::Reverse(document["@timestamp"].as_i64()));
        let size = search.body["size"].as_u64().unwrap_or(10) as usize;
        let hits: Vec<Value> = found.iter().take(size).map(|document| json!({ "_source": document })).collect();
        let aggs = aggregations(&search.body["aggs"], &found, now)?;
        Ok(json!({
            "took": 0, "timed_out": false, "hits": { "total": { "value": found.len(), "relation": "eq" }, "hits": hits },
            "aggregations": aggs,
        }))
    }
}

fn document(report: &LoginReport) -> Value {
    json!({
        "@timestamp": report.t.millis(), "login": report.login, "remote": report.remote, "success": report.success,
        "fail_type": report.fail_type, "protocol": report.protocol,
        "geoip": { "country_code2": report.geo.country, "asn": report.geo.asn },
    })
}

fn refuse<T>(what: &Value) -> Result<T, HistoryError> {
    Err(HistoryError::Query { path: "body".to_owned(), reason: format!("the fake does not know {what}") })
}

fn field<'a>(document: &'a Value, name: &str) -> &'a Value {
    name.split('.').fold(document, |value, part| &value[part])
}

/// The one key of an object and its value.
fn only(value: &Value) -> Result<(&str, &Value), HistoryError> {
    match value.as_object().map(Map::iter).and_then(|mut entries| entries.next()) {
        Some((key, value)) => Ok((key, value)),
        None => refuse(value),
    }
}

fn fits(clause: &Value, document: &Value, now: i64) -> Result<bool, HistoryError> {
    let (kind, about) = only(clause)?;
    match kind {
        "bool" => {
            let clauses = about["filter"].as_array().map(Vec::as_slice).unwrap_or_default();
            clauses.iter().try_fold(true, |all, clause| Ok(all && fits(clause, document, now)?))
        }
        "term" => only(about).map(|(name, value)| field(document, name) == value),
        "range" => {
            let (name, bounds) = only(about)?;
            let value = field(document, name).as_i64().unwrap_or_default();
            let after = bounds.get("gte").map(|bound| date(bound, now)).transpose()?.is_none_or(|from| value >= from);
            let before = bounds.get("lt").map(|bound| date(bound, now)).transpose()?.is_none_or(|to| value < to);
            Ok(after && before)
        }
        _ => refuse(clause),
    }
}

/// `now-90d`, `now-300s`.
fn date(bound: &Value, now: i64) -> Result<i64, HistoryError> {
    let parts = bound.as_str().and_then(|text| text.strip_prefix("now-")?.split_at_checked(text.len() - 5));
    let Some((count, unit)) = parts else { return refuse(bound) };
    let Ok(count) = count.parse::<i64>() else { return refuse(bound) };
    match unit {
        "s" => Ok(now - 1000 * count),
        "d" => Ok(now - 86_400_000 * count),
        _ => refuse(bound),
    }
}

fn aggregations(wanted: &Value, found: &[Value], now: i64) -> Result<Value, HistoryError> {
    let mut answers = Map::new();
    for (name, one) in wanted.as_object().into_iter().flatten() {
        let answer = if let Some(clause) = one.get("filter") {
            let mut inside = Vec::new();
            for document in found {
                if fits(clause, document, now)? {
                    inside.push(document.clone());
                }
            }
            let mut answer = aggregations(&one["aggs"], &inside, now)?;
            answer["doc_count"] = json!(inside.len());
            answer
        } else {
            let (kind, about) = only(one)?;
            let values = found.iter().map(|document| field(document, about["field"].as_str().unwrap_or_default()));
            match kind {
                "terms" => {
                    let mut counts: Vec<(Value, usize)> = Vec::new();
                    for value in values.filter(|value| !value.is_null()) {
                        match counts.iter_mut().find(|(key, _)| key == value) {
                            Some((_, count)) => *count += 1,
                            None => counts.push((value.clone(), 1)),
                        }
                    }
                    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
                    counts.truncate(about["size"].as_u64().unwrap_or(10) as usize);
                    let bucket = |(key, count): &(Value, usize)| json!({ "key": key, "doc_count": count });
                    json!({ "buckets": counts.iter().map(bucket).collect::<Vec<_>>() })
                }
                "min" => json!({ "value": values.filter_map(Value::as_i64).min() }),
                "max" => json!({ "value": values.filter_map(Value::as_i64).max() }),
                _ => return refuse(one),
            }
        };
        answers.insert(name.clone(), answer);
    }
    Ok(Value::Object(answers))
}

impl History for MemoryHistory {
    fn store(&self, report: Arc<LoginReport>) -> BoxFuture<'_, Result<Stored, HistoryError>> {
        self.put(report.as_ref().clone());
        Box::pin(std::future::ready(Ok(Stored::New)))
    }

    fn search(&self, search: Search) -> BoxFuture<'_, Result<Value, HistoryError>> {
        Box::pin(std::future::ready(self.answer(&search)))
    }

    fn retain(&self, _: Time) -> BoxFuture<'_, Result<usize, HistoryError>> {
        Box::pin(std::future::ready(Ok(0)))
    }
}

/// An attempt at a login, in report time; the id is made of all of it.
pub(crate) fn attempt(login: &str, remote: &str, t: f64, success: bool) -> LoginReport {
    let mut report = LoginReport {
        id: Default::default(),
        t: Time::from_seconds(t).unwrap(),
        login: login.to_owned(),
        remote: remote.parse::<IpAddr>().unwrap(),
        pwhash: String::new(),
        success,
        policy_reject: false,
        fail_type: if success { String::new() } else { "credentials".to_owned() },
        session_id: String::new(),
        protocol: "imap".to_owned(),
        tls: true,
        device_id: String::new(),
        device_attrs: Vec::new(),
        attrs: Vec::new(),
        attrs_mv: Vec::new(),
        parsed_device: Default::default(),
        geo: Default::default(),
    };
    report.stamp();
    report
}
