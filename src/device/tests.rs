//! The file of regexes and the cache: what is read once, what is exchanged while others read, what stays.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::report::{Geo, ReportId, Time};

fn report(protocol: &str, device_id: &str) -> LoginReport {
    LoginReport {
        id: ReportId::default(),
        t: Time::default(),
        login: "ann".to_owned(),
        remote: "192.0.2.1".parse().unwrap(),
        pwhash: String::new(),
        success: true,
        policy_reject: false,
        fail_type: String::new(),
        session_id: String::new(),
        protocol: protocol.to_owned(),
        tls: true,
        device_id: device_id.to_owned(),
        device_attrs: Vec::new(),
        attrs: Vec::new(),
        attrs_mv: Vec::new(),
        parsed_device: Default::default(),
        geo: Geo::default(),
    }
}

struct Bench {
    _folder: tempfile::TempDir,
    file: PathBuf,
    metrics: Arc<Metrics>,
    devices: Arc<Devices>,
}

impl Bench {
    /// With this file; `None`: there is none.
    fn new(text: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("regexes.yaml");
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        let metrics = Arc::new(Metrics::new());
        let settings = Settings { regexes: file.clone(), max: 64, cache: 100 };
        let devices = Arc::new(Devices::open(settings, Arc::clone(&metrics)).unwrap());
        Self { _folder: folder, file, metrics, devices }
    }

    fn read(&self, protocol: &str, device_id: &str) -> String {
        let report = report(protocol, device_id);
        self.devices.read(&report);
        report.device().iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    }

    fn count(&self, how: &str) -> u64 {
        self.metrics.devices.with_label_values(&[how]).get()
    }
}

const FIREFOX: &str = "browser.family=Firefox browser.major=68 browser.minor=0";

#[test]
fn each_protocol_is_read_in_its_own_way_and_others_not_at_all() {
    let bench = Bench::new(Some(http::SMALL));
    assert_eq!(bench.read("http", "Firefox/68.0"), FIREFOX);
    assert_eq!(bench.read("imap", "\"name\" \"Mail\""), "imapc.family=Mail");
    assert_eq!(bench.read("mobileapi", "Mail/2"), "app.major=2 app.name=Mail");
    assert_eq!(bench.count("parsed"), 3);
    for (protocol, text) in [("smtp", "Firefox/68.0"), ("HTTP", "Firefox/68.0"), ("", "Firefox/68.0"), ("http", "")] {
        assert_eq!(bench.read(protocol, text), "", "{protocol}");
    }
    assert_eq!(bench.read("http", "curl"), "");
    assert_eq!((bench.count("parsed"), bench.count("unknown"), bench.count("cached")), (3, 1, 0));
    // The same text means another thing in another protocol.
    assert_eq!(bench.read("mobileapi", "Firefox/68.0"), "app.major=68 app.minor=0 app.name=Firefox");
    assert_eq!(bench.read("http", "Firefox/68.0"), FIREFOX);
    assert_eq!(bench.read("http", "curl"), "");
    assert_eq!((bench.count("parsed"), bench.count("cached")), (4, 2));
}

#[test]
fn what_the_sender_says_stays_and_the_id_knows_nothing_of_what_was_read() {
    let bench = Bench::new(Some(http::SMALL));
    let mut said = report("http", "Firefox/68.0");
    said.device_attrs = vec![("browser.family".to_owned(), "Lynx".to_owned())];
    bench.devices.read(&said);
    assert_eq!(said.device(), said.device_attrs);
    let mut unsaid = report("http", "Firefox/68.0");
    let stamped = unsaid.stamp();
    bench.devices.read(&unsaid);
    assert_eq!(unsaid.device().len(), 3);
    assert_eq!((unsaid.stamp(), unsaid.device_attrs.len()), (stamped, 0));
    // Once: a report that runs again is not read again.
    bench.devices.read(&unsaid);
    assert_eq!((bench.count("parsed"), bench.count("cached")), (1, 0));
}

#[test]
fn of_a_long_text_the_beginning_is_read() {
    let bench = Bench::new(Some(http::SMALL));
    let long = format!("Firefox/68.0 {} Android 10", "é".repeat(100));
    assert_eq!(bench.read("http", &long), FIREFOX);
    assert_eq!(bench.read("http", &long), FIREFOX);
    assert_eq!((bench.count("too_long"), bench.count("parsed"), bench.count("cached")), (2, 0, 0));
}

#[test]
fn without_a_file_the_rest_works_and_one_that_comes_later_is_taken() {
    let bench = Bench::new(None);
    let absent = Devices::check(&bench.file).unwrap_err();
    assert!(absent.is_absent(), "{absent}");
    let absent = absent.to_string();
    assert!(absent.starts_with("detect.device_regexes: ") && absent.contains("there is no such file"), "{absent}");
    assert_eq!(bench.devices.reload_changed(), []);
    assert_eq!(bench.read("http", "Firefox/68.0"), "");
    assert_eq!(bench.read("imap", "\"name\" \"Mail\""), "imapc.family=Mail");
    assert_eq!((bench.count("no_regexes"), bench.count("parsed")), (1, 1));
    assert_eq!(bench.devices.reload(), [], "where there was none and is none, nothing became of it");
    std::fs::write(&bench.file, http::SMALL).unwrap();
    let taken = bench.devices.reload_changed();
    assert_eq!(taken, [Reread { file: bench.file.clone(), outcome: Ok("5 regexes".to_owned()) }]);
    assert_eq!(bench.read("http", "Firefox/68.0"), FIREFOX);
    assert_eq!(Devices::check(&bench.file).unwrap(), format!("5 regexes in {}", bench.file.display()));
}

#[test]
fn broken_successor_leaves_the_regexes_in_use_and_a_whole_one_forgets_what_was_remembered() {
    let bench = Bench::new(Some(http::SMALL));
    assert_eq!(bench.read("http", "Firefox/68.0"), FIREFOX);
    assert_eq!(bench.devices.reload_changed(), []);
    std::fs::write(&bench.file, &http::SMALL[..40]).unwrap();
    let refused = bench.devices.reload_changed();
    let error = refused[0].outcome.clone().unwrap_err();
    assert!(error.starts_with("detect.device_regexes: ") && error.contains("regexes.yaml: "), "{error}");
    assert_eq!(bench.devices.reload_changed(), [], "told once");
    assert!(bench.devices.reload()[0].outcome.is_err(), "and to whoever asks");
    assert_eq!(bench.read("http", "Firefox/68.1"), "browser.family=Firefox browser.major=68 browser.minor=1");
    std::fs::remove_file(&bench.file).unwrap();
    assert!(bench.devices.reload_changed()[0].outcome.clone().unwrap_err().contains("no such file"));
    assert_eq!(bench.read("http", "Firefox/68.0"), FIREFOX);

    std::fs::write(&bench.file, http::SMALL.replace("'(Firefox)/", "'(Fire)fox/")).unwrap();
    assert!(bench.devices.reload_changed()[0].outcome.is_ok());
    assert_eq!(bench.read("http", "Firefox/68.0"), "browser.family=Fire browser.major=68 browser.minor=0");
}

#[test]
fn readers_see_one_file_or_the_other_while_it_is_exchanged() {
    let bench = Bench::new(Some(http::SMALL));
    let other = http::SMALL.replace("'(Firefox)/", "'(Fire)fox/");
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                threads.spawn(|| {
                    let mut reads = 0_u64;
                    while !stop.load(Ordering::Relaxed) || reads == 0 {
                        let family = bench.read("http", "Firefox/68.0");
                        assert!(family == FIREFOX || family.starts_with("browser.family=Fire "), "{family}");
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        for round in 0..50 {
            std::fs::write(&bench.file, "user_agent_parsers: [").unwrap();
            assert!(bench.devices.reload()[0].outcome.is_err());
            std::fs::write(&bench.file, if round % 2 == 0 { &other } else { http::SMALL }).unwrap();
            assert!(bench.devices.reload()[0].outcome.is_ok());
            let family = bench.read("http", "Firefox/68.0");
            assert_eq!(family.starts_with("browser.family=Fire "), round % 2 == 0, "what was remembered is forgotten");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(readers.into_iter().all(|reader| reader.join().unwrap() > 0));
    });
}

#[test]
fn file_that_is_none_is_refused_by_name() {
    let bench = Bench::new(None);
    std::fs::create_dir(&bench.file).unwrap();
    let said = || Devices::check(&bench.file).unwrap_err().to_string();
    assert!(said().contains("regexes.yaml: is no file"), "{}", said());
    std::fs::remove_dir(&bench.file).unwrap();
    let huge = std::fs::File::create(&bench.file).unwrap();
    huge.set_len(100 << 20).unwrap();
    assert!(said().contains("bytes; 8388608 are the most"), "{}", said());
    std::fs::write(&bench.file, [b'a', 0xff]).unwrap();
    assert!(said().contains("is not UTF-8"), "{}", said());
    let settings = Settings { regexes: bench.file.clone(), max: 64, cache: 100 };
    let named = Devices::open(settings, Arc::new(Metrics::new())).unwrap_err();
    assert!(!named.is_absent() && named.to_string().contains("is not UTF-8"), "{named}");
}
