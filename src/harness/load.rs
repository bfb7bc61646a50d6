//! Test files become cases; what is broken becomes problems, all of them at once.
//!
//! Owns the order: a policy that does not load is one problem and none of its cases runs; a case with a mistake does not run, the others of
//! its file do.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use toml::{Spanned, Table, Value};

use super::answers::Given;
use super::case::Case;
use super::expected::Expected;
use super::file::{self, CaseText, Lines, Mistake, TestFile};
use super::find::{Origin, Suite, Tested};
use super::old::{self, Found};
use super::places::{self, Place};
use super::reports::{self, List, Reader};
use super::{Problem, Settings, when};
use crate::decode::Limits;
use crate::device::Devices;
use crate::policy::PolicySet;
use crate::report::Time;
use crate::telemetry::Metrics;

/// When a case starts that does not say so: a day like any other, the same one for ever.
const START: &str = "2026-01-01T00:00:00Z";

/// What there is to run.
#[derive(Debug, Default)]
pub struct Loaded {
    /// In the order of the files.
    pub cases: Vec<Arc<Case>>,
    /// What cannot be run.
    pub problems: Vec<Problem>,
    /// Cases that the filter left out.
    pub left_out: usize,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Reads every test file of the suite and the policies that they are about. With a filter only cases whose `policy: name` contains it,
/// in whatever case, are taken. An error: no case can be run.
pub fn load(suite: &Suite, settings: &Settings, filter: Option<&str>) -> Result<Loaded, String> {
    let mut loaded = Loaded::default();
    let wanted = filter.map(str::to_lowercase);
    let mut cases = Vec::new();
    for tested in suite.policies.iter().filter(|tested| !tested.files.is_empty()) {
        let set = match &tested.origin {
            Origin::Folder(folder) => PolicySet::load_one(folder).map(|set| (set, Found::default())),
            Origin::Old(file) => old::load(file, settings),
        };
        let set = match set {
            Ok(set) => Some(set),
            Err(error) => {
                let problems = error.problems.iter().map(|text| of_policy(tested, text));
                loaded.problems.extend(problems);
                None
            }
        };
        for file in &tested.files {
            let mut mistakes = Vec::new();
            let read = read_file(tested, file, settings.limits, &mut mistakes);
            loaded.problems.extend(mistakes.into_iter().map(|Mistake { line, text }| Problem {
                policy: tested.policy.clone(),
                file: file.clone(),
                line,
                text,
            }));
            let Some((set, found)) = &set else { continue };
            for case in read {
                let called = format!("{}: {}", case.policy, case.name).to_lowercase();
                if wanted.as_ref().is_some_and(|wanted| !called.contains(wanted.as_str())) {
                    loaded.left_out += 1;
                } else {
                    cases.push(Case { set: set.clone(), found: found.clone(), ..case });
                }
            }
        }
    }
    read_devices(&mut cases, settings, &mut loaded.notes)?;
    loaded.cases = cases.into_iter().map(Arc::new).collect();
    Ok(loaded)
}

/// Gives the reader of devices to the cases that need it. Its regexes are read for them alone: that takes a tenth of a second.
fn read_devices(cases: &mut [Case], settings: &Settings, notes: &mut Vec<String>) -> Result<(), String> {
    if !cases.iter().any(|case| case.unread_devices().next().is_some()) {
        return Ok(());
    }
    let devices =
        Devices::open(settings.devices.clone(), Arc::new(Metrics::new())).map_err(|error| error.to_string())?;
    if !devices.reads_user_agents()
        && cases.iter().flat_map(Case::unread_devices).any(|report| report.protocol == "http")
    {
        notes.push(
            "a case has a device_id of protocol http, and there are no regexes to read it by (detect.device_regexes): its report has no \
             device_attrs. Install the package uap-core, name the file (-R FILE), or give device_attrs in the case"
                .to_owned(),
        );
    }
    let devices = Arc::new(devices);
    for case in cases {
        case.devices = Some(Arc::clone(&devices));
    }
    Ok(())
}

/// A problem of a policy, which begins with its place.
fn of_policy(tested: &Tested, text: &str) -> Problem {
    let file = tested.origin.file();
    let rest = text.strip_prefix(&format!("{}:", file.display())).unwrap_or(text);
    let (line, said) = match rest.split_once(':').map(|(line, said)| (line.parse().ok(), said)) {
        Some((Some(line), said)) => (Some(line), said),
        _ => (None, rest),
    };
    Problem { policy: tested.policy.clone(), file, line, text: said.trim_start().to_owned() }
}

fn read_file(tested: &Tested, path: &Path, limits: Limits, mistakes: &mut Vec<Mistake>) -> Vec<Case> {
    let text = match file::read(path) {
        Ok(text) => text,
        Err(text) => {
            mistakes.push(Mistake { line: None, text });
            return Vec::new();
        }
    };
    let parsed = match file::parse(&text) {
        Ok(parsed) => parsed,
        Err(mistake) => {
            mistakes.push(mistake);
            return Vec::new();
        }
    };
    if parsed.cases.is_empty() {
        mistakes.push(Mistake { line: None, text: "has no [[case]]".to_owned() });
    }
    let reading = Reading { tested, path, limits, lines: Lines(&text), file: &parsed };
    let mut names = HashSet::new();
    let mut cases = Vec::new();
    for case in &parsed.cases {
        let mut wrong = Vec::new();
        if !names.insert(case.name.get_ref().as_str()) {
            wrong.push(reading.lines.mistake(case.name.span(), "name: another case of this file has it"));
        }
        let read = reading.case(case, &mut wrong);
        if wrong.is_empty() {
            cases.push(read);
        }
        mistakes.extend(wrong);
    }
    cases
}

struct Reading<'a> {
    tested: &'a Tested,
    path: &'a Path,
    limits: Limits,
    lines: Lines<'a>,
    file: &'a TestFile,
}

impl Reading<'_> {
    fn case(&self, text: &CaseText, wrong: &mut Vec<Mistake>) -> Case {
        if text.reports.is_empty() {
            wrong.push(self.lines.mistake(text.name.span(), "reports: a case needs at least one"));
        }
        let start = self.start(text.start.as_ref().or(self.file.start.as_ref()), wrong);
        let mut defaults = Table::new();
        for given in [&self.file.defaults, &text.defaults].into_iter().flatten() {
            if let Err(said) = reports::known(given.get_ref(), false) {
                wrong.push(self.lines.mistake(given.span(), format!("defaults: {said}")));
                continue;
            }
            defaults.extend(given.get_ref().clone());
        }
        let reader = Reader { start, defaults, limits: self.limits, lines: &self.lines };
        let past = List { name: "history", must_say_when: true };
        let now = List { name: "reports", must_say_when: false };
        Case {
            policy: self.tested.policy.clone(),
            file: self.path.to_owned(),
            line: self.lines.of(text.name.span()),
            name: text.name.get_ref().clone(),
            set: PolicySet::default(),
            found: Found::default(),
            devices: None,
            start,
            http: self.answers(text, wrong),
            places: self.places(text, wrong),
            history: reader.read(&past, &text.history, wrong),
            state: text.state.iter().map(|(key, value)| (key.clone(), reports::json(value, None))).collect(),
            reports: reader.read(&now, &text.reports, wrong),
            expected: Expected::of(text, matches!(self.tested.origin, Origin::Old(_)), start, &self.lines, wrong),
        }
    }

    fn start(&self, given: Option<&Spanned<Value>>, wrong: &mut Vec<Mistake>) -> Time {
        let default = START.parse::<jiff::Timestamp>().map(|time| Time::from_micros(time.as_microsecond()));
        let default = default.unwrap_or_default();
        let Some(given) = given else { return default };
        let relative = given.get_ref().as_str().is_some_and(|text| text.starts_with(['+', '-']));
        let read = if relative {
            Err("a time or a day is needed, such as 2026-03-01T12:00:00Z".to_owned())
        } else {
            when::at(given.get_ref(), default)
        };
        read.unwrap_or_else(|said| {
            wrong.push(self.lines.mistake(given.span(), format!("start: {said}")));
            default
        })
    }

    /// The case's, then the file's: of two that fit a request the earlier one is given.
    fn answers(&self, text: &CaseText, wrong: &mut Vec<Mistake>) -> Vec<Given> {
        let mut answers = Vec::new();
        for answer in text.http.iter().chain(&self.file.http) {
            match Given::of(answer.get_ref()) {
                Ok(given) => answers.push(given),
                Err(said) => wrong.push(self.lines.mistake(answer.span(), format!("http: {said}"))),
            }
        }
        answers
    }

    /// The file's, then the case's, which count where both speak of a network.
    fn places(&self, text: &CaseText, wrong: &mut Vec<Mistake>) -> Vec<(ipnet::IpNet, Place)> {
        let mut found = Vec::new();
        for (key, place) in self.file.geo.iter().chain(&text.geo) {
            let read = places::network(key).and_then(|network| place.get_ref().check().map(|()| network));
            match read {
                Ok(network) => found.push((network, place.get_ref().clone())),
                Err(said) => wrong.push(self.lines.mistake(place.span(), said)),
            }
        }
        found
    }
}
