//! The demo as a person starts it: every planted attack is found and nothing else, what it keeps can be used again, and a miss is an
//! exit code.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

use std::path::Path;
use std::process::{Command, Output};

fn trackalert(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trackalert")).args(arguments).env_clear().output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn utf8(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_attack_is_found_and_what_is_kept_can_be_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let demo = trackalert(&["demo", "--exit", "--reports", "5000", "--seed", "7", "--keep", utf8(&kept)]);
    let said = text(&demo);
    assert!(demo.status.success(), "{said}");
    for expected in ["11 of 11 attacks found", "5 of 5 temptations stayed quiet", "0 false alarms"] {
        assert!(said.contains(expected), "{expected} is missing:\n{said}");
    }
    assert!(said.contains("failing logins"), "a card shows the evidence:\n{said}");

    let file = kept.join("trackalert.toml");
    let check = trackalert(&["check", "-C", utf8(&file)]);
    assert!(check.status.success(), "{}", text(&check));
    let reports = std::fs::read_to_string(kept.join("reports.ndjson")).unwrap();
    // What belongs together is not cut apart at the end of a day, so the hour of the run decides of one or two more.
    let count = reports.lines().count();
    assert!((4950..=5050).contains(&count), "{count}");
    assert!(said.contains(&format!("{count} reports, one POST each")), "{count}:\n{said}");
    let query = trackalert(&["query", "-C", utf8(&file), "--offline", "--by", "login"]);
    assert!(query.status.success(), "{}", text(&query));
}

/// At full speed thousands of reports wait for the history at once. Where one of them waits for long, its login's reports run out of
/// their order, and policies see accounts that have slept for months and countries that are new.
#[test]
fn demo_of_the_readme_raises_no_false_alarm() {
    let said = text(&trackalert(&["demo", "--exit"]));
    for expected in ["11 of 11 attacks found", "5 of 5 temptations stayed quiet", "0 false alarms"] {
        assert!(said.contains(expected), "{expected} is missing:\n{said}");
    }
}

#[test]
fn missed_attack_is_an_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("blind");
    std::fs::create_dir(&policy).unwrap();
    std::fs::write(policy.join("policy.lua"), "function report(lt) end").unwrap();
    let set = format!("policy.path=[\"{}\"]", utf8(folder.path()));
    let demo = trackalert(&["demo", "--exit", "--reports", "5000", "--set", &set]);
    assert_eq!(demo.status.code(), Some(1), "{}", text(&demo));
    assert!(text(&demo).contains("0 of 11 attacks found"), "{}", text(&demo));
}
