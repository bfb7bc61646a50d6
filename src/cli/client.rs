//! HTTP to the running process, found from its configuration.
//!
//! Owns addresses, passwords and time-outs of the operators' commands, and what is said when nobody answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Failure, pin};
use crate::config::Config;
use crate::http::Listen;
use crate::settings::Secret;

const CONNECT: Duration = Duration::from_secs(5);
/// A search may take `history.search_timeout`, a batch `receive.publish_timeout`; this is beyond both.
const WHOLE: Duration = Duration::from_secs(120);

/// See the module.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    /// `http://127.0.0.1:8085`
    base: String,
    password: Secret,
    admin_password: Secret,
    data_dir: PathBuf,
    /// ` -C FILE`, for messages.
    again: String,
}

/// An answer, whatever it says.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// What a 503 asks to wait.
    pub(super) retry_after: Option<Duration>,
    body: bytes::Bytes,
}

impl Client {
    /// The client of the process with this configuration, at `address` where that is known better.
    pub(super) fn of(config: &Config, address: Option<SocketAddr>, again: &str) -> Result<Self, Failure> {
        let text = |key: &str| config.explain().iter().find(|one| one.key == key).map(|one| &one.value);
        let listen = match address {
            Some(address) => Listen { address, tls: false },
            None => reachable(config.http.listeners().next())?,
        };
        let cert = text("http.tls_cert").and_then(Value::as_str).filter(|_| listen.tls);
        let mut builder = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT).timeout(WHOLE);
        if let Some(cert) = cert {
            builder = builder.tls_backend_preconfigured(pin::client(Path::new(cert)).map_err(Failure::usage)?);
        }
        let http = builder.build().map_err(|error| Failure::failed(error.to_string()))?;
        Ok(Self {
            http,
            base: format!("{}://{}", listen.scheme(), listen.address),
            password: config.http.password.clone(),
            admin_password: config.http.admin_password.clone(),
            data_dir: config.data_dir.clone(),
            again: again.to_owned(),
        })
    }

    /// One of the operators' routes, answered by a JSON of a known form.
    pub(super) async fn admin<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<String>,
    ) -> Result<T, Failure> {
        let mut request = self.http.request(method, self.url(path, query));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let answer = self.ask(request, &self.admin_password).await?;
        if answer.status.is_success() {
            return answer.json();
        }
        Err(Failure::failed(match answer.status {
            StatusCode::UNAUTHORIZED if self.admin_password.is_empty() => format!(
                "{} asks for a password; set http.admin_password in the configuration that this command reads, as it is in the one that runs",
                self.base
            ),
            StatusCode::UNAUTHORIZED => {
                format!("{} does not take this http.admin_password: {}", self.base, answer.reason())
            }
            status => format!("{} answers {}: {}", self.base, status.as_u16(), answer.reason()),
        }))
    }

    /// A batch of reports, one JSON a line. An answer of any status is `Ok`.
    pub(super) async fn reports(&self, lines: Vec<u8>) -> Result<Answer, Failure> {
        let request =
            self.http.post(self.url("/v1/reports", &[])).header("content-type", "application/x-ndjson").body(lines);
        self.ask(request, &self.password).await
    }

    fn url(&self, path: &str, query: &[(&str, String)]) -> String {
        let Ok(mut url) = reqwest::Url::parse(&format!("{}{path}", self.base)) else {
            return format!("{}{path}", self.base);
        };
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url.to_string()
    }

    async fn ask(&self, request: RequestBuilder, password: &Secret) -> Result<Answer, Failure> {
        let request = match password.is_empty() {
            true => request,
            false => request.basic_auth("trackalert", Some(password.expose())),
        };
        let response = request.send().await.map_err(|error| self.silent(&error))?;
        let status = response.status();
        let retry_after =
            response.headers().get("retry-after").and_then(|text| text.to_str().ok()?.trim().parse().ok());
        let body = response.bytes().await.map_err(|error| self.silent(&error))?;
        Ok(Answer { status, retry_after: retry_after.map(Duration::from_secs), body })
    }

    fn silent(&self, error: &reqwest::Error) -> Failure {
        let cause = innermost(error);
        Failure::failed(if error.is_connect() && cause.to_lowercase().contains("refused") {
            format!(
                "no trackalert answers at {} (http.listen); start it with `trackalert run{}`, or add --offline to open the data folder {}",
                self.base,
                self.again,
                self.data_dir.display()
            )
        } else if error.is_timeout() {
            format!("{} (http.listen) does not answer in time", self.base)
        } else {
            format!("{} (http.listen): {cause}", self.base)
        })
    }
}

impl Answer {
    /// The body in a known form.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Failure::failed(format!("the answer is not what this version expects: {error}")))
    }

    /// What a refusal says.
    pub(super) fn reason(&self) -> String {
        let said = serde_json::from_slice::<Value>(&self.body).ok();
        let reason = said.as_ref().and_then(|said| said.get("reason").or_else(|| said.get("error"))?.as_str());
        match reason {
            Some(reason) => super::output::clean(reason),
            None => super::output::clean(&String::from_utf8_lossy(&self.body[..self.body.len().min(300)])),
        }
    }
}

/// The first address of `http.listen` as a client reaches it.
fn reachable(first: Option<Listen>) -> Result<Listen, Failure> {
    let mut listen = first.ok_or_else(|| Failure::usage("http.listen: no address with port"))?;
    if listen.address.port() == 0 {
        return Err(Failure::usage(
            "http.listen has port 0, so the running process took a free one; see its log, and add --set http.listen=ADDRESS:PORT",
        ));
    }
    listen.address.set_ip(as_reached(listen.address.ip()));
    Ok(listen)
}

/// Where a client on this machine reaches what listens on this address.
pub(super) fn as_reached(listen: IpAddr) -> IpAddr {
    match listen {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_means_all_is_reached_on_loopback() {
        let at = |text: &str| reachable(Listen::parse(text, false)).map(|listen| listen.address.to_string());
        assert_eq!(at("0.0.0.0:80").unwrap(), "127.0.0.1:80");
        assert_eq!(at("[::]:80").unwrap(), "[::1]:80");
        assert_eq!(at("192.0.2.1:80").unwrap(), "192.0.2.1:80");
        assert!(matches!(at("127.0.0.1:0"), Err(Failure::Usage(text)) if text.contains("port 0")));
    }
}
