//! Configurations of the old program: one case for each name that existing files use, and a whole one that runs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

#[path = "support/policy.rs"]
mod bench;
#[path = "support/old.rs"]
mod old;
#[path = "support/stores.rs"]
mod stores;
mod support;

#[path = "legacy/check.rs"]
mod check;
#[path = "legacy/geoip.rs"]
mod geoip;
#[path = "legacy/loading.rs"]
mod loading;
#[path = "legacy/modules.rs"]
mod modules;
#[path = "legacy/reload.rs"]
mod reload;

use axum::Router;
use axum::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bench::on_worker;
use nix::sys::signal::Signal;
use old::{handle, machine, read, refused};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use trackalert::policy::Failure;

use support::program::{PATIENCE, Site, free_address};
use support::wire::{exchange, request};

#[test]
fn each_call_that_configures_is_a_setting_of_ours() {
    let geoip = |name: &str| json!([format!("/usr/share/GeoIP/{name}.mmdb")]);
    let cases: Vec<(&str, Vec<(&str, Value)>)> = vec![
        (
            r#"webserver("0.0.0.0:8084", "secret")"#,
            vec![("http.listen", json!(["http://0.0.0.0:8084"])), ("http.password", json!("secret"))],
        ),
        (
            r#"addListener("[::1]:9000", true, "c.pem", "k.pem", { minimum_protocol = "TLSv1.3" })"#,
            vec![
                ("http.listen", json!(["https://[::1]:9000"])),
                ("http.tls_cert", json!("c.pem")),
                ("http.tls_key", json!("k.pem")),
                ("http.tls_min", json!("1.3")),
            ],
        ),
        (
            r#"addListener("127.0.0.1:1", false, "", "", {}) addListener("127.0.0.1:2", false)"#,
            vec![("http.listen", json!(["http://127.0.0.1:1", "http://127.0.0.1:2"]))],
        ),
        (r#"setWebserverPassword("pw")"#, vec![("http.password", json!("pw"))]),
        (r#"setACL { "10.0.0.0/8", "::1" }"#, vec![("http.acl", json!(["10.0.0.0/8", "::1"]))]),
        (r#"setACL { "10.0.0.0/8" } addACL("::1")"#, vec![("http.acl", json!(["10.0.0.0/8", "::1"]))]),
        ("setMetricsNoPassword()", vec![("http.metrics_password", json!(false))]),
        ("setMaxWebserverConns(99)", vec![("http.max_connections", json!(99))]),
        (r#"controlSocket("127.0.0.1")"#, vec![("console.listen", json!("127.0.0.1:5199"))]),
        (r#"controlSocket("[::1]:99")"#, vec![("console.listen", json!("[::1]:99"))]),
        ("setNumLuaStates(4)", vec![("detect.workers", json!(4))]),
        (r#"newGeoIP2DB("x", "/x.mmdb")"#, vec![("geoip.files", json!(["/x.mmdb"]))]),
        ("initGeoIPDB()", vec![("geoip.files", geoip("GeoLite2-Country"))]),
        ("initGeoIPCityDB()", vec![("geoip.files", geoip("GeoLite2-City"))]),
        ("initGeoIPISPDB()", vec![("geoip.files", geoip("GeoLite2-ASN"))]),
        (
            r#"addCustomWebHook("h", { url = "http://x/", secret = "s", ["basic-auth"] = "u:p", ["api-key"] = "k",
                ["content-type"] = "text/plain", kafka = "true" })"#,
            vec![(
                "notify.custom_webhooks",
                json!([{"name": "h", "url": "http://x/", "secret": "s", "basic_auth": "u:p", "api_key": "k",
                    "content_type": "text/plain", "kafka": true}]),
            )],
        ),
        ("setNumWebHookThreads(4) setNumWebHookConnsPerThread(5)", vec![("notify.custom_in_flight", json!(20))]),
        ("setWebHookTimeoutSecs(3)", vec![("notify.timeout", json!("3s"))]),
        ("disableCurlPeerVerification()", vec![("outbound.verify_certificates", json!(false))]),
        ("disableCurlHostVerification()", vec![("outbound.verify_hosts", json!(false))]),
        (r#"setCurlCABundleFile("/ca")"#, vec![("outbound.ca_file", json!("/ca"))]),
        (
            r#"setCurlClientCertAndKey("/c", "/k")"#,
            vec![("outbound.client_cert", json!("/c")), ("outbound.client_key", json!("/k"))],
        ),
        (r#"addCustomStat("a") addCustomStat("b")"#, vec![("policy.custom_stats", json!(["a", "b"]))]),
    ];
    for (source, expected) in cases {
        let said = read(source);
        let found: BTreeMap<_, _> = said.settings.iter().map(|setting| (setting.key, setting.value.clone())).collect();
        assert_eq!(found, expected.into_iter().collect(), "{source}");
        assert!(said.settings.iter().all(|setting| setting.place.line == 1), "{source}: {said:?}");
    }
}

#[test]
fn a_key_is_made_and_taken_and_one_that_is_none_is_not() {
    let said = read("assert(setKey(makeKey()))");
    assert_eq!(said.settings[0].key, "console.key");
    assert!(read(r#"assert(setKey("short") == false)"#).settings.is_empty());
}

#[test]
fn what_is_not_needed_is_told_once_with_its_reason() {
    let calls =
        ["setNumWorkerThreads", "setNumReportThreads", "setNumSchedulerThreads", "setWebHookQueueSize"].map(|call| {
            let said = read(&format!("{call}(4)\n{call}(5)"));
            assert!(said.settings.is_empty());
            assert_eq!((said.notes.len(), said.notes[0].place.line), (1, 1), "{call}");
            assert!(said.notes[0].text.contains("not needed"), "{call}");
            said.notes[0].place.call
        });
    assert_eq!(calls[3], "setWebHookQueueSize");
}

#[test]
fn acl_that_is_added_to_keeps_the_default() {
    let said = read(r#"addACL("192.0.2.0/24")"#);
    assert!(said.settings[0].after_default);
}

#[test]
fn wrong_argument_names_file_line_function_and_argument() {
    let place = "trackalert.conf:2: ";
    for (call, expected) in [
        ("addACL({})", "addACL: mask: a string is required, got a table"),
        ("setNumLuaStates(\"x\")", "setNumLuaStates: number: a whole number is required, got a string"),
        ("setReport(1)", "setReport: function: a function is required, got the number 1"),
        ("addCustomWebHook(\"h\", {})", "addCustomWebHook: url: is missing"),
        ("addCustomWebHook(\"h\", {urk = 1})", "addCustomWebHook: urk: no such key; did you mean url?"),
        (
            "addListener(\"127.0.0.1:1\", true, \"c\", \"k\", {min_protocol = \"TLSv9\"})",
            "addListener: min_protocol: TLSv9 is no version of TLS, such as TLSv1.2",
        ),
        (
            "addListener(\"127.0.0.1:1\", true, \"c\", \"k\", {ciphers = \"x\"})",
            "addListener: options: ciphers cannot be honoured here; take it out",
        ),
        ("newCA(\"x\")", "newCA: address: `x` is no IP address"),
        ("newNetmask(\"10.0.0.0/99\")", "newNetmask: network: `10.0.0.0/99` is no network"),
        (
            "cronScheduleBackgroundFunc(\"* * * * *\", \"f\")",
            "cronScheduleBackgroundFunc: name: setBackground has set no function with the name f",
        ),
    ] {
        assert_eq!(refused(&format!("-- first\n{call}")), format!("{place}{expected}"), "{call}");
    }
    assert!(refused("this is no Lua").contains("trackalert.conf:1:"));
}

#[test]
fn addresses_and_networks_go_by_their_old_names() {
    handle(
        r#"
        local ca = newCA("192.0.2.7:99")
        assert(ca:tostring() == "192.0.2.7" and ca:isIPv4() and not ca:isIPv6())
        local six = newCA("[2001:db8::1]:25")
        assert(six:tostring() == "2001:db8::1" and six:isIPv6() and not six:isMappedIPv4())
        assert(newCA("::ffff:192.0.2.1"):isMappedIPv4())
        assert(newNetmask("10.1.2.3/8"):toStringNetwork() == "10.0.0.0/8")
        assert(newNetmaskFromCA(ca, 24):toStringNetwork() == "192.0.2.0/24")
        assert(newNetmaskFromCA(lt.remote, 32):toStringNetwork() == lt.remote:tostring() .. "/32")
        assert(durationToSeconds("1:30") == 5400)
        local group = newNetmaskGroup()
        group:addMask("192.0.2.0/24")
        group:addMask("!192.0.2.128/25")
        assert(group:size() == 2 and group:match(ca) and not group:match(newCA("192.0.2.200")))
        group:clear()
        assert(group:size() == 0 and not group:match(ca))
        assert(not pcall(group.addMask, group, "x"))
        "#,
    );
}

#[test]
fn log_calls_take_their_fields() {
    let calls = ["infoLog", "vinfoLog", "warnLog", "errorLog", "debugLog"];
    for call in calls {
        handle(&format!(r#"{call}("said", {{ login = lt.login, n = 1, ok = true }})"#));
        // While the file is loaded, too.
        machine(&format!(r#"{call}("loading", {{}})"#));
    }
}

#[test]
fn modules_are_there_under_their_names() {
    handle(
        r#"
        local cjson = require "cjson"
        assert(cjson.encode({ a = { 1, 2 } }) == '{"a":[1,2]}' and cjson.decode('[null]')[1] == cjson.null)
        assert(require("mime").b64("ann:pw") == "YW5uOnB3")
        local ltn12 = require "ltn12"
        local sink, parts = ltn12.sink.table()
        assert(ltn12.pump.all(ltn12.source.string("abc"), sink) == 1 and table.concat(parts) == "abc")
        assert(require("socket.http").request and require("ssl.https").request)
        assert(require("elasticsearch").client { hosts = { { host = "127.0.0.1" } } }.search)
        assert(os.time() > 0 and io.open("/dev/null") and bit.band(3, 1) == 1 and package.loaded.string == string)
        for _, name in ipairs { "ffi", "debug", "no.such.module" } do
          local ok, reason = pcall(require, name)
          assert(not ok and reason:find(name, 1, true), reason)
        end
        assert(not pcall(os.exit, 0))
        "#,
    );
}

#[test]
fn module_in_lua_is_found_by_its_path_and_may_wait_at_its_top_level() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("waits.lua"), "time.sleep(0.001)\nreturn { name = ... }").unwrap();
    std::fs::write(folder.path().join("old.lua"), "module('old', package.seeall)\nfunction f() return type(os) end")
        .unwrap();
    std::fs::write(folder.path().join("loop.lua"), "local loop = require 'loop'").unwrap();
    std::fs::write(folder.path().join("broken.lua"), "\nif x").unwrap();
    let body = format!(
        r#"
        package.path = "{}/?.lua"
        assert(require("waits").name == "waits")
        require "old"
        assert(old.f() == "table")
        local ok, reason = pcall(require, "loop")
        assert(not ok and reason:find("loop.lua:1: require: a circle: loop requires loop", 1, true), reason)
        ok, reason = pcall(require, "broken")
        assert(not ok and reason:find("broken.lua:2: ", 1, true), reason)
        "#,
        folder.path().display()
    );
    handle(&body);
}

/// A machine with a file whose report function has this body, and with these modules.
fn machine_of_modules(modules: &[(&str, &str)], body: &str) -> bench::Bench {
    let folder = tempfile::tempdir().unwrap().keep();
    for (name, text) in modules {
        std::fs::write(folder.join(name), text).unwrap();
    }
    machine(&format!("package.path = '{}/?.lua'\nsetReport(function(lt)\n{body}\nend)", folder.display()))
}

#[test]
fn reports_that_require_a_module_while_it_waits_at_its_top_level_all_get_the_whole_of_one() {
    let modules = [
        ("outer.lua", "time.sleep(0.01) local inner = require 'inner' time.sleep(0.01) return { inner = inner }"),
        ("inner.lua", "module('inner', package.seeall)\ntime.sleep(0.01)\nfunction five() return 5 end"),
    ];
    let body = "local inner = require(lt.login == 'late' and 'inner' or 'outer')
        if lt.login ~= 'late' then inner = inner.inner end
        first = first or inner
        assert(inner == first and inner.five() == 5)";
    on_worker(async {
        let machine = machine_of_modules(&modules, body);
        let logins = (0..50).map(|nth| stores::report(if nth % 2 == 0 { "early" } else { "late" }, 1.0));
        let reports: Vec<_> = logins.collect();
        for outcome in futures_util::future::join_all(reports.iter().map(|report| machine.vm.run(0, report))).await {
            outcome.unwrap();
        }
    });
}

#[test]
fn module_that_fails_or_runs_away_once_is_loaded_anew_by_the_next_report() {
    let modules = [
        (
            "halfway.lua",
            "tries = (tries or 0) + 1 local this = tries module('halfway', package.seeall)\n\
             if this == 1 then error('boom') end function nth() return this end",
        ),
        (
            "runaway.lua",
            "runs = (runs or 0) + 1 while runs == 1 do end local n = runs return { nth = function() return n end }",
        ),
    ];
    on_worker(async {
        let machine = machine_of_modules(&modules, "assert(require(lt.login).nth() == 2)");
        let run = async |login: &str| machine.vm.run(0, &stores::report(login, 1.0)).await;
        match run("halfway").await {
            Err(Failure::Error(text)) => assert!(text.contains("halfway.lua:2: boom"), "{text}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(run("runaway").await.unwrap_err(), Failure::Cpu(bench::settings().cpu_limit));
        for login in ["halfway", "runaway", "halfway", "runaway"] {
            run(login).await.unwrap();
        }
    });
}

#[test]
fn report_that_fails_is_told_with_file_and_line() {
    let source = "setReport(function(lt)\nlocal x = lt.attrs.a.b\nend)";
    match on_worker(async { machine(source).at(1.0).await }) {
        Err(Failure::Error(text)) => assert!(text.starts_with("trackalert.conf:2: attempt to index"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn webhook_takes_effect_when_the_handler_has_returned_and_is_the_same_when_it_runs_again() {
    let source = r#"
        addCustomWebHook("hook", { url = "http://127.0.0.1:9/" })
        addCustomStat("seen")
        setReport(function(lt)
            runCustomWebHook("hook", "exactly \0 this")
            runCustomWebHook("hook", "exactly \0 this")
            incCustomStat("seen")
        end)"#;
    let (first, again) = on_worker(async {
        let bench = machine(source);
        (bench.at(5.0).await.unwrap(), bench.at(5.0).await.unwrap())
    });
    assert_eq!(first.hooks, again.hooks);
    assert_eq!(first.hooks.len(), 2);
    assert_ne!(first.hooks[0].id, first.hooks[1].id, "two calls are two webhooks");
    assert_eq!(&first.hooks[0].body[..], b"exactly \0 this");
}

/// A receiver that tells each request: path, headers, body.
fn receiver() -> (String, mpsc::UnboundedReceiver<(String, HeaderMap, String)>) {
    let (told, requests) = mpsc::unbounded_channel();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let take = async move |uri: axum::http::Uri, headers: HeaderMap, body: String| {
                let _ = told.send((uri.to_string(), headers, body));
            };
            axum::serve(listener, Router::new().fallback(take)).await.unwrap();
        });
    });
    (address, requests)
}

/// A whole configuration of the old program.
fn whole(address: &str, hook: &str) -> String {
    format!(
        r#"
webserver("{address}", "s3cret of the web")
addACL("192.0.2.0/24")
setNumLuaStates(2)
setNumReportThreads(6)
addCustomWebHook("tell", {{ url = "http://{hook}/%{{YYYY}}", secret = "s1gn", ["basic-auth"] = "ann:pw", ["api-key"] = "k3y" }})
addCustomWebHook("topic", {{ url = "http://{hook}/topics/x", kafka = "true" }})
addCustomStat("seen")
local cjson = require "cjson"

setReport(function(lt)
  infoLog("seen", {{ login = lt.login }})
  incCustomStat("seen")
  runCustomWebHook("tell", cjson.encode {{ login = lt.login, remote = lt.remote:tostring() }})
  runCustomWebHook("topic", '{{"a":1}}')
end)

setBackground("beat", function() runCustomWebHook("tell", "beat") end)
intervalScheduleBackgroundFunc("00:00:01", "beat")

setCustomEndpoint("echo", function(args)
  if args.attrs.fail then error("it fails \"so\"") end
  return true, {{ one = args.attrs.one, count = #(args.attrs_mv.many or {{}}) }}
end)
"#
    )
}

#[test]
fn whole_configuration_runs_and_answers_as_the_old_program_did() {
    let (hook, mut requests) = receiver();
    let site = Site::new("");
    let conf = site.folder.path().join("trackalert.conf");
    std::fs::write(&conf, whole(&site.address, &hook)).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_trackalert"));
    command.arg("run").arg("-C").arg(&conf).current_dir(site.folder.path());
    let program = site.start_command(command);
    assert!(site.log_text().contains("setNumReportThreads"), "what is not needed is not told");

    let password = format!("Authorization: Basic {}\r\n", STANDARD.encode("any:s3cret of the web"));
    let post = |path: &str, headers: &str, body: &str| {
        exchange(&site.address, &request("POST", path, headers, body.as_bytes())).unwrap()
    };
    let report = r#"{"login":"ann","remote":"192.0.2.7","t":1700000000.5}"#;
    assert_eq!(post("/command/report", "", report).status, 401);
    assert_eq!(post("/command/report", &password, report).json(), json!({ "status": "ok" }));

    let mut expected = vec!["tell", "topic", "beat"];
    while !expected.is_empty() {
        let (path, headers, body) =
            on_worker(async { tokio::time::timeout(PATIENCE, requests.recv()).await }).unwrap().unwrap();
        let seen = match (path.as_str(), body.as_str()) {
            ("/2023", r#"{"login":"ann","remote":"192.0.2.7"}"#) => {
                assert_eq!(headers["x-wforce-event"], "tell");
                assert_eq!(headers["authorization"], "Basic YW5uOnB3");
                assert_eq!(
                    (&headers["x-api-key"], &headers["content-type"]),
                    (&"k3y".parse().unwrap(), &"application/json".parse().unwrap())
                );
                assert!(headers.contains_key("x-wforce-signature") && headers.contains_key("x-wforce-delivery"));
                "tell"
            }
            ("/topics/x", r#"{"records":[{"value":{"a":1}}]}"#) => {
                assert_eq!(headers["content-type"], "application/vnd.kafka.json.v2+json");
                "topic"
            }
            (_, "beat") => "beat",
            other => panic!("{other:?}"),
        };
        expected.retain(|one| *one != seen);
    }

    let body = r#"{"attrs":{"one":"1","many":["a","b"]}}"#;
    for path in ["/command/echo", "/?command=echo"] {
        let answer = post(path, &password, body);
        assert_eq!(
            (answer.status, answer.json()),
            (200, json!({"success": true, "r_attrs": {"one": "1", "count": 2}}))
        );
    }
    let failed = post("/command/echo", &password, r#"{"attrs":{"fail":"x"}}"#);
    assert_eq!((failed.status, failed.json()["success"].clone()), (500, json!(false)));
    assert!(failed.json()["reason"].as_str().unwrap().contains("it fails \"so\""), "{failed:?}");
    assert_eq!(post("/command/nobody", &password, "{}").json(), json!({"status": "failure", "reason": "Not found"}));
    assert_eq!(post("/command/echo", &password, "no JSON").status, 400);
    assert_eq!(post("/command/echo", "", "{}").status, 401);

    let stats = exchange(&site.address, &request("GET", "/command/stats", &password, b"")).unwrap().json();
    assert_eq!(stats["customstats"]["seen"], 1);
    assert_eq!(stats["commandstats"]["custom"], 3);

    // A broken file leaves the functions that run; a mended one takes their place.
    let text = whole(&site.address, &hook);
    std::fs::write(&conf, format!("{text}\nthis is no Lua")).unwrap();
    program.signal(Signal::SIGHUP);
    program.wait_until("the refusal", PATIENCE, |_| site.log_text().contains("not reloaded"));
    assert_eq!(post("/command/echo", &password, body).status, 200);
    std::fs::write(&conf, text.replace("return true, {", "return false, {")).unwrap();
    program.signal(Signal::SIGHUP);
    let answered =
        |_: &support::program::Program| post("/command/echo", &password, body).json()["success"] == json!(false);
    program.wait_until("the new function", PATIENCE, answered);
    assert_eq!(program.terminate(), Some(0));
    assert!(!site.log_text().contains("s3cret of the web") && !site.log_text().contains("s1gn"));
}

#[test]
fn toml_file_that_names_the_old_one_wins_over_it_and_a_wrong_value_is_told_with_its_line() {
    let site = Site::new("policy.legacy_config = \"trackalert.conf\"\n");
    let conf = site.folder.path().join("trackalert.conf");
    std::fs::write(&conf, format!("webserver(\"{}\", \"pw\")\nsetMaxWebserverConns(77)\n", free_address())).unwrap();
    let command = |what: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_trackalert"));
        command.arg(what).arg("-C").arg(site.config()).current_dir(site.folder.path());
        command
    };
    let shown = command("config").args(["--format", "json"]).output().unwrap();
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let one = |key: &str| shown.as_array().unwrap().iter().find(|one| one["key"] == key).unwrap().clone();
    assert_eq!(one("http.listen")["value"], json!([site.address]));
    assert_eq!(one("http.max_connections")["value"], 77);
    assert_eq!(one("http.max_connections")["source"], "trackalert.conf:2");
    assert_eq!(one("http.password")["value"], "********");

    std::fs::write(&conf, "addACL(\"10.0.0.0/8\")\naddACL(\"nonsense\")\n").unwrap();
    let said = command("check").output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("trackalert.conf:2: http.acl[9]: \"nonsense\" is no network"), "{said}");
}

#[test]
fn geoip_files_are_asked_by_their_names_and_what_is_not_known_is_empty() {
    let source = r#"
        newGeoIP2DB("mine", "/nowhere.mmdb")
        initGeoIPDB() initGeoIPCityDB() initGeoIPISPDB()
        setReport(function(lt)
            local db = getGeoIP2DB("mine")
            assert(db:lookupCountry(lt.remote) == "" and db:lookupISP(lt.remote) == "")
            local city = db:lookupCity(lt.remote)
            assert(city.city == "" and city.latitude == 0 and city.country_code == "")
            assert(db:lookupStringValue(lt.remote, { "city", "names", "en" }) == "")
            assert(db:lookupUIntValue(lt.remote, { "x" }) == 0 and db:lookupBoolValue(lt.remote, { "x" }) == false)
            assert(db:lookupDoubleValue(lt.remote, { "x" }) == 0)
            assert(lookupCountry(lt.remote) == "" and lookupISP(lt.remote) == "" and lookupCity(lt.remote).city == "")
            local ok, reason = pcall(getGeoIP2DB, "other")
            assert(not ok and reason:find("newGeoIP2DB has named no file other", 1, true), reason)
        end)"#;
    let outcome = on_worker(async { machine(source).at(1_700_000_000.0).await });
    assert!(outcome.is_ok(), "{outcome:?}");
}
