//! Settings of the role `detect`; the meaning of each stands in `config/default.toml`.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::device;

/// Section `[detect]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    pub workers: usize,
    pub in_flight: usize,
    pub unsettled: usize,
    pub unsettled_bytes: ByteSize,
    pub login_backlog: usize,
    pub device_regexes: PathBuf,
    #[serde(with = "humantime_serde")]
    pub device_check_every: Duration,
    pub device_max: ByteSize,
    pub device_cache: usize,
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    pub errands: usize,
    #[serde(with = "humantime_serde")]
    pub errand_effects: Duration,
}

impl Settings {
    /// The settings of the reading of devices.
    pub fn devices(&self) -> device::Settings {
        device::Settings {
            regexes: self.device_regexes.clone(),
            max: usize::try_from(self.device_max.as_u64()).unwrap_or(usize::MAX),
            cache: self.device_cache,
        }
    }

    /// The number of policy workers: what is set, or one for each core.
    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            set => set,
        }
    }
}
