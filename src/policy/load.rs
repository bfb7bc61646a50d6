//! placeholder
/// Checked policies.
#[derive(Debug, Default)]
pub struct PolicySet {}
/// Why not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);
