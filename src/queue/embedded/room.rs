//! How far a log is handled, and how much room is left in it.
//!
//! Owns the two counts that must agree: the position, and the bytes that are not handled.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::QueueError;
use super::log::Log;

/// Free bytes that messages and dead letters leave to what must go on: positions, state, history. A database whose write fails for want
/// of room takes no more writes until a restart.
pub(super) const MIN_FREE: u64 = 256 * 1024 * 1024;
/// How often the disk is asked.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What the disk said last.
#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) looked: Option<Instant>,
    pub(super) short: bool,
}

/// How far the messages are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Everything below is done.
    pub(super) position: u64,
    /// Bytes of all records below, since the queue was made.
    pub(super) handled: u64,
}

/// The end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    /// The next sequence.
    pub(super) next: u64,
    /// Bytes of all records, since the queue was made.
    pub(super) appended: u64,
}

impl Log {
    /// Takes room for bytes to be written, or says that there is none. One message always fits into an empty queue.
    pub(super) fn reserve(&self, bytes: u64) -> Result<(), QueueError> {
        if self.disk_is_short() {
            let least = bytesize::ByteSize(self.min_free);
            return Err(self.full(format!("less than {least} free on the disk of data_dir")));
        }
        let take = |used: u64| {
            let sum = used.saturating_add(bytes);
            (used == 0 || sum <= self.bound.bytes.as_u64()).then_some(sum)
        };
        let taken = self.unhandled.fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
        let limit = || format!("{} = {}", self.bound.setting, self.bound.bytes);
        taken.map(|_| ()).map_err(|_| self.full(limit()))
    }

    fn full(&self, limit: String) -> QueueError {
        QueueError::Full { queue: self.name.clone(), limit, retry_after: self.retry_after }
    }

    /// Whether nothing that could wait is to be written now.
    pub(super) fn disk_is_short(&self) -> bool {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        if disk.looked.is_none_or(|looked| looked.elapsed() > LOOK_EVERY) {
            let short = self.store.free_bytes().is_some_and(|free| free < self.min_free);
            if short && !disk.short {
                let least = bytesize::ByteSize(self.min_free);
                tracing::error!(
                    queue = self.name,
                    "less than {least} free on the disk of data_dir: new messages are refused and dead letters wait"
                );
            }
            *disk = Disk { looked: Some(Instant::now()), short };
        }
        disk.short
    }

    /// Gives room back.
    pub(super) fn release(&self, bytes: u64) {
        let _ =
            self.unhandled.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| Some(used.saturating_sub(bytes)));
    }

    pub(super) fn progress(&self) -> Progress {
        *self.locked()
    }

    fn locked(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything below `position` is done; `bytes` is the size of what became done.
    pub(super) fn advance(&self, position: u64, bytes: u64) {
        let mut progress = self.locked();
        if position > progress.position {
            *progress = Progress { position, handled: progress.handled.saturating_add(bytes) };
            drop(progress);
            self.release(bytes);
        }
    }

    /// Makes the count of bytes exact again where all is done: records that could not be found were never counted as handled.
    pub(super) fn correct(&self, tail: Tail) {
        let mut progress = self.locked();
        if progress.position == tail.next && progress.handled < tail.appended {
            let missed = tail.appended - progress.handled;
            progress.handled = tail.appended;
            drop(progress);
            self.release(missed);
        }
    }

    /// Bytes that are not handled.
    pub(super) fn unhandled(&self) -> u64 {
        self.unhandled.load(Ordering::Acquire)
    }
}
