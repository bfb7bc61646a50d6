//! Configurations of the old program: what works while the file is loaded, what later, and what is told of the rest.

use crate::bench::on_worker;
use crate::old::{handle, machine, read, refused};

/// What this thread writes to the log meanwhile.
fn logged(work: impl FnOnce()) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    let writer = std::sync::Mutex::new(file.reopen().unwrap());
    tracing::subscriber::with_default(tracing_subscriber::fmt().with_writer(writer).finish(), work);
    std::fs::read_to_string(file.path()).unwrap()
}

#[test]
fn call_that_configures_does_nothing_later_and_fails_no_report() {
    let calls = [
        "webserver('127.0.0.1:1', '')",
        "addListener('127.0.0.1:1', false)",
        "setWebserverPassword('pw')",
        "setACL { '::1' }",
        "addACL('::1')",
        "setMetricsNoPassword()",
        "controlSocket('127.0.0.1')",
        "assert(setKey(makeKey()) == false)",
        "setNumLuaStates(1)",
        "setNumWorkerThreads(1)",
        "newGeoIP2DB('a', 'b')",
        "addCustomWebHook('h', { url = 'http://x/' })",
        "addCustomStat('s')",
        "setReport(function() end)",
        "setBackground('b', function() end)",
        "intervalScheduleBackgroundFunc('1', 'b')",
        "setCustomEndpoint('e', function() end)",
    ];
    for call in calls {
        let name = call.trim_start_matches("assert(").split(['(', ' ']).next().unwrap();
        let said = logged(|| handle(call));
        let told = format!("{name}: works only while the file is loaded; write it into the file, and restart");
        assert_eq!(said.matches(&told).count(), 1, "{call}:\n{said}");
    }
}

#[test]
fn function_may_be_scheduled_before_it_is_set_and_not_without() {
    let said = read("cronScheduleBackgroundFunc('* * * * *', 'f')\nsetBackground('f', function() end)");
    assert_eq!(said.scheduled[0].name, "f");
    assert_eq!(
        refused("setBackground('f', function() end)\nintervalScheduleBackgroundFunc('1', 'g')"),
        "trackalert.conf:2: intervalScheduleBackgroundFunc: name: setBackground has set no function with the name g"
    );
}

#[test]
fn geoip_and_files_of_networks_work_at_the_top_level() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vpn.txt");
    std::fs::write(&path, "192.0.2.0/24\n").unwrap();
    let source = format!(
        "initGeoIPDB() initGeoIPCityDB()
        local ca = newCA('192.0.2.7')
        assert(lookupCountry(ca) == '' and getGeoIP2DB('City'):lookupCity(ca).city == '')
        vpn = net.file('{}')
        assert(vpn:has('192.0.2.7'))
        setReport(function(lt) end)",
        path.display()
    );
    read(&source);
    machine(&source);
}

#[test]
fn group_of_networks_takes_a_long_list_and_says_what_is_wrong() {
    let source = r#"
        local group = newNetmaskGroup()
        for i = 0, 19999 do group:addMask("10." .. math.floor(i / 256) .. "." .. i % 256 .. ".1") end
        setReport(function(lt)
          assert(group:size() == 20000 and group:match(newCA("10.0.9.1")))
          group:clear()
          group:addMask("192.0.2.0/24")
          local ok, reason = pcall(group.addMask, group, "x")
          assert(not ok and reason:find("trackalert.conf:%d+: addMask: mask: `x` is no network"), tostring(reason))
          ok, reason = pcall(group.match, group, {})
          assert(not ok and reason:find("match: ca: an address is required, got a table", 1, true), tostring(reason))
          ok, reason = pcall(group.match, "x")
          assert(not ok and reason:find("match: group: ", 1, true), tostring(reason))
        end)"#;
    let outcome = on_worker(async { machine(source).at(1.0).await });
    assert!(outcome.is_ok(), "{outcome:?}");
}

#[test]
fn look_up_without_a_file_names_itself_and_what_is_missing() {
    handle(
        r#"
        for name, call in pairs { lookupCountry = "initGeoIPDB", lookupISP = "initGeoIPISPDB", lookupCity = "initGeoIPCityDB" } do
          local ok, reason = pcall(function() local found = _G[name](lt.remote) end)
          assert(not ok and reason:find("trackalert.conf:%d+: " .. name .. ": there is no file"), reason)
          assert(reason:find(call, 1, true), reason)
        end
        "#,
    );
}

#[test]
fn later_listener_lowers_no_tls_version_of_an_earlier_one() {
    let one = |port: u16, version: &str| {
        format!("addListener('127.0.0.1:{port}', true, 'c', 'k', {{ min_protocol = '{version}' }})\n")
    };
    assert_eq!(
        refused(&(one(1, "TLSv1.3") + &one(2, "TLSv1.2"))),
        "trackalert.conf:2: addListener: min_protocol: an earlier listener has another one; all listeners have the same here"
    );
    read(&(one(1, "TLSv1.1") + &one(2, "TLSv1.2")));
}

#[test]
fn of_two_numbers_of_webhooks_the_last_one_counts() {
    let said = read("setNumWebHookThreads(4) setNumWebHookConnsPerThread(5) setNumWebHookThreads(2)");
    assert_eq!(said.settings[0].value, 10);
}
