//! What all HTTP that goes out has in common: how the client is set up, by which certificates both sides know each other, what an
//! address may be, and the words for what went wrong.
//!
//! Owns that no proxy of the environment is asked and no redirect is followed: either would hand a request, with the credentials in it,
//! to somebody whom nobody named. And that no error shows more of a URL than its host: the path and the query of many a service are its
//! password. Never sends anything.

use std::error::Error;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, ClientBuilder, Identity, Url};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

/// Who does not take a connection in this time is down.
const CONNECT: Duration = Duration::from_secs(5);
/// Servers close idle connections; one that waited longer is likely to be closed under the next request.
const IDLE: Duration = Duration::from_secs(30);

/// Bytes of a file of certificates: all authorities of the world have a quarter of that.
const MAX_FILE: u64 = 1 << 20;

/// Settings of `[outbound]`; the meaning of each stands in `config/default.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "config/default.toml is the reference, and a test holds that every key stands there")]
pub struct Settings {
    pub ca_file: PathBuf,
    pub client_cert: PathBuf,
    pub client_key: PathBuf,
    pub verify_certificates: bool,
    pub verify_hosts: bool,
}

/// How the two sides of an `https://` connection know each other.
#[derive(Debug, Clone)]
pub struct Tls {
    authorities: Vec<Certificate>,
    identity: Option<Identity>,
    verify_certificates: bool,
    verify_hosts: bool,
}

impl Default for Tls {
    /// The authorities that this machine trusts, and no certificate of our own.
    fn default() -> Self {
        Self { authorities: Vec::new(), identity: None, verify_certificates: true, verify_hosts: true }
    }
}

impl Tls {
    /// These authorities besides those that this machine trusts.
    #[cfg(feature = "amqp")]
    pub(crate) fn trusting(authorities: Vec<Certificate>) -> Self {
        Self { authorities, ..Self::default() }
    }

    /// Reads the files. The error begins with the key of the setting.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let Settings { ca_file, client_cert, client_key, verify_certificates, verify_hosts } = settings;
        let mut authorities = Vec::new();
        if !ca_file.as_os_str().is_empty() {
            let wrong = |why| format!("outbound.ca_file: {}: {why}", ca_file.display());
            let found = Certificate::from_pem_bundle(&read(ca_file).map_err(wrong)?);
            authorities = found.map_err(|error| wrong(words(error)))?;
            if authorities.is_empty() {
                return Err(wrong("holds no certificate in PEM form".to_owned()));
            }
            // A certificate in the right wrapping and broken inside shows only here, and not at the first request.
            let client = client(CONNECT).tls_certs_only(authorities.clone()).build();
            client.map_err(|error| wrong(words(error)))?;
        }
        if !verify_hosts && *verify_certificates {
            // The library leaves names out only where it is given all authorities.
            let own = rustls_native_certs::load_native_certs().certs;
            authorities.extend(own.iter().filter_map(|certificate| Certificate::from_der(certificate).ok()));
        }
        let mut identity = None;
        if !client_cert.as_os_str().is_empty() {
            let of =
                |key: &str, path: &Path| read(path).map_err(|why| format!("outbound.{key}: {}: {why}", path.display()));
            let mut pem = of("client_cert", client_cert)?;
            pem.push(b'\n');
            pem.extend(of("client_key", client_key)?);
            let wrong = |error| {
                let (cert, key) = (client_cert.display(), client_key.display());
                format!("outbound.client_cert: {cert} with {key}: {}", words(error))
            };
            let found = Identity::from_pem(&pem).map_err(wrong)?;
            // That the two belong together shows only here.
            client(CONNECT).tls_certs_only(std::iter::empty()).identity(found.clone()).build().map_err(wrong)?;
            identity = Some(found);
        }
        let (verify_certificates, verify_hosts) = (*verify_certificates, *verify_hosts);
        Ok(Self { authorities, identity, verify_certificates, verify_hosts })
    }

    /// A client for `https://` whose requests are given up after `timeout`.
    pub(crate) fn client(&self, timeout: Duration) -> ClientBuilder {
        let mut builder = client(timeout);
        builder = if !self.verify_certificates {
            builder.tls_danger_accept_invalid_certs(true)
        } else if self.verify_hosts {
            builder.tls_certs_merge(self.authorities.clone())
        } else {
            builder.tls_certs_only(self.authorities.clone()).tls_danger_accept_invalid_hostnames(true)
        };
        if let Some(identity) = &self.identity { builder.identity(identity.clone()) } else { builder }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_FILE {
        return Err(format!("is {size} bytes; certificates have at most {MAX_FILE}"));
    }
    std::fs::read(path).map_err(|error| error.to_string())
}

fn client(timeout: Duration) -> ClientBuilder {
    // The first caller in the process wins; whoever it was installed the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("trackalert/", env!("CARGO_PKG_VERSION")))
        .dns_resolver(Arc::new(Lookups(Arc::new(Semaphore::new(LOOKUPS)))))
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(timeout.min(CONNECT))
        .timeout(timeout)
        .pool_idle_timeout(IDLE)
}

/// Names that a client looks up at once.
const LOOKUPS: usize = 64;

/// Looks a client's names up by the system's resolver. Each takes one of the program's threads for blocking work for as long as the
/// resolver wants: without a bound, one that hangs would hold up the searches and queues that need them too; with one bound for all, the
/// names that a policy asks would hold up the alerts.
struct Lookups(Arc<Semaphore>);

impl Resolve for Lookups {
    fn resolve(&self, name: Name) -> Resolving {
        let turns = Arc::clone(&self.0);
        Box::pin(async move {
            let turn = turns.acquire_owned().await?;
            let found = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                (name.as_str(), 0).to_socket_addrs()
            });
            Ok(Box::new(found.await??) as Addrs)
        })
    }
}

/// A client for `http://` only. No certificates are looked for: a container may have none, and the client would not start.
pub(crate) fn plain(timeout: Duration) -> ClientBuilder {
    client(timeout).tls_certs_only(std::iter::empty())
}

/// The URL, or why it is none. The text itself is not repeated, for it may carry a password.
pub(crate) fn url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("not a URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("its scheme must be http or https".to_owned());
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("names no host".to_owned());
    }
    Ok(url)
}

/// Host and port: all of a URL that is ever shown.
pub(crate) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// What went wrong, with its causes and without the URL.
pub(crate) fn words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn wrong_url_is_refused_and_not_repeated() {
        for (text, part) in [
            ("", "not a URL"),
            ("hunter2", "not a URL"),
            ("hunter2:x", "http or https"),
            ("ftp://hunter2.example", "http or https"),
            ("http://:hunter2@/", "not a URL"),
        ] {
            let said = url(text).unwrap_err();
            assert!(said.contains(part) && !said.contains("hunter2"), "{text}: {said}");
        }
        assert_eq!(host(&url("https://ann:pw@example.com:8443/x?y").unwrap()), "example.com:8443");
        assert_eq!(host(&url("http://[::1]/").unwrap()), "[::1]");
    }

    #[test]
    fn file_of_authorities_that_is_none_is_an_error_with_its_key_and_path() {
        let folder = tempfile::tempdir().unwrap();
        let ca_file = folder.path().join("ca.pem");
        let none = PathBuf::new();
        let settings = Settings {
            ca_file: ca_file.clone(),
            client_cert: none.clone(),
            client_key: none,
            verify_certificates: true,
            verify_hosts: true,
        };
        let told = |bytes: Option<&[u8]>| {
            let _ = std::fs::remove_file(&ca_file);
            if let Some(bytes) = bytes {
                std::fs::write(&ca_file, bytes).unwrap();
            }
            let error = Tls::new(&settings).unwrap_err();
            assert!(error.starts_with("outbound.ca_file: ") && error.contains("ca.pem: "), "{error}");
            error
        };
        assert!(told(None).contains("No such file"));
        assert!(told(Some(b"no certificate")).contains("holds no certificate"));
        told(Some(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"));
        assert!(told(Some(&vec![b'x'; (MAX_FILE + 1) as usize])).contains("is 1048577 bytes"));
    }

    #[tokio::test]
    async fn names_that_are_never_answered_hold_up_those_of_their_own_client_alone() {
        let [hanging, other] = [1, 1].map(|turns| Lookups(Arc::new(Semaphore::new(turns))));
        let turn = Arc::clone(&hanging.0).acquire_owned().await.unwrap();
        let mut held_up = hanging.resolve("127.0.0.1".parse().unwrap());
        for _ in 0..100 {
            assert!(held_up.as_mut().now_or_never().is_none(), "it did not wait for its turn");
            assert_eq!(other.resolve("127.0.0.1".parse().unwrap()).await.unwrap().count(), 1);
        }
        drop(turn);
        assert_eq!(held_up.await.unwrap().count(), 1);
    }

    #[tokio::test]
    async fn words_have_the_cause_and_not_the_url() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let client = plain(Duration::from_secs(5)).build().unwrap();
        let error = client.get(format!("http://ann:pw@127.0.0.1:{port}/T0K3N?key=v4lue")).send().await.unwrap_err();
        let said = words(error);
        assert!(said.contains("refused"), "{said}");
        assert!(!said.contains("T0K3N") && !said.contains("v4lue") && !said.contains("pw@"), "{said}");
    }
}
