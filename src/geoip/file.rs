//! One GeoIP file: read whole into memory and checked before anybody asks it anything.
//!
//! Owns what is wrong with a file, in words. Never maps a file: one that is cut short in place would end the process at the next
//! look-up.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use maxminddb::{Reader, WithinOptions};
use serde::de::IgnoredAny;

use super::record::Record;
use crate::report::Geo;

/// Why a file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum GeoIpError {
    /// There is no such file, or it may not be read.
    #[error("geoip.files: {}: {source}; give the path of a MaxMind file (.mmdb) that this user may read", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file has no bytes.
    #[error("geoip.files: {}: the file is empty; download it again", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file has no metadata at its end, or contradicts itself.
    #[error("geoip.files: {}: not a MaxMind file (.mmdb), or cut off: {reason}; download it again", .path.display())]
    NotMaxMind {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// It is a MaxMind file of a kind that says nothing we use.
    #[error(
        "geoip.files: {}: a database of the type \"{found}\", and none of its records has a country, a place or a network that we \
         know to read; a Country, City, ASN, ISP or Enterprise database is needed, in MaxMind's form or a flat one (country_code, asn, …)",
        .path.display()
    )]
    Kind {
        /// The file.
        path: PathBuf,
        /// The type that the file's metadata names.
        found: String,
    },
}

/// One file in memory.
pub(super) type Database = Reader<Vec<u8>>;

/// Reads a file and checks all of it. Blocks, a second or more for a large one.
pub(super) fn read(path: &Path) -> Result<Database, GeoIpError> {
    let bytes = std::fs::read(path).map_err(|source| GeoIpError::Unreadable { path: path.to_owned(), source })?;
    if bytes.is_empty() {
        return Err(GeoIpError::Empty { path: path.to_owned() });
    }
    let broken = |reason: String| GeoIpError::NotMaxMind { path: path.to_owned(), reason };
    let reader = Reader::from_source(bytes).map_err(|error| broken(error.to_string()))?;
    let useful = check(&reader).map_err(broken)?;
    let found = &reader.metadata().database_type;
    // An empty database of a known kind is no mistake.
    let known = ["country", "city", "asn", "isp", "enterprise"].iter().any(|kind| found.to_lowercase().contains(kind));
    if !useful && !known {
        return Err(GeoIpError::Kind { path: path.to_owned(), found: found.clone() });
    }
    Ok(reader)
}

/// What a file is, for people: `GeoLite2-City of 2026-03-01`.
pub(super) fn describe(reader: &Database) -> String {
    let about = reader.metadata();
    let built = i64::try_from(about.build_epoch).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
    match built {
        Some(built) => format!("{} of {}", about.database_type, built.strftime("%Y-%m-%d")),
        None => about.database_type.clone(),
    }
}

/// Walks the whole tree and reads every record once: a file that is damaged in its middle shows here, instead of as a country that
/// nobody ever logs in from. Gives whether any record says something that we use.
///
/// The reader's own `verify` is not used: it refuses files without a description, and some free ones have none.
fn check(reader: &Database) -> Result<bool, String> {
    // A tree whose nodes point back has no end. A whole one has a leaf more than nodes; writers that share nodes have some more.
    let mut left = u64::from(reader.metadata().node_count) * 3 + 2;
    let (mut seen, mut useful) = (HashSet::new(), false);
    let all = WithinOptions::default().include_networks_without_data();
    for network in reader.networks(all).map_err(|error| error.to_string())? {
        left = left.checked_sub(1).ok_or("its search tree has no end")?;
        let network = network.map_err(|error| error.to_string())?;
        let Some(offset) = network.offset() else { continue };
        if !seen.insert(offset) {
            continue;
        }
        network.decode::<IgnoredAny>().map_err(|error| error.to_string())?;
        if !useful && let Ok(Some(record)) = network.decode::<Record<'_>>() {
            let mut geo = Geo::default();
            record.fill(&mut geo);
            useful = geo != Geo::default();
        }
    }
    Ok(useful)
}
