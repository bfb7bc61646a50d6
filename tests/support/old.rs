//! Files of the old program in tests: read for their settings, or loaded into a machine.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::PathBuf;
use std::time::Duration;

use trackalert::geoip::{self, GeoIp};
use trackalert::outbound::Tls;
use trackalert::policy::legacy::{self, OldConfig};
use trackalert::policy::{PolicySet, Settings};

use super::bench::{Bench, on_worker, settings};

pub(crate) struct File {
    _folder: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

pub(crate) fn file(source: &str) -> File {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trackalert.conf");
    std::fs::write(&path, source).unwrap();
    File { _folder: folder, path }
}

pub(crate) fn read(source: &str) -> OldConfig {
    legacy::read(&file(source).path).unwrap_or_else(|error| panic!("{source}: {error}"))
}

pub(crate) fn refused(source: &str) -> String {
    let file = file(source);
    let error = legacy::read(&file.path).unwrap_err().to_string();
    error.replace(&file.path.display().to_string(), "trackalert.conf")
}

/// A machine with the file alone.
pub(crate) fn machine(source: &str) -> Bench {
    machine_with(source, settings())
}

/// The same with other settings.
pub(crate) fn machine_with(source: &str, mut settings: Settings) -> Bench {
    let file = file(source);
    let none = file.path.parent().unwrap().join("none");
    std::fs::create_dir(&none).unwrap();
    settings.path = vec![none];
    settings.legacy_config = file.path.clone();
    let set = PolicySet::resolve(&settings).unwrap_or_else(|error| panic!("{source}: {error}"));
    let said = legacy::read(&file.path).unwrap();
    let geoip = said.settings.iter().find(|setting| setting.key == "geoip.files");
    let files = geoip.and_then(|files| files.value.as_array()).into_iter().flatten().filter_map(|file| file.as_str());
    // The program would not start without one of them; most tests have nothing to look up.
    let files = files.map(PathBuf::from).filter(|file| file.exists()).collect();
    let geoip = GeoIp::open(&geoip::Settings { files, check_every: Duration::from_secs(60) }).unwrap();
    Bench::with_geoip(&set, &settings, Tls::default(), geoip)
}

/// Runs the body of a report function, which must not fail.
pub(crate) fn handle(body: &str) {
    let source = format!("setReport(function(lt)\n{body}\nend)");
    let outcome = on_worker(async { machine(&source).at(1_700_000_000.0).await });
    assert!(outcome.is_ok(), "{body}: {outcome:?}");
}
