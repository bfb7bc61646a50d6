//! placeholder
mod settings;
pub use settings::Settings;
