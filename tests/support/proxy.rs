//! Connections that a test can cut, delay and reset: a client of the fault proxy's HTTP API.
//!
//! A fault lasts as long as the value that stands for it; dropped, also by a test that fails, it is undone.

use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};

use super::server::{Server, usable};
use super::wire;

/// A way to a server on loopback, through the fault proxy of this binary.
pub(crate) struct Proxy {
    /// The fault proxy's API.
    api: String,
    name: String,
    /// Where clients connect to.
    pub(crate) port: u16,
}

/// What is over when it is dropped.
pub(crate) trait Lasts {}

/// A fault that lasts.
#[must_use = "dropped, the fault is over"]
pub(crate) struct Fault<'a> {
    proxy: &'a Proxy,
    undo: Vec<(&'static str, String, Value)>,
}

impl Proxy {
    /// Lets what comes to the port `listen` go to the port `to`. `None`: the fault proxy cannot run here, which was said.
    pub(crate) fn open(listen: u16, to: u16) -> Option<Self> {
        static SERVER: OnceLock<Result<Server, String>> = OnceLock::new();
        let server = usable("fault proxy", SERVER.get_or_init(|| Server::start("toxiproxy", 1)).as_ref())?;
        let proxy = Self { api: format!("127.0.0.1:{}", server.port), name: format!("{listen}-to-{to}"), port: listen };
        let (listen, upstream) = (format!("127.0.0.1:{listen}"), format!("127.0.0.1:{to}"));
        proxy.ask("POST", "/proxies", &json!({ "name": proxy.name, "listen": listen, "upstream": upstream }));
        Some(proxy)
    }

    /// Closes every connection, and lets none come.
    pub(crate) fn cut(&self) -> Fault<'_> {
        let path = format!("/proxies/{}", self.name);
        self.ask("POST", &path, &json!({ "enabled": false }));
        Fault { proxy: self, undo: vec![("POST", path, json!({ "enabled": true }))] }
    }

    /// Lets each byte arrive so much later, in both directions.
    pub(crate) fn delay(&self, by: Duration) -> Fault<'_> {
        self.in_both_directions("latency", &json!({ "latency": by.as_millis() }))
    }

    /// Lets so many kilobytes a second through, in each direction.
    pub(crate) fn slow(&self, kilobytes: u64) -> Fault<'_> {
        self.in_both_directions("bandwidth", &json!({ "rate": kilobytes }))
    }

    /// Resets a connection at its next byte, again and again.
    pub(crate) fn reset(&self) -> Fault<'_> {
        self.in_both_directions("reset_peer", &json!({ "timeout": 0 }))
    }

    fn in_both_directions(&self, kind: &str, attributes: &Value) -> Fault<'_> {
        let mut fault = Fault { proxy: self, undo: Vec::new() };
        for stream in ["upstream", "downstream"] {
            let toxics = format!("/proxies/{}/toxics", self.name);
            let toxic = json!({ "name": stream, "type": kind, "stream": stream, "attributes": attributes });
            self.ask("POST", &toxics, &toxic);
            fault.undo.push(("DELETE", format!("{toxics}/{stream}"), Value::Null));
        }
        fault
    }

    fn ask(&self, method: &str, path: &str, body: &Value) {
        let answer = wire::exchange(&self.api, &wire::request(method, path, "", body.to_string().as_bytes())).unwrap();
        assert!((200..300).contains(&answer.status), "{method} {path}: {answer:?}");
    }
}

impl Lasts for Fault<'_> {}

impl Drop for Fault<'_> {
    fn drop(&mut self) {
        for (method, path, body) in self.undo.drain(..) {
            self.proxy.ask(method, &path, &body);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ask("DELETE", &format!("/proxies/{}", self.name), &Value::Null);
    }
}
