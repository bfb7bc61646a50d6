//! The demo's terminal: a bar that stays below, cards that scroll above it; plain lines where there is no terminal.
//!
//! Owns stdout and stderr while the demo runs. A closed pipe is no error: the demo goes on without it.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::cards;
use super::feed::Progress;

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// One text to stdout.
pub(super) fn print(text: impl Display) {
    // The harness of the tests keeps back what is printed by the macro alone.
    #[cfg(test)]
    #[allow(clippy::print_stdout, reason = "not in the program")]
    {
        println!("{text}");
    }
    #[cfg(not(test))]
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

#[derive(Debug)]
pub(super) struct Screen {
    bar: ProgressBar,
    /// stderr, where the bar is.
    terminal: bool,
    /// stdout, where the cards are.
    pub(super) wide: bool,
    pub(super) colour: bool,
    began: Instant,
    spoke: Instant,
    all: u64,
}

impl Screen {
    pub(super) fn new(all: u64) -> Self {
        let (terminal, wide) = (std::io::stderr().is_terminal(), std::io::stdout().is_terminal());
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(all), target);
        let style = ProgressStyle::with_template("{bar:32} {percent:>3} %  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        // The convention: set and not empty.
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let now = Instant::now();
        Self { bar, terminal, wide, colour: wide && !plain, began: now, spoke: now, all }
    }

    /// The clock of the rate starts here.
    pub(super) fn begin(&mut self) {
        (self.began, self.spoke) = (Instant::now(), Instant::now());
    }

    /// Something to read, above the bar.
    pub(super) fn say(&self, text: impl Display) {
        self.bar.suspend(|| print(text));
    }

    /// How far it is.
    pub(super) fn tick(&mut self, progress: &Progress, alerts: usize) {
        let sent = progress.sent.load(Ordering::Relaxed);
        let seconds = self.began.elapsed().as_secs_f64().max(0.001);
        let date = match progress.t.load(Ordering::Relaxed) {
            0 => "starting".to_owned(),
            t => cards::date(t),
        };
        let message = if sent >= self.all {
            format!("all sent; waiting until all is handled   alerts: {alerts}")
        } else {
            format!("{date}   {:.0} reports/s   alerts: {alerts}", sent as f64 / seconds)
        };
        if self.terminal {
            self.bar.set_position(sent);
            self.bar.set_message(message);
        } else if self.spoke.elapsed() >= LINE_EVERY {
            self.spoke = Instant::now();
            let _ = writeln!(std::io::stderr(), "{:>3} %  {message}", sent.min(self.all) * 100 / self.all.max(1));
        }
    }

    /// No bar any more.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
