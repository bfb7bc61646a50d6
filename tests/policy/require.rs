//! Lua that policies share: what `require` finds, and what it does where it finds nothing or something broken.

use crate::stores::report;
use crate::support::{Bench, Folder, on_worker, settings};
use futures_util::future::join_all;
use trackalert::policy::Failure;

/// Handler body of the policy `p` that has these modules beside it.
async fn run(files: &[(&str, &str)], body: &str) -> Result<(), Failure> {
    let folder = Folder::with(files);
    folder.write("p/policy.lua", &format!("function report(lt)\n{body}\nend"));
    folder.bench().at(1_000.0).await.map(drop)
}

async fn passes(files: &[(&str, &str)], body: &str) {
    let outcome = run(files, body).await;
    assert!(outcome.is_ok(), "{body}: {outcome:?}");
}

async fn error_of(files: &[(&str, &str)], body: &str) -> String {
    match run(files, body).await {
        Err(Failure::Error(text)) => text,
        other => panic!("{body}: {other:?}"),
    }
}

#[test]
fn module_is_found_beside_the_policy_first_and_then_in_lib() {
    on_worker(async {
        let files = [
            ("p/own.lua", "return 'own'"),
            ("p/both.lua", "return 'own'"),
            ("lib/both.lua", "return 'lib'"),
            ("lib/shared.lua", "return { name = ..., both = require 'both' }"),
            ("lib/deep/er.lua", "return 'deep'"),
            ("lib/nothing.lua", "counter = (counter or 0) + 1"),
            ("lib/no.lua", "counter = (counter or 0) + 1; return false"),
        ];
        passes(
            &files,
            "assert(require 'own' == 'own' and require('both') == 'own' and require 'deep.er' == 'deep')
             local shared = require 'shared'
             assert(shared.name == 'shared' and shared.both == 'own' and shared == require 'shared', 'one instance')
             assert(require 'nothing' == true and require 'nothing' == true and counter == 1, 'run once')
             assert(require 'no' == false and require 'no' == false and counter == 2)
             assert(package == nil)",
        )
        .await;
    });
}

#[test]
fn each_policy_has_an_instance_of_its_own() {
    on_worker(async {
        let body = "local shared = require 'shared'\nfunction report(lt) shared.count = shared.count + 1; assert(shared.count == 1) end";
        let folder =
            Folder::with(&[("a/policy.lua", body), ("b/policy.lua", body), ("lib/shared.lua", "return { count = 0 }")]);
        let bench = folder.bench();
        for policy in 0..2 {
            bench.vm.run(policy, &report("ann", 1.0)).await.unwrap();
        }
    });
}

#[test]
fn error_in_a_module_has_its_file_and_line_and_the_next_try_is_a_new_one() {
    on_worker(async {
        let bad = [
            ("lib/bad.lua", "\nerror('boom')"),
            ("p/odd.lua", "\n\nlocal x = nil + 1"),
            ("lib/table.lua", "error({})"),
        ];
        assert_eq!(error_of(&bad, "require 'bad'").await, "lib/bad.lua:2: boom");
        assert_eq!(error_of(&bad, "require 'odd'").await, "p/odd.lua:3: attempt to perform arithmetic on a nil value");
        assert_eq!(error_of(&bad, "require 'table'").await, "an error whose value is a table");
        let caught =
            "for _ = 1, 2 do local ok, e = pcall(require, 'bad'); assert(not ok and e == 'lib/bad.lua:2: boom', e) end";
        passes(&bad, caught).await;
        passes(
            &[("lib/first.lua", "tries = (tries or 0) + 1; assert(tries > 1); return tries")],
            "pcall(require, 'first'); assert(require 'first' == 2)",
        )
        .await;
        assert_eq!(
            error_of(&[("lib/f.lua", "return function() error('later') end")], "require 'f'()").await,
            "lib/f.lua:1: later"
        );
    });
}

#[test]
fn names_that_lead_nowhere_are_clear_errors() {
    on_worker(async {
        for (name, expected) in [
            ("'none'", "require: none: there was neither p/none.lua nor lib/none.lua when the policies were loaded"),
            ("'a.b'", "require: a.b: there was neither p/a/b.lua nor lib/a/b.lua"),
            ("'../secret'", "require: ../secret: is no name of a module"),
            ("'/etc/passwd'", "require: /etc/passwd: is no name of a module"),
            ("'policy'", "require: policy: there was neither"),
            ("5", "require: name: a string is required, got number"),
            ("", "require: name: a string is required, got nil"),
        ] {
            let text = error_of(&[("secret.lua", "return 1")], &format!("require({name})")).await;
            assert!(text.starts_with(&format!("p/policy.lua:2: {expected}")), "{text}");
        }
    });
}

#[test]
fn circle_is_an_error_that_shows_it() {
    on_worker(async {
        let files = [
            ("lib/a.lua", "return require 'b'"),
            ("p/b.lua", "return require 'c'"),
            ("lib/c.lua", "\nlocal a = require 'a'"),
        ];
        let text = error_of(&files, "require 'a'").await;
        assert_eq!(text, "lib/c.lua:2: require: a circle: a requires b requires c requires a");
        let text = error_of(&[("p/me.lua", "local me = require 'me'")], "pcall(require, 'me'); require 'me'").await;
        assert_eq!(text, "p/me.lua:1: require: a circle: me requires me");
    });
}

#[test]
fn module_may_wait_at_its_top_level_also_where_many_require_it_at_once() {
    on_worker(async {
        let files = [
            (
                "lib/outer.lua",
                "time.sleep(0.01); local inner = require 'inner'; time.sleep(0.01); return { inner = inner }",
            ),
            ("lib/inner.lua", "runs = (runs or 0) + 1; time.sleep(0.01); return { t = time.now() }"),
            (
                "p/policy.lua",
                "function report(lt) local outer = require 'outer'; first = first or outer
                 assert(outer == first and outer.inner == require 'inner', 'one instance for all') end",
            ),
        ];
        let folder = Folder::with(&files);
        let bench = folder.bench();
        let reports: Vec<_> = (0..50).map(|i| report(&format!("login{i}"), 1_000.0)).collect();
        for outcome in join_all(reports.iter().map(|report| bench.vm.run(0, report))).await {
            outcome.unwrap();
        }
        let wrapped =
            "local f = coroutine.wrap(function() coroutine.yield(require 'outer') end); assert(f().inner.t == 1000)
            local t = setmetatable({}, { __index = function(_, k) return require(k) end }); assert(t.inner.t == 1000)";
        passes(&files[..2], wrapped).await;
        let text = error_of(&files[..2], "table.sort({ 2, 1 }, function() return require 'inner' end)").await;
        assert!(text.contains("cannot be made inside a callback of table.sort or string.gsub"), "{text}");
    });
}

#[test]
fn module_whose_second_loader_fails_is_there_for_both_that_need_it_at_once() {
    on_worker(async {
        let module = "n = (n or 0) + 1; local mine = n; time.sleep(mine * 0.01)
            if mine == 2 then error('too late') end return { mine = mine }";
        let folder = Folder::with(&[
            ("lib/once.lua", module),
            ("p/policy.lua", "function report(lt) assert(require('once').mine == 1) end"),
        ]);
        let bench = folder.bench();
        let reports = [report("ann", 1_000.0), report("bob", 1_000.0)];
        for outcome in join_all(reports.iter().map(|report| bench.vm.run(0, report))).await {
            outcome.unwrap();
        }
    });
}

#[test]
fn module_that_runs_away_is_stopped_and_the_machine_lives_on() {
    on_worker(async {
        let files = [
            ("lib/loop.lua", "while true do pcall(function() while true do end end) end"),
            ("lib/good.lua", "return 5"),
        ];
        let folder = Folder::with(&files);
        folder.write(
            "p/policy.lua",
            "function report(lt) if lt.login == 'bad' then require 'loop' end assert(require 'good' == 5) end",
        );
        let bench = folder.bench();
        for _ in 0..2 {
            let outcome = bench.vm.run(0, &report("bad", 1.0)).await;
            assert_eq!(outcome.unwrap_err(), Failure::Cpu(settings().cpu_limit));
            bench.vm.run(0, &report("ann", 1.0)).await.unwrap();
        }
    });
}

#[test]
fn module_names_files_from_the_folder_of_the_policy_that_requires_it() {
    on_worker(async {
        let files =
            [("lib/vpn.txt", "192.0.2.0/24\n"), ("lib/lists.lua", "return { vpn = net.file('../lib/vpn.txt') }")];
        let folder = Folder::with(&files);
        folder.write(
            "p/policy.lua",
            "local lists = require 'lists'\nfunction report(lt) assert(lists.vpn:has(lt.remote)) end",
        );
        folder.bench().at(1.0).await.unwrap();
        let text = error_of(&files, "require 'lists'").await;
        assert!(text.starts_with("lib/lists.lua:1: net.file: path: works while the policy is loaded only"), "{text}");
    });
}

#[test]
fn set_keeps_the_modules_with_which_it_was_loaded() {
    on_worker(async {
        let folder = Folder::with(&[
            ("p/policy.lua", "function report(lt) assert(require 'm' == 1) end"),
            ("lib/m.lua", "return 1"),
        ]);
        let old = folder.load().unwrap();
        folder.write("lib/m.lua", "return 2");
        // A machine that takes the place of another.
        Bench::of(&old, &settings()).at(1.0).await.unwrap();
        assert!(folder.bench().at(1.0).await.is_err(), "and the next set has the new ones");
    });
}

#[test]
fn check_finds_what_does_not_compile_whoever_requires_it() {
    let good = "function report(lt) end";
    let folder = Folder::with(&[("p/policy.lua", good), ("q/policy.lua", good), ("lib/bad.lua", "\nif x")]);
    assert!(folder.problem().starts_with("lib/bad.lua:2: 'then' expected"), "{}", folder.problem());
    folder.write("p/policy.lua", "local bad = require 'bad'\nfunction report(lt) end");
    assert!(folder.problem().starts_with("lib/bad.lua:2: "), "told once: {}", folder.problem());
    folder.write("lib/bad.lua", "alert { kind = 'x', title = 'y' }");
    assert_eq!(folder.problem(), "lib/bad.lua:1: alert: works in a handler only, not while the policy is loaded");
}
