//! What a case expects: alerts, calls, webhooks, the state afterwards, searches.
//!
//! Owns which keys say so, and how often one entry of a list counts. What an entry means is told in [`super::alerts`] and [`super::calls`];
//! what is different is found by [`super::compare`].

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value as Json;
use toml::Spanned;

use super::alerts::{AlertText, ExpectedAlert};
use super::calls::{ExpectedCall, ExpectedHook};
use super::file::{CaseText, Lines, Mistake};
use super::reports::json;
use super::when;
use crate::report::Time;

/// Entries of one list of a case, each as often as it says.
const MOST: usize = 10_000;

/// A count of `state.add` as a test file writes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CountText {
    pub(super) key: String,
    pub(super) within: String,
    pub(super) is: usize,
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
    /// `None`: they are not looked at.
    pub(super) calls: Option<Vec<ExpectedCall>>,
    /// `None`: they are not looked at.
    pub(super) webhooks: Option<Vec<ExpectedHook>>,
    pub(super) state: Vec<(String, Json)>,
    pub(super) absent: Vec<String>,
    pub(super) counts: Vec<ExpectedCount>,
    pub(super) searches: Option<usize>,
}

impl Expected {
    /// Out of a case's text. `old`: it is about an old configuration, which has webhooks.
    pub(super) fn of(case: &CaseText, old: bool, start: Time, lines: &Lines<'_>, mistakes: &mut Vec<Mistake>) -> Self {
        let mut reading = Reading { lines, mistakes };
        let mut expected = Self { searches: case.searches, absent: case.state_without.clone(), ..Self::default() };
        expected.state = case.state_after.iter().map(|(key, value)| (key.clone(), json(value, None))).collect();
        match &case.alerts {
            Some(alerts) => {
                let of = |alert: &AlertText| Ok((ExpectedAlert::of(alert, start)?, alert.times));
                expected.alerts = reading.list("alerts", alerts, of);
            }
            None => reading.mistakes.push(lines.mistake(
                case.name.span(),
                "alerts is missing: list what must be raised, or write alerts = [] where nothing may be",
            )),
        }
        expected.calls = case
            .calls
            .as_ref()
            .map(|calls| reading.list("calls", calls, |call| Ok((ExpectedCall::of(call)?, call.times))));
        expected.webhooks = case.webhooks.as_ref().map(|hooks| {
            reading.list("webhooks", hooks, |hook| match old {
                true => Ok((ExpectedHook::of(hook), hook.times)),
                false => {
                    Err("only an old configuration runs webhooks; what a policy asks of servers stands in calls"
                        .to_owned())
                }
            })
        });
        for count in &case.counts_after {
            let CountText { key, within, is } = count.get_ref().clone();
            match when::length(&within) {
                Ok(within) => expected.counts.push(ExpectedCount { key, within, is }),
                Err(text) => reading.wrong(count, format!("counts_after: within: {text}")),
            }
        }
        expected
    }
}

struct Reading<'a, 'b> {
    lines: &'a Lines<'b>,
    mistakes: &'a mut Vec<Mistake>,
}

impl Reading<'_, '_> {
    fn wrong<T>(&mut self, at: &Spanned<T>, text: String) {
        self.mistakes.push(self.lines.mistake(at.span(), text));
    }

    /// The entries of a list, each as often as it says.
    fn list<T, E: Clone>(
        &mut self,
        name: &str,
        texts: &[Spanned<T>],
        of: impl Fn(&T) -> Result<(E, Option<usize>), String>,
    ) -> Vec<E> {
        let mut all = Vec::new();
        for text in texts {
            match of(text.get_ref()) {
                Ok((one, times)) => {
                    let times = times.unwrap_or(1);
                    if times == 0 || all.len().saturating_add(times) > MOST {
                        self.wrong(text, format!("{name}: times: 1 to {MOST} {name} in one case"));
                        return all;
                    }
                    all.extend(std::iter::repeat_n(one, times));
                }
                Err(said) => self.wrong(text, format!("{name}: {said}")),
            }
        }
        all
    }
}
