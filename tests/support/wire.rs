//! Requests byte for byte as a client would write them, and the answers as they came: no client library repairs anything in between.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// How long an answer may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// An answer after which the connection was closed.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// What was read until the end; `None` where the connection was closed without a word.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Some(Self { status: status.unwrap(), head: head.to_owned(), body: body.to_owned() })
    }

    /// The value of a header; names are lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The body, which must be JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }
}

/// A request that asks for the connection to be closed after it. `headers` are whole lines, each with its CRLF.
pub(crate) fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: {length}\r\n");
    [head.as_bytes(), headers.as_bytes(), b"\r\n", body].concat()
}

/// Sends these bytes and reads until the server closes the connection.
pub(crate) fn exchange(address: &str, bytes: &[u8]) -> Option<Answer> {
    talk(TcpStream::connect(address).unwrap(), bytes)
}

/// The same on a connection that is there.
pub(crate) fn talk(mut stream: TcpStream, bytes: &[u8]) -> Option<Answer> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // A server that has seen enough may close while the rest is still being sent; what it said is read all the same.
    let _ = stream.write_all(bytes);
    listen(stream)
}

/// Reads until the server closes the connection.
pub(crate) fn listen(mut stream: TcpStream) -> Option<Answer> {
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert!(error.kind() == std::io::ErrorKind::ConnectionReset, "neither an answer nor an end: {error}");
    }
    Answer::parse(&String::from_utf8(answer).unwrap())
}

/// `GET path`.
pub(crate) fn get(address: &str, path: &str, headers: &str) -> Answer {
    exchange(address, &request("GET", path, headers, b"")).unwrap()
}

/// `POST path`.
pub(crate) fn post(address: &str, path: &str, headers: &str, body: impl AsRef<[u8]>) -> Answer {
    exchange(address, &request("POST", path, headers, body.as_ref())).unwrap()
}

/// The header line of Basic authentication.
pub(crate) fn basic(credentials: &str) -> String {
    use base64::Engine;
    format!("Authorization: Basic {}\r\n", base64::engine::general_purpose::STANDARD.encode(credentials))
}
