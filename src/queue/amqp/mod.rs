//! The queue on an AMQP 0.9.1 broker, RabbitMQ that is: quorum queues, confirmed publishes, acks in batches.
//!
//! ```text
//! publish ──▶ publisher (confirms, mandatory) ──▶ <name> ──▶ source (one channel, one generation) ──▶ deliveries
//!                  ▲                              <name>.dead                 │
//!                  └─────────────────── dead letters ─────────────────────────┘
//! ```
//!
//! With `queue.amqp.shards` the queue is several: `<name>-0`, `<name>-1`, …. A key has one of them, and each is taken from by one process
//! at a time.
//!
//! `address` knows where the broker is and what its refusals mean, `broker` and `wire` connect, `topology` declares, `policies` looks for
//! limits that the broker's policies set and for queues of another form, `link` is the thread that publishes and looks (`publisher`, `dead`),
//! `form` is how a message looks on the wire. `source` owns one subscription and its thread, `session` one channel of it, `turn` lets it
//! begin after the one before, `handing_out` what leaves it, `settling` what becomes of that. `shards` runs one channel for each shard of
//! ours, `members` says which those are. What the broker hands out on a channel that is gone it hands out again: none is lost, some come
//! twice.

#[cfg(feature = "amqp")]
mod address;
#[cfg(feature = "amqp")]
mod broker;
#[cfg(feature = "amqp")]
mod dead;
#[cfg(feature = "amqp")]
mod form;
#[cfg(feature = "amqp")]
mod handing_out;
#[cfg(feature = "amqp")]
mod link;
#[cfg(feature = "amqp")]
mod members;
#[cfg(feature = "amqp")]
mod policies;
#[cfg(feature = "amqp")]
mod publisher;
#[cfg(feature = "amqp")]
mod session;
#[cfg(feature = "amqp")]
mod settling;
#[cfg(feature = "amqp")]
mod shards;
#[cfg(feature = "amqp")]
mod source;
#[cfg(feature = "amqp")]
mod topology;
#[cfg(feature = "amqp")]
mod turn;
#[cfg(feature = "amqp")]
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

#[cfg(feature = "amqp")]
pub use link::{AmqpQueue, OpenError};

use crate::settings::Secret;

/// The `management_url` that goes by `url`.
pub(crate) const AUTO: &str = "auto";

/// Section `[queue.amqp]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    pub url: Secret,
    pub url_file: PathBuf,
    pub password: Secret,
    pub password_file: PathBuf,
    pub ca_file: PathBuf,
    pub client_cert: PathBuf,
    pub client_key: PathBuf,
    pub declare: bool,
    pub shards: u32,
    #[serde(with = "humantime_serde")]
    pub member_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub release_timeout: Duration,
    pub management_url: String,
    #[serde(with = "humantime_serde")]
    pub start_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub confirm_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub predecessor_timeout: Duration,
    pub ack_batch: usize,
    #[serde(with = "humantime_serde")]
    pub ack_every: Duration,
    #[serde(with = "humantime_serde")]
    pub hold: Duration,
    #[serde(with = "humantime_serde")]
    pub longest_hold: Duration,
}

#[cfg(all(test, feature = "amqp"))]
mod tests {
    use super::*;

    pub(super) fn settings(url: &str) -> Settings {
        Settings {
            url: url.to_owned().into(),
            url_file: PathBuf::new(),
            password: Secret::default(),
            password_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            client_cert: PathBuf::new(),
            client_key: PathBuf::new(),
            declare: true,
            shards: 0,
            member_timeout: Duration::from_secs(10),
            release_timeout: Duration::from_secs(5),
            management_url: String::new(),
            start_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(5),
            confirm_timeout: Duration::from_secs(5),
            predecessor_timeout: Duration::from_secs(30),
            ack_batch: 256,
            ack_every: Duration::from_millis(20),
            hold: Duration::from_secs(60),
            longest_hold: Duration::from_secs(60),
        }
    }
}
