//! placeholder
use super::HistoryError;
use crate::report::Time;
use serde_json::Value;
/// A parsed search body.
#[derive(Debug)]
pub struct Query {}
/// Parses.
pub fn parse(_body: &Value, _now: Time) -> Result<Query, HistoryError> {
    Ok(Query {})
}
