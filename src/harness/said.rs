//! What a policy wrote to its log in a case: kept, and shown beside a failing case, instead of mixed up with that of all others.
//!
//! Takes the lines of `log.*` and `print` alone; what the program itself logs is not the policy's matter.

use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Lines that are kept of one case; further ones are counted.
const MOST: usize = 200;
/// Where the lines of policies come from.
const TARGET: &str = "trackalert::policy::api";

/// The lines of one case.
#[derive(Debug, Clone, Default)]
pub(super) struct Said(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    kept: Vec<String>,
    more: usize,
    /// The report that is being handled, from 1.
    report: usize,
}

impl Said {
    /// Runs `f` with the lines of this thread going here.
    pub(super) fn listen<R>(&self, f: impl FnOnce() -> R) -> R {
        tracing::subscriber::with_default(tracing_subscriber::registry().with(self.clone()), f)
    }

    /// From now on lines belong to this report.
    pub(super) fn at(&self, report: usize) {
        self.lines().report = report;
    }

    /// What was said.
    pub(super) fn take(&self) -> Vec<String> {
        let mut lines = std::mem::take(&mut *self.lines());
        if lines.more > 0 {
            lines.kept.push(format!("({} more lines)", lines.more));
        }
        lines.kept
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for Said {
    fn enabled(&self, about: &Metadata<'_>, _: Context<'_, S>) -> bool {
        about.target().starts_with(TARGET)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut words = Words::default();
        event.record(&mut words);
        let level = event.metadata().level().as_str().to_lowercase();
        let mut lines = self.lines();
        if lines.kept.len() >= MOST {
            lines.more += 1;
            return;
        }
        let Words { message, fields } = words;
        let space = if fields.is_empty() { "" } else { " " };
        // What `print` joins with tabs.
        let line = format!("report {}: {level}: {message}{space}{fields}", lines.report).replace('\t', " ");
        lines.kept.push(line);
    }
}

/// The message, and the policy's own fields, which are JSON already.
#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            "fields" => value.clone_into(&mut self.fields),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.message.clear();
            let _ = write!(self.message, "{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lines_of_policies_are_kept_with_their_report_and_a_bound() {
        let said = Said::default();
        said.listen(|| {
            said.at(3);
            tracing::info!(target: "trackalert::policy::api::log", policy = "p", fields = r#"{"a":1}"#, "{}", "hello");
            tracing::warn!(target: "trackalert::history", "not the policy's");
            for _ in 0..MOST + 4 {
                tracing::debug!(target: "trackalert::policy::api::log", fields = "", "again");
            }
        });
        let lines = said.take();
        assert_eq!(lines[0], r#"report 3: info: hello {"a":1}"#);
        assert_eq!(lines[1], "report 3: debug: again");
        assert_eq!((lines.len(), lines[MOST].as_str()), (MOST + 1, "(5 more lines)"));
    }
}
