//! What `trackalert check` says of a configuration of the old program: what each call means here, and what would not work.

use crate::support::program::Site;
use serde_json::{Value, json};

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
    assert!(code == Some(0) && said.contains("127.0.0.1:5199") && !said.contains("has set no key"), "{said}");
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
    // It is in force, whoever named it first.
    let (_, text) = said(&site, "check", "trackalert.toml", lua, &[]);
    assert!(
        text.contains("geoip.files has an entry \"a.mmdb\"; ") && text.matches("not in force").count() == 1,
        "{text}"
    );
    // A list of the command line leaves them, too; and what is not there is told where it was named.
    let (code, text) = said(&site, "check", "trackalert.toml", lua, &["--set", "geoip.files="]);
    assert!(code == Some(2) && text.contains("geoip.files: a.mmdb") && !text.contains("is empty"), "{text}");
    let (code, text) = said(&site, "check", "trackalert.toml", "addCustomWebHook('n', { url = 'x' })", &[]);
    assert!(code == Some(2) && text.contains("old.conf:1: notify.custom_webhooks[1].url"), "{text}");
}

/// Every call that configures, a line each; the secrets begin with `s3cret`.
const EVERY_CALL: &str = r#"webserver("127.0.0.1:8084", "s3cret-web")
addListener("127.0.0.1:8085", false)
setWebserverPassword("s3cret-of-the-web")
setACL({ "127.0.0.0/8" })
addACL("192.0.2.0/24")
setMetricsNoPassword()
setMaxWebserverConns(77)
controlSocket("127.0.0.1")
setKey("czNjcmV0LWtleS1vZi0zMi1ieXRlcy0wMDAwMDAwMDA=")
setNumLuaStates(3)
setNumWorkerThreads(4)
setNumReportThreads(5)
setNumSchedulerThreads(6)
newGeoIP2DB("mine", "country.mmdb")
initGeoIPDB()
initGeoIPCityDB()
initGeoIPISPDB()
addCustomWebHook("tell", { url = "https://u:s3cret-u@hook.example/a/s3cret-path", secret = "s3cret-hook", ["api-key"] = "s3cret-api" })
setNumWebHookThreads(2)
setNumWebHookConnsPerThread(8)
setWebHookQueueSize(1000)
setWebHookTimeoutSecs(7)
disableCurlPeerVerification()
disableCurlHostVerification()
setCurlCABundleFile("ca.pem")
setCurlClientCertAndKey("cert.pem", "key.pem")
addCustomStat("seen")
setReport(function(lt) end)
setBackground("sweep", function() end)
setBackground("idle", function() end)
cronScheduleBackgroundFunc("*/5 * * * *", "sweep")
intervalScheduleBackgroundFunc("00:01:30", "sweep")
setCustomEndpoint("echo", function(args) return true, {} end)
addListener("127.0.0.1:8086", true, "cert.pem", "key.pem", { min_protocol = "TLSv1.3" })
setMaxWebserverConns(88)
setKey("no key")
setReport(function(lt) end)
"#;

/// The line, a part of the call, and all that it means here.
const HERE: [(usize, &str, &str); 38] = [
    (
        1,
        "webserver(\"127.0.0.1:8084\", ********)",
        "http.listen has an entry \"http://127.0.0.1:8084\"; http.password = \"********\" (not in force: old.conf:3 sets it)",
    ),
    (2, "addListener(\"127.0.0.1:8085\", false)", "http.listen has an entry \"http://127.0.0.1:8085\""),
    (3, "setWebserverPassword(********)", "http.password = \"********\""),
    (4, "setACL({ \"127.0.0.0/8\" })", "http.acl = [\"127.0.0.0/8\"]"),
    (5, "addACL(\"192.0.2.0/24\")", "http.acl has an entry \"192.0.2.0/24\""),
    (6, "setMetricsNoPassword()", "http.metrics_password = false"),
    (7, "setMaxWebserverConns(77)", "http.max_connections = 77 (not in force: old.conf:35 sets it)"),
    (8, "controlSocket(\"127.0.0.1\")", "console.listen = \"127.0.0.1:5199\""),
    (9, "setKey(********)", "console.key = \"********\""),
    (10, "setNumLuaStates(3)", "detect.workers = 3"),
    (
        11,
        "setNumWorkerThreads(4)",
        "does nothing here: each policy worker has thousands of calls in flight (detect.in_flight)",
    ),
    (
        12,
        "setNumReportThreads(5)",
        "does nothing here: each policy worker has thousands of calls in flight (detect.in_flight)",
    ),
    (
        13,
        "setNumSchedulerThreads(6)",
        "does nothing here: each policy worker has thousands of calls in flight (detect.in_flight)",
    ),
    (
        14,
        "newGeoIP2DB(\"mine\", \"country.mmdb\")",
        "geoip.files has an entry \"country.mmdb\"; getGeoIP2DB(\"mine\") finds it",
    ),
    (15, "initGeoIPDB()", "Country.mmdb\"; getGeoIP2DB(\"Country\") finds it"),
    (16, "initGeoIPCityDB()", "City.mmdb\"; getGeoIP2DB(\"City\") finds it"),
    (17, "initGeoIPISPDB()", ".mmdb\"; getGeoIP2DB(\"ISP\") finds it"),
    (18, "addCustomWebHook(\"tell\", { api-key, secret, url })", "notify.custom_webhooks has an entry { "),
    (18, "addCustomWebHook", "url = \"https://********@hook.example/a/********\""),
    (19, "setNumWebHookThreads(2)", "a factor of notify.custom_in_flight, which is 2 with it"),
    (20, "setNumWebHookConnsPerThread(8)", "a factor of notify.custom_in_flight, which is 16 with it"),
    (
        21,
        "setWebHookQueueSize(1000)",
        "does nothing here: webhooks wait in the alerts queue, on disk, and none is dropped",
    ),
    (22, "setWebHookTimeoutSecs(7)", "notify.timeout = \"7s\""),
    (23, "disableCurlPeerVerification()", "outbound.verify_certificates = false"),
    (24, "disableCurlHostVerification()", "outbound.verify_hosts = false"),
    (25, "setCurlCABundleFile(\"ca.pem\")", "outbound.ca_file = \"ca.pem\""),
    (
        26,
        "setCurlClientCertAndKey(\"cert.pem\", \"key.pem\")",
        "outbound.client_cert = \"cert.pem\"; outbound.client_key = \"key.pem\"",
    ),
    (27, "addCustomStat(\"seen\")", "policy.custom_stats has an entry \"seen\""),
    (
        28,
        "setReport(function)",
        "one more policy, which has the file's name (not in force: old.conf:37 registers another)",
    ),
    (29, "setBackground(\"sweep\", function)", "a background function, which a call below or above schedules"),
    (30, "setBackground(\"idle\", function)", "a background function that never runs: no call schedules it"),
    (
        31,
        "cronScheduleBackgroundFunc",
        "runs sweep at */5 * * * * by this machine's clock, in a process with the role schedule",
    ),
    (32, "intervalScheduleBackgroundFunc", "runs sweep every 90 s, in a process with the role schedule"),
    (33, "setCustomEndpoint(\"echo\", function)", "POST /command/echo runs it in a policy worker"),
    (
        34,
        "{ min_protocol })",
        "http.tls_cert = \"cert.pem\"; http.tls_key = \"key.pem\"; http.listen has an entry \"https://127.0.0.1:8086\"; http.tls_min = \"1.3\"",
    ),
    (35, "setMaxWebserverConns(88)", "http.max_connections = 88"),
    (36, "setKey(********)", "does nothing here: it is no base64 of 32 bytes"),
    (37, "setReport(function)", "one more policy, which has the file's name"),
];

#[test]
fn file_with_every_call_has_all_that_are_documented() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/legacy.md");
    let text = std::fs::read_to_string(docs).unwrap();
    let cells = |head: &str| {
        // Of the second one the first table alone: what follows it are no calls that configure.
        let section = text.split(head).nth(1).unwrap().split("\n## ").next().unwrap();
        let section = section.split("\n| what |").next().unwrap();
        let cells = section.lines().filter_map(|row| row.strip_prefix("| `")?.split(" | ").next());
        cells.flat_map(|cell| cell.split(['`', ' ', ','])).collect::<Vec<_>>()
    };
    let with_arguments =
        cells("## Names while the file is loaded").into_iter().filter_map(|word| word.split_once(['(', '{']));
    let bare = cells("## Accepted, and does nothing").into_iter();
    let calls = with_arguments.map(|(name, _)| name).chain(bare).filter(|name| !name.is_empty());
    // That one makes a key, and sets none.
    let all: Vec<&str> = calls.filter(|name| *name != "makeKey").collect();
    for call in &all {
        assert!(EVERY_CALL.contains(&format!("{call}(")), "{call}");
    }
    assert_eq!(all.len(), 32, "{all:?}");
}

#[test]
fn each_call_of_a_file_is_told_with_its_line_and_what_it_means_here_and_without_its_secrets() {
    // The files that it names are not there: what it means is told all the same.
    let (_, said) = check(EVERY_CALL, &[]);
    for (line, call, here) in HERE {
        let place = format!("old.conf:{line} ");
        let told = said.lines().find(|told| told.trim_start().starts_with(&place));
        let told = told.unwrap_or_else(|| panic!("nothing of line {line}:\n{said}"));
        assert!(told.contains(call) && told.contains(here), "{here}\n{told}");
        let beaten = HERE.iter().any(|(of, _, here)| *of == line && here.contains("(not in force"));
        assert_eq!(told.contains("(not in force"), beaten, "{told}");
    }
    assert!(!said.contains("s3cret") && !said.contains("czNjcmV0"), "{said}");
}

#[test]
fn of_two_webhooks_with_one_name_the_later_one_counts() {
    let hook = |host: &str| format!("addCustomWebHook('tell', {{ url = 'http://{host}.example/' }})\n");
    let (code, said) = check(&(hook("one") + &hook("two")), &[]);
    assert_eq!(code, Some(0), "{said}");
    let told =
        |line: usize| said.lines().find(|told| told.trim_start().starts_with(&format!("old.conf:{line} "))).unwrap();
    assert!(told(1).contains("not in force: old.conf:2") && !told(2).contains("not in force"), "{said}");
}

#[test]
fn calls_are_an_object_each_and_what_a_later_layer_sets_is_not_told_to_be_in_force() {
    let set = ["--format", "json", "--set", "http.max_connections=5", "--set", "http.acl=[\"127.0.0.0/8\"]"];
    let (code, said) =
        check("setMaxWebserverConns(77)\naddACL('192.0.2.0/24')\nfor i = 1, 2 do addCustomStat('s' .. i) end", &set);
    assert_eq!(code, Some(0), "{said}");
    let told: Value = serde_json::from_str(&said).unwrap();
    let calls = told["calls"].as_array().unwrap();
    let told = |at: usize| (calls[at]["source"].as_str().unwrap(), calls[at]["here"][0].as_str().unwrap());
    let beaten = |value: &str, key: &str| format!("{value} (not in force: --set {key} sets it)");
    assert_eq!(told(0), ("old.conf:1", &*beaten("http.max_connections = 77", "http.max_connections")));
    assert_eq!(told(1), ("old.conf:2", &*beaten("http.acl has an entry \"192.0.2.0/24\"", "http.acl")));
    assert_eq!(told(3), ("old.conf:3", "policy.custom_stats has an entry \"s2\""));
    assert_eq!((calls.len(), &calls[0]["call"]), (4, &Value::from("setMaxWebserverConns(77)")));
}
