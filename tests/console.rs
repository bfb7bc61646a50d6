//! The console: lines in every worker of the real program, for holders of the key alone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

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
        let mut command = Command::new(env!("CARGO_BIN_EXE_trackalert"));
        command.args(["console", "-C", "trackalert.conf"]).current_dir(self.site.folder.path());
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
