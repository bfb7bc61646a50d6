//! The reports that hung a worker, written down before the process ends because of one, so that after the restart each is a dead
//! letter at once and there is no crash loop.
//!
//! Owns `data_dir/hung.json`. Never decides that something hangs (that is the watchdog).

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::report::ReportId;

/// One report and the policy that does not come back from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HungCall {
    pub(super) report: ReportId,
    pub(super) policy: String,
}

/// The list on disk. Short: one entry for each worker that hangs right now, or hung when the process ended.
#[derive(Debug)]
pub(super) struct HungList {
    path: PathBuf,
    calls: Vec<HungCall>,
}

impl HungList {
    /// Reads the list; a file that cannot be read counts as empty (said in the log), because refusing to start would be worse.
    pub(super) fn open(path: PathBuf) -> Self {
        let calls = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(path = %path.display(), %error, "the list of hung reports is not readable; taken as empty");
                Vec::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the list of hung reports is not readable; taken as empty");
                Vec::new()
            }
        };
        Self { path, calls }
    }

    /// The policies that hung on a report.
    pub(super) fn policies(&self, report: ReportId) -> Vec<String> {
        self.calls.iter().filter(|call| call.report == report).map(|call| call.policy.clone()).collect()
    }

    /// Writes a call down. On disk when it returns: the process may be killed for its silence at any moment from now on.
    pub(super) fn add(&mut self, call: HungCall) {
        if !self.calls.contains(&call) {
            self.calls.push(call);
            self.write();
        }
    }

    /// Forgets a report: its calls came back, or it is a dead letter.
    pub(super) fn remove(&mut self, report: ReportId) {
        let before = self.calls.len();
        self.calls.retain(|call| call.report != report);
        if self.calls.len() != before {
            self.write();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    fn write(&self) {
        let written = || -> io::Result<()> {
            let new = self.path.with_extension("new");
            std::fs::write(&new, serde_json::to_vec(&self.calls)?)?;
            std::fs::File::open(&new)?.sync_all()?;
            std::fs::rename(&new, &self.path)
        };
        if let Err(error) = written() {
            tracing::error!(path = %self.path.display(), %error, "the list of hung reports cannot be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hung_report_is_known_after_a_restart_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hung.json");
        let call = HungCall { report: ReportId::of(b"x"), policy: "slow".into() };
        HungList::open(path.clone()).add(call.clone());
        let mut list = HungList::open(path.clone());
        assert_eq!(list.policies(call.report), vec!["slow".to_owned()]);
        list.remove(call.report);
        assert!(HungList::open(path).is_empty());
    }

    #[test]
    fn torn_list_counts_as_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hung.json");
        std::fs::write(&path, b"[{\"rep").unwrap();
        assert!(HungList::open(path).is_empty());
    }
}
