//! `trackalert test`, by the real binary: what passes, what a failure looks like, what is broken, and that nothing hangs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

#[path = "support/cases.rs"]
mod cases;

#[path = "policy_tests/http.rs"]
mod http;
#[path = "policy_tests/old.rs"]
mod old;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use cases::{PATIENCE, QUIET, Watching, case, elements, json, program, run, site, write};

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("policies")
}

/// A copy of a shipped policy with its tests, and something in the policy exchanged.
fn mutated(name: &str, from: &str, to: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = shipped().join(name);
    let target = folder.path().join("policies").join(name);
    let lua = std::fs::read_to_string(source.join("policy.lua")).unwrap();
    assert!(lua.contains(from), "{from} is not in {name}");
    write(&target.join("policy.lua"), &lua.replace(from, to));
    for test in std::fs::read_dir(source.join("tests")).unwrap() {
        let test = test.unwrap();
        write(&target.join("tests").join(test.file_name()), &std::fs::read_to_string(test.path()).unwrap());
    }
    folder
}

const LOUD: &str = "function report(lt)
  print('saw', lt.login)
  local found = history.search { size = 0, query = { term = { login = lt.login } } }
  local n = (state.get('n') or 0) + 1
  state.set('n', n)
  state.add('logins', lt.login, { within = 3600 })
  if not lt.success then
    alert { kind = 'failed', severity = 'low', title = lt.login .. ' failed', key = lt.remote:tostring(), attack = 'T1',
      evidence = { n = n, before = found.hits.total.value, country = geo.country(lt.remote), group = lt.attrs_mv.groups } }
  end
end";

// ---- the shipped policies

#[test]
fn cases_of_the_shipped_policies_pass_in_a_fixed_order() {
    let folder = tempfile::tempdir().unwrap();
    let policies = shipped();
    let path = policies.to_str().unwrap();
    let names = |answer: &Value| {
        let cases = answer["cases"].as_array().unwrap().iter();
        cases.map(|case| format!("{}: {}", case["policy"].as_str().unwrap(), case["name"])).collect::<Vec<_>>()
    };
    let (code, one) = json(folder.path(), &[path, "--jobs", "1"]);
    assert_eq!((code, one["ok"].as_bool(), one["failed"].as_u64()), (0, Some(true), Some(0)), "{one:#}");
    let (code, many) = json(folder.path(), &[path, "--jobs", "8"]);
    assert_eq!(code, 0);
    assert_eq!(names(&one), names(&many), "the order does not depend on who ends first");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left where it was called");

    let mut of_policy: BTreeMap<&str, usize> = BTreeMap::new();
    for case in one["cases"].as_array().unwrap() {
        *of_policy.entry(case["policy"].as_str().unwrap()).or_default() += 1;
    }
    assert_eq!(of_policy.len(), 4, "{of_policy:?}");
    assert!(of_policy.values().all(|cases| *cases >= 8), "{of_policy:?}");

    // Each threshold, moved by one in either direction, is noticed by a case.
    for (name, from, to) in [
        ("one_address_many_logins", "local LOGINS = 15", "local LOGINS = 16"),
        ("one_address_many_logins", "local LOGINS = 15", "local LOGINS = 14"),
        ("one_address_many_logins", "local WINDOW = 300", "local WINDOW = 310"),
        ("one_address_many_logins", "local WINDOW = 300", "local WINDOW = 290"),
        ("success_after_failures", "local ADDRESSES = 5", "local ADDRESSES = 4"),
        ("success_after_failures", "local ADDRESSES = 5", "local ADDRESSES = 6"),
        ("success_after_failures", "local KNOWN_DAYS = 90", "local KNOWN_DAYS = 100"),
        ("new_origin", "local LEARN_LOGINS = 10", "local LEARN_LOGINS = 11"),
        ("new_origin", "local LEARN_LOGINS = 10", "local LEARN_LOGINS = 9"),
        ("new_origin", "local LEARN_TIME = 14 * DAY", "local LEARN_TIME = 15 * DAY"),
        ("new_origin", "local LEARN_TIME = 14 * DAY", "local LEARN_TIME = 13 * DAY"),
        ("dormant_account", "local SLEEP = 90 * DAY", "local SLEEP = 91 * DAY"),
        ("dormant_account", "local SLEEP = 90 * DAY", "local SLEEP = 89 * DAY"),
    ] {
        let copy = mutated(name, from, to);
        let (code, answer) = json(copy.path(), &[]);
        assert!(code == 1 && answer["failed"].as_u64() >= Some(1), "{name}: {to} is not noticed: {answer:#}");
    }
}

// ---- what a failure looks like

#[test]
fn changed_threshold_fails_a_case_with_a_readable_difference() {
    let folder = mutated("one_address_many_logins", "local LOGINS = 15", "local LOGINS = 16");
    let ran = run(folder.path(), &["--filter", "THE FIFTEENTH login"]);
    assert_eq!(ran.code, 1, "{ran}");
    for line in [
        "FAILED  one_address_many_logins: the fifteenth login is told\n",
        "        ./policies/one_address_many_logins/tests/spraying.toml:",
        "    missing: alert one_address_many_logins\n",
        "      - severity  ",
        "\"203.0.113.5 failed on 15 different logins within 5 minutes\"\n",
        "    searches: how often the history was asked\n      - searches  1\n      + searches  0\n",
        "\n1 case: 0 passed, 1 failed, ",
    ] {
        assert!(ran.out.contains(line), "{line:?} is missing in\n{ran}");
    }
    assert!(!ran.out.contains('\u{1b}'), "no colours into a pipe");

    let folder =
        mutated("one_address_many_logins", "shared and \"low\" or \"high\"", "shared and \"low\" or \"medium\"");
    let ran = run(folder.path(), &["--filter", "the fifteenth login"]);
    let difference = "    differs: alert one_address_many_logins, raised by report 43 (+3m 26s, \
                      ./policies/one_address_many_logins/tests/spraying.toml:17)\n      - severity  \"high\"\n      + severity  \"medium\"\n";
    assert!(ran.code == 1 && ran.out.contains(difference), "{difference} is missing in\n{ran}");
}

#[test]
fn unexpected_alert_is_shown_with_its_evidence_and_the_policys_log() {
    let tests = "[[case]]\nname = \"nothing\"\nreports = [{ login = \"ann\", remote = \"192.0.2.1\" }]\nalerts = []\n\
                 [[case]]\nname = \"fine\"\nreports = [{ login = \"ann\", remote = \"192.0.2.1\", success = true }]\nalerts = []\n";
    let folder = site(LOUD, tests);
    let ran = run(folder.path(), &[]);
    assert_eq!(ran.code, 1, "{ran}");
    for line in [
        "    unexpected: alert failed, raised by report 1 (the start, ./policies/p/tests/cases.toml:3)\n",
        "      + severity         \"low\"\n",
        "      + evidence.before  0\n",
        "    the policy's log:\n      report 1: info: saw ann\n",
        "ok      p: fine\n",
        "2 cases: 1 passed, 1 failed in ",
    ] {
        assert!(ran.out.contains(line), "{line:?} is missing in\n{ran}");
    }
    assert_eq!(ran.out.matches("saw").count(), 1, "the log of what passes is not shown: {ran}");
    assert_eq!(run(folder.path(), &["--log"]).out.matches("saw").count(), 2);
}

#[test]
fn everything_a_case_can_give_and_expect_is_looked_at() {
    let head = "start = 2025-06-01T10:00:00Z\ndefaults = { login = \"ann\", remote = \"192.0.2.1\" }\n[geo.\"192.0.2.0/24\"]\ncountry = \"NL\"\n\
                [[case]]\nname = \"whole\"\ndefaults = { protocol = \"imap\" }\nstate = { n = 41 }\n\
                history = [{ t = \"-3days\", repeat = 2, every = \"1day\" }, { t = \"-1day\", login = \"bob\" }]\n\
                reports = [{ success = true }, { t = \"+1h\", login = \"ann\", attrs = { groups = [\"a\", \"b\"] } }]\n";
    let right = "state_after = { n = 43 }\nstate_without = [\"m\"]\ncounts_after = [{ key = \"logins\", within = \"1h\", is = 1 }]\nsearches = 2\n\
                 alerts = [{ kind = \"failed\", severity = \"low\", login = \"ann\", remote = \"192.0.2.1\", key = \"192.0.2.1\", \
                 title = { matches = \"^ann f\" }, text = \"\", attack = \"T1\", t = 2025-06-01T11:00:00Z, \
                 evidence = { n = 43, before = 3, country = \"NL\", group = [\"a\", \"b\"] } }]\n";
    let folder = site(LOUD, &format!("{head}{right}"));
    let ran = run(folder.path(), &[]);
    assert_eq!(ran.code, 0, "{ran}");
    for (from, to, shown) in [
        ("state_after = { n = 43 }", "state_after = { n = 42 }", "- n  42\n      + n  43"),
        ("state_without = [\"m\"]", "state_without = [\"n\"]", "- n  nothing\n      + n  43"),
        ("is = 1 }", "is = 2 }", "- logins within 1h  2\n      + logins within 1h  1"),
        ("searches = 2", "searches = 3", "- searches  3\n      + searches  2"),
        ("login = \"ann\", remote", "login = \"eve\", remote", "- login  \"eve\"\n      + login  \"ann\""),
        ("key = \"192.0.2.1\"", "key = \"k\"", "- key  \"k\"\n      + key  \"192.0.2.1\""),
        ("^ann f", "^ann x", "- title  matches \"^ann x\"\n      + title  \"ann failed\""),
        ("attack = \"T1\"", "attack = \"T2\"", "- attack  \"T2\"\n      + attack  \"T1\""),
        ("11:00:00Z", "11:30:00Z", "- t  +1h 30m\n      + t  +1h"),
        ("before = 3", "before = 2", "- evidence.before  2\n      + evidence.before  3"),
        (
            "country = \"NL\", group",
            "country = \"DE\", group",
            "- evidence.country  \"DE\"\n      + evidence.country  \"NL\"",
        ),
        (
            "[\"a\", \"b\"] } }]",
            "[\"b\", \"a\"] } }]",
            "- evidence.group  [\"b\",\"a\"]\n      + evidence.group  [\"a\",\"b\"]",
        ),
        ("alerts = [{", "alerts = [{ times = 2, ", "missing: alert failed"),
    ] {
        let changed = right.replace(from, to);
        assert_ne!(changed, right, "{from}");
        write(&folder.path().join("policies/p/tests/cases.toml"), &format!("{head}{changed}"));
        let ran = run(folder.path(), &[]);
        assert!(ran.code == 1 && ran.out.contains(shown), "{to}: {shown} is missing in\n{ran}");
    }
}

// ---- what stops a policy

#[test]
fn policy_that_fails_ends_its_case_with_the_text_and_the_others_pass() {
    let policy = "function report(lt)
  if lt.login == 'loop' then while true do end end
  if lt.login == 'caught' then while true do pcall(function() while true do end end) end end
  if lt.login == 'sleep' then time.sleep(3000) end
  if lt.login == 'memory' then local t = {} while true do t[#t + 1] = ('x'):rep(100000) .. #t end end
  if lt.login == 'error' then local x = nil; return x.y end
  if lt.login == 'wrong' then alert { titel = 'x' } end
  if lt.login == 'search' then history.search { query = { trem = { login = 'x' } } } end
  if lt.login == 'stuck' then (('a'):rep(60)):find((('a?'):rep(60)) .. ('a'):rep(60) .. 'b') end
end";
    let names = ["fine", "loop", "caught", "sleep", "memory", "error", "wrong", "search", "stuck", "fine too"];
    let folder = site(policy, &names.map(case).concat());
    let began = Instant::now();
    let sets = [
        "history.search_timeout=1s",
        "policy.time_limit=2s",
        "policy.cpu_limit=300ms",
        "policy.memory=32 MiB",
        "policy.stuck_after=500ms",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let ran = run(folder.path(), &[&sets[..], &["--jobs", "4"]].concat());
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    assert_eq!(ran.code, 1, "{ran}");
    for (name, said) in [
        ("loop", "used more CPU than policy.cpu_limit (300ms)"),
        ("caught", "used more CPU than policy.cpu_limit (300ms)"),
        ("sleep", "took longer than policy.time_limit (2s)"),
        ("memory", "the virtual machine is over policy.memory"),
        ("error", "policies/p/policy.lua:6: attempt to index local 'x' (a nil value)"),
        ("wrong", "policies/p/policy.lua:7: alert: titel: "),
        ("search", "policies/p/policy.lua:8: history.search: body: query.trem: unknown query; did you mean term?"),
        ("stuck", "C code that does not come back"),
    ] {
        let (_, rest) = ran.out.split_once(&format!("FAILED  p: {name}\n")).unwrap_or_else(|| panic!("{name}: {ran}"));
        let own = rest.split("FAILED").next().unwrap();
        assert!(own.contains(said), "{name}: {said} is missing in\n{own}");
        if name != "stuck" {
            assert!(own.contains("the policy failed on report 1 (the start, ./policies/p/tests/cases.toml:"), "{own}");
        }
    }
    for name in ["fine", "fine too"] {
        assert!(ran.out.contains(&format!("ok      p: {name}\n")), "{name}: {ran}");
    }
}

// ---- what is broken

#[test]
fn broken_policy_is_told_with_file_and_line_and_the_other_policies_run() {
    let folder = site("function report(lt)\n  if lt.success the\nend", &case("x"));
    write(&folder.path().join("policies/q/policy.lua"), QUIET);
    write(&folder.path().join("policies/q/tests/t.toml"), &case("y"));
    let ran = run(folder.path(), &[]);
    assert_eq!(ran.code, 2, "{ran}");
    assert!(ran.out.contains("BROKEN  ./policies/p/policy.lua:2: 'then' expected near 'the'"), "{ran}");
    assert!(ran.out.contains("ok      q: y\n"), "{ran}");
    assert!(ran.out.contains("1 case: 1 passed, 1 broken in "), "{ran}");
    assert!(ran.err.contains("a file is broken"), "{ran}");
}

#[test]
fn each_mistake_in_a_test_file_is_told_with_its_line() {
    let one = "[[case]]\nname = \"x\"\nreports = [{ login = \"a\", remote = \"192.0.2.1\" }]\n";
    for (tests, line, expected) in [
        (format!("{one}alets = []\n"), ":4:", "unknown field `alets`, expected one of `name`"),
        (one.to_owned(), ":2:", "alerts is missing"),
        (format!("{one}alerts = []\n{one}alerts = []\n"), ":6:", "another case of this file has it"),
        ("[[case]]\nname = \"x\"\nalerts = []\n".to_owned(), ":2:", "a case needs at least one"),
        (format!("{one}alerts = [{{ kind = \"k\", severity = \"bad\" }}]\n"), ":4:", "unknown variant `bad`"),
        (format!("{one}alerts = [{{ kind = \"k\", t = \"later\" }}]\n"), ":4:", "alerts: t: \"later\" is no time"),
        (
            format!("{one}alerts = []\nhistory = [{{ login = \"a\", remote = \"::1\" }}]\n"),
            ":5:",
            "history: t is missing",
        ),
        (format!("{one}alerts = []\nstart = \"+2h\"\n"), ":5:", "start: a time or a day"),
        (format!("{one}alerts = []\n[case.geo.\"nowhere\"]\ncountry = \"DE\"\n"), ":5:", "no address and no network"),
        (format!("{one}alerts = []\n[case.geo.\"::1\"]\ncountry = \"de\"\n"), ":5:", "two capital letters"),
        (
            format!("{one}alerts = []\n[[case.http]]\nurl = \"https://x\"\nstatus = 700\n"),
            ":5:",
            "http: status: a number from 100 to 599 is needed",
        ),
        (
            format!("{one}alerts = []\ncounts_after = [{{ key = \"k\", within = \"x\", is = 1 }}]\n"),
            ":5:",
            "counts_after: within: ",
        ),
        (
            format!("defaults = {{ logn = \"a\" }}\n{one}alerts = []\n"),
            ":1:",
            "defaults: a report has no key `logn`; did you mean login?",
        ),
        (one.replace("192.0.2.1", "192.0.2.x") + "alerts = []\n", ":3:", "reports: `remote`: not an IP address"),
        (String::new(), ":", "has no [[case]]"),
        ("[[case]\n".to_owned(), ":1:", ""),
    ] {
        let folder = site(QUIET, &tests);
        let ran = run(folder.path(), &[]);
        assert_eq!(ran.code, 2, "{tests}: {ran}");
        let told = format!("BROKEN  ./policies/p/tests/cases.toml{line}");
        assert!(
            ran.out.contains(&told) && ran.out.contains(expected),
            "{tests}: {told} {expected} is missing in\n{ran}"
        );
    }
}

#[test]
fn case_with_a_mistake_leaves_the_others_of_its_file_running() {
    let folder = site(
        QUIET,
        &format!("{}[[case]]\nname = \"broken\"\nreports = [{{ login = \"a\" }}]\nalerts = []\n", case("good")),
    );
    let (code, answer) = json(folder.path(), &[]);
    assert_eq!((code, answer["passed"].as_u64(), answer["ok"].as_bool()), (2, Some(1), Some(false)), "{answer:#}");
    assert_eq!(answer["broken"][0]["line"], 7);
    assert!(answer["broken"][0]["text"].as_str().unwrap().contains("`remote`: missing"));
}

#[test]
fn paths_and_filters_that_find_nothing_are_told() {
    let folder = site(QUIET, &case("x"));
    let at = folder.path();
    write(&at.join("policies/empty/policy.lua"), QUIET);
    write(&at.join("bare/only/policy.lua"), QUIET);
    for (args, code, expected) in [
        (&["policies/empty"][..], 2, "policies/empty: no tests there"),
        (&["nowhere"], 2, "nowhere: no folder of policies"),
        (&["policies/p/policy.lua"], 2, "ends with .toml"),
        (&["--filter", "unheard of"], 2, "--filter unheard of: none of 1 cases"),
        (&["--set", "policy.cpu_limit=soon"], 2, "policy.cpu_limit"),
        (&["--interval", "1s"], 2, "--watch"),
        (&["--set", "policy.path=bare"], 0, "no tests: 1 policy without a file tests/*.toml"),
        (&["policies/p/tests/cases.toml"], 0, "1 case: 1 passed in"),
        (&["policies/p"], 0, "1 case: 1 passed in"),
        (&["--set", "policy.path=policies"], 0, "without tests: empty"),
        (&["policies", "policies/p", "--filter", "P: X"], 0, "1 case: 1 passed in"),
    ] {
        let ran = run(at, args);
        assert!(ran.code == code && (ran.out.contains(expected) || ran.err.contains(expected)), "{args:?}: {ran}");
    }
    let ran = run(&at.join("bare"), &[]);
    assert!(ran.code == 2 && ran.err.contains("there is no ./policies here"), "{ran}");
    write(&at.join("policies/p/tests/more.yaml"), "");
    assert!(run(at, &[]).err.contains("more.yaml: left out"));
}

// ---- machines that read it

#[test]
fn junit_report_is_xml_with_every_case_whatever_stands_in_its_texts() {
    let nasty = "<&>\\\" ' \\u001b[31m";
    let folder = site(LOUD, &format!("{}{}", case("a"), case(nasty)));
    write(&folder.path().join("policies/q/policy.lua"), QUIET);
    write(&folder.path().join("policies/q/tests/good.toml"), &case("b"));
    write(&folder.path().join("policies/q/tests/broken.toml"), "x");
    let ran = run(folder.path(), &["--junit", "report.xml"]);
    assert_eq!(ran.code, 2, "{ran}");
    assert!(!ran.out.contains('\u{1b}'), "an escape sequence of a case reaches no terminal");
    let xml = std::fs::read_to_string(folder.path().join("report.xml")).unwrap();
    let all = elements(&xml);
    let named = |name: &str| all.iter().filter(|one| one.0 == name).collect::<Vec<_>>();
    let totals = &named("testsuites")[0].1;
    assert_eq!((totals["tests"].as_str(), totals["failures"].as_str(), totals["errors"].as_str()), ("4", "2", "1"));
    let suites: Vec<_> =
        named("testsuite").iter().map(|suite| (suite.1["name"].clone(), suite.1["tests"].clone())).collect();
    assert_eq!(suites, [("q".into(), "2".into()), ("p".into(), "2".into())] as [(String, String); 2]);
    let cases = named("testcase");
    assert_eq!(cases.len(), 4);
    assert!(cases.iter().any(|one| one.1["name"].starts_with("<&>\" ' ") && one.1["line"] == "6"), "{xml}");
    assert_eq!(named("failure").len(), 2);
    assert!(named("failure")[0].1["message"].starts_with("alert failed, raised by report 1"), "{xml}");
    assert!(named("failure")[0].2.contains("unexpected: alert failed"), "{xml}");
    assert!(named("error")[0].1["message"].len() > 3 && named("system-out")[0].2.contains("saw"), "{xml}");

    let ran = run(folder.path(), &["policies/q/tests/good.toml", "--junit", "no/folder.xml"]);
    assert!(ran.code == 1 && ran.err.contains("--junit: no/folder.xml: "), "{ran}");
}

#[test]
fn json_has_each_case_with_its_differences() {
    let folder = site(LOUD, &case("a"));
    let (code, answer) = json(folder.path(), &[]);
    assert_eq!((code, answer["failed"].as_u64()), (1, Some(1)));
    let case = &answer["cases"][0];
    assert_eq!(
        (case["policy"].as_str(), case["outcome"].as_str(), case["line"].as_u64()),
        (Some("p"), Some("failed"), Some(2))
    );
    let difference = &case["differences"][0];
    assert_eq!(difference["kind"], "unexpected");
    let field = difference["fields"].as_array().unwrap().iter().find(|field| field["name"] == "severity").unwrap();
    assert_eq!((&field["expected"], field["got"].as_str()), (&Value::Null, Some("\"low\"")));
    assert_eq!(case["log"][0], "report 1: info: saw a");
}

// ---- watching

#[test]
fn watch_runs_again_at_each_change_until_ctrl_c() {
    let folder = site(QUIET, &case("x"));
    let at = folder.path();
    let watching = Watching::start(at, &[]);
    watching.wait_for(&["ok      p: x", "1 case: 1 passed in", "watching 2 files; Ctrl-C ends it"]);
    write(&at.join("policies/p/policy.lua"), LOUD);
    watching.wait_for(&[
        "policies/p/policy.lua has changed",
        "FAILED  p: x",
        "1 case: 0 passed, 1 failed in",
        "watching 2",
    ]);
    write(&at.join("policies/p/tests/more.toml"), &case("y"));
    watching.wait_for(&["more.toml has changed", "FAILED  p: y", "2 cases: 0 passed", "watching 3"]);
    write(&at.join("policies/p/policy.lua"), "function report(");
    watching.wait_for(&["policy.lua has changed", "BROKEN  ./policies/p/policy.lua:1: ", "watching 3"]);
    std::fs::remove_dir_all(at.join("policies")).unwrap();
    watching.wait_for(&["has changed", "policies: no folder of policies", "watching 0"]);
    write(&at.join("policies/p/policy.lua"), QUIET);
    write(&at.join("policies/p/tests/cases.toml"), &case("x"));
    watching.wait_for(&["has changed", "ok      p: x", "1 case: 1 passed in", "watching 2"]);
    assert_eq!(watching.interrupt(), Some(0));

    let watching = Watching::start(at, &[]);
    watching.wait_for(&["watching 2"]);
    write(&at.join("policies/p/policy.lua"), LOUD);
    watching.wait_for(&["FAILED", "watching 2"]);
    assert_eq!(watching.interrupt(), Some(1), "what Ctrl-C ends with is the last run's outcome");
    assert_eq!(run(at, &["nowhere", "--watch"]).code, 2, "a path that is wrong from the start is not waited for");
}

#[test]
fn interrupted_run_ends_at_once_and_leaves_no_folder_behind() {
    let folder = site("function report(lt) time.sleep(3000) end", &case("x"));
    let temp = tempfile::tempdir().unwrap();
    let mut command = program(folder.path());
    let child = command.env("TMPDIR", temp.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let watching = Watching { child, said: Arc::default() };
    let began = Instant::now();
    // The folder of the run, and in it that of the case.
    let folders = |path: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    };
    while folders(temp.path()).iter().all(|run| folders(run).is_empty()) {
        assert!(began.elapsed() < PATIENCE);
        std::thread::park_timeout(Duration::from_millis(10));
    }
    assert_eq!(watching.interrupt(), Some(1));
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
}

// ---- the manual

#[test]
fn example_of_the_manual_runs_and_fails_as_it_says() {
    let manual = include_str!("../docs/policy-tests.md");
    let folder = tempfile::tempdir().unwrap();
    let mut files = 0;
    for block in manual.split("\n```").skip(1).step_by(2) {
        let Some((_, text)) = block.split_once('\n') else { continue };
        let first = text.lines().next().unwrap_or_default();
        let named = first.trim_start_matches(['-', '#', ' ']);
        if named.starts_with("policies/") && !named.contains(' ') {
            write(&folder.path().join(named), text);
            files += 1;
        }
    }
    assert!(files >= 2, "{files} files");
    let ran = run(folder.path(), &[]);
    assert_eq!(ran.code, 0, "{ran}");
    let policy = folder.path().join("policies/new_country/policy.lua");
    let lua = std::fs::read_to_string(&policy).unwrap();
    assert!(manual.contains("`after >= before`") && lua.contains("after > before"));
    write(&policy, &lua.replace("after > before", "after >= before"));
    let ran = run(folder.path(), &[]);
    assert_eq!(ran.code, 1, "{ran}");
    let (_, rest) = manual.split_once("```text\nFAILED").unwrap();
    let shown = format!("FAILED{}", rest.split("```").next().unwrap());
    for line in shown.lines() {
        assert!(ran.out.lines().any(|real| real == line), "{line:?} is not in\n{ran}");
    }
    // The list of our own addresses has no answer.
    let tests = folder.path().join("policies/block_guessing/tests/blocking.toml");
    let toml = std::fs::read_to_string(&tests).unwrap();
    let changed = toml.replace("contains = \"ours.example/v1", "contains = \"elsewhere.example/v1");
    assert_ne!(changed, toml);
    write(&tests, &changed);
    let ran = run(folder.path(), &["--filter", "block_guessing"]);
    let (_, rest) = manual.split_once("```text\n    unanswered: ").unwrap();
    let shown = format!("    unanswered: {}", rest.split("```").next().unwrap());
    assert!(ran.code == 1 && ran.out.contains(&shown), "{shown} is not in\n{ran}");
}

#[test]
fn example_of_the_policies_manual_runs_on_its_first_policy() {
    let manual = include_str!("../docs/policies.md");
    let (_, rest) = manual.split_once("```lua\n").unwrap();
    let (policy, rest) = rest.split_once("```").unwrap();
    let (_, rest) = rest.split_once("```toml\n# policies/plain_pop3/tests/protocols.toml\n").unwrap();
    let folder = site(policy, rest.split("```").next().unwrap());
    let ran = run(folder.path(), &[]);
    assert!(ran.code == 0 && ran.out.contains("2 cases: 2 passed"), "{ran}");
}
