//! Poison among ten thousand good reports, on each driver: every form of bad JSON, a login over `receive.max_field`, a policy that
//! raises, one that runs away, one that takes 2 GiB. It stands in the reports queue as another program wrote it there. The good ones
//! finish, each piece of poison is a dead letter that says why, and sending it again after the policy was mended handles it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;
#[path = "poison/write.rs"]
mod write;

use std::process::Command;

use nix::sys::signal::Signal;
use rand::RngExt;
use rand::seq::SliceRandom;
use serde_json::{Value, json};

use support::driver::{Driver, on_each_driver};
use support::load::{PATIENCE, Rig};
use support::program::{Program, Site};
use support::sender::query;
use support::trial;

const GOOD: usize = 10_000;

on_each_driver!(poison_among_good_reports_is_a_dead_letter_each_and_nothing_else_suffers);

const POISONED: &str = r#"
local kinds = {
  raises = function() error("no such mood") end,
  runs_away = function() while true do end end,
  takes_2_gib = function() local t = {} for i = 1, math.huge do t[i] = { i } end end,
  takes_2_gib_at_once = function() return #string.rep("x", 2 ^ 31) end,
}

function report(lt)
  local kind = lt.attrs.poison
  if kind then kinds[kind]() end
end
"#;

const MENDED: &str = r#"
function report(lt)
  if lt.attrs.poison then
    alert { kind = "mended", title = "handled now", key = lt.attrs.poison }
  end
end
"#;

const WITNESS: &str = r#"
function report(lt)
  if lt.attrs.poison then
    alert { kind = "witness", title = "seen", key = lt.attrs.poison }
  elseif lt.attrs.mark then
    alert { kind = "marked", title = "marked", key = lt.attrs.mark }
  end
end
"#;

/// A message that cannot be handled.
struct Poison {
    what: &'static str,
    body: Vec<u8>,
    /// What stands in the reason of its dead letter.
    why: &'static str,
}

fn malformed() -> Vec<Poison> {
    let poison = |what, body: &[u8], why| Poison { what, body: body.to_vec(), why };
    let nested =
        format!(r#"{{"login":"p","remote":"192.0.2.9","attrs":{{"a":{}{}}}}}"#, "[".repeat(20_000), "]".repeat(20_000));
    let long = json!({ "login": "l".repeat(4097), "remote": "192.0.2.9" }).to_string();
    vec![
        poison("truncated", br#"{"login":"p","remote":"192.0"#, "not JSON: EOF"),
        poison("not JSON", b"login=p&remote=192.0.2.9", "not a JSON object"),
        poison("nothing", b"", "not a JSON object"),
        poison("an array", br#"["p","192.0.2.9"]"#, "not a JSON object"),
        poison("two objects", br#"{"login":"p","remote":"192.0.2.9"}{}"#, "not JSON: trailing characters"),
        poison("deep nesting", nested.as_bytes(), "recursion limit"),
        poison("not UTF-8", b"{\"login\":\"\xff\xfe\",\"remote\":\"192.0.2.9\"}", "invalid unicode code point"),
        poison("a login that is a number", br#"{"login":7,"remote":"192.0.2.9"}"#, "`login`: invalid type: integer"),
        poison("no login", br#"{"remote":"192.0.2.9"}"#, "`login`: missing"),
        poison("no address", br#"{"login":"p","remote":"here"}"#, "`remote`: not an IP address"),
        poison("a login too long", long.as_bytes(), "`login`: 4097 bytes; receive.max_field is 4096"),
    ]
}

fn for_the_policy() -> Vec<Poison> {
    let poison = |what: &'static str, why| {
        let body = report(&format!("poison-{what}"), &json!({ "poison": what })).into_bytes();
        Poison { what, body, why }
    };
    vec![
        poison("raises", "no such mood"),
        poison("runs_away", "policy.cpu_limit"),
        poison("takes_2_gib", "policy.memory"),
        poison("takes_2_gib_at_once", "string.rep: the result would be over"),
    ]
}

fn report(login: &str, attrs: &Value) -> String {
    json!({ "t": trial::now() - 60.0, "login": login, "remote": "192.0.2.1", "attrs": attrs }).to_string()
}

/// What the operators' command says; it must work.
fn trackalert(site: &Site, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trackalert"));
    let said = command.arg("dead-letters").args(args).arg("-C").arg(site.config()).output().unwrap();
    assert!(said.status.success(), "{args:?}: {}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8(said.stdout).unwrap()
}

fn letters(site: &Site) -> Vec<Value> {
    serde_json::from_str(&trackalert(site, &["list", "--format", "json"])).unwrap()
}

/// The letter of a piece of poison. Its bytes are those that were written.
fn letter_of<'a>(letters: &'a [Value], poison: &Poison) -> &'a Value {
    use base64::Engine;
    let body = |letter: &Value| match letter["body"].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => base64::engine::general_purpose::STANDARD.decode(letter["body_base64"].as_str().unwrap()).unwrap(),
    };
    let found: Vec<_> = letters.iter().filter(|letter| body(letter) == poison.body).collect();
    assert_eq!(found.len(), 1, "letters of {}: {found:?}", poison.what);
    found[0]
}

fn in_history(rig: &Rig, site: &Site) -> Value {
    let body = json!({ "size": 0, "track_total_hits": true });
    rig.runtime.block_on(query(&site.address, body))["hits"]["total"]["value"].clone()
}

/// Good reports with poison at random places among them.
fn mixture(rig: &mut Rig, poison: &[&[Poison]]) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = (0..GOOD)
        .map(|n| {
            let attrs = if n % 10 == 0 { json!({ "mark": n.to_string() }) } else { json!({}) };
            report(&format!("good{n}"), &attrs).into_bytes()
        })
        .collect();
    let mut pieces: Vec<&Poison> = poison.iter().copied().flatten().collect();
    pieces.shuffle(&mut rig.random);
    for piece in pieces {
        all.insert(rig.random.random_range(0..GOOD), piece.body.clone());
    }
    all
}

fn poison_among_good_reports_is_a_dead_letter_each_and_nothing_else_suffers(driver: Driver) {
    let mut rig = Rig::new(driver);
    // The one that takes memory must meet that limit, and not the one of CPU, on a slow machine, too.
    let site = rig.site("policy.retry_first = \"50ms\"\npolicy.memory = \"64 MiB\"\npolicy.cpu_limit = \"1500ms\"\n");
    site.policy("poisoned", POISONED).policy("load", WITNESS);
    let (malformed, policys) = (malformed(), for_the_policy());
    let expected = malformed.len() + policys.len();
    let bodies = mixture(&mut rig, &[&malformed, &policys]);
    let program = write::while_it_runs(&rig, &site, bodies);
    let in_history_now = json!(GOOD + policys.len());
    program
        .wait_until("every report that is one in the history", PATIENCE, |_| in_history(&rig, &site) == in_history_now);
    let dead = |program: &Program| program.metric("trackalert_dead_letters{queue=\"reports\"}");
    program.wait_until("all dead letters", PATIENCE, |program| dead(program) == Some(expected as f64));
    program.wait_until("nothing left in the queues", PATIENCE, Program::idle);
    program.wait_until("every alert of a good report", PATIENCE, |_| rig.inbox.of_kind("marked").len() == GOOD / 10);
    program.wait_until("the other policy's alerts", PATIENCE, |_| rig.inbox.of_kind("witness").len() == policys.len());
    let first = letters(&site);
    let handled = rig.began.elapsed();
    let highest = program.memory_mib().1;
    let mut table = vec![("good ones, in the history, all their alerts", GOOD.to_string())];
    assert_eq!(first.len(), expected);
    for (pieces, kind, attempts) in [(&malformed, "malformed", 1), (&policys, "policy", 3)] {
        for poison in pieces {
            let reason = &letter_of(&first, poison)["reason"];
            table.push((poison.what, reason["text"].to_string()));
            let text = reason["text"].as_str().unwrap();
            assert!(text.contains(poison.why), "{}: {text}", poison.what);
            assert_eq!((&reason["kind"], &reason["attempts"]), (&json!(kind), &json!(attempts)), "{}", poison.what);
            let guilty = if kind == "policy" { json!(["poisoned"]) } else { json!([]) };
            assert_eq!(reason["only"], guilty, "{}", poison.what);
        }
    }

    // The policy is mended, and what it failed on is sent again.
    site.policy("poisoned", MENDED);
    program.signal(Signal::SIGHUP);
    let reloaded = "trackalert_reloads_total{outcome=\"done\"}";
    program.wait_until("the reload", PATIENCE, |program| program.metric(reloaded) == Some(1.0));
    trackalert(&site, &["resend", "--policy", "poisoned"]);
    program.wait_until("alerts of the mended policy", PATIENCE, |_| rig.inbox.of_kind("mended").len() == policys.len());
    // The others are what they were: they become dead letters again.
    trackalert(&site, &["resend", "--reason", "malformed"]);
    let again = |letters: &[Value]| letters.iter().filter(|letter| letter["reason"]["attempts"] == 2).count();
    program.wait_until("dead letters again", PATIENCE, |_| again(&letters(&site)) == malformed.len());
    program.wait_until("nothing left in the queues", PATIENCE, Program::idle);
    let second = letters(&site);
    assert_eq!(second.len(), malformed.len(), "what was handled is a dead letter still");
    for poison in &malformed {
        let reason = &letter_of(&second, poison)["reason"];
        assert_eq!((&reason["kind"], &reason["attempts"]), (&json!("malformed"), &json!(2)), "{}", poison.what);
    }
    assert_eq!(in_history(&rig, &site), in_history_now, "something stands in the history twice");
    assert_eq!(rig.inbox.of_kind("witness").len(), policys.len(), "a policy that had worked ran again");
    assert_eq!(rig.inbox.of_kind("marked").len(), GOOD / 10);
    table.push(("seconds until the good ones were handled", format!("{:.1}", handled.as_secs_f64())));
    table.push(("highest memory, MiB", format!("{highest:.0}")));
    rig.print("poison", &table);
    assert!(highest < 1024.0, "the poison that takes 2 GiB got {highest:.0} MiB of the process");
    assert_eq!(program.terminate(), Some(0));
}
