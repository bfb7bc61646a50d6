//! What the trials share: the real binary on a folder of its own, senders, a receiver of alerts.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

pub(crate) mod inbox;
pub(crate) mod kafka;
pub(crate) mod program;
pub(crate) mod sender;
pub(crate) mod trial;
pub(crate) mod wire;
