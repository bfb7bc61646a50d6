//! Every form in which a report arrives, against the real binary: what is answered, what is handled and stored once, what is refused
//! and disturbs nothing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

mod support;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use support::program::{PATIENCE, Program, Site};
use support::wire::{self, Answer, basic, post};
use support::{sender, trial};

/// `receive.max_*` small enough to be passed, large enough for what is nested deeply to reach the decoder.
const SMALL: &str = "receive.max_report = \"1 MiB\"\nreceive.max_field = \"64 B\"\nreceive.max_attrs = 4\n\
                     http.max_body = \"2 MiB\"\n";
const KAFKA: &str = "Content-Type: application/vnd.kafka.json.v2+json\r\n";

fn site(config: &str) -> Site {
    let site = Site::new(&format!("{config}http.metrics_password = false\nhistory.commit_every = \"100ms\"\n"));
    site.policy("none", "function report(lt) end");
    site
}

/// The lines of `Authorization` and of a webhook that these secrets sign.
fn signed(secret: &str, event: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body);
    let signature = BASE64.encode(mac.finalize().into_bytes());
    format!("X-Wforce-Event: {event}\r\nX-Wforce-HookID: 1\r\nX-Wforce-Signature: {signature}\r\n")
}

/// A form: its name in the metrics, the path, and what goes around a report.
struct Form {
    name: &'static str,
    path: &'static str,
    event: Option<&'static str>,
}

const FORMS: [Form; 6] = [
    Form { name: "report", path: "/command/report", event: None },
    Form { name: "report", path: "/?command=report", event: None },
    Form { name: "webhook", path: "/command/report", event: Some("report") },
    Form { name: "webhook", path: "/?command=report", event: Some("report") },
    Form { name: "kafka_rest", path: "/topics/logins", event: None },
    Form { name: "batch", path: "/v1/reports", event: None },
];

impl Form {
    fn send(&self, address: &str, report: &[u8]) -> Answer {
        match (self.name, self.event) {
            ("kafka_rest", _) => {
                let body = [br#"{"records":[{"value":"#, report, b"}]}"].concat();
                post(address, self.path, KAFKA, body)
            }
            (_, Some(event)) => post(address, self.path, &signed("second", event, report), report),
            _ => post(address, self.path, "", report),
        }
    }

    fn accepted(&self) -> Value {
        match self.name {
            "kafka_rest" => json!({
                "offsets": [{ "partition": 0, "offset": 0, "error_code": null, "error": null }],
                "key_schema_id": null, "value_schema_id": null,
            }),
            "batch" => json!({ "accepted": 1, "refused": [] }),
            _ => json!({ "status": "ok" }),
        }
    }

    /// The status and the reason of a refusal; that its body is well formed is asserted.
    fn refusal(&self, answer: &Answer) -> (u16, String) {
        let body = answer.json();
        let reason = match self.name {
            "kafka_rest" => {
                assert_eq!(body["error_code"], json!(answer.status));
                &body["message"]
            }
            _ => {
                assert_eq!(body["status"], "failure");
                &body["reason"]
            }
        };
        (answer.status, reason.as_str().unwrap().to_owned())
    }
}

/// A report with every field that wforce writes.
fn full(login: &str, t: Option<f64>) -> Value {
    let mut report = json!({
        "attrs": { "cos": "gold", "hosts": ["a", "b"] }, "device_attrs": { "os.family": "iOS" },
        "device_id": "\"name\" \"Mail\"", "fail_type": "credentials", "login": login, "policy_reject": true,
        "protocol": "imap", "pwhash": "a1b2", "remote": "::ffff:192.0.2.9", "session_id": "s1", "success": true,
        "tls": true, "type": "wforce_report",
    });
    if let Some(t) = t {
        report["t"] = json!(t);
    }
    report
}

fn good(login: &str) -> Vec<u8> {
    json!({ "login": login, "remote": "192.0.2.1" }).to_string().into_bytes()
}

/// The documents of one login, or all of them.
fn stored(address: &str, login: Option<&str>) -> Vec<Value> {
    let query = login.map_or(json!({ "match_all": {} }), |login| json!({ "term": { "login": login } }));
    let search = json!({ "query": query, "size": 5000 });
    let found = tokio::runtime::Runtime::new().unwrap().block_on(sender::query(address, search));
    found["hits"]["hits"].as_array().unwrap().iter().map(|hit| hit["_source"].clone()).collect()
}

fn dead_letters(address: &str) -> Vec<Value> {
    tokio::runtime::Runtime::new().unwrap().block_on(sender::dead_letters(address, "reports"))
}

/// Waits until this many reports were handled and stored.
fn wait_handled(program: &Program, reports: usize) {
    let metric = |name| program.metric(name) == Some(reports as f64);
    program.wait_until("the reports to be handled", PATIENCE, |program| {
        metric("trackalert_handled_reports_total") && program.idle()
    });
    let reasons: Vec<Value> = dead_letters(&program.address).iter().map(|letter| letter["reason"].clone()).collect();
    assert_eq!(reasons, Vec::<Value>::new(), "dead letters");
}

fn refused(program: &Program, reason: &str) -> f64 {
    program.metric(&format!("trackalert_refused_total{{reason=\"{reason}\"}}")).unwrap()
}

#[test]
fn report_of_every_form_is_answered_as_documented_and_stored_once_with_its_fields() {
    let site = site("receive.webhook_secrets = [\"first\", \"second\"]\n");
    let program = site.start();
    let mut expected = Vec::new();
    for (n, form) in FORMS.iter().enumerate() {
        for t in [Some(trial::now() - 60.25), None] {
            let login = format!("login{n}{}", if t.is_some() { "timed" } else { "" });
            let report = full(&login, t);
            let (began, before) =
                (trial::now(), program.metric(&format!("trackalert_received_reports_total{{form=\"{}\"}}", form.name)));
            let answer = form.send(&site.address, report.to_string().as_bytes());
            assert_eq!((answer.status, answer.json()), (200, form.accepted()), "{} {}", form.name, form.path);
            assert_eq!(answer.header("content-type"), Some("application/json"));
            let after = program.metric(&format!("trackalert_received_reports_total{{form=\"{}\"}}", form.name));
            assert_eq!(after.unwrap(), before.unwrap() + 1.0, "{}", form.name);
            expected.push((login, report, t.map_or((began, trial::now()), |t| (t, t))));
        }
    }
    wait_handled(&program, expected.len());
    for (login, report, (earliest, latest)) in expected {
        let documents = stored(&site.address, Some(&login));
        assert_eq!(documents.len(), 1, "{login}: {documents:?}");
        let t = documents[0]["t"].as_f64().unwrap();
        assert!((earliest - 1e-5..=latest + 1e-5).contains(&t), "{login}: {t} is not from {earliest} to {latest}");
        for (key, value) in report.as_object().unwrap().iter().filter(|(key, _)| *key != "t") {
            let value = match key.as_str() {
                "remote" => json!("192.0.2.9"),
                "device_attrs" => json!({ "os": { "family": "iOS" } }),
                _ => value.clone(),
            };
            assert_eq!(documents[0][key], value, "{login}: {key}");
        }
    }
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn webhook_is_taken_by_its_signature_and_everything_else_by_the_password() {
    let site = site("http.password = \"pass\"\nreceive.webhook_secrets = [\"first\", \"second\"]\n");
    let program = site.start();
    let body = good("ann");
    let right = signed("first", "report", &body);
    let url_safe = right.replace(['+', '/'], "_").replace('=', "");
    let ping = signed("second", "ping", b"");
    let unsigned = "X-Wforce-Event: report\r\n".to_owned();
    let password = basic("any:pass");
    // What it is, the body, the headers, the status, and as what a refusal is counted.
    type Case<'a> = (&'a str, &'a [u8], String, u16, Option<&'a str>);
    let cases: [Case<'_>; 15] = [
        ("the first secret", &body, right.clone(), 200, None),
        ("the second of two secrets", &body, signed("second", "report", &body), 200, None),
        ("a wrong password beside it", &body, right.clone() + &basic("any:wrong"), 200, None),
        ("ping", b"", ping.clone(), 200, None),
        ("a password and no event", &body, password.clone(), 200, None),
        ("the signature of another body", &body, signed("first", "report", b"{}"), 401, Some("signature")),
        ("another secret", &body, signed("third", "report", &body), 401, Some("signature")),
        ("no signature", &body, unsigned.clone(), 401, Some("signature")),
        ("the password in its place", &body, unsigned.clone() + &password, 401, Some("signature")),
        ("not base64", &body, unsigned.clone() + "X-Wforce-Signature: !!\r\n", 401, Some("signature")),
        ("base64 of another alphabet", &body, url_safe, 401, Some("signature")),
        ("bytes that are no text", &body, unsigned + "X-Wforce-Signature: \u{fc}\r\n", 401, Some("signature")),
        ("ping without signature", b"", "X-Wforce-Event: ping\r\n".into(), 401, Some("signature")),
        ("no event and no password", &body, String::new(), 401, Some("unauthorized")),
        ("an event of another kind", &body, signed("first", "allow", &body), 400, Some("header")),
    ];
    for (what, body, headers, status, counted) in cases {
        for path in ["/command/report", "/?command=report"] {
            let before = counted.map(|reason| refused(&program, reason));
            let answer = post(&site.address, path, &headers, body);
            assert_eq!(answer.status, status, "{what}: {answer:?}");
            match status {
                200 => assert_eq!(answer.json(), json!({ "status": "ok" })),
                _ => assert_eq!(answer.json()["status"], "failure"),
            }
            let challenge = (status == 401).then_some("basic realm=\"wforce\"");
            assert_eq!(answer.header("www-authenticate"), challenge, "{what}");
            let after = counted.map(|reason| refused(&program, reason));
            assert_eq!(after, before.map(|count| count + 1.0), "{what}");
        }
    }
    // Four cases with a report, each in both spellings; `ping` brings none.
    wait_handled(&program, 8);
    assert_eq!(stored(&site.address, None).len(), 8);
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn webhook_that_is_replayed_is_stored_once() {
    let site = site("receive.webhook_secrets = [\"first\"]\n");
    let program = site.start();
    let body = full("ann", Some(trial::now() - 5.0)).to_string();
    for _ in 0..3 {
        let answer = post(&site.address, "/command/report", &signed("first", "report", body.as_bytes()), &body);
        assert_eq!(answer.status, 200);
    }
    program.wait_until("three deliveries", PATIENCE, |program| {
        program.metric("trackalert_handled_reports_total") == Some(3.0) && program.idle()
    });
    assert_eq!(program.metric("trackalert_repeated_reports_total"), Some(2.0));
    assert_eq!(stored(&site.address, None).len(), 1);
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn allow_of_dovecot_is_answered_and_counted_and_never_queued() {
    let site = site("");
    let program = site.start();
    for (n, path) in ["/?command=allow", "/command/allow"].into_iter().enumerate() {
        let answer = post(&site.address, path, "", good("ann"));
        assert_eq!((answer.status, answer.json()), (200, json!({ "status": 0, "msg": "" })));
        assert_eq!(program.metric("trackalert_allow_ignored_total"), Some(n as f64 + 1.0));
    }
    // What had been queued before this one would be handled before it.
    assert_eq!(post(&site.address, "/command/report", "", good("ben")).status, 200);
    wait_handled(&program, 1);
    assert_eq!(stored(&site.address, None).len(), 1);
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn batch_names_each_refused_line_and_takes_the_lines_around_it() {
    let site = site("");
    let program = site.start();
    let line = |login: &str| String::from_utf8(good(login)).unwrap();
    let text = format!("{}\n\n{}\r\n  \n{{\"login\":\"a\"}}\n", line("ann"), line("ben"));
    let body = [text.as_bytes(), b"{\"login\":\"\xff\",\"remote\":\"192.0.2.1\"}\n", &good("cat")].concat();
    let answer = post(&site.address, "/v1/reports", "", body);
    let json = answer.json();
    assert_eq!((answer.status, &json["accepted"]), (200, &json!(3)), "{json}");
    let lines: Vec<&Value> = json["refused"].as_array().unwrap().iter().map(|line| &line["line"]).collect();
    assert_eq!(lines, [5, 6]);
    assert_eq!(json["refused"][0]["reason"], "`remote`: missing");
    assert!(json["refused"][1]["reason"].as_str().unwrap().starts_with("`login`: not JSON"), "{json}");
    for nothing in ["{}\n{}", "\r\n\n", ""] {
        let answer = post(&site.address, "/v1/reports", "", nothing);
        assert_eq!((answer.status, &answer.json()["accepted"]), (400, &json!(0)), "{nothing:?}");
    }
    assert_eq!(refused(&program, "malformed"), 6.0, "two lines, two lines, and two bodies without one");
    wait_handled(&program, 3);
    let mut logins: Vec<Value> = stored(&site.address, None).iter().map(|found| found["login"].clone()).collect();
    logins.sort_by_key(ToString::to_string);
    assert_eq!(logins, ["ann", "ben", "cat"]);
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn kafka_form_answers_each_record_for_itself() {
    let site = site("");
    let program = site.start();
    let body = json!({ "records": [
        { "key": null, "value": { "login": "ann", "remote": "192.0.2.1" } },
        { "value": { "login": "ann" } },
        { "value": { "login": "ben", "remote": "192.0.2.1" } },
    ] });
    let answer = post(&site.address, "/topics/any", KAFKA, body.to_string());
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.json(),
        json!({ "key_schema_id": null, "value_schema_id": null, "offsets": [
            { "partition": 0, "offset": 0, "error_code": null, "error": null },
            { "partition": null, "offset": null, "error_code": 1, "error": "`remote`: missing" },
            { "partition": 0, "offset": 1, "error_code": null, "error": null },
        ] })
    );
    let cases = [
        (KAFKA, r#"{"records":[]}"#, 422, "`records`", "malformed"),
        (KAFKA, r#"{"records":"hunter2"}"#, 422, "records", "malformed"),
        (KAFKA, r#"[[[{"login":"ann","remote":"192.0.2.1"}]]]"#, 422, "records", "malformed"),
        (KAFKA, r#"{"records":[{"key":"ann"}]}"#, 422, "value", "malformed"),
        (KAFKA, r#"{"records":[[{"login":"ann","remote":"192.0.2.1"}]]}"#, 422, "not a JSON object", "malformed"),
        ("", r#"{"records":[]}"#, 415, "Content-Type", "header"),
        ("Content-Type: application/json\r\n", r#"{"records":[]}"#, 415, "Content-Type", "header"),
    ];
    for (headers, body, status, names, counted) in cases {
        let before = refused(&program, counted);
        let answer = post(&site.address, "/topics/any", headers, body);
        assert_eq!((answer.status, &answer.json()["error_code"]), (status, &json!(status)), "{body}: {answer:?}");
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(message.contains(names) && !message.contains("hunter2"), "{body}: {message}");
        assert_eq!(refused(&program, counted), before + 1.0, "{body}");
    }
    wait_handled(&program, 2);
    assert_eq!(program.terminate(), Some(0));
}

/// A report with one more or another field, as JSON text.
fn with(field: &str, value: &str) -> Vec<u8> {
    match field {
        "login" => format!(r#"{{"login":{value},"remote":"192.0.2.1"}}"#),
        "remote" => format!(r#"{{"login":"a","remote":{value}}}"#),
        _ => format!(r#"{{"login":"a","remote":"192.0.2.1","{field}":{value}}}"#),
    }
    .into_bytes()
}

/// What is no report, with the field that the refusal must name.
fn bad_reports() -> Vec<(String, &'static str, Vec<u8>)> {
    let mut cases: Vec<(String, &'static str, Vec<u8>)> = Vec::new();
    let whole: [(&str, &[u8]); 14] = [
        ("empty body", b""),
        ("not JSON", b"login=ann&remote=192.0.2.1"),
        ("truncated JSON", br#"{"login":"ann","remote":"192.0.2"#),
        ("two values", br#"{"login":"a","remote":"192.0.2.1"} {}"#),
        ("array", b"[]"),
        ("array in the order of the fields", br#"[null,1,"ann","192.0.2.1"]"#),
        ("string", b"\"ann\""),
        ("number", b"1e3"),
        ("null", b"null"),
        ("boolean", b"true"),
        ("byte order mark", b"\xef\xbb\xbf{\"login\":\"a\",\"remote\":\"192.0.2.1\"}"),
        ("a NUL byte before it", b"\0{\"login\":\"a\",\"remote\":\"192.0.2.1\"}"),
        ("key that is no UTF-8", b"{\"\xff\":1,\"login\":\"a\"}"),
        ("key that is no string", br#"{"login":"a","remote":"192.0.2.1",7:1}"#),
    ];
    cases.extend(whole.map(|(what, body)| (what.to_owned(), "", body.to_vec())));
    cases.push(("deep nesting".into(), "", "[".repeat(100_000).into_bytes()));
    cases.push(("over receive.max_report".into(), "receive.max_report", vec![b'x'; (1 << 20) + 1]));
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let five = r#"{"a":"1","b":"2","c":"3","d":"4","e":"5"}"#;
    let (long, many) = (format!("\"{}\"", "x".repeat(65)), r#"{"a":"1","b":["2","3"],"c":"4","d":"5"}"#);
    let fields: [(&'static str, &[&str]); 14] = [
        ("login", &["\"\"", "null", "7", "true", "[]", "{}", "\"\u{0}\"", r#""\ud800""#, &long]),
        ("remote", &["\"\"", "null", "7", "{}", "\"host.example\"", "\"192.0.2.1:25\"", "\"[2001:db8::1]:25\"", &long]),
        ("remote", &["\"192.0.2.1/24\"", "\"192.0.2.256\"", "\" 192.0.2.1\"", "\"fe80::1%eth0\"", "\"1\\u0000\""]),
        ("t", &["\"1700000000\"", "\"2026-01-01T00:00:00Z\"", "-1", "-1e-9", "1e400", "1e300", "1700000000000"]),
        ("t", &["true", "[]", "{}", "\"NaN\""]),
        ("success", &["\"true\"", "\"\"", "1", "null", "[]", "{}"]),
        ("policy_reject", &["\"false\"", "0", "null"]),
        ("tls", &["\"true\"", "1", "null", "[true]"]),
        ("pwhash", &["4242", "null", "[]", "{}", "true", &long]),
        ("fail_type", &["1", "null", "[\"policy\"]", &long]),
        ("session_id", &["1", "null", "{}", &long]),
        ("protocol", &["1", "null", "[]", &long]),
        ("device_id", &["1", "null", "[]", &long]),
        ("device_attrs", &["[]", "\"x\"", "1", "null", five, r#"{"a":"1","a":"2"}"#]),
    ];
    for (field, values) in fields {
        let shown = |value: &str| value.chars().take(30).collect::<String>();
        cases.extend(values.iter().map(|value| (format!("{field}: {}", shown(value)), field, with(field, value))));
    }
    let attrs = ["[]", "\"x\"", "1", "null", many, r#"{"k":"1","k":"2"}"#, r#"{"k":"1","k":["2"]}"#, &deep];
    cases.extend(attrs.map(|value| (format!("attrs: {value:.30}"), "attrs", with("attrs", value))));
    let inside = [format!("{{\"k\":{long}}}"), format!("{{{long}:1}}"), format!("{{\"k\":[{long}]}}")];
    cases.extend(inside.map(|value| (format!("attrs: {value:.30}"), "attrs", with("attrs", &value))));
    cases.push(("attrs nested deeply".into(), "attrs", with("attrs", &format!("{{\"k\":{deep}}}"))));
    cases.push(("no UTF-8".into(), "login", b"{\"login\":\"\xff\",\"remote\":\"192.0.2.1\"}".to_vec()));
    cases.push(("no login".into(), "login", br#"{"remote":"192.0.2.1"}"#.to_vec()));
    cases.push(("no remote".into(), "remote", br#"{"login":"a"}"#.to_vec()));
    for field in ["login", "remote", "success", "t", "attrs"] {
        let doubled =
            format!(r#"{{"t":1,"login":"a","remote":"192.0.2.1","success":true,"attrs":{{}},"{field}":null}}"#);
        cases.push((format!("{field} twice"), field, doubled.into_bytes()));
    }
    cases
}

#[test]
fn more_reports_than_a_request_may_have_are_refused_before_they_take_memory() {
    let site = site("");
    let program = site.start();
    let as_many = |one: &str| one.repeat((15 << 20) / one.len());
    let requests = [
        ("/topics/logins", KAFKA, format!("{{\"records\":[{}0]}}", as_many("0,"))),
        ("/topics/logins", KAFKA, format!("{{\"records\":[{}0]}}", as_many("{\"value\":{}},"))),
        ("/v1/reports", "", as_many("{\"login\":\"a\",\"remote\":\"::\"}\n")),
        ("/v1/reports", "", as_many("0\n")),
    ];
    let (_, before) = program.memory_mib();
    for (path, headers, body) in requests {
        let answer = post(&site.address, path, headers, body);
        assert!(answer.status == 413 && answer.body.contains("receive.max_reports"), "{path}: {answer:?}");
    }
    let (_, after) = program.memory_mib();
    assert!(after < before + 100.0, "{before:.0} MiB became {after:.0}");
    assert_eq!(refused(&program, "too_large"), 4.0);
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn each_malformed_report_is_refused_in_every_form_by_its_field_and_disturbs_nothing() {
    let site = site(&format!("{SMALL}receive.webhook_secrets = [\"second\"]\n"));
    let program = site.start();
    let (mut accepted, mut wrong) = (0, Vec::new());
    for (what, field, body) in bad_reports() {
        for form in &FORMS {
            let before = refused(&program, "malformed");
            let answer = form.send(&site.address, &body);
            if answer.status == 200 {
                wrong.push(format!("{what} as {}: taken", form.name));
                continue;
            }
            let (status, reason) = form.refusal(&answer);
            let documented = if form.name == "kafka_rest" { 422 } else { 400 };
            // What breaks the envelope is told of the envelope.
            let names = reason.contains(field) || form.name == "kafka_rest" && reason.contains("\"records\"");
            let counted = refused(&program, "malformed") - before;
            if status != documented || !names || counted != 1.0 || reason.len() > 300 {
                wrong.push(format!("{what} as {}: {status} {reason:.300}, counted {counted}", form.name));
            }
            let next = form.send(&site.address, &good(&format!("good{accepted}")));
            assert_eq!((next.status, next.json()), (200, form.accepted()), "after {what}");
            accepted += 1;
        }
    }
    assert!(wrong.is_empty(), "{} of {accepted}:\n{}", wrong.len(), wrong.join("\n"));
    wait_handled(&program, accepted);
    assert_eq!(stored(&site.address, None).len(), accepted, "only the good ones");
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn strange_report_that_is_answered_2xx_is_handled_and_stored() {
    let site = site("receive.max_report = \"64 KiB\"\n");
    let program = site.start();
    let deep = "[".repeat(30_000) + &"]".repeat(30_000);
    let numbers = (0..200).map(|n| format!("\"k{n}\":1e308")).collect::<Vec<_>>().join(",");
    let values = (0..15).map(|n| format!("\"k{n}\":\"{}\"", "v".repeat(4096))).collect::<Vec<_>>().join(",");
    let brim = |room: usize| with("attrs", &format!("{{{values},\"brim\":\"{}\"}}", "b".repeat(room)));
    let room = 65_536 - brim(0).len();
    let cases = [
        ("a NUL in the login", with("login", r#""a\u0000b""#)),
        ("control characters", with("login", r#""a\n\r\t\u001b[2J""#)),
        ("the longest login", with("login", &format!("\"{}\"", "é".repeat(2048)))),
        (
            "keys that look like paths",
            with("attrs", r#"{"":"1",".":"2","a":"3","a.b":"4","a..b":["5"],"a\u0000b":"6"}"#),
        ),
        (
            "device keys that clash",
            with("device_attrs", r#"{"":"0","os":"1","os.":"2","os.family":"3","os.family.x":"4"}"#),
        ),
        ("values of dropped types", with("attrs", r#"{"o":{"x":[1]},"n":null,"m":[1,{},null,"x"],"none":[]}"#)),
        ("unknown fields, nested deeply", with("unknown", &deep)),
        ("an id of the sender's", with("id", "\"000102030405060708090a0b0c0d0e0f\"")),
        ("t far ahead", with("t", "4102444800")),
        ("t = 0, as the old program writes it", with("t", "0")),
        ("t of less than a microsecond", with("t", "1e-9")),
        ("numbers that grow when they are written out", with("attrs", &format!("{{{numbers}}}"))),
        ("as large as receive.max_report", brim(room)),
        ("a little smaller", brim(room - 200)),
        ("smaller again", brim(room - 600)),
    ];
    let mut accepted = 0;
    for (what, body) in &cases {
        let answer = post(&site.address, "/command/report", "", body);
        // Either is right, but only one of them: refused, or handled.
        match answer.status {
            200 => accepted += 1,
            _ => assert!(answer.status == 400 && answer.body.contains("receive.max_report"), "{what}: {answer:?}"),
        }
    }
    assert!(accepted >= 12, "{accepted} of {} were taken", cases.len());
    wait_handled(&program, accepted);
    assert_eq!(stored(&site.address, None).len(), accepted);
    assert_eq!(program.metric("trackalert_skewed_reports_total"), Some(1.0));
    assert_eq!(program.metric("trackalert_dropped_values_total"), Some(4.0));
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn full_queue_is_told_and_ends_when_it_is_drained_though_nobody_sends() {
    let site = site("queue.embedded.max_bytes = \"1 MiB\"\nqueue.embedded.retry_after = \"2s\"\n");
    site.policy("slow", "function report(lt) time.sleep(3) end");
    let program = site.start();
    let attrs: serde_json::Map<String, Value> = (0..15).map(|n| (format!("k{n}"), "v".repeat(4000).into())).collect();
    let send = |n: usize| {
        let report = json!({ "login": format!("user{n}"), "remote": "192.0.2.1", "attrs": attrs }).to_string();
        post(&site.address, "/command/report", "", report)
    };
    let mut accepted = 0;
    let full = loop {
        let answer = send(accepted);
        if answer.status != 200 {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 1000, "60 KB each, and the queue is never full");
    };
    assert_eq!((full.status, full.header("retry-after")), (503, Some("2")), "{full:?}");
    assert!(full.json()["reason"].as_str().unwrap().contains("queue.embedded.max_bytes"), "{full:?}");
    assert_eq!(refused(&program, "queue_full"), 1.0);
    let ready = wire::get(&site.address, "/readyz", "");
    assert_eq!((ready.status, &ready.json()["status"]), (503, &json!("failure")));
    for (form, status) in [(&FORMS[4], 503), (&FORMS[5], 503)] {
        let body = json!({ "login": "x", "remote": "192.0.2.1", "attrs": attrs }).to_string();
        let answer = form.send(&site.address, body.as_bytes());
        assert_eq!((answer.status, answer.header("retry-after")), (status, Some("2")), "{}", form.name);
    }
    wait_handled(&program, accepted);
    program.wait_until("readyz", PATIENCE, |program| program.get("/readyz").is_some());
    assert_eq!(send(accepted).status, 200);
    wait_handled(&program, accepted + 1);
    assert_eq!(stored(&site.address, None).len(), accepted + 1);
    assert_eq!(program.terminate(), Some(0));
}
