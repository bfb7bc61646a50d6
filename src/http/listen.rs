//! One entry of `http.listen`: an address, and whether its connections are encrypted.
//!
//! Owns the form of the entry. Binds nothing.

use std::net::SocketAddr;

/// Where to listen, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// The address with its port.
    pub address: SocketAddr,
    /// HTTPS.
    pub tls: bool,
}

impl Listen {
    /// `ADDRESS:PORT`, encrypted where there is a certificate; `http://ADDRESS:PORT` and `https://ADDRESS:PORT` say it themselves.
    pub fn parse(text: &str, certificate: bool) -> Option<Self> {
        let (rest, tls) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (rest, false),
            (_, Some(rest)) => (rest, true),
            _ => (text, certificate),
        };
        Some(Self { address: rest.parse().ok()?, tls })
    }

    /// `http` or `https`.
    pub const fn scheme(self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_goes_by_the_certificate_unless_it_says_otherwise() {
        let parse = |text, certificate| Listen::parse(text, certificate).map(|one| (one.address.to_string(), one.tls));
        let is = |address: &str, tls| Some((address.to_owned(), tls));
        assert_eq!(parse("127.0.0.1:80", false), is("127.0.0.1:80", false));
        assert_eq!(parse("[::1]:80", true), is("[::1]:80", true));
        assert_eq!(parse("http://127.0.0.1:80", true), is("127.0.0.1:80", false));
        assert_eq!(parse("https://127.0.0.1:80", false), is("127.0.0.1:80", true));
        for wrong in ["", "127.0.0.1", "localhost:80", "ftp://127.0.0.1:80", "https://127.0.0.1:80/"] {
            assert_eq!(parse(wrong, true), None, "{wrong}");
        }
    }
}
