//! GeoIP files in both forms, broken ones, and files that are replaced while addresses are looked up.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::*;

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
        ("192.0.2.128/25", json!({ "country": ["DE"], "traits": { "is_anycast": true }, "asn": 5 })),
        ("198.51.100.0/24", json!("DE")),
    ];
    std::fs::write(&path, file("GeoIP2-Enterprise", &odd)).unwrap();
    let geoip = open(&[&path]).unwrap();
    assert_eq!(geoip.lookup("192.0.2.1".parse().unwrap()), Geo::default());
    assert_eq!(geoip.lookup("192.0.2.200".parse().unwrap()), Geo { asn: Some(5), ..Geo::default() });
    assert_eq!(geoip.lookup("198.51.100.1".parse().unwrap()), Geo::default());
}

#[test]
fn flat_files_of_free_databases_are_taken_whatever_their_type_is_called() {
    let folder = tempfile::tempdir().unwrap();
    let (place, network) = (folder.path().join("place.mmdb"), folder.path().join("network.mmdb"));
    let here = json!({ "country_code": "NL", "city": "Delft", "latitude": 52.01, "longitude": 4.36, "timezone": "x" });
    std::fs::write(&place, file("my own places", &[("192.0.2.0/24", here)])).unwrap();
    let who = json!({ "asn": "AS64500", "as_name": "Example Net", "country": "Belgium", "country_code": "BE" });
    std::fs::write(&network, file("ipinfo lite", &[("192.0.2.0/24", who.clone()), ("2001:db8::/32", who)])).unwrap();
    let geoip = open(&[&place, &network]).unwrap();
    let expected = Geo {
        country: Some("NL".to_owned()),
        city: Some("Delft".to_owned()),
        location: Some((52.01, 4.36)),
        asn: Some(64500),
        as_org: Some("Example Net".to_owned()),
    };
    assert_eq!(geoip.lookup("192.0.2.9".parse().unwrap()), expected);
    assert_eq!(country_of(&geoip, "2001:db8::1").as_deref(), Some("BE"));
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
    let proxy = json!({ "is_public_proxy": true });
    let other = error(Some(&file("GeoIP2-Anonymous-IP", &[("192.0.2.0/24", proxy)])));
    assert!(other.contains("\"GeoIP2-Anonymous-IP\"") && other.contains("country_code"), "{other}");
    std::fs::write(&path, file("GeoLite2-Country", &[])).unwrap();
    assert!(open(&[&path]).is_ok(), "an empty one of a known kind");
}

#[test]
fn damage_in_the_middle_of_a_file_is_found_before_it_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.mmdb");
    let networks: Vec<(String, Value)> = (0..64)
        .map(|n| {
            (format!("10.{n}.0.0/16"), json!({ "country": { "iso_code": "DE" }, "autonomous_system_number": n + 1 }))
        })
        .collect();
    let networks: Vec<(&str, Value)> =
        networks.iter().map(|(network, record)| (network.as_str(), record.clone())).collect();
    let whole = file("GeoLite2-City", &networks);
    std::fs::write(&path, &whole).unwrap();
    assert!(open(&[&path]).is_ok());
    // A download that left a hole: in the search tree, which then points back to its own root, and in the records.
    let marker = b"\xab\xcd\xefMaxMind.com";
    let end = whole.windows(marker.len()).rposition(|bytes| bytes == marker).unwrap();
    for (what, hole) in [("tree", 60..400), ("records", end - 300..end)] {
        let mut damaged = whole.clone();
        damaged[hole].fill(0xff);
        std::fs::write(&path, &damaged).unwrap();
        let error = open(&[&path]).unwrap_err().to_string();
        assert!(error.contains("cut off") && error.contains("x.mmdb"), "{what}: {error}");
    }
    let mut looped = whole;
    looped[..240].fill(0);
    std::fs::write(&path, &looped).unwrap();
    assert!(open(&[&path]).is_err(), "a tree without an end");
}

#[test]
fn broken_successor_leaves_the_file_read_before_in_place_and_is_told_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("country.mmdb"), folder.path().join("asn.mmdb"));
    std::fs::write(&path, country("192.0.2.0/24", "DE")).unwrap();
    std::fs::write(&other, file("x", &[("192.0.2.0/24", json!({ "asn": 1 }))])).unwrap();
    let geoip = open(&[&path, &other]).unwrap();
    let outcome = |all: Vec<Reread>, file: &Path| all.into_iter().find(|one| one.file == file).unwrap().outcome;

    assert_eq!(geoip.reload_changed(), []);
    std::fs::write(&path, b"half a downl").unwrap();
    let all = geoip.reload_changed();
    assert_eq!(all.len(), 1, "the other one has not changed");
    let error = outcome(all, &path).unwrap_err();
    assert!(error.starts_with("geoip.files: ") && error.contains("country.mmdb"), "{error}");
    assert_eq!(geoip.reload_changed(), [], "a broken file is reported once");
    assert_eq!(country_of(&geoip, "192.0.2.1").as_deref(), Some("DE"));

    // Who asks for all of them hears of all of them, each time.
    std::fs::remove_file(&path).unwrap();
    for _ in 0..2 {
        let all = geoip.reload();
        assert_eq!(all.len(), 2);
        let today = outcome(all.clone(), &other).unwrap();
        assert!(today.starts_with("x of 20"), "{today}");
        assert!(outcome(all, &path).unwrap_err().contains("No such file"));
    }
    assert_eq!(country_of(&geoip, "192.0.2.1").as_deref(), Some("DE"));

    std::fs::write(&path, country("192.0.2.0/24", "FR")).unwrap();
    assert!(outcome(geoip.reload_changed(), &path).is_ok());
    assert_eq!(country_of(&geoip, "192.0.2.1").as_deref(), Some("FR"));
}

#[test]
fn looked_up_addresses_stay_known_while_files_are_cut_short_and_exchanged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("country.mmdb");
    let (german, french) = (country("192.0.2.0/24", "DE"), country("192.0.2.0/24", "FR"));
    std::fs::write(&path, &german).unwrap();
    let geoip = open(&[&path]).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let askers: Vec<_> = (0..4)
            .map(|_| {
                threads.spawn(|| {
                    let mut asked = 0_u64;
                    while !stop.load(Ordering::Relaxed) || asked == 0 {
                        let country = country_of(&geoip, "192.0.2.1");
                        assert!(matches!(country.as_deref(), Some("DE" | "FR")), "{country:?}");
                        asked += 1;
                    }
                    asked
                })
            })
            .collect();
        for round in 0..100 {
            let whole = if round % 2 == 0 { &french } else { &german };
            // In place, as a careless download does it: cut short, then whole.
            std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
            let cut = geoip.reload();
            assert!(cut[0].outcome.as_ref().is_err_and(|error| error.contains("cut off")), "{cut:?}");
            std::fs::write(&path, whole).unwrap();
            assert!(geoip.reload()[0].outcome.is_ok());
            let expected = if round % 2 == 0 { "FR" } else { "DE" };
            assert_eq!(country_of(&geoip, "192.0.2.1").as_deref(), Some(expected));
        }
        stop.store(true, Ordering::Relaxed);
        for asker in askers {
            assert!(asker.join().unwrap() > 0);
        }
    });
}

#[tokio::test]
async fn replaced_file_is_taken_while_running() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("country.mmdb");
    std::fs::write(&path, country("192.0.2.0/24", "DE")).unwrap();
    let geoip = Arc::new(open(&[&path]).unwrap());
    let stop = CancellationToken::new();
    let watch =
        tokio::spawn(Arc::clone(&geoip).watch(Duration::from_millis(10), Arc::new(Metrics::new()), stop.clone()));

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
