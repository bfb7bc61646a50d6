//! How fast reports go from a broker's queue through a policy to their acks, beside a bare consumer of the same client library that only
//! decodes: ratios of one run, because the machine is small and noisy.
//!
//! The queue is filled before the clock runs, so broker and program have the cores to themselves. The small form only shows that every
//! row runs to its end; `tests/trials/speed` prints the figures, and holds the known ones and a floor for the ratios.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;

use std::time::{Duration, Instant};

use serde_json::json;

use support::program::Site;
use support::trial;

#[cfg(feature = "amqp")]
#[path = "speed/amqp.rs"]
mod amqp;
#[cfg(feature = "kafka")]
#[path = "speed/kafka.rs"]
mod kafka;

const PATIENCE: Duration = Duration::from_secs(300);
const AT_ONCE: &str = "function report(lt) end";

/// What one row of a table says.
struct Figures {
    reports: usize,
    seconds: f64,
    cpu: f64,
    peak_mib: f64,
}

impl Figures {
    fn rate(&self) -> f64 {
        self.reports as f64 / self.seconds
    }

    /// CPU seconds per 100,000 reports.
    fn cost(&self) -> f64 {
        self.cpu / self.reports as f64 * 100_000.0
    }

    fn print(&self, name: &str, bare: Option<&Self>) {
        let ratio = bare.map_or_else(String::new, |bare| {
            format!("{:>9.2}{:>9.2}", self.rate() / bare.rate(), self.cost() / bare.cost())
        });
        println!("{name:<52}{:>11.0}{:>12.2}{:>10.0}{ratio}", self.rate(), self.cost(), self.peak_mib);
    }
}

fn print_head() {
    println!("{:<52}{:>11}{:>12}{:>10}{:>9}{:>9}", "", "reports/s", "CPU s/100k", "peak MiB", "rate", "CPU");
}

/// 440 bytes, as a webmail's report is.
fn report(n: usize, login: usize, t: f64) -> String {
    json!({
        "t": t, "login": format!("user{login:06}@example.net"), "remote": format!("192.0.2.{}", n % 250), "success": !n.is_multiple_of(5),
        "protocol": "imap", "tls": true, "pwhash": "a1b2", "policy_reject": false, "fail_type": "", "session_id": format!("s{n:010}"),
        "device_id": "\"name\" \"Mail\" \"version\" \"15.0\" \"os\" \"Mac OS X\" \"os-version\" \"12.4 (21F79)\"",
        "device_attrs": { "imapc.family": "Mail", "imapc.major": "15", "os.family": "Mac OS X", "os.major": "12" },
        "attrs": { "cos": "premium", "mail_host": "imap3" }
    })
    .to_string()
}

/// `total` reports over so many logins, with their logins.
fn reports(total: usize, logins: usize) -> impl Iterator<Item = (String, String)> {
    let t = trial::now() - 60.0;
    (0..total).map(move |n| (format!("user{:06}@example.net", n % logins), report(n, n % logins, t)))
}

/// Runs the program on a queue that is full already, until it has handled all of it. The clock runs from the first report handled to the
/// last; the last of the acks or the last commit goes out a moment later, and is waited for.
fn drain(site: &Site, total: usize) -> Figures {
    let mut command = site.command();
    command.args(["--roles", "detect"]);
    let program = site.start_command(command);
    let handled = || program.metric("trackalert_handled_reports_total").unwrap_or_default() as usize;
    let mut first = None;
    program.wait_until("all handled", PATIENCE, |program| {
        let now = handled();
        if now > 0 && first.is_none() {
            first = Some((now, Instant::now(), program.cpu_seconds()));
        }
        now >= total
    });
    let (before, began, cpu) = first.unwrap();
    assert_eq!(handled(), total, "a report was handled twice");
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), program.cpu_seconds() - cpu);
    let (_, peak_mib) = program.memory_mib();
    program.wait_idle(PATIENCE);
    assert_eq!(program.terminate(), Some(0));
    Figures { reports: (total - before).max(1), seconds, cpu, peak_mib }
}

/// CPU seconds and peak memory of this process.
fn own_usage() -> (f64, f64) {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    (seconds(usage.user_time()) + seconds(usage.system_time()), usage.max_rss() as f64 / 1024.0)
}
