//! What a policy asks of servers over HTTP: against real ones in this process, with every way in which a server can fail to answer.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::stores::report;
use crate::support::{Bench, on_worker, requests, settings};
use crate::web::{self, Page, Server};
use bytesize::ByteSize;
use futures_util::FutureExt;
use trackalert::outbound::{Settings as TlsSettings, Tls};
use trackalert::policy::web::{Fetch, Request, Settings as HttpSettings, Web};
use trackalert::policy::{Failure, PolicySet, Settings};
use trackalert::telemetry::Metrics;

fn short() -> Settings {
    let base = settings();
    Settings {
        http: HttpSettings { timeout: Duration::from_secs(1), max_answer: ByteSize::kib(4), ..base.http },
        ..base
    }
}

fn tls_settings() -> TlsSettings {
    let none = PathBuf::new();
    TlsSettings {
        ca_file: none.clone(),
        client_cert: none.clone(),
        client_key: none,
        verify_certificates: true,
        verify_hosts: true,
    }
}

/// Runs one handler in which `URL` is the address.
async fn run(settings: &Settings, url: &str, body: &str) -> (Bench, Result<(), Failure>) {
    run_with(settings, Tls::default(), url, body).await
}

async fn run_with(settings: &Settings, tls: Tls, url: &str, body: &str) -> (Bench, Result<(), Failure>) {
    let policy = format!("local URL = {url:?}\nfunction report(lt)\n{body}\nend");
    let bench = Bench::over(&PolicySet::from_sources([("p", policy.as_str())]), settings, tls);
    let outcome = bench.at(1_000.0).await.map(drop);
    (bench, outcome)
}

async fn passes(settings: &Settings, url: &str, body: &str) -> Bench {
    let (bench, outcome) = run(settings, url, body).await;
    assert!(outcome.is_ok(), "{body}: {outcome:?}");
    bench
}

fn counted(bench: &Bench, result: &str) -> u64 {
    bench.metrics.policy_http.with_label_values(&[result]).get()
}

#[test]
fn question_and_answer_are_as_the_policy_and_the_server_meant_them() {
    on_worker(async {
        let server = Server::start(|page| match page.path.as_str() {
            "/json" => Page::json(r#"{"list":[1,2],"none":null,"text":"é"}"#),
            "/bytes" => Page::of(b"\x00\xff\xfe".to_vec()),
            _ => Page::of(b"seen".to_vec()).header("X-Two", "a").header("X-Two", "b"),
        })
        .await;
        let body = r#"
            local a = http.get(URL .. "/json")
            assert(a.status == 200 and a.headers["content-type"] == "application/json")
            local v = a:json(); assert(v.list[2] == 2 and v.none == json.null and v.text == "é")
            assert(json.encode(a):find("status"), "an answer is a table like any other")
            assert(http.get(URL .. "/bytes").body == "\0\255\254")
            local none, why = http.get(URL .. "/bytes"):json()
            assert(none == nil and why:find("the body is no JSON"), why)
            local b = http.post(URL .. "/x?a=1", "raw \0 \255", { headers = { ["X-Login"] = lt.login, ["Content-Type"] = "text/x" },
                query = { login = "a&b=c d\n", remote = lt.remote, n = 5, yes = true } })
            assert(b.body == "seen" and b.headers["x-two"] == "a, b")
            http.post(URL .. "/y", nil, { json = { login = lt.login, remote = lt.remote, list = json.empty_array } })
            http.request { url = URL .. "/z", method = "delete", headers = { ["X-Evil"] = "a\r\nX-More: b" } }
        "#;
        let bench = passes(&settings(), &server.url(), body).await;
        let seen = server.seen();
        let of = |path: &str| seen.iter().find(|page| page.path == path).unwrap_or_else(|| panic!("{path}: {seen:?}"));
        let x = of("/x");
        assert_eq!((x.method.as_str(), x.body.as_slice()), ("POST", &b"raw \0 \xff"[..]));
        assert_eq!(
            x.query, "a=1&login=a%26b%3Dc+d%0A&n=5&remote=192.0.2.7&yes=true",
            "sorted, and nothing adds a parameter"
        );
        assert_eq!((x.header("x-login"), x.header("content-type")), ("ann", "text/x"));
        assert!(x.header("user-agent").starts_with("trackalert/"));
        let y = of("/y");
        assert_eq!(y.header("content-type"), "application/json");
        let sent: serde_json::Value = serde_json::from_slice(&y.body).unwrap();
        assert_eq!(sent, serde_json::json!({ "login": "ann", "remote": "192.0.2.7", "list": [] }));
        let z = of("/z");
        assert_eq!((z.method.as_str(), z.header("x-evil"), z.header("x-more")), ("DELETE", "a??X-More: b", ""));
        assert_eq!(counted(&bench, "2xx"), 6);
    });
}

#[test]
fn status_is_an_answer_and_a_redirect_is_not_followed() {
    on_worker(async {
        let other = Server::start(|_| Page::of(b"stolen".to_vec())).await;
        let target = other.url();
        let server = Server::start(move |page| match page.path.as_str() {
            "/moved" => Page::status(302).header("Location", &target),
            _ => Page::status(500),
        })
        .await;
        let body = r#"
            local a = http.get(URL .. "/moved", { headers = { Authorization = "Bearer b34rer" } })
            assert(a.status == 302 and a.headers.location:find("http://127.0.0.1:", 1, true) == 1)
            local b, why = http.get(URL .. "/broken"); assert(b.status == 500 and why == nil)
        "#;
        let bench = passes(&settings(), &server.url(), body).await;
        assert!(other.seen().is_empty(), "credentials go to whom the policy names");
        assert_eq!((counted(&bench, "3xx"), counted(&bench, "5xx")), (1, 1));
    });
}

#[test]
fn server_that_does_not_answer_is_nil_and_the_reason_without_secrets() {
    on_worker(async {
        let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let garbage = web::raw(b"SSH-2.0-OpenSSH\r\n\r\n".to_vec(), false).await;
        let cut = web::raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".to_vec(), false).await;
        for (address, result, expected) in [
            (refused, "failed", "refused"),
            (silent.local_addr().unwrap(), "time_out", "no whole answer from 127.0.0.1:"),
            (garbage, "failed", "no answer from"),
            (cut, "failed", "no answer from"),
        ] {
            let url = format!("http://ann:hunter2@{address}/T0K3N?key=v4lue");
            let body = format!(
                r#"local answer, why = http.post(URL, "b0dy", {{ headers = {{ Authorization = "Bearer b34rer" }} }})
                assert(answer == nil and why:find("{expected}", 1, true), why)
                for _, secret in ipairs {{ "hunter2", "T0K3N", "v4lue", "b34rer", "b0dy" }} do
                  assert(not why:find(secret, 1, true), why)
                end"#
            );
            let bench = passes(&short(), &url, &body).await;
            assert_eq!(counted(&bench, result), 1, "{result}");
        }
    });
}

#[test]
fn server_that_hangs_is_told_to_the_policy_before_its_time_is_up() {
    on_worker(async {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = Settings { time_limit: Duration::from_secs(3), ..settings() };
        let body = r#"local a, why = http.get(URL)
            assert(a == nil and why:find("no whole answer from .* within 2[.]%d+s"), why)
            local b, why, sent = http.get(URL)
            assert(b == nil and why:find("not asked, because the time of this call", 1, true) and not sent, why)"#;
        let bench = passes(&settings, &format!("http://{}", silent.local_addr().unwrap()), body).await;
        assert!(!bench.vm.spoiled(), "the machine would be replaced");
    });
}

#[test]
fn answer_that_drips_and_one_that_is_huge_are_given_up() {
    on_worker(async {
        let drips = web::raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(), true).await;
        let began = Instant::now();
        let body =
            r#"local a, why = http.get(URL); assert(a == nil and why:find("no whole answer from .* within 1s"), why)"#;
        let bench = passes(&short(), &format!("http://{drips}"), body).await;
        assert_eq!(counted(&bench, "time_out"), 1);
        let body = r#"local a, why = http.get(URL, { timeout = 0.05 }); assert(a == nil and why:find("within 50ms"), why)
            local b, why = http.get(URL, { timeout = 3600 }); assert(b == nil and why:find("within 1s"), why)"#;
        passes(&short(), &format!("http://{drips}"), body).await;
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());

        let server = Server::start(|page| match page.path.as_str() {
            "/fits" => Page::of(vec![b'x'; 4096]),
            _ => Page::of(vec![b'x'; 4097]),
        })
        .await;
        let endless = web::raw(b"HTTP/1.1 200 OK\r\n\r\n".iter().copied().chain([b'x'; 100_000]).collect(), true).await;
        let body = r#"assert(#http.get(URL .. "/fits").body == 4096)
            local a, why = http.get(URL .. "/more"); assert(a == nil and why:find("policy.http.max_answer", 1, true), why)"#;
        let bench = passes(&short(), &server.url(), body).await;
        assert_eq!(counted(&bench, "too_large"), 1);
        let body =
            r#"local a, why = http.get(URL); assert(a == nil and why:find("policy.http.max_answer", 1, true), why)"#;
        passes(&short(), &format!("http://{endless}"), body).await;
    });
}

/// Who may be asked with these settings of TLS.
async fn answered(tls: &TlsSettings, url: &str) -> bool {
    let body = r#"local a, why = http.get(URL) assert(a or why:find("certificate", 1, true) or why:find("Certificate", 1, true), why)
        assert(a, "REFUSED")"#;
    let (bench, outcome) = run_with(&settings(), Tls::new(tls).unwrap(), url, body).await;
    match outcome {
        Ok(()) => true,
        Err(failure) => {
            assert!(format!("{failure:?}").contains("REFUSED"), "{failure:?}");
            assert_eq!(counted(&bench, "failed"), 1);
            false
        }
    }
}

#[test]
fn server_is_known_by_its_authority_and_its_name_unless_the_settings_say_otherwise() {
    on_worker(async {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start_tls(folder.path(), |_| Page::json("{}")).await;
        let (right, other) = (server.url(), server.url().replace("127.0.0.1", "localhost"));
        let none = tls_settings();
        let ours = TlsSettings { ca_file: folder.path().join("ca.pem"), ..tls_settings() };
        for (settings, right_name, other_name) in [
            (none.clone(), false, false),
            (ours.clone(), true, false),
            (TlsSettings { verify_hosts: false, ..ours }, true, true),
            (TlsSettings { verify_hosts: false, ..none.clone() }, false, false),
            (TlsSettings { verify_certificates: false, ..none }, true, true),
        ] {
            assert_eq!(answered(&settings, &right).await, right_name, "{settings:?}");
            assert_eq!(answered(&settings, &other).await, other_name, "{settings:?}");
        }
    });
}

#[test]
fn server_that_asks_who_we_are_is_shown_our_certificate() {
    on_worker(async {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start_mutual_tls(folder.path(), |_| Page::json("{}")).await;
        let file = |name: &str| folder.path().join(name);
        let unknown = TlsSettings { ca_file: file("ca.pem"), ..tls_settings() };
        assert!(!answered(&unknown, &server.url()).await);
        let known = TlsSettings { client_cert: file("client.pem"), client_key: file("client.key"), ..unknown };
        assert!(answered(&known, &server.url()).await);
        for (settings, expected) in [
            (TlsSettings { client_key: file("nowhere"), ..known.clone() }, "outbound.client_key: "),
            (TlsSettings { client_key: file("ca.pem"), ..known.clone() }, "outbound.client_cert: "),
            (TlsSettings { client_cert: file("ca.pem"), ..known }, "outbound.client_cert: "),
        ] {
            let said = Tls::new(&settings).unwrap_err();
            assert!(said.starts_with(expected), "{said}");
        }
    });
}

#[test]
fn report_that_waits_for_an_answer_blocks_no_other() {
    on_worker(async {
        const MANY: usize = 200;
        let (server, gate) = Server::gated(MANY, |_| Page::of(b"late".to_vec())).await;
        let policy = format!(
            "local URL = {:?}\nfunction report(lt) if lt.login == 'quick' then alert{{kind='k', title='quick'}} return end
             local a = assert(http.get(URL)); alert{{kind='k', title=a.body .. lt.login, key=lt.login}} end",
            server.url()
        );
        let bench = Rc::new(Bench::new([("p", policy.as_str())]));
        let waiting: Vec<_> = (0..MANY)
            .map(|i| {
                let bench = Rc::clone(&bench);
                tokio::task::spawn_local(async move { bench.vm.run(0, &report(&format!("login{i}"), 1.0)).await })
            })
            .collect();
        // All of them are at the server at once, and none has its answer.
        gate.reached().await;
        assert_eq!(bench.vm.run(0, &report("quick", 1.0)).await.unwrap().alerts[0].title, "quick");
        assert!(waiting.iter().all(|task| !task.is_finished()));
        gate.open();
        for (i, task) in waiting.into_iter().enumerate() {
            assert_eq!(task.await.unwrap().unwrap().alerts[0].title, format!("latelogin{i}"), "each its own answer");
        }
        assert_eq!(counted(&bench, "2xx"), MANY as u64);
    });
}

#[test]
fn requests_beyond_the_bound_wait_for_their_turn_and_not_for_ever() {
    on_worker(async {
        let (server, gate) = Server::gated(2, |_| Page::of(Vec::new())).await;
        let base = settings();
        let http = HttpSettings { in_flight: 2, timeout: Duration::from_secs(10), ..base.http.clone() };
        let policy = format!(
            "function report(lt) local a, why = http.get({:?}, {{ timeout = lt.login == 'late' and 0.1 or 10 }})
             alert{{kind='k', title=a and 'answered' or why}} end",
            server.url()
        );
        let bench = Bench::with([("p", policy.as_str())], &Settings { http, ..base });
        let (ann, late) = (report("ann", 1.0), report("late", 1.0));
        let titles = |outcome: Result<trackalert::policy::Effects, Failure>| outcome.unwrap().alerts[0].title.clone();
        let (first, second, third) = tokio::join!(bench.vm.run(0, &ann), bench.vm.run(0, &ann), async {
            gate.reached().await;
            let told = titles(bench.vm.run(0, &late).await);
            gate.open();
            told
        });
        assert!(third.contains("was not asked within 100ms: policy.http.in_flight (2)"), "{third}");
        assert_eq!((titles(first), titles(second)), ("answered".to_owned(), "answered".to_owned()));
        assert_eq!(counted(&bench, "no_turn"), 1);
        assert_eq!(titles(bench.vm.run(0, &ann).await), "answered", "the turns come back");
    });
}

#[test]
fn handler_that_is_cancelled_drops_its_request() {
    on_worker(async {
        let (server, gate) = Server::gated(1, |_| Page::of(Vec::new())).await;
        let bench = Bench::handler(&format!("http.get({:?})", server.url()));
        let (outcome, ()) = tokio::join!(bench.at(1.0), async {
            gate.reached().await;
            bench.vm.retire();
        });
        assert_eq!(outcome.unwrap_err(), Failure::Cancelled);
        assert_eq!(bench.vm.live_calls(), 0);
        gate.open();
    });
}

#[test]
fn wait_for_an_answer_works_wherever_a_policy_may_wait() {
    on_worker(async {
        let server = Server::start(|page| Page::of(page.path.into_bytes())).await;
        let url = server.url();
        for body in [
            "local ok, e = pcall(function() http.get(URL .. '/a'); error('after') end); assert(not ok and e:find('after'))",
            "local f = coroutine.wrap(function() for i = 1, 3 do coroutine.yield(http.get(URL .. '/' .. i).body) end end)
             assert(f() == '/1' and f() == '/2' and f() == '/3')",
            "local t = setmetatable({}, {__index = function(_, k) return http.get(URL .. '/' .. k).body end}); assert(t.key == '/key')",
            "local seen = {}; for b in coroutine.wrap(function() for i = 1, 2 do coroutine.yield(http.get(URL).body) end end)
             do seen[#seen + 1] = b end; assert(#seen == 2)",
        ] {
            passes(&settings(), &url, body).await;
        }
        for body in [
            "table.sort({3,2,1}, function(a, b) http.get(URL) return a < b end)",
            "string.gsub('aa', 'a', function() return http.get(URL).body end)",
        ] {
            let (_, outcome) = run(&settings(), &url, body).await;
            let Err(Failure::Error(text)) = outcome else { panic!("{outcome:?}") };
            assert!(text.contains("cannot be made inside a callback of table.sort or string.gsub"), "{text}");
        }
    });
}

#[test]
fn wrong_arguments_name_function_argument_file_and_line_and_no_secret() {
    on_worker(async {
        for (body, expected) in [
            ("http.get()", "http.get: url: a string is required, got nothing"),
            ("http.get('hunter2')", "http.get: url: not a URL"),
            ("http.get('ftp://ann:hunter2@x/')", "http.get: url: its scheme must be http or https"),
            ("http.get(URL, 5)", "http.get: options: a table is required, got the number 5"),
            ("http.get(URL, { timout = 1 })", "http.get: timout: no such key; did you mean timeout?"),
            ("http.get(URL, { body = 'x' })", "http.get: body: no such key"),
            ("http.get(URL, { timeout = -1 })", "http.get: timeout: must be a number of seconds above 0"),
            ("http.get(URL, { headers = 'x' })", "http.get: headers: a table is required, got a string"),
            ("http.get(URL, { headers = { ['a b'] = 'hunter2' } })", "http.get: headers.a b: is no name of a header"),
            ("http.get(URL, { headers = { X = {} } })", "http.get: headers.X: a string is required, got a table"),
            (
                "http.get(URL, { headers = { ['Content-Length'] = 5 } })",
                "http.get: headers.Content-Length: is set by the program",
            ),
            ("http.get(URL, { query = { 'x' } })", "http.get: query: the keys must be names, one is the number 1"),
            ("http.get(URL, { query = { x = print } })", "http.get: query.x: a string is required, got a function"),
            (
                "http.post(URL, { a = 1 })",
                "http.post: body: a string is required, got a table; a table goes into the options",
            ),
            ("http.post(URL, 'x', { json = {} })", "http.post: json: body is given too"),
            ("http.post(URL, nil, { json = { a = { print } } })", "http.post: json.a[1]: a function is no JSON"),
            ("http.post(URL, ('x'):rep(2^20 + 1))", "http.post: body: has 1048577 bytes; at most 1048576"),
            (
                "http.request { url = URL, method = 'CONNECT' }",
                "http.request: method: CONNECT is none of GET, HEAD, POST",
            ),
            ("http.request { urls = URL }", "http.request: urls: no such key; did you mean url?"),
            ("http.request()", "http.request: request: a table is required, got nothing"),
        ] {
            let (_, outcome) = run(&settings(), "http://127.0.0.1:9/", body).await;
            let Err(Failure::Error(text)) = outcome else { panic!("{body}: {outcome:?}") };
            assert!(text.starts_with(&format!("p/policy.lua:3: {expected}")), "{body}\n  gave {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    });
    let set = PolicySet::from_sources([("p", "http.get('http://x/')\nfunction report() end")]);
    let text = set.check().unwrap_err().to_string();
    assert_eq!(text, "p/policy.lua:1: http.get: works in a handler only, not while the policy is loaded");
}

fn get(server: &Server) -> Request {
    Request {
        method: "GET".parse().unwrap(),
        url: server.url().parse().unwrap(),
        headers: Default::default(),
        body: Default::default(),
        timeout: None,
    }
}

#[test]
fn connections_outlive_the_worker_that_used_them_first() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Server::start(|_| Page::of(b"x".to_vec())));
    let web = Arc::new(Web::new(&settings().http, Tls::default(), Arc::new(Metrics::new()), requests()));
    for _ in 0..3 {
        let (web, request) = (Arc::clone(&web), get(&server));
        let worker = std::thread::spawn(move || {
            on_worker(async move {
                for _ in 0..3 {
                    assert_eq!(web.request(request.clone()).await.unwrap().status, 200);
                }
            });
        });
        worker.join().unwrap();
    }
    assert_eq!(server.seen().len(), 9);
    assert!(server.connections() < 3, "each worker has connections of its own");
}

#[test]
fn worker_that_hangs_in_a_policy_keeps_no_turn_from_the_others() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (server, gate) = runtime.block_on(Server::gated(1, |_| Page::of(b"x".to_vec())));
    let http = HttpSettings { in_flight: 1, timeout: Duration::from_secs(10), ..settings().http };
    let web = Web::new(&http, Tls::default(), Arc::new(Metrics::new()), requests());
    let mut hanging: Vec<_> = (0..3).map(|_| web.request(get(&server))).collect();
    hanging.iter_mut().for_each(|request| assert!(request.now_or_never().is_none()));
    gate.open();
    assert_eq!(on_worker(web.request(get(&server))).unwrap().status, 200);
}
