//! What the MaxMind files say of an address: country, place, network.
//!
//! Owns the files: reads each whole into memory, checks what it is, and takes a changed one while running. An address that no file
//! knows has an empty [`Geo`]. Never downloads a file, and never fails a report: what cannot be looked up is unknown.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use maxminddb::{MaxMindDbError, Reader};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};
use tokio_util::sync::CancellationToken;

use crate::report::Geo;

/// Settings of the GeoIP files.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    pub files: Vec<PathBuf>,
    #[serde(with = "humantime_serde")]
    pub check_every: Duration,
}

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
        "geoip.files: {}: a database of the type \"{found}\"; a Country, City, ASN, ISP or Enterprise database is needed",
        .path.display()
    )]
    Kind {
        /// The file.
        path: PathBuf,
        /// The type that the file's metadata names.
        found: String,
    },
}

/// What tells that a file was changed or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    size: u64,
    inode: u64,
}

impl Stamp {
    fn of(path: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let about = std::fs::metadata(path)?;
        Ok(Self { modified: about.modified().ok(), size: about.len(), inode: about.ino() })
    }
}

/// One file in memory. Never mapped: a file that is cut short in place would end the process at the next look-up.
type Database = Arc<Reader<Vec<u8>>>;

/// The GeoIP files of this process.
#[derive(Default)]
pub struct GeoIp {
    paths: Vec<PathBuf>,
    /// In the order of `paths`.
    databases: ArcSwap<Vec<Database>>,
    /// What each file looked like when it was last read, well or not: a broken file is reported once, not at each check.
    seen: Mutex<Vec<Option<Stamp>>>,
}

impl fmt::Debug for GeoIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GeoIp").field("paths", &self.paths).finish_non_exhaustive()
    }
}

/// The parts of a record that we use, of whatever kind of database. A key that is not there is unknown.
#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    country: Option<Country<'a>>,
    location: Option<Location>,
    autonomous_system_number: Option<Number>,
    autonomous_system_organization: Option<&'a str>,
}

#[derive(Deserialize)]
struct Country<'a> {
    iso_code: Option<&'a str>,
}

#[derive(Deserialize)]
struct Location {
    latitude: Option<Number>,
    longitude: Option<Number>,
}

/// A number in whatever type the writer of the file chose: the reader's own numbers take one type each, and a whole number where a
/// fraction was expected would cost the whole record.
struct Number(f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyNumber;
        impl Visitor<'_> for AnyNumber {
            type Value = Number;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }
            fn visit_f64<E>(self, number: f64) -> Result<Number, E> {
                Ok(Number(number))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Number, E> {
                Ok(Number(number as f64))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number as f64))
            }
        }
        deserializer.deserialize_any(AnyNumber)
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
            // Taken before the file is read: a change while it is read shows at the next check.
            seen.push(Stamp::of(path).ok());
            databases.push(Arc::new(read(path)?));
        }
        Ok(Self { paths: settings.files.clone(), databases: ArcSwap::from_pointee(databases), seen: Mutex::new(seen) })
    }

    /// What the files say of an address; a later file fills in what earlier ones do not know.
    pub fn lookup(&self, remote: IpAddr) -> Geo {
        let mut geo = Geo::default();
        for database in self.databases.load().iter() {
            // An IPv6 address in an IPv4 file, and a record of an unexpected form, are both: unknown.
            let Ok(Some(record)) = database.lookup(remote).and_then(|found| found.decode::<Record<'_>>()) else {
                continue;
            };
            let country = record.country.and_then(|country| country.iso_code).filter(|code| !code.is_empty());
            geo.country = geo.country.or_else(|| country.map(str::to_ascii_uppercase));
            let place = record.location.and_then(|at| Some((at.latitude?.0, at.longitude?.0)));
            geo.location = geo.location.or_else(|| place.filter(|(lat, lon)| lat.is_finite() && lon.is_finite()));
            let number = record.autonomous_system_number.map(|number| number.0);
            // A cast from a number outside of 32 bits saturates; such a number is no AS number.
            geo.asn = geo.asn.or_else(|| number.filter(|n| (1.0..=f64::from(u32::MAX)).contains(n)).map(|n| n as u32));
            geo.as_org = geo.as_org.or_else(|| record.autonomous_system_organization.map(str::to_owned));
        }
        geo
    }

    /// Reads all files again. A file that cannot be taken leaves its predecessor in place; the errors are given for the log.
    /// Blocks while it reads.
    pub fn reload(&self) -> Vec<GeoIpError> {
        self.read_again(|_, _| true)
    }

    /// Reads those files again that have changed since they were last read. Blocks while it reads.
    pub fn reload_changed(&self) -> Vec<GeoIpError> {
        self.read_again(|before, now| before != now)
    }

    fn read_again(&self, wanted: impl Fn(Option<Stamp>, Option<Stamp>) -> bool) -> Vec<GeoIpError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut databases = self.databases.load_full().as_ref().clone();
        let mut errors = Vec::new();
        for ((path, stamp), database) in self.paths.iter().zip(seen.iter_mut()).zip(databases.iter_mut()) {
            let now = Stamp::of(path).ok();
            if !wanted(*stamp, now) {
                continue;
            }
            *stamp = now;
            match read(path) {
                Ok(fresh) => {
                    tracing::info!(file = %path.display(), kind = fresh.metadata().database_type, "GeoIP file read again");
                    *database = Arc::new(fresh);
                }
                Err(error) => errors.push(error),
            }
        }
        self.databases.store(Arc::new(databases));
        errors
    }

    /// Looks at the files every `check_every` and takes the changed ones, until stopped. Reads off the async threads: a City file
    /// has a hundred megabytes.
    pub async fn watch(self: Arc<Self>, check_every: Duration, stop: CancellationToken) {
        if self.paths.is_empty() {
            return;
        }
        // A period of zero would be a busy loop.
        let check_every = check_every.max(Duration::from_millis(10));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(check_every) => {}
            }
            let geoip = Arc::clone(&self);
            let errors = tokio::task::spawn_blocking(move || geoip.reload_changed()).await.unwrap_or_default();
            for error in errors {
                tracing::warn!(%error, "the changed GeoIP file was not taken; the one read before stays in use");
            }
        }
    }
}

fn read(path: &Path) -> Result<Reader<Vec<u8>>, GeoIpError> {
    let bytes = std::fs::read(path).map_err(|source| GeoIpError::Unreadable { path: path.to_owned(), source })?;
    if bytes.is_empty() {
        return Err(GeoIpError::Empty { path: path.to_owned() });
    }
    let broken = |error: MaxMindDbError| GeoIpError::NotMaxMind { path: path.to_owned(), reason: error.to_string() };
    let reader = Reader::from_source(bytes).map_err(broken)?;
    let found = &reader.metadata().database_type;
    let useful = ["Country", "City", "ASN", "ISP", "Enterprise"].iter().any(|kind| found.contains(kind));
    if !useful {
        return Err(GeoIpError::Kind { path: path.to_owned(), found: found.clone() });
    }
    // A damaged search tree shows here instead of as a country that nobody ever logs in from.
    for probe in ["0.0.0.0", "198.51.100.1", "255.255.255.255"] {
        if let Ok(address) = probe.parse() {
            reader.lookup(address).map_err(broken)?;
        }
    }
    Ok(reader)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn file(kind: &str, entries: &[(&str, Value)]) -> Vec<u8> {
        let mut writer = mmdb_writer::Writer::new(kind);
        for (network, record) in entries {
            writer.insert(network.parse::<ipnet::IpNet>().unwrap(), record).unwrap();
        }
        writer.to_bytes().unwrap()
    }

    fn country(network: &str, code: &str) -> Vec<u8> {
        file("GeoLite2-Country", &[(network, json!({ "country": { "iso_code": code } }))])
    }

    fn open(files: &[&Path]) -> Result<GeoIp, GeoIpError> {
        let files = files.iter().map(|path| path.to_path_buf()).collect();
        GeoIp::open(&Settings { files, check_every: Duration::from_millis(10) })
    }

    fn country_of(geoip: &GeoIp, remote: &str) -> Option<String> {
        geoip.lookup(remote.parse().unwrap()).country
    }

    #[test]
    fn later_file_fills_in_what_the_earlier_does_not_know() {
        let folder = tempfile::tempdir().unwrap();
        let (city, asn) = (folder.path().join("city.mmdb"), folder.path().join("asn.mmdb"));
        let place = json!({ "country": { "iso_code": "de" }, "location": { "latitude": 52.5, "longitude": 13.4 } });
        std::fs::write(&city, file("GeoLite2-City", &[("192.0.2.0/24", place)])).unwrap();
        let network = |number: u32, name: &str, country: &str| {
            json!({ "autonomous_system_number": number, "autonomous_system_organization": name,
                    "country": { "iso_code": country } })
        };
        let networks =
            [("192.0.2.0/24", network(64496, "Example Net", "FR")), ("2001:db8::/32", network(64497, "Six", "NL"))];
        std::fs::write(&asn, file("GeoLite2-ASN", &networks)).unwrap();

        let geoip = open(&[&city, &asn]).unwrap();
        let geo = geoip.lookup("192.0.2.9".parse().unwrap());
        assert_eq!(geo.country.as_deref(), Some("DE"), "upper case, and the first file wins");
        assert_eq!(geo.location, Some((52.5, 13.4)));
        assert_eq!((geo.asn, geo.as_org.as_deref()), (Some(64496), Some("Example Net")));
        assert_eq!(country_of(&geoip, "2001:db8::1").as_deref(), Some("NL"));
        assert_eq!(geoip.lookup("203.0.113.1".parse().unwrap()), Geo::default());
        assert_eq!(GeoIp::none().lookup("192.0.2.9".parse().unwrap()), Geo::default());
    }

    #[test]
    fn record_that_lacks_keys_or_has_others_is_read_as_far_as_it_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("odd.mmdb");
        let odd = [
            ("192.0.2.0/25", json!({ "location": { "latitude": 1.0 }, "country": { "names": { "en": "X" } } })),
            ("192.0.2.128/25", json!({ "country": "DE" })),
        ];
        std::fs::write(&path, file("GeoIP2-Enterprise", &odd)).unwrap();
        let geoip = open(&[&path]).unwrap();
        assert_eq!(geoip.lookup("192.0.2.1".parse().unwrap()), Geo::default());
        assert_eq!(geoip.lookup("192.0.2.200".parse().unwrap()), Geo::default());
    }

    #[test]
    fn each_way_a_file_can_be_wrong_has_its_own_words_and_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.mmdb");
        let whole = country("192.0.2.0/24", "DE");
        let error = |bytes: Option<&[u8]>| {
            let _ = std::fs::remove_file(&path);
            if let Some(bytes) = bytes {
                std::fs::write(&path, bytes).unwrap();
            }
            let text = open(&[&path]).unwrap_err().to_string();
            assert!(text.contains("x.mmdb") && text.starts_with("geoip.files: "), "{text}");
            text
        };
        assert!(error(None).contains("No such file"));
        assert!(error(Some(b"")).contains("is empty"));
        assert!(error(Some(b"<html>please log in</html>")).contains("not a MaxMind file"));
        for cut in [whole.len() / 4, whole.len() / 2, whole.len() - 3] {
            assert!(error(Some(&whole[..cut])).contains("cut off"), "cut at {cut}");
        }
        assert!(error(Some(&file("GeoIP2-Anonymous-IP", &[]))).contains("\"GeoIP2-Anonymous-IP\""));
    }

    #[test]
    fn broken_successor_leaves_the_file_read_before_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("country.mmdb");
        std::fs::write(&path, country("192.0.2.0/24", "DE")).unwrap();
        let geoip = open(&[&path]).unwrap();

        std::fs::write(&path, b"half a downl").unwrap();
        assert_eq!(geoip.reload_changed().len(), 1);
        assert_eq!(geoip.reload_changed().len(), 0, "a broken file is reported once");
        assert_eq!(country_of(&geoip, "192.0.2.1").as_deref(), Some("DE"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(geoip.reload().len(), 1);
        assert_eq!(country_of(&geoip, "192.0.2.1").as_deref(), Some("DE"));

        std::fs::write(&path, country("192.0.2.0/24", "FR")).unwrap();
        assert!(geoip.reload_changed().is_empty());
        assert_eq!(country_of(&geoip, "192.0.2.1").as_deref(), Some("FR"));
    }

    #[tokio::test]
    async fn replaced_file_is_taken_while_running() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("country.mmdb");
        std::fs::write(&path, country("192.0.2.0/24", "DE")).unwrap();
        let geoip = Arc::new(open(&[&path]).unwrap());
        let stop = CancellationToken::new();
        let watch = tokio::spawn(Arc::clone(&geoip).watch(Duration::from_millis(10), stop.clone()));

        let fresh = folder.path().join("country.mmdb.new");
        std::fs::write(&fresh, country("192.0.2.0/24", "FR")).unwrap();
        std::fs::rename(&fresh, &path).unwrap();
        let taken = async {
            while country_of(&geoip, "192.0.2.1").as_deref() != Some("FR") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), taken).await.unwrap();
        stop.cancel();
        watch.await.unwrap();
    }
}
