//! What the GeoIP files say of an address: country, place, network.
//!
//! Owns the files: takes each whole and checked (`file`), reads both forms of records (`record`), and exchanges a file that has
//! changed while look-ups go on. An address that no file knows has an empty [`Geo`]. Never downloads a file, and never fails a
//! report: what cannot be looked up is unknown.

mod file;
mod record;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use file::GeoIpError;
use file::{Database, describe, read};
use record::Record;

use crate::report::Geo;
use crate::stamp::{self, Reread, Seen, Stamp};
use crate::telemetry::Metrics;

/// Settings of the GeoIP files.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    pub files: Vec<PathBuf>,
    #[serde(with = "humantime_serde")]
    pub check_every: Duration,
}

/// The GeoIP files of this process.
#[derive(Default)]
pub struct GeoIp {
    paths: Vec<PathBuf>,
    /// What [`GeoIp::record`] knows the files by.
    names: Vec<PathBuf>,
    /// In the order of `paths`. A look-up takes the list as it is and never waits: who exchanges a file makes a new list.
    databases: ArcSwap<Vec<Arc<Database>>>,
    /// What each file looked like when it was last read, well or not: a broken file is reported once, not at each check. Also what
    /// keeps two reloads apart.
    seen: Mutex<Vec<Seen>>,
}

impl fmt::Debug for GeoIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GeoIp").field("paths", &self.paths).finish_non_exhaustive()
    }
}

impl GeoIp {
    /// No files: nothing is known of any address.
    pub fn none() -> Self {
        Self::default()
    }

    /// Reads all files. The first that cannot be taken is the error: a program that starts without the file it was given would stay
    /// silent about every new country.
    pub fn open(settings: &Settings) -> Result<Self, GeoIpError> {
        let mut databases = Vec::with_capacity(settings.files.len());
        let mut seen = Vec::with_capacity(settings.files.len());
        for path in &settings.files {
            seen.push(Seen::read(Stamp::of(path)));
            databases.push(Arc::new(read(path)?));
        }
        let (paths, names) = (settings.files.clone(), settings.files.clone());
        Ok(Self { paths, names, databases: ArcSwap::from_pointee(databases), seen: Mutex::new(seen) })
    }

    /// With other names for [`GeoIp::record`], in the order of the files. For tests of policies: what stands for the operator's file
    /// lies elsewhere.
    pub fn known_as(self, names: Vec<PathBuf>) -> Self {
        Self { names, ..self }
    }

    /// What the files say of an address; a later file fills in what earlier ones do not know.
    pub fn lookup(&self, remote: IpAddr) -> Geo {
        let mut geo = Geo::default();
        for database in self.databases.load().iter() {
            // An IPv6 address in an IPv4 file, and a record of an unexpected form, are both: unknown.
            if let Ok(Some(record)) = database.lookup(remote).and_then(|found| found.decode::<Record<'_>>()) {
                record.fill(&mut geo);
            }
        }
        geo
    }

    /// All that one file says of an address, in the file's own form. `None`: nothing, or there is no such file.
    pub fn record(&self, path: &Path, remote: IpAddr) -> Option<serde_json::Value> {
        let at = self.names.iter().position(|known| known == path)?;
        let databases = self.databases.load();
        databases.get(at)?.lookup(remote).ok()?.decode::<serde_json::Value>().ok()?
    }

    /// Reads all files again, whether they have changed or not, and says what became of each. One that cannot be taken leaves its
    /// predecessor in place. Blocks while it reads; look-ups go on meanwhile, and a file is in memory twice.
    pub fn reload(&self) -> Vec<Reread> {
        self.read_again(true)
    }

    /// Reads those files again that have changed since they were last read. Blocks while it reads.
    pub fn reload_changed(&self) -> Vec<Reread> {
        self.read_again(false)
    }

    /// `asked`: all of them, and all is told.
    fn read_again(&self, asked: bool) -> Vec<Reread> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::new();
        for (at, (path, seen)) in self.paths.iter().zip(seen.iter_mut()).enumerate() {
            let now = Stamp::of(path);
            if !asked && !seen.is_due(now) {
                continue;
            }
            let fresh = read(path);
            let news = match &fresh {
                Err(error @ GeoIpError::Unreadable { .. }) => seen.note_unreadable(&error.to_string()),
                _ => {
                    *seen = Seen::read(now);
                    true
                }
            };
            if !asked && !news {
                continue;
            }
            let outcome = match fresh {
                Ok(fresh) => {
                    let what = describe(&fresh);
                    let mut databases = self.databases.load_full().as_ref().clone();
                    databases[at] = Arc::new(fresh);
                    self.databases.store(Arc::new(databases));
                    Ok(what)
                }
                Err(error) => Err(error.to_string()),
            };
            all.push(Reread { file: path.clone(), outcome });
        }
        all
    }

    /// Looks at the files every `check_every` and takes the changed ones, until stopped.
    pub async fn watch(self: Arc<Self>, check_every: Duration, metrics: Arc<Metrics>, stop: CancellationToken) {
        if !self.paths.is_empty() {
            stamp::watch(check_every, metrics, stop, move || self.reload_changed()).await;
        }
    }
}

#[cfg(test)]
mod tests;
