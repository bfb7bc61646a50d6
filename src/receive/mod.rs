//! placeholder
// placeholder
use serde::{Deserialize, Serialize};
/// placeholder
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Settings {
    pub webhook_secrets: Vec<crate::settings::Secret>,
    pub webhook_secrets_file: std::path::PathBuf,
    pub max_report: bytesize::ByteSize,
    pub max_field: bytesize::ByteSize,
    pub max_attrs: usize,
    #[serde(with = "humantime_serde")]
    pub max_skew: std::time::Duration,
    #[serde(with = "humantime_serde")]
    pub publish_timeout: std::time::Duration,
}
