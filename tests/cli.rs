//! The real binary, as a person or a unit file calls it: texts, exit codes, and what it says when nobody answers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The program in a folder of its own and without the environment of whoever runs the tests.
fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trackalert"));
    command.current_dir(folder).env_clear().stdin(Stdio::null());
    command
}

fn run(folder: &Path, args: &[&str]) -> (i32, String, String) {
    taken(program(folder).args(args).output().unwrap())
}

fn taken(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 4, "{files:?}");
    files
}

/// A port of loopback on which nobody listens.
fn dead_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn without_a_command_the_help_is_printed() {
    let folder = folder();
    let (code, out, _) = run(folder.path(), &[]);
    assert_eq!(code, 0);
    for word in [
        "Usage:",
        "run",
        "check",
        "test",
        "send",
        "demo",
        "query",
        "dead-letters",
        "config",
        "Examples:",
        "Exit codes:",
    ] {
        assert!(out.contains(word), "{word} is missing in\n{out}");
    }
    assert!(!out.contains('\u{1b}'), "no colours into a pipe");
}

#[test]
fn a_configuration_without_a_command_is_wrong_usage() {
    let folder = folder();
    for args in [&["-C", "ta.toml"][..], &["--set", "detect.workers=1"]] {
        let (code, out, err) = run(folder.path(), args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(err.contains("no command given") && err.contains("Usage: trackalert"), "{err}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let folder = folder();
    for (args, expected) in [
        (&["run", "--rols", "receive"][..], "--roles"),
        (&["run", "--roles", "receiver"], "\"receiver\" is no role"),
        (&["rum"], "run"),
        (&["query", "{}", "--login", "alice"], "cannot be used with"),
        (&["query", "{"], "the search body is not JSON"),
        (&["query", "--since", "yesterday"], "7d"),
        (&["query", "--remote", "here"], "no address"),
        (&["dead-letters", "drop"], "--all"),
        (&["dead-letters", "drop", "x", "--all"], "cannot be used with"),
        (&["dead-letters", "resend", "x", "--policy", "y"], "either ids or a filter"),
        (&["send", "--rate", "0"], "0"),
        (&["send", "nofile"], "nofile: "),
        (&["send", "."], ".: is a folder"),
        (&["query", "--file", "nofile"], "nofile: "),
        (&["query", "--login", "ann", "--set", "history.kind=none"], "history.kind is \"none\""),
        (&["send", "nofile", "--set", "detect.workers=x"], "detect.workers"),
    ] {
        let (code, out, err) = run(folder.path(), args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(err.contains(expected), "{args:?}: {err}");
    }
}

#[test]
fn a_wrong_configuration_is_exit_code_2_with_all_mistakes_for_every_command_that_reads_one() {
    let folder = folder();
    std::fs::write(folder.path().join("ta.toml"), "[http]\nlisen = []\n\n[history]\nkind = \"elasticsearch\"\n")
        .unwrap();
    let expected = "trackalert: the configuration has 2 mistakes:\n  \
                    ta.toml:2: http.lisen: unknown; did you mean http.listen?\n  \
                    ta.toml:5: history.kind: \"elasticsearch\" is not in this program yet; use \"embedded\" or \"none\"\n";
    for command in [&["run"][..], &["check"], &["test"], &["config"], &["query"], &["send"], &["dead-letters", "list"]]
    {
        let (code, out, err) = run(folder.path(), &[command, &["-C", "ta.toml"]].concat());
        assert_eq!((code, out.as_str(), err.as_str()), (2, "", expected), "{command:?}");
    }
    let (code, out, _) = run(folder.path(), &["check", "-C", "ta.toml", "--format", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, answer["ok"].as_bool(), answer["findings"].as_array().unwrap().len()), (2, Some(false), 2));
}

#[test]
fn config_shows_each_value_with_its_source_and_no_secret() {
    let folder = folder();
    std::fs::write(folder.path().join("ta.toml"), "[http]\npassword = \"hunter2\"\n").unwrap();
    let output = program(folder.path())
        .args(["config", "-C", "ta.toml", "--set", "detect.workers=3"])
        .env("TRACKALERT__LOG__LEVEL", "debug")
        .env("STATE_DIRECTORY", "/var/lib/ta")
        .output()
        .unwrap();
    let (code, out, _) = taken(output);
    assert_eq!(code, 0);
    assert!(!out.contains("hunter2"));
    let line = |start: &str| {
        let line = out.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start} in\n{out}"));
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("# http.password ="), "# http.password = \"********\" # ta.toml:2");
    assert_eq!(line("detect.workers ="), "detect.workers = 3 # --set detect.workers");
    assert_eq!(line("log.level ="), "log.level = \"debug\" # TRACKALERT__LOG__LEVEL");
    assert_eq!(line("data_dir ="), "data_dir = \"/var/lib/ta\" # STATE_DIRECTORY");
    assert_eq!(line("detect.in_flight ="), "detect.in_flight = 10000 # default");

    // What is printed is a configuration again.
    std::fs::write(folder.path().join("again.toml"), &out).unwrap();
    let (code, again, err) = run(folder.path(), &["config", "-C", "again.toml"]);
    assert_eq!(code, 0, "{err}");
    let values = |text: &str| {
        let lines = text.lines().map(|line| line.split(" # ").next().unwrap().trim().to_owned());
        lines.filter(|line| !line.contains("http.password =")).collect::<Vec<_>>()
    };
    assert_eq!(values(&again), values(&out));
    assert!(again.contains("\nhttp.password = \"\""), "a mask is not taken for the secret:\n{again}");

    let (_, json, _) = run(folder.path(), &["config", "--format", "json"]);
    let list: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
    assert!(list.iter().any(|one| one["key"] == "http.listen" && one["source"] == "default"));
}

#[test]
fn every_example_is_a_configuration_that_passes_the_check() {
    let folder = folder();
    for example in examples() {
        let example = example.to_str().unwrap();
        // The folder that they name may be another user's here.
        let check = ["check", "-C", example, "--set", "data_dir=data"];
        let (code, out, err) = run(folder.path(), &check);
        assert_eq!(code, 0, "{example}: {out}{err}");
        assert!(out.ends_with("all well\n"), "{example}: {out}");
        let (code, out, _) = run(folder.path(), &[&check[..], &["--format", "json"]].concat());
        let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, answer["ok"].as_bool()), (0, Some(true)), "{example}");
    }
}

#[test]
fn check_names_the_file_that_cannot_be_read() {
    let folder = folder();
    let (code, out, _) = run(
        folder.path(),
        &[
            "check",
            "--set=geoip.files=nowhere.mmdb",
            "--set=http.tls_cert=c.pem",
            "--set=http.tls_key=k.pem",
            "--set=outbound.ca_file=ca.pem",
        ],
    );
    assert_eq!(code, 2);
    for expected in [
        "error: geoip.files: nowhere.mmdb",
        "error: http.tls_cert: c.pem",
        "error: http.tls_key: k.pem",
        "error: outbound.ca_file: ca.pem: No such file",
    ] {
        assert!(out.contains(expected), "{expected} is missing in\n{out}");
    }
}

/// Two policies that do not load.
fn broken_policies(folder: &Path) {
    for (name, lua) in [("one", "function report("), ("two", "x = = 1")] {
        std::fs::create_dir_all(folder.join("broken").join(name)).unwrap();
        std::fs::write(folder.join("broken").join(name).join("policy.lua"), lua).unwrap();
    }
}

/// A certificate and the key of another one.
fn mismatched_pair(folder: &Path) {
    let made = || rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("cert.pem"), made().cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made().signing_key.serialize_pem()).unwrap();
}

#[test]
fn run_refuses_what_check_finds_all_at_once_with_exit_code_2_and_opens_nothing() {
    let folder = folder();
    broken_policies(folder.path());
    mismatched_pair(folder.path());
    let sets = ["policy.path=broken,nowhere", "geoip.files=no.mmdb", "http.tls_cert=cert.pem", "http.tls_key=key.pem"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let expected = [
        "policy.path: nowhere: no folder of policies",
        "policy.path: broken/one/policy.lua:",
        "policy.path: broken/two/policy.lua:",
        "geoip.files: no.mmdb: ",
        "http.tls_key: key.pem: ",
    ];
    let (code, _, err) = run(folder.path(), &[&["run", "--set", "data_dir=data"], &sets[..]].concat());
    assert!(code == 2 && err.starts_with("trackalert: the configuration has 5 mistakes:\n"), "{code}: {err}");
    let (checked, out, said) = run(folder.path(), &[&["check"], &sets[..]].concat());
    assert!(checked == 2 && said.contains("there are 5 errors"), "{out}{said}");
    for expected in expected {
        assert!(err.contains(&format!("\n  {expected}")), "{expected} is missing in\n{err}");
        assert!(out.contains(&format!("\nerror: {expected}")), "{expected} is missing in\n{out}");
    }
    assert!(!folder.path().join("data").exists(), "nothing is opened");
    let (_, out, _) = run(folder.path(), &[&["check", "--format", "json"], &sets[..]].concat());
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    let errors: Vec<_> =
        answer["findings"].as_array().unwrap().iter().filter(|one| one["severity"] == "error").collect();
    assert_eq!(errors.len(), 5, "{out}");
    assert!(errors.iter().any(|one| one["key"] == "geoip.files" && one["text"].as_str().unwrap().contains("no.mmdb")));

    // A role that needs no policies does not ask for them.
    let (code, out, _) = run(folder.path(), &["check", "--roles", "receive", "--set", "policy.path=nowhere"]);
    assert_eq!(code, 0, "{out}");
}

#[test]
fn run_with_a_data_dir_that_is_a_file_is_exit_code_2_and_a_port_in_use_is_1() {
    let folder = folder();
    std::fs::write(folder.path().join("file"), "").unwrap();
    for command in [&["run"][..], &["query", "--login", "ann", "--offline"]] {
        let (code, _, err) = run(folder.path(), &[command, &["--set", "data_dir=file"]].concat());
        assert!(code == 2 && err.contains("data_dir: ") && err.contains("file is no folder"), "{code}: {err}");
    }
    let (code, out, _) = run(folder.path(), &["check", "--set", "data_dir=file/data"]);
    assert!(code == 2 && out.contains("error: data_dir: "), "{out}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("http.listen={}", taken.local_addr().unwrap());
    let (code, _, err) = run(folder.path(), &["run", "--set", "data_dir=data", "--set", &listen]);
    assert!(code == 1 && err.contains("in use by another program"), "{code}: {err}");
    // What the databases inside say of their files at a start is no news.
    for noise in ["fjall", "lsm_tree", "tantivy", ".cargo/registry"] {
        assert!(!err.contains(noise), "{noise} in\n{err}");
    }
}

#[test]
fn sigterm_while_it_waits_for_its_broker_at_the_start_is_exit_code_0() {
    let folder = folder();
    let broker = format!("queue.amqp.url=amqp://127.0.0.1:{}", dead_port());
    let sets = ["queue.kind=amqp", &broker, "queue.amqp.start_timeout=30s", "http.listen=127.0.0.1:0"];
    let mut command = program(folder.path());
    command.arg("run").args(sets.iter().flat_map(|set| ["--set", set]));
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    // It ends by itself, too, where it never says so: after queue.amqp.start_timeout.
    assert!(log.any(|line| line.unwrap().contains("the broker is not there yet")), "it did not wait for its broker");
    let began = Instant::now();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(20), "it waited for the broker: {:?}", began.elapsed());
}

#[test]
fn check_says_where_the_policies_come_from_and_what_locks_its_own_machine_out() {
    let folder = folder();
    let policies = |args: &[&str]| {
        let (code, out, err) = run(folder.path(), &[&["check"], args].concat());
        assert_eq!(code, 0, "{out}{err}");
        out.lines().find(|line| line.starts_with("policies")).unwrap().to_owned()
    };
    assert!(policies(&[]).starts_with("policies   shipped: dormant_account, new_origin"));
    let own = folder.path().join("policies/mine");
    std::fs::create_dir_all(&own).unwrap();
    std::fs::write(own.join("policy.lua"), "function report(lt) end").unwrap();
    assert_eq!(policies(&[]), "policies   ./policies: mine");
    std::fs::rename(folder.path().join("policies"), folder.path().join("other")).unwrap();
    assert_eq!(policies(&["--set", "policy.path=other"]), "policies   other: mine");

    let left_out = "warning: http.acl: leaves 127.0.0.1 out";
    let (code, out, _) = run(folder.path(), &["check", "--set", "http.acl=10.0.0.0/8"]);
    assert!(code == 0 && out.contains(left_out), "{out}");
    let (_, out, _) = run(folder.path(), &["check"]);
    assert!(!out.contains(left_out), "{out}");
    let (code, _, err) = run(folder.path(), &["check", "--set", "http.acl=[]"]);
    assert!(code == 2 && err.contains("--set http.acl: locks everybody out"), "{err}");
}

#[test]
fn operators_commands_say_what_to_do_when_nobody_answers() {
    let folder = folder();
    let port = dead_port();
    std::fs::write(folder.path().join("ta.toml"), format!("data_dir = \"data\"\nhttp.listen = [\"0.0.0.0:{port}\"]\n"))
        .unwrap();
    std::fs::write(folder.path().join("reports"), "{}\n").unwrap();
    let expected = format!(
        "trackalert: no trackalert answers at http://127.0.0.1:{port} (http.listen); start it with `trackalert run -C ta.toml`, \
         or add --offline to open the data folder data\n"
    );
    for command in [
        &["query", "--login", "alice"][..],
        &["dead-letters", "list"],
        &["dead-letters", "show", "x"],
        &["dead-letters", "resend", "--all"],
        &["send", "reports"],
    ] {
        let (code, _, err) = run(folder.path(), &[command, &["-C", "ta.toml"]].concat());
        assert_eq!((code, err.as_str()), (1, expected.as_str()), "{command:?}");
    }
    assert!(!folder.path().join("data").exists(), "no command opens the data folder by itself");
}

#[test]
fn query_prints_the_body_that_its_flags_make() {
    let folder = folder();
    let (code, out, _) = run(folder.path(), &["query", "--login", "alice", "--failed", "--print"]);
    let body: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 0);
    assert_eq!(body["query"]["bool"]["filter"][0]["term"]["login"], "alice");
}

#[test]
fn completions_and_manual_pages_are_generated() {
    let folder = folder();
    for (shell, expected) in
        [("bash", "_trackalert()"), ("zsh", "#compdef trackalert"), ("fish", "complete -c trackalert")]
    {
        let (code, out, _) = run(folder.path(), &["completions", shell]);
        assert!(code == 0 && out.contains(expected) && out.contains("dead-letters"), "{shell}");
    }
    let (code, out, _) = run(folder.path(), &["man"]);
    assert!(code == 0 && out.contains(".TH trackalert 1"), "{out}");
    let (code, _, err) = run(folder.path(), &["man", "pages"]);
    assert_eq!(code, 0, "{err}");
    let pages = folder.path().join("pages");
    let read = |name: &str| std::fs::read_to_string(pages.join(format!("{name}.1"))).unwrap();
    for name in ["trackalert", "trackalert-run", "trackalert-dead-letters-resend", "trackalert-query"] {
        assert!(read(name).contains(&format!(".TH {name} 1")), "{name}");
    }
    for page in std::fs::read_dir(&pages).unwrap() {
        let text = std::fs::read_to_string(page.unwrap().path()).unwrap();
        for name in text.lines().filter_map(|line| line.trim().strip_suffix("(1)")) {
            let name = name.replace("\\-", "-");
            assert!(pages.join(format!("{name}.1")).exists(), "there is no page {name}");
        }
    }
    // Examples stay line by line.
    let query = read("trackalert-query");
    let (_, examples) = query.split_once(".SH EXAMPLES\n.nf\n").unwrap();
    assert!(examples.contains("\n  trackalert query \\-\\-file per_day.json\n"), "{examples}");
    assert!(examples.contains(".fi\n"), "{examples}");
}

#[test]
fn a_pipe_that_is_closed_ends_a_command_quietly() {
    let folder = folder();
    for args in [&["config"][..], &["completions", "bash"], &["man"], &[]] {
        let mut child =
            program(folder.path()).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let (code, _, err) = taken(child.wait_with_output().unwrap());
        assert_eq!((code, err.as_str()), (0, ""), "{args:?}");
    }
}
