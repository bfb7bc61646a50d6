//! What goes to the terminal, and how a command ends.
//!
//! Owns stdout: a pipe that is closed (`trackalert query … | head`) ends the command quietly instead of with a panic. The only place
//! of the library that prints, next to the demo.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use crate::config::Errors;

/// Why a command did not end well.
#[derive(Debug)]
pub enum Failure {
    /// Wrong usage or configuration: exit code 2.
    Usage(String),
    /// It was tried and failed: exit code 1. An empty text: all is said already.
    Failed(String),
    /// Nobody reads the output any more: not worth a word.
    Closed,
}

impl Failure {
    /// Exit code 1 with a text.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }

    /// Exit code 2 with a text.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }
}

impl From<Errors> for Failure {
    fn from(errors: Errors) -> Self {
        Self::Usage(errors.to_string())
    }
}

/// Says what went wrong, and gives the exit code.
pub(super) fn end(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) | Err(Failure::Closed) => ExitCode::SUCCESS,
        Err(Failure::Usage(text)) => {
            say(format_args!("trackalert: {text}"));
            ExitCode::from(2)
        }
        Err(Failure::Failed(text)) => {
            if !text.is_empty() {
                say(format_args!("trackalert: {text}"));
            }
            ExitCode::FAILURE
        }
    }
}

/// Prints a line to stdout.
pub(super) fn line(text: impl Display) -> Result<(), Failure> {
    write(format_args!("{text}\n"))
}

/// Prints to stdout as it is.
pub(super) fn print(text: impl Display) -> Result<(), Failure> {
    write(format_args!("{text}"))
}

fn write(text: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_fmt(text).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::failed(format!("cannot write to stdout: {error}")),
    })
}

/// A line for the person, on stderr: progress, hints, what went wrong. Whether it can be written changes nothing.
///
/// Written at once, because stderr has no buffer: where it goes to the same place as stdout, no other line stands in the midst of it.
pub(super) fn say(text: impl Display) {
    let _ = std::io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// Whether stdout is a terminal.
pub(super) fn to_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// A table that fits the terminal; plain columns elsewhere, without lines that `awk` would stumble over.
pub(super) fn table(head: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    if to_terminal() {
        table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
        table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    } else {
        table.load_style(comfy_table::presets::NOTHING);
    }
    table.set_header(head.to_vec());
    table
}

/// What came from outside, fit for a terminal: a login may hold escape sequences that would move the cursor or retitle the window.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A bar (of `total`, or without an end) on a terminal; nothing elsewhere.
pub(super) fn bar(total: Option<u64>, what: &str) -> indicatif::ProgressBar {
    let bar = match total {
        Some(total) => indicatif::ProgressBar::new(total),
        None => indicatif::ProgressBar::new_spinner(),
    };
    let template = match total {
        Some(_) => "{bar:30} {human_pos}/{human_len} {msg}  {per_sec}  {eta} left",
        None => "{spinner} {human_pos} {msg}  {per_sec}  {elapsed}",
    };
    if let Ok(style) = indicatif::ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_in_a_login_reach_no_terminal() {
        assert_eq!(clean("a\u{1b}]0;owned\u{7}b\nc é"), "a\u{fffd}]0;owned\u{fffd}b\u{fffd}c é");
    }
}
