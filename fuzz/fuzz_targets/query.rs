//! The reader of search bodies takes any JSON without a panic, and what it understood is within the limits that it states, whatever
//! the body says: they are what keeps one policy's search from taking the memory of all.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use trackalert::history::HistoryError;
use trackalert::history::query::date_math::{self, Round, Unit};
use trackalert::history::query::{
    Agg, AggKind, Clause, Hits, MAX_AGG_DEPTH, MAX_AGGREGATIONS, MAX_CLAUSES, MAX_DEPTH, MAX_TERMS, MAX_TOP_HITS, parse,
};
use trackalert::report::Time;

const NOW: Time = Time::from_micros(1_772_323_200_000_000);
const MAX_HITS: usize = 10_000;
const MAX_BUCKETS: usize = 65_536;

/// What a query has been seen to hold.
#[derive(Default)]
struct Seen {
    clauses: usize,
    aggs: usize,
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(body) = serde_json::from_slice(bytes) else { return };
    dates(&body);
    let query = match parse(&body, NOW) {
        Ok(query) => query,
        Err(error) => return refused(&error),
    };
    let mut seen = Seen::default();
    seen.clause(&query.filter, 0);
    seen.aggs(&query.aggs, 0, false);
    let _ = query.span();
    assert_eq!(query.empty_answer()["hits"]["total"]["value"], 0);
    match query.check(MAX_HITS, MAX_BUCKETS) {
        Ok(()) => {
            assert!(within(&query.hits, MAX_HITS));
            seen.aggs(&query.aggs, 0, true);
        }
        Err(error) => refused(&error),
    }
});

/// An error names its place, in few words.
fn refused(error: &HistoryError) {
    match error {
        HistoryError::Query { path, reason } => {
            assert!(!path.is_empty() && !reason.is_empty());
            assert!(path.len() + reason.len() < 32_768, "{error}");
        }
        other => panic!("a body is refused for what stands in it: {other}"),
    }
}

fn within(hits: &Hits, most: usize) -> bool {
    hits.from.checked_add(hits.size).is_some_and(|sum| sum <= most) && hits.sort.len() <= 16
}

/// Rounding up never ends before rounding down; but where months or years are added: the 30th and the 31st may become the same day.
fn dates(value: &Value) {
    match value {
        Value::String(text) if !text.contains(['M', 'y']) => {
            for unit in [Unit::Millis, Unit::Seconds] {
                let end = |round| date_math::parse(text, NOW, round, unit);
                if let (Ok(first), Ok(last)) = (end(Round::Down), end(Round::Up)) {
                    assert!(first <= last, "{text}: {first} to {last}");
                }
            }
        }
        Value::Array(all) => all.iter().for_each(dates),
        Value::Object(map) => map.values().for_each(dates),
        _ => {}
    }
}

impl Seen {
    fn clause(&mut self, clause: &Clause, depth: usize) {
        self.clauses += 1;
        assert!(self.clauses <= MAX_CLAUSES && depth < MAX_DEPTH);
        let values = match clause {
            Clause::Text(_, all) => all.len(),
            Clause::Remote(all) => {
                assert!(all.iter().all(|(first, last)| first <= last), "{all:?}");
                all.len()
            }
            Clause::Numbers(_, all) => {
                assert!(all.iter().all(|n| n.is_finite()));
                all.len()
            }
            Clause::Ids(all) => all.len(),
            Clause::Bool(bool) => {
                for clause in bool.all.iter().chain(&bool.some).chain(&bool.none) {
                    self.clause(clause, depth + 1);
                }
                0
            }
            _ => 0,
        };
        assert!(values <= MAX_TERMS);
    }

    fn aggs(&mut self, aggs: &[Agg], depth: usize, checked: bool) {
        for agg in aggs {
            if !checked {
                self.aggs += 1;
            }
            assert!(self.aggs <= MAX_AGGREGATIONS && depth < MAX_AGG_DEPTH);
            match &agg.kind {
                AggKind::Terms(terms) => assert!(terms.size > 0 && (!checked || terms.size <= MAX_BUCKETS)),
                AggKind::TopHits(hits) => assert!(within(hits, MAX_TOP_HITS)),
                AggKind::Filter(clause) if !checked => self.clause(clause, depth),
                _ => {}
            }
            self.aggs(&agg.subs, depth + 1, checked);
        }
    }
}
