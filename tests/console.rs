//! The console: lines in every worker of the real program, for holders of the key alone.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use support::program::{PATIENCE, Program, Site, free_address};

const KEY: &str = "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI=";

/// A program with a configuration of the old program, its console, and how to speak to it.
struct Old {
    site: Site,
    program: Program,
    console: String,
}

impl Old {
    fn start(lua: &str) -> Self {
        let site = Site::new("");
        let console = free_address();
        let conf = format!(
            "webserver(\"{}\", \"\")\ncontrolSocket(\"{console}\")\nassert(setKey(\"{KEY}\"))\nsetNumLuaStates(3)\n{lua}",
            site.address
        );
        std::fs::write(site.folder.path().join("trackalert.conf"), conf).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_trackalert"));
        // As the old program was started.
        command.args(["-C", "trackalert.conf", "-s"]).current_dir(site.folder.path());
        let program = site.start_command(command);
        Self { site, program, console }
    }

    fn command(&self) -> Command {
        self.command_of("trackalert.conf")
    }

    /// A console that learns address and key from this file.
    fn command_of(&self, conf: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trackalert"));
        command.args(["console", "-C", conf]).current_dir(self.site.folder.path());
        command
    }

    /// One line's result; the exit code must be 0.
    fn line(&self, lua: &str) -> String {
        let output = self.command().args(["-e", lua]).output().unwrap();
        assert!(output.status.success(), "{lua}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn each_command_of_the_old_console_answers() {
    let mut old = Old::start(
        "addACL(\"192.0.2.0/24\")\naddCustomWebHook(\"tell\", { url = \"http://hook.example:81/T0K3N\" })\naddCustomStat(\"seen\")\n\
         setCustomEndpoint(\"echo\", function() return true end)\nx = 41",
    );
    assert_eq!(old.line("x + 1"), "42");
    assert_eq!(old.line("x, 'two', { a = 1 }"), "41\ttwo\t{\"a\":1}");
    assert_eq!(old.line("print('said') return 1"), "said\n1");
    assert!(old.line("stats()").contains("\"uptime\""));
    assert!(old.line("showACL()").ends_with("192.0.2.0/24"));
    assert_eq!(old.line("showCustomWebHooks()"), "tell hook.example:81");
    assert!(old.line("showPerfStats()").contains("WTW_0_1"));
    assert!(old.line("showCommandStats()").contains("report=0"));
    assert_eq!(old.line("showCustomStats()"), "seen=0");
    assert_eq!(old.line("showCustomEndpoints()"), "echo");
    assert_eq!(old.line("showVersion()"), format!("trackalert {}", env!("CARGO_PKG_VERSION")));
    assert_eq!(old.line("reloadGeoIPDBs()"), "there are no GeoIP files (geoip.files)");
    assert_eq!(old.line("#makeKey()"), "44");
    let late = old.command().args(["-e", "addCustomStat('late')"]).output().unwrap();
    assert!(said(&late).contains("addCustomStat: works only while the file is loaded"), "{}", said(&late));
    assert!(old.line("testCrypto('abc')").contains("as it went in"));
    // What a line sets is there in every worker; one that was set in one worker only is told.
    old.line("y = 1");
    assert_eq!(old.line("y"), "1");

    let failed = old.command().args(["-e", "error('so')"]).output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    assert!(said(&failed).contains("so"), "{}", said(&failed));
    assert!(said(&old.command().args(["-e", "while true do end"]).output().unwrap()).contains("policy.cpu_limit"));
    assert_eq!(old.line("x"), "41", "the machines are well after a runaway line");

    assert_eq!(old.line("shutdown()"), "draining");
    let asked = Instant::now();
    while old.program.ended().is_none() {
        assert!(asked.elapsed() < PATIENCE, "it does not end");
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let log = old.site.log_text();
    assert!(log.contains("a line of the console") && !log.contains(KEY), "{log}");
}

#[test]
fn lines_come_from_a_pipe_and_one_may_go_on() {
    let old = Old::start("");
    let mut child = old.command().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"z = 5\nfor i = 1, 2 do\nprint(z + i)\nend\nz\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let lines = String::from_utf8(output.stdout).unwrap();
    assert_eq!(lines.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>(), ["6", "7", "5"]);
}

#[test]
fn worker_that_says_something_else_is_marked() {
    let old = Old::start("");
    let said = old.line("tostring({}):gsub('^table', 'a')");
    assert!(said.contains("worker 2 differs") && said.contains("worker 3 differs"), "{said}");
}

#[test]
fn reading_geoip_files_holds_up_no_report() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("country.mmdb");
    let mut writer = mmdb_writer::Writer::new("GeoLite2-Country");
    let record = serde_json::json!({ "country": { "iso_code": "NL" } });
    writer.insert("192.0.2.0/24".parse::<ipnet::IpNet>().unwrap(), &record).unwrap();
    std::fs::write(&path, writer.to_bytes().unwrap()).unwrap();
    let old = Old::start(&format!(
        "setNumLuaStates(1)\nnewGeoIP2DB('Country', '{}')\ncountry = lookupCountry(newCA('192.0.2.7'))\nsetReport(function(lt) infoLog('it ran', {{}}) end)",
        path.display()
    ));
    // Asked at the top level.
    assert_eq!(old.line("country"), "NL");
    // Whoever reads a pipe that nobody writes into waits, as for a file of a hundred megabytes on a slow disk.
    std::fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let line = old.command().args(["-e", "reloadGeoIPDBs()"]).stdout(Stdio::piped()).spawn().unwrap();
    // Only with a reader does it open: the read has begun then.
    let mut written = None;
    old.program.wait_until("the read", PATIENCE, |_| {
        written = File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&path).ok();
        written.is_some()
    });
    let report = support::wire::request("POST", "/command/report", "", br#"{"login":"ann","remote":"192.0.2.7"}"#);
    assert_eq!(support::wire::exchange(&old.site.address, &report).unwrap().status, 200);
    old.program.wait_until("the report", Duration::from_secs(10), |_| old.site.log_text().contains("it ran"));
    written.unwrap().write_all(b"no database").unwrap();
    let answer = line.wait_with_output().unwrap();
    assert!(said(&answer).contains("not a MaxMind file"), "{}", said(&answer));
    assert_eq!(old.line("1"), "1");
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

fn reloads(program: &Program, outcome: &str) -> f64 {
    program.metric(&format!("trackalert_reloads_total{{outcome=\"{outcome}\"}}")).unwrap_or_default()
}

#[test]
fn reload_exchanges_the_file_once_though_each_worker_runs_the_line() {
    let old = Old::start("x = 1");
    let conf = old.site.folder.path().join("trackalert.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, text.replace("x = 1", "x = 2")).unwrap();
    // The workers that wait in the line are the ones that take the new file.
    assert!(old.line("reload()").starts_with("policies in use: "));
    assert_eq!(reloads(&old.program, "done"), 1.0);
    assert_eq!(old.line("x"), "2", "a worker that had the old file would be named");
    // Twice in a line is once, too.
    std::fs::write(&conf, text.replace("x = 1", "x = 3")).unwrap();
    assert!(old.line("reload() return reload()").starts_with("policies in use: "));
    assert_eq!(reloads(&old.program, "done"), 2.0);
    assert_eq!(old.line("x"), "3");
}

#[test]
fn reload_of_a_broken_file_says_so_and_leaves_what_runs() {
    let old = Old::start("x = 1");
    let conf = old.site.folder.path().join("trackalert.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    // A console of its own: one that is opened anew reads the broken file, and says so itself.
    std::fs::write(old.site.folder.path().join("console.conf"), &text).unwrap();
    let ask = |lua: &str| old.command_of("console.conf").args(["-e", lua]).output().unwrap();
    std::fs::write(&conf, format!("{}\nthis is no Lua", text.replace("x = 1", "x = 2"))).unwrap();
    let refused = ask("reload()");
    assert_eq!(refused.status.code(), Some(1));
    let said = said(&refused);
    assert!(said.contains("trackalert.conf:") && said.contains("the policies that run stay in use"), "{said}");
    assert!(!said.contains("differs"), "{said}");
    assert_eq!(reloads(&old.program, "refused"), 1.0);
    assert_eq!(printed(&ask("x")), "1");
    assert!(old.site.log_text().contains("not reloaded at the console"));
    // Whoever catches the error reads it.
    assert!(printed(&ask("return select(2, pcall(reload))")).contains("stay in use"));
    std::fs::write(&conf, text.replace("x = 1", "x = 2")).unwrap();
    old.line("reload()");
    assert_eq!(old.line("x"), "2");
}

#[test]
fn reload_without_an_old_file_takes_changed_policies_and_none_of_them_may_call_it() {
    let address = free_address();
    let site = Site::new(&format!("[console]\nlisten = \"{address}\"\nkey = \"{KEY}\"\n"));
    site.policy("first", "function report(lt) end");
    let program = site.start();
    let line = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trackalert"));
        command.args(["console", "-C"]).arg(site.config()).args(["-e", "reload()"]).output().unwrap()
    };
    site.policy("second", "function report(lt) assert(reload == nil) end");
    let taken = line();
    assert!(taken.status.success() && said(&taken).contains("policies in use: first, second"), "{}", said(&taken));
    site.policy("third", "function report(");
    let refused = line();
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("third") && said(&refused).contains("stay in use"), "{}", said(&refused));
    assert_eq!((reloads(&program, "done"), reloads(&program, "refused")), (1.0, 1.0));
}

#[test]
fn names_for_completion_are_those_of_the_running_program_and_of_its_file() {
    let old = Old::start("limits = { most = 5, ['no name'] = 1 }\nfunction mine() end\nunder_way = 1");
    let said = old.line(trackalert::console::NAMES);
    let names: Vec<&str> = said.lines().collect();
    for name in [
        "addACL(",
        "alert(",
        "getGeoIP2DB(",
        "history.search(",
        "infoLog(",
        "json.null",
        "limits",
        "limits.most",
        "makeKey(",
        "mine(",
        "net.set(",
        "newCA(",
        "reload(",
        "reloadGeoIPDBs(",
        "showACL(",
        "shutdown(",
        "stats(",
        "string.format(",
        "testCrypto(",
        "under_way",
        "wforce.allow(",
    ] {
        assert!(names.contains(&name), "{name} is not among\n{said}");
    }
    assert!(!said.contains("no name") && !said.contains("_G."), "{said}");
}

#[test]
fn tab_on_a_terminal_completes_a_name_of_the_file() {
    let old = Old::start("function greet() return 'hello there' end");
    // It gives the console a terminal; without it nobody presses a key.
    if Command::new("script").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "there is no program `script`");
        println!("skipped: there is no program `script`");
        return;
    }
    let line = format!("{} console -C trackalert.conf", env!("CARGO_BIN_EXE_trackalert"));
    let mut command = Command::new("timeout");
    command.args(["--foreground", "60", "script", "-qec", &line, "/dev/null"]);
    command.current_dir(old.site.folder.path()).env("HOME", old.site.folder.path()).env("TERM", "xterm");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut keys, mut terminal) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut said = String::new();
    let mut wait_for = |what: &str| {
        let mut part = [0; 4096];
        while !said.contains(what) {
            let count = terminal.read(&mut part).unwrap();
            assert!(count > 0, "it ended without {what}: {said}");
            said.push_str(&String::from_utf8_lossy(&part[..count]));
        }
        said.drain(..said.find(what).unwrap() + what.len());
    };
    wait_for("> ");
    keys.write_all(b"gre\t)\r").unwrap();
    wait_for("hello there");
    // Between two prompts the terminal itself would take the key, and nobody would hear of it.
    wait_for("> ");
    keys.write_all(b"\x04").unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn nobody_gets_in_without_the_key() {
    let old = Old::start("");
    let wrong = ["--set", "console.key=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="];
    let refused = old.command().args(wrong).args(["-e", "shutdown()"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("console.key differs"), "{}", said(&refused));
    // Whatever else knocks gets nothing, and costs nobody anything.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"stats()\n", &[0xff; 70_000]] {
        let mut stream = TcpStream::connect(&old.console).unwrap();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{answer:?}");
    }
    assert_eq!(old.line("1"), "1");
    assert!(old.site.log_text().contains("a console was refused"));
}

#[test]
fn console_without_an_old_file_makes_keys_too() {
    let address = free_address();
    let site = Site::new(&format!("[console]\nlisten = \"{address}\"\nkey = \"{KEY}\"\n"));
    let _program = site.start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_trackalert"));
    let output = command.args(["console", "-C"]).arg(site.config()).args(["-e", "#makeKey()"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "44", "{}", said(&output));
}

#[test]
fn console_without_a_key_is_refused_at_the_start() {
    let site = Site::new("[console]\nlisten = \"127.0.0.1:0\"\n");
    let ended = site.command().output().unwrap();
    assert!(!ended.status.success() && said(&ended).contains("console.key"), "{}", said(&ended));
}
