//! An Elasticsearch search body, understood: what is asked for, in our own types, independent of what answers it.
//!
//! Owns the language (README lists it) and its limits. Pure: no clock, no store. Whatever it does not know is an error with the exact
//! path, never ignored: a filter that is not applied would make a policy see other people's logins.

mod aggs;
pub mod date_math;
pub mod field;
mod parse;
mod walk;

use serde_json::Value;

pub use self::date_math::Calendar;
pub use self::field::Field;
use self::field::{Flag, Number, Text};
use super::HistoryError;
use crate::report::{ReportId, Time};

/// The most levels of queries within queries, and of aggregations within aggregations.
pub const MAX_DEPTH: usize = 32;
/// The most clauses of one body.
pub const MAX_CLAUSES: usize = 1024;
/// The most values of one `terms` query.
pub const MAX_TERMS: usize = 65_536;
/// The most aggregations of one body.
pub const MAX_AGGREGATIONS: usize = 256;
/// The most hits that `top_hits` gives for one bucket.
pub const MAX_TOP_HITS: usize = 100;

/// A parsed search body.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// Which documents.
    pub filter: Clause,
    /// Which of them are given.
    pub hits: Hits,
    /// What is computed over all of them.
    pub aggs: Vec<Agg>,
}

/// A condition on a document.
#[derive(Debug, Clone, PartialEq)]
pub enum Clause {
    /// Every document.
    All,
    /// No document.
    Nothing,
    /// The field has one of these values.
    Text(Text, Vec<String>),
    /// The field has a value that begins so.
    Prefix(Text, String),
    /// The field has a value in this span, by bytes.
    TextSpan(Text, std::ops::Bound<String>, std::ops::Bound<String>),
    /// The field is so.
    Flag(Flag, bool),
    /// The address lies in one of these spans (first, last), IPv4 as mapped into IPv6.
    Remote(Vec<(u128, u128)>),
    /// The number is one of these.
    Numbers(Number, Vec<f64>),
    /// The number lies in this span.
    NumberSpan(Number, std::ops::Bound<f64>, std::ops::Bound<f64>),
    /// The time lies in this span.
    Time(Span),
    /// It is one of these reports.
    Ids(Vec<ReportId>),
    /// The field has a value.
    Exists(Field),
    /// A combination.
    Bool(Box<Bool>),
}

/// A combination of conditions.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Bool {
    /// All of these (`must` and `filter`: nothing is ranked here).
    pub all: Vec<Clause>,
    /// At least `minimum` of these.
    pub some: Vec<Clause>,
    /// None of these.
    pub none: Vec<Clause>,
    /// How many of `some`.
    pub minimum: usize,
}

/// A span of time in microseconds: `from` belongs to it, `to` does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first microsecond.
    pub from: i64,
    /// The first microsecond that is too late.
    pub to: i64,
}

impl Span {
    /// All of time.
    pub const ALL: Self = Self { from: i64::MIN, to: i64::MAX };

    /// What lies in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { from: self.from.max(other.from), to: self.to.min(other.to) }
    }

    /// Whether this time lies in it.
    pub fn contains(self, micros: i64) -> bool {
        (self.from..self.to).contains(&micros)
    }
}

/// Which documents of those found are given, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Hits {
    /// How many to leave out.
    pub from: usize,
    /// How many to give.
    pub size: usize,
    /// In which order; empty: the newest first.
    pub sort: Vec<Sort>,
    /// Which parts of each.
    pub source: Source,
    /// Where it stands in the body, for errors.
    pub path: String,
}

/// One key of an order.
#[derive(Debug, Clone, PartialEq)]
pub struct Sort {
    /// By this.
    pub by: SortBy,
    /// The greatest first.
    pub descending: bool,
    /// Documents without a value come first; else last.
    pub missing_first: bool,
}

/// What documents are ordered by.
#[derive(Debug, Clone, PartialEq)]
pub enum SortBy {
    /// A field's value.
    Field(Field),
    /// The order in which they are kept (`_doc`), or the rank (`_score`), which is the same for all: nothing is ranked here.
    Kept,
}

/// Which parts of a document are given.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// All.
    All,
    /// None.
    None,
    /// Those that match one of the first (empty: all) and none of the second; `*` at the end stands for anything.
    Only(Vec<String>, Vec<String>),
}

/// An aggregation.
#[derive(Debug, Clone, PartialEq)]
pub struct Agg {
    /// Its name in the answer.
    pub name: String,
    /// Where it stands in the body, for errors.
    pub path: String,
    /// What it computes.
    pub kind: AggKind,
    /// What is computed for each of its buckets.
    pub subs: Vec<Agg>,
}

/// What an aggregation computes.
#[derive(Debug, Clone, PartialEq)]
pub enum AggKind {
    /// A bucket for each value.
    Terms(Terms),
    /// How many different values.
    Cardinality(Field),
    /// A bucket for each span of time.
    DateHistogram(Interval, u64),
    /// Documents of the bucket.
    TopHits(Hits),
    /// A number over the values.
    Metric(Metric, Field),
    /// One bucket: those that fit.
    Filter(Clause),
}

/// A bucket for each value of a field.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    /// The field.
    pub field: Field,
    /// How many buckets are given.
    pub size: usize,
    /// In which order; the value breaks ties.
    pub order: Vec<(OrderBy, bool)>,
    /// Smaller buckets are left out.
    pub min_doc_count: u64,
    /// The value of documents that have none; without it they are left out.
    pub missing: Option<String>,
}

/// What buckets are ordered by. The flag beside it means: the greatest first.
#[derive(Debug, Clone, PartialEq)]
pub enum OrderBy {
    /// How many documents.
    Count,
    /// The value.
    Key,
    /// A number of the sub-aggregation in this place; which one, where it has several.
    Sub(usize, Metric),
}

/// The width of a date histogram's buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interval {
    /// Milliseconds.
    Fixed(i64),
    /// A unit of the calendar.
    Calendar(Calendar),
}

/// A number over values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// The smallest.
    Min,
    /// The greatest.
    Max,
    /// The mean.
    Avg,
    /// The sum.
    Sum,
    /// How many values.
    Count,
    /// All five.
    Stats,
}

/// Understands a body. `now` is what date math means by it. Errors name the path in the body.
pub fn parse(body: &Value, now: Time) -> Result<Query, HistoryError> {
    parse::body(body, now)
}

impl Query {
    /// The span of time outside of which nothing can match, from what must hold for every document.
    pub fn span(&self) -> Span {
        self.filter.span()
    }

    /// Refuses more hits than `max_hits`, and more buckets than `max_buckets` where the body alone shows it.
    pub fn check(&self, max_hits: usize, max_buckets: usize) -> Result<(), HistoryError> {
        self.hits.check(max_hits)?;
        self.aggs.iter().try_for_each(|agg| agg.check(max_hits, max_buckets))
    }
}

impl Hits {
    fn check(&self, max_hits: usize) -> Result<(), HistoryError> {
        let reason = format!("from + size must be {max_hits} or less (history.max_hits)");
        if self.from.saturating_add(self.size) > max_hits {
            return Err(walk::bad(&walk::below(&self.path, "size"), reason));
        }
        Ok(())
    }
}

impl Agg {
    fn check(&self, max_hits: usize, max_buckets: usize) -> Result<(), HistoryError> {
        match &self.kind {
            AggKind::Terms(terms) if terms.size > max_buckets => {
                let reason = format!("must be {max_buckets} or less (history.max_buckets)");
                return Err(walk::bad(&format!("{}.terms.size", self.path), reason));
            }
            AggKind::TopHits(hits) => hits.check(max_hits)?,
            _ => {}
        }
        self.subs.iter().try_for_each(|agg| agg.check(max_hits, max_buckets))
    }
}

impl Clause {
    fn span(&self) -> Span {
        match self {
            Self::Time(span) => *span,
            Self::Bool(bool) => bool.all.iter().fold(Span::ALL, |span, clause| span.and(clause.span())),
            _ => Span::ALL,
        }
    }
}
