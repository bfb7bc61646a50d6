//! What was planted against what was found.
//!
//! Owns the comparison: each alert is of a story, or a false alarm.

use std::collections::HashSet;

use super::stories::{Story, subject_of};
use crate::alert::Alert;

/// A find: when, and what the alert said.
pub type Find = Option<(String, String)>;

/// What was planted against what was found.
#[derive(Debug)]
pub struct Ledger {
    stories: Vec<(Story, Vec<Find>)>,
    false_alarms: Vec<Alert>,
    seen: HashSet<String>,
    alerts: usize,
}

/// What an alert turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Of the story with this index.
    Story(usize),
    /// Of none.
    FalseAlarm,
    /// The same alert came before.
    Again,
}

impl Ledger {
    /// Nothing found yet.
    pub fn new(stories: &[Story]) -> Self {
        let stories = stories.iter().map(|story| (story.clone(), vec![None; story.expected.len()])).collect();
        Self { stories, false_alarms: Vec::new(), seen: HashSet::new(), alerts: 0 }
    }

    /// Takes an alert.
    pub fn take(&mut self, alert: &Alert) -> Verdict {
        if !self.seen.insert(alert.id.clone()) {
            return Verdict::Again;
        }
        self.alerts += 1;
        let (at, subject) = (alert.at(), subject_of(alert));
        let mut about = None;
        for (index, (story, finds)) in self.stories.iter_mut().enumerate() {
            if !story.is_attack() || !story.covers(at) {
                continue;
            }
            if story.expected.iter().any(|expected| expected.subject == subject) || story.about.contains(&subject) {
                about = Some(index);
            }
            let wanted = story.expected.iter().zip(finds).find(|(e, _)| e.kind == alert.kind && e.subject == subject);
            if let Some((_, find)) = wanted {
                find.get_or_insert_with(|| (alert.time.clone(), alert.title.clone()));
                return Verdict::Story(index);
            }
        }
        about.map_or_else(
            || {
                self.false_alarms.push(alert.clone());
                Verdict::FalseAlarm
            },
            Verdict::Story,
        )
    }

    /// Every story with what was found of it, in the order of what is expected.
    pub fn stories(&self) -> &[(Story, Vec<Find>)] {
        &self.stories
    }

    /// Alerts that belong to no attack.
    pub fn false_alarms(&self) -> &[Alert] {
        &self.false_alarms
    }

    /// The false alarms that a story which should have stayed quiet has raised.
    pub fn raised_by<'a>(&'a self, story: &'a Story) -> impl Iterator<Item = &'a Alert> {
        self.false_alarms.iter().filter(|alert| story.covers(alert.at()) && story.about.contains(&subject_of(alert)))
    }

    /// How many different alerts came.
    pub fn alerts(&self) -> usize {
        self.alerts
    }

    /// Whether every alert that must come has come.
    pub fn all_found(&self) -> bool {
        self.stories.iter().all(|(_, finds)| finds.iter().all(Option::is_some))
    }
}
