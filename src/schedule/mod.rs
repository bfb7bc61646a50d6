//! placeholder
mod settings;
pub use settings::{Election, ElectionKind, Settings};
