//! Where addresses of a case lie: given in the test file, looked up by the program's own GeoIP.
//!
//! Writes a file as an operator would have one into the case's folder, so that a case needs no database of its author's and is enriched as
//! a report of the day is. It stands for each file that an old configuration names.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use mmdb_writer::{Value, Writer};
use serde::Deserialize;

use crate::geoip::{self, GeoIp};

/// What is known of an address or a network.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    country: Option<String>,
    latitude: Option<f64>,
    longitude: Option<f64>,
    asn: Option<u32>,
    as_org: Option<String>,
}

impl Place {
    /// What is wrong with it.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.country.as_ref().is_some_and(|code| code.len() != 2 || !code.bytes().all(|c| c.is_ascii_uppercase())) {
            return Err("country: two capital letters are needed, such as DE".to_owned());
        }
        if self.latitude.is_some() != self.longitude.is_some() {
            return Err("latitude and longitude: both are needed, or none".to_owned());
        }
        Ok(())
    }
}

/// The network that a key of `geo` means: an address or a network.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
    address
        .or_else(|_| text.parse::<IpNet>().map(|network| network.trunc()))
        .map_err(|_| format!("geo: \"{text}\" is no address and no network, such as 192.0.2.1 or 192.0.2.0/24"))
}

/// The GeoIP of a case, also by the names of these files. Of two networks around an address the smaller one counts; of two that are equal
/// the later one.
pub(super) fn open(places: &[(IpNet, Place)], names: &[PathBuf], folder: &Path) -> Result<GeoIp, String> {
    if places.is_empty() {
        return Ok(GeoIp::none());
    }
    let mut sorted: Vec<_> = places.iter().collect();
    sorted.sort_by_key(|(network, _)| network.prefix_len());
    let mut writer = Writer::new("Trackalert-Test-City");
    for (network, place) in sorted {
        let mut record = Vec::new();
        if let Some(country) = &place.country {
            record.push(("country", Value::map([("iso_code", Value::from(country.as_str()))])));
        }
        if let (Some(latitude), Some(longitude)) = (place.latitude, place.longitude) {
            let at = [("latitude", Value::from(latitude)), ("longitude", Value::from(longitude))];
            record.push(("location", Value::map(at)));
        }
        if let Some(asn) = place.asn {
            record.push(("autonomous_system_number", Value::from(asn)));
        }
        if let Some(name) = &place.as_org {
            record.push(("autonomous_system_organization", Value::from(name.as_str())));
        }
        let inserted = writer.insert_value(*network, Value::map(record));
        inserted.map_err(|error| format!("geo: {network}: {error}"))?;
    }
    let path = folder.join("places.mmdb");
    let bytes = writer.to_bytes().map_err(|error| format!("geo: {error}"))?;
    std::fs::write(&path, bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    let files = vec![path; names.len().max(1)];
    let opened = GeoIp::open(&geoip::Settings { files, check_every: Duration::from_secs(3600) });
    Ok(opened.map_err(|error| error.to_string())?.known_as(names.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaller_network_counts_and_what_is_not_given_is_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let place = |toml: &str| toml::from_str::<Place>(toml).unwrap();
        let places = [
            (network("192.0.2.7").unwrap(), place("country = \"FR\"")),
            (network("192.0.2.0/24").unwrap(), place("country = \"DE\"\nasn = 64496\nas_org = \"Example\"")),
            (network("2001:db8::/32").unwrap(), place("latitude = 52.5\nlongitude = 13.4")),
            (network("10.0.0.1").unwrap(), place("asn = 1")),
        ];
        let names = ["/a.mmdb", "/b.mmdb"].map(PathBuf::from);
        let geoip = open(&places, &names, folder.path()).unwrap();
        let of = |address: &str| geoip.lookup(address.parse().unwrap());
        assert_eq!((of("192.0.2.1").country.as_deref(), of("192.0.2.1").asn), (Some("DE"), Some(64496)));
        assert_eq!((of("192.0.2.7").country.as_deref(), of("192.0.2.7").asn), (Some("FR"), None));
        assert_eq!(of("2001:db8::9").location, Some((52.5, 13.4)));
        assert_eq!(of("10.0.0.1").asn, Some(1));
        assert_eq!(of("198.51.100.1"), crate::report::Geo::default());
        assert_eq!(network("::ffff:192.0.2.7"), network("192.0.2.7"));
        for name in ["/a.mmdb", "/b.mmdb"] {
            let record = geoip.record(Path::new(name), "192.0.2.1".parse().unwrap()).unwrap();
            assert_eq!(
                (&record["country"]["iso_code"], &record["autonomous_system_number"]),
                (&"DE".into(), &64496.into())
            );
        }
        assert_eq!(geoip.record(Path::new("/c.mmdb"), "192.0.2.1".parse().unwrap()), None);
    }

    #[test]
    fn odd_places_are_told() {
        let check = |toml: &str| toml::from_str::<Place>(toml).unwrap().check();
        assert!(check("country = \"Germany\"").unwrap_err().contains("capital"));
        assert!(check("latitude = 1.0").unwrap_err().contains("both"));
        assert_eq!(check(""), Ok(()));
        assert!(network("nowhere").unwrap_err().contains("no address"));
    }
}
