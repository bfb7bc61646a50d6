//! One case, from its reports to what is different.
//!
//! Owns the running: one report after another, each handled whole before the next, in report time. Ends at the first failure of the policy:
//! what follows it would say nothing but of requests without an answer, which are often its cause.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::Value;

use super::alerts::{Alerts, Raised};
use super::answers::Given;
use super::calls::{Calls, Made, Run, Webhooks};
use super::compare::{self, Difference};
use super::expected::Expected;
use super::old::Found;
use super::places::Place;
use super::reports::Placed;
use super::said::Said;
use super::stage::Stage;
use super::{Settings, Verdict, when};
use crate::device::Devices;
use crate::policy::{Failure, PolicySet, Vm};
use crate::report::{LoginReport, Time};

/// A case that is ready to run.
#[derive(Debug)]
pub struct Case {
    /// Whose test it is.
    pub policy: String,
    /// The test file.
    pub file: PathBuf,
    /// The line of its name.
    pub line: usize,
    /// Its name.
    pub name: String,
    pub(super) set: PolicySet,
    pub(super) found: Found,
    /// `None`: no case has a device to be read.
    pub(super) devices: Option<Arc<Devices>>,
    pub(super) start: Time,
    pub(super) http: Vec<Given>,
    pub(super) places: Vec<(IpNet, Place)>,
    pub(super) history: Vec<Placed>,
    pub(super) state: Vec<(String, Value)>,
    pub(super) reports: Vec<Placed>,
    pub(super) expected: Expected,
}

impl Case {
    /// The number of its reports.
    pub fn reports(&self) -> usize {
        self.reports.len()
    }

    /// The reports whose `device_id` the program would read.
    pub(super) fn unread_devices(&self) -> impl Iterator<Item = &LoginReport> {
        let all = self.history.iter().chain(&self.reports).map(|placed| &placed.report);
        all.filter(|report| !report.device_id.is_empty() && report.device_attrs.is_empty())
    }

    /// A report of the case, for people: `report 13 (+1day, policies/x/tests/y.toml:17)`.
    fn named(&self, number: usize) -> String {
        let Some(placed) = self.reports.get(number - 1) else { return format!("report {number}") };
        let at = when::from_start(placed.report.t, self.start);
        format!("report {number} ({at}, {}:{})", self.file.display(), placed.line)
    }
}

/// Runs a case on this thread, which must be the watchdog's already. `root` is where its folder is made.
pub(super) fn run(number: usize, case: &Case, settings: &Settings, root: &Path) -> Verdict {
    let began = Instant::now();
    let said = Said::default();
    let differences = said.listen(|| on_runtime(case, settings, root, &said));
    let differences = differences.unwrap_or_else(|text| vec![Difference::failure("the case could not be run", text)]);
    Verdict { number, took: began.elapsed(), differences, log: said.take() }
}

fn on_runtime(case: &Case, settings: &Settings, root: &Path, said: &Said) -> Result<Vec<Difference>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start threads: {error}"))?;
    runtime.block_on(async {
        let stage = Stage::set(case, settings, root)?;
        let differences = play(case, settings, &stage, said).await;
        stage.strike().await;
        differences
    })
}

async fn play(case: &Case, settings: &Settings, stage: &Stage, said: &Said) -> Result<Vec<Difference>, String> {
    let vm = Vm::new(&case.set, &stage.services, &settings.policy).map_err(|error| error.to_string())?;
    for past in &case.history {
        stage.history.put(stage.enriched(&past.report));
    }
    if let Some(first) = case.reports.first() {
        stage.give(&first.report, &case.state).await?;
    }
    let (mut raised, mut run) = (Vec::new(), Vec::new());
    let unanswered = || stage.web.unanswered(|number| case.named(number));
    for (index, placed) in case.reports.iter().enumerate() {
        let number = index + 1;
        said.at(number);
        stage.web.at(number);
        let report = stage.enriched(&placed.report);
        let mut effects = match vm.run(0, &report).await {
            Ok(effects) => effects,
            Err(failure) => return Ok([vec![failed(case, number, &failure)], unanswered()].concat()),
        };
        let alerts = std::mem::take(&mut effects.alerts);
        raised.extend(alerts.into_iter().map(|alert| Raised { alert, t: report.t, by: case.named(number) }));
        let hooks = std::mem::take(&mut effects.hooks);
        run.extend(hooks.into_iter().map(|hook| Run { hook, by: case.named(number) }));
        stage.settle(report, effects).await?;
    }
    let mut differences = unanswered();
    differences.extend(compare::listed(&Alerts { start: case.start }, &case.expected.alerts, &raised));
    if let Some(calls) = &case.expected.calls {
        let made = stage.web.made().into_iter().map(|(number, request)| Made { request, by: case.named(number) });
        differences.extend(compare::listed(&Calls, calls, &made.collect::<Vec<_>>()));
    }
    if let Some(webhooks) = &case.expected.webhooks {
        differences.extend(compare::listed(&Webhooks, webhooks, &run));
    }
    differences.extend(compare::searches(case.expected.searches, stage.history.searches()));
    if let Some(last) = case.reports.last() {
        differences.extend(state_after(&case.expected, stage, &last.report).await?);
    }
    Ok(differences)
}

/// What stops a policy is the policy's failure, and the case's.
fn failed(case: &Case, number: usize, failure: &Failure) -> Difference {
    let text = case.set.located(0, &failure.to_string());
    Difference::failure(&format!("the policy failed on {}", case.named(number)), text)
}

/// The state as the policy would see it if the last report came now.
async fn state_after(expected: &Expected, stage: &Stage, last: &LoginReport) -> Result<Vec<Difference>, String> {
    let session = stage.session(last);
    let mut differences = Vec::new();
    let get = async |key: &str| {
        let json = session.get(key).await.map_err(|error| format!("state_after: {key}: {error}"))?;
        json.map(|json| serde_json::from_slice::<Value>(&json).map_err(|error| error.to_string())).transpose()
    };
    for (key, value) in &expected.state {
        differences.extend(compare::value(key, Some(value), get(key).await?.as_ref()));
    }
    for key in &expected.absent {
        differences.extend(compare::value(key, None, get(key).await?.as_ref()));
    }
    for count in &expected.counts {
        let got = session.count(&count.key, count.within).await;
        let got = got.map_err(|error| format!("counts_after: {}: {error}", count.key))?;
        differences.extend(compare::count(&count.key, count.within, count.is, got));
    }
    Ok(differences)
}

/// The verdict on a case whose thread does not come back.
pub(super) fn stuck(number: usize, limit: Duration, took: Duration) -> Verdict {
    let text = format!(
        "the policy is in C code that does not come back (a pattern on a long text, for example); given up {} after its limit \
         (policy.stuck_after)",
        humantime::format_duration(limit)
    );
    Verdict { number, took, differences: vec![Difference::failure("the policy hangs", text)], log: Vec::new() }
}

/// The verdict on a case that this program could not run.
pub(super) fn fault(number: usize, text: String) -> Verdict {
    let differences = vec![Difference::failure("the case could not be run", text)];
    Verdict { number, took: Duration::ZERO, differences, log: Vec::new() }
}

/// What a thread needs to run cases.
#[derive(Clone)]
pub(super) struct Work {
    pub(super) cases: Arc<[Arc<Case>]>,
    pub(super) settings: Arc<Settings>,
    pub(super) root: PathBuf,
}
