//! What all HTTP that goes out has in common: how the client is set up, what an address may be, and the words for what went wrong.
//!
//! Owns that no proxy of the environment is asked and no redirect is followed: either would hand a request, with the credentials in it,
//! to somebody whom nobody named. And that no error shows more of a URL than its host: the path and the query of many a service are its
//! password. Never sends anything.

use std::error::Error;
use std::time::Duration;

use reqwest::{ClientBuilder, Url};

/// Who does not take a connection in this time is down.
const CONNECT: Duration = Duration::from_secs(5);
/// Servers close idle connections; one that waited longer is likely to be closed under the next request.
const IDLE: Duration = Duration::from_secs(30);

/// A client whose requests are given up after `timeout`.
pub(crate) fn builder(timeout: Duration) -> ClientBuilder {
    // The first caller in the process wins; whoever it was installed the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("trackalert/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(timeout.min(CONNECT))
        .timeout(timeout)
        .pool_idle_timeout(IDLE)
}

/// The same for `http://` only. No certificates are looked for: a container may have none, and the client would not start.
pub(crate) fn plain(timeout: Duration) -> ClientBuilder {
    builder(timeout).tls_certs_only(std::iter::empty())
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
