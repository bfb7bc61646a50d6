//! `trackalert test`: runs the tests of policies and shows what is different.
//!
//! Hands [`crate::harness`] the settings and the paths. Owns the arguments, the order of the output and the exit code: 0 all passed, 1 some
//! failed, 2 something is broken (a file, a policy, the usage).

mod junit;
mod text;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Common, Failure, block_on, output};
use crate::config::Config;
use crate::harness::{self, Case, Loaded, Problem, Settings, Suite, Verdict};
use crate::policy::PolicySet;

const EXAMPLES: &str = "\
Examples:
  trackalert test                                     every policy of policy.path, or of ./policies
  trackalert test policies/new_origin                 one policy
  trackalert test policies/new_origin/tests/travel.toml --filter \"twice\"
  trackalert test /etc/trackalert/trackalert.conf     a configuration of the old program, by tests/*.toml beside it
  trackalert test --watch                             again at each change of a file
  trackalert test --junit report.xml                  for a build server

docs/policy-tests.md tells how to write one. Exit codes: 0 all passed, 1 some failed, 2 a test or a policy is broken.";

const JOBS_PER_CORE: usize = 4;

/// How long a case that was cut off is waited for: a second.
const REMOVE_TRIES: u32 = 100;
const REMOVE_AGAIN: Duration = Duration::from_millis(10);

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A folder of policies, one policy's folder, a test file, or a configuration of the old program (.conf, .lua); without any the
    /// folders of policy.path, else ./policies, and policy.legacy_config
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Only cases with this text in their policy or name
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Also write a report in JUnit's XML into this file
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Run again whenever a file of the policies changes; Ctrl-C ends it
    #[arg(long)]
    watch: bool,
    /// With --watch: how often the files are looked at
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = humantime::parse_duration, requires = "watch")]
    interval: Duration,
    /// Cases at once; 0: four for each core
    #[arg(long, value_name = "N", default_value_t = 0)]
    jobs: usize,
    /// Show what the policies log for cases that pass, too
    #[arg(long)]
    log: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people
    Text,
    /// An object with `ok`, counts, `cases` with their `differences`, and `broken`
    Json,
}

/// One run of all cases.
#[derive(Debug, Default)]
struct Round {
    cases: Vec<Arc<Case>>,
    verdicts: Vec<Verdict>,
    problems: Vec<Problem>,
    left_out: usize,
    took: Duration,
}

impl Round {
    fn failed(&self) -> usize {
        self.verdicts.iter().filter(|verdict| !verdict.passed()).count()
    }

    /// What the exit code says. The rest is said already.
    fn outcome(&self) -> Result<(), Failure> {
        match self.problems.len() {
            0 if self.failed() > 0 => Err(Failure::failed("")),
            0 => Ok(()),
            1 => Err(Failure::usage("a file is broken; the first lines say where")),
            many => Err(Failure::usage(format!("there are {many} mistakes in the files; the first lines say where"))),
        }
    }
}

/// What stays the same from round to round.
struct Session<'a> {
    args: &'a Args,
    paths: Vec<PathBuf>,
    settings: Arc<Settings>,
    root: &'a Path,
}

pub(super) fn run(common: &Common, args: &Args) -> Result<(), Failure> {
    let config = common.load()?;
    let paths = paths(args, &config)?;
    let root = tempfile::Builder::new().prefix("trackalert-test-").tempdir().map_err(|error| {
        let folder = std::env::temp_dir();
        Failure::failed(format!("{}: {error}; name a folder that can be written to in TMPDIR", folder.display()))
    })?;
    let session = Session { args, paths, settings: Arc::new(settings(&config, args.jobs)), root: root.path() };
    let outcome = block_on(async {
        if args.watch {
            return watch::run(&session).await;
        }
        tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => Err(Failure::failed("interrupted")),
            round = session.round() => round?.outcome(),
        }
    });
    remove(&root.keep());
    outcome
}

/// Removes the folder of the run. A case that was cut off may still make files in it, or the folder itself again.
fn remove(folder: &Path) {
    for _ in 0..REMOVE_TRIES {
        let _ = std::fs::remove_dir_all(folder);
        std::thread::park_timeout(REMOVE_AGAIN);
        if !folder.exists() {
            return;
        }
    }
}

/// Where to look: what was typed, else where the program takes its policies from.
fn paths(args: &Args, config: &Config) -> Result<Vec<PathBuf>, Failure> {
    if !args.paths.is_empty() {
        return Ok(args.paths.clone());
    }
    let mut paths = PolicySet::folders(&config.policy.path).unwrap_or_default();
    let old = &config.policy.legacy_config;
    paths.extend((!old.as_os_str().is_empty()).then(|| old.clone()));
    if paths.is_empty() {
        return Err(Failure::usage(
            "there is no ./policies here, and policy.path names no folder; name one: trackalert test PATH. The tests of the shipped \
             policies are beside them, in policies/ of the repository",
        ));
    }
    Ok(paths)
}

fn settings(config: &Config, jobs: usize) -> Settings {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Settings {
        policy: config.policy.clone(),
        custom_webhooks: config.notify.custom_webhooks.iter().map(|hook| hook.name.clone()).collect(),
        devices: config.detect.devices(),
        limits: config.receive.limits(),
        history: config.history.clone(),
        state: config.state.clone(),
        // A case waits for the disk most of its time.
        jobs: if jobs == 0 { JOBS_PER_CORE * cores } else { jobs },
    }
}

impl Session<'_> {
    /// Runs all there is to run now, and prints it.
    async fn round(&self) -> Result<Round, Failure> {
        let began = Instant::now();
        let (paths, configured) = (&self.paths, &self.settings.policy.legacy_config);
        let suite = Suite::find(paths, configured, !self.args.paths.is_empty()).map_err(Failure::usage)?;
        let loaded = harness::load(&suite, &self.settings, self.args.filter.as_deref()).map_err(Failure::usage)?;
        let Loaded { cases, problems, left_out, notes } = loaded;
        let mut round = Round { cases, problems, left_out, ..Round::default() };
        if let Some(filter) = &self.args.filter
            && round.cases.is_empty()
            && round.problems.is_empty()
        {
            return Err(Failure::usage(format!(
                "--filter {filter}: none of {left_out} cases has it in its policy or name"
            )));
        }
        let text = self.args.format == Format::Text;
        let look = text::Look { colour: text::colour(), log: self.args.log };
        for note in suite.notes.iter().chain(&notes) {
            output::say(output::clean(note));
        }
        if text {
            for problem in &round.problems {
                output::print(look.problem(problem))?;
            }
        }
        let failed = |error: std::io::Error| Failure::failed(format!("cannot start threads: {error}"));
        let mut verdicts =
            harness::start(round.cases.clone().into(), Arc::clone(&self.settings), self.root).map_err(failed)?;
        while let Some(verdict) = verdicts.recv().await {
            if text {
                output::print(look.verdict(&round.cases[verdict.number], &verdict))?;
            }
            round.verdicts.push(verdict);
        }
        round.took = began.elapsed();
        if text {
            output::print(look.summary(&round, &suite))?;
        } else {
            output::line(format_args!("{:#}", as_json(&round)))?;
        }
        if let Some(file) = &self.args.junit {
            let wrong = |error| Failure::failed(format!("--junit: {}: {error}", file.display()));
            junit::write(&round).and_then(|xml| std::fs::write(file, xml)).map_err(wrong)?;
        }
        Ok(round)
    }
}

fn as_json(round: &Round) -> serde_json::Value {
    let cases = round.verdicts.iter().map(|verdict| {
        let case = &round.cases[verdict.number];
        let differences = verdict.differences.iter().map(|one| {
            let fields = one
                .fields
                .iter()
                .map(|field| json!({ "name": field.name, "expected": field.expected, "got": field.got }));
            let fields: Vec<_> = fields.collect();
            json!({ "kind": one.sort.name(), "title": one.title, "text": one.text, "fields": fields })
        });
        json!({
            "policy": case.policy, "name": case.name, "file": case.file, "line": case.line,
            "outcome": if verdict.passed() { "passed" } else { "failed" }, "seconds": verdict.took.as_secs_f64(),
            "reports": case.reports(), "differences": differences.collect::<Vec<_>>(), "log": verdict.log,
        })
    });
    let broken = round
        .problems
        .iter()
        .map(|one| json!({ "policy": one.policy, "file": one.file, "line": one.line, "text": one.text }));
    let (failed, all) = (round.failed(), round.verdicts.len());
    json!({
        "ok": failed == 0 && round.problems.is_empty(), "passed": all - failed, "failed": failed, "left_out": round.left_out,
        "seconds": round.took.as_secs_f64(), "cases": cases.collect::<Vec<_>>(), "broken": broken.collect::<Vec<_>>(),
    })
}
