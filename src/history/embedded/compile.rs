//! A condition as a query of the index library.
//!
//! Owns the translation. The spans of time that must hold for every document are left out: [`super::search`] applies them to the time
//! column of what the rest finds, which is much cheaper than a scan of the column beside every term.

use std::net::Ipv6Addr;
use std::ops::Bound;

use tantivy::Term;
use tantivy::query::{
    AllQuery, BooleanQuery, EmptyQuery, ExistsQuery, Occur, Query, RangeQuery, TermQuery, TermSetQuery,
};
use tantivy::schema::IndexRecordOption;

use super::schema::{Fields, pair};
use crate::history::query::field::{Number, Text};
use crate::history::query::{Bool, Clause, Field, Span};

type Compiled = Box<dyn Query>;

/// The condition without the spans of time that [`Query::span`](crate::history::query::Query::span) has.
pub(super) fn filter(fields: &Fields, clause: &Clause) -> Compiled {
    Compiler { fields }.top(clause)
}

/// The whole condition.
pub(super) fn whole(fields: &Fields, clause: &Clause) -> Compiled {
    Compiler { fields }.clause(clause)
}

struct Compiler<'a> {
    fields: &'a Fields,
}

fn one(term: Term) -> Compiled {
    Box::new(TermQuery::new(term, IndexRecordOption::Basic))
}

fn any(mut terms: Vec<Term>) -> Compiled {
    match terms.len() {
        0 => Box::new(EmptyQuery),
        1 => one(terms.remove(0)),
        _ => Box::new(TermSetQuery::new(terms)),
    }
}

fn union(mut queries: Vec<Compiled>) -> Compiled {
    match queries.len() {
        0 => Box::new(EmptyQuery),
        1 => queries.remove(0),
        _ => Box::new(BooleanQuery::union(queries)),
    }
}

fn range(low: Bound<Term>, high: Bound<Term>) -> Compiled {
    Box::new(RangeQuery::new(low, high))
}

impl Compiler<'_> {
    fn top(&self, clause: &Clause) -> Compiled {
        match clause {
            Clause::Time(span) if span.from < span.to => Box::new(AllQuery),
            Clause::Bool(bool) => self.bool(bool, true),
            other => self.clause(other),
        }
    }

    fn clause(&self, clause: &Clause) -> Compiled {
        let fields = self.fields;
        match clause {
            Clause::All => Box::new(AllQuery),
            Clause::Nothing => Box::new(EmptyQuery),
            Clause::Text(text, values) => {
                any(values.iter().map(|v| Term::from_field_text(fields.text(text), &whole_value(text, v))).collect())
            }
            Clause::Prefix(text, prefix) => self.prefix(text, &whole_value(text, prefix)),
            Clause::TextSpan(text, low, high) => self.text_span(text, low, high),
            Clause::Flag(flag, wanted) => one(Term::from_field_bool(fields.flag(*flag), *wanted)),
            Clause::Remote(spans) => self.remote(spans),
            Clause::Numbers(number, values) => {
                union(values.iter().map(|v| self.number(*number, Bound::Included(*v), Bound::Included(*v))).collect())
            }
            Clause::NumberSpan(number, low, high) => self.number(*number, *low, *high),
            Clause::Time(span) => self.time(*span),
            Clause::Ids(ids) => any(ids.iter().map(|id| fields.id_term(id)).collect()),
            Clause::Exists(field) => self.exists(field),
            Clause::Bool(bool) => self.bool(bool, false),
        }
    }

    fn bool(&self, bool: &Bool, top: bool) -> Compiled {
        if bool.minimum > bool.some.len() {
            return Box::new(EmptyQuery);
        }
        let mut all: Vec<Compiled> = bool
            .all
            .iter()
            .filter(|clause| {
                !matches!(clause, Clause::All) && !(top && matches!(clause, Clause::Time(s) if s.from < s.to))
            })
            .map(|clause| if top { self.top(clause) } else { self.clause(clause) })
            .collect();
        if bool.minimum > 0 {
            let some = bool.some.iter().map(|clause| self.clause(clause)).collect();
            all.push(if bool.minimum == 1 {
                union(some)
            } else {
                Box::new(BooleanQuery::union_with_minimum_required_clauses(some, bool.minimum))
            });
        }
        if all.is_empty() {
            all.push(Box::new(AllQuery));
        }
        if bool.none.is_empty() && all.len() == 1 {
            return all.remove(0);
        }
        let mut clauses: Vec<(Occur, Compiled)> = all.into_iter().map(|query| (Occur::Must, query)).collect();
        clauses.extend(bool.none.iter().map(|clause| (Occur::MustNot, self.clause(clause))));
        Box::new(BooleanQuery::new(clauses))
    }

    fn prefix(&self, text: &Text, prefix: &str) -> Compiled {
        let field = self.fields.text(text);
        let low = Bound::Included(Term::from_field_text(field, prefix));
        range(
            low,
            after(prefix).map_or(Bound::Unbounded, |end| Bound::Excluded(Term::from_field_bytes_text(field, &end))),
        )
    }

    fn text_span(&self, text: &Text, low: &Bound<String>, high: &Bound<String>) -> Compiled {
        let field = self.fields.text(text);
        let term = |value: &String| Term::from_field_text(field, &whole_value(text, value));
        // Both ends are bounded, so that a key's span never runs into the next key.
        let low = match low {
            Bound::Unbounded => Bound::Included(Term::from_field_text(field, &whole_value(text, ""))),
            bound => bound.as_ref().map(term),
        };
        let high = match high {
            Bound::Unbounded => match after(&whole_value(text, "")) {
                Some(end) => Bound::Excluded(Term::from_field_bytes_text(field, &end)),
                None => Bound::Unbounded,
            },
            bound => bound.as_ref().map(term),
        };
        range(low, high)
    }

    fn remote(&self, spans: &[(u128, u128)]) -> Compiled {
        let field = self.fields.remote();
        let term = |address: u128| Term::from_field_ip_addr(field, Ipv6Addr::from_bits(address));
        let (single, wide): (Vec<_>, Vec<_>) = spans.iter().partition(|(first, last)| first == last);
        let mut queries: Vec<Compiled> =
            wide.into_iter().map(|(f, l)| range(Bound::Included(term(f)), Bound::Included(term(l)))).collect();
        if !single.is_empty() {
            queries.push(any(single.into_iter().map(|(address, _)| term(address)).collect()));
        }
        union(queries)
    }

    fn number(&self, number: Number, low: Bound<f64>, high: Bound<f64>) -> Compiled {
        let field = self.fields.number(number);
        if matches!((low, high), (Bound::Unbounded, Bound::Unbounded)) {
            return self.exists(&Field::Number(number));
        }
        if number != Number::Asn {
            let term = |value| Term::from_field_f64(field, value);
            return range(low.map(term), high.map(term));
        }
        // Whole numbers from here on: the smallest and the greatest that fit.
        let first = match low {
            Bound::Unbounded => 0.0,
            Bound::Included(value) => value.ceil(),
            Bound::Excluded(value) => value.floor() + 1.0,
        };
        let last = match high {
            Bound::Unbounded => f64::from(u32::MAX),
            Bound::Included(value) => value.floor(),
            Bound::Excluded(value) => value.ceil() - 1.0,
        };
        if last < 0.0 || first > last {
            return Box::new(EmptyQuery);
        }
        let (first, last) = (first as u64, last as u64);
        if first == last {
            return one(Term::from_field_u64(field, first));
        }
        range(Bound::Included(Term::from_field_u64(field, first)), Bound::Included(Term::from_field_u64(field, last)))
    }

    fn time(&self, span: Span) -> Compiled {
        if span.from >= span.to {
            return Box::new(EmptyQuery);
        }
        let term = |micros| Term::from_field_i64(self.fields.time(), micros);
        let last = if span.to == i64::MAX { i64::MAX } else { span.to - 1 };
        range(Bound::Included(term(span.from)), Bound::Included(term(last)))
    }

    fn exists(&self, field: &Field) -> Compiled {
        let column = match field {
            // Every report has these.
            Field::Timestamp | Field::T | Field::Id | Field::Remote | Field::Flag(_) => return Box::new(AllQuery),
            Field::Text(text @ Text::Sub(..)) => return self.prefix(text, &whole_value(text, "")),
            Field::Text(text) => self.fields.text(text),
            Field::Number(number) => self.fields.number(*number),
            Field::Location => self.fields.number(Number::Latitude),
            Field::Group(group) => self.fields.group(*group),
        };
        Box::new(ExistsQuery::new(self.fields.schema.get_field_name(column).to_owned(), false))
    }
}

/// The value as it stands in the field.
fn whole_value(text: &Text, value: &str) -> String {
    match text {
        Text::Plain(_) => value.to_owned(),
        Text::Sub(_, key) => pair(key, value),
    }
}

/// The first bytes that come after everything with this prefix.
pub(super) fn after(prefix: &str) -> Option<Vec<u8>> {
    let mut bytes = prefix.as_bytes().to_vec();
    while let Some(last) = bytes.pop() {
        if last < u8::MAX {
            bytes.push(last + 1);
            return Some(bytes);
        }
    }
    None
}

/// A text term made of bytes that need not be UTF-8: the end of a span of texts.
trait TextBytes {
    fn from_field_bytes_text(field: tantivy::schema::Field, bytes: &[u8]) -> Term;
}

impl TextBytes for Term {
    fn from_field_bytes_text(field: tantivy::schema::Field, bytes: &[u8]) -> Term {
        let mut term = Term::from_field_text(field, "");
        term.append_bytes(bytes);
        term
    }
}
