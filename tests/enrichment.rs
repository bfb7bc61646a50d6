//! What `detect` adds to a report, seen from outside: a report goes in over HTTP, a policy sees what is known of its address, and the
//! history has it, while the files that it comes from are replaced, cut short and mended under load.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use support::inbox::Inbox;
use support::program::{PATIENCE, Program, Site};
use support::server::usable;
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

/// The regexes of Debian's package. `None`: they cannot be installed here, which was said.
fn uap_core() -> Option<String> {
    let script = format!("{}/tests/tools/uap-core.sh", env!("CARGO_MANIFEST_DIR"));
    let said = Command::new(script).arg("install").output().map_err(|error| error.to_string());
    let installed = said.and_then(|said| match said.status.success() {
        true => Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&said.stderr).into_owned()),
    });
    usable("uap-core", installed)
}

/// Regexes that know one browser, by this name.
fn regexes(family: &str) -> String {
    format!(
        "user_agent_parsers:\n  - regex: 'Firefox/(\\d+)'\n    family_replacement: '{family}'\n    v1_replacement: '68'\n\
         os_parsers:\n  - regex: '(Linux)'\ndevice_parsers:\n  - regex: '; (SM-\\w+)'\n"
    )
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

const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:68.0) Gecko/20100101 Firefox/68.0";

#[test]
fn policy_and_history_know_a_device_by_the_regexes_of_uap_core_the_id_list_or_the_apps_string() {
    let Some(file) = uap_core() else { return };
    let scene = Scene::new("lt.device_attrs", "");
    let mut command = scene.site.command();
    command.args(["-R", &file]);
    let program = scene.site.start_command(command);
    let galaxy = "Mozilla/5.0 (Linux; Android 10; SM-G960U) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/80.0.3987.132 Mobile \
                  Safari/537.36";
    let mail = r#""name" "iPhone Mail" "version" "17F80" "os" "iOS" "os-version" "13.5.1 (17F80)""#;
    for (protocol, device_id, expected) in [
        (
            "http",
            galaxy,
            json!({ "browser.family": "Chrome Mobile", "browser.major": "80", "browser.minor": "0", "os.family": "Android",
                    "os.major": "10", "device.family": "Samsung SM-G960U", "device.brand": "Samsung", "device.model": "SM-G960U" }),
        ),
        (
            "http",
            FIREFOX,
            json!({ "browser.family": "Firefox", "browser.major": "68", "browser.minor": "0", "os.family": "Linux" }),
        ),
        (
            "imap",
            mail,
            json!({ "imapc.family": "iPhone Mail", "imapc.major": "17F80", "os.family": "iOS", "os.major": "13", "os.minor": "5" }),
        ),
        (
            "mobileapi",
            "Example Mail/2.14.1 (iOS 17.1; iPhone15,2)",
            json!({ "app.name": "Example Mail", "app.major": "2", "app.minor": "14", "os.family": "iOS", "os.major": "17",
                    "os.minor": "1", "device.family": "iPhone15,2" }),
        ),
        // Nothing to be read, and nothing is made of it.
        ("smtp", FIREFOX, json!({})),
        ("http", "", json!({})),
    ] {
        let login = scene.send(&program, &json!({ "protocol": protocol, "device_id": device_id }));
        assert_eq!(scene.seen(&program, &login), expected, "{device_id}");
    }
    let said = json!({ "protocol": "http", "device_id": FIREFOX, "device_attrs": { "browser.family": "Lynx" } });
    let login = scene.send(&program, &said);
    assert_eq!(scene.seen(&program, &login), json!({ "browser.family": "Lynx" }), "what the sender says stays");

    let found = scene.documents(&program, &json!({ "term": { "device_attrs.browser.family": "Chrome Mobile" } }), 1);
    assert_eq!(found[0]["device_attrs"]["os"], json!({ "family": "Android", "major": "10" }));
    assert_eq!(found[0]["device_attrs"]["device"]["model"], "SM-G960U");
    let found = scene.documents(&program, &json!({ "term": { "device_attrs.app.name": "Example Mail" } }), 1);
    assert_eq!(found[0]["device_id"], "Example Mail/2.14.1 (iOS 17.1; iPhone15,2)");
    // The id is that of the report as it came: the same report once more is the same, though it has no attributes of its own.
    let again = json!({ "login": "user0", "remote": "192.0.2.7", "success": true, "t": found[0]["t"], "protocol": "http",
                        "device_id": FIREFOX });
    for _ in 0..2 {
        wire::post(&program.address, "/command/report", "", again.to_string());
    }
    program.wait_until("the repetition", PATIENCE, |program| {
        program.metric("trackalert_repeated_reports_total") == Some(1.0)
    });
    assert_eq!(program.metric("trackalert_devices_total{how=\"parsed\"}"), Some(4.0));
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn regexes_are_exchanged_under_load_and_a_broken_file_leaves_the_old_ones() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("regexes.yaml");
    std::fs::write(&file, regexes("One")).unwrap();
    let settings = format!("detect.device_check_every = \"20ms\"\ndetect.device_regexes = \"{}\"\n", file.display());
    let scene = Scene::new("lt.device_attrs", &settings);
    let program = scene.site.start();
    let firefox = json!({ "protocol": "http", "device_id": FIREFOX });
    let family = |seen: &Value| seen["browser.family"].as_str().unwrap_or("?").to_owned();
    let login = scene.send(&program, &firefox);
    assert_eq!(family(&scene.seen(&program, &login)), "One");
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let sender = threads.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                scene.send(&program, &firefox);
            }
        });
        for round in 0..10 {
            let name = if round % 2 == 0 { "Two" } else { "One" };
            let refused = program.metric(REFUSED).unwrap();
            std::fs::write(&file, &regexes(name)[..60]).unwrap();
            program.wait_until("the cut file", PATIENCE, |program| program.metric(REFUSED).unwrap() > refused);
            replace(&file, regexes(name).as_bytes());
            scene.until_seen(&program, &firefox, "the new regexes", |seen| family(seen) == name);
        }
        stop.store(true, Ordering::Relaxed);
        sender.join().unwrap();
    });
    program.wait_idle(PATIENCE);
    let sent = usize::try_from(scene.sent.load(Ordering::Relaxed)).unwrap();
    for document in scene.documents(&program, &json!({ "match_all": {} }), sent.min(10_000)) {
        assert!(matches!(document["device_attrs"]["browser"]["family"].as_str(), Some("One" | "Two")), "{document}");
    }
    let log = scene.site.log_text();
    assert!(log.contains("detect.device_regexes: ") && log.contains("not a regexes.yaml"), "{log}");
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn sighup_reads_the_regexes_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("regexes.yaml");
    std::fs::write(&file, regexes("One")).unwrap();
    let settings = format!("detect.device_check_every = \"1h\"\ndetect.device_regexes = \"{}\"\n", file.display());
    let scene = Scene::new("lt.device_attrs", &settings);
    let program = scene.site.start();
    let firefox = json!({ "protocol": "http", "device_id": FIREFOX });
    let login = scene.send(&program, &firefox);
    assert_eq!(scene.seen(&program, &login)["browser.family"], "One");
    replace(&file, regexes("Two").as_bytes());
    program.signal(Signal::SIGHUP);
    // With the two files of GeoIP.
    program.wait_until("the reload", PATIENCE, |program| program.metric(TAKEN).unwrap() >= 3.0);
    let login = scene.send(&program, &firefox);
    assert_eq!(scene.seen(&program, &login)["browser.family"], "Two");
    std::fs::write(&file, "user_agent_parsers: [").unwrap();
    let answer = wire::post(&program.address, "/v1/admin/reload", "", "");
    assert_eq!(answer.status, 422, "{answer:?}");
    assert!(answer.body.contains("regexes.yaml: not a regexes.yaml") && answer.body.contains("city.mmdb: read again"));
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn regexes_that_are_not_there_are_missed_once_and_the_rest_works_and_broken_ones_that_were_named_are_no_start() {
    let scene = Scene::new("lt.device_attrs", "detect.device_regexes = \"/nowhere/regexes.yaml\"\n");
    let check = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trackalert"));
        let said = command.args(["check", "-C"]).arg(scene.site.config()).args(more).output().unwrap();
        (said.status.code(), String::from_utf8_lossy(&said.stdout).into_owned())
    };
    let (code, out) = check(&[]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("warning: detect.device_regexes: /nowhere/regexes.yaml: there is no such file"), "{out}");
    let program = scene.site.start();
    for _ in 0..2 {
        let login = scene.send(&program, &json!({ "protocol": "http", "device_id": FIREFOX }));
        assert_eq!(scene.seen(&program, &login), json!({}));
    }
    let login = scene.send(&program, &json!({ "protocol": "imap", "device_id": "\"name\" \"Mail\"" }));
    assert_eq!(scene.seen(&program, &login), json!({ "imapc.family": "Mail" }));
    assert_eq!(program.metric("trackalert_devices_total{how=\"no_regexes\"}"), Some(2.0));
    assert_eq!(program.terminate(), Some(0));
    assert_eq!(scene.site.log_text().matches("/nowhere/regexes.yaml").count(), 1, "{}", scene.site.log_text());

    let broken = scene.site.folder.path().join("broken.yaml");
    std::fs::write(&broken, regexes("One").replace("(Linux)", "(Linux")).unwrap();
    let broken = broken.to_str().unwrap();
    let (code, out) = check(&["-R", broken]);
    assert_eq!(code, Some(2), "{out}");
    assert!(out.contains("error: detect.device_regexes: ") && out.contains("os_parsers, number 1"), "{out}");
    let said = scene.site.command().args(["--device-regexes", broken]).output().unwrap();
    let err = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.code() == Some(2) && err.contains("os_parsers, number 1"), "{err}");
}
