//! What is different between what a case expects and what came of it, in words that show where to look.
//!
//! Pure. Owns which of the things that came is taken for which expected one, and what "it holds this" means. What one of them is and how it
//! is told stands with those who implement [`Listed`].

use std::collections::BTreeMap;

use serde_json::Value;

/// Characters of one value that are shown.
const SHOWN: usize = 200;
/// Things of a sort that are shown one by one; a policy that has gone wild raises thousands of alerts.
const LISTED: usize = 20;

/// What sort of difference it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sort {
    /// The policy, or the case, could not run to its end.
    Failure,
    /// A request went out that the case has no answer to.
    Unanswered,
    /// An alert of the kind came (a call of the URL, a webhook of the name), with other values.
    Differs,
    /// An alert, a call or a webhook that was expected did not come.
    Missing,
    /// One came that was not expected.
    Unexpected,
    /// The state afterwards.
    State,
    /// The number of searches.
    Searches,
}

impl Sort {
    /// One word for machines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Unanswered => "unanswered",
            Self::Differs => "differs",
            Self::Missing => "missing",
            Self::Unexpected => "unexpected",
            Self::State => "state",
            Self::Searches => "searches",
        }
    }
}

/// One value: what was expected of it and what it was. One of the two may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// `severity`, `evidence.country`.
    pub name: String,
    /// What was expected, for people.
    pub expected: Option<String>,
    /// What came, for people.
    pub got: Option<String>,
}

/// One thing that is not as expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What sort of thing.
    pub sort: Sort,
    /// One line for people.
    pub title: String,
    /// The values that show it.
    pub fields: Vec<Field>,
    /// More for people: the text of an error.
    pub text: String,
}

impl Difference {
    /// Something that ended the case.
    pub(super) fn failure(title: &str, text: String) -> Self {
        Self { sort: Sort::Failure, title: title.to_owned(), fields: Vec::new(), text }
    }

    /// A request that had no answer; the text says how to give one.
    pub(super) fn unanswered(title: String, text: String) -> Self {
        Self { sort: Sort::Unanswered, title, fields: Vec::new(), text }
    }

    fn of(sort: Sort, title: String, fields: Vec<Field>) -> Self {
        Self { sort, title, fields, text: String::new() }
    }
}

/// What a case lists one by one, and what came of it: alerts, calls, webhooks.
pub(super) trait Listed {
    /// One that is expected.
    type Wanted;
    /// One that came.
    type Got;
    /// Several of them, for people.
    const MANY: &'static str;

    /// The values of what came that are not as wanted. None: it fits.
    fn against(&self, wanted: &Self::Wanted, got: &Self::Got) -> Vec<Field>;
    /// Whether what came may be what was meant, with other values.
    fn is_like(&self, wanted: &Self::Wanted, got: &Self::Got) -> bool;
    /// One that did not come, for people.
    fn wanted(&self, wanted: &Self::Wanted) -> (String, Vec<Field>);
    /// One that came, for people.
    fn got(&self, got: &Self::Got) -> (String, Vec<Field>);
}

/// Whether each that is expected came, and nothing else. Each that came stands for one expected one at most.
pub(super) fn listed<L: Listed>(list: &L, expected: &[L::Wanted], came: &[L::Got]) -> Vec<Difference> {
    let fits: Vec<Vec<usize>> = expected
        .iter()
        .map(|one| (0..came.len()).filter(|at| list.against(one, &came[*at]).is_empty()).collect())
        .collect();
    let mut taken_by: Vec<Option<usize>> = vec![None; came.len()];
    let mut open: Vec<usize> = Vec::new();
    for one in 0..expected.len() {
        if !give(one, &fits, &mut taken_by, &mut vec![false; came.len()]) {
            open.push(one);
        }
    }
    let mut left: Vec<usize> = (0..came.len()).filter(|at| taken_by[*at].is_none()).collect();
    let (mut differs, mut missing) = (Vec::new(), Vec::new());
    for one in open {
        let wanted = &expected[one];
        // The likest of the same kind was meant.
        let like = left.iter().filter(|at| list.is_like(wanted, &came[**at]));
        match like.copied().min_by_key(|at| list.against(wanted, &came[*at]).len()) {
            Some(at) => {
                left.retain(|other| *other != at);
                let (title, _) = list.got(&came[at]);
                differs.push(Difference::of(Sort::Differs, title, list.against(wanted, &came[at])));
            }
            None => {
                let (title, fields) = list.wanted(wanted);
                missing.push(Difference::of(Sort::Missing, title, fields));
            }
        }
    }
    let unexpected = left.iter().map(|at| {
        let (title, fields) = list.got(&came[*at]);
        Difference::of(Sort::Unexpected, title, fields)
    });
    let unexpected = unexpected.collect();
    [differs, missing, unexpected].into_iter().flat_map(|all| cut(all, L::MANY)).collect()
}

/// Finds one that came for an expected one, moving others to what fits them as well: an expectation that says little must not take the
/// only one that fits one that says much.
fn give(one: usize, fits: &[Vec<usize>], taken_by: &mut [Option<usize>], looked: &mut [bool]) -> bool {
    // Among thousands that are alike each move would set off the next one.
    if let Some(&free) = fits[one].iter().find(|at| taken_by[**at].is_none()) {
        taken_by[free] = Some(one);
        return true;
    }
    for &at in &fits[one] {
        if std::mem::replace(&mut looked[at], true) {
            continue;
        }
        if taken_by[at].is_none_or(|other| give(other, fits, taken_by, looked)) {
            taken_by[at] = Some(one);
            return true;
        }
    }
    false
}

/// As many as a person reads; the rest is counted.
pub(super) fn cut(mut all: Vec<Difference>, many: &str) -> Vec<Difference> {
    if all.len() > LISTED {
        let title = format!("{} more such {many}", all.len() - LISTED);
        let sort = all[0].sort;
        all.truncate(LISTED);
        all.push(Difference::of(sort, title, Vec::new()));
    }
    all
}

/// Whether `got` holds `wanted`: every key of a table that is wanted, with its value; everything else is equal.
pub(super) fn subset(name: &str, wanted: &Value, got: Option<&Value>, fields: &mut Vec<Field>) {
    match (wanted, got) {
        (Value::Object(wanted), Some(Value::Object(got))) => {
            for (key, value) in wanted {
                subset(&format!("{name}.{key}"), value, got.get(key), fields);
            }
        }
        (wanted, got) if got.is_some_and(|got| same(wanted, got)) => {}
        (wanted, got) => fields.push(Field {
            name: name.to_owned(),
            expected: Some(shown(wanted)),
            got: Some(got.map_or_else(|| "nothing".to_owned(), shown)),
        }),
    }
}

/// Equal, where 15 and 15.0 are the same number: Lua has one sort of numbers, TOML two.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= a.abs().max(b.abs()) * 1e-12,
            _ => a == b,
        },
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| same(value, other)))
        }
        _ => a == b,
    }
}

/// The values of a table one by one, by name: what Lua gave has no order. Anything else as a whole.
pub(super) fn spread(name: &str, value: &Value) -> Vec<(String, String)> {
    let Value::Object(map) = value else { return vec![(name.to_owned(), shown(value))] };
    let sorted: BTreeMap<_, _> = map.iter().collect();
    sorted.into_iter().map(|(key, value)| (format!("{name}.{key}"), shown(value))).collect()
}

/// A value of the state.
pub(super) fn value(key: &str, wanted: Option<&Value>, got: Option<&Value>) -> Option<Difference> {
    let mut fields = Vec::new();
    match wanted {
        Some(wanted) => subset(key, wanted, got, &mut fields),
        None => fields.extend(got.map(|got| Field {
            name: key.to_owned(),
            expected: Some("nothing".to_owned()),
            got: Some(shown(got)),
        })),
    }
    (!fields.is_empty()).then(|| Difference::of(Sort::State, "the state after the last report".to_owned(), fields))
}

/// A count of the state.
pub(super) fn count(key: &str, within: std::time::Duration, wanted: usize, got: usize) -> Option<Difference> {
    let name = format!("{key} within {}", humantime::format_duration(within));
    let fields = vec![Field { name, expected: Some(wanted.to_string()), got: Some(got.to_string()) }];
    (wanted != got).then(|| Difference::of(Sort::State, "members counted after the last report".to_owned(), fields))
}

/// The number of searches.
pub(super) fn searches(wanted: Option<usize>, got: usize) -> Option<Difference> {
    let wanted = wanted.filter(|wanted| *wanted != got)?;
    let field = Field { name: "searches".to_owned(), expected: Some(wanted.to_string()), got: Some(got.to_string()) };
    Some(Difference::of(Sort::Searches, "how often the history was asked".to_owned(), vec![field]))
}

pub(super) fn quoted(text: &str) -> String {
    shown(&Value::from(text))
}

pub(super) fn shown(value: &Value) -> String {
    shortened(value.to_string())
}

pub(super) fn shortened(text: String) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn state_and_searches_are_told_where_they_differ_only() {
        assert_eq!(value("ann", Some(&json!({ "n": 1 })), Some(&json!({ "n": 1.0, "m": 2 }))), None);
        let off = value("ann", Some(&json!({ "n": 1 })), Some(&json!({ "n": 2 }))).unwrap();
        assert_eq!((off.fields[0].name.as_str(), off.fields[0].got.as_deref()), ("ann.n", Some("2")));
        assert_eq!(value("ann", Some(&json!(1)), None).unwrap().fields[0].got.as_deref(), Some("nothing"));
        assert_eq!(value("ann", None, None), None);
        assert!(value("ann", None, Some(&json!(1))).is_some());
        assert!(searches(None, 3).is_none() && searches(Some(3), 3).is_none() && searches(Some(2), 3).is_some());
        assert!(count("s", std::time::Duration::from_secs(300), 2, 2).is_none());
        assert_eq!(count("s", std::time::Duration::from_secs(300), 2, 3).unwrap().fields[0].name, "s within 5m");
    }
}
