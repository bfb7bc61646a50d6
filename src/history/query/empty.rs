//! The answer over no documents.
//!
//! Owns that one answer, for a history that keeps nothing: a policy that reads `aggregations.x.value` must find a number there too.

use serde_json::{Map, Value, json};

use super::{Agg, AggKind, Metric, Query};

impl Query {
    /// What a store without documents answers.
    pub fn empty_answer(&self) -> Value {
        let mut answer = json!({ "took": 0, "timed_out": false, "hits": hits() });
        if !self.aggs.is_empty() {
            answer["aggregations"] = Value::Object(all(&self.aggs));
        }
        answer
    }
}

fn hits() -> Value {
    json!({ "total": { "value": 0, "relation": "eq" }, "max_score": null, "hits": [] })
}

fn all(aggs: &[Agg]) -> Map<String, Value> {
    aggs.iter().map(|agg| (agg.name.clone(), one(agg))).collect()
}

fn one(agg: &Agg) -> Value {
    match &agg.kind {
        AggKind::Terms(_) => json!({ "doc_count_error_upper_bound": 0, "sum_other_doc_count": 0, "buckets": [] }),
        AggKind::DateHistogram(..) => json!({ "buckets": [] }),
        AggKind::Cardinality(_) | AggKind::Metric(Metric::Count, _) => json!({ "value": 0 }),
        AggKind::Metric(Metric::Sum, _) => json!({ "value": 0.0 }),
        AggKind::Metric(Metric::Stats, _) => json!({ "count": 0, "min": null, "max": null, "avg": null, "sum": 0.0 }),
        AggKind::Metric(..) => json!({ "value": null }),
        AggKind::TopHits(_) => json!({ "hits": hits() }),
        AggKind::Filter(_) => {
            let mut bucket = all(&agg.subs);
            bucket.insert("doc_count".to_owned(), json!(0));
            Value::Object(bucket)
        }
    }
}
