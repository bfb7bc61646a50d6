//! A custom webhook: what a policy of the old program sends by the name of a hook (`runCustomWebHook`).
//!
//! Owns its id. Never knows where the hook leads.

use bytes::Bytes;

use super::hash;
use crate::report::{ReportId, Time};

/// One call of `runCustomWebHook`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// The same when the report that caused it is handled again.
    pub id: String,
    /// Which hook.
    pub name: String,
    /// The report's time.
    pub time: Time,
    /// Byte for byte.
    pub body: Bytes,
}

impl Hook {
    /// The call number `nth` of those that `cause` set off: a policy that sends the same twice means it.
    pub fn new(name: String, body: Bytes, cause: ReportId, time: Time, nth: usize) -> Self {
        let id = hash(&[name.as_bytes(), &body, cause.as_bytes(), &nth.to_be_bytes()]);
        Self { id, name, time, body }
    }
}
