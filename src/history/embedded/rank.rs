//! The first so many documents in an order, for the hits and for `top_hits`.
//!
//! Owns the order. Within a segment codes are compared; what survives is compared across segments by its keys.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use tantivy::{DocId, SegmentReader};

use super::Problem;
use super::columns::{Column, Key};
use super::schema::Fields;
use crate::history::query::{Field, Hits, Sort, SortBy};

/// A document that may be among the first.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    keys: Vec<Option<Key>>,
    pub(super) place: Place,
}

/// Where a document is: the day in the search's list, the segment, the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) day: usize,
    pub(super) segment: u32,
    pub(super) doc: DocId,
}

impl Candidate {
    pub(super) fn keys(&self) -> &[Option<Key>] {
        &self.keys
    }
}

/// The order that is meant: without one, the newest first.
pub(super) fn order(hits: &Hits) -> Vec<Sort> {
    if hits.sort.is_empty() {
        return vec![Sort { by: SortBy::Field(Field::T), descending: true, missing_first: false }];
    }
    hits.sort.clone()
}

/// Puts the candidates in order and keeps the first so many.
pub(super) fn cut(candidates: &mut Vec<Candidate>, order: &[Sort], most: usize) {
    candidates.sort_by(|a, b| {
        let by_key = a.keys.iter().zip(&b.keys).zip(order).map(|((a, b), sort)| match (a, b) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) if sort.missing_first => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) if sort.missing_first => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(a), Some(b)) if sort.descending => b.cmp(a),
            (Some(a), Some(b)) => a.cmp(b),
        });
        by_key.fold(Ordering::Equal, Ordering::then).then(a.place.cmp(&b.place))
    });
    candidates.truncate(most);
}

/// The columns of an order in one segment.
pub(super) struct Ranker {
    order: Vec<Sort>,
    columns: Vec<Option<Column>>,
}

impl Ranker {
    pub(super) fn new(order: Vec<Sort>, fields: &Fields, segment: &SegmentReader) -> Result<Self, Problem> {
        let open = |sort: &Sort| match &sort.by {
            SortBy::Field(field) => Column::open(fields, field, segment).map(Some),
            SortBy::Kept => Ok(None),
        };
        Ok(Self { columns: order.iter().map(open).collect::<Result<_, _>>()?, order })
    }

    /// The order that it ranks by.
    pub(super) fn order(&self) -> &[Sort] {
        &self.order
    }

    /// The first `most` of these documents.
    pub(super) fn first(&self, docs: &[DocId], most: usize, at: (usize, u32)) -> Result<Vec<Candidate>, Problem> {
        if most == 0 {
            return Ok(Vec::new());
        }
        let mut heap: BinaryHeap<(Vec<(u8, u128)>, DocId)> = BinaryHeap::new();
        let mut codes = Vec::new();
        let mut rank = Vec::new();
        for doc in docs {
            rank.clear();
            for (sort, column) in self.order.iter().zip(&self.columns) {
                rank.push(self::rank(sort, column.as_ref(), *doc, &mut codes));
            }
            if heap.len() >= most {
                match heap.peek() {
                    Some((worst, _)) if *worst <= rank => continue,
                    _ => drop(heap.pop()),
                }
            }
            heap.push((rank.clone(), *doc));
        }
        heap.into_iter()
            .map(|(rank, doc)| {
                let mut keys = Vec::with_capacity(rank.len());
                for ((present, code), (sort, column)) in rank.into_iter().zip(self.order.iter().zip(&self.columns)) {
                    let code = if sort.descending { !code } else { code };
                    keys.push(match column {
                        Some(column) if present == 1 => column.keys(&[code])?.pop(),
                        _ => None,
                    });
                }
                Ok(Candidate { keys, place: Place { day: at.0, segment: at.1, doc } })
            })
            .collect()
    }
}

/// A document's place by one key; smaller is earlier. Of several values the one that puts it first counts.
fn rank(sort: &Sort, column: Option<&Column>, doc: DocId, codes: &mut Vec<u128>) -> (u8, u128) {
    let missing = (if sort.missing_first { 0 } else { 2 }, 0);
    let Some(column) = column else { return (1, 0) };
    column.codes(doc, codes);
    if sort.descending {
        codes.last().map_or(missing, |code| (1, !code))
    } else {
        codes.first().map_or(missing, |code| (1, *code))
    }
}
