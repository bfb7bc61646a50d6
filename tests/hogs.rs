//! A policy that runs away takes nobody with it: each kind of runaway call among ten thousand good reports that wait for a server. The
//! good ones finish, the other policy's alert for the guilty report goes out, and only the guilty report is a dead letter, with its
//! policy's name. And what only looks like a runaway is none.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;
#[path = "support/web.rs"]
mod web;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use support::inbox::Inbox;
use support::program::{Program, Site};
use support::sender::{Progress, dead_letters, query, send_all};
use support::trial;
use web::Slow;

const GOOD: usize = 10_000;
/// More than so many must have waited at once.
const MANY: usize = 1000;

const HOG: &str = r#"
local function megabytes(first, count)
  local t = {}
  for i = 1, count do t[i] = string.rep(string.char(first + i), 2^20) end
  return t
end

local kinds = {
  ["loop"] = function() while true do end end,
  protected_loop = function() while true do pcall(function() while true do end end) end end,
  table = function() local t = {} for i = 1, math.huge do t[i] = { i } end end,
  find = function() return string.find(string.rep("a", 40), string.rep("a?", 40) .. string.rep("a", 40)) end,
  string = function() return #string.rep("x", 2^31) end,
  strings = function() local t = {} for i = 1, math.huge do t[i] = string.rep("x", 2^20) .. i end end,
  -- Most of the machine's memory, for as long as a server needs. In a machine of its own it has room.
  large = function()
    local held = megabytes(0, 40)
    for _ = 1, 6 do assert(http.get(server)) end
    return #held
  end,
  -- A call that waits in a coroutine of the policy's own.
  wrapped = function()
    local next_status = coroutine.wrap(function()
      for n = 1, 3 do coroutine.yield(n + http.get(server).status) end
    end)
    return next_status() .. " " .. next_status() .. " " .. next_status()
  end,
  -- An error raised after a call that waited, inside pcall.
  caught = function()
    local ok, said = pcall(function()
      local answer = http.get(server)
      error("raised after " .. answer.status, 0)
    end)
    return tostring(ok) .. " " .. said
  end,
}

function report(lt)
  local kind = lt.attrs.hog
  if lt.attrs.needy then megabytes(100, 20) end
  if not kind then
    assert(http.get(server))
    return
  end
  local said = kinds[kind]()
  alert { kind = "came_back", title = said }
end
"#;

const WITNESS: &str = r#"
function report(lt)
  if lt.attrs.hog then
    alert { kind = "witness", title = "saw the report that the other policy fails on" }
  end
end
"#;

struct Seen {
    letters: Vec<Value>,
    stored: Value,
    witnesses: usize,
    /// What the guilty report's handler said where it came to its end.
    came_back: Vec<String>,
    /// Requests that waited at once.
    most: usize,
    /// How often the log says that a policy failed.
    failures: usize,
    /// Machines of the workers that failed.
    spoiled: f64,
    restarts: u32,
    seconds: f64,
}

/// Runs one kind of hog in the middle of the good reports; starts the program again where it ends by itself, as its supervisor would.
fn run(kind: &str) -> Seen {
    let (inbox, receiver) = Inbox::start();
    let site = Site::new(&format!(
        "policy.stuck_after = \"500ms\"\npolicy.abort_after = \"2s\"\npolicy.retry_first = \"50ms\"\npolicy.memory = \"64 MiB\"\n\
         detect.workers = {}\n[history]\ncommit_every = \"200ms\"\n[[notify.channels]]\nkind = \"webhook\"\nurl = \"http://{receiver}/\"\n",
        // All in one machine, where it matters who is in it.
        if kind == "large" { 1 } else { 2 }
    ));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // On a machine that makes less than two thousand calls a second they would be answered before so many wait.
    let held = trial::size(MANY + 1, 0);
    let server = runtime.block_on(Slow::held(held, Duration::from_millis(500), "{}"));
    let hog = format!("local server = \"http://127.0.0.1:{}/\"\n{HOG}", server.port());
    site.policy("hog", &hog).policy("witness", WITNESS);
    let began = Instant::now();
    let mut reports: Vec<String> = (0..GOOD).map(|n| report(&format!("good{n}"), &json!({}))).collect();
    reports.insert(GOOD / 2, report("guilty", &json!({ "hog": kind })));
    if kind == "large" {
        for place in 1..=4 {
            reports.insert(GOOD / 2 + 300 * place, report("needy", &json!({ "needy": true })));
        }
    }
    // It waits for its login's turn, also where that never ends.
    reports.insert(GOOD / 2 + 1, report("guilty", &json!({ "next": true })));
    let mut program = site.start();
    runtime.block_on(send_all(&site.address, reports, 200, Arc::new(Progress::default())));
    let restarts = finish(&site, &mut program);
    let stored = runtime.block_on(query(&site.address, json!({ "size": 0 })))["hits"]["total"]["value"].clone();
    let letters = runtime.block_on(dead_letters(&site.address, "reports"));
    let seconds = began.elapsed().as_secs_f64();
    let spoiled = program.metric("trackalert_vms_replaced_total{why=\"spoiled\"}").unwrap();
    assert_eq!(program.terminate(), Some(0));
    let came_back = inbox.of_kind("came_back").iter().map(|arrival| arrival.alert["title"].to_string()).collect();
    Seen {
        letters,
        stored,
        witnesses: inbox.of_kind("witness").len(),
        came_back,
        most: server.most(),
        failures: site.log_text().matches("a policy failed on a report").count(),
        spoiled,
        restarts,
        seconds,
    }
}

fn finish(site: &Site, program: &mut Program) -> u32 {
    let mut restarts = 0;
    let began = Instant::now();
    while !program.idle() {
        assert!(began.elapsed() < Duration::from_secs(120), "the good reports do not finish:\n{}", site.log_text());
        if let Some(code) = program.ended() {
            assert_eq!(code, 1, "it may only end because a worker hangs:\n{}", site.log_text());
            restarts += 1;
            *program = site.start();
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    restarts
}

fn report(login: &str, attrs: &Value) -> String {
    json!({ "t": trial::now() - 60.0, "login": login, "remote": "192.0.2.1", "attrs": attrs }).to_string()
}

fn seen(kind: &str) -> Seen {
    let seen = run(kind);
    trial::print(
        "hogs",
        0,
        &[
            ("hog", kind.to_owned()),
            ("good reports handled", (GOOD).to_string()),
            ("in the history", seen.stored.to_string()),
            ("waited at once", seen.most.to_string()),
            ("dead letters", seen.letters.len().to_string()),
            ("reason", seen.letters.first().map(|letter| letter["reason"].to_string()).unwrap_or_default()),
            ("restarts", seen.restarts.to_string()),
            ("seconds", format!("{:.1}", seen.seconds)),
        ],
    );
    assert!(seen.most > MANY, "only {} waited at once: this proves little", seen.most);
    let needy = if kind == "large" { 4 } else { 0 };
    assert_eq!(seen.stored, json!(GOOD + 2 + needy), "the guilty report stands in the history too");
    assert_eq!(seen.witnesses, 1, "the other policy's alert went out, once");
    seen
}

fn only_the_guilty_one_is_a_dead_letter(kind: &str, reason: &str, restarts: u32) {
    let seen = seen(kind);
    assert_eq!(seen.letters.len(), 1, "{:#?}", seen.letters);
    let letter = &seen.letters[0];
    assert_eq!(letter["key"], "guilty");
    assert_eq!(letter["reason"]["kind"], reason);
    assert_eq!(seen.failures, if reason == "policy" { 3 } else { 0 }, "the policy failed on good reports as well");
    // One by one those beside it would take over two minutes.
    assert!(seen.seconds < 60.0, "the good reports notice: {:.0} s", seen.seconds);
    assert_eq!(letter["reason"]["only"], json!(["hog"]), "the dead letter names the policy");
    assert!(seen.came_back.is_empty());
    assert_eq!(seen.restarts, restarts);
}

fn it_is_no_hog(kind: &str, said: &str) -> Seen {
    let seen = seen(kind);
    assert_eq!(seen.letters, Vec::<Value>::new());
    assert_eq!(seen.failures, 0, "the policy failed on good reports");
    assert_eq!(seen.came_back, [format!("\"{said}\"")]);
    assert_eq!(seen.restarts, 0);
    seen
}

#[test]
fn endless_loop_is_stopped_and_named() {
    only_the_guilty_one_is_a_dead_letter("loop", "policy", 0);
}

#[test]
fn endless_loop_around_pcall_is_stopped_and_named() {
    only_the_guilty_one_is_a_dead_letter("protected_loop", "policy", 0);
}

#[test]
fn table_that_grows_for_ever_is_stopped_and_its_neighbours_are_not_blamed() {
    only_the_guilty_one_is_a_dead_letter("table", "policy", 0);
}

#[test]
fn pattern_that_hangs_in_c_code_costs_a_restart_and_no_good_report() {
    only_the_guilty_one_is_a_dead_letter("find", "hung", 1);
}

#[test]
fn two_that_hang_at_once_are_dead_letters_after_one_restart_that_waits_for_neither() {
    let site = Site::new(
        "policy.stuck_after = \"500ms\"\npolicy.abort_after = \"2s\"\ndetect.workers = 3\ndetect.drain_timeout = \"2m\"",
    );
    site.policy("hog", HOG);
    let mut program = site.start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let reports = ["ann", "bob"].map(|login| report(login, &json!({ "hog": "find" })));
    runtime.block_on(send_all(&site.address, reports.into(), 2, Arc::new(Progress::default())));
    let began = Instant::now();
    let restarts = finish(&site, &mut program);
    assert!(began.elapsed() < Duration::from_secs(60), "the drain waited for what hangs: {:?}", began.elapsed());
    let letters = runtime.block_on(dead_letters(&site.address, "reports"));
    let reasons: Vec<_> = letters.iter().map(|letter| letter["reason"]["kind"].clone()).collect();
    assert_eq!((reasons, restarts), (vec![json!("hung"); 2], 1), "{}", site.log_text());
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn string_larger_than_the_memory_is_refused_and_named() {
    only_the_guilty_one_is_a_dead_letter("string", "policy", 0);
}

#[test]
fn strings_that_fill_the_memory_are_stopped_and_their_neighbours_are_not_blamed() {
    only_the_guilty_one_is_a_dead_letter("strings", "policy", 0);
}

/// Its neighbours are those that ask for more than there is, and they are not what the next machine must be saved from.
#[test]
fn report_that_leaves_its_neighbours_no_memory_runs_apart_and_spoils_one_machine() {
    assert_eq!(it_is_no_hog("large", "40").spoiled, 1.0);
}

#[test]
fn call_that_waits_in_a_coroutine_of_the_policys_own_comes_back() {
    it_is_no_hog("wrapped", "201 202 203");
}

#[test]
fn error_after_a_call_that_waited_is_caught_by_pcall() {
    it_is_no_hog("caught", "false raised after 200");
}
