//! The alerts that a case expects, and those that were raised.
//!
//! Owns the keys of an expected alert and what each is compared with. Which raised alert is taken for which expected one is
//! [`super::compare`]'s.

use serde::Deserialize;
use serde_json::Value as Json;
use toml::{Spanned, Table, Value};

use super::compare::{Field, Listed, quoted, shortened, spread, subset};
use super::reports::json;
use super::when;
use super::words::Words;
use crate::alert::{Alert, Severity};
use crate::report::Time;

/// An alert as a test file writes it. What is left out is not looked at.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AlertText {
    kind: String,
    severity: Option<Severity>,
    login: Option<String>,
    remote: Option<String>,
    key: Option<Words>,
    title: Option<Words>,
    text: Option<Words>,
    attack: Option<Value>,
    audience: Option<Value>,
    #[serde(default)]
    evidence: Table,
    t: Option<Spanned<Value>>,
    pub(super) times: Option<usize>,
}

/// One alert that is to be raised.
#[derive(Debug, Clone)]
pub(super) struct ExpectedAlert {
    about: AlertText,
    at: Option<Time>,
    evidence: Json,
    attack: Option<Json>,
    audience: Option<Json>,
}

impl ExpectedAlert {
    /// Out of its text, in a case that starts at `start`.
    pub(super) fn of(about: &AlertText, start: Time) -> Result<Self, String> {
        let about = about.clone();
        let at =
            about.t.as_ref().map(|t| when::at(t.get_ref(), start)).transpose().map_err(|text| format!("t: {text}"))?;
        let evidence = json(&Value::Table(about.evidence.clone()), None);
        let (attack, audience) = (about.attack.as_ref(), about.audience.as_ref());
        let (attack, audience) = (attack.map(|value| json(value, None)), audience.map(|value| json(value, None)));
        Ok(Self { about, at, evidence, attack, audience })
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

/// The alerts of a case that starts at this time.
pub(super) struct Alerts {
    pub(super) start: Time,
}

impl Listed for Alerts {
    type Wanted = ExpectedAlert;
    type Got = Raised;
    const MANY: &'static str = "alerts";

    fn against(&self, wanted: &ExpectedAlert, raised: &Raised) -> Vec<Field> {
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
                let fits = got.as_ref() == Some(wanted);
                look(name, fits, quoted(wanted), got.as_deref().map_or("none".to_owned(), quoted));
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
            let from_start = |time| when::from_start(time, self.start);
            look("t", at == raised.t, from_start(at), from_start(raised.t));
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

    fn is_like(&self, wanted: &ExpectedAlert, raised: &Raised) -> bool {
        wanted.about.kind == raised.alert.kind
    }

    fn wanted(&self, wanted: &ExpectedAlert) -> (String, Vec<Field>) {
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
        add("t", wanted.at.map(|at| when::from_start(at, self.start)));
        for (name, value) in spread("evidence", &wanted.evidence) {
            add(&name, Some(value));
        }
        (format!("alert {}", about.kind), fields)
    }

    fn got(&self, raised: &Raised) -> (String, Vec<Field>) {
        let alert = &raised.alert;
        let mut values =
            vec![("severity".to_owned(), quoted(alert.severity.name())), ("key".to_owned(), quoted(&alert.key))];
        values.push(("title".to_owned(), quoted(&alert.title)));
        if alert.evidence.is_object() {
            values.extend(spread("evidence", &alert.evidence));
        }
        let fields = values.into_iter().map(|(name, got)| Field { name, expected: None, got: Some(got) });
        (format!("alert {}, raised by {}", alert.kind, raised.by), fields.collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::compare::listed;
    use super::*;

    fn wanted(toml: &str) -> ExpectedAlert {
        ExpectedAlert::of(&toml::from_str(toml).unwrap(), Time::default()).unwrap()
    }

    fn raised(kind: &str, severity: Severity, evidence: Json) -> Raised {
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
        let all = listed(&Alerts { start: Time::default() }, &expected, raised);
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
        let all = listed(&Alerts { start: Time::default() }, &[], &flood);
        assert_eq!((all.len(), all[20].title.as_str()), (21, "480 more such alerts"));
    }
}
