//! The wforce servers that policies talk to: who they are, who of them is asked, and what their answers mean.
//!
//! Owns the form of wforce's API. What goes out goes by [`Fetch`]; what may be asked is checked before, in `api/wforce.rs`.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::future::join_all;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::web::{Answer, Fetch, Request};
use crate::outbound;
use crate::settings::Secret;

/// The name that wforce takes with its password, as with any other.
const USER: &str = "wforce";
/// What a server that is asked after others gets in any case.
const LEAST: Duration = Duration::from_secs(1);
/// Bytes of what a server said that are told.
const TOLD: usize = 200;

/// Settings of `[policy.wforce]`; the meaning of each stands in `config/default.toml`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    pub servers: Vec<String>,
    pub password: Secret,
    pub password_file: PathBuf,
}

/// A command of wforce's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Allow,
    Report,
    AddEntry,
    DeleteEntry,
}

impl Command {
    fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Report => "report",
            Self::AddEntry => "addBLEntry",
            Self::DeleteEntry => "delBLEntry",
        }
    }
}

/// The servers.
#[derive(Default)]
pub struct Siblings {
    servers: Vec<Url>,
    headers: HeaderMap,
    /// How long one of those may take that are asked one after another.
    each: Duration,
    /// The one that answered last: it is asked first, so that one that is down costs its time-out once and not at each login.
    first: AtomicUsize,
}

impl fmt::Debug for Siblings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.servers.iter().map(outbound::host)).finish()
    }
}

impl Siblings {
    /// `timeout` is that of one request. The error begins with the key of the setting, and does not repeat its value.
    pub fn new(settings: &Settings, timeout: Duration) -> Result<Self, String> {
        let mut servers = Vec::with_capacity(settings.servers.len());
        for (index, text) in settings.servers.iter().enumerate() {
            servers.push(outbound::url(text).map_err(|why| format!("policy.wforce.servers[{index}]: {why}"))?);
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if !settings.password.is_empty() {
            let login = BASE64.encode(format!("{USER}:{}", settings.password.expose()));
            let value = HeaderValue::from_str(&format!("Basic {login}"));
            let mut value = value.map_err(|_| "policy.wforce.password: cannot be sent".to_owned())?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        // All together take no longer than one request may, so that many that are down do not take the whole time of the handler.
        let each = timeout / u32::try_from(servers.len().max(1)).unwrap_or(u32::MAX);
        Ok(Self { servers, headers, each: each.max(LEAST), first: AtomicUsize::new(0) })
    }

    /// There are none.
    pub(super) fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// Tells every server. All are told, whatever one says; the error names each that did not take it.
    pub(super) async fn tell(&self, web: &dyn Fetch, command: Command, body: &Value) -> Result<(), String> {
        let told = join_all(self.servers.iter().map(|server| async move {
            let answer = self.call(web, server, command, body, None).await?;
            if answer.get("status").and_then(Value::as_str) == Some("ok") {
                return Ok(());
            }
            let reason = answer.get("reason").and_then(Value::as_str).unwrap_or("it did not say \"ok\"");
            Err(format!("{}: {}", outbound::host(server), cut(reason)))
        }));
        let failed: Vec<String> = told.await.into_iter().filter_map(Result::err).collect();
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }

    /// Asks one server after another until one answers. The error names all.
    pub(super) async fn ask(&self, web: &dyn Fetch, command: Command, body: &Value) -> Result<Value, String> {
        let mut failed = Vec::new();
        let (first, count) = (self.first.load(Ordering::Relaxed), self.servers.len());
        for index in (0..count).map(|n| (first + n) % count) {
            let server = &self.servers[index];
            match self.call(web, server, command, body, Some(self.each)).await {
                Ok(answer) if answer.get("status").is_some_and(Value::is_number) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(_) => failed.push(format!("{}: its answer has no status", outbound::host(server))),
                Err(said) => failed.push(said),
            }
        }
        Err(failed.join("; "))
    }

    async fn call(
        &self,
        web: &dyn Fetch,
        server: &Url,
        command: Command,
        body: &Value,
        timeout: Option<Duration>,
    ) -> Result<Value, String> {
        let mut url = server.clone();
        url.query_pairs_mut().clear().append_pair("command", command.name());
        let host = outbound::host(server);
        let body = Bytes::from(body.to_string());
        let request = Request { method: Method::POST, url, headers: self.headers.clone(), body, timeout };
        // Its error names the host.
        let Answer { status, body, .. } = web.request(request).await.map_err(|none| none.said)?;
        let hint = if status == 401 {
            " (is policy.wforce.password the one of its webserver, and we in its ACL?)"
        } else {
            ""
        };
        match serde_json::from_slice::<Value>(&body) {
            Ok(answer) if (200..300).contains(&status) => Ok(answer),
            Ok(answer) => {
                let reason = answer.get("reason").and_then(Value::as_str).map(|reason| format!(": {}", cut(reason)));
                Err(format!("{host}: answered {status}{hint}{}", reason.unwrap_or_default()))
            }
            Err(_) if (200..300).contains(&status) => Err(format!("{host}: its answer is no JSON")),
            Err(_) => Err(format!("{host}: answered {status}{hint}")),
        }
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TOLD)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(servers: &[&str], password: &str) -> Settings {
        let servers = servers.iter().map(|text| (*text).to_owned()).collect();
        Settings { servers, password: Secret::from(password.to_owned()), ..Settings::default() }
    }

    #[test]
    fn nothing_shows_the_password_or_more_of_a_server_than_its_host() {
        let siblings =
            Siblings::new(&settings(&["http://ann:hunter2@w1.example:8084/T0K3N"], "s3cret"), LEAST).unwrap();
        assert_eq!(format!("{siblings:?}"), "[\"w1.example:8084\"]");
        assert!(!format!("{:?}", siblings.headers).contains("Basic "), "{:?}", siblings.headers);
        let error = Siblings::new(&settings(&["http://w1:8084", "hunter2"], ""), LEAST).unwrap_err();
        assert!(error.starts_with("policy.wforce.servers[1]: ") && !error.contains("hunter2"), "{error}");
    }
}
