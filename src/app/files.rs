//! The files that `detect` looks things up in, and that are taken again while it runs.
//!
//! Owns who is asked to read again, when a signal or an operator says so. What is in the files is their own parts' business.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::StartError;
use crate::config::Config;
use crate::device::Devices;
use crate::geoip::GeoIp;
use crate::stamp::{self, Reread};
use crate::telemetry::Metrics;

/// See the module.
#[derive(Clone)]
pub(super) struct Files {
    pub(super) geoip: Arc<GeoIp>,
    pub(super) devices: Arc<Devices>,
    metrics: Arc<Metrics>,
}

impl Files {
    /// Reads them, off the async threads: a City file has a hundred megabytes, and all of it is checked.
    pub(super) async fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, StartError> {
        let (geoip, devices, metrics) = (config.geoip.clone(), config.detect.devices(), Arc::clone(metrics));
        let reading = tokio::task::spawn_blocking(move || {
            let geoip = Arc::new(GeoIp::open(&geoip)?);
            let devices = Arc::new(Devices::open(devices, Arc::clone(&metrics))?);
            Ok(Self { geoip, devices, metrics })
        });
        reading.await.map_err(|error| StartError::Settings(error.to_string()))?
    }

    /// Takes changed ones by itself, until stopped.
    pub(super) fn watch(&self, config: &Config, stop: &CancellationToken) -> Vec<JoinHandle<()>> {
        let (geoip, devices) = (Arc::clone(&self.geoip), Arc::clone(&self.devices));
        vec![
            tokio::spawn(geoip.watch(config.geoip.check_every, Arc::clone(&self.metrics), stop.clone())),
            tokio::spawn(devices.watch(config.detect.device_check_every, stop.clone())),
        ]
    }

    /// Reads all of them again, now.
    pub(super) async fn reload(&self) -> Vec<Reread> {
        let this = self.clone();
        let reading = tokio::task::spawn_blocking(move || [this.geoip.reload(), this.devices.reload()].concat());
        let all = reading.await.unwrap_or_default();
        stamp::tell(&all, &self.metrics);
        all
    }
}
