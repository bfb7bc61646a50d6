//! placeholder
use crate::report::LoginReport;
use std::sync::Arc;
/// The state as one handler sees it.
pub struct Session {
    _p: Arc<LoginReport>,
}
