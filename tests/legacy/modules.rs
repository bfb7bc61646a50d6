//! The modules that configurations of the old program require, against servers that behave well and badly.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::bench::{on_worker, settings};
use crate::old::{handle, machine_with};
use axum::Router;
use axum::http::HeaderMap;
use serde_json::json;
use tokio::sync::mpsc;
use trackalert::policy::Settings;

/// Answers each PING of a connection; the first `silent` connections get no answer. Gives the port and how many there were.
fn redis(silent: usize) -> (u16, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, count) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answers = counted.fetch_add(1, Ordering::SeqCst) >= silent;
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    let pings = String::from_utf8_lossy(&buffer[..length]).matches("PING").count();
                    if answers && stream.write_all("+PONG\r\n".repeat(pings).as_bytes()).is_err() {
                        break;
                    }
                }
            });
        }
    });
    (port, count)
}

#[test]
fn reports_that_need_a_connection_to_redis_at_once_share_one() {
    let (port, connections) = redis(0);
    let source = format!("setReport(function(lt) assert(require('redis').connect('127.0.0.1', {port}):ping()) end)");
    let outcomes = on_worker(async {
        let machine = machine_with(&source, settings());
        futures_util::future::join_all((0..20).map(|_| machine.at(1.0))).await
    });
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[test]
fn connection_to_redis_that_does_not_answer_is_not_used_again() {
    let (port, connections) = redis(1);
    let source = format!(
        "setReport(function(lt)
            local client = require('redis').connect('127.0.0.1', {port})
            local ok, reason = pcall(client.ping, client)
            assert(not ok and reason:find('no answer within 1s', 1, true), reason)
            assert(client:ping())
        end)"
    );
    let mut settings = settings();
    settings.socket_timeout = Duration::from_secs(1);
    let outcome = on_worker(async { machine_with(&source, settings).at(1.0).await });
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[test]
fn redis_that_hangs_is_told_to_the_policy_before_its_time_is_up() {
    let (port, _) = redis(1);
    let source = format!(
        "setReport(function(lt)
            local client = require('redis').connect('127.0.0.1', {port})
            local ok, reason = pcall(client.ping, client)
            assert(not ok and reason:find('no answer within 2[.]%d+s'), reason)
            ok, reason = pcall(client.ping, client)
            assert(not ok and reason:find('the time of this call', 1, true), reason)
        end)"
    );
    let settings =
        Settings { time_limit: Duration::from_secs(3), socket_timeout: Duration::from_secs(10), ..settings() };
    let outcome = on_worker(async { machine_with(&source, settings).at(1.0).await });
    assert!(outcome.is_ok(), "{outcome:?}");
}

/// Answers `GET n` with so many bytes, `GET announced` with an array that is to have two billion values, and PING. Gives the port, how
/// many connections there were and how many bytes were taken of it.
fn values() -> (u16, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (connections, taken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, bytes) = (Arc::clone(&connections), Arc::clone(&taken));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::SeqCst);
            let bytes = Arc::clone(&bytes);
            std::thread::spawn(move || {
                let lines = std::io::BufReader::new(stream.try_clone().unwrap());
                let mut stream = stream;
                let chunk = [b'x'; 1 << 16];
                for line in std::io::BufRead::lines(lines).map_while(Result::ok) {
                    let Ok(mut left) = line.parse::<usize>() else {
                        if line == "PING" && stream.write_all(b"+PONG\r\n").is_err() {
                            return;
                        }
                        if line == "announced" && stream.write_all(b"*2000000000\r\n:1\r\n").is_err() {
                            return;
                        }
                        continue;
                    };
                    let _ = write!(stream, "${left}\r\n");
                    while left > 0 {
                        let Ok(()) = stream.write_all(&chunk[..left.min(chunk.len())]) else { return };
                        bytes.fetch_add(left.min(chunk.len()), Ordering::SeqCst);
                        left -= left.min(chunk.len());
                    }
                    let _ = stream.write_all(b"\r\n");
                }
            });
        }
    });
    (port, connections, taken)
}

#[test]
fn answer_of_redis_that_is_larger_than_max_answer_is_an_error_and_not_read_to_its_end() {
    let (port, connections, taken) = values();
    let source = format!(
        "setReport(function(lt)
            local client = require('redis').connect('127.0.0.1', {port})
            assert(#client:get('262000') == 262000)
            for _, size in ipairs {{ '263000', '500000000', 'announced' }} do
                local ok, reason = pcall(client.get, client, size)
                assert(not ok and reason:find('larger than policy.http.max_answer', 1, true), reason)
            end
            assert(client:ping())
        end)"
    );
    let outcome = on_worker(async { machine_with(&source, settings()).at(1.0).await });
    assert!(outcome.is_ok(), "{outcome:?}");
    assert!(connections.load(Ordering::SeqCst) <= 3);
    // What lies in the buffers of the two ends is taken, too.
    assert!(taken.load(Ordering::SeqCst) < 100_000_000, "{taken:?}");
}

#[test]
fn answers_of_redis_that_come_at_once_are_each_within_the_bound() {
    let (port, connections, _) = values();
    let source = format!(
        "setReport(function(lt) assert(#require('redis').connect('127.0.0.1', {port}):get('250000') == 250000) end)"
    );
    let outcomes = on_worker(async {
        let machine = machine_with(&source, settings());
        futures_util::future::join_all((0..100).map(|_| machine.at(1.0))).await
    });
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[test]
fn command_that_would_change_or_hold_the_connection_of_all_reports_is_refused() {
    handle(
        r#"
        -- Nobody listens there: what is refused is not even sent.
        local redis = require "redis"
        local client = redis.connect("127.0.0.1", 9)
        local function refused(part, f, ...)
          local ok, reason = pcall(f, client, ...)
          assert(not ok and reason:find(part, 1, true), reason)
        end
        refused("MULTI: all reports share the connection; use eval", client.multi)
        refused("SELECT: all reports share the connection; use client:select", client.raw_cmd, "select 1")
        refused("AUTH", client.raw_cmd, "AUTH hunter2")
        refused("BLPOP", client.blpop, "list", 0)
        refused("SUBSCRIBE", redis.command("subscribe"), "channel")
        refused("XREAD: BLOCK", client.xread, "block", 0, "streams", "s", "$")
        refused("127.0.0.1:9: ", client.xread, "streams", "block", "0")
        refused("127.0.0.1:9: ", client.get, "multi")
        "#,
    );
}

/// A server that answers with JSON, or never. Gives the port and how many requests there were.
fn web(answers: bool) -> (u16, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, count) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            counted.fetch_add(1, Ordering::SeqCst);
            if answers {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}");
            } else {
                kept.push(stream);
            }
        }
    });
    (port, count)
}

#[test]
fn document_without_an_id_is_not_stored_twice_and_what_is_read_is_asked_of_the_next_host() {
    let ((silent, _), (other, asked)) = (web(false), web(true));
    handle(&format!(
        r#"
        local function client(first)
          local client = require("elasticsearch").client {{ hosts = {{ {{ host = "127.0.0.1", port = first }}, {{ host = "127.0.0.1", port = {other} }} }} }}
          client.timeout = 1
          return client
        end
        local data, err = client({silent}):index {{ index = "a", body = {{}} }}
        assert(data == nil and err:find("no whole answer", 1, true), tostring(err))
        assert(client(9):index {{ index = "a", body = {{}} }})
        assert(client({silent}):index {{ index = "a", id = "1", body = {{}} }})
        assert(client({silent}):search {{ index = "a", body = {{}} }})
        "#
    ));
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

#[test]
fn what_old_files_give_to_a_module_and_it_does_not_need_changes_nothing() {
    let (port, asked) = web(true);
    handle(&format!(
        r#"
        local hosts = {{ {{ host = "127.0.0.1", port = {port} }} }}
        local client = require("elasticsearch").client {{ hosts = hosts, params = {{ pingTimeout = 0, logLevel = "off" }} }}
        assert(client:search {{ index = "a", body = {{}} }})
        local http, smtp = require "ssl.https", require "socket.smtp"
        http.PROXY, http.USERAGENT = "http://127.0.0.1:9", "mine"
        local ok, status = http.request {{
          url = "http://127.0.0.1:{port}/", proxy = "http://127.0.0.1:9", create = error, step = error, redirect = true, verify = "none",
        }}
        assert(ok == 1 and status == 200, status)
        smtp.TIMEOUT = 0
        local source = smtp.message {{ body = "" }}
        local sent, why = smtp.send {{ from = "a@example.com", rcpt = "b@example.com", source = source, port = 9, create = error, step = error }}
        assert(sent == nil and why:find("localhost:9: ", 1, true), why)
        "#
    ));
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[test]
fn redis_url_is_read_and_none_is_repeated() {
    handle(
        r#"
        local redis = require "redis"
        local server = redis.connect("redis://ann:hunter%202@db.example:6380/3")._server
        assert(server.host == "db.example" and server.port == 6380 and server.db == 3)
        assert(server.user == "ann" and server.password == "hunter 2")
        server = redis.connect("tcp://127.0.0.1:6379?tcp_nodelay=true")._server
        assert(server.host == "127.0.0.1" and server.port == 6379 and server.db == 0)
        server = redis.connect("redis://:hunter2@[::1]")._server
        assert(server.host == "::1" and server.port == 6379 and server.user == "" and server.password == "hunter2")
        for _, url in ipairs { "rediss://:hunter2@db", "redis://:hunter2@db:x", "redis://:hunter2@db/x", "redis://hunter2?x@db:1", "redis://db?hunter2=2", "redis://:hunter2@" } do
          local ok, reason = pcall(redis.connect, url)
          assert(not ok and reason:find("redis.connect: host: is no redis://", 1, true), reason)
          assert(not reason:find("hunter2", 1, true), reason)
        end
        local ok, reason = pcall(redis.connect, { path = "/run/redis.sock" })
        assert(not ok and reason:find("redis.connect: path: ", 1, true), reason)
        ok, reason = pcall(function() redis.connect("ann:hunter2@db"):ping() end)
        assert(not ok and reason:find("host: must be the name", 1, true) and not reason:find("hunter2", 1, true), reason)
        "#,
    );
}

#[test]
fn mail_has_what_every_mail_must_have_and_each_header_once() {
    handle(
        r#"
        local smtp, ltn12 = require "socket.smtp", require "ltn12"
        local function text(message)
          local sink, parts = ltn12.sink.table()
          ltn12.pump.all(smtp.message(message), sink)
          return table.concat(parts)
        end
        local function times(text, what)
          local _, count = text:lower():gsub(what, "")
          return count
        end
        local mail = text { headers = { Subject = "x" }, body = "one\ntwo" }
        assert(mail:find("Date: %a%a%a, %d%d %a%a%a %d%d%d%d %d%d:%d%d:%d%d %+0000\r\n"), mail)
        assert(mail:find("Mime-Version: 1.0\r\n", 1, true) and mail:find("Subject: x\r\n", 1, true), mail)
        assert(mail:find("Content-Type: text/plain; charset=utf-8\r\n", 1, true), mail)
        assert(mail:find("\r\n\r\none\r\ntwo\r\n$"), mail)
        mail = text { headers = { date = "then", ["Content-Type"] = "text/html" }, body = "<b>\195\164</b>" }
        assert(mail:find("Date: then\r\n", 1, true) and times(mail, "content%-type:") == 1, mail)
        assert(mail:find("Content-Transfer-Encoding: 8bit\r\n", 1, true), mail)
        mail = text {
          headers = { ["Content-Type"] = 'multipart/alternative; boundary="mine"' },
          body = { { body = "one" }, { headers = { ["content-type"] = "text/html" }, body = "two" } },
        }
        assert(times(mail, "multipart/alternative; boundary=") == 1 and not mail:find('"mine"', 1, true), mail)
        assert(times(mail, "content%-type:") == 3 and times(mail, "date:") == 1 and times(mail, "mime%-version:") == 1, mail)
        "#,
    );
}

#[test]
fn elasticsearch_and_socket_http_ask_a_server_and_yield() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let answer = async |method: axum::http::Method, uri: axum::http::Uri, headers: HeaderMap, body: String| {
                let kind = headers.get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
                let status = if uri.path() == "/refused/_search" { 400 } else { 200 };
                let said = json!({
                    "method": method.as_str(), "uri": uri.to_string(), "body": body, "kind": kind,
                    "error": {"type": "parsing_exception", "reason": "so"},
                });
                (axum::http::StatusCode::from_u16(status).unwrap(), said.to_string())
            };
            axum::serve(listener, Router::new().fallback(answer)).await.unwrap();
        });
    });
    handle(&format!(
        r#"
        local client = require("elasticsearch").client {{ hosts = {{ {{ host = "127.0.0.1", port = {port} }} }} }}
        local data, err = client:search {{ index = "logs-*", size = 5, body = {{ query = {{ match_all = {{}} }} }} }}
        assert(not err and data.method == "POST" and data.uri == "/logs-*/_search?size=5", err or data.uri)
        assert(data.body == '{{"query":{{"match_all":{{}}}}}}' and data.kind == "application/json")
        data = assert(client:count {{ index = "a" }})
        assert(data.uri == "/a/_count")
        data = assert(client:index {{ index = "a", id = "x/y", body = {{ b = 1 }} }})
        assert(data.method == "PUT" and data.uri == "/a/_doc/x%2Fy")
        data = assert(client:msearch {{ body = {{ {{ index = "a" }}, {{ size = 0 }} }} }})
        assert(data.uri == "/_msearch" and data.body == '{{"index":"a"}}\n{{"size":0}}\n' and data.kind == "application/x-ndjson")
        data, err = client:search {{ index = "refused", body = {{}} }}
        assert(data == nil and err == "status 400: parsing_exception: so", err)

        local http, ltn12 = require "socket.http", require "ltn12"
        local body, status = http.request("http://127.0.0.1:{port}/one")
        assert(status == 200 and body:find('"GET"', 1, true), body)
        local parts = {{}}
        local ok, code, headers = http.request {{
            url = "http://127.0.0.1:{port}/two", method = "PUT", headers = {{ ["X-A"] = "1", ["Content-Length"] = 3 }},
            source = ltn12.source.string("abc"), sink = ltn12.sink.table(parts),
        }}
        assert(ok == 1 and code == 200 and table.concat(parts):find('"body":"abc"', 1, true))
        local nothing, reason = http.request("http://127.0.0.1:9/")
        assert(nothing == nil and reason:find("refused", 1, true), reason)
        "#
    ));
}

#[test]
fn redis_takes_commands_and_smtp_sends_a_mail() {
    let Some(redis) = crate::support::server::redis() else { return };
    let (mail, mut mails) = mail_sink();
    handle(&format!(
        r#"
        local redis = require("redis").connect("127.0.0.1", {redis})
        assert(redis:ping() and redis:set("a", "1") == true and redis:get("a") == "1" and redis:get("b") == nil)
        assert(redis:incr("n") == 1 and redis:exists("a") == true and redis:exists("b") == false)
        redis:hmset("h", {{ x = "1", y = "2" }})
        local h = redis:hgetall("h")
        assert(h.x == "1" and h.y == "2")
        assert(redis:sadd("s", "m") == 1 and redis:sismember("s", "m") and redis:smembers("s")[1] == "m")
        assert(redis:select(1) and redis:get("a") == nil)
        local ok, reason = pcall(redis.lpush, redis, "l")
        assert(not ok and reason:find("wrong number of arguments", 1, true), reason)
        ok, reason = pcall(function() return require("redis").connect("127.0.0.1", 9):ping() end)
        assert(not ok and reason:find("127.0.0.1:9", 1, true), reason)

        local smtp = require "socket.smtp"
        local source = smtp.message {{ headers = {{ to = "ann@example.com", subject = "x\r\nBcc: eve@example.com" }}, body = "one\n.two\n" }}
        assert(smtp.send {{ from = "<ta@example.com>", rcpt = {{ "<ann@example.com>" }}, source = source, server = "127.0.0.1", port = {mail} }})
        local sent, why = smtp.send {{ from = "a@example.com", rcpt = "b@example.com", source = smtp.message {{ body = "" }}, port = 9 }}
        assert(sent == nil and why:find("9", 1, true), why)
        "#
    ));
    let text = mails.blocking_recv().unwrap();
    assert!(text.contains("MAIL FROM:<ta@example.com>") && text.contains("RCPT TO:<ann@example.com>"), "{text}");
    assert!(text.contains("Subject: x Bcc: eve@example.com\r\n") && text.contains("\r\none\r\n..two\r\n"), "{text}");
}

/// Takes one mail and tells all that was said.
fn mail_sink() -> (u16, mpsc::UnboundedReceiver<String>) {
    use std::io::{BufRead, BufReader, Write};
    let (told, mails) = mpsc::unbounded_channel();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let (mut out, mut said, mut data) = (stream.try_clone().unwrap(), String::new(), false);
        out.write_all(b"220 sink\r\n").unwrap();
        for line in BufReader::new(stream).split(b'\n') {
            let line = String::from_utf8(line.unwrap()).unwrap() + "\n";
            said.push_str(&line);
            let answer = match line.trim_end() {
                "." => {
                    data = false;
                    let _ = told.send(said.clone());
                    "250 taken\r\n"
                }
                _ if data => continue,
                "DATA" => {
                    data = true;
                    "354 go on\r\n"
                }
                _ => "250 well\r\n",
            };
            out.write_all(answer.as_bytes()).unwrap();
        }
    });
    (port, mails)
}
