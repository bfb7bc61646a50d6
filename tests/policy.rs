//! What a policy may do, what it may not, and what stops it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

#[path = "support/stores.rs"]
mod stores;
#[path = "support/policy.rs"]
mod support;
#[path = "support/web.rs"]
mod web;

#[path = "policy/http.rs"]
mod http;
#[path = "policy/net.rs"]
mod net;
#[path = "policy/require.rs"]
mod require;
#[path = "policy/wforce.rs"]
mod wforce;

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use stores::report;
use support::{Bench, on_worker, settings};
use trackalert::alert::Severity;
use trackalert::history::HistoryError;
use trackalert::policy::watchdog::{self, Event};
use trackalert::policy::{Failure, PolicySet};
use trackalert::report::Time;
use trackalert::state::Write;
use web::{Page, Server};

fn error_of(body: &str) -> String {
    match on_worker(async { Bench::handler(body).at(1_000.0).await }) {
        Err(Failure::Error(text)) => text,
        other => panic!("{body}: {other:?}"),
    }
}

fn passes(body: &str) {
    let outcome = on_worker(async { Bench::handler(body).at(1_000.0).await });
    assert!(outcome.is_ok(), "{body}: {outcome:?}");
}

// ---- isolation

#[test]
fn one_policys_globals_and_libraries_are_not_there_for_the_other() {
    let vandal = "shared = 1; string.sub = nil; string.evil = 1; json.encode = nil; math.floor = nil; _G.table = nil
        function report(lt) shared = 2; tostring = nil; pcall(function() getmetatable('').__index = nil end)
          pcall(rawset, string, 'len', nil) end";
    let victim = "function report(lt)
          assert(shared == nil and string.evil == nil)
          assert(json.encode({1}) == '[1]' and math.floor(1.5) == 1 and table.concat({'a','b'}) == 'ab')
          assert(('abc'):sub(1, 2) == 'ab' and string.sub('abc', 1, 1) == 'a' and ('abc'):len() == 3)
          assert(tostring(1) == '1')
        end";
    on_worker(async {
        let bench = Bench::new([("a_vandal", vandal), ("b_victim", victim)]);
        bench.vm.run(0, &report("ann", 1.0)).await.unwrap();
        bench.vm.run(1, &report("ann", 2.0)).await.unwrap();
    });
}

#[test]
fn dangerous_names_are_absent_and_bytecode_is_refused() {
    for name in
        ["io", "os", "debug", "ffi", "package", "jit", "dofile", "loadfile", "getfenv", "setfenv", "newproxy", "module"]
    {
        passes(&format!("assert(_G[{name:?}] == nil)"));
    }
    passes("assert(string.dump == nil)");
    passes("local f, e = load('\\27LJ\\2\\2'); assert(f == nil and e:find('wrong mode'), e)");
    passes("local f = load('return x'); x = 5; assert(f() == 5); assert(loadstring('return _G')() == _G)");
    passes("assert(getmetatable('') == false and getmetatable(lt) == false)");
    let text = error_of("require('lpeg')");
    assert_eq!(text, "p/policy.lua:2: require: lpeg: this policy has no folder to load it from");
    assert!(error_of("collectgarbage('collect')").contains("only \"count\""));
}

// ---- effects

#[test]
fn effects_of_a_handler_that_fails_vanish_with_its_claims() {
    on_worker(async {
        let body = "alert{kind='k', title='t'}; state.set('a', 1); state.add('s', 'm', {within=60}); error('late')";
        let bench = Bench::handler(body);
        let failure = bench.at(100.0).await.unwrap_err();
        assert_eq!(failure, Failure::Error("p/policy.lua:2: late".into()));
        let members = bench.tentative.members("p\0s", Time::default(), Time::from_seconds(1e9).unwrap());
        assert!(members.is_empty());
        assert_eq!(bench.vm.live_calls(), 0);
    });
}

#[test]
fn alert_has_its_defaults_and_keeps_its_evidence() {
    on_worker(async {
        let body = "alert{kind='new_country', title='From ' .. lt.remote, severity='high', attack='T1078',
            evidence={list={1,2}, empty={}, none=json.empty_array, remote=lt.remote, deep={a={b='c'}}}}
            alert{kind='other', title='x', key='K'}  alert{kind='other', title='again', key='K'}";
        let effects = Bench::handler(body).at(1_000.0).await.unwrap();
        assert_eq!(effects.alerts.len(), 2, "the same kind and key in one call is one alert");
        let alert = &effects.alerts[0];
        assert_eq!((alert.severity, alert.key.as_str(), alert.policy.as_str()), (Severity::High, "ann", "p"));
        assert_eq!(alert.title, "From 192.0.2.7");
        assert_eq!(alert.time, "1970-01-01T00:16:40.000Z");
        let seen = json!({"list": [1, 2], "empty": {}, "none": [], "remote": "192.0.2.7", "deep": {"a": {"b": "c"}}});
        assert_eq!(alert.evidence, seen);
        assert_eq!(alert.attack, Some(json!("T1078")));
        assert_eq!((effects.alerts[1].severity, effects.alerts[1].key.as_str()), (Severity::Medium, "K"));
    });
}

#[test]
fn state_sees_its_own_writes_and_keeps_report_time() {
    on_worker(async {
        let body = "if state.get('n') == nil then state.set('n', {count=1, list={1}}, {ttl=100}) end
            local v = state.get('n'); v.count = v.count + 1; state.set('n', v, 100); seen = v.count
            state.set('gone', 1); state.set('gone', nil); assert(state.get('gone') == nil)
            alert{kind='k', title=tostring(state.get('n').count)}";
        let bench = Bench::handler(body);
        assert_eq!(bench.applied(1_000.0).await.alerts[0].title, "2");
        assert_eq!(bench.applied(1_099.0).await.alerts[0].title, "3");
        assert_eq!(bench.applied(1_199.0).await.alerts[0].title, "2", "expired in report time");
        let Write::Set { key, expires, .. } = &bench.at(2_000.0).await.unwrap().writes[0] else { panic!() };
        assert_eq!((key.as_str(), *expires), ("p\0n", Time::from_seconds(2_100.0)));
    });
}

#[test]
fn members_are_counted_once_within_the_window_with_those_of_running_handlers() {
    on_worker(async {
        let body = "local n = state.add('s', lt.login, {within=300}); time.sleep(0.05)
            alert{kind='n', title=tostring(n)}";
        let bench = Bench::handler(body);
        let reports: Vec<_> = (0..20).map(|i| report(&format!("login{}", i % 10), 1_000.0)).collect();
        let effects = join_all(reports.iter().map(|report| bench.vm.run(0, report))).await;
        let mut counts: Vec<u32> =
            effects.iter().map(|e| e.as_ref().unwrap().alerts[0].title.parse().unwrap()).collect();
        counts.dedup();
        assert_eq!(counts, (1..=10).collect::<Vec<_>>(), "each new login is counted once, at once");
        drop(effects);
        assert_eq!(bench.applied(1_000.0).await.alerts[0].title, "1", "nothing of it was applied");
        assert_eq!(bench.applied(1_299.0).await.alerts[0].title, "1");
        assert_eq!(bench.at(1_600.0).await.unwrap().alerts[0].title, "1");
    });
}

// ---- dependencies

#[test]
fn search_goes_up_to_the_report_and_leaves_it_out() {
    on_worker(async {
        let body = "local a = history.search{query={match_all={}}, size=0}
            assert(a.hits.total.value == 0 and a.aggregations == nil and a.x == nil)";
        let bench = Bench::handler(body);
        *bench.history.answer.lock().unwrap() = Ok(json!({"hits": {"total": {"value": 0}}, "x": null}));
        bench.at(1_000.0).await.unwrap();
        let asked = bench.history.asked.lock().unwrap();
        let ann = report("ann", 1_000.0);
        assert_eq!(asked[0].body, json!({"query": {"match_all": {}}, "size": 0}));
        assert_eq!((asked[0].now, asked[0].up_to, asked[0].without), (ann.t, Some(ann.t), Some(ann.id)));
    });
}

#[test]
fn dependency_that_does_not_answer_is_no_fault_of_the_policy_even_where_it_catches_the_error() {
    on_worker(async {
        let bench = Bench::handler("pcall(history.search, {}); alert{kind='k', title='blind'}");
        *bench.history.answer.lock().unwrap() = Err(HistoryError::Unavailable("no route".into()));
        let expected = Failure::Dependency { dependency: "history", said: "no route".into() };
        assert_eq!(bench.at(1.0).await.unwrap_err(), expected);
        let bench = Bench::handler("state.get('x')");
        bench.state.down.store(true, Ordering::SeqCst);
        assert!(matches!(bench.at(1.0).await, Err(Failure::Dependency { dependency: "state", .. })));
        let bench = Bench::handler("history.search{query={trem={}}}");
        let wrong = HistoryError::Query { path: "query.trem".into(), reason: "no such key".into() };
        *bench.history.answer.lock().unwrap() = Err(wrong);
        let text = "p/policy.lua:2: history.search: body: query.trem: no such key";
        assert_eq!(bench.at(1.0).await.unwrap_err(), Failure::Error(text.into()));
    });
}

// ---- errors

#[test]
fn wrong_arguments_name_function_argument_file_and_line() {
    for (body, expected) in [
        ("\nalert{kind='k'}", "p/policy.lua:3: alert: title: a string is required, got nothing"),
        (
            "alert{kind='k', title='t', serverity='low'}",
            "p/policy.lua:2: alert: serverity: no such key; did you mean severity?",
        ),
        ("alert{kind='k', title='t', severity='bad'}", "p/policy.lua:2: alert: severity: bad is none of info, low,"),
        ("alert('x')", "p/policy.lua:2: alert: alert: a table is required, got a string"),
        ("alert{kind='k', title='t', evidence={f=print}}", "p/policy.lua:2: alert: evidence.f: a function is no JSON"),
        ("state.get()", "p/policy.lua:2: state.get: key: a string is required, got nothing"),
        ("state.add('k', 'm', {})", "p/policy.lua:2: state.add: within: a number of seconds is required, got nothing"),
        ("state.set('k', 1, {tll=5})", "p/policy.lua:2: state.set: tll: no such key; did you mean ttl?"),
        (
            "state.set('k', ('x'):rep(20000))",
            "p/policy.lua:2: state.set: the value is 20002 bytes of JSON; state.max_value",
        ),
        ("geo.country('nowhere')", "p/policy.lua:2: geo.country: address: an address or its text is required"),
        ("time.sleep(-1)", "p/policy.lua:2: time.sleep: seconds: must be between 0 and 3600"),
        ("history.search('x')", "p/policy.lua:2: history.search: body: a table is required, got a string"),
        ("local x = lt.logn", "p/policy.lua:2: lt.logn: no such field; did you mean lt.login?"),
        ("lt.login = 'x'", "p/policy.lua:2: lt.login: a report cannot be changed"),
        ("json.decode('{')", "p/policy.lua:2: json.decode: text: EOF"),
        ("error({code=1})", "an error whose value is a table"),
        ("error()", "an error whose value is a nil"),
        ("local x = nil + 1", "p/policy.lua:2: attempt to perform arithmetic on a nil value"),
    ] {
        let text = error_of(body);
        assert!(text.starts_with(expected), "{body}\n  gave {text}\n  not  {expected}");
        assert!(!text.contains("traceback") && text.len() <= 1024);
    }
    assert!(error_of("error(('x'):rep(1e6))").len() <= 1024);
    passes("local ok, e = pcall(alert, {kind='k'}); assert(not ok and type(e) == 'string' and e:find('title'), e)");
    passes("local ok, e = pcall(state.get); assert(not ok and type(e) == 'string' and e:find('key'), e)");
}

#[test]
fn api_before_a_handler_runs_is_an_error_of_the_policy() {
    let set = PolicySet::from_sources([("p", "alert{kind='k', title='t'}\nfunction report() end")]);
    let text = set.check().unwrap_err().to_string();
    assert_eq!(text, "p/policy.lua:1: alert: works in a handler only, not while the policy is loaded");
}

#[test]
fn every_problem_of_every_policy_is_reported_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &[u8]| {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        std::fs::write(folder.path().join(name).join("policy.lua"), text).unwrap();
    };
    write("good", b"function report(lt) end");
    write("lib", b"nonsense nonsense");
    write("none", b"local x = 1");
    write("syntax", b"function report(lt)\n  if\nend");
    write("latin", b"-- a\n-- caf\xe9\nfunction report() end");
    write("wrong name", b"function report() end");
    write("loops", b"while true do end");
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    let error = PolicySet::load(&[folder.path().into()]).unwrap_err();
    let at = |name: &str| error.problems.iter().find(|p| p.contains(name)).unwrap_or_else(|| panic!("{name}: {error}"));
    assert_eq!(error.problems.len(), 7, "{error}");
    assert!(at("/lib/policy.lua:1:").contains("'=' expected"), "{error}");
    assert!(at("/none/policy.lua").ends_with("defines no global function report(lt)"));
    assert!(at("/syntax/policy.lua:3:").contains("unexpected symbol"));
    assert!(at("/latin/policy.lua:2:").ends_with("is not UTF-8"));
    assert!(at("/wrong name/").contains("a policy's name"));
    assert!(at("/loops/").contains("used more CPU"));
    assert!(at("/empty/policy.lua").contains("No such file"));

    std::fs::remove_dir_all(folder.path()).unwrap();
    std::fs::create_dir(folder.path()).unwrap();
    write("b", b"function report() end");
    write("a", b"function report() end");
    let set = PolicySet::load(&[folder.path().into()]).unwrap();
    assert_eq!(set.names().collect::<Vec<_>>(), ["a", "b"]);
    assert!(PolicySet::load(&[folder.path().into()]).unwrap().generation() > set.generation());
    let twice = PolicySet::load(&[folder.path().into(), folder.path().into()]).unwrap_err();
    assert!(twice.problems[0].contains("is taken by"));
}

#[test]
fn shipped_policies_load() {
    PolicySet::shipped().check().unwrap();
}

// ---- waiting

#[test]
fn thousand_handlers_sleep_at_once_on_one_machine() {
    on_worker(async {
        let bench = Rc::new(Bench::handler("time.sleep(0.2); alert{kind='k', title=lt.login, key=lt.id}"));
        let began = Instant::now();
        let tasks: Vec<_> = (0..1_000)
            .map(|i| {
                let bench = Rc::clone(&bench);
                tokio::task::spawn_local(async move { bench.vm.run(0, &report(&format!("login{i}"), 1.0)).await })
            })
            .collect();
        for (i, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await.unwrap().unwrap().alerts[0].title, format!("login{i}"), "each its own report");
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    });
}

#[test]
fn awaits_inside_pcall_coroutines_iterators_and_metamethods_work() {
    passes("local ok, e = pcall(function() time.sleep(0.01); error('after') end); assert(not ok and e:find('after'))");
    passes(
        "local ok, e = xpcall(function() time.sleep(0.01); error('x', 0) end, function(e) return 'h' .. e end)
            assert(not ok and e == 'hx')",
    );
    passes(
        "state.set('a', 7); local f = coroutine.wrap(function() for i = 1, 3 do time.sleep(0.005)
            coroutine.yield(state.get('a') + i) end end); assert(f() == 8 and f() == 9 and f() == 10)",
    );
    passes(
        "local co = coroutine.create(function() local inner = coroutine.wrap(function() time.sleep(0.005)
            coroutine.yield(1); time.sleep(0.005); error('deep', 0) end); assert(inner() == 1); inner() end)
            local ok, e = coroutine.resume(co); assert(not ok and e == 'deep', e)
            assert(coroutine.status(co) == 'dead')",
    );
    passes("local sum = 0; for v in coroutine.wrap(function() for i = 1, 4 do time.sleep(0.001); coroutine.yield(i) end end)
            do sum = sum + v end; assert(sum == 10)");
    passes(
        "local t = setmetatable({}, {__index = function(_, k) time.sleep(0.001); return k .. '!' end})
            assert(t.a == 'a!')",
    );
    for body in [
        "table.sort({3,2,1}, function(a, b) time.sleep(0.01) return a < b end)",
        "string.gsub('aa', 'a', function() return coroutine.wrap(function() time.sleep(0.01) end)() end)",
    ] {
        let text = error_of(body);
        assert!(text.contains("cannot be made inside a callback of table.sort or string.gsub"), "{text}");
    }
}

#[test]
fn handler_out_of_time_is_ended_with_everything_in_it() {
    on_worker(async {
        let mut settings = settings();
        settings.time_limit = Duration::from_millis(100);
        for body in ["time.sleep(30)", "coroutine.wrap(function() time.sleep(30) end)(); never = true"] {
            let bench = Bench::with([("p", format!("function report(lt) {body} end").as_str())], &settings);
            let began = Instant::now();
            assert_eq!(bench.at(1.0).await.unwrap_err(), Failure::Time(Duration::from_millis(100)));
            assert!(began.elapsed() < Duration::from_secs(5) && bench.vm.spoiled());
            assert_eq!(bench.vm.live_calls(), 0, "{body}: the wait itself is dropped at once");
        }
    });
}

#[test]
fn retired_machine_ends_its_calls_without_blame() {
    on_worker(async {
        let bench = Bench::handler("time.sleep(30)");
        let ann = report("ann", 1.0);
        let (outcome, ()) = tokio::join!(bench.vm.run(0, &ann), async {
            tokio::task::yield_now().await;
            bench.vm.retire();
        });
        assert_eq!(outcome.unwrap_err(), Failure::Cancelled);
        assert_eq!(bench.at(2.0).await.unwrap_err(), Failure::Cancelled);
        assert!(bench.vm.spoiled());
    });
}

// ---- hogs

#[test]
fn hogs_are_stopped_and_their_neighbours_finish() {
    let hogs = [
        "while true do end",
        "while true do pcall(function() while true do end end) end",
        "local function f() return pcall(f) or f() end while true do pcall(f) end",
        "while true do coroutine.wrap(function() while true do end end)() end",
        "while true do coroutine.resume(coroutine.create(function() coroutine.wrap(function() while true do end end)() end)) end",
        "while true do coroutine.yield() end",
        "while true do string.format('%d', 5) end",
        "while true do state.get('x') end",
        "while true do pcall(json.decode, '{') end",
        "local t = setmetatable({}, {__index = function(t, k) return t[k + 1] end}); while true do pcall(function() return t[1] end) end",
        "time.sleep(0.01); xpcall(function() while true do end end, function() while true do end end)",
    ];
    on_worker(async {
        for hog in hogs {
            println!("{hog}");
            let hog_policy = format!("function report(lt) {hog} end");
            let good = "function report(lt) for i = 1, 5 do time.sleep(0.01) end alert{kind='k', title=lt.login} end";
            let bench = Bench::new([("good", good), ("hog", hog_policy.as_str())]);
            let ann = report("ann", 1.0);
            let good = join_all((0..20).map(|_| bench.vm.run(0, &ann)));
            let (good, bad) = tokio::join!(good, bench.vm.run(1, &ann));
            assert_eq!(bad.unwrap_err(), Failure::Cpu(settings().cpu_limit), "{hog}");
            assert!(
                good.iter().all(|outcome| outcome.as_ref().is_ok_and(|effects| effects.alerts.len() == 1)),
                "{hog}"
            );
            assert!(!bench.vm.spoiled());
            assert!(bench.vm.run(0, &ann).await.is_ok(), "{hog}: the machine lives on");
        }
    });
}

#[test]
fn memory_hog_spoils_the_machine_and_is_told() {
    on_worker(async {
        // To fill it may take a slow machine longer than a call is given.
        let settings = trackalert::policy::Settings {
            cpu_limit: Duration::from_secs(20),
            time_limit: Duration::from_secs(30),
            ..settings()
        };
        let filling = "function report(lt) local t = {} for i = 1, 1e9 do t[i] = {i} end end";
        let bench = Bench::with([("p", filling)], &settings);
        assert_eq!(bench.at(1.0).await.unwrap_err(), Failure::Memory);
        assert!(bench.vm.spoiled());
        assert!(bench.vm.used_memory() <= 64 << 20);
        let doubling = "function report(lt) local s = 'x' while true do s = s .. s end end";
        let bench = Bench::with([("p", doubling)], &settings);
        assert_eq!(bench.at(1.0).await.unwrap_err(), Failure::Memory);
    });
    assert!(error_of("error('x: not enough memory')").contains("not enough memory"), "words are no memory error");
}

#[test]
fn arguments_of_c_functions_are_bounded() {
    assert!(error_of("local s = string.rep('x', 2^31)").contains("string.rep: the result would be over"));
    assert!(error_of("local s = ('x'):rep(2^31)").contains("string.rep"));
    assert!(error_of("('x'):find(('a*'):rep(1000))").contains("string.find: the pattern is over"));
    passes("assert(('x'):rep(3, ',') == 'x,x,x' and string.rep('x', -1) == '')");
    passes("assert(('a b'):gsub('%s', '_') == 'a_b' and ('k=v'):match('(%w+)=') == 'k')");
    passes("local n = 0 for w in ('a b c'):gmatch('%a') do n = n + 1 end assert(n == 3)");
}

#[test]
fn handler_hung_in_c_code_is_reported_with_its_policy_and_report() {
    let (tell, told) = mpsc::channel();
    let hung = report("mallory", 5.0);
    let id = hung.id;
    let thread = std::thread::spawn(move || {
        on_worker(async {
            let _lane = watchdog::register(7, Duration::from_millis(200), move |event| drop(tell.send(event)));
            // Degree five in the length: some seconds in one C call.
            let body = "function report(lt) if lt.login == 'mallory' then
                string.find(('a'):rep(140), 'a*a*a*a*b') end end";
            let bench = Bench::new([("good", "function report(lt) end"), ("hangs", body)]);
            bench.vm.run(1, &report("ann", 5.0)).await.unwrap();
            bench.vm.run(1, &hung).await
        })
    });
    let wait = Duration::from_secs(50);
    let stuck = told.recv_timeout(wait).unwrap();
    assert!(matches!(stuck, Event::Stuck { worker: 7, policy: 1, report, .. } if report == id), "{stuck:?}");
    assert_eq!(told.recv_timeout(wait).unwrap(), Event::Unstuck { worker: 7, policy: 1, report: id });
    assert_eq!(thread.join().unwrap().unwrap_err(), Failure::Cpu(settings().cpu_limit));
}

// ---- the report

#[test]
fn report_has_the_fields_that_are_promised() {
    passes(
        "assert(lt.t == 1000 and time.now() == 1000 and lt.login == 'ann' and lt.pwhash == '5a5f')
         assert(lt.success == true and lt.policy_reject == false and lt.tls == true and lt.fail_type == '')
         assert(lt.session_id == 's1' and lt.protocol == 'imap' and lt.device_id:find('Thunderbird'))
         assert(lt.device_attrs['os.family'] == 'Linux' and lt.attrs.country == 'NL' and #lt.id == 32)
         local groups = {} for _, v in ipairs(lt.attrs_mv.groups) do groups[#groups + 1] = v end
         assert(table.concat(groups, ',') == 'staff,admin')
         for k, v in pairs(lt.attrs) do assert(k == 'country' and v == 'NL') end
         assert(lt.attrs == lt.attrs, 'made once')
         assert(lt.remote:tostring() == '192.0.2.7' and tostring(lt.remote) == '192.0.2.7')
         assert(lt.remote:isIPv4() and not lt.remote:isIPv6() and not lt.remote:isMappedIPv4())
         assert('at ' .. lt.remote .. '!' == 'at 192.0.2.7!' and lt.remote == lt.remote)
         assert(geo.country(lt.remote) == 'NL' and geo.asn(lt.remote) == 64500 and geo.lookup(lt.remote).as_org == 'Example Net')
         assert(geo.lookup(lt.remote).city == 'Delft' and geo.lookup('198.51.100.1').city == nil)
         assert(geo.country('198.51.100.1') == nil and geo.distance_km(lt.remote, '198.51.100.1') == nil)
         assert(geo.distance_km(lt.remote, {latitude=52.37, longitude=4.9}) < 0.001)
         assert(time.format() == '1970-01-01T00:16:40.000Z' and time.format(0, '%Y/%m') == '1970/01')
         local j = json.decode('{\"a\":[1,null],\"b\":null}'); assert(j.b == json.null and j.a[2] == json.null)
         log.info('seen', {login = lt.login}); log.warn('w'); print('x', 1)",
    );
}

// ---- the manual

/// The servers that the manual names, and what each asks of them.
const SERVERS: [(&str, &str); 2] =
    [("https://reputation.example.net", "/v1/score"), ("https://tickets.example.net", "/api/tickets")];

#[test]
fn every_example_of_the_manual_runs() {
    let manual = include_str!("../docs/policies.md");
    let mut examples = 0;
    on_worker(async {
        let server = Server::start(|seen| match seen.path.as_str() {
            "/v1/score" => Page::json(r#"{"score":97}"#),
            "/" if seen.query == "command=allow" => Page::json(r#"{"status":-1,"msg":"no","r_attrs":{}}"#),
            "/" => Page::json(r#"{"status":"ok"}"#),
            _ => Page::json("{}"),
        })
        .await;
        let mut settings = settings();
        settings.wforce.servers = vec![server.url()];
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("lib")).unwrap();
        std::fs::create_dir_all(folder.path().join("manual")).unwrap();
        std::fs::write(folder.path().join("lib/vpn.txt"), "192.0.2.0/24\n").unwrap();
        for block in manual.split("```lua\n").skip(1) {
            let mut code = block.split("```").next().unwrap().to_owned();
            if let Some(module) = code.strip_prefix("-- lib/") {
                let name = module.lines().next().unwrap();
                std::fs::write(folder.path().join("lib").join(name), &code).unwrap();
                continue;
            }
            for (name, _) in SERVERS {
                code = code.replace(name, &server.url());
            }
            let policy = if code.contains("function report") {
                code.clone()
            } else {
                format!("function report(lt)\n{code}\nend")
            };
            std::fs::write(folder.path().join("manual/policy.lua"), policy).unwrap();
            let set = PolicySet::load(&[folder.path().into()]).unwrap_or_else(|error| panic!("{error}\n{code}"));
            let bench = Bench::of(&set, &settings);
            if let Err(failure) = bench.at(1_000_000.0).await {
                panic!("{failure}\n{code}");
            }
            // A handler may have returned early: what it does for another kind of report runs, too.
            let mut other = (*report("bob", 1_000_000.0)).clone();
            (other.success, other.fail_type) = (false, "disabled".to_owned());
            if let Err(failure) = bench.vm.run(0, &std::sync::Arc::new(other)).await {
                panic!("{failure}\n{code}");
            }
            examples += 1;
        }
        for (name, path) in SERVERS {
            assert!(server.seen().iter().any(|seen| seen.path == path), "{name}{path} was not asked");
        }
    });
    assert!(examples >= 18, "{examples}");
}
