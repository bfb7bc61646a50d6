//! What `detect` adds to a report, seen from outside: a report goes in over HTTP, a policy sees what is known of its address, and the
//! history has it, while the files that it comes from are replaced, cut short and mended under load.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use support::inbox::Inbox;
use support::program::{PATIENCE, Program, Site};
use support::wire;

const TAKEN: &str = "trackalert_file_reloads_total{outcome=\"taken\"}";
const REFUSED: &str = "trackalert_file_reloads_total{outcome=\"refused\"}";

/// A GeoIP file of one network, 192.0.2.0/24.
fn mmdb(kind: &str, record: &Value) -> Vec<u8> {
    let mut writer = mmdb_writer::Writer::new(kind);
    writer.insert("192.0.2.0/24".parse::<ipnet::IpNet>().unwrap(), record).unwrap();
    writer.to_bytes().unwrap()
}

/// A city in MaxMind's form.
fn city(country: &str, name: &str) -> Vec<u8> {
    let place = json!({ "latitude": 52.25, "longitude": 4.5 });
    let record = json!({ "country": { "iso_code": country }, "city": { "names": { "en": name } }, "location": place });
    mmdb("GeoLite2-City", &record)
}

/// A site whose policy tells what it sees of each report.
struct Scene {
    site: Site,
    inbox: Inbox,
    city: PathBuf,
    sent: AtomicU64,
}

impl Scene {
    fn new(evidence: &str, settings: &str) -> Self {
        let (inbox, address) = Inbox::start();
        let files = tempfile::tempdir().unwrap().keep();
        let (place, network) = (files.join("city.mmdb"), files.join("network.mmdb"));
        std::fs::write(&place, city("NL", "Delft")).unwrap();
        let flat = json!({ "asn": "AS64500", "as_name": "Example Net", "country_code": "ZZ" });
        std::fs::write(&network, mmdb("flat networks", &flat)).unwrap();
        let site = Site::new(&format!(
            "geoip.files = [\"{}\", \"{}\"]\nhistory.commit_every = \"20ms\"\nnotify.suppress = \"0s\"\n\
             notify.channels = [{{ kind = \"webhook\", url = \"http://{address}/\" }}]\n{settings}",
            place.display(),
            network.display()
        ));
        let policy = format!(
            "function report(lt)\n  alert {{ kind = 'seen', key = lt.id, title = 'x', evidence = {evidence} }}\nend"
        );
        site.policy("seen", &policy);
        Self { site, inbox, city: place, sent: AtomicU64::new(0) }
    }

    /// Sends one more report, with these fields besides; gives its login.
    fn send(&self, program: &Program, more: &Value) -> String {
        let login = format!("user{}", self.sent.fetch_add(1, Ordering::Relaxed));
        let mut report = json!({ "login": login, "remote": "192.0.2.7", "success": true });
        report.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = wire::post(&program.address, "/command/report", "", report.to_string());
        assert_eq!(answer.status, 200, "{answer:?}");
        login
    }

    /// What the policy saw of that login's report.
    fn seen(&self, program: &Program, login: &str) -> Value {
        let mut found = None;
        program.wait_until("the alert", PATIENCE, |_| {
            found = self.inbox.of_kind("seen").into_iter().find(|arrival| arrival.alert["login"] == login);
            found.is_some()
        });
        found.unwrap().alert["evidence"].clone()
    }

    /// The documents that a query finds, once there are so many.
    fn documents(&self, program: &Program, query: &Value, many: usize) -> Vec<Value> {
        let mut found = Vec::new();
        program.wait_until("the documents", PATIENCE, |program| {
            let body = json!({ "query": query, "size": 10_000 });
            let answer = wire::post(&program.address, "/v1/admin/query", "", body.to_string()).json();
            found = answer["hits"]["hits"].as_array().unwrap().iter().map(|hit| hit["_source"].clone()).collect();
            found.len() >= many
        });
        found
    }

    /// Sends reports until the policy sees this in one.
    fn until_seen(&self, program: &Program, more: &Value, what: &str, holds: impl Fn(&Value) -> bool) {
        program.wait_until(what, PATIENCE, |program| {
            let login = self.send(program, more);
            holds(&self.seen(program, &login))
        });
    }
}

/// As a tool that knows its trade replaces a file.
fn replace(path: &Path, bytes: &[u8]) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, bytes).unwrap();
    std::fs::rename(&fresh, path).unwrap();
}

#[test]
fn policy_and_history_know_where_an_address_lies_and_whose_it_is_from_files_of_both_forms() {
    let scene = Scene::new("geo.lookup(lt.remote)", "");
    let program = scene.site.start();
    let login = scene.send(&program, &json!({}));
    let seen = scene.seen(&program, &login);
    let expected = json!({ "country": "NL", "city": "Delft", "latitude": 52.25, "longitude": 4.5, "asn": 64500,
                           "as_org": "Example Net" });
    assert_eq!(seen, expected);
    let found = scene.documents(&program, &json!({ "term": { "geoip.city_name": "Delft" } }), 1);
    let expected = json!({ "country_code2": "NL", "city_name": "Delft", "latitude": 52.25, "longitude": 4.5,
                           "location": { "lat": 52.25, "lon": 4.5 }, "asn": 64500, "as_org": "Example Net" });
    assert_eq!(found[0]["geoip"], expected);
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn no_report_goes_unplaced_while_geoip_files_are_replaced_and_cut_short_under_load() {
    let scene = Scene::new("geo.lookup(lt.remote)", "geoip.check_every = \"20ms\"\n");
    let program = scene.site.start();
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let sender = threads.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                scene.send(&program, &json!({}));
            }
        });
        for round in 0..10 {
            let (country, name) = if round % 2 == 0 { ("BE", "Gent") } else { ("NL", "Delft") };
            let whole = city(country, name);
            let refused = program.metric(REFUSED).unwrap();
            // Written in place, and the writer stops in the middle.
            std::fs::write(&scene.city, &whole[..whole.len() / 2]).unwrap();
            program.wait_until("the cut file", PATIENCE, |program| program.metric(REFUSED).unwrap() > refused);
            replace(&scene.city, &whole);
            scene.until_seen(&program, &json!({}), "the new file", |seen| seen["city"] == name);
        }
        stop.store(true, Ordering::Relaxed);
        sender.join().unwrap();
    });
    let sent = usize::try_from(scene.sent.load(Ordering::Relaxed)).unwrap();
    assert!(sent >= 20, "{sent} reports");
    program.wait_idle(PATIENCE);
    let documents = scene.documents(&program, &json!({ "match_all": {} }), sent.min(10_000));
    for document in documents {
        let geoip = &document["geoip"];
        let pair = (geoip["country_code2"].as_str().unwrap_or("?"), geoip["city_name"].as_str().unwrap_or("?"));
        assert!(matches!(pair, ("NL", "Delft") | ("BE", "Gent")), "{document}");
    }
    let log = scene.site.log_text();
    assert!(log.contains("geoip.files: ") && log.contains("cut off") && log.contains("city.mmdb"), "{log}");
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn sighup_takes_changed_geoip_files_at_once_and_a_reload_tells_what_became_of_each() {
    let scene = Scene::new("geo.lookup(lt.remote)", "geoip.check_every = \"1h\"\n");
    let program = scene.site.start();
    replace(&scene.city, &city("BE", "Gent"));
    program.signal(Signal::SIGHUP);
    // Both files are read again, the unchanged one too.
    program.wait_until("the reload", PATIENCE, |program| program.metric(TAKEN).unwrap() >= 2.0);
    let login = scene.send(&program, &json!({}));
    assert_eq!(scene.seen(&program, &login)["city"], "Gent");

    std::fs::write(&scene.city, b"half a downl").unwrap();
    let answer = wire::post(&program.address, "/v1/admin/reload", "", "");
    assert_eq!(answer.status, 422, "{answer:?}");
    for expected in
        ["policies in use: seen", "city.mmdb: not a MaxMind file", "network.mmdb: read again: flat networks"]
    {
        assert!(answer.body.contains(expected), "{expected}: {}", answer.body);
    }
    let login = scene.send(&program, &json!({}));
    assert_eq!(scene.seen(&program, &login)["city"], "Gent", "what was read before stays in use");
    replace(&scene.city, &city("NL", "Delft"));
    let answer = wire::post(&program.address, "/v1/admin/reload", "", "");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body.contains("city.mmdb: read again: GeoLite2-City of 20"), "{}", answer.body);
    assert_eq!(program.terminate(), Some(0));
}
