//! Closes days behind the writer's back: merges a day's segments into one, which searches of old days are quick by, and lets go of it.
//!
//! Owns the second thread. A day that is being closed is not opened for writing until it is done.

use std::collections::HashSet;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use tracing::warn;

use super::day::name_of;
use super::writer::OpenDay;

/// Days that wait to be closed; more make the writer wait, since each holds its writer's memory.
const WAITING: usize = 2;

#[derive(Default)]
struct Closing {
    days: Mutex<HashSet<i64>>,
    done: Condvar,
}

pub(super) struct Closer {
    closing: Arc<Closing>,
    queue: Option<SyncSender<(OpenDay, bool)>>,
    thread: Option<JoinHandle<()>>,
}

impl Closer {
    pub(super) fn start() -> std::io::Result<Self> {
        let closing = Arc::new(Closing::default());
        let (queue, days) = sync_channel::<(OpenDay, bool)>(WAITING);
        let shared = closing.clone();
        let thread = std::thread::Builder::new().name("history-close".to_owned()).spawn(move || {
            for (open, merge) in days {
                let number = open.day.number;
                let closed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| close(open, merge)));
                if !matches!(closed, Ok(Ok(()))) {
                    warn!(day = name_of(number), "the segments of a day could not be merged; its searches stay slower");
                }
                shared.days.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
                shared.done.notify_all();
            }
        })?;
        Ok(Self { closing, queue: Some(queue), thread: Some(thread) })
    }

    /// Closes a day that has nothing uncommitted.
    pub(super) fn close(&self, open: OpenDay, merge: bool) {
        self.closing.days.lock().unwrap_or_else(PoisonError::into_inner).insert(open.day.number);
        if let Some(queue) = &self.queue {
            let _ = queue.send((open, merge));
        }
    }

    /// Waits until this day is closed, if it is being closed.
    pub(super) fn wait_for(&self, day: i64) {
        self.wait_while(|days| days.contains(&day));
    }

    /// Waits until no day before this one is being closed.
    pub(super) fn wait_before(&self, day: i64) {
        self.wait_while(|days| days.iter().any(|closing| *closing < day));
    }

    fn wait_while(&self, busy: impl Fn(&HashSet<i64>) -> bool) {
        let days = self.closing.days.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.closing.done.wait_while(days, |days| busy(days)).unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until all is closed.
    pub(super) fn finish(mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn close(mut open: OpenDay, merge: bool) -> tantivy::Result<()> {
    if merge {
        let segments = open.day.index.searchable_segment_ids()?;
        if segments.len() > 1 {
            open.writer.merge(&segments).wait()?;
        }
    }
    open.writer.wait_merging_threads()?;
    open.day.reload()
}
