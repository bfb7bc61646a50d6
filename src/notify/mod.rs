//! placeholder
// placeholder
use serde::{Deserialize, Serialize};
/// placeholder
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Settings {
    #[serde(with = "humantime_serde")]
    pub suppress: std::time::Duration,
    pub in_flight: usize,
    pub max_attempts: usize,
    #[serde(with = "humantime_serde")]
    pub retry_first: std::time::Duration,
    #[serde(with = "humantime_serde")]
    pub retry_most: std::time::Duration,
    #[serde(with = "humantime_serde")]
    pub timeout: std::time::Duration,
    pub channels: Vec<serde_json::Value>,
}
