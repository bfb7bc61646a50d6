//! What the trials share: the real binary on a folder of its own, senders, a receiver of alerts.

#![allow(dead_code, unused_macros, unused_imports, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

pub(crate) mod driver;
pub(crate) mod inbox;
pub(crate) mod kafka;
pub(crate) mod layers;
pub(crate) mod load;
pub(crate) mod program;
pub(crate) mod proxy;
pub(crate) mod rabbitmq;
pub(crate) mod sender;
pub(crate) mod server;
pub(crate) mod stall;
pub(crate) mod trial;
pub(crate) mod wire;
