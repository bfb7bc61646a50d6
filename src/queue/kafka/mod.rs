//! The queue on Kafka: a topic, a consumer group, and a compacted topic of dead letters beside it.
//!
//! ```text
//! publish ──▶ producer ──▶ topic ──▶ source (one thread a subscription, the only one that polls) ──▶ deliveries
//!                │                      │        one window a partition; the commit never passes an unfinished offset
//!                └──▶ topic.dead ◀──────┘
//! ```
//!
//! `client` makes the clients, `topic` looks for the topics, `refused` says why no broker can be reached, `record` says how a message
//! stands in one. `publisher` writes, `source` hands out, `settling` takes back, `rebalance` gives partitions up and takes them, `lanes`
//! knows what is in flight, `dead` reads the dead letters, `depth` asks what is left. After a crash, messages from the committed offsets
//! on are handed out again: none is lost, some come twice.

mod settings;

#[cfg(feature = "kafka")]
mod client;
#[cfg(feature = "kafka")]
mod dead;
#[cfg(feature = "kafka")]
mod depth;
#[cfg(feature = "kafka")]
mod lanes;
#[cfg(feature = "kafka")]
mod publisher;
#[cfg(feature = "kafka")]
mod queue;
#[cfg(feature = "kafka")]
mod rebalance;
#[cfg(feature = "kafka")]
mod record;
#[cfg(feature = "kafka")]
mod refused;
#[cfg(feature = "kafka")]
mod settling;
#[cfg(feature = "kafka")]
mod source;
#[cfg(feature = "kafka")]
mod topic;

#[cfg(feature = "kafka")]
pub use queue::KafkaQueue;
pub use settings::{OURS, Properties, Settings, is_secret, masked};
#[cfg(feature = "kafka")]
pub use topic::OpenError;
