//! The columns of a segment, all read through one pair of eyes: a value of a document is a code, and a code is a [`Key`].
//!
//! Owns how codes are made: they order like the values, within one segment. Only keys may be compared across segments.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::ops::Bound;
use std::sync::Arc;

use serde_json::{Value, json};
use tantivy::columnar::{Column as Values, StrColumn};
use tantivy::{DocId, SegmentReader};

use super::Problem;
use super::compile::after;
use super::schema::{Fields, pair};
use crate::history::query::Field;
use crate::history::query::field::{Number, Text};
use crate::report::Time;

/// A value, comparable across segments.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    /// A string.
    Text(Arc<str>),
    /// A boolean.
    Flag(bool),
    /// A whole number.
    Whole(u64),
    /// A number with a fraction, in the order-preserving form of its bits.
    Float(u64),
    /// A time in milliseconds.
    Millis(i64),
    /// A time in microseconds.
    Micros(i64),
    /// An address.
    Address(u128),
}

impl Key {
    /// As it stands in an answer.
    pub(super) fn json(&self) -> Value {
        match self {
            Self::Text(text) => Value::String(text.to_string()),
            Self::Flag(flag) => Value::Bool(*flag),
            Self::Whole(number) => json!(number),
            Self::Float(code) => json!(tantivy::u64_to_f64(*code)),
            Self::Millis(millis) => json!(millis),
            Self::Micros(micros) => json!(Time::from_micros(*micros).seconds()),
            Self::Address(address) => {
                let address = Ipv6Addr::from_bits(*address);
                Value::String(address.to_ipv4_mapped().map_or_else(|| address.to_string(), |v4| v4.to_string()))
            }
        }
    }
}

/// A field's values in one segment.
pub(super) enum Column {
    /// No document of the segment has a value.
    Empty,
    /// Strings; those with an ordinal in the span, without so many bytes at the beginning.
    Text {
        column: StrColumn,
        first: u64,
        end: u64,
        strip: usize,
        keys: RefCell<HashMap<u64, Key>>,
    },
    /// The time, in milliseconds or microseconds.
    Time {
        column: Values<i64>,
        millis: bool,
    },
    Flag(Values<bool>),
    Whole(Values<u64>),
    Float(Values<f64>),
    Address(Values<Ipv6Addr>),
}

fn signed(value: i64) -> u128 {
    u128::from(tantivy::i64_to_u64(value))
}

impl Column {
    pub(super) fn open(fields: &Fields, field: &Field, segment: &SegmentReader) -> Result<Self, Problem> {
        let columns = segment.fast_fields();
        let name = |field| fields.schema.get_field_name(field);
        Ok(match field {
            Field::Timestamp => Self::Time { column: columns.i64("time")?, millis: true },
            Field::T => Self::Time { column: columns.i64("time")?, millis: false },
            Field::Flag(flag) => Self::Flag(columns.bool(flag.name())?),
            Field::Number(Number::Asn) => columns.column_opt("asn")?.map_or(Self::Empty, Self::Whole),
            Field::Number(number) => columns.column_opt(name(fields.number(*number)))?.map_or(Self::Empty, Self::Float),
            Field::Remote => Self::Address(columns.ip_addr("remote")?),
            Field::Text(text) => match columns.str(name(fields.text(text)))? {
                Some(column) => Self::text(column, text)?,
                None => Self::Empty,
            },
            Field::Id | Field::Location | Field::Group(_) => Self::Empty,
        })
    }

    fn text(column: StrColumn, text: &Text) -> Result<Self, Problem> {
        let (first, end, strip) = match text {
            Text::Plain(_) => (0, column.num_terms() as u64, 0),
            Text::Sub(_, key) => {
                let prefix = pair(key, "");
                let low = Bound::Included(prefix.clone().into_bytes());
                let high = after(&prefix).map_or(Bound::Unbounded, Bound::Excluded);
                let (low, high) = column.dictionary().term_bounds_to_ord(low, high)?;
                let first = match low {
                    Bound::Included(ord) => ord,
                    Bound::Excluded(ord) => ord + 1,
                    Bound::Unbounded => 0,
                };
                let end = match high {
                    Bound::Included(ord) => ord + 1,
                    Bound::Excluded(ord) => ord,
                    Bound::Unbounded => column.num_terms() as u64,
                };
                (first, end, prefix.len())
            }
        };
        Ok(Self::Text { column, first, end, strip, keys: RefCell::default() })
    }

    /// The codes of a document, each once, in order.
    pub(super) fn codes(&self, doc: DocId, codes: &mut Vec<u128>) {
        codes.clear();
        match self {
            Self::Empty => {}
            Self::Text { column, first, end, .. } => {
                codes.extend(column.term_ords(doc).filter(|ord| (first..end).contains(&ord)).map(u128::from));
            }
            Self::Time { column, millis: true } => {
                codes.extend(column.first(doc).map(|micros| signed(micros.div_euclid(1000))));
            }
            Self::Time { column, millis: false } => codes.extend(column.first(doc).map(signed)),
            Self::Flag(column) => codes.extend(column.first(doc).map(u128::from)),
            Self::Whole(column) => codes.extend(column.first(doc).map(u128::from)),
            Self::Float(column) => codes.extend(column.first(doc).map(|f| u128::from(tantivy::f64_to_u64(f)))),
            Self::Address(column) => codes.extend(column.first(doc).map(|address| address.to_bits())),
        }
        if codes.len() > 1 {
            codes.sort_unstable();
            codes.dedup();
        }
    }

    /// The first code that there may be and the one after the last, where codes lie close together.
    pub(super) fn span(&self) -> Option<(u64, u64)> {
        match self {
            Self::Text { first, end, .. } => Some((*first, (*end).max(*first))),
            Self::Flag(_) => Some((0, 2)),
            _ => None,
        }
    }

    /// A document's time in milliseconds, of the column of `@timestamp`.
    pub(super) fn millis(&self, doc: DocId) -> Option<i64> {
        match self {
            Self::Time { column, .. } => column.first(doc).map(|micros| micros.div_euclid(1000)),
            _ => None,
        }
    }

    /// A code as a number, where the field is one.
    pub(super) fn number(&self, code: u128) -> f64 {
        match self {
            Self::Time { millis: true, .. } => tantivy::u64_to_i64(code as u64) as f64,
            Self::Time { millis: false, .. } => tantivy::u64_to_i64(code as u64) as f64 / 1e6,
            Self::Float(_) => tantivy::u64_to_f64(code as u64),
            _ => code as f64,
        }
    }

    /// The keys of these codes, which must be in order and each there once.
    pub(super) fn keys(&self, codes: &[u128]) -> Result<Vec<Key>, Problem> {
        match self {
            Self::Text { column, strip, keys, .. } => {
                let ords: Vec<u64> = codes.iter().map(|code| *code as u64).collect();
                let key =
                    |bytes: &[u8]| Key::Text(String::from_utf8_lossy(bytes.get(*strip..).unwrap_or_default()).into());
                // Many at once are read in one pass; the few of a small bucket are likely to come again.
                if ords.len() > 64 {
                    let mut found = Vec::with_capacity(ords.len());
                    column.dictionary().sorted_ords_to_term_cb(&ords, |bytes| found.push(key(bytes)))?;
                    return Ok(found);
                }
                let mut keys = keys.borrow_mut();
                let mut found = Vec::with_capacity(ords.len());
                for ord in ords {
                    if let Some(key) = keys.get(&ord) {
                        found.push(key.clone());
                        continue;
                    }
                    let mut bytes = Vec::new();
                    column.dictionary().ord_to_term(ord, &mut bytes)?;
                    let key = key(&bytes);
                    keys.insert(ord, key.clone());
                    found.push(key);
                }
                Ok(found)
            }
            Self::Empty => Ok(Vec::new()),
            Self::Time { millis: true, .. } => {
                Ok(codes.iter().map(|c| Key::Millis(tantivy::u64_to_i64(*c as u64))).collect())
            }
            Self::Time { millis: false, .. } => {
                Ok(codes.iter().map(|c| Key::Micros(tantivy::u64_to_i64(*c as u64))).collect())
            }
            Self::Flag(_) => Ok(codes.iter().map(|code| Key::Flag(*code == 1)).collect()),
            Self::Whole(_) => Ok(codes.iter().map(|code| Key::Whole(*code as u64)).collect()),
            Self::Float(_) => Ok(codes.iter().map(|code| Key::Float(*code as u64)).collect()),
            Self::Address(_) => Ok(codes.iter().map(|code| Key::Address(*code)).collect()),
        }
    }
}
