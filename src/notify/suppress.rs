//! The same kind and key is sent once in a window of report time.
//!
//! Owns the windows: they lie in the state store and are on disk before the alert that opened one is sent, so that a restart neither
//! repeats nor forgets. A window belongs to the id of the alert that opened it: that alert, delivered again, passes. Never sends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::alert::Alert;
use crate::report::Time;
use crate::state::{Batch, State, StateError, Write, full_key};

/// Windows remembered for one kind and key. A replay of last month beside today's reports has several open at once, and must not
/// close today's.
const WINDOWS: usize = 8;
/// Turns kept before those that have passed are cleared away.
const TURNS: usize = 1024;

/// What suppression says of an alert.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It opened a window, or has opened one before.
    Send,
    /// It lies in a window that this alert has opened.
    Suppressed(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Window {
    id: String,
    /// Microseconds since the epoch, report time.
    opened: i64,
}

/// The windows.
pub(super) struct Suppression {
    state: Arc<dyn State>,
    length: Duration,
}

impl Suppression {
    pub(super) fn new(state: Arc<dyn State>, length: Duration) -> Self {
        Self { state, length }
    }

    /// Whether the alert is to be sent; where it is, its window is on disk. Two calls for one kind and key must not overlap: that is
    /// what a [`Turn`] is for.
    pub(super) async fn check(&self, alert: &Alert, at: Time) -> Result<Verdict, StateError> {
        if self.length.is_zero() {
            return Ok(Verdict::Send);
        }
        let key = key(alert);
        let mut windows = self.read(&key, at).await?;
        if windows.iter().any(|window| window.id == alert.id) {
            return Ok(Verdict::Send);
        }
        if let Some(window) = windows.iter().find(|window| self.covers(window, at)) {
            return Ok(Verdict::Suppressed(window.id.clone()));
        }
        windows.push(Window { id: alert.id.clone(), opened: at.micros() });
        windows.sort_by_key(|window| window.opened.abs_diff(at.micros()));
        windows.truncate(WINDOWS);
        self.write(key, &windows).await?;
        Ok(Verdict::Send)
    }

    /// Closes the window that this alert opened, because nobody was told: the next alert of its kind and key opens a new one.
    pub(super) async fn close(&self, alert: &Alert, at: Time) -> Result<(), StateError> {
        if self.length.is_zero() {
            return Ok(());
        }
        let key = key(alert);
        let mut windows = self.read(&key, at).await?;
        let before = windows.len();
        windows.retain(|window| window.id != alert.id);
        if windows.len() == before { Ok(()) } else { self.write(key, &windows).await }
    }

    fn covers(&self, window: &Window, at: Time) -> bool {
        Duration::from_micros(window.opened.abs_diff(at.micros())) < self.length
    }

    async fn read(&self, key: &str, at: Time) -> Result<Vec<Window>, StateError> {
        let value = self.state.get(key, at).await?;
        // What cannot be read (another version's form) is no reason to keep silent: the alert is sent and the entry written anew.
        Ok(value.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
    }

    async fn write(&self, key: String, windows: &[Window]) -> Result<(), StateError> {
        let last = windows.iter().map(|window| window.opened).max();
        let write = match last {
            Some(last) => Write::Set {
                key,
                value: Bytes::from(serde_json::to_vec(windows).map_err(|error| StateError(error.to_string()))?),
                expires: Some(Time::from_micros(last).plus(self.length)),
            },
            None => Write::Remove { key },
        };
        self.state.apply(Batch { writes: vec![write], ..Batch::default() }).await?;
        self.state.sync().await
    }
}

/// Kinds and keys are texts of a policy's: the NUL keeps `a` + `bc` from meeting `ab` + `c`.
fn key(alert: &Alert) -> String {
    full_key("@notify", &group(alert))
}

/// What suppression goes by.
fn group(alert: &Alert) -> String {
    format!("{}\0{}", alert.kind, alert.key)
}

/// Who may look at the windows of one kind and key: one after another, in the order in which they came.
#[derive(Default)]
pub(super) struct Turns {
    /// The end of each line.
    last: Mutex<HashMap<String, oneshot::Receiver<()>>>,
}

/// A place in a line; dropped when one is done, or fails.
pub(super) struct Turn {
    before: Option<oneshot::Receiver<()>>,
    /// Never sent on: the next one waits until it is gone.
    _done: oneshot::Sender<()>,
}

impl Turns {
    /// Takes the place behind all who came before with this alert's kind and key.
    pub(super) fn take(&self, alert: &Alert) -> Turn {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() >= TURNS {
            last.retain(|_, end| matches!(end.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        }
        let (done, end) = oneshot::channel();
        Turn { before: last.insert(group(alert), end), _done: done }
    }
}

impl Turn {
    /// Resolves when it is one's turn.
    pub(super) async fn come(&mut self) {
        if let Some(before) = self.before.take() {
            // An error is the usual way: the one before is done and has dropped its end.
            let _ = before.await;
        }
    }
}
