//! The definitions for editors name what a policy may call: all of it, and nothing else.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

#[path = "support/policy.rs"]
mod bench;
#[path = "support/stores.rs"]
mod stores;

use std::collections::BTreeSet;
use std::path::Path;

use bench::{Bench, on_worker};

/// Lua's own names, which an editor knows.
const LUA: &str = "
    local own = {}
    for name in ([[_G _VERSION assert bit collectgarbage coroutine error getmetatable ipairs load loadstring math next pairs pcall print
        rawequal rawget rawlen rawset report require select setmetatable string table tonumber tostring type unpack xpcall]]):gmatch('%S+') do
        own[name] = true
    end
";

/// What there is, as a policy finds it.
fn there() -> BTreeSet<String> {
    let body = format!(
        "{LUA}
        local found = {{}}
        for name, value in pairs(_G) do
            if not own[name] then
                if type(value) ~= 'table' then
                    found[#found + 1] = name
                else
                    for inner in pairs(value) do found[#found + 1] = name .. '.' .. inner end
                end
            end
        end
        alert {{ kind = 'k', title = 't', evidence = {{ names = found }} }}"
    );
    let effects = on_worker(async { Bench::handler(&body).at(1.0).await.unwrap() });
    let names = effects.alerts[0].evidence["names"].as_array().unwrap().clone();
    names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

fn definitions() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/types/trackalert.lua");
    std::fs::read_to_string(file).unwrap()
}

#[test]
fn every_function_is_defined_and_no_other_one() {
    let text = definitions();
    let functions = text.lines().filter_map(|line| line.strip_prefix("function ")?.split('(').next());
    let values = text.lines().filter_map(|line| line.strip_suffix(" = nil"));
    // The methods of a local table are those of a class.
    let defined: BTreeSet<String> =
        functions.chain(values).filter(|name| !name.contains(':')).map(str::to_owned).collect();
    assert_eq!(defined, there());
}

#[test]
fn every_field_of_a_report_is_defined_and_has_its_type() {
    let text = definitions();
    let class = text.split("---@class (exact) trackalert.Report\n").nth(1).unwrap();
    let fields = class.lines().map_while(|line| line.strip_prefix("---@field ")).map(|line| {
        let mut words = line.split(' ');
        (words.next().unwrap(), words.next().unwrap())
    });
    let mut count = 0;
    for (name, kind) in fields {
        count += 1;
        let expected = match kind {
            "number" => "number",
            "boolean" => "boolean",
            "trackalert.Address" => "userdata",
            kind if kind.starts_with("table<") => "table",
            _ => "string",
        };
        let body = format!("local kind = type(lt.{name}) assert(kind == '{expected}', kind)");
        let outcome = on_worker(async { Bench::handler(&body).at(1.0).await });
        assert!(outcome.is_ok(), "{name}: {outcome:?}");
    }
    // The error of a field that does not exist lists those that do.
    let wrong = on_worker(async { Bench::handler("return lt.zzzzzzzzzz").at(1.0).await });
    let said = wrong.unwrap_err().to_string();
    let listed = said.split("there are ").nth(1).unwrap().split(", ").count();
    assert_eq!(count, listed, "{said}");
}

#[test]
fn definitions_are_lua() {
    let text = definitions();
    let body = format!("assert(load([==[{text}]==]))");
    let outcome = on_worker(async { Bench::handler(&body).at(1.0).await });
    assert!(outcome.is_ok(), "{outcome:?}");
}
