//! placeholder
// placeholder
use serde::{Deserialize, Serialize};
/// placeholder
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Settings {
    pub max_bytes: bytesize::ByteSize,
    #[serde(with = "humantime_serde")]
    pub retry_after: std::time::Duration,
    #[serde(with = "humantime_serde")]
    pub linger: std::time::Duration,
    pub max_batch: usize,
    pub segment_messages: usize,
    pub cache: bytesize::ByteSize,
}
