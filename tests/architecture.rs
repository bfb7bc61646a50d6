//! The rules of the house, held by reading the source: who may import whom, how long a file may be, what may not be written at all.
//!
//! The tree reads as the data flows, and stays so only if a short cut across it is red at once. The checker is tested on small bad
//! samples below: a rule that cannot fail is none.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

use std::fmt;
use std::path::{Path, PathBuf};

/// The longest file, in lines before its tests.
const LONGEST: usize = 500;
/// Keys of `config/default.toml` that one comment may explain together.
const KEYS_PER_COMMENT: usize = 3;

/// Parts that are functions of their arguments: no clock, no thread, no network, no file.
const PURE: [&str; 7] = ["report", "decode", "settings", "alert", "queue::offsets", "schedule::cron", "history::query"];
/// What every part may use.
const BASE: [&str; 7] = ["telemetry", "health", "outbound", "perfstats", "stamp", "device", "complaints"];
/// What the rest of the program sees of a queue, a history, a state.
const CONTRACTS: [&str; 3] = ["queue", "history", "state"];
/// What stands behind the contracts. `store` is the file under the embedded ones.
const DRIVERS: [&str; 8] = [
    "queue::embedded",
    "queue::kafka",
    "queue::amqp",
    "history::embedded",
    "history::elastic",
    "state::embedded",
    "state::redis",
    "state::elastic",
];
/// The roles, and the policies that one of them runs.
const ROLES: [&str; 5] = ["receive", "detect", "schedule", "notify", "policy"];
/// Crates that speak to a broker, and the files that may name them.
const BROKER_CRATES: [&str; 2] = ["rdkafka", "lapin"];
const BROKERS: [&str; 2] = ["queue::kafka", "queue::amqp"];

#[derive(Debug, PartialEq, Eq)]
struct Violation {
    file: String,
    line: usize,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

/// One source file, as the rules see it.
struct Source {
    /// From `src/`, with slashes.
    file: String,
    /// `["queue", "embedded", "source"]`
    module: Vec<String>,
    text: String,
    /// The production part, comments and strings blanked out, lines kept.
    code: String,
}

impl Source {
    fn new(file: &str, text: &str) -> Self {
        let mut module: Vec<String> = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        let code = blank(production(text));
        Self { file: file.to_owned(), module, text: text.to_owned(), code }
    }

    fn is_in(&self, part: &str) -> bool {
        inside(&self.module, part)
    }

    fn violation(&self, line: usize, rule: impl Into<String>) -> Violation {
        Violation { file: self.file.clone(), line, rule: rule.into() }
    }
}

fn inside(module: &[String], part: &str) -> bool {
    let part: Vec<&str> = part.split("::").collect();
    module.len() >= part.len() && module.iter().zip(&part).all(|(a, b)| a == b)
}

/// The text before the tests.
fn production(text: &str) -> &str {
    let end = text.match_indices("#[cfg(test)]").map(|(at, _)| at).find(|at| {
        let rest = text[at + "#[cfg(test)]".len()..].trim_start();
        rest.starts_with("mod ")
            || rest.starts_with("pub mod ")
            || rest.starts_with("pub(crate) mod ")
            || rest.starts_with("#[path")
    });
    &text[..end.unwrap_or(text.len())]
}

/// Comments, strings and characters become spaces, so that what is only said is not taken for what is done.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let rest_is = |at: usize, what: &str| chars[at..].iter().take(what.len()).collect::<String>() == what;
    while at < chars.len() {
        let end = if rest_is(at, "//") {
            (at..chars.len()).find(|i| chars[*i] == '\n').unwrap_or(chars.len())
        } else if rest_is(at, "/*") {
            (at + 2..chars.len()).find(|i| rest_is(*i, "*/")).map_or(chars.len(), |i| i + 2)
        } else if let Some(hashes) = raw_string(&chars, at) {
            let close = format!("\"{}", "#".repeat(hashes));
            let from = at + 2 + hashes;
            (from..chars.len()).find(|i| rest_is(*i, &close)).map_or(chars.len(), |i| i + close.len())
        } else if chars[at] == '"' {
            let mut i = at + 1;
            while i < chars.len() && chars[i] != '"' {
                i += if chars[i] == '\\' { 2 } else { 1 };
            }
            (i + 1).min(chars.len())
        } else if chars[at] == '\'' && chars.get(at + 1) == Some(&'\\') {
            (at + 3..chars.len()).find(|i| chars[*i] == '\'').map_or(chars.len(), |i| i + 1)
        } else if chars[at] == '\'' && chars.get(at + 2) == Some(&'\'') {
            at + 3
        } else {
            out.push(chars[at]);
            at += 1;
            continue;
        };
        out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    out
}

/// The number of `#` of a raw string that begins here.
fn raw_string(chars: &[char], at: usize) -> Option<usize> {
    let word_before = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_') && chars[at - 1] != 'b';
    if chars[at] != 'r' || word_before {
        return None;
    }
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    (chars.get(at + 1 + hashes) == Some(&'"')).then_some(hashes)
}

/// Each place where `word` stands by itself, as a line from 1.
fn places<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let edge = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(word)
        .filter(move |(at, _)| {
            let first = word.starts_with(|c: char| c.is_alphanumeric());
            let last = word.ends_with(|c: char| c.is_alphanumeric());
            (!first || edge(code[..*at].chars().next_back())) && (!last || edge(code[at + word.len()..].chars().next()))
        })
        .map(|(at, _)| line_of(code, at))
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// Every path of this crate that the code names: `crate::a::b`, `super::c`, `crate::{a, b::{c, d}}`; with its line.
fn paths(source: &Source) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in source.code.match_indices(start) {
            let before = source.code[..at].trim_end();
            let mid_word =
                source.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '$');
            if mid_word || before.ends_with("pub(in") {
                continue;
            }
            let mut prefix = if start == "crate::" { Vec::new() } else { parent(&source.module) };
            let mut rest = &source.code[at + start.len()..];
            while let Some(next) = rest.strip_prefix("super::") {
                prefix = parent(&prefix);
                rest = next;
            }
            let mut parser = Paths { rest, found: Vec::new() };
            parser.path(&prefix);
            let line = line_of(&source.code, at);
            found.extend(parser.found.into_iter().map(|path| (line, path)));
        }
    }
    found
}

fn parent(module: &[String]) -> Vec<String> {
    module[..module.len().saturating_sub(1)].to_vec()
}

struct Paths<'a> {
    rest: &'a str,
    found: Vec<Vec<String>>,
}

impl Paths<'_> {
    fn path(&mut self, prefix: &[String]) {
        self.rest = self.rest.trim_start();
        if let Some(rest) = self.rest.strip_prefix('{') {
            self.rest = rest;
            while !self.rest.trim_start().starts_with('}') && !self.rest.trim().is_empty() {
                let before = self.rest.len();
                self.path(prefix);
                // `a as b`, `*`, commas
                let skip = self.rest.find([',', '}']).unwrap_or(self.rest.len());
                self.rest = &self.rest[skip..];
                self.rest = self.rest.strip_prefix(',').unwrap_or(self.rest).trim_start();
                if self.rest.len() == before {
                    break;
                }
            }
            self.rest = self.rest.trim_start().strip_prefix('}').unwrap_or(self.rest);
            return;
        }
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        let mut path = prefix.to_vec();
        if !word.is_empty() && word != "self" {
            path.push(word.to_owned());
        }
        match rest.strip_prefix("::") {
            Some(rest) if !rest.starts_with('<') => {
                self.rest = rest;
                self.path(&path);
            }
            _ => self.found.push(path),
        }
    }
}

/// Why a file may not name a path of this crate.
fn forbidden(from: &Source, to: &[String]) -> Option<String> {
    let top = from.module.first().map_or("", String::as_str);
    let target = to.first().map_or("", String::as_str);
    let any = |parts: &[&str]| parts.iter().any(|part| inside(to, part));
    let own = |parts: &[&'static str]| parts.iter().copied().find(|part| from.is_in(part));
    let composition = ["app", "cli", "demo", "main", "lib"].contains(&top);
    if target == "app" && !composition {
        return Some("nothing but the command line and the demo imports app".into());
    }
    if ["cli", "demo", "harness"].contains(&target) && !["cli", "demo", "main"].contains(&top) && top != target {
        return Some(format!("nothing imports {target}"));
    }
    if target == "config" && !composition && top != "config" {
        return Some("a part gets its own Settings, never the whole config".into());
    }
    if any(&BROKERS) && !composition && top != "config" && own(&BROKERS).is_none() {
        return Some("a broker is named only in queue/{kafka,amqp}.rs, config and app".into());
    }
    if composition || top == "config" {
        return None;
    }
    if top == "harness" {
        // It stands above the drivers, as app does: a case runs on real stores. But it is the running of policies alone: what takes
        // reports in, sends alerts or talks to a broker must have no way into a test.
        let outside = ["http", "receive", "notify", "schedule", "queue"].contains(&target);
        return outside.then(|| format!("the tests of policies reach nothing outside: they know no {target}"));
    }
    if let Some(part) = own(&PURE) {
        // Its own contract's types are as pure as it is.
        let contract = part.split("::").next().is_some_and(|contract| target == contract) && !any(&DRIVERS);
        return (!any(&PURE) && !contract && target != "telemetry")
            .then(|| format!("{part} is pure: it may use {} only", PURE.join(", ")));
    }
    if own(&BASE).is_some() {
        return (!any(&PURE) && !any(&BASE))
            .then(|| format!("{top} is under everything: it may use the pure parts only"));
    }
    if let Some(driver) = own(&DRIVERS) {
        if any(&DRIVERS) && !inside(to, driver) {
            return Some("a driver never imports another one".into());
        }
        if any(&ROLES) || target == "http" {
            return Some("a driver never imports a role".into());
        }
        return None;
    }
    if ["store", "geoip"].contains(&top) && (any(&DRIVERS) || any(&ROLES) || any(&CONTRACTS) || target == "http") {
        return Some(format!("{top} is under the drivers: it knows no contract, driver or role"));
    }
    if let Some(contract) = own(&CONTRACTS) {
        if any(&DRIVERS) || any(&ROLES) || ["http", "store"].contains(&target) {
            return Some(format!("the contract of {contract} knows nobody who fulfils or uses it"));
        }
        return None;
    }
    if let Some(role) = own(&ROLES) {
        if any(&PURE) {
            return None;
        }
        if any(&DRIVERS) || target == "store" {
            return Some("a role sees contracts, never a driver".into());
        }
        if target == "http" {
            return Some("a role never imports http: app joins them".into());
        }
        if any(&ROLES) && target != role && !(role == "detect" && target == "policy") {
            return Some("a role never imports another one: between two roles is a queue".into());
        }
        return None;
    }
    if top == "http" && (any(&DRIVERS) || target == "store") {
        return Some("http sees contracts, never a driver".into());
    }
    None
}

/// All that is wrong with one file.
fn check(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    if !source.text.starts_with("//!") {
        found.push(source.violation(1, "begins with //! that says what the file owns and what it never does"));
    }
    let lines = production(&source.text).lines().count();
    if lines > LONGEST {
        found.push(source.violation(lines, format!("{lines} lines before the tests; at most {LONGEST}")));
    }
    let printer = ["cli", "demo", "main"].iter().any(|part| source.is_in(part));
    let bans: [(&str, bool, &str); 9] = [
        ("unsafe", source.is_in("policy::watchdog"), "unsafe code lives in policy/watchdog only"),
        (".unwrap()", false, "no unwrap outside of tests: return an error"),
        (".expect(", false, "no expect outside of tests: return an error"),
        (".unwrap_err()", false, "no unwrap_err outside of tests"),
        ("println!", printer, "what goes to a terminal goes through cli/output.rs; the rest is a log"),
        ("print!", printer, "what goes to a terminal goes through cli/output.rs; the rest is a log"),
        ("eprintln!", printer, "what goes to a terminal goes through cli/output.rs; the rest is a log"),
        ("todo!", false, "no stubs"),
        ("dbg!", false, "no dbg"),
    ];
    for (word, allowed, rule) in bans {
        if !allowed {
            found.extend(places(&source.code, word).map(|line| source.violation(line, rule)));
        }
    }
    let broker = BROKERS.iter().any(|part| source.is_in(part)) || source.is_in("config") || source.is_in("app");
    for word in BROKER_CRATES {
        if !broker {
            let rule = "a broker is named only in queue/{kafka,amqp}.rs, config and app";
            found.extend(places(&source.code, word).map(|line| source.violation(line, rule)));
        }
    }
    for (line, path) in paths(source) {
        if let Some(rule) = forbidden(source, &path) {
            found.push(source.violation(line, format!("{}: {rule}", path.join("::"))));
        }
    }
    found
}

/// The keys of a TOML text without a comment above them in the same block.
fn uncommented(toml: &str) -> Vec<String> {
    let mut since = None;
    let mut found = Vec::new();
    for line in toml.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('[') {
            since = None;
        } else if line.starts_with('#') {
            since = Some(0);
        } else if let Some((key, _)) = line.split_once(" = ") {
            match &mut since {
                Some(keys) if *keys < KEYS_PER_COMMENT => *keys += 1,
                _ => found.push(key.to_owned()),
            }
        }
    }
    found
}

fn tree(folder: &Path, into: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            tree(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// Files that hold tests only.
fn is_test(file: &str) -> bool {
    file.split('/').any(|part| matches!(part, "tests" | "tests.rs" | "test_support.rs") || part.ends_with("_tests.rs"))
}

fn house() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    tree(&src, &mut files);
    let sources: Vec<Source> = files
        .iter()
        .map(|path| (path.strip_prefix(&src).unwrap().to_str().unwrap().replace('\\', "/"), path))
        .filter(|(file, _)| !is_test(file))
        .map(|(file, path)| Source::new(&file, &std::fs::read_to_string(path).unwrap()))
        .collect();
    assert!(sources.len() > 40, "the source tree was not found: {} files", sources.len());
    sources
}

#[test]
fn the_house_keeps_its_rules() {
    let house = house();
    let named: usize = house.iter().map(|source| paths(source).len()).sum();
    assert!(named > 300, "the imports were not read: {named} paths");
    let found: Vec<String> = house.iter().flat_map(check).map(|violation| violation.to_string()).collect();
    assert!(found.is_empty(), "{} rules are broken:\n{}", found.len(), found.join("\n"));
}

#[test]
fn every_setting_has_a_comment() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/default.toml");
    let found = uncommented(&std::fs::read_to_string(file).unwrap());
    assert!(found.is_empty(), "no comment near {found:?}");
}

/// What the rules say of one file with this code.
fn told(file: &str, code: &str) -> Vec<String> {
    check(&Source::new(file, &format!("//! x\n{code}"))).iter().map(|violation| violation.rule.clone()).collect()
}

#[test]
fn each_forbidden_import_is_found() {
    for (file, code, expected) in [
        ("report.rs", "use crate::queue::Message;", "report is pure"),
        ("queue/offsets.rs", "use super::embedded::Log;", "queue::offsets is pure"),
        ("history/query/parse.rs", "use crate::state::State;", "history::query is pure"),
        ("telemetry.rs", "use crate::notify::Channel;", "under everything"),
        ("queue/mod.rs", "pub use crate::queue::embedded::EmbeddedQueue;", "the contract of queue"),
        ("state/mod.rs", "use crate::detect::Detect;", "the contract of state"),
        ("queue/embedded/source.rs", "use crate::history::embedded::Day;", "another one"),
        ("state/embedded.rs", "use crate::queue::{self, embedded::Log};", "another one"),
        ("history/embedded/mod.rs", "use crate::{detect, report::Time};", "a driver never imports a role"),
        ("detect/settle.rs", "use crate::queue::{embedded::{EmbeddedQueue}, Message};", "never a driver"),
        ("notify/deliver.rs", "fn f() { crate::store::Store::open(); }", "never a driver"),
        ("receive/wforce.rs", "use super::super::http::Settings;", "never imports http"),
        ("notify/mod.rs", "use crate::detect::Dispatch;", "another one: between"),
        ("schedule/mod.rs", "use crate::policy::Vm;", "another one: between"),
        ("detect/mod.rs", "use crate::config::Config;", "its own Settings"),
        ("http/admin.rs", "use crate::queue::embedded::EmbeddedQueue;", "http sees contracts"),
        ("http/server.rs", "use crate::app::App;", "imports app"),
        ("policy/vm.rs", "use crate::cli::Failure;", "nothing imports cli"),
        ("detect/mod.rs", "use crate::queue::kafka::Source;", "a broker is named"),
        ("detect/mod.rs", "use rdkafka::Message;", "a broker is named"),
        ("store.rs", "use crate::queue::Message;", "under the drivers"),
        ("policy/vm.rs", "use crate::harness::Case;", "nothing imports harness"),
        ("detect/mod.rs", "use crate::harness::Suite;", "nothing imports harness"),
        ("harness/case.rs", "use crate::cli::Failure;", "nothing imports cli"),
        ("harness/mod.rs", "use crate::config::Config;", "its own Settings"),
        ("harness/stage.rs", "use crate::app::Stores;", "imports app"),
        ("harness/stage.rs", "use crate::queue::embedded::EmbeddedQueue;", "know no queue"),
        ("harness/stage.rs", "use crate::notify::Channel;", "know no notify"),
    ] {
        let told = told(file, code);
        assert!(told.len() == 1 && told[0].contains(expected), "{file}: {code}: {told:?}");
    }
}

#[test]
fn what_is_allowed_is_not_told() {
    for (file, code) in [
        (
            "detect/mod.rs",
            "use crate::policy::{Effects, Vm};\nuse crate::queue::{self, Delivery};\nuse super::report::Time;",
        ),
        ("history/query/parse.rs", "use crate::history::HistoryError;\nuse super::walk::Walk;"),
        (
            "queue/embedded/source.rs",
            "use super::super::{Message, QueueError};\nuse super::log::Log;\nuse crate::store::Store;",
        ),
        ("app/mod.rs", "use crate::queue::embedded::EmbeddedQueue;\nuse crate::config::Config;\nuse lapin::Channel;"),
        ("cli/run.rs", "use crate::app::App;\nfn f() { println!(); }"),
        ("cli/test/mod.rs", "use crate::harness::{self, Case};"),
        (
            "harness/stage.rs",
            "use crate::history::embedded::EmbeddedHistory;\nuse crate::policy::Vm;\nuse crate::{detect, store::Store};\nuse super::case::Case;",
        ),
        (
            "detect/mod.rs",
            "// use crate::http::Server; unsafe .unwrap()\nconst A: &str = \"unsafe { x.unwrap() }\"; const B: &str = r#\"a\"unsafe\"#;",
        ),
        (
            "detect/mod.rs",
            "const Q: char = '\"'; fn f<'a>(x: &'a str) {}\n#[cfg(test)]\nmod tests { use crate::http::Server; fn f() { x.unwrap(); } }",
        ),
        ("policy/watchdog/mod.rs", "unsafe { f() }"),
        ("detect/mod.rs", "#![deny(unsafe_code)]\nfn f() { x.unwrap_or_default(); self.expect_more(1); }"),
    ] {
        assert_eq!(told(file, code), Vec::<String>::new(), "{file}: {code}");
    }
}

#[test]
fn what_may_not_be_written_is_found_with_its_line() {
    let source = Source::new("detect/mod.rs", "fn f() {\n    let x = y.unwrap();\n    unsafe { z() }\n}\n");
    let lines: Vec<String> = check(&source).iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "detect/mod.rs:1: begins with //! that says what the file owns and what it never does",
            "detect/mod.rs:3: unsafe code lives in policy/watchdog only",
            "detect/mod.rs:2: no unwrap outside of tests: return an error",
        ]
    );
    assert_eq!(told_of_length(LONGEST - 1), 0);
    assert_eq!(told_of_length(LONGEST), 1);
    for code in ["x.expect(\"y\")", "println!(\"x\")", "eprintln!(\"x\")", "todo!()", "dbg!(x)"] {
        assert_eq!(told("detect/mod.rs", code).len(), 1, "{code}");
    }
}

fn told_of_length(lines: usize) -> usize {
    told("detect/mod.rs", &"//\n".repeat(lines)).len()
}

#[test]
fn a_setting_without_a_comment_is_found() {
    assert_eq!(uncommented("# one\na = 1\n\nb = 2\n[s]\nc = 3\n# four\nd = 4\ne = 5\nf = 6\ng = 7\n"), ["b", "c", "g"]);
}
