//! What an operator would read in the log of a fault.

use std::collections::BTreeMap;

use serde_json::Value;

use super::support::program::Site;

/// The warnings and errors of a part of a log.
pub(crate) struct Said(Vec<Value>);

/// How many lines the log has.
pub(crate) fn lines(site: &Site) -> usize {
    site.log_text().lines().count()
}

/// What was said after so many lines.
pub(crate) fn since(site: &Site, before: usize) -> Said {
    let text = site.log_text();
    let lines = text.lines().skip(before).filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Said(lines.filter(|line| line["level"] == "WARN" || line["level"] == "ERROR").collect())
}

/// How many warnings and errors somebody can read after a fault of so long: each of the parts that talk to a broker says at once that it
/// waits (a source and a publisher of each of two queues, and detect), and then every half a minute.
pub(crate) const fn bearable(seconds: u64) -> usize {
    10 + seconds as usize / 6
}

impl Said {
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Each message with what it said of why, how often, and its first line as an example.
    pub(crate) fn print(&self) {
        let mut by_message: BTreeMap<[&str; 3], (usize, &Value)> = BTreeMap::new();
        for line in &self.0 {
            let text = |name: &str| line[name].as_str().unwrap_or_default();
            by_message.entry([text("message"), text("said"), text("error")]).or_insert((0, line)).0 += 1;
        }
        for (times, line) in by_message.values() {
            println!("  {times:>4} x {}", line);
        }
    }
}
