//! The signals that end the program or have it read its files again.
//!
//! Owns their handlers. They are set before anything else: without one, a SIGTERM during the start would end the process in the midst of
//! what it does and with a code that tells of a failure; and the first process of a container would not hear it at all.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::StartError;

/// What an operator asks for by a signal.
pub(super) enum Wish {
    End,
    Reload,
}

/// The handlers. A signal that comes while nobody asks is not lost.
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    /// Sets them, within a runtime. Fails where the system refuses a handler.
    pub fn set() -> Result<Self, StartError> {
        let listen = |kind| signal(kind).map_err(StartError::Signals);
        Ok(Self {
            term: listen(SignalKind::terminate())?,
            int: listen(SignalKind::interrupt())?,
            hup: listen(SignalKind::hangup())?,
        })
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.term.recv() => Wish::End,
            _ = self.int.recv() => Wish::End,
            _ = self.hup.recv() => Wish::Reload,
        }
    }

    /// The next SIGTERM or SIGINT. A SIGHUP waits meanwhile.
    pub async fn end(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}
