//! placeholder
use crate::report::Geo;
use std::net::IpAddr;
/// The GeoIP files.
#[derive(Debug, Default)]
pub struct GeoIp {}
impl GeoIp {
    /// What the files say.
    pub fn lookup(&self, _remote: IpAddr) -> Geo {
        Geo::default()
    }
}
// placeholder
use serde::{Deserialize, Serialize};
/// placeholder
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Settings {
    pub files: Vec<String>,
    #[serde(with = "humantime_serde")]
    pub check_every: std::time::Duration,
}
