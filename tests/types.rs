//! The definitions for editors name what a policy may call: all of it, and nothing else. What a parameter is called and which options there
//! are, the errors of the program say.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

#[path = "support/policy.rs"]
mod bench;
#[path = "support/stores.rs"]
mod stores;

use std::collections::BTreeSet;
use std::path::Path;

use bench::{Bench, Folder, on_worker};

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

/// A function as the definitions have it: its parameters, each with its type.
struct Defined {
    name: String,
    parameters: Vec<(String, String)>,
}

/// The functions of tables that are not local: what stands above each says the types.
fn functions(text: &str) -> Vec<Defined> {
    let mut kinds = Vec::new();
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(parameter) = line.strip_prefix("---@param ") {
            let (name, kind) = parameter.split_once(' ').unwrap();
            kinds.push((name.trim_end_matches('?').to_owned(), kind.to_owned()));
        } else if let Some(rest) = line.strip_prefix("function ") {
            let (name, rest) = rest.split_once('(').unwrap();
            let given = rest.split(')').next().unwrap().split(", ").filter(|name| !name.is_empty());
            let typed = std::mem::take(&mut kinds);
            assert!(given.eq(typed.iter().map(|(name, _)| name)), "{line}: the types above are those of {typed:?}");
            if !name.contains(':') {
                found.push(Defined { name: name.to_owned(), parameters: typed });
            }
        }
    }
    found
}

/// The names of a table of options: of a class, its parents included, or of a table that is written out.
fn keys(text: &str, kind: &str) -> BTreeSet<String> {
    if let Some(inner) = kind.strip_prefix("{ ").and_then(|rest| rest.split(" }").next()) {
        return inner.split(", ").map(|field| field.split([':', '?']).next().unwrap().to_owned()).collect();
    }
    let name = kind.split(' ').next().unwrap();
    let head = format!("---@class (exact) {name}");
    let mut lines = text.lines().skip_while(|line| *line != head && !line.starts_with(&format!("{head}: ")));
    let parent = lines.next().unwrap_or_else(|| panic!("there is no class {name}")).split_once(": ");
    let mut keys = parent.map(|(_, parent)| keys(text, parent)).unwrap_or_default();
    let fields = lines.map_while(|line| line.strip_prefix("---@field "));
    keys.extend(fields.map(|field| field.split([' ', '?']).next().unwrap().to_owned()));
    keys
}

/// What is right for a parameter, so that it is the one behind it that is looked at.
fn right(function: &str, parameter: &str) -> &'static str {
    match (function, parameter) {
        (_, "key" | "member" | "message" | "body") => "'x'",
        (_, "url") => "'http://127.0.0.1:1/'",
        (_, "a") => "lt.remote",
        ("state.set", "value") => "1",
        ("time.format", "seconds") => "1",
        other => panic!("say what is right for {other:?}"),
    }
}

/// What the call says with `value` as this parameter and right ones before it; empty where it is content.
fn said(function: &Defined, at: usize, value: &str) -> String {
    let before = function.parameters[..at].iter().map(|(name, _)| right(&function.name, name));
    let arguments: Vec<&str> = before.chain([value]).collect();
    // At the top level it is loaded; what works there only is asked there.
    let call = format!("local ok, said = pcall({}, {})", function.name, arguments.join(", "));
    let source = format!("{call}\nassert(ok, 'SAID ' .. tostring(said))");
    let mut settings = bench::settings();
    settings.wforce.servers = vec!["http://127.0.0.1:1/".to_owned()];
    let outcome = if function.name == "net.file" {
        let folder = Folder::with(&[("p/policy.lua", &format!("{source}\nfunction report(lt) end"))]);
        folder.load().map(drop).map_err(|error| error.to_string())
    } else {
        let source = format!("function report(lt)\n{source}\nend");
        let ran = on_worker(async { Bench::with([("p", &*source)], &settings).at(1.0).await });
        ran.map(drop).map_err(|error| error.to_string())
    };
    let text = outcome.err().unwrap_or_default();
    text.split("SAID ").nth(1).unwrap_or(&text).to_owned()
}

/// Whether it is about this parameter.
fn is_about(function: &Defined, at: usize, said: &str) -> bool {
    let (name, kind) = &function.parameters[at];
    let named = |name: &str| said.contains(&format!("{}: {name}", function.name));
    // The number alone does for the options of state.set.
    named(name) || (kind.ends_with("|number seconds") && named("ttl"))
}

#[test]
fn every_parameter_has_the_name_that_an_error_of_the_program_has_for_it() {
    for function in functions(&definitions()) {
        for at in 0..function.parameters.len() {
            // Nothing takes a function.
            let said = said(&function, at, "print");
            assert!(is_about(&function, at, &said), "{}: {:?}: {said:?}", function.name, function.parameters[at]);
        }
    }
}

#[test]
fn parameter_takes_an_address_where_its_type_says_so_and_only_there() {
    let mut drifted = Vec::new();
    for function in functions(&definitions()) {
        for (at, (name, kind)) in function.parameters.iter().enumerate() {
            let value = if kind.ends_with("[]") { "{ lt.remote }" } else { "lt.remote" };
            if function.name == "net.file" {
                // There is no report while a policy is loaded.
                continue;
            }
            let taken = !is_about(&function, at, &said(&function, at, value));
            let told = kind.contains("trackalert.Address") || kind.split(' ').next() == Some("any");
            if taken != told {
                drifted.push(format!("{}: {name}: {kind}: an address is taken: {taken}", function.name));
            }
        }
    }
    assert_eq!(drifted, Vec::<String>::new());
}

#[test]
fn every_table_of_options_has_the_keys_that_the_program_knows() {
    let text = definitions();
    let mut looked_at = 0;
    for function in functions(&text) {
        for (at, (name, kind)) in function.parameters.iter().enumerate() {
            // The error of a key that does not exist lists those that do.
            let said = said(&function, at, "{ zzzzzzzzzz = 1 }");
            let Some((_, listed)) = said.split_once("no such key; there are ") else { continue };
            let listed: BTreeSet<String> = listed.lines().next().unwrap().split(", ").map(str::to_owned).collect();
            let refused = |key: &String| {
                let said =
                    self::said(&function, at, &format!("{{ login = 'ann', remote = '192.0.2.1', {key} = true }}"));
                said.contains(&format!("{key}: is not known before the login"))
            };
            let known: BTreeSet<String> = listed.into_iter().filter(|key| !refused(key)).collect();
            assert_eq!(keys(&text, kind), known, "{}: {name}", function.name);
            looked_at += 1;
        }
    }
    assert!(looked_at >= 11, "{looked_at}");
}

#[test]
fn documented_calls_have_as_many_parameters() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/policies.md");
    let text = std::fs::read_to_string(file).unwrap();
    let table = text.split("| function | gives | waits |").nth(1).unwrap().split("\n\n").next().unwrap();
    let cells = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let calls = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).filter(|call| call.contains(['(', '{']));
    let functions = functions(&definitions());
    let mut compared = 0;
    for call in calls {
        let (name, arguments) = call.split_at(call.find(['(', ' ']).unwrap());
        let arguments = arguments.trim().trim_start_matches('(').trim_end_matches(')');
        // Lua's own are not defined here.
        let Some(function) = functions.iter().find(|function| function.name == name) else { continue };
        let mut left = arguments;
        for (parameter, _) in &function.parameters {
            // A table stands for the one that it is.
            let rest = if left.starts_with('{') {
                left.split_once('}').map(|(_, rest)| rest)
            } else {
                left.strip_prefix(&**parameter)
            };
            left = rest.unwrap_or_else(|| panic!("{call}: {parameter} is not there")).trim_start_matches(", ");
        }
        assert_eq!(left, "", "{call}: there are more than in {}", name);
        compared += 1;
    }
    assert!(compared >= 24, "{compared}");
}
