//! The answer: from what was collected to JSON in the form of Elasticsearch.
//!
//! Owns the form, the order of buckets and the limits on what is given.

use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};
use tantivy::schema::Value as _;
use tantivy::{DocAddress, Searcher, TantivyDocument};

use super::aggregate::{Bucket, Collected, Numbers, bucket_of};
use super::columns::Key;
use super::day::{Day, name_of};
use super::rank::{Candidate, cut, order};
use super::schema::{Fields, unkeep};
use super::search::Limits;
use super::unavailable;
use crate::history::query::{Agg, AggKind, Field, Hits, Interval, Metric, OrderBy, Query, SortBy, Source, Terms};
use crate::history::{HistoryError, document};
use crate::report::Time;

pub(super) struct Answer<'a> {
    fields: &'a Fields,
    days: &'a [Arc<Day>],
    searchers: &'a [Searcher],
    limits: Limits,
    buckets: Cell<usize>,
    hits: Cell<usize>,
    late: Cell<bool>,
}

impl<'a> Answer<'a> {
    pub(super) fn new(fields: &'a Fields, days: &'a [Arc<Day>], searchers: &'a [Searcher], limits: Limits) -> Self {
        Self { fields, days, searchers, limits, buckets: Cell::new(0), hits: Cell::new(0), late: Cell::new(false) }
    }

    /// The whole answer; `None` if it is too late.
    pub(super) fn whole(
        &self,
        query: &Query,
        total: u64,
        candidates: Vec<Candidate>,
        collected: Vec<Collected>,
    ) -> Result<Option<Value>, HistoryError> {
        let mut answer = json!({
            "took": 0, "timed_out": false,
            "hits": self.found(&query.hits, total, candidates, "size")?,
        });
        if !query.aggs.is_empty() {
            answer["aggregations"] = Value::Object(self.aggregations(&query.aggs, collected)?);
        }
        Ok((!self.late.get()).then_some(answer))
    }

    fn found(&self, hits: &Hits, total: u64, mut all: Vec<Candidate>, path: &str) -> Result<Value, HistoryError> {
        let sort = order(hits);
        cut(&mut all, &sort, hits.from + hits.size);
        let ranked = hits.sort.is_empty();
        let score = if ranked && hits.size > 0 && total > 0 { json!(1.0) } else { Value::Null };
        let mut given = Vec::new();
        for candidate in all.iter().skip(hits.from) {
            given.push(self.hit(hits, candidate, ranked, path)?);
        }
        Ok(json!({ "total": { "value": total, "relation": "eq" }, "max_score": score, "hits": given }))
    }

    fn hit(&self, hits: &Hits, candidate: &Candidate, ranked: bool, path: &str) -> Result<Value, HistoryError> {
        self.hits.set(self.hits.get() + 1);
        if self.hits.get() > self.limits.hits {
            let reason = format!("gives more than {} hits in all (history.max_hits)", self.limits.hits);
            return Err(HistoryError::Query { path: path.to_owned(), reason });
        }
        if Instant::now() > self.limits.deadline {
            self.late.set(true);
            return Ok(Value::Null);
        }
        let place = candidate.place;
        let kept: TantivyDocument = self.searchers[place.day].doc(DocAddress::new(place.segment, place.doc))?;
        let kept = kept.get_first(self.fields.kept()).and_then(|value| value.as_bytes());
        let report = unkeep(kept.unwrap_or_default()).map_err(unavailable)?;
        let mut hit = Map::new();
        let index = document::index_of(&name_of(self.days[place.day].number));
        hit.insert("_index".to_owned(), Value::String(index));
        hit.insert("_id".to_owned(), Value::String(report.id.to_string()));
        hit.insert("_score".to_owned(), if ranked { json!(1.0) } else { Value::Null });
        if hits.source != Source::None {
            hit.insert("_source".to_owned(), select(document::document(&report), &hits.source));
        }
        if !ranked {
            let values = hits.sort.iter().zip(candidate.keys()).map(|(sort, key)| match (&sort.by, key) {
                (SortBy::Field(_), Some(key)) => key.json(),
                (SortBy::Field(_), None) => Value::Null,
                (SortBy::Kept, _) => json!(place.doc),
            });
            hit.insert("sort".to_owned(), values.collect());
        }
        Ok(Value::Object(hit))
    }

    fn aggregations(&self, aggs: &[Agg], collected: Vec<Collected>) -> Result<Map<String, Value>, HistoryError> {
        aggs.iter().zip(collected).map(|(agg, found)| Ok((agg.name.clone(), self.aggregation(agg, found)?))).collect()
    }

    fn aggregation(&self, agg: &Agg, collected: Collected) -> Result<Value, HistoryError> {
        match (&agg.kind, collected) {
            (AggKind::Terms(terms), Collected::Buckets(buckets)) => self.terms(agg, terms, buckets),
            (AggKind::DateHistogram(interval, least), Collected::Buckets(buckets)) => {
                self.histogram(agg, *interval, *least, buckets)
            }
            (_, Collected::Distinct(distinct)) => Ok(json!({ "value": distinct.len() })),
            (AggKind::Metric(metric, field), Collected::Numbers(numbers)) => Ok(numbers.json(*metric, field)),
            (AggKind::TopHits(hits), Collected::Top(total, best)) => {
                Ok(json!({ "hits": self.found(hits, total, best, &agg.path)? }))
            }
            (AggKind::Filter(_), Collected::One(bucket)) => Ok(Value::Object(self.bucket(agg, None, bucket)?)),
            _ => Err(unavailable("an aggregation has what another one collected")),
        }
    }

    fn bucket(&self, agg: &Agg, key: Option<Key>, bucket: Bucket) -> Result<Map<String, Value>, HistoryError> {
        let mut map = Map::new();
        match key {
            None => {}
            Some(Key::Millis(millis)) => {
                map.insert("key_as_string".to_owned(), Value::String(rfc3339(millis)));
                map.insert("key".to_owned(), json!(millis));
            }
            Some(Key::Flag(flag)) => {
                map.insert("key".to_owned(), json!(u8::from(flag)));
                map.insert("key_as_string".to_owned(), Value::String(flag.to_string()));
            }
            Some(key) => drop(map.insert("key".to_owned(), key.json())),
        }
        map.insert("doc_count".to_owned(), json!(bucket.count));
        map.extend(self.aggregations(&agg.subs, bucket.subs)?);
        Ok(map)
    }

    fn spend(&self, agg: &Agg, buckets: usize) -> Result<(), HistoryError> {
        self.buckets.set(self.buckets.get().saturating_add(buckets));
        if self.buckets.get() > self.limits.buckets {
            let reason = format!("gives more than {} buckets in all (history.max_buckets)", self.limits.buckets);
            return Err(HistoryError::Query { path: agg.path.clone(), reason });
        }
        Ok(())
    }

    fn terms(&self, agg: &Agg, terms: &Terms, buckets: HashMap<Key, Bucket>) -> Result<Value, HistoryError> {
        let mut all: Vec<(Key, Bucket)> =
            buckets.into_iter().filter(|(_, bucket)| bucket.count >= terms.min_doc_count).collect();
        all.sort_by(|a, b| compare(&terms.order, a, b));
        let others: u64 = all.iter().skip(terms.size).map(|(_, bucket)| bucket.count).sum();
        all.truncate(terms.size);
        self.spend(agg, all.len())?;
        let buckets: Vec<Value> = all
            .into_iter()
            .map(|(key, bucket)| self.bucket(agg, Some(key), bucket).map(Value::Object))
            .collect::<Result<_, _>>()?;
        Ok(json!({ "doc_count_error_upper_bound": 0, "sum_other_doc_count": others, "buckets": buckets }))
    }

    /// Buckets in order of time; with a least size of 0 the empty ones between the first and the last are there too.
    fn histogram(
        &self,
        agg: &Agg,
        interval: Interval,
        least: u64,
        mut buckets: HashMap<Key, Bucket>,
    ) -> Result<Value, HistoryError> {
        let mut starts: Vec<i64> = buckets
            .keys()
            .filter_map(|key| match key {
                Key::Millis(millis) => Some(*millis),
                _ => None,
            })
            .collect();
        starts.sort_unstable();
        if let (0, Some(first), Some(last)) = (least, starts.first().copied(), starts.last().copied()) {
            starts.clear();
            let mut next = first;
            while next <= last {
                self.spend(agg, 1)?;
                starts.push(next);
                next = bucket_of(next, interval).1;
            }
        } else {
            starts.retain(|start| buckets.get(&Key::Millis(*start)).is_some_and(|bucket| bucket.count >= least));
            self.spend(agg, starts.len())?;
        }
        let mut given = Vec::with_capacity(starts.len());
        for start in starts {
            let key = Key::Millis(start);
            let bucket = buckets.remove(&key).unwrap_or_else(|| Bucket::empty(&agg.subs));
            given.push(Value::Object(self.bucket(agg, Some(key), bucket)?));
        }
        Ok(json!({ "buckets": given }))
    }
}

fn rfc3339(millis: i64) -> String {
    Time::from_micros(millis.saturating_mul(1000)).rfc3339()
}

fn compare(order: &[(OrderBy, bool)], a: &(Key, Bucket), b: &(Key, Bucket)) -> Ordering {
    let by = order.iter().map(|(by, descending)| {
        let ordering = match by {
            OrderBy::Count => a.1.count.cmp(&b.1.count),
            OrderBy::Key => a.0.cmp(&b.0),
            OrderBy::Sub(place, metric) => {
                let number = |bucket: &Bucket| bucket.subs.get(*place).and_then(|sub| number_of(sub, *metric));
                match (number(&a.1), number(&b.1)) {
                    (Some(a), Some(b)) => a.total_cmp(&b),
                    // A bucket without a number comes last in either direction.
                    (None, Some(_)) => return Ordering::Greater,
                    (Some(_), None) => return Ordering::Less,
                    (None, None) => Ordering::Equal,
                }
            }
        };
        if *descending { ordering.reverse() } else { ordering }
    });
    by.fold(Ordering::Equal, Ordering::then).then_with(|| a.0.cmp(&b.0))
}

fn number_of(collected: &Collected, metric: Metric) -> Option<f64> {
    match collected {
        Collected::Distinct(distinct) => Some(distinct.len() as f64),
        Collected::One(bucket) => Some(bucket.count as f64),
        Collected::Numbers(numbers) => numbers.get(metric),
        _ => None,
    }
}

impl Numbers {
    fn get(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Count => Some(self.count as f64),
            Metric::Sum => Some(self.sum),
            _ if self.count == 0 => None,
            Metric::Min => Some(self.min),
            Metric::Max => Some(self.max),
            Metric::Avg => Some(self.sum / self.count as f64),
            Metric::Stats => None,
        }
    }

    fn json(&self, metric: Metric, field: &Field) -> Value {
        let mut map = Map::new();
        let mut put = |name: &str, metric: Metric| {
            let value = self.get(metric);
            map.insert(name.to_owned(), json!(value));
            if let (Some(millis), Field::Timestamp, Metric::Min | Metric::Max | Metric::Avg) = (value, field, metric) {
                map.insert(format!("{name}_as_string"), Value::String(rfc3339(millis as i64)));
            }
        };
        match metric {
            Metric::Stats => {
                put("min", Metric::Min);
                put("max", Metric::Max);
                put("avg", Metric::Avg);
                put("sum", Metric::Sum);
                map.insert("count".to_owned(), json!(self.count));
            }
            Metric::Count => drop(map.insert("value".to_owned(), json!(self.count))),
            metric => put("value", metric),
        }
        Value::Object(map)
    }
}

/// The parts of a document that were asked for.
fn select(document: Value, source: &Source) -> Value {
    match source {
        Source::Only(includes, excludes) => prune("", document, includes, excludes).unwrap_or_else(|| json!({})),
        _ => document,
    }
}

fn prune(path: &str, value: Value, includes: &[String], excludes: &[String]) -> Option<Value> {
    if !path.is_empty() && excludes.iter().any(|pattern| covers(pattern, path)) {
        return None;
    }
    match value {
        Value::Object(map) => {
            let kept: Map<String, Value> = map
                .into_iter()
                .filter_map(|(key, value)| {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    Some((key, prune(&path, value, includes, excludes)?))
                })
                .collect();
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        value => (includes.is_empty() || includes.iter().any(|pattern| covers(pattern, path))).then_some(value),
    }
}

/// Whether the pattern names this path or something above it.
fn covers(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => path.starts_with(start),
        None => path.strip_prefix(pattern).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')),
    }
}
