//! Aggregations: what is collected from each segment, and how it adds up over all of them.
//!
//! Owns the counting. All exact, within a budget of memory: an aggregation that would hold too much is refused, not estimated.

use std::cell::Cell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use tantivy::{BitSet, DocId, Searcher, SegmentReader};

use super::columns::{Column, Key};
use super::compile::whole;
use super::rank::{Candidate, Ranker, cut, order};
use super::schema::Fields;
use super::search::documents;
use super::unavailable;
use crate::history::HistoryError;
use crate::history::query::{Agg, AggKind, Field, Interval, date_math};

/// What one search may hold, in units of 16 bytes: 128 MiB.
const BUDGET: usize = 8 << 20;

/// What an aggregation has collected.
#[derive(Debug)]
pub(super) enum Collected {
    /// By value or by the beginning of a span of time.
    Buckets(HashMap<Key, Bucket>),
    /// Hashes of the different values.
    Distinct(HashSet<u64>),
    /// The five numbers.
    Numbers(Numbers),
    /// How many, and the first ones.
    Top(u64, Vec<Candidate>),
    /// One bucket.
    One(Bucket),
}

/// A bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) count: u64,
    pub(super) subs: Vec<Collected>,
}

/// Numbers over values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    pub(super) count: u64,
    pub(super) sum: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Collected {
    /// Of no document.
    pub(super) fn empty(agg: &Agg) -> Self {
        match &agg.kind {
            AggKind::Terms(_) | AggKind::DateHistogram(..) => Self::Buckets(HashMap::new()),
            AggKind::Cardinality(_) => Self::Distinct(HashSet::new()),
            AggKind::TopHits(_) => Self::Top(0, Vec::new()),
            AggKind::Metric(..) => {
                Self::Numbers(Numbers { count: 0, sum: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY })
            }
            AggKind::Filter(_) => Self::One(Bucket::empty(&agg.subs)),
        }
    }
}

impl Bucket {
    pub(super) fn empty(subs: &[Agg]) -> Self {
        Self { count: 0, subs: subs.iter().map(Collected::empty).collect() }
    }
}

/// What a search may still hold.
pub(super) struct Budget(Cell<usize>);

impl Budget {
    pub(super) fn new() -> Self {
        Self(Cell::new(BUDGET))
    }

    fn spend(&self, units: usize, agg: &Agg) -> Result<(), HistoryError> {
        let left = self.0.get().checked_sub(units).ok_or_else(|| HistoryError::Query {
            path: agg.path.clone(),
            reason: "holds too many different values at once; ask for fewer days, or filter first".to_owned(),
        })?;
        self.0.set(left);
        Ok(())
    }
}

/// An aggregation with the columns of one segment.
pub(super) struct Node<'a> {
    agg: &'a Agg,
    subs: Vec<Node<'a>>,
    kind: Kind,
    /// The day and the segment.
    at: (usize, u32),
}

enum Kind {
    Column(Column),
    Top(Ranker),
    Among(BitSet),
}

/// The segment that nodes are opened for.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) fields: &'a Fields,
    pub(super) searcher: &'a Searcher,
    pub(super) segment: &'a SegmentReader,
    pub(super) at: (usize, u32),
}

impl<'a> Node<'a> {
    /// Opens what the aggregation needs of this segment.
    pub(super) fn open(agg: &'a Agg, place: Place<'_>) -> Result<Self, HistoryError> {
        let column = |field| Column::open(place.fields, field, place.segment).map(Kind::Column);
        let kind = match &agg.kind {
            AggKind::Terms(terms) => column(&terms.field)?,
            AggKind::Cardinality(field) | AggKind::Metric(_, field) => column(field)?,
            AggKind::DateHistogram(..) => column(&Field::Timestamp)?,
            AggKind::TopHits(hits) => Kind::Top(Ranker::new(order(hits), place.fields, place.segment)?),
            AggKind::Filter(clause) => {
                let mut among = BitSet::with_max_value(place.segment.max_doc());
                let query = whole(place.fields, clause);
                documents(query.as_ref(), place.searcher, place.segment, &mut |doc| {
                    among.insert(doc);
                })?;
                Kind::Among(among)
            }
        };
        let subs = agg.subs.iter().map(|sub| Self::open(sub, place)).collect::<Result<_, _>>()?;
        Ok(Self { agg, subs, kind, at: place.at })
    }

    /// Adds these documents to what was collected.
    pub(super) fn collect(&self, docs: &[DocId], into: &mut Collected, budget: &Budget) -> Result<(), HistoryError> {
        match (&self.kind, &self.agg.kind, into) {
            (Kind::Column(column), AggKind::Terms(terms), Collected::Buckets(buckets)) => {
                let missing = terms.missing.as_deref().map(|text| missing_key(&terms.field, text));
                if self.subs.is_empty() {
                    self.count(column, docs, missing, buckets, budget)
                } else {
                    self.group(column, docs, missing, buckets, budget)
                }
            }
            (Kind::Column(column), AggKind::DateHistogram(interval, _), Collected::Buckets(buckets)) => {
                self.by_time(column, *interval, docs, buckets, budget)
            }
            (Kind::Column(column), AggKind::Cardinality(_), Collected::Distinct(distinct)) => {
                self.distinct(column, docs, distinct, budget)
            }
            (Kind::Column(column), AggKind::Metric(..), Collected::Numbers(numbers)) => {
                numbers.add(column, docs);
                Ok(())
            }
            (Kind::Top(ranker), AggKind::TopHits(hits), Collected::Top(total, best)) => {
                *total += docs.len() as u64;
                let before = best.len();
                best.extend(ranker.first(docs, hits.from + hits.size, self.at)?);
                cut(best, ranker.order(), hits.from + hits.size);
                budget.spend(best.len().saturating_sub(before) * 8, self.agg)
            }
            (Kind::Among(among), _, Collected::One(bucket)) => {
                let docs: Vec<DocId> = docs.iter().copied().filter(|doc| among.contains(*doc)).collect();
                self.into_bucket(&docs, bucket, budget)
            }
            _ => Err(unavailable("an aggregation met what another one collected")),
        }
    }

    fn into_bucket(&self, docs: &[DocId], bucket: &mut Bucket, budget: &Budget) -> Result<(), HistoryError> {
        bucket.count += docs.len() as u64;
        if docs.is_empty() {
            return Ok(());
        }
        self.subs.iter().zip(&mut bucket.subs).try_for_each(|(sub, into)| sub.collect(docs, into, budget))
    }

    fn bucket<'b>(
        &self,
        buckets: &'b mut HashMap<Key, Bucket>,
        key: Key,
        budget: &Budget,
    ) -> Result<&'b mut Bucket, HistoryError> {
        match buckets.entry(key) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                budget.spend(8 + 6 * self.agg.subs.len(), self.agg)?;
                Ok(entry.insert(Bucket::empty(&self.agg.subs)))
            }
        }
    }

    /// Buckets without sub-aggregations: only their sizes.
    fn count(
        &self,
        column: &Column,
        docs: &[DocId],
        missing: Option<Key>,
        buckets: &mut HashMap<Key, Bucket>,
        budget: &Budget,
    ) -> Result<(), HistoryError> {
        let mut codes = Vec::new();
        let mut without = 0;
        let mut counts: Vec<(u128, u64)> = match column.span() {
            // Ordinals are dense: a table of them is several times quicker than a map, where it is not much larger than the documents.
            Some((first, end)) if (end - first) as usize <= 1024 + docs.len() * 8 => {
                let mut table = vec![0_u64; (end - first) as usize];
                for doc in docs {
                    column.codes(*doc, &mut codes);
                    without += u64::from(codes.is_empty());
                    codes.iter().for_each(|code| table[(*code as u64 - first) as usize] += 1);
                }
                let found = table.into_iter().enumerate().filter(|(_, n)| *n > 0);
                found.map(|(i, n)| (u128::from(first) + i as u128, n)).collect()
            }
            _ => {
                let mut map: HashMap<u128, u64> = HashMap::new();
                for doc in docs {
                    column.codes(*doc, &mut codes);
                    without += u64::from(codes.is_empty());
                    codes.iter().for_each(|code| *map.entry(*code).or_default() += 1);
                }
                map.into_iter().collect()
            }
        };
        counts.sort_unstable();
        let keys = column.keys(&counts.iter().map(|(code, _)| *code).collect::<Vec<_>>())?;
        for (key, (_, n)) in keys.into_iter().zip(counts) {
            self.bucket(buckets, key, budget)?.count += n;
        }
        if let Some(key) = missing.filter(|_| without > 0) {
            self.bucket(buckets, key, budget)?.count += without;
        }
        Ok(())
    }

    /// Buckets with sub-aggregations: the documents of each.
    fn group(
        &self,
        column: &Column,
        docs: &[DocId],
        missing: Option<Key>,
        buckets: &mut HashMap<Key, Bucket>,
        budget: &Budget,
    ) -> Result<(), HistoryError> {
        let mut codes = Vec::new();
        let mut without = Vec::new();
        let mut pairs: Vec<(u128, DocId)> = Vec::with_capacity(docs.len());
        for doc in docs {
            column.codes(*doc, &mut codes);
            if codes.is_empty() && missing.is_some() {
                without.push(*doc);
            }
            pairs.extend(codes.iter().map(|code| (*code, *doc)));
        }
        pairs.sort_unstable();
        let codes: Vec<u128> = pairs.chunk_by(|a, b| a.0 == b.0).map(|group| group[0].0).collect();
        let keys = column.keys(&codes)?;
        for (key, group) in keys.into_iter().zip(pairs.chunk_by(|a, b| a.0 == b.0)) {
            let docs: Vec<DocId> = group.iter().map(|(_, doc)| *doc).collect();
            self.into_bucket(&docs, self.bucket(buckets, key, budget)?, budget)?;
        }
        if let Some(key) = missing.filter(|_| !without.is_empty()) {
            self.into_bucket(&without, self.bucket(buckets, key, budget)?, budget)?;
        }
        Ok(())
    }

    fn by_time(
        &self,
        column: &Column,
        interval: Interval,
        docs: &[DocId],
        buckets: &mut HashMap<Key, Bucket>,
        budget: &Budget,
    ) -> Result<(), HistoryError> {
        let mut span = (0, 0);
        let mut pairs: Vec<(i64, DocId)> = Vec::with_capacity(docs.len());
        for doc in docs {
            let Some(millis) = column.millis(*doc) else { continue };
            if !(span.0..span.1).contains(&millis) {
                span = bucket_of(millis, interval);
            }
            pairs.push((span.0, *doc));
        }
        pairs.sort_unstable();
        for group in pairs.chunk_by(|a, b| a.0 == b.0) {
            let docs: Vec<DocId> = group.iter().map(|(_, doc)| *doc).collect();
            self.into_bucket(&docs, self.bucket(buckets, Key::Millis(group[0].0), budget)?, budget)?;
        }
        Ok(())
    }

    fn distinct(
        &self,
        column: &Column,
        docs: &[DocId],
        distinct: &mut HashSet<u64>,
        budget: &Budget,
    ) -> Result<(), HistoryError> {
        let mut codes = Vec::new();
        let mut all: Vec<u128> = Vec::with_capacity(docs.len());
        for doc in docs {
            column.codes(*doc, &mut codes);
            all.extend_from_slice(&codes);
        }
        all.sort_unstable();
        all.dedup();
        let before = distinct.len();
        for key in column.keys(&all)? {
            let mut hasher = DefaultHasher::new();
            key.hash(&mut hasher);
            distinct.insert(hasher.finish());
        }
        budget.spend(distinct.len() - before, self.agg)
    }
}

/// The beginning and the end of the bucket of this time.
pub(super) fn bucket_of(millis: i64, interval: Interval) -> (i64, i64) {
    match interval {
        Interval::Fixed(width) => {
            let start = millis.div_euclid(width).saturating_mul(width);
            (start, start.saturating_add(width))
        }
        Interval::Calendar(unit) => date_math::span_of(millis, unit).unwrap_or((millis, millis + 1)),
    }
}

fn missing_key(field: &Field, text: &str) -> Key {
    match (field, text.parse::<f64>()) {
        (Field::Number(_), Ok(number)) => Key::Whole(number as u64),
        _ => Key::Text(text.into()),
    }
}

impl Numbers {
    fn add(&mut self, column: &Column, docs: &[DocId]) {
        let mut codes = Vec::new();
        for doc in docs {
            column.codes(*doc, &mut codes);
            for code in &codes {
                let value = column.number(*code);
                self.count += 1;
                self.sum += value;
                self.min = self.min.min(value);
                self.max = self.max.max(value);
            }
        }
    }
}
