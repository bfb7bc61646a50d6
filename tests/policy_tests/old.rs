//! Configurations of the old program under `trackalert test`: their report function, the webhooks that it runs, and what no test reaches.

use std::net::TcpListener;

use crate::cases::{self, Watching, json, run, write};

/// A folder with an old configuration and its tests.
fn site(conf: &str, tests: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("trackalert.conf"), conf);
    write(&folder.path().join("tests/cases.toml"), tests);
    folder
}

const CONF: &str = "webserver('127.0.0.1:1', 'secret')
addCustomWebHook('siem', { url = 'http://192.0.2.99/hook', secret = 's' })
addCustomStat('odd')
newGeoIP2DB('Country', '/nowhere/GeoLite2-Country.mmdb')
local cjson = require 'cjson'
local http = require 'socket.http'
local function report(lt)
  if lt.success then return end
  incCustomStat('odd')
  local body, status = http.request('http://lists.example/' .. lt.remote:tostring())
  if status == 200 and body == 'listed' then
    runCustomWebHook('siem', cjson.encode { login = lt.login, country = lookupCountry(lt.remote), why = body })
  end
end
setReport(report)
setBackground('never', function() runCustomWebHook('siem', 'background') end)
intervalScheduleBackgroundFunc('00:00:01', 'never')
";

const HEAD: &str = "defaults = { login = \"ann\", remote = \"192.0.2.7\" }
http = [{ url = \"http://lists.example/192.0.2.7\", body = \"listed\" }]
[geo.\"192.0.2.0/24\"]
country = \"NL\"
[[case]]
name = \"listed\"
reports = [{ repeat = 2, every = \"1h\" }, { success = true }]
alerts = []
";

#[test]
fn report_function_is_tested_with_its_webhooks_and_the_places_of_the_case() {
    let right = "webhooks = [{ name = \"siem\", json = { login = \"ann\", country = \"NL\" }, body = { contains = \"listed\" }, times = 2 }]\n";
    let folder = site(CONF, &format!("{HEAD}{right}"));
    let at = folder.path();
    let ran = run(at, &["trackalert.conf"]);
    assert!(ran.code == 0 && ran.out.contains("ok      trackalert: listed\n"), "{ran}");
    // The configuration that is named is tested without being named twice.
    for args in [&["-C", "trackalert.conf"][..], &["--set", "policy.legacy_config=trackalert.conf"]] {
        let ran = run(at, args);
        assert!(ran.code == 0 && ran.out.contains("1 case: 1 passed"), "{args:?}: {ran}");
    }
    for (webhooks, shown) in [
        (
            right.replace("NL", "DE"),
            "differs: webhook siem, run by report 1 (the start, tests/cases.toml:7)\n      - json.country  \"DE\"\n      + json.country  \"NL\"\n",
        ),
        (right.replace("times = 2", "times = 3"), "missing: webhook siem\n      - json.country  \"NL\"\n"),
        (
            "webhooks = []\n".to_owned(),
            "unexpected: webhook siem, run by report 2 (+1h, tests/cases.toml:7)\n      + json.country  \"NL\"\n",
        ),
        (right.replace("\"siem\"", "\"other\""), "missing: webhook other\n"),
    ] {
        write(&at.join("tests/cases.toml"), &format!("{HEAD}{webhooks}"));
        let ran = run(at, &["trackalert.conf"]);
        assert!(ran.code == 1 && ran.out.contains(shown), "{webhooks}: {shown} is missing in\n{ran}");
    }
    write(&at.join("tests/cases.toml"), HEAD);
    assert_eq!(run(at, &["trackalert.conf"]).code, 0, "a webhook that nobody looks at is no failure");
}

#[test]
fn webhook_that_no_configuration_names_fails_the_policy_with_its_line() {
    let folder = site("setReport(function(lt)\n  runCustomWebHook('none', '')\nend)", HEAD);
    let ran = run(folder.path(), &["trackalert.conf"]);
    let told = "trackalert.conf:2: runCustomWebHook: name: there is no webhook none";
    assert!(ran.code == 1 && ran.out.contains(told), "{told} is missing in\n{ran}");
    let config = "[[notify.custom_webhooks]]\nname = \"none\"\nurl = \"http://192.0.2.99/\"\n";
    write(&folder.path().join("trackalert.toml"), config);
    let ran = run(folder.path(), &["trackalert.conf", "-C", "trackalert.toml"]);
    assert_eq!(ran.code, 0, "{ran}");
}

#[test]
fn broken_old_configuration_is_told_with_file_and_line() {
    for (conf, expected) in [
        ("setReport(function(lt)\n  x = = 1\nend)", "BROKEN  trackalert.conf:2: unexpected symbol near '='"),
        ("addACL({})", "BROKEN  trackalert.conf:1: addACL: mask: a string is required"),
        ("addACL('::1')", "BROKEN  trackalert.conf: sets no function for reports (setReport)"),
    ] {
        let folder = site(conf, HEAD);
        let ran = run(folder.path(), &["trackalert.conf"]);
        assert!(ran.code == 2 && ran.out.contains(expected), "{conf}: {expected} is missing in\n{ran}");
    }
    let folder = site(CONF, HEAD);
    let at = folder.path();
    for (path, expected) in [
        ("tests/cases.toml", "Those of an old configuration run by its own name"),
        ("no.conf", "no.conf: No such file"),
    ] {
        let ran = run(at, &[path]);
        assert!(
            ran.code == 2 && (ran.err.contains(expected) || ran.out.contains(expected)),
            "{path}: {expected} is missing in\n{ran}"
        );
    }
    std::fs::remove_dir_all(at.join("tests")).unwrap();
    let ran = run(at, &["trackalert.conf"]);
    assert!(ran.code == 2 && ran.err.contains("trackalert.conf: no tests there"), "{ran}");
}

#[test]
fn redis_and_mail_reach_no_network_and_elasticsearch_goes_by_the_answers() {
    // Nobody may knock.
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    door.set_nonblocking(true).unwrap();
    let port = door.local_addr().unwrap().port();
    let conf = format!(
        "local redis, smtp, ltn12 = require 'redis', require 'socket.smtp', require 'ltn12'
         local client = require('elasticsearch').client {{ hosts = {{ {{ host = 'es.example', port = 9200 }} }} }}
         setReport(function(lt)
           local ok, why = pcall(function() return redis.connect('127.0.0.1', {port}):get('x') end)
           alert {{ kind = 'redis', title = tostring(why) }}
           local sent, reason = smtp.send {{ from = '<a@example.com>', rcpt = '<b@example.com>', source = ltn12.source.string('x'),
             server = '127.0.0.1', port = {port} }}
           alert {{ kind = 'mail', title = tostring(reason) }}
           local data, refused = client:search {{ index = 'logins', body = {{ query = {{ match_all = {{}} }} }} }}
           alert {{ kind = 'elastic', title = refused or tostring(data.hits.total) }}
         end)"
    );
    let tests = format!(
        "[[case]]\nname = \"x\"\nreports = [{{ login = \"a\", remote = \"::1\" }}]
http = [{{ method = \"POST\", url = \"http://es.example:9200/logins/_search\", json = {{ hits = {{ total = 7 }} }} }}]
calls = [{{ url = {{ contains = \"/logins/_search\" }}, json = {{ query = {{ match_all = {{}} }} }} }}]
alerts = [
  {{ kind = \"redis\", title = {{ contains = \"redis: 127.0.0.1:{port}: a test of a policy reaches no network\" }} }},
  {{ kind = \"mail\", title = {{ contains = \"127.0.0.1:{port}: a test of a policy reaches no network\" }} }},
  {{ kind = \"elastic\", title = \"7\" }},
]\n"
    );
    let folder = site(&conf, &tests);
    let ran = run(folder.path(), &["trackalert.conf"]);
    assert_eq!(ran.code, 0, "{ran}");
    assert!(door.accept().is_err(), "somebody knocked");
}

#[test]
fn old_configuration_and_policies_run_side_by_side() {
    let folder = site(CONF, HEAD);
    let at = folder.path();
    write(&at.join("policies/p/policy.lua"), "function report(lt) end");
    write(&at.join("policies/p/tests/cases.toml"), &cases::case("y"));
    let (code, answer) = json(at, &["-C", "trackalert.conf"]);
    let policies: Vec<_> = answer["cases"].as_array().unwrap().iter().map(|case| case["policy"].clone()).collect();
    assert_eq!((code, policies), (0, vec!["p".into(), "trackalert".into()]), "{answer:#}");
}

#[test]
fn watch_runs_again_when_the_old_configuration_or_its_tests_change() {
    let folder = site("setReport(function(lt) end)", HEAD);
    let at = folder.path();
    let watching = Watching::start(at, &["trackalert.conf"]);
    watching.wait_for(&["ok      trackalert: listed", "1 case: 1 passed in", "watching 2 files"]);
    write(&at.join("trackalert.conf"), "setReport(function(lt) error('broken') end)");
    watching.wait_for(&["trackalert.conf has changed", "FAILED  trackalert: listed", "watching 2 files"]);
    write(&at.join("tests/more.toml"), &cases::case("y"));
    watching.wait_for(&["tests/more.toml has changed", "FAILED  trackalert: y", "watching 3 files"]);
    std::fs::remove_file(at.join("trackalert.conf")).unwrap();
    watching.wait_for(&["trackalert.conf has changed", "BROKEN  trackalert.conf: ", "watching 2 files"]);
    write(&at.join("trackalert.conf"), "setReport(function(lt) end)");
    watching.wait_for(&["trackalert.conf has changed", "2 cases: 2 passed in", "watching 3 files"]);
    assert_eq!(watching.interrupt(), Some(0));
}
