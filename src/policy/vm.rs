//! placeholder
/// A VM.
pub struct Vm {}
