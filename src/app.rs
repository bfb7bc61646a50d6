//! placeholder
use std::net::SocketAddr;

use crate::config::{Config, Roles};

/// placeholder
#[derive(Debug, thiserror::Error)]
#[error("placeholder")]
pub struct StartError;

/// placeholder
#[derive(Debug)]
pub struct App;

impl App {
    /// placeholder
    pub async fn start(_config: Config, _roles: Roles) -> Result<Self, StartError> {
        Err(StartError)
    }
    /// placeholder
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }
    /// placeholder
    pub async fn drain(self) {}
    /// placeholder
    pub async fn run_until_signal(self) -> Result<(), StartError> {
        Ok(())
    }
}
