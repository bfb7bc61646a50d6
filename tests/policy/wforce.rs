//! What a policy tells and asks wforce: against servers that answer in wforce's form, and ones that are down.

use std::time::Duration;

use crate::support::{Bench, on_worker, settings};
use crate::web::{Page, Seen, Server};
use serde_json::json;
use trackalert::policy::{Failure, Settings};
use trackalert::settings::Secret;

const PASSWORD: &str = "s3cret:with colon";

async fn wforce() -> Server {
    Server::start(answer).await
}

fn answer(seen: Seen) -> Page {
    if seen.header("authorization") != "Basic d2ZvcmNlOnMzY3JldDp3aXRoIGNvbG9u" {
        let page = Page::json(r#"{"status":"failure","reason":"Unauthorized"}"#);
        return page.with_status(401);
    }
    match seen.query.as_str() {
        "command=allow" => Page::json(r#"{"status":-1,"msg":"too many","r_attrs":{"tries":"5"}}"#),
        _ => Page::json(r#"{"status":"ok"}"#),
    }
}

fn with(servers: &[String]) -> Settings {
    let mut settings = settings();
    settings.http.timeout = Duration::from_secs(2);
    settings.wforce.servers = servers.to_vec();
    settings.wforce.password = Secret::from(PASSWORD.to_owned());
    settings
}

async fn run(settings: &Settings, body: &str) -> Result<(), Failure> {
    Bench::with([("p", format!("function report(lt)\n{body}\nend").as_str())], settings).at(1_000.0).await.map(drop)
}

async fn passes(settings: &Settings, body: &str) {
    let outcome = run(settings, body).await;
    assert!(outcome.is_ok(), "{body}: {outcome:?}");
}

/// An address of loopback on which nobody listens.
fn dead() -> String {
    format!("http://{}", std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

#[test]
fn every_server_is_told_in_the_form_of_its_api() {
    on_worker(async {
        let (one, two) = (wforce().await, wforce().await);
        let body = r#"
            assert(wforce.report { login = lt.login, remote = lt.remote, success = false, fail_type = "credentials", tls = lt.tls,
                attrs = { country = "NL", groups = { "a", "b" } }, device_id = lt.device_id } == true)
            assert(wforce.addBLEntry { ip = "::ffff:192.0.2.1", login = lt.login, expire_secs = 3600, reason = "seen" } == true)
            assert(wforce.addBLEntry { netmask = "192.0.2.9/24", expire_secs = 60, reason = "net" } == true)
            assert(wforce.delBLEntry { login = lt.login } == true)
        "#;
        passes(&with(&[one.url(), format!("{}/", two.url())]), body).await;
        for server in [one, two] {
            let seen = server.seen();
            let of: Vec<_> =
                seen.iter().map(|seen| (seen.method.as_str(), seen.path.as_str(), seen.query.as_str())).collect();
            let post = |command| ("POST", "/", command);
            let (add, del) = ("command=addBLEntry", "command=delBLEntry");
            assert_eq!(of, [post("command=report"), post(add), post(add), post(del)]);
            let report = json!({ "login": "ann", "remote": "192.0.2.7", "success": false, "fail_type": "credentials", "tls": true,
                "pwhash": "", "attrs": { "country": "NL", "groups": ["a", "b"] }, "device_id": seen[0].json()["device_id"] });
            assert_eq!(seen[0].json(), report);
            assert!(report["device_id"].as_str().unwrap().contains("Thunderbird"));
            assert_eq!(
                seen[1].json(),
                json!({ "ip": "192.0.2.1", "login": "ann", "expire_secs": 3600, "reason": "seen" })
            );
            assert_eq!(seen[2].json(), json!({ "netmask": "192.0.2.0/24", "expire_secs": 60, "reason": "net" }));
            assert_eq!(seen[3].json(), json!({ "login": "ann" }));
            assert!(seen.iter().all(|seen| seen.header("content-type") == "application/json"));
        }
    });
}

#[test]
fn server_that_does_not_take_it_is_named_and_the_others_have_it() {
    on_worker(async {
        let (one, last) = (wforce().await, wforce().await);
        let full = Server::start(|_| Page::json(r#"{"status":"failure","reason":"no room"}"#)).await;
        let odd = Server::start(|_| Page::of(b"<html>".to_vec())).await;
        let dead = dead();
        let servers = [one.url(), dead.clone(), full.url(), odd.url(), last.url()];
        let host = |url: &str| url.trim_start_matches("http://").to_owned();
        let body = format!(
            r#"local done, why = wforce.delBLEntry {{ ip = lt.remote }}
            assert(done == nil and why:find("{}: ", 1, true) and why:find("refused"), why)
            assert(why:find("{}: no room", 1, true) and why:find("{}: its answer is no JSON", 1, true), why)
            assert(not why:find("{}", 1, true) and not why:find("{}", 1, true), why)"#,
            host(&dead),
            full.address(),
            odd.address(),
            one.address(),
            last.address()
        );
        passes(&with(&servers), &body).await;
        assert_eq!((one.seen().len(), last.seen().len()), (1, 1));
    });
}

#[test]
fn allow_is_asked_of_one_that_answers_and_of_that_one_again() {
    on_worker(async {
        let (two, three) = (wforce().await, wforce().await);
        let broken = Server::start(|_| Page::status(500)).await;
        let body = r#"for _ = 1, 3 do
              local a = assert(wforce.allow { login = lt.login, remote = lt.remote, pwhash = lt.pwhash, protocol = lt.protocol })
              assert(a.status == -1 and a.msg == "too many" and a.r_attrs.tries == "5")
            end"#;
        passes(&with(&[dead(), broken.url(), two.url(), three.url()]), body).await;
        assert_eq!((broken.seen().len(), two.seen().len(), three.seen().len()), (1, 3, 0));
        assert_eq!(
            two.seen()[0].json(),
            json!({ "login": "ann", "remote": "192.0.2.7", "pwhash": "5a5f", "protocol": "imap" })
        );
        let body = format!(
            r#"local a, why = wforce.allow {{ login = lt.login, remote = lt.remote }}
            assert(a == nil and why:find("refused") and why:find("{}: answered 500", 1, true), why)"#,
            broken.address()
        );
        passes(&with(&[dead(), broken.url()]), &body).await;
    });
}

#[test]
fn wrong_password_is_told_and_not_shown() {
    on_worker(async {
        let server = wforce().await;
        let mut settings = with(&[server.url()]);
        settings.wforce.password = Secret::from("wr0ng".to_owned());
        let body = r#"local a, why = wforce.report { login = "x", remote = lt.remote, success = true }
            assert(a == nil and why:find("answered 401 .*policy.wforce.password.*: Unauthorized"), why)
            assert(not why:find("wr0ng") and not why:find("d3Iw"), why)"#;
        passes(&settings, body).await;
    });
}

#[test]
fn wrong_arguments_name_function_argument_file_and_line() {
    on_worker(async {
        let server = wforce().await;
        let settings = with(&[server.url()]);
        for (body, expected) in [
            ("wforce.report()", "wforce.report: attempt: a table is required, got nothing"),
            (
                "wforce.report { remote = lt.remote, success = true }",
                "wforce.report: login: a string is required, got nothing",
            ),
            (
                "wforce.report { login = 'x', success = true }",
                "wforce.report: remote: an address or its text is required, got nothing",
            ),
            (
                "wforce.report { login = 'x', remote = 'here', success = true }",
                "wforce.report: remote: an address or its text",
            ),
            (
                "wforce.report { login = 'x', remote = lt.remote }",
                "wforce.report: success: true or false is required, got nothing",
            ),
            (
                "wforce.report { login = 'x', remote = lt.remote, success = 'yes' }",
                "wforce.report: success: true or false is required, got a string",
            ),
            (
                "wforce.report { login = 'x', remote = lt.remote, success = true, attrs = { f = print } }",
                "wforce.report: attrs.f: a function is no JSON",
            ),
            ("wforce.report { lgin = 'x' }", "wforce.report: lgin: no such key; did you mean login?"),
            (
                "wforce.allow { login = 'x', remote = lt.remote, success = true }",
                "wforce.allow: success: is not known before the login",
            ),
            (
                "wforce.addBLEntry { expire_secs = 5, reason = 'x' }",
                "wforce.addBLEntry: ip: is required, or login, or netmask",
            ),
            (
                "wforce.addBLEntry { ip = lt.remote, reason = 'x' }",
                "wforce.addBLEntry: expire_secs: a number of seconds is required",
            ),
            (
                "wforce.addBLEntry { ip = lt.remote, expire_secs = 0, reason = 'x' }",
                "wforce.addBLEntry: expire_secs: must be a whole number",
            ),
            (
                "wforce.addBLEntry { ip = lt.remote, expire_secs = 5 }",
                "wforce.addBLEntry: reason: a string is required",
            ),
            (
                "wforce.addBLEntry { netmask = '192.0.2', expire_secs = 5, reason = 'x' }",
                "wforce.addBLEntry: netmask: is no network",
            ),
            (
                "wforce.addBLEntry { netmask = '192.0.2.0/24', ip = lt.remote }",
                "wforce.addBLEntry: netmask: stands alone",
            ),
            ("wforce.delBLEntry { ip = lt.remote, reason = 'x' }", "wforce.delBLEntry: reason: no such key"),
        ] {
            let Err(Failure::Error(text)) = run(&settings, body).await else { panic!("{body}") };
            assert!(text.starts_with(&format!("p/policy.lua:2: {expected}")), "{body}\n  gave {text}");
        }
        assert!(server.seen().is_empty());
        let Err(Failure::Error(text)) = run(&with(&[]), "wforce.delBLEntry { ip = lt.remote }").await else { panic!() };
        assert!(text.contains("wforce.delBLEntry: policy.wforce.servers: is empty"), "{text}");
    });
}
