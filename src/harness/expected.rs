//! What a case expects: alerts, the state afterwards, searches.
//!
//! Owns the meaning of those keys. What is different is found by [`super::compare`].

use std::fmt;
use std::time::Duration;

use regex::Regex;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;
use toml::{Spanned, Table, Value};

use super::file::{CaseText, Lines, Mistake};
use super::reports::json;
use super::when;
use crate::alert::Severity;
use crate::report::Time;

/// Alerts that one case may expect.
const MAX_ALERTS: usize = 10_000;

/// A text, or what is asked of it.
#[derive(Debug, Clone)]
pub(super) enum Words {
    /// Exactly this.
    Are(String),
    /// This is in it.
    Contain(String),
    /// A regular expression that fits somewhere in it.
    Match(Regex),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct By {
    contains: Option<String>,
    matches: Option<String>,
}

impl Words {
    /// Whether the text is as wanted.
    pub(super) fn fit(&self, text: &str) -> bool {
        match self {
            Self::Are(wanted) => text == wanted,
            Self::Contain(part) => text.contains(part.as_str()),
            Self::Match(pattern) => pattern.is_match(text),
        }
    }
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Are(wanted) => write!(f, "{}", Json::from(wanted.as_str())),
            Self::Contain(part) => write!(f, "contains {}", Json::from(part.as_str())),
            Self::Match(pattern) => write!(f, "matches {}", Json::from(pattern.as_str())),
        }
    }
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyWords;
        impl<'de> Visitor<'de> for AnyWords {
            type Value = Words;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, { contains = \"…\" } or { matches = \"…\" }")
            }
            fn visit_str<E>(self, text: &str) -> Result<Words, E> {
                Ok(Words::Are(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Words, A::Error> {
                match By::deserialize(MapAccessDeserializer::new(map))? {
                    By { contains: Some(part), matches: None } => Ok(Words::Contain(part)),
                    By { contains: None, matches: Some(pattern) } => Regex::new(&pattern)
                        .map(Words::Match)
                        .map_err(|error| A::Error::custom(format!("matches: {error}"))),
                    _ => Err(A::Error::custom("one of contains and matches is needed")),
                }
            }
        }
        deserializer.deserialize_any(AnyWords)
    }
}

/// An alert as a test file writes it. What is left out is not looked at.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AlertText {
    pub(super) kind: String,
    pub(super) severity: Option<Severity>,
    pub(super) login: Option<String>,
    pub(super) remote: Option<String>,
    pub(super) key: Option<Words>,
    pub(super) title: Option<Words>,
    pub(super) text: Option<Words>,
    pub(super) attack: Option<Value>,
    pub(super) audience: Option<Value>,
    #[serde(default)]
    pub(super) evidence: Table,
    pub(super) t: Option<Spanned<Value>>,
    pub(super) times: Option<usize>,
}

/// A count of `state.add` as a test file writes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CountText {
    pub(super) key: String,
    pub(super) within: String,
    pub(super) is: usize,
}

/// One alert that is to be raised.
#[derive(Debug, Clone)]
pub(super) struct ExpectedAlert {
    pub(super) about: AlertText,
    pub(super) at: Option<Time>,
    pub(super) evidence: Json,
    pub(super) attack: Option<Json>,
    pub(super) audience: Option<Json>,
}

/// How many members a set of the state has at the end.
#[derive(Debug, Clone)]
pub(super) struct ExpectedCount {
    pub(super) key: String,
    pub(super) within: Duration,
    pub(super) is: usize,
}

/// All that a case expects.
#[derive(Debug, Clone, Default)]
pub(super) struct Expected {
    pub(super) alerts: Vec<ExpectedAlert>,
    pub(super) state: Vec<(String, Json)>,
    pub(super) absent: Vec<String>,
    pub(super) counts: Vec<ExpectedCount>,
    pub(super) searches: Option<usize>,
}

impl Expected {
    /// Out of a case's text.
    pub(super) fn of(case: &CaseText, start: Time, lines: &Lines<'_>, mistakes: &mut Vec<Mistake>) -> Self {
        let mut expected = Self { searches: case.searches, absent: case.state_without.clone(), ..Self::default() };
        expected.state = case.state_after.iter().map(|(key, value)| (key.clone(), json(value, None))).collect();
        let Some(alerts) = &case.alerts else {
            mistakes.push(lines.mistake(
                case.name.span(),
                "alerts is missing: list what must be raised, or write alerts = [] where nothing may be",
            ));
            return expected;
        };
        for alert in alerts {
            expected.add_alert(alert, start, lines, mistakes);
        }
        for count in &case.counts_after {
            let CountText { key, within, is } = count.get_ref().clone();
            match when::length(&within) {
                Ok(within) => expected.counts.push(ExpectedCount { key, within, is }),
                Err(text) => mistakes.push(lines.mistake(count.span(), format!("counts_after: within: {text}"))),
            }
        }
        expected
    }

    fn add_alert(&mut self, alert: &Spanned<AlertText>, start: Time, lines: &Lines<'_>, mistakes: &mut Vec<Mistake>) {
        let about = alert.get_ref().clone();
        let at = about.t.as_ref().map(|t| when::at(t.get_ref(), start)).transpose();
        let at = at.unwrap_or_else(|text| {
            mistakes.push(lines.mistake(alert.span(), format!("alerts: t: {text}")));
            None
        });
        let times = about.times.unwrap_or(1);
        if times == 0 || self.alerts.len().saturating_add(times) > MAX_ALERTS {
            let text = format!("alerts: times: 1 to {MAX_ALERTS} alerts in one case");
            mistakes.push(lines.mistake(alert.span(), text));
            return;
        }
        let evidence = json(&Value::Table(about.evidence.clone()), None);
        let (attack, audience) = (about.attack.as_ref(), about.audience.as_ref());
        let (attack, audience) = (attack.map(|value| json(value, None)), audience.map(|value| json(value, None)));
        let one = ExpectedAlert { about, at, evidence, attack, audience };
        self.alerts.extend(std::iter::repeat_n(one, times));
    }
}
