//! Files that are read once and taken again when they change: when one has changed, and what became of reading it.
//!
//! Owns the comparison, the clock and the words. Never reads what is in a file: that is the business of whoever needs it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use crate::telemetry::Metrics;

/// What tells that a file was changed or replaced. Taken before the file is read, so that a change while it is read shows at the
/// next look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    modified: Option<SystemTime>,
    /// When its name, its owner or its permissions changed last: what could not be read may be readable now.
    changed: (i64, i64),
    size: u64,
    inode: u64,
}

impl Stamp {
    /// `None`: there is no such file, or it may not be looked at.
    pub fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let about = std::fs::metadata(path).ok()?;
        let changed = (about.ctime(), about.ctime_nsec());
        Some(Self { modified: about.modified().ok(), changed, size: about.len(), inode: about.ino() })
    }
}

/// What is remembered of a file between two looks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    stamp: Option<Stamp>,
    /// Why it could not be read at the last look. It is tried again at each, and told of once.
    unreadable: Option<String>,
}

impl Seen {
    /// It was read, well or not: a broken file is told of once, not at each look.
    pub fn read(stamp: Option<Stamp>) -> Self {
        Self { stamp, unreadable: None }
    }

    /// Whether it is to be read again.
    pub fn is_due(&self, now: Option<Stamp>) -> bool {
        self.unreadable.is_some() || self.stamp != now
    }

    /// It could not be read: whatever the reason is, it may go without a change of the file. Gives whether that is news.
    pub fn note_unreadable(&mut self, why: &str) -> bool {
        let news = self.unreadable.as_deref() != Some(why);
        *self = Self { stamp: None, unreadable: Some(why.to_owned()) };
        news
    }
}

/// What became of one file that was read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reread {
    /// The file.
    pub file: PathBuf,
    /// What it is now, in a few words; or why it was not taken, and what was read before stays in use.
    pub outcome: Result<String, String>,
}

impl fmt::Display for Reread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Ok(what) => write!(f, "{}: read again: {what}", self.file.display()),
            // It begins with the setting and the file.
            Err(why) => write!(f, "{why}; what was read before stays in use"),
        }
    }
}

/// Says and counts what became of the files.
pub fn tell(all: &[Reread], metrics: &Metrics) {
    for one in all {
        match &one.outcome {
            Ok(what) => tracing::info!(file = %one.file.display(), what, "file read again"),
            Err(error) => tracing::warn!(error, "a changed file was not taken; what was read before stays in use"),
        }
        let label = if one.outcome.is_ok() { "taken" } else { "refused" };
        metrics.file_reloads.with_label_values(&[label]).inc();
    }
}

/// Looks for changed files every `every`, until stopped. `look` reads off the async threads: a file may have a hundred megabytes.
pub async fn watch(
    every: Duration,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    look: impl Fn() -> Vec<Reread> + Send + Sync + 'static,
) {
    let look = Arc::new(look);
    // A period of zero would be a busy loop.
    let every = every.max(Duration::from_millis(10));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        let look = Arc::clone(&look);
        let all = tokio::task::spawn_blocking(move || look()).await.unwrap_or_default();
        tell(&all, &metrics);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_written_to_or_replaced_has_another_stamp_and_one_that_was_only_read_has_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert_eq!(Stamp::of(&path), None);
        std::fs::write(&path, "one").unwrap();
        let first = Stamp::of(&path);
        assert!(first.is_some());
        std::fs::read(&path).unwrap();
        assert_eq!(Stamp::of(&path), first);
        std::fs::write(&path, "three").unwrap();
        let second = Stamp::of(&path);
        assert_ne!(second, first);
        // Of the same size and time, by the inode alone.
        let other = folder.path().join("other");
        std::fs::write(&other, "seven").unwrap();
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::fs::File::options().write(true).open(&other).unwrap().set_modified(time).unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(Stamp::of(&path), second);
        // What nobody may read is looked at again when somebody may.
        let third = Stamp::of(&path);
        std::thread::park_timeout(Duration::from_millis(20));
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        assert_ne!(Stamp::of(&path), third);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_tried_again_at_each_look_and_told_of_once() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "one").unwrap();
        let stamp = Stamp::of(&folder.path().join("file"));
        let mut seen = Seen::default();
        assert!(seen.is_due(stamp) && !seen.is_due(None));
        assert!(seen.note_unreadable("too many open files"));
        assert!(seen.is_due(stamp) && seen.is_due(None));
        assert!(!seen.note_unreadable("too many open files") && seen.note_unreadable("permission denied"));
        seen = Seen::read(stamp);
        assert!(!seen.is_due(stamp));
    }

    #[test]
    fn what_became_of_a_file_is_told_with_its_name() {
        let taken = Reread { file: "/a.mmdb".into(), outcome: Ok("City of 2026-03-01".into()) };
        assert_eq!(taken.to_string(), "/a.mmdb: read again: City of 2026-03-01");
        let refused = Reread { file: "/a.mmdb".into(), outcome: Err("geoip.files: /a.mmdb: the file is empty".into()) };
        assert_eq!(refused.to_string(), "geoip.files: /a.mmdb: the file is empty; what was read before stays in use");
    }
}
