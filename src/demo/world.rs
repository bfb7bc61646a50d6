//! The small provider of the demo: its networks and those of the rest of the world, and the GeoIP files that describe them.
//!
//! Owns the addresses. All come from ranges that nobody uses (198.18.0.0/15, the documentation ranges, 2001:db8::/32), and the
//! numbers of the autonomous systems from those reserved for documentation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use mmdb_writer::{Value, Writer};

use super::DemoError;
use super::dice::Dice;

/// A network of the demo's world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Net {
    Home,
    HomeV6,
    Mobile,
    MobileNew,
    MobileV6,
    Office,
    Hosting,
    Italy,
    Germany,
    Croatia,
    Brazil,
    Vietnam,
    Nigeria,
    Indonesia,
    Romania,
    HostingNl,
    HostingSc,
    ArgentinaV6,
}

struct Row {
    net: Net,
    cidr: IpNet,
    country: &'static str,
    place: (f64, f64),
    asn: u32,
    org: &'static str,
}

const fn v4(
    net: Net,
    a: [u8; 4],
    bits: u8,
    country: &'static str,
    place: (f64, f64),
    asn: u32,
    org: &'static str,
) -> Row {
    let cidr = IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(a[0], a[1], a[2], a[3]), bits));
    Row { net, cidr, country, place, asn, org }
}

const fn v6(net: Net, third: u16, country: &'static str, place: (f64, f64), asn: u32, org: &'static str) -> Row {
    let cidr = IpNet::V6(ipnet::Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, third, 0, 0, 0, 0, 0), 36));
    Row { net, cidr, country, place, asn, org }
}

const VIENNA: (f64, f64) = (48.21, 16.37);

/// In the order of [`Net`].
const ROWS: [Row; 18] = [
    v4(Net::Home, [198, 18, 0, 0], 17, "AT", VIENNA, 64496, "Alpennet Broadband"),
    v6(Net::HomeV6, 0x1000, "AT", VIENNA, 64496, "Alpennet Broadband"),
    v4(Net::Mobile, [198, 18, 128, 0], 19, "AT", VIENNA, 64497, "Alpennet Mobile"),
    v4(Net::MobileNew, [198, 18, 160, 0], 19, "AT", VIENNA, 64497, "Alpennet Mobile"),
    v6(Net::MobileV6, 0x2000, "AT", VIENNA, 64497, "Alpennet Mobile"),
    v4(Net::Office, [192, 0, 2, 0], 24, "AT", (48.31, 14.29), 64498, "Danube Office Parks"),
    v4(Net::Hosting, [198, 18, 192, 0], 20, "AT", VIENNA, 64499, "Ringstrasse Hosting"),
    v4(Net::Italy, [198, 19, 0, 0], 20, "IT", (45.65, 13.77), 64500, "Adria Telecom"),
    v4(Net::Germany, [198, 19, 16, 0], 20, "DE", (48.14, 11.58), 64501, "Isar Telecom"),
    v4(Net::Croatia, [198, 19, 32, 0], 20, "HR", (45.33, 14.44), 64502, "Kvarner Net"),
    v4(Net::Brazil, [198, 19, 64, 0], 20, "BR", (-23.55, -46.63), 64503, "Paulista Cable"),
    v4(Net::Vietnam, [198, 19, 80, 0], 20, "VN", (21.03, 105.85), 64504, "Red River Telecom"),
    v4(Net::Nigeria, [198, 19, 96, 0], 20, "NG", (6.52, 3.38), 64505, "Lagoon Wireless"),
    v4(Net::Indonesia, [198, 19, 112, 0], 20, "ID", (-6.21, 106.85), 64506, "Sunda Link"),
    v4(Net::Romania, [198, 19, 128, 0], 20, "RO", (44.43, 26.10), 64507, "Carpathian Servers"),
    v4(Net::HostingNl, [198, 51, 100, 0], 24, "NL", (52.37, 4.90), 64508, "Polder VPS"),
    v4(Net::HostingSc, [203, 0, 113, 0], 24, "SC", (-4.62, 55.45), 64509, "Palm Colocation"),
    v6(Net::ArgentinaV6, 0xf000, "AR", (-34.60, -58.38), 64510, "La Plata Fibra"),
];

/// Where the noise of the internet comes from.
pub(super) const FAR: [Net; 5] = [Net::Brazil, Net::Vietnam, Net::Nigeria, Net::Indonesia, Net::Romania];

impl Net {
    fn row(self) -> &'static Row {
        const { assert!(ROWS.len() == Self::ArgentinaV6 as usize + 1) };
        &ROWS[self as usize]
    }

    /// The `n`th address of the network, counted around; never its first, which no host has. In IPv6 each `n` is a /64 of its own.
    pub(super) fn address(self, n: u64) -> IpAddr {
        match self.row().cidr {
            IpNet::V4(net) => {
                let hosts = (1_u64 << (32 - net.prefix_len())) - 2;
                IpAddr::V4(Ipv4Addr::from_bits(net.network().to_bits() + 1 + (n % hosts) as u32))
            }
            IpNet::V6(net) => {
                let subnet = u128::from(n % (1 << 28)) << 64;
                let host = u128::from(Dice::of(&[n, self as u64]).next() | 1);
                IpAddr::V6(Ipv6Addr::from_bits(net.network().to_bits() | subnet | host))
            }
        }
    }

    /// Where an address of the demo lies.
    #[cfg(test)]
    pub(super) fn of(address: IpAddr) -> Option<(Self, &'static str, u32)> {
        ROWS.iter().find(|row| row.cidr.contains(&address)).map(|row| (row.net, row.country, row.asn))
    }
}

/// Writes the two GeoIP files, one with country and location and one with autonomous systems, into the folder. Gives their paths.
pub(super) fn write_geoip(folder: &Path) -> Result<Vec<PathBuf>, DemoError> {
    let mut city = Writer::new("Trackalert-Demo-City");
    let mut asn = Writer::new("Trackalert-Demo-ASN");
    for row in &ROWS {
        let place = [("latitude", Value::from(row.place.0)), ("longitude", Value::from(row.place.1))];
        let what = Value::map([
            ("country", Value::map([("iso_code", Value::from(row.country))])),
            ("location", Value::map(place)),
        ]);
        city.insert_value(row.cidr, what).map_err(|error| DemoError::GeoIp(error.to_string()))?;
        let who = Value::map([
            ("autonomous_system_number", Value::from(row.asn)),
            ("autonomous_system_organization", Value::from(row.org)),
        ]);
        asn.insert_value(row.cidr, who).map_err(|error| DemoError::GeoIp(error.to_string()))?;
    }
    let mut paths = Vec::new();
    for (name, writer) in [("demo-city.mmdb", city), ("demo-asn.mmdb", asn)] {
        let path = folder.join(name);
        let bytes = writer.to_bytes().map_err(|error| DemoError::GeoIp(error.to_string()))?;
        std::fs::write(&path, bytes).map_err(|error| DemoError::Folder(path.clone(), error))?;
        paths.push(path);
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geoip_files_are_read_back_with_country_location_and_system_of_every_network() {
        let folder = tempfile::tempdir().unwrap();
        let paths = write_geoip(folder.path()).unwrap();
        let city = maxminddb::Reader::open_readfile(&paths[0]).unwrap();
        let asn = maxminddb::Reader::open_readfile(&paths[1]).unwrap();
        for row in &ROWS {
            let address = row.net.address(77);
            assert!(row.cidr.contains(&address), "{:?}", row.net);
            assert_eq!(Net::of(address), Some((row.net, row.country, row.asn)));
            let here = city.lookup(address).unwrap().decode::<maxminddb::geoip2::City<'_>>().unwrap().unwrap();
            assert_eq!(here.country.iso_code, Some(row.country));
            assert_eq!((here.location.latitude, here.location.longitude), (Some(row.place.0), Some(row.place.1)));
            let system = asn.lookup(address).unwrap().decode::<maxminddb::geoip2::Asn<'_>>().unwrap().unwrap();
            assert_eq!(system.autonomous_system_number, Some(row.asn));
            assert_eq!(system.autonomous_system_organization, Some(row.org));
        }
        assert!(!city.lookup("192.168.1.1".parse().unwrap()).unwrap().has_data());
    }

    #[test]
    fn every_number_gives_an_address_inside_of_its_network() {
        for row in &ROWS {
            for n in [0, 1, 253, 254, 255, 1 << 20, u64::MAX] {
                assert!(row.cidr.contains(&row.net.address(n)), "{:?} {n}", row.net);
            }
        }
    }
}
