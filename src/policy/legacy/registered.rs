//! The functions that a file registers: for reports, for times, for requests.
//!
//! Owns which there are, by name. Never calls one.

use std::collections::BTreeMap;

use mlua::Function;

/// See the module.
#[derive(Default)]
pub(in crate::policy) struct Registered {
    /// `setReport`.
    pub(in crate::policy) report: Option<Function>,
    /// `setBackground`, by name.
    pub(in crate::policy) background: BTreeMap<String, Function>,
    /// `setCustomEndpoint`, by name.
    pub(in crate::policy) endpoints: BTreeMap<String, Function>,
    /// `newGeoIP2DB`: the files by name.
    pub(super) geoip: BTreeMap<String, String>,
}
