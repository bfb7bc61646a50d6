//! placeholder
// placeholder
use serde::{Deserialize, Serialize};
/// placeholder
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Settings {
    pub listen: Vec<String>,
    pub password: crate::settings::Secret,
    pub password_file: std::path::PathBuf,
    pub admin_password: crate::settings::Secret,
    pub admin_password_file: std::path::PathBuf,
    pub metrics_password: bool,
    pub acl: Vec<String>,
    pub tls_cert: std::path::PathBuf,
    pub tls_key: std::path::PathBuf,
    pub max_connections: usize,
    pub max_body: bytesize::ByteSize,
    pub max_head: bytesize::ByteSize,
    pub max_headers: usize,
    #[serde(with = "humantime_serde")]
    pub head_timeout: std::time::Duration,
    #[serde(with = "humantime_serde")]
    pub body_timeout: std::time::Duration,
    #[serde(with = "humantime_serde")]
    pub idle_timeout: std::time::Duration,
}
