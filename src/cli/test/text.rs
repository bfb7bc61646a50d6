//! What a person sees of the tests: a line a case, and for one that fails what was expected (-) and what came (+).
//!
//! Pure: text out; colours only where asked for. What a policy wrote never reaches the terminal as it is.

use std::fmt::Write;

use owo_colors::{OwoColorize, Style};

use super::super::output::{clean, to_terminal};
use super::Round;
use crate::harness::{Case, Difference, Problem, Sort, Suite, Verdict};

/// Whether to use colours: on a terminal, unless NO_COLOR says otherwise.
pub(super) fn colour() -> bool {
    to_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

const GREEN: Style = Style::new().green();
const RED: Style = Style::new().red();
const ALARM: Style = Style::new().red().bold();
const FAINT: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();

/// How it is shown.
pub(super) struct Look {
    pub(super) colour: bool,
    /// The log of cases that pass, too.
    pub(super) log: bool,
}

impl Look {
    fn painted(&self, text: &str, style: Style) -> String {
        if self.colour { text.style(style).to_string() } else { text.to_owned() }
    }

    /// Something that cannot be run.
    pub(super) fn problem(&self, problem: &Problem) -> String {
        format!("{}  {}\n", self.painted("BROKEN", ALARM), clean(&problem.to_string()))
    }

    /// A case.
    pub(super) fn verdict(&self, case: &Case, verdict: &Verdict) -> String {
        let name = format!("{}: {}", clean(&case.policy), clean(&case.name));
        if verdict.passed() {
            let mut out = format!("{}      {name}\n", self.painted("ok", GREEN));
            if self.log {
                self.write_log(&mut out, verdict);
            }
            return out;
        }
        let mut out = format!("{}  {}\n", self.painted("FAILED", ALARM), self.painted(&name, BOLD));
        let place = format!("{}:{}", case.file.display(), case.line);
        let _ = writeln!(out, "        {}", self.painted(&clean(&place), FAINT));
        for difference in &verdict.differences {
            self.write_difference(&mut out, difference);
        }
        self.write_log(&mut out, verdict);
        out
    }

    fn write_difference(&self, out: &mut String, difference: &Difference) {
        let what = match difference.sort {
            Sort::Failure => "",
            Sort::Unanswered => "unanswered: ",
            Sort::Differs => "differs: ",
            Sort::Missing => "missing: ",
            Sort::Unexpected => "unexpected: ",
            Sort::State => "state: ",
            Sort::Searches => "searches: ",
        };
        let _ = writeln!(out, "    {}{}", self.painted(what, BOLD), clean(&difference.title));
        for line in difference.text.lines() {
            let _ = writeln!(out, "      {}", self.painted(&clean(line), RED));
        }
        let width = difference.fields.iter().map(|field| field.name.chars().count()).max().unwrap_or(0);
        for field in &difference.fields {
            let name = clean(&field.name);
            for (sign, value, style) in [('-', &field.expected, RED), ('+', &field.got, GREEN)] {
                if let Some(value) = value {
                    let line = format!("{sign} {name:<width$}  {}", clean(value));
                    let _ = writeln!(out, "      {}", self.painted(line.trim_end(), style));
                }
            }
        }
    }

    fn write_log(&self, out: &mut String, verdict: &Verdict) {
        if !verdict.log.is_empty() {
            let _ = writeln!(out, "    the policy's log:");
        }
        for line in &verdict.log {
            let _ = writeln!(out, "      {}", self.painted(&clean(line), FAINT));
        }
    }

    /// The last line.
    pub(super) fn summary(&self, round: &Round, suite: &Suite) -> String {
        if round.verdicts.is_empty() && round.problems.is_empty() {
            let policies = suite.policies.len();
            return format!(
                "no tests: {policies} {} without a file tests/*.toml beside it\n",
                plural(policies, "policy", "policies")
            );
        }
        let (failed, all) = (round.failed(), round.verdicts.len());
        let mut said = vec![format!("{} passed", all - failed)];
        if failed > 0 {
            said.push(self.painted(&format!("{failed} failed"), ALARM));
        }
        if !round.problems.is_empty() {
            said.push(self.painted(&format!("{} broken", round.problems.len()), ALARM));
        }
        if round.left_out > 0 {
            said.push(format!("{} left out", round.left_out));
        }
        let first = if round.verdicts.iter().any(|verdict| !verdict.passed()) { "\n" } else { "" };
        let mut out = format!(
            "{first}{} {}: {} in {:.1} s\n",
            all,
            plural(all, "case", "cases"),
            said.join(", "),
            round.took.as_secs_f64()
        );
        let without: Vec<_> = suite
            .policies
            .iter()
            .filter(|tested| tested.files.is_empty())
            .map(|tested| clean(&tested.policy))
            .collect();
        if !without.is_empty() {
            let _ = writeln!(out, "without tests: {}", without.join(", "));
        }
        out
    }
}

fn plural(count: usize, one: &'static str, many: &'static str) -> &'static str {
    if count == 1 { one } else { many }
}
