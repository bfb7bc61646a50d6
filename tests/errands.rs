//! What a worker runs besides reports (background functions, endpoints, lines of the console): one that hangs takes no report with it,
//! and none loses its effects to whoever asked for it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

mod support;

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;

use support::inbox::Inbox;
use support::program::{PATIENCE, Program, Site, free_address};
use support::stall::Clock;
use support::wire::{exchange, request};

/// A program on a file of the old one with one worker, and short limits.
fn start(lua: &str, settings: &str) -> (Site, Program) {
    start_with(1, lua, settings)
}

fn start_with(workers: usize, lua: &str, settings: &str) -> (Site, Program) {
    let site = Site::new(&format!(
        "policy.legacy_config = \"old.conf\"\ndetect.workers = {workers}\nhistory.commit_every = \"50ms\"\n{settings}"
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
    // Until then the reports must have run, on a slow machine as well.
    const ABORT_AFTER: Duration = Duration::from_secs(20);
    let lua = format!(
        "setReport(function(lt) infoLog('ran', {{ login = lt.login }}) time.sleep(0.1) end)\n\
         setBackground('stuck', function() if os.remove('flag') then {HANGS} end end)\nintervalScheduleBackgroundFunc('00:00:01', 'stuck')"
    );
    let (site, mut program) = start(&lua, &format!("{LIMITS}policy.abort_after = \"{}s\"\n", ABORT_AFTER.as_secs()));
    std::fs::write(site.folder.path().join("flag"), "").unwrap();
    program.wait_until("the hang", PATIENCE, |program| {
        report(&site, "ann");
        program.metric("trackalert_workers_stuck") == Some(1.0)
    });
    let since = Clock::start();
    report(&site, "bea");
    program.wait_until("the reports", PATIENCE, Program::idle);
    assert!(site.log_text().contains("bea"), "{}", site.log_text());
    assert_eq!(ended(&site, &mut program), 1);
    // Nobody waits for the answer of what hangs, the drain neither, which has 25 s.
    assert!(since.elapsed() < ABORT_AFTER + Duration::from_secs(15), "{:?}", since.elapsed());
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

fn channel(receiver: impl std::fmt::Display) -> String {
    format!("[[notify.channels]]\nkind = \"webhook\"\nurl = \"http://{receiver}/\"\n")
}

#[test]
fn endpoint_whose_client_hangs_up_has_its_effects_all_the_same() {
    let (inbox, receiver) = Inbox::start();
    let lua = "setCustomEndpoint('late', function()
        infoLog('it begins', {})
        time.sleep(0.5)
        alert { kind = 'late', key = 'k', title = 'nobody waits for it' }
        return true
    end)";
    let (site, program) = start(lua, &channel(receiver));
    let mut client = std::net::TcpStream::connect(&site.address).unwrap();
    client.write_all(&request("POST", "/command/late", "", b"{}")).unwrap();
    program.wait_until("its begin", PATIENCE, |_| site.log_text().contains("it begins"));
    drop(client);
    program.wait_until("the alert", PATIENCE, |_| inbox.of_kind("late").len() == 1);
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn background_function_that_runs_when_the_program_ends_is_finished() {
    let (inbox, receiver) = Inbox::start();
    let lua = "setBackground('slow', function()
        if io.open('begun') then return end
        io.open('begun', 'w'):close()
        time.sleep(1.5)
        alert { kind = 'slow', key = 'k', title = 'after the signal' }
    end)
    intervalScheduleBackgroundFunc('00:00:01', 'slow')";
    let (site, program) = start(lua, &channel(receiver));
    program.wait_until("its begin", PATIENCE, |_| site.folder.path().join("begun").exists());
    assert_eq!(program.terminate(), Some(0));
    // It is safe in the alerts queue, whether it went out before the end or not.
    let program = start_again(&site);
    program.wait_until("the alert", PATIENCE, |_| inbox.of_kind("slow").len() == 1);
}

#[test]
fn endpoint_that_fails_is_told_to_operators_once_in_a_while_and_counted_each_time() {
    let lua = "setCustomEndpoint('wrong', function() error('so') end)
    setCustomEndpoint('endless', function() while true do end end)
    setCustomEndpoint('asleep', function() time.sleep(60) end)
    setCustomEndpoint('greedy', function()
        local kept = {}
        while true do kept[#kept + 1] = string.rep('x', 100000) .. #kept end
    end)
    setBackground('beat', function() if os.remove('flag') then error('no beat') end end)
    intervalScheduleBackgroundFunc('00:00:01', 'beat')";
    let (site, program) = start(
        lua,
        "policy.time_limit = \"2s\"\npolicy.cpu_limit = \"300ms\"\nhistory.search_timeout = \"1s\"\npolicy.memory = \"32 MiB\"\n",
    );
    let failures = |why: &str| {
        program.metric(&format!("trackalert_errand_failures_total{{why=\"{why}\"}}")).unwrap_or_else(|| panic!("{why}"))
    };
    let cases = [("wrong", "error", "so"), ("endless", "cpu", "cpu_limit"), ("asleep", "time", "time_limit")];
    for (name, why, said) in cases.into_iter().chain([("greedy", "memory", "policy.memory")]) {
        for count in 1..=3 {
            let answer = exchange(&site.address, &request("POST", &format!("/command/{name}"), "", b"{}")).unwrap();
            assert_eq!((answer.status, &answer.json()["success"]), (500, &json!(false)), "{name}: {answer:?}");
            assert_eq!(failures(why), f64::from(count), "{name}");
        }
        let log = site.log_text();
        let told: Vec<&str> =
            log.lines().filter(|line| line.contains(&format!("the custom endpoint `{name}`"))).collect();
        assert_eq!(told.len(), 1, "not a line for each request: {told:?}");
        assert!(told[0].contains("a custom endpoint failed") && told[0].contains(said), "{told:?}");
    }
    std::fs::write(site.folder.path().join("flag"), "").unwrap();
    program.wait_until("the background function", PATIENCE, |_| failures("error") == 4.0);
    program.wait_until("its line", PATIENCE, |_| site.log_text().contains("no beat"));
    assert_eq!(program.terminate(), Some(0));
}

/// What an endpoint answers.
fn ask(address: &str, name: &str) -> serde_json::Value {
    let answer = exchange(address, &request("POST", &format!("/command/{name}"), "", b"{}")).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["r_attrs"].clone()
}

#[test]
fn endpoints_are_spread_over_idle_workers() {
    let lua = "setCustomEndpoint('where', function()
        infoLog('it begins', {})
        while not io.open('gate') do time.sleep(0.02) end
        return true, { worker = io.open('/proc/thread-self/comm'):read() }
    end)";
    let (site, program) = start_with(3, lua, "");
    let asked = (1..=3).map(|count| {
        let address = site.address.clone();
        let asked = std::thread::spawn(move || ask(&address, "where"));
        program.wait_until("its begin", PATIENCE, |_| site.log_text().matches("it begins").count() == count);
        asked
    });
    let asked: Vec<_> = asked.collect();
    std::fs::write(site.folder.path().join("gate"), "").unwrap();
    let mut workers: Vec<String> = asked.into_iter().map(|asked| asked.join().unwrap()["worker"].to_string()).collect();
    workers.sort();
    assert_eq!(workers, ["\"policy-0\"", "\"policy-1\"", "\"policy-2\""]);
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn more_endpoints_than_a_machine_may_have_in_flight_wait_for_room_in_it() {
    let lua = "running, most = 0, 0
    setCustomEndpoint('counted', function()
        running = running + 1
        most = math.max(most, running)
        time.sleep(0.2)
        running = running - 1
        return true, { most = most }
    end)
    setReport(function(lt) infoLog('ran', { login = lt.login }) end)";
    let (site, program) = start(lua, "policy.in_flight = 2\n");
    let asked: Vec<_> = (0..8)
        .map(|_| {
            let address = site.address.clone();
            std::thread::spawn(move || ask(&address, "counted"))
        })
        .collect();
    report(&site, "ann");
    for asked in asked {
        let most = asked.join().unwrap()["most"].as_u64().unwrap();
        assert!((1..=2).contains(&most), "{most} at once");
    }
    // A report takes its turn where endpoints fill the machine, and is not forgotten behind them.
    program.wait_until("the report", PATIENCE, |_| site.log_text().contains("ann"));
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn line_that_fails_in_the_first_worker_has_the_effects_of_the_next_once() {
    let (inbox, receiver) = Inbox::start();
    let console = free_address();
    let key = "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI=";
    let settings = format!("console = {{ listen = \"{console}\", key = \"{key}\" }}\n{}", channel(receiver));
    let (site, program) = start_with(3, "", &settings);
    let line = "local me = io.open('/proc/thread-self/comm'):read()
        if me == 'policy-0' then error('not in this one') end
        alert { kind = 'line', key = me, title = 'of one' }";
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_trackalert"));
    command.current_dir(site.folder.path()).args(["console", "-C"]).arg(site.config());
    let said = command.args(["-e", line]).output().unwrap();
    assert_eq!(said.status.code(), Some(1), "what the first answers is the line's");
    program.wait_until("the alert", PATIENCE, |_| !inbox.of_kind("line").is_empty());
    program.wait_until("the end of all", PATIENCE, Program::idle);
    let keys: Vec<String> = inbox.of_kind("line").iter().map(|arrival| arrival.alert["key"].to_string()).collect();
    assert_eq!(keys, ["\"policy-1\""]);
    assert_eq!(program.terminate(), Some(0));
}
