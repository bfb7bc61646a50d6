//! What a worker runs besides reports (background functions, endpoints, lines of the console): one that hangs takes no report with it,
//! and none loses its effects to whoever asked for it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

mod support;

use std::time::{Duration, Instant};

use serde_json::json;

use support::program::{PATIENCE, Program, Site};
use support::wire::{exchange, request};

/// A program on a file of the old one with one worker, and short limits.
fn start(lua: &str, settings: &str) -> (Site, Program) {
    let site = Site::new(&format!(
        "policy.legacy_config = \"old.conf\"\ndetect.workers = 1\nhistory.commit_every = \"50ms\"\n{settings}"
    ));
    std::fs::write(site.folder.path().join("old.conf"), lua).unwrap();
    nix::unistd::mkfifo(&site.folder.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let program = start_again(&site);
    (site, program)
}

fn start_again(site: &Site) -> Program {
    let mut command = site.command();
    command.current_dir(site.folder.path());
    site.start_command(command)
}

fn report(site: &Site, login: &str) {
    let body = json!({ "login": login, "remote": "192.0.2.7" }).to_string();
    assert_eq!(exchange(&site.address, &request("POST", "/command/report", "", body.as_bytes())).unwrap().status, 200);
}

fn ended(site: &Site, program: &mut Program) -> i32 {
    let began = Instant::now();
    loop {
        if let Some(code) = program.ended() {
            return code;
        }
        assert!(began.elapsed() < PATIENCE, "it does not end:\n{}", site.log_text());
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Nobody writes into the pipe: whoever opens it hangs in C code.
const HANGS: &str = "io.open('pipe', 'r')";
const LIMITS: &str = "policy.time_limit = \"300ms\"\npolicy.cpu_limit = \"300ms\"\nhistory.search_timeout = \"300ms\"\npolicy.stuck_after = \"200ms\"\n";

#[test]
fn background_function_that_hangs_is_named_and_the_reports_of_its_worker_run_elsewhere() {
    let lua = format!(
        "setReport(function(lt) infoLog('ran', {{ login = lt.login }}) time.sleep(0.1) end)\n\
         setBackground('stuck', function() {HANGS} end)\nintervalScheduleBackgroundFunc('00:00:01', 'stuck')"
    );
    let (site, mut program) = start(&lua, &format!("{LIMITS}policy.abort_after = \"4s\"\n"));
    program.wait_until("the hang", PATIENCE, |program| {
        report(&site, "ann");
        program.metric("trackalert_workers_stuck") == Some(1.0)
    });
    report(&site, "bea");
    program.wait_until("the reports", PATIENCE, Program::idle);
    assert!(site.log_text().contains("bea"), "{}", site.log_text());
    assert_eq!(ended(&site, &mut program), 1);
    let log = site.log_text();
    assert!(log.contains("the background function `stuck` has hung a worker"), "{log}");
    assert!(log.contains("a worker hangs in what is no report"), "{log}");
}

#[test]
fn top_level_that_hangs_in_a_new_machine_is_named_and_its_worker_given_up() {
    // The first machine finds no flag; one that takes its place finds it, takes it away and hangs.
    let lua = format!("if io.open('flag') then os.remove('flag') {HANGS} end\nsetReport(function(lt) end)");
    let (site, mut program) = start(&lua, &format!("{LIMITS}policy.abort_after = \"60s\"\npolicy.vm_age = \"1s\"\n"));
    std::fs::write(site.folder.path().join("flag"), "").unwrap();
    program.wait_until("the hang", PATIENCE, |program| {
        report(&site, "ann");
        program.metric("trackalert_workers_stuck") == Some(1.0)
    });
    program.wait_until("the reports", PATIENCE, Program::idle);
    let log = site.log_text();
    assert!(log.contains("the top level of policy `old`"), "{log}");
    assert_eq!(program.ended(), None);
    // What hangs comes back, and nothing is to end for it any more.
    std::fs::write(site.folder.path().join("pipe"), "").unwrap();
    program.wait_until("its return", PATIENCE, |program| program.metric("trackalert_workers_stuck") == Some(0.0));
    assert_eq!(program.terminate(), Some(0));
}
