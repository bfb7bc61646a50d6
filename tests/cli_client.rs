//! What the operators' commands ask of a process, and what they make of its answers, against a stand-in that answers by a script.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use base64::Engine;
use serde_json::{Value, json};

/// One request as the stand-in saw it.
#[derive(Debug, Clone)]
struct Asked {
    /// `GET /path?query`
    line: String,
    password: Option<String>,
    body: String,
}

/// A status, further head lines, a body.
type Answer = (u16, &'static str, Value);

struct StandIn {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl StandIn {
    /// Answers the requests in turn; after the last answer it closes each connection without a word.
    fn with(answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, mut answers) = (Arc::clone(&asked), VecDeque::from(answers));
        // Ends with the test's process: nothing joins it.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream);
                let Some(request) = read(&mut reader) else { continue };
                seen.lock().unwrap().push(request);
                if let Some(answer) = answers.pop_front() {
                    write(reader.into_inner(), &answer);
                }
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Runs the program with a configuration that finds the stand-in.
    fn run(&self, folder: &Path, args: &[&str], stdin: &str) -> (i32, String, String) {
        let text = format!(
            "[http]\nlisten = [\"{}\"]\npassword = \"reporter\"\nadmin_password = \"operator\"\n",
            self.address
        );
        std::fs::write(folder.join("ta.toml"), text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_trackalert"))
            .current_dir(folder)
            .env_clear()
            .args(args)
            .args(["-C", "ta.toml"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let (mut length, mut password) = (0, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let (name, value) = match line.trim().split_once(": ") {
            Some(head) => head,
            None => break,
        };
        match name.to_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => {
                let basic =
                    base64::engine::general_purpose::STANDARD.decode(value.trim_start_matches("Basic ")).unwrap();
                password = String::from_utf8(basic).unwrap().split_once(':').map(|(_, password)| password.to_owned());
            }
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let line = first.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    Some(Asked { line, password, body: String::from_utf8(body).unwrap() })
}

fn write(mut stream: TcpStream, (status, head, body): &Answer) {
    let body = body.to_string();
    let text =
        format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n{head}\r\n{body}", body.len());
    // A client that has gone is the client's matter.
    let _ = stream.write_all(text.as_bytes());
}

fn letter(id: &str) -> Value {
    json!({
        "id": id, "queue": "reports", "key": "alice\u{1b}[2J", "body": "{\"login\":\"alice\"}", "headers": [],
        "published": "2026-03-01T12:00:00.000Z", "rejected": "2026-03-01T12:00:01.000Z", "coordinates": "reports/0/7",
        "reason": {"kind": "policy", "text": "policy.lua:3: no", "only": ["new_country"], "attempts": 3},
    })
}

#[test]
fn send_waits_for_a_full_queue_and_names_refused_lines_by_their_number_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let full = (503, "retry-after: 1\r\n", json!({"status": "failure", "reason": "queue full"}));
    let refused = json!({"accepted": 1, "refused": [{"line": 2, "reason": "remote: not an address"}]});
    let none = json!({"accepted": 0, "refused": [{"line": 1, "reason": "not JSON"}]});
    let server = StandIn::with(vec![full, (200, "", refused), (400, "", none)]);
    let (code, out, err) =
        server.run(folder.path(), &["send", "--batch", "2"], "{\"a\":1}\n\n  \n{\"b\":2}\r\nnonsense");
    assert_eq!(code, 1, "{err}");
    assert!(out.starts_with("accepted 1, refused 2, in "), "{out}");
    assert!(err.contains("the queue is full; waiting"), "{err}");
    assert!(
        err.contains("line 4: refused: remote: not an address\n") && err.contains("line 5: refused: not JSON\n"),
        "{err}"
    );
    let asked = server.asked();
    assert_eq!(asked.len(), 3);
    assert!(
        asked.iter().all(|one| one.line == "POST /v1/reports" && one.password.as_deref() == Some("reporter")),
        "{asked:?}"
    );
    assert_eq!((asked[1].body.as_str(), asked[2].body.as_str()), ("{\"a\":1}\n{\"b\":2}\n", "nonsense\n"));
}

#[test]
fn send_that_is_cut_off_says_where_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let well = || (200, "", json!({"accepted": 2, "refused": []}));
    let server = StandIn::with(vec![well(), well()]);
    std::fs::write(folder.path().join("reports"), "1\n2\n3\n4\n5\n6\n").unwrap();
    let (code, out, err) = server.run(folder.path(), &["send", "reports", "--batch", "2"], "");
    assert_eq!(code, 1);
    assert!(out.starts_with("accepted 4, refused 0"), "{out}");
    assert!(err.contains("sent 4 lines; stopped at line 5 (go on with --from 5): http://127.0.0.1:"), "{err}");

    let server = StandIn::with(vec![well()]);
    let (code, _, err) = server.run(folder.path(), &["send", "reports", "--from", "5"], "");
    assert_eq!((code, server.asked()[0].body.as_str()), (0, "5\n6\n"), "{err}");
}

#[test]
fn send_keeps_to_its_rate() {
    let folder = tempfile::tempdir().unwrap();
    let server = StandIn::with((0..4).map(|_| (200, "", json!({"accepted": 5, "refused": []}))).collect());
    let begun = std::time::Instant::now();
    let (code, _, err) = server.run(folder.path(), &["send", "--rate", "50"], &"{}\n".repeat(20));
    assert_eq!((code, server.asked().len()), (0, 4), "{err}");
    // Four requests of five lines: the last one is due after fifteen lines.
    assert!(begun.elapsed() >= std::time::Duration::from_millis(300), "{:?}", begun.elapsed());
}

#[test]
fn a_wrong_password_is_told_by_the_name_of_its_setting() {
    let folder = tempfile::tempdir().unwrap();
    let no = || (401, "", json!({"status": "failure", "reason": "Unauthorized"}));
    let server = StandIn::with(vec![no(), no()]);
    let (code, _, err) = server.run(folder.path(), &["query"], "");
    assert!(code == 1 && err.contains("does not take this http.admin_password"), "{err}");
    let (code, _, err) = server.run(folder.path(), &["send"], "{}\n");
    assert!(code == 1 && err.contains("http.password") && !err.contains("reporter"), "{err}");
}

#[test]
fn query_sends_the_body_and_shows_hits_and_buckets() {
    let folder = tempfile::tempdir().unwrap();
    let answer = json!({
        "took": 3, "timed_out": false,
        "hits": {"total": {"value": 7, "relation": "eq"}, "hits": [
            {"_id": "x", "_source": {"@timestamp": "2026-03-01T12:00:00.000Z", "login": "al\u{1b}ice", "geoip": {"country_code2": "NL"}}},
        ]},
        "aggregations": {"by": {"buckets": [{"key": "NL", "doc_count": 5, "logins": {"value": 2}}]}},
    });
    let wrong = json!({"status": "failure", "reason": "query.bol: unknown"});
    let server = StandIn::with(vec![(200, "", answer.clone()), (200, "", answer), (400, "", wrong)]);
    let (code, out, err) = server.run(folder.path(), &["query", "{\"size\": 1}", "--format", "table"], "");
    assert_eq!(code, 0, "{err}");
    for expected in ["al\u{fffd}ice", "NL", "logins = 2", "5"] {
        assert!(out.contains(expected), "{expected} is missing in\n{out}");
    }
    assert!(err.contains("7 found, 1 shown, 3 ms"), "{err}");
    let (_, out, _) = server.run(folder.path(), &["query", "-", "--format", "ndjson"], "{\"size\": 2}");
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[1]["key"]), (2, &json!("NL")));
    let (code, _, err) = server.run(folder.path(), &["query", "{\"query\": {\"bol\": {}}}"], "");
    assert!(code == 1 && err.contains("answers 400: query.bol: unknown"), "{err}");
    let asked = server.asked();
    assert_eq!((asked[0].line.as_str(), asked[0].password.as_deref()), ("POST /v1/admin/query", Some("operator")));
    assert_eq!((asked[0].body.as_str(), asked[1].body.as_str()), ("{\"size\":1}", "{\"size\":2}"));
}

#[test]
fn query_by_a_field_says_when_there_are_more_groups_than_shown() {
    let folder = tempfile::tempdir().unwrap();
    let answer = |others: u64| {
        let buckets = json!([{"key": "ann", "doc_count": 5}, {"key": "bob", "doc_count": 4}]);
        let hits = json!({"total": {"value": 9, "relation": "eq"}, "hits": []});
        let by = json!({"login": {"buckets": buckets, "sum_other_doc_count": others}});
        (200, "", json!({"took": 1, "hits": hits, "aggregations": by}))
    };
    let server = StandIn::with(vec![answer(7), answer(7), answer(0)]);
    let said = "only the 2 largest groups are shown; 7 more reports are in others (a larger --size shows them)";
    for format in ["table", "ndjson"] {
        let (code, _, err) = server.run(folder.path(), &["query", "--by", "login", "--format", format], "");
        assert!(code == 0 && err.contains(said), "{err}");
    }
    let (_, _, err) = server.run(folder.path(), &["query", "--by", "login", "--format", "table"], "");
    assert!(!err.contains("groups"), "{err}");
}

#[test]
fn dead_letters_are_listed_page_after_page() {
    let folder = tempfile::tempdir().unwrap();
    let first = json!({"letters": [letter("1"), letter("2")], "more": true});
    let last = json!({"letters": [letter("3")], "more": false});
    let server = StandIn::with(vec![(200, "", first), (200, "", last.clone()), (200, "", last)]);
    let args = ["dead-letters", "list", "--reason", "policy", "--policy", "new_country", "--since", "2026-03-01"];
    let (code, out, err) = server.run(folder.path(), &args, "");
    assert_eq!(code, 0, "{err}");
    assert!(
        !out.contains('\u{1b}') && out.lines().filter(|line| line.contains("policy.lua:3: no")).count() == 3,
        "{out}"
    );
    let asked = server.asked();
    let query = "kind=policy&only=new_country&since=2026-03-01T00%3A00%3A00.000Z&most=200";
    assert_eq!(asked[0].line, format!("GET /v1/admin/dead-letters/reports?{query}"));
    assert_eq!(asked[1].line, format!("GET /v1/admin/dead-letters/reports?{query}&after=2"));

    let (code, out, _) =
        server.run(folder.path(), &["dead-letters", "list", "--queue", "alerts", "--format", "json"], "");
    let letters: Vec<Value> = serde_json::from_str(&out).unwrap();
    assert_eq!((code, letters.len()), (0, 1));
    assert_eq!(server.asked()[2].line, "GET /v1/admin/dead-letters/alerts?most=200");
}

#[test]
fn letters_that_fit_a_filter_are_sent_again_up_to_now_so_that_one_that_fails_again_does_not_go_round_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let page = json!({"letters": [letter("1"), letter("2")], "more": false});
    let server = StandIn::with(vec![(200, "", page), (200, "", json!({ "found": ["1"] }))]);
    let (code, out, err) = server.run(folder.path(), &["dead-letters", "resend", "--policy", "new_country"], "");
    assert_eq!((code, out.as_str()), (1, "1 sent again\n"), "{err}");
    assert!(err.contains("there is no dead letter 2"), "{err}");
    let asked = server.asked();
    assert!(asked[0].line.contains("until=20"), "{}", asked[0].line);
    assert_eq!(asked[1].line, "POST /v1/admin/dead-letters/reports/resend");
    assert_eq!(asked[1].body, r#"{"ids":["1","2"]}"#);
}

#[test]
fn a_dry_run_changes_nothing_and_ids_are_dropped_as_they_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let page = json!({"letters": [letter("1")], "more": false});
    let server = StandIn::with(vec![(200, "", page.clone()), (200, "", json!({"found": ["1"]})), (200, "", page)]);
    let (code, out, _) = server.run(folder.path(), &["dead-letters", "drop", "--all", "--dry-run"], "");
    assert!(code == 0 && out.contains("new_country"), "{out}");
    let (code, out, _) = server.run(folder.path(), &["dead-letters", "drop", "1", "--queue", "alerts"], "");
    assert_eq!((code, out.as_str()), (0, "1 dropped\n"));
    let (code, out, _) = server.run(folder.path(), &["dead-letters", "show", "1"], "");
    assert!(code == 0 && out.contains("stood at   reports/0/7") && out.contains("\"login\": \"alice\""), "{out}");
    let lines: Vec<String> = server.asked().into_iter().map(|one| one.line).collect();
    assert_eq!(lines[0], "GET /v1/admin/dead-letters/reports?most=200");
    assert_eq!(lines[1], "POST /v1/admin/dead-letters/alerts/drop");
    assert_eq!(lines[2], "GET /v1/admin/dead-letters/reports?id=1&most=200");
}
