//! When is all that was fed handled? Asked of the program's own metrics, as an operator would.
//!
//! Owns the waiting. Never trusts one look: the gauges of the queues are a second old.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::DemoError;
use super::feed;

const EVERY: Duration = Duration::from_millis(250);
/// The queues' gauges are renewed each second; so long must all be quiet.
const QUIET: Duration = Duration::from_millis(2500);
/// A program that does nothing for so long does not get on.
const STUCK: Duration = Duration::from_secs(60);

/// What is read of the metrics.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Load {
    handled: f64,
    left: f64,
    dead: f64,
}

/// The sum of a metric over its labels.
fn sum(text: &str, name: &str) -> f64 {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value =
            rest.strip_prefix(' ').or_else(|| rest.strip_prefix('{').and_then(|rest| Some(rest.split_once("} ")?.1)));
        value?.trim().parse::<f64>().ok()
    });
    values.sum()
}

fn load(text: &str) -> Load {
    let gauges = ["trackalert_queue_messages", "trackalert_in_flight", "trackalert_unsettled"];
    Load {
        handled: sum(text, "trackalert_handled_reports_total"),
        left: gauges.iter().map(|name| sum(text, name)).sum(),
        dead: sum(text, "trackalert_dead_letters"),
    }
}

/// What is left when all is handled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drained {
    /// The moment at which the last report was handled.
    pub(super) at: Instant,
    /// Dead letters.
    pub(super) dead: u64,
}

/// Waits until `fed` reports are handled and both queues are empty.
pub(super) async fn drained(address: SocketAddr, fed: u64) -> Result<Drained, DemoError> {
    let (mut before, mut moved, mut quiet) = (None, Instant::now(), None);
    loop {
        let now = load(&feed::get(address, "/metrics").await?);
        if before != Some(now) {
            (before, moved) = (Some(now), Instant::now());
        }
        if now.handled >= fed as f64 && now.left == 0.0 {
            let since = *quiet.get_or_insert_with(Instant::now);
            if since.elapsed() >= QUIET {
                return Ok(Drained { at: since, dead: now.dead as u64 });
            }
        } else {
            quiet = None;
        }
        if moved.elapsed() > STUCK {
            return Err(DemoError::Stuck { handled: now.handled as u64, fed });
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_a_metric_over_its_labels_and_takes_no_other_with_the_same_beginning() {
        let text = "# HELP trackalert_queue_messages x\ntrackalert_queue_messages{queue=\"alerts\"} 2\n\
                    trackalert_queue_messages{queue=\"reports\"} 40\ntrackalert_queue_messages_more 9\n\
                    trackalert_in_flight 3\ntrackalert_unsettled 1\ntrackalert_handled_reports_total 1e3\n";
        assert_eq!(load(text), Load { handled: 1000.0, left: 46.0, dead: 0.0 });
    }
}
