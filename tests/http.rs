//! The HTTP server against the real binary: who may ask, what a request may be, what operators and monitoring read.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test states what it expects")]

mod support;

use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use support::program::{PATIENCE, Program, Site};
use support::sender;
use support::wire::{basic, exchange, get, listen, post, request, talk};

const REPORT: &str = r#"{"login":"ann","remote":"192.0.2.1"}"#;

fn site(config: &str) -> Site {
    let site = Site::new(&format!("{config}\nhistory.commit_every = \"100ms\"\n"));
    site.policy("none", "function report(lt) end");
    site
}

fn refused(program: &Program, reason: &str) -> f64 {
    program.metric(&format!("trackalert_refused_total{{reason=\"{reason}\"}}")).unwrap()
}

/// Nothing was queued but what these many good reports brought.
fn only_good(program: &Program, reports: usize) {
    program.wait_until("the good reports to be handled", PATIENCE, |program| {
        program.metric("trackalert_handled_reports_total") == Some(reports as f64) && program.idle()
    });
    let found = tokio::runtime::Runtime::new().unwrap().block_on(sender::query(&program.address, json!({ "size": 0 })));
    assert_eq!(found["hits"]["total"]["value"], json!(reports));
}

#[test]
fn wrong_password_is_refused_on_every_guarded_route_and_probes_ask_for_none() {
    let site = site("http.password = \"pa:ss:word\"\nhttp.metrics_password = false");
    let program = site.start();
    let guarded = [
        ("POST", "/command/report"),
        ("POST", "/?command=report"),
        ("POST", "/command/allow"),
        ("POST", "/?command=allow"),
        ("POST", "/topics/any"),
        ("POST", "/v1/reports"),
        ("GET", "/command/stats"),
        ("GET", "/?command=stats"),
    ];
    let wrong = ["", &basic("any:wrong"), &basic("any:pa:ss"), &basic("pa:ss:word"), "Authorization: Bearer cGE=\r\n"];
    for (method, path) in guarded {
        for headers in wrong {
            let before = refused(&program, "unauthorized");
            let answer = exchange(&site.address, &request(method, path, headers, REPORT.as_bytes())).unwrap();
            assert_eq!(answer.status, 401, "{path} {headers}");
            assert_eq!(answer.json(), json!({ "status": "failure", "reason": "Unauthorized" }), "{path}");
            assert_eq!(answer.header("www-authenticate"), Some("basic realm=\"wforce\""), "{path}");
            assert_eq!(refused(&program, "unauthorized"), before + 1.0, "{path}");
        }
    }
    for user in ["", "wforce", "no one in particular", "ü"] {
        let right = basic(&format!("{user}:pa:ss:word"));
        assert_eq!(post(&site.address, "/command/report", &right, REPORT).status, 200, "user `{user}`");
        assert_eq!(get(&site.address, "/command/stats", &right).status, 200, "user `{user}`");
    }
    for path in ["/readyz", "/livez", "/command/readyz", "/command/livez", "/?command=readyz", "/?command=livez"] {
        let answer = get(&site.address, path, "");
        assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("ok")), "{path}");
    }
    only_good(&program, 4);
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn metrics_ask_for_the_password_unless_they_are_set_not_to() {
    for (setting, without) in [("", 401), ("http.metrics_password = false", 200)] {
        let site = site(&format!("http.password = \"pass\"\n{setting}"));
        let program = site.start();
        assert_eq!(get(&site.address, "/metrics", "").status, without, "{setting}");
        assert_eq!(get(&site.address, "/metrics", &basic("any:pass")).status, 200, "{setting}");
        assert_eq!(program.terminate(), Some(0));
    }
}

#[test]
fn address_outside_the_acl_is_told_so_and_cut() {
    let site = site("http.acl = [\"127.0.0.1/32\"]");
    let program = site.start();
    // A client of another address of this machine; the request is not even read.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let connecting = async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        socket.connect(site.address.parse().unwrap()).await.unwrap().into_std().unwrap()
    };
    let stream = runtime.block_on(connecting);
    stream.set_nonblocking(false).unwrap();
    let keeping_open = format!("POST /command/report HTTP/1.1\r\nHost: t\r\nContent-Length: 36\r\n\r\n{REPORT}");
    let answer = talk(stream, keeping_open.as_bytes()).unwrap();
    assert_eq!(answer.status, 401);
    let reason = "Source IP Address not in ACL";
    assert_eq!(answer.json(), json!({ "status": "failure", "reason": reason, "ip": "127.0.0.2" }));
    assert_eq!(refused(&program, "acl"), 1.0);
    assert_eq!(post(&site.address, "/command/report", "", REPORT).status, 200);
    only_good(&program, 1);
    assert_eq!(program.terminate(), Some(0));
}

const OPERATORS: [(&str, &str, u16); 8] = [
    ("GET", "/v1/admin/status", 200),
    ("POST", "/v1/admin/query", 200),
    ("POST", "/v1/admin/reload", 200),
    ("GET", "/v1/admin/dead-letters/reports", 200),
    ("POST", "/v1/admin/dead-letters/reports/none/resend", 200),
    ("DELETE", "/v1/admin/dead-letters/alerts/none", 200),
    ("POST", "/v1/admin/dead-letters/reports/resend", 400),
    ("POST", "/v1/admin/dead-letters/alerts/drop", 400),
];

#[test]
fn operators_routes_ask_for_their_own_password_once_it_is_set() {
    let site = site("http.password = \"pass\"\nhttp.admin_password = \"operator\"\nhttp.metrics_password = false");
    let program = site.start();
    for (method, path, status) in OPERATORS {
        for headers in ["", &basic("any:pass"), &basic("any:wrong")] {
            let before = refused(&program, "unauthorized");
            let answer = exchange(&site.address, &request(method, path, headers, b"{}")).unwrap();
            assert_eq!((answer.status, &answer.json()["status"]), (401, &json!("failure")), "{path}");
            assert_eq!(answer.header("www-authenticate"), Some("basic realm=\"wforce\""), "{path}");
            assert_eq!(refused(&program, "unauthorized"), before + 1.0, "{path}");
        }
        let answer = exchange(&site.address, &request(method, path, &basic("any:operator"), b"{}")).unwrap();
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }
    assert_eq!(post(&site.address, "/command/report", &basic("any:operator"), REPORT).status, 401);
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn operators_routes_without_a_password_answer_on_loopback_only() {
    let site = site("http.acl = [\"0.0.0.0/0\"]");
    let port = site.address.rsplit_once(':').unwrap().1.to_owned();
    let mut command = site.command();
    command.arg("--set").arg(format!("http.listen=[\"0.0.0.0:{port}\"]"));
    let program = site.start_command(command);
    for (method, path, status) in OPERATORS {
        let answer = exchange(&site.address, &request(method, path, "", b"{}")).unwrap();
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }
    // The address that this machine would have on the way to another one; nothing is sent.
    let outside = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("198.51.100.1:9")?;
        socket.local_addr()
    });
    match outside.map(|address| address.ip()) {
        Ok(ip) if !ip.is_loopback() => {
            let own = format!("{ip}:{port}");
            for (method, path, _) in OPERATORS {
                let answer = exchange(&own, &request(method, path, "", b"{}")).unwrap();
                assert_eq!(answer.status, 401, "{path} from {ip}: {answer:?}");
                assert!(answer.json()["reason"].as_str().unwrap().contains("http.admin_password"), "{answer:?}");
            }
            assert_eq!(post(&own, "/command/report", "", REPORT).status, 200, "reports come from elsewhere");
        }
        _ => println!("this machine has no address but loopback: only that one was asked"),
    }
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn request_that_is_none_of_ours_is_told_so_in_json() {
    let site = site("");
    let program = site.start();
    let not_found = [
        ("GET", "/nowhere"),
        ("POST", "/nowhere"),
        ("POST", "/command/nothing"),
        ("GET", "/?command=nothing"),
        ("POST", "/?command=nothing"),
        ("POST", "/"),
        ("POST", "/command/report/"),
        ("GET", "/command/../metrics"),
        ("GET", "//metrics"),
        ("POST", "/topics/a/b"),
    ];
    for (method, path) in not_found {
        let before = refused(&program, "not_found");
        let answer = exchange(&site.address, &request(method, path, "", REPORT.as_bytes())).unwrap();
        assert_eq!(answer.status, 404, "{method} {path}: {answer:?}");
        assert_eq!(answer.json(), json!({ "status": "failure", "reason": "Not found" }), "{method} {path}");
        assert_eq!(refused(&program, "not_found"), before + 1.0, "{method} {path}");
    }
    for (method, path, allowed) in [
        ("GET", "/command/report", "POST"),
        ("PUT", "/v1/reports", "POST"),
        ("DELETE", "/topics/any", "POST"),
        ("POST", "/metrics", "GET,HEAD"),
        ("POST", "/v1/admin/status", "GET,HEAD"),
    ] {
        let before = refused(&program, "method");
        let answer = exchange(&site.address, &request(method, path, "", REPORT.as_bytes())).unwrap();
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allowed)), "{method} {path}");
        assert_eq!(answer.json()["status"], "failure", "{method} {path}");
        assert_eq!(refused(&program, "method"), before + 1.0, "{method} {path}");
    }
    for (method, path, status) in [
        ("POST", "/?command=report&command=report", 400),
        ("POST", "/command/%ff", 400),
        ("POST", "/?command=%ff", 400),
        ("GET", "/v1/admin/dead-letters/%ff", 400),
        ("DELETE", "/v1/admin/dead-letters/reports/%ff", 400),
        ("GET", "/v1/admin/dead-letters/others", 404),
        ("GET", "/v1/admin/dead-letters/reports?most=many", 400),
        ("GET", "/v1/admin/dead-letters/reports?since=yesterday", 400),
        ("POST", "/v1/admin/query", 400),
    ] {
        let answer = exchange(&site.address, &request(method, path, "", b"[")).unwrap();
        assert_eq!((answer.status, &answer.json()["status"]), (status, &json!("failure")), "{method} {path}");
    }
    assert_eq!(post(&site.address, "/command/report", "", REPORT).status, 200);
    only_good(&program, 1);
    assert_eq!(program.terminate(), Some(0));
}

/// The head of a report whose body is still to come.
fn head(headers: &str) -> String {
    format!("POST /command/report HTTP/1.1\r\nHost: t\r\nConnection: close\r\n{headers}\r\n")
}

#[test]
fn body_that_is_too_large_too_slow_or_cut_is_refused_by_its_reason_and_disturbs_nothing() {
    let site = site("http.max_body = \"64 KiB\"\nhttp.body_timeout = \"300ms\"");
    let program = site.start();
    let large = "x".repeat(100_000);
    let declared = head("Content-Length: 100000\r\n");
    let chunked = head("Transfer-Encoding: chunked\r\n");
    // What is sent, and whether the client then hangs up for its part.
    let cases: [(&str, String, bool, u16, &str, &str); 9] = [
        ("over http.max_body", declared.clone() + &large, false, 413, "http.max_body", "too_large"),
        (
            "the same, and the client asks first",
            head("Content-Length: 100000\r\nExpect: 100-continue\r\n"),
            false,
            413,
            "http.max_body",
            "too_large",
        ),
        ("the same in chunks", format!("{chunked}186a0\r\n{large}\r\n0\r\n\r\n"), false, 413, "max_body", "too_large"),
        ("slow", head("Content-Length: 36\r\n") + "{", false, 408, "http.body_timeout", "time_out"),
        ("slow in chunks", chunked.clone() + "1\r\n{\r\n", false, 408, "http.body_timeout", "time_out"),
        ("no chunk", chunked.clone() + "no\r\n", false, 400, "did not arrive whole", "malformed"),
        ("compressed", head("Content-Encoding: gzip\r\n"), false, 415, "Content-Encoding", "header"),
        ("cut", head("Content-Length: 36\r\n") + "{", true, 0, "", "malformed"),
        ("cut in chunks", chunked + "24\r\n{", true, 0, "", "malformed"),
    ];
    for (good, (what, bytes, hangs_up, status, names, counted)) in cases.into_iter().enumerate() {
        let before = refused(&program, counted);
        let mut stream = TcpStream::connect(&site.address).unwrap();
        stream.write_all(bytes.as_bytes()).unwrap();
        if hangs_up {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        match listen(stream) {
            // Nobody is left to be told.
            answer if hangs_up => assert!(answer.is_none_or(|answer| answer.status == 400), "{what}"),
            answer => {
                let answer = answer.unwrap_or_else(|| panic!("{what}: no answer"));
                assert_eq!((answer.status, &answer.json()["status"]), (status, &json!("failure")), "{what}");
                assert!(answer.json()["reason"].as_str().unwrap().contains(names), "{what}: {answer:?}");
                assert_eq!(refused(&program, counted), before + 1.0, "{what}");
            }
        }
        assert_eq!(post(&site.address, "/command/report", "", REPORT).status, 200, "after {what}");
        only_good(&program, good + 1);
    }
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn body_within_max_body_is_taken_and_one_over_it_is_refused_in_the_form_of_its_route() {
    let site = site("http.max_body = \"4 MiB\"");
    let program = site.start();
    let line = |n: usize| {
        let pad = "x".repeat(3000);
        json!({ "login": format!("ann{n}"), "remote": "192.0.2.1", "attrs": { "pad": pad } }).to_string()
    };
    let batch = |lines: usize| (0..lines).map(line).collect::<Vec<_>>().join("\n");
    let (within, over) = (batch(1050), batch(1400));
    assert!((3 << 20..4 << 20).contains(&within.len()) && over.len() > 4 << 20);
    let taken = post(&site.address, "/v1/reports", "", &within);
    assert_eq!((taken.status, taken.json()), (200, json!({ "accepted": 1050, "refused": [] })));
    let ids = json!({ "ids": ["x".repeat(3 << 20)] }).to_string();
    let dropped = post(&site.address, "/v1/admin/dead-letters/reports/drop", "", ids);
    assert_eq!((dropped.status, dropped.json()), (200, json!({ "found": [] })));
    // What a report may be is bounded by itself.
    let large = post(&site.address, "/command/report", "", "x".repeat(3 << 20));
    assert_eq!(large.status, 400);
    assert!(large.json()["reason"].as_str().unwrap().contains("receive.max_report"), "{large:?}");
    for path in ["/v1/reports", "/command/report", "/command/any", "/topics/any", "/v1/admin/query", "/nowhere"] {
        let before = refused(&program, "too_large");
        let answer = post(&site.address, path, "", &over);
        let body = answer.json();
        let reason = match path {
            "/topics/any" => {
                assert_eq!(body["error_code"], 413, "{body}");
                &body["message"]
            }
            _ => {
                assert_eq!(body["status"], "failure", "{path}: {body}");
                &body["reason"]
            }
        };
        assert_eq!(answer.status, 413, "{path}");
        assert_eq!(reason, "the body is over http.max_body (4194304 bytes)", "{path}");
        assert_eq!(refused(&program, "too_large"), before + 1.0, "{path}");
    }
    only_good(&program, 1050);
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn report_in_chunks_and_two_on_one_connection_around_a_bad_one_are_taken() {
    let site = site("");
    let program = site.start();
    let (one, two) = REPORT.split_at(10);
    let chunked = head("Transfer-Encoding: chunked\r\n")
        + &format!("{:x}\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\n\r\n", one.len(), two.len());
    assert_eq!(exchange(&site.address, chunked.as_bytes()).unwrap().status, 200);
    let next = |body: &str| {
        format!("POST /command/report HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let pipelined =
        next(REPORT) + &next("{\"login\":7}") + &head(&format!("Content-Length: {}\r\n", REPORT.len())) + REPORT;
    let answers = exchange(&site.address, pipelined.as_bytes()).unwrap();
    let all = format!("{}\r\n\r\n{}", answers.head, answers.body);
    let statuses: Vec<&str> = all.match_indices("HTTP/1.1 ").map(|(at, _)| &all[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "400", "200"], "{all}");
    only_good(&program, 3);
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn head_that_is_too_large_too_long_in_coming_or_no_head_ends_its_connection_and_no_other() {
    let site = site("http.max_head = \"8 KiB\"\nhttp.max_headers = 16\nhttp.head_timeout = \"300ms\"");
    let program = site.start();
    let many: String = (0..20).map(|n| format!("X-{n}: 1\r\n")).collect();
    let cases = [
        ("too many headers", head(&many), Some(431)),
        ("too large", head(&format!("X: {}\r\n", "x".repeat(20_000))), Some(431)),
        ("an endless line", "GET /".to_owned() + &"x".repeat(100_000), Some(431)),
        ("no HTTP", "hello\r\n\r\n".to_owned(), Some(400)),
        ("TLS to a listener without", "\u{16}\u{3}\u{1}\u{0}\u{5}hello\r\n\r\n".to_owned(), Some(400)),
        ("two lengths", head("Content-Length: 1\r\nContent-Length: 2\r\n"), Some(400)),
        ("a slow one", "POST /command/report HTTP/1.1\r\nHost".to_owned(), None),
        ("nothing", String::new(), None),
    ];
    for (good, (what, bytes, status)) in cases.into_iter().enumerate() {
        let answer = exchange(&site.address, bytes.as_bytes()).map(|answer| answer.status);
        // What the client still sends when the answer is there may reset the connection under it.
        assert!(answer == status || answer.is_none() && bytes.len() > 8192, "{what}: {answer:?}");
        assert_eq!(post(&site.address, "/command/report", "", REPORT).status, 200, "after {what}");
        only_good(&program, good + 1);
    }
    program.wait_until("the connections to be gone", PATIENCE, |program| {
        program.metric("trackalert_active_http_connections") == Some(1.0)
    });
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn metrics_and_stats_have_the_names_that_clients_of_the_old_program_know() {
    let site = site("");
    let program = site.start();
    let text = program.get("/metrics").unwrap();
    let histograms = ["worker_queue_duration_seconds", "worker_response_duration_seconds"];
    let mut zeros: Vec<String> =
        ["report", "stats", "custom"].map(|cmd| format!("trackalert_commands_total{{cmd=\"{cmd}\"}} 0")).to_vec();
    for name in histograms {
        zeros.extend(["_bucket{le=\"0.001\"}", "_sum", "_count"].map(|end| format!("trackalert_{name}{end} 0")));
    }
    for line in zeros {
        assert!(text.lines().any(|there| there == line), "{line} is missing:\n{text}");
    }
    for name in histograms {
        let first = text.lines().find(|line| line.starts_with(&format!("trackalert_{name}_bucket")));
        assert!(first.unwrap().contains("{le=\"0.001\"}"), "{first:?}");
    }
    // The connection that asks is one. Those of before are gone a moment after their answers.
    program.wait_until("the one connection", PATIENCE, |program| {
        let text = program.get("/metrics").unwrap_or_default();
        text.lines().any(|line| line == "trackalert_active_http_connections 1")
    });
    let labelled = text.lines().filter(|line| line.starts_with("trackalert_commands_total"));
    assert_eq!(labelled.count(), 3, "no further labels");

    assert_eq!(post(&site.address, "/command/report", "", REPORT).status, 200);
    only_good(&program, 1);
    for (path, count) in [("/command/stats", 1), ("/?command=stats", 2)] {
        let stats = get(&site.address, path, "").json();
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let known = ["commandstats", "customstats", "perfstats", "reports", "sys-msec", "uptime", "user-msec"]
            .map(str::to_owned);
        assert_eq!(keys(&stats), known);
        let buckets = ["0_1", "100_1000", "10_100", "1_10", "Slow"];
        let names: Vec<String> =
            ["WTR_", "WTW_"].iter().flat_map(|kind| buckets.map(|end| format!("{kind}{end}"))).collect();
        assert_eq!(keys(&stats["perfstats"]), names);
        assert_eq!((&stats["reports"], &stats["commandstats"]["report"]), (&json!(1), &json!(1)));
        assert_eq!(stats["commandstats"]["stats"], json!(count));
        for kind in ["WTR_", "WTW_"] {
            let sum: u64 = buckets.iter().map(|end| stats["perfstats"][format!("{kind}{end}")].as_u64().unwrap()).sum();
            assert_eq!(sum, 1, "{kind}: {stats}");
        }
    }
    assert_eq!(program.terminate(), Some(0));
}

/// Writes a new certificate and gives a client that trusts it and no other.
fn certify(site: &Site) -> reqwest::Client {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(site.folder.path().join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(site.folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let trusted = reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
    reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).tls_certs_only([trusted]).build().unwrap()
}

#[test]
fn report_comes_over_tls_and_a_renewed_certificate_is_used_after_sighup() {
    let site = site("");
    let file = |name: &str| site.folder.path().join(name).display().to_string();
    let mut command = site.command();
    for (key, name) in [("http.tls_cert", "cert.pem"), ("http.tls_key", "key.pem")] {
        command.arg("--set").arg(format!("{key}={}", file(name)));
    }
    let first = certify(&site);
    let program = site.start_unasked(command);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let answers = |client: &reqwest::Client, path: &str, body: &str| {
        let url = format!("https://{}{path}", site.address);
        let request = client.post(url).body(body.to_owned()).send();
        runtime.block_on(request).map(|answer| answer.status().as_u16()).ok()
    };
    program.wait_until("TLS", PATIENCE, |_| answers(&first, "/command/allow", "") == Some(200));
    assert_eq!(answers(&first, "/command/report", REPORT), Some(200));
    assert!(exchange(&site.address, &request("GET", "/readyz", "", b"")).is_none(), "no plain text on this listener");

    std::fs::write(file("cert.pem"), "no certificate").unwrap();
    program.signal(Signal::SIGHUP);
    program.wait_until("the refusal", PATIENCE, |_| site.log_text().contains("the old ones stay in use"));
    assert_eq!(answers(&first, "/command/report", REPORT), Some(200), "a broken file leaves the old certificate");

    let second = certify(&site);
    assert_eq!(answers(&second, "/command/allow", ""), None, "not reread yet");
    program.signal(Signal::SIGHUP);
    program.wait_until("the new certificate", PATIENCE, |_| answers(&second, "/command/allow", "") == Some(200));
    assert_eq!(answers(&second, "/command/report", REPORT), Some(200));
    assert_eq!(answers(&first, "/command/allow", ""), None, "the old certificate is out of use");
    let body = json!({ "size": 0 }).to_string();
    let handled = || {
        let url = format!("https://{}/v1/admin/query", site.address);
        let found = runtime.block_on(async { second.post(url).body(body.clone()).send().await?.json::<Value>().await });
        found.unwrap()["hits"]["total"]["value"] == json!(3)
    };
    program.wait_until("three reports in the history", PATIENCE, |_| handled());
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn log_that_cannot_be_written_stops_nothing() {
    let site = site("");
    std::os::unix::fs::symlink("/dev/full", site.log()).unwrap();
    let program = site.start();
    assert_eq!(post(&program.address, "/command/report", "", REPORT).status, 200);
    only_good(&program, 1);
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn listener_in_use_is_told_with_what_to_do() {
    let site = site("");
    let _taken = TcpListener::bind(&site.address).unwrap();
    let ended = site.command().output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success() && said.contains("http.listen") && said.contains("in use"), "{said}");
}
