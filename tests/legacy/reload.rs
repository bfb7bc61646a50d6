//! Reloads of a configuration of the old program: what its functions need is there when they run, or the functions that run stay.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::program::{PATIENCE, Program, Site};
use crate::support::wire::{Answer, basic, post};

/// A site that runs such a file.
fn site(lua: &str) -> Site {
    let site = Site::new("policy.legacy_config = \"trackalert.conf\"\n");
    write(&site, lua);
    site
}

fn write(site: &Site, lua: &str) {
    std::fs::write(site.folder.path().join("trackalert.conf"), lua).unwrap();
}

fn start(site: &Site) -> Program {
    let mut command = site.command();
    command.current_dir(site.folder.path());
    site.start_command(command)
}

fn reload(program: &Program) -> Answer {
    post(&program.address, "/v1/admin/reload", "", "")
}

/// An endpoint that tells which file it is of.
fn which(name: &str) -> String {
    format!("setCustomEndpoint('which', function() return true, {{ file = '{name}' }} end)")
}

fn asked(program: &Program) -> String {
    let answer = post(&program.address, "/command/which", "", "{}").json();
    answer["r_attrs"]["file"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn reload_whose_functions_would_miss_a_webhook_or_a_geoip_file_is_refused_and_a_restart_takes_it() {
    let hook = |name: &str| format!("addCustomWebHook('{name}', {{ url = 'http://127.0.0.1:9/' }})\n");
    let site = site(&(hook("one") + &which("first")));
    let program = start(&site);
    for (call, expected) in [
        (hook("two"), "trackalert.conf:2: addCustomWebHook: webhook two is there after a restart only"),
        (
            "newGeoIP2DB('x', '/nowhere.mmdb')\n".to_owned(),
            "trackalert.conf:2: newGeoIP2DB: /nowhere.mmdb is opened at a restart only",
        ),
        ("initGeoIPDB()\n".to_owned(), "trackalert.conf:2: initGeoIPDB: /usr/share/GeoIP/"),
    ] {
        write(&site, &(hook("one") + &call + &which("second")));
        let answer = reload(&program);
        assert_eq!(answer.status, 422, "{answer:?}");
        for part in [expected, "the policies that run stay in use"] {
            assert!(answer.body.contains(part), "{part}: {answer:?}");
        }
        assert_eq!(asked(&program), "first");
    }
    write(&site, &(hook("one") + &hook("two") + &which("second")));
    assert_eq!(program.terminate(), Some(0));
    let program = start(&site);
    assert_eq!(asked(&program), "second");
    assert_eq!(reload(&program).status, 200);
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn counter_that_a_reload_adds_counts_from_then_on() {
    let site = site("setReport(function(lt) end)");
    let program = start(&site);
    let counter = "trackalert_custom_stats_total{metric=\"added\"}";
    assert_eq!(program.metric(counter), None);
    write(&site, "addCustomStat('added')\nsetReport(function(lt) incCustomStat('added') end)");
    program.signal(Signal::SIGHUP);
    program.wait_until("the counter", PATIENCE, |program| program.metric(counter) == Some(0.0));
    let mut t = 1_700_000_000;
    // The first may come while the machines are exchanged, and be for the function before.
    program.wait_until("a report that counts", PATIENCE, |program| {
        t += 1;
        let report = json!({ "login": "ann", "remote": "192.0.2.7", "success": true, "t": t });
        assert_eq!(post(&program.address, "/command/report", "", report.to_string()).status, 200);
        program.metric(counter).unwrap() > 0.0
    });
    assert!(!site.log_text().contains("there is no counter"), "{}", site.log_text());
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn setting_that_waits_for_a_restart_is_told_with_its_call_and_without_its_value() {
    let hook =
        |secret: &str| format!("addCustomWebHook('h', {{ url = 'http://127.0.0.1:9/', secret = '{secret}' }})\n");
    let site =
        site(&(hook("hunter1") + "setMaxWebserverConns(50)\nwebserver('127.0.0.1:1', 'hunter2')\n" + &which("first")));
    let program = start(&site);
    let password = basic("any:hunter2");
    let reload = || post(&program.address, "/v1/admin/reload", &password, "");
    let answer = reload();
    assert!(answer.status == 200 && !answer.body.contains("restart"), "{answer:?}");

    write(
        &site,
        &(hook("hunter3") + "addACL('192.0.2.0/24')\nwebserver('127.0.0.1:2', 'hunter4')\n" + &which("second")),
    );
    let answer = reload();
    assert_eq!(answer.status, 200, "{answer:?}");
    for expected in [
        "trackalert.conf:1: addCustomWebHook: webhook h changes at a restart only",
        "trackalert.conf:2: addACL: http.acl changes at a restart only",
        "trackalert.conf:3: webserver: http.password changes at a restart only",
        "trackalert.conf: http.max_connections: stays as setMaxWebserverConns has set it, until a restart",
    ] {
        assert!(answer.body.contains(expected), "{expected}: {answer:?}");
        assert!(site.log_text().contains(expected), "{expected}");
    }
    // The TOML file names another address, and wins.
    assert!(!answer.body.contains("http.listen") && !site.log_text().contains("hunter"), "{answer:?}");
    let answer = post(&program.address, "/command/which", &password, "{}").json();
    assert_eq!(answer["r_attrs"]["file"], "second");
    assert_eq!(program.terminate(), Some(0));
}
