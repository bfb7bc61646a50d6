//! demo
mod accounts;
mod dice;
pub mod stories;
pub mod traffic;
mod world;
use std::path::PathBuf;
/// Why the demo did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A file could not be written.
    #[error("{path}: {1}; name another folder with --keep", path = .0.display())]
    Folder(PathBuf, #[source] std::io::Error),
    /// The GeoIP files could not be made.
    #[error("the GeoIP files could not be made: {0}")]
    GeoIp(String),
}
#[cfg(test)]
mod tests;
