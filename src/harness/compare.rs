//! What is different between what a case expects and what came of it, in words that show where to look.
//!
//! Pure. Owns which alert is taken for which expected one, and what "the evidence holds this" means.

use std::collections::BTreeMap;

use serde_json::Value;

use super::expected::ExpectedAlert;
use super::when;
use crate::alert::Alert;
use crate::report::Time;

/// Characters of one value that are shown.
const SHOWN: usize = 200;
/// Alerts that are shown one by one; a policy that has gone wild raises thousands.
const LISTED: usize = 20;

/// What sort of difference it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sort {
    /// The policy, or the case, could not run to its end.
    Failure,
    /// An alert of the kind came, with other values.
    Differs,
    /// An alert that was expected did not come.
    Missing,
    /// An alert came that was not expected.
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

    fn of(sort: Sort, title: String, fields: Vec<Field>) -> Self {
        Self { sort, title, fields, text: String::new() }
    }
}

/// An alert that was raised.
#[derive(Debug, Clone)]
pub(super) struct Raised {
    pub(super) alert: Alert,
    pub(super) t: Time,
    /// The report that raised it, for people.
    pub(super) by: String,
}

/// Whether each expected alert came, and nothing else. Each raised alert stands for one expected one at most.
pub(super) fn alerts(expected: &[ExpectedAlert], raised: &[Raised], start: Time) -> Vec<Difference> {
    let fits: Vec<Vec<usize>> = expected
        .iter()
        .map(|one| (0..raised.len()).filter(|at| against(one, &raised[*at], start).is_empty()).collect())
        .collect();
    let mut taken_by: Vec<Option<usize>> = vec![None; raised.len()];
    let mut open: Vec<usize> = Vec::new();
    for one in 0..expected.len() {
        if !give(one, &fits, &mut taken_by, &mut vec![false; raised.len()]) {
            open.push(one);
        }
    }
    let mut left: Vec<usize> = (0..raised.len()).filter(|at| taken_by[*at].is_none()).collect();
    let (mut differs, mut missing) = (Vec::new(), Vec::new());
    for one in open {
        let wanted = &expected[one];
        // The likest of the same kind was meant.
        let like = left.iter().filter(|at| raised[**at].alert.kind == wanted.about.kind);
        match like.copied().min_by_key(|at| against(wanted, &raised[*at], start).len()) {
            Some(at) => {
                left.retain(|other| *other != at);
                let title = format!("alert {}, raised by {}", wanted.about.kind, raised[at].by);
                differs.push(Difference::of(Sort::Differs, title, against(wanted, &raised[at], start)));
            }
            None => {
                let title = format!("alert {}", wanted.about.kind);
                missing.push(Difference::of(Sort::Missing, title, wanted_fields(wanted, start)));
            }
        }
    }
    let unexpected = left.iter().map(|at| {
        let title = format!("alert {}, raised by {}", raised[*at].alert.kind, raised[*at].by);
        Difference::of(Sort::Unexpected, title, raised_fields(&raised[*at].alert))
    });
    let mut all = cut(differs);
    all.extend(cut(missing));
    all.extend(cut(unexpected.collect()));
    all
}

/// Finds a raised alert for an expected one, moving others to what fits them as well: an expectation that says little must not take the
/// only alert that fits one that says much.
fn give(one: usize, fits: &[Vec<usize>], taken_by: &mut [Option<usize>], looked: &mut [bool]) -> bool {
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

fn cut(mut all: Vec<Difference>) -> Vec<Difference> {
    if all.len() > LISTED {
        let title = format!("{} more such alerts", all.len() - LISTED);
        let sort = all[0].sort;
        all.truncate(LISTED);
        all.push(Difference::of(sort, title, Vec::new()));
    }
    all
}

/// The values of a raised alert that are not as expected.
fn against(wanted: &ExpectedAlert, raised: &Raised, start: Time) -> Vec<Field> {
    let (about, alert) = (&wanted.about, &raised.alert);
    let mut fields = Vec::new();
    let mut look = |name: &str, fits: bool, expected: String, got: String| {
        if !fits {
            fields.push(Field { name: name.to_owned(), expected: Some(expected), got: Some(got) });
        }
    };
    look("kind", about.kind == alert.kind, quoted(&about.kind), quoted(&alert.kind));
    if let Some(severity) = about.severity {
        look("severity", severity == alert.severity, quoted(severity.name()), quoted(alert.severity.name()));
    }
    for (name, wanted, got) in [("login", &about.login, &alert.login), ("remote", &about.remote, &alert.remote)] {
        if let Some(wanted) = wanted {
            look(name, got.as_ref() == Some(wanted), quoted(wanted), got.as_deref().map_or("none".to_owned(), quoted));
        }
    }
    for (name, wanted, got) in
        [("key", &about.key, &alert.key), ("title", &about.title, &alert.title), ("text", &about.text, &alert.text)]
    {
        if let Some(wanted) = wanted {
            look(name, wanted.fit(got), shortened(wanted.to_string()), quoted(got));
        }
    }
    if let Some(at) = wanted.at {
        look("t", at == raised.t, when::from_start(at, start), when::from_start(raised.t, start));
    }
    subset("evidence", &wanted.evidence, Some(&alert.evidence), &mut fields);
    for (name, wanted, got) in
        [("attack", &wanted.attack, &alert.attack), ("audience", &wanted.audience, &alert.audience)]
    {
        if let Some(wanted) = wanted {
            subset(name, wanted, got.as_ref(), &mut fields);
        }
    }
    fields
}

/// Whether `got` holds `wanted`: every key of a table that is wanted, with its value; everything else is equal.
fn subset(name: &str, wanted: &Value, got: Option<&Value>, fields: &mut Vec<Field>) {
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

fn wanted_fields(wanted: &ExpectedAlert, start: Time) -> Vec<Field> {
    let about = &wanted.about;
    let mut fields = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            fields.push(Field { name: name.to_owned(), expected: Some(value), got: None });
        }
    };
    add("severity", about.severity.map(|severity| quoted(severity.name())));
    add("login", about.login.as_deref().map(quoted));
    add("remote", about.remote.as_deref().map(quoted));
    add("key", about.key.as_ref().map(ToString::to_string));
    add("title", about.title.as_ref().map(ToString::to_string));
    add("text", about.text.as_ref().map(ToString::to_string));
    add("t", wanted.at.map(|at| when::from_start(at, start)));
    for (key, value) in wanted.evidence.as_object().into_iter().flatten() {
        add(&format!("evidence.{key}"), Some(shown(value)));
    }
    fields
}

fn raised_fields(alert: &Alert) -> Vec<Field> {
    let mut values =
        vec![("severity".to_owned(), quoted(alert.severity.name())), ("key".to_owned(), quoted(&alert.key))];
    values.push(("title".to_owned(), quoted(&alert.title)));
    // By name: what Lua gave has no order.
    let evidence: BTreeMap<_, _> = alert.evidence.as_object().into_iter().flatten().collect();
    values.extend(evidence.into_iter().map(|(key, value)| (format!("evidence.{key}"), shown(value))));
    values.into_iter().map(|(name, got)| Field { name, expected: None, got: Some(got) }).collect()
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

fn quoted(text: &str) -> String {
    shown(&Value::from(text))
}

fn shown(value: &Value) -> String {
    shortened(value.to_string())
}

fn shortened(text: String) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::expected::AlertText;
    use super::*;
    use crate::alert::Severity;

    fn wanted(toml: &str) -> ExpectedAlert {
        let about: AlertText = toml::from_str(toml).unwrap();
        let json = |value: &toml::Value| super::super::reports::json(value, None);
        let evidence = json(&toml::Value::Table(about.evidence.clone()));
        ExpectedAlert { at: None, evidence, attack: about.attack.as_ref().map(json), audience: None, about }
    }

    fn raised(kind: &str, severity: Severity, evidence: Value) -> Raised {
        let alert = Alert {
            id: "1".into(),
            time: "2026-01-01T00:00:00.000Z".into(),
            kind: kind.into(),
            severity,
            title: "ann from BR".into(),
            text: String::new(),
            login: Some("ann".into()),
            remote: Some("192.0.2.1".into()),
            evidence,
            attack: Some(json!("T1078")),
            audience: None,
            key: "ann".into(),
            policy: "p".into(),
        };
        Raised { alert, t: Time::default(), by: "report 1".into() }
    }

    fn sorts(expected: &[&str], raised: &[Raised]) -> Vec<(&'static str, Vec<String>)> {
        let expected: Vec<_> = expected.iter().map(|toml| wanted(toml)).collect();
        let names = |fields: &[Field]| fields.iter().map(|field| field.name.clone()).collect();
        let all = alerts(&expected, raised, Time::default());
        all.iter().map(|one| (one.sort.name(), names(&one.fields))).collect()
    }

    #[test]
    fn each_expected_alert_needs_one_of_its_own_and_vague_ones_give_way() {
        let two = [raised("k", Severity::High, json!({})), raised("k", Severity::Low, json!({}))];
        assert!(sorts(&["kind = \"k\"", "kind = \"k\"\nseverity = \"high\""], &two).is_empty());
        let sorted = sorts(&["kind = \"k\"\nseverity = \"high\"", "kind = \"k\"\nseverity = \"high\""], &two);
        assert_eq!(sorted, [("differs", vec!["severity".to_owned()])]);
        assert_eq!(
            sorts(&["kind = \"other\""], &two[..1]).iter().map(|one| one.0).collect::<Vec<_>>(),
            ["missing", "unexpected"]
        );
        assert_eq!(sorts(&[], &two[..1])[0].1, ["severity", "key", "title"]);
    }

    #[test]
    fn evidence_is_held_in_part_and_numbers_are_numbers() {
        let got = [raised(
            "k",
            Severity::Low,
            json!({ "n": 15.0, "list": ["a", 2], "deep": { "x": 1, "y": 2 }, "more": true }),
        )];
        let whole = "kind = \"k\"\nattack = \"T1078\"\ntitle = { contains = \"BR\" }\nkey = { matches = \"^a.n$\" }\n\
                     evidence = { n = 15, list = [\"a\", 2.0], deep = { y = 2 } }";
        assert!(sorts(&[whole], &got).is_empty());
        let off = "kind = \"k\"\nattack = \"T1\"\ntitle = \"x\"\nlogin = \"bob\"\nevidence = { n = 16, list = [\"a\"], deep = { z = 1 }, none = 0 }";
        let fields = sorts(&[off], &got)[0].1.join(" ");
        assert_eq!(fields, "login title evidence.deep.z evidence.list evidence.n evidence.none attack");
    }

    #[test]
    fn a_flood_of_alerts_is_listed_in_part() {
        let flood: Vec<_> = (0..500).map(|n| raised("k", Severity::Low, json!({ "n": n }))).collect();
        let all = alerts(&[], &flood, Time::default());
        assert_eq!((all.len(), all[LISTED].title.as_str()), (LISTED + 1, "480 more such alerts"));
    }

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
