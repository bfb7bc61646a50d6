//! One search over the days that it touches.
//!
//! Owns the run: which documents of which segment match, what is collected from them. Blocks; runs on the pool for blocking work.

use std::time::Instant;

use serde_json::Value;
use tantivy::query::{EnableScoring, Query as IndexQuery};
use tantivy::schema::IndexRecordOption;
use tantivy::{COLLECT_BLOCK_BUFFER_LEN, DocId, DocSet, Searcher, SegmentReader, TERMINATED};

use super::aggregate::{Budget, Collected, Node, Place};
use super::answer::Answer;
use super::day::Days;
use super::rank::{Candidate, Ranker, cut, order};
use super::{Problem, compile};
use crate::history::query::{Query, Span};
use crate::history::{HistoryError, Search};
use crate::report::ReportId;

/// What one search may give and when it must be done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) buckets: usize,
    pub(super) hits: usize,
    pub(super) deadline: Instant,
}

/// Calls for every document of the segment that matches.
pub(super) fn documents(
    query: &dyn IndexQuery,
    searcher: &Searcher,
    segment: &SegmentReader,
    found: &mut dyn FnMut(DocId),
) -> Result<(), Problem> {
    let weight = query.weight(EnableScoring::disabled_from_searcher(searcher))?;
    let mut matches = weight.scorer(segment, 1.0)?;
    let mut block = [0; COLLECT_BLOCK_BUFFER_LEN];
    loop {
        let n = matches.fill_buffer(&mut block);
        block[..n].iter().for_each(|doc| found(*doc));
        if n < block.len() {
            return Ok(());
        }
    }
}

/// Answers a search; `None` if it is not done by the deadline.
pub(super) fn run(days: &Days, search: &Search, query: &Query, limits: Limits) -> Result<Option<Value>, HistoryError> {
    let up_to = search.up_to.map_or(i64::MAX, |t| t.micros().saturating_add(1));
    let span = query.span().and(Span { from: i64::MIN, to: up_to });
    let days_within = days.within(span)?;
    let searchers: Vec<Searcher> = days_within.iter().map(|day| day.searcher()).collect();
    let mut run = Run {
        days,
        query,
        span,
        without: search.without,
        deadline: limits.deadline,
        total: 0,
        candidates: Vec::new(),
        collected: query.aggs.iter().map(Collected::empty).collect(),
        budget: Budget::new(),
    };
    for (number, searcher) in searchers.iter().enumerate() {
        if !run.day(number, searcher)? {
            return Ok(None);
        }
    }
    let Run { total, candidates, collected, .. } = run;
    let answer = Answer::new(&days.fields, &days_within, &searchers, limits);
    answer.whole(query, total, candidates, collected)
}

struct Run<'a> {
    days: &'a Days,
    query: &'a Query,
    span: Span,
    without: Option<ReportId>,
    deadline: Instant,
    total: u64,
    candidates: Vec<Candidate>,
    collected: Vec<Collected>,
    budget: Budget,
}

impl Run<'_> {
    /// False: it is too late.
    fn day(&mut self, number: usize, searcher: &Searcher) -> Result<bool, HistoryError> {
        let fields = &self.days.fields;
        let filter = compile::filter(fields, &self.query.filter);
        let weight = filter.weight(EnableScoring::disabled_from_searcher(searcher))?;
        for (place, segment) in searcher.segment_readers().iter().enumerate() {
            let mut matches = weight.scorer(segment, 1.0)?;
            if matches.doc() == TERMINATED {
                continue;
            }
            let Some(docs) = self.matching(matches.as_mut(), segment)? else { return Ok(false) };
            if docs.is_empty() {
                continue;
            }
            self.total += docs.len() as u64;
            let at = (number, place as u32);
            let hits = &self.query.hits;
            if hits.size > 0 {
                let ranker = Ranker::new(order(hits), fields, segment)?;
                self.candidates.extend(ranker.first(&docs, hits.from + hits.size, at)?);
                cut(&mut self.candidates, ranker.order(), hits.from + hits.size);
            }
            for (agg, into) in self.query.aggs.iter().zip(&mut self.collected) {
                let node = Node::open(agg, Place { fields, searcher, segment, at })?;
                node.collect(&docs, into, &self.budget)?;
            }
            if Instant::now() > self.deadline {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The documents that match and lie in the span; `None`: it is too late.
    fn matching(&self, matches: &mut dyn DocSet, segment: &SegmentReader) -> Result<Option<Vec<DocId>>, HistoryError> {
        let time = segment.fast_fields().i64("time")?;
        let (first, last) = (time.min_value(), time.max_value());
        if last < self.span.from || first >= self.span.to {
            return Ok(Some(Vec::new()));
        }
        let all = self.span.contains(first) && self.span.contains(last);
        let mut docs = Vec::new();
        let mut block = [0; COLLECT_BLOCK_BUFFER_LEN];
        let mut blocks = 0_u32;
        loop {
            let n = matches.fill_buffer(&mut block);
            if all {
                docs.extend_from_slice(&block[..n]);
            } else {
                docs.extend(block[..n].iter().filter(|doc| time.first(**doc).is_some_and(|t| self.span.contains(t))));
            }
            blocks += 1;
            if n < block.len() {
                break;
            }
            if blocks.is_multiple_of(1024) && Instant::now() > self.deadline {
                return Ok(None);
            }
        }
        if let Some(id) = &self.without {
            let index = segment.inverted_index(self.days.fields.id())?;
            let term = self.days.fields.id_term(id);
            if let Some(mut own) = index.read_postings(&term, IndexRecordOption::Basic)? {
                while own.doc() != TERMINATED {
                    if let Ok(place) = docs.binary_search(&own.doc()) {
                        docs.remove(place);
                    }
                    own.advance();
                }
            }
        }
        Ok(Some(docs))
    }
}
