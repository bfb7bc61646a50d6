//! One message taken from a queue, and the token by which its taker says what became of it.
//!
//! Owns the promise that no way out of a scope loses a delivery: the token can be used once, and dropping it hands the message out
//! again. Never talks to a broker: a settlement is data on a channel to the source that made the token.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::Message;

/// Where a delivery stands in its source. The same plain type for every broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag {
    /// The partition, the shard, or 0.
    pub lane: u32,
    /// Raised when the lane was lost and taken again: a settlement of an older generation is ignored and counted.
    pub generation: u32,
    /// The offset or delivery tag in the lane.
    pub sequence: u64,
}

/// Why a message became a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// One word to filter by.
    pub kind: ReasonKind,
    /// For people: what failed and what to do.
    pub text: String,
    /// The policies or channels that failed; sending the letter again runs only these. Empty: all.
    pub only: Vec<String>,
    /// How often it was tried; in a dead letter with the attempts from before it was sent again.
    pub attempts: u32,
}

/// The kinds of dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasonKind {
    /// The message is not what the queue carries.
    Malformed,
    /// A policy failed on it each time.
    Policy,
    /// It was being handled when a worker hung and the process had to end.
    Hung,
    /// A channel refused the alert each time.
    Channel,
    /// A fault of this program.
    Internal,
}

impl fmt::Display for ReasonKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "malformed",
            Self::Policy => "policy",
            Self::Hung => "hung",
            Self::Channel => "channel",
            Self::Internal => "internal",
        })
    }
}

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// Done.
    Ack,
    /// Hand it out again after a backoff.
    Nack,
    /// A dead letter; done when that is confirmed.
    Reject(Reason),
}

/// The way back to a source. Bounded by the source's own limit of unsettled deliveries: each sends exactly one settlement.
pub type Settlements = mpsc::UnboundedSender<(Tag, Settlement)>;

/// The right and the duty to settle one delivery, once. Dropped, it nacks: a panic or a cancelled task hands the message out again.
#[must_use = "a dropped token hands the message out again"]
pub struct AckToken {
    tag: Tag,
    settlements: Option<Settlements>,
}

impl AckToken {
    /// For a source: a token whose settlement arrives on `settlements`.
    pub fn new(tag: Tag, settlements: Settlements) -> Self {
        Self { tag, settlements: Some(settlements) }
    }

    /// The message is handled, all its effects are durable.
    pub fn ack(self) {
        self.settle(Settlement::Ack);
    }

    /// The message could not be handled now.
    pub fn nack(self) {
        self.settle(Settlement::Nack);
    }

    /// The message will never be handled as it is.
    pub fn reject(self, reason: Reason) {
        self.settle(Settlement::Reject(reason));
    }

    /// Where the delivery stands in its source.
    pub const fn tag(&self) -> Tag {
        self.tag
    }

    fn settle(mut self, settlement: Settlement) {
        if let Some(settlements) = self.settlements.take() {
            // A source that is gone has nothing to settle: the broker hands the message out again.
            let _ = settlements.send((self.tag, settlement));
        }
    }
}

impl Drop for AckToken {
    fn drop(&mut self) {
        if let Some(settlements) = self.settlements.take() {
            let _ = settlements.send((self.tag, Settlement::Nack));
        }
    }
}

impl fmt::Debug for AckToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AckToken({:?})", self.tag)
    }
}

/// One message taken from a queue.
#[derive(Debug)]
pub struct Delivery {
    /// The message. Shared, because the source keeps it until it is settled.
    pub message: Arc<Message>,
    /// How often it was handed out before, by this process.
    pub redelivered: u32,
    /// Queue, lane and sequence for people, for dead letters and, where nothing better exists, for the report's id:
    /// `reports/0/4711`.
    pub coordinates: String,
    /// The token.
    pub token: AckToken,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use proptest::prelude::*;

    use super::*;

    /// The ways in which a token can leave a scope.
    #[derive(Debug, Clone, Copy)]
    enum Way {
        Ack,
        Nack,
        Reject,
        Dropped,
        /// A handler panics while it holds the token.
        Panic,
        /// A panic behind the ack must not settle again.
        PanicAfterAck,
        /// A future that holds the token is dropped at an await.
        Cancelled,
        /// It lies in a channel whose receiver goes.
        InChannel,
        /// A task that holds it is aborted.
        Aborted,
    }

    fn way() -> impl Strategy<Value = Way> {
        prop_oneof![
            Just(Way::Ack),
            Just(Way::Nack),
            Just(Way::Reject),
            Just(Way::Dropped),
            Just(Way::Panic),
            Just(Way::PanicAfterAck),
            Just(Way::Cancelled),
            Just(Way::InChannel),
            Just(Way::Aborted),
        ]
    }

    fn reason() -> Reason {
        Reason { kind: ReasonKind::Internal, text: String::new(), only: Vec::new(), attempts: 1 }
    }

    async fn leave(token: AckToken, way: Way) -> Settlement {
        match way {
            Way::Ack => token.ack(),
            Way::Nack => token.nack(),
            Way::Reject => token.reject(reason()),
            Way::Dropped => drop(token),
            Way::Panic | Way::PanicAfterAck => {
                let handler = AssertUnwindSafe(move || {
                    if matches!(way, Way::PanicAfterAck) {
                        token.ack();
                    } else {
                        let _held = token;
                    }
                    // Unwinds as a panic does, without a line in the test's output.
                    std::panic::resume_unwind(Box::new("the handler failed"));
                });
                assert!(catch_unwind(handler).is_err());
            }
            Way::Cancelled => {
                let holds = async move {
                    std::future::pending::<()>().await;
                    token.ack();
                };
                assert!(futures_util::future::FutureExt::now_or_never(holds).is_none());
            }
            Way::InChannel => {
                let (sender, receiver) = mpsc::channel(1);
                assert!(sender.send(token).await.is_ok());
                drop(receiver);
            }
            Way::Aborted => {
                let task = tokio::spawn(async move {
                    std::future::pending::<()>().await;
                    token.ack();
                });
                tokio::task::yield_now().await;
                task.abort();
                assert!(task.await.is_err());
            }
        }
        match way {
            Way::Ack | Way::PanicAfterAck => Settlement::Ack,
            Way::Reject => Settlement::Reject(reason()),
            _ => Settlement::Nack,
        }
    }

    proptest! {
        /// Whatever happens to a token, its source hears of it exactly once.
        #[test]
        fn every_way_out_of_a_scope_settles_exactly_once(ways in proptest::collection::vec(way(), 1..40)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (settlements, mut settled) = mpsc::unbounded_channel();
            let mut expected = BTreeMap::new();
            for (sequence, way) in (0..).zip(ways) {
                let tag = Tag { lane: 1, generation: 2, sequence };
                let token = AckToken::new(tag, settlements.clone());
                prop_assert_eq!(token.tag(), tag);
                expected.insert(tag, runtime.block_on(leave(token, way)));
            }
            drop(settlements);
            while let Some((tag, settlement)) = settled.blocking_recv() {
                prop_assert_eq!(expected.remove(&tag), Some(settlement), "settled twice, or otherwise than it was said");
            }
            prop_assert!(expected.is_empty(), "never settled: {:?}", expected);
        }
    }

    #[test]
    fn token_outlives_its_source() {
        let (settlements, settled) = mpsc::unbounded_channel();
        let token = AckToken::new(Tag { lane: 0, generation: 0, sequence: 0 }, settlements);
        drop(settled);
        token.ack();
    }
}
