//! What `trackalert check` says of a configuration of the old program that loads and would not work.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

mod support;

use serde_json::{Value, json};
use support::program::Site;

/// The exit code and all that is said.
fn check(lua: &str, arguments: &[&str]) -> (Option<i32>, String) {
    said(&Site::new(""), "check", "old.conf", lua, arguments)
}

fn said(site: &Site, command: &str, config: &str, lua: &str, arguments: &[&str]) -> (Option<i32>, String) {
    std::fs::write(site.folder.path().join("old.conf"), lua).unwrap();
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_trackalert"));
    program.args([command, "-C", config]).args(arguments).current_dir(site.folder.path());
    let output = program.output().unwrap();
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

#[test]
fn what_functions_use_by_name_is_there_beside_what_the_toml_file_names() {
    let site = Site::new(
        "policy.legacy_config = \"old.conf\"\ngeoip.files = [\"a.mmdb\"]\npolicy.custom_stats = [\"one\"]\n\
         [[notify.custom_webhooks]]\nname = \"both\"\nurl = \"http://toml.example/\"\n",
    );
    let lua = "newGeoIP2DB('x', 'a.mmdb')\nnewGeoIP2DB('y', 'b.mmdb')\naddCustomStat('one') addCustomStat('two')\n\
               addCustomWebHook('both', { url = 'http://lua.example/' })\n\
               addCustomWebHook('new', { url = 'http://lua.example/' })";
    let (code, text) = said(&site, "config", "trackalert.toml", lua, &["--format", "json"]);
    assert_eq!(code, Some(0), "{text}");
    let shown: Vec<Value> = serde_json::from_str(&text).unwrap();
    let value = |key: &str| shown.iter().find(|one| one["key"] == key).unwrap()["value"].clone();
    assert_eq!(value("geoip.files"), json!(["a.mmdb", "b.mmdb"]));
    assert_eq!(value("policy.custom_stats"), json!(["one", "two"]));
    let hooks = value("notify.custom_webhooks");
    let hooks: Vec<_> = hooks.as_array().unwrap().iter().map(|hook| (&hook["name"], &hook["url"])).collect();
    assert_eq!(hooks, [(&json!("both"), &json!("http://toml.example")), (&json!("new"), &json!("http://lua.example"))]);
    // A list of the command line leaves them, too; and what is not there is told where it was named.
    let (code, text) = said(&site, "check", "trackalert.toml", lua, &["--set", "geoip.files="]);
    assert!(code == Some(2) && text.contains("geoip.files: a.mmdb") && !text.contains("is empty"), "{text}");
    let (code, text) = said(&site, "check", "trackalert.toml", "addCustomWebHook('n', { url = 'x' })", &[]);
    assert!(code == Some(2) && text.contains("old.conf:1: notify.custom_webhooks[1].url"), "{text}");
}
