//! One connection, made again where it was lost, and channels on it.
//!
//! Owns the connection. Never more than one at a time; whoever has a channel on one that is gone asks for another.

use std::sync::Arc;

use lapin::{Channel, Connection};
use tokio::sync::Mutex;

use super::broker::{Broker, Failure};

/// See the module.
pub(super) struct Wire {
    /// What the connection is for; it shows in the broker's tools.
    role: &'static str,
    connection: Mutex<Option<Arc<Connection>>>,
}

impl Wire {
    pub(super) fn new(role: &'static str) -> Self {
        Self { role, connection: Mutex::default() }
    }

    /// A channel on the connection that is there, or on a new one. `declare`: after the queues were declared on a new one. One that the
    /// broker does not read from stays: a new one would go the same way with the first message, and as nothing can be written to the old
    /// one, not even that it is closed, its thread and buffers would stay, too.
    pub(super) async fn channel(&self, broker: &Broker, declare: bool) -> Result<(Arc<Connection>, Channel), Failure> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = held.as_ref().filter(|connection| connection.status().connected()) {
            if !connection.status().blocked()
                && let Ok(channel) = broker.within("channel", connection.create_channel()).await
            {
                return Ok((Arc::clone(connection), channel));
            }
            if connection.status().blocked() {
                return Err(broker.alarm());
            }
        }
        *held = None;
        let connection = Arc::new(broker.connect(self.role).await?);
        if declare {
            broker.declare(&connection).await?;
        }
        let channel = broker.within("channel", connection.create_channel()).await?;
        *held = Some(Arc::clone(&connection));
        Ok((connection, channel))
    }

    /// Whether the broker reads nothing from the connection, because of an alarm.
    pub(super) async fn blocked(&self) -> bool {
        let held = self.connection.lock().await;
        held.as_ref().is_some_and(|connection| connection.status().connected() && connection.status().blocked())
    }

    /// The next channel comes with a new connection.
    pub(super) fn forget(&self) {
        if let Ok(mut held) = self.connection.try_lock() {
            *held = None;
        }
    }

    /// Closes the connection in an orderly way, where the broker reads that.
    pub(super) async fn close(&self, broker: &Broker) {
        if let Some(connection) = self.connection.lock().await.take().filter(|one| !one.status().blocked()) {
            let _ = broker.within("close", connection.close(200, "done".into())).await;
        }
    }
}
