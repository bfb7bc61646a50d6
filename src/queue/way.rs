//! The way of settlements from the tokens to the source that runs now, for every driver.
//!
//! Owns the channel. It outlives the sources, and lies in one hand at a time: so there is one source at a time, too.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, mpsc};

use super::delivery::Settlements;
use super::{Settlement, Tag};

/// What a token sends.
pub(super) type Settled = (Tag, Settlement);

/// The way of settlements to the queue. It outlives the sources, so that what is settled with an old token is seen and counted.
pub(super) struct Way {
    pub(super) sender: Settlements,
    receiver: Mutex<Option<mpsc::UnboundedReceiver<Settled>>>,
    returned: Notify,
}

impl Way {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender, receiver: Mutex::new(Some(receiver)), returned: Notify::new() }
    }

    /// Waits until the source before has ended.
    pub(super) async fn take(self: Arc<Self>) -> Taken {
        loop {
            let returned = self.returned.notified();
            let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
            if receiver.is_some() {
                return Taken { way: Arc::clone(&self), receiver };
            }
            returned.await;
        }
    }
}

/// The receiving end, given back however the source ends.
pub(super) struct Taken {
    way: Arc<Way>,
    pub(super) receiver: Option<mpsc::UnboundedReceiver<Settled>>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        *self.way.receiver.lock().unwrap_or_else(PoisonError::into_inner) = self.receiver.take();
        self.way.returned.notify_one();
    }
}
