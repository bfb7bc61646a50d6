//! What `trackalert check` says of a configuration of the old program that loads and would not work.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

mod support;

use support::program::Site;

/// The exit code and all that is said.
fn check(lua: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let site = Site::new("");
    std::fs::write(site.folder.path().join("old.conf"), lua).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_trackalert"));
    command.args(["check", "-C", "old.conf"]).args(arguments).current_dir(site.folder.path());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), said)
}

#[test]
fn console_without_a_key_is_warned_of_and_an_address_without_one_is_an_error() {
    let (code, said) = check("controlSocket(\"127.0.0.1\")", &[]);
    assert!(code == Some(0) && said.contains("old.conf:1: console.listen: setKey has set no key"), "{said}");
    let (code, said) = check("", &["--set", "console.listen=127.0.0.1:5199"]);
    assert!(code == Some(2) && said.contains("console.listen is set and console.key is not"), "{said}");
    let (code, said) = check("controlSocket(\"127.0.0.1\")\nsetKey(makeKey())", &[]);
    assert!(code == Some(0) && said.contains("127.0.0.1:5199") && !said.contains("setKey"), "{said}");
}

#[test]
fn webhook_whose_key_no_header_may_have_is_an_error_that_does_not_show_it() {
    let (code, said) = check("addCustomWebHook('h', { url = 'http://x.example/', ['api-key'] = 'hunter2\\n' })", &[]);
    assert!(code == Some(2) && said.contains("notify.custom_webhooks[0].api_key"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}
