//! Who is asking: Basic authentication by the password alone, and the operators' password.
//!
//! Owns the comparison: in constant time, over hashes, so that neither the length nor a prefix of a password shows. Any user name is
//! taken, as the old program did; a password may contain a colon.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Settings;
use crate::receive::{Authenticated, answer};
use crate::settings::Secret;
use crate::telemetry::Metrics;

type Hash = [u8; 32];

/// The hashes of the passwords that are set.
pub(super) struct Passwords {
    reports: Option<Hash>,
    operators: Option<Hash>,
    metrics: Arc<Metrics>,
}

fn hash(secret: &Secret) -> Option<Hash> {
    (!secret.is_empty()).then(|| Sha256::digest(secret.expose().as_bytes()).into())
}

impl Passwords {
    pub(super) fn new(settings: &Settings, metrics: Arc<Metrics>) -> Self {
        Self { reports: hash(&settings.password), operators: hash(&settings.admin_password), metrics }
    }

    /// Whether an operator is asking: by password, or, where none is set, from this machine.
    pub(super) fn is_operator(&self, headers: &HeaderMap, peer: SocketAddr) -> bool {
        match &self.operators {
            Some(expected) => fits(expected, headers),
            None => peer.ip().to_canonical().is_loopback(),
        }
    }
}

fn fits(expected: &Hash, headers: &HeaderMap) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some((scheme, encoded)) = given.split_once(' ') else { return false };
    let Ok(decoded) = STANDARD.decode(encoded.trim()) else { return false };
    let Some(colon) = decoded.iter().position(|byte| *byte == b':') else { return false };
    let password: Hash = Sha256::digest(&decoded[colon + 1..]).into();
    scheme.eq_ignore_ascii_case("basic") && bool::from(password.ct_eq(expected))
}

/// Says beside each request whether it came with the right password.
pub(super) async fn authenticate(
    State(passwords): State<Arc<Passwords>>,
    mut request: Request,
    next: Next,
) -> Response {
    let right = passwords.reports.as_ref().is_none_or(|expected| fits(expected, request.headers()));
    request.extensions_mut().insert(Authenticated(right));
    next.run(request).await
}

/// Lets operators pass only.
pub(super) async fn operators_only(
    State(passwords): State<Arc<Passwords>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if passwords.is_operator(request.headers(), peer) {
        return next.run(request).await;
    }
    passwords.metrics.refused.with_label_values(&["unauthorized"]).inc();
    answer::unauthorized(match passwords.operators {
        Some(_) => "the password of the operators' routes (http.admin_password) is missing or wrong",
        None => "without http.admin_password the operators' routes answer on loopback only",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[test]
    fn any_user_name_and_a_password_with_a_colon_are_taken() {
        let expected = hash(&Secret::from("a:b:c".to_owned())).unwrap();
        let basic = |text: &str| headers(&format!("Basic {}", STANDARD.encode(text)));
        assert!(fits(&expected, &basic("anybody:a:b:c")));
        assert!(fits(&expected, &basic(":a:b:c")));
        assert!(!fits(&expected, &basic("a:b:c")), "the part before the first colon is the user name");
        assert!(!fits(&expected, &basic("anybody:a:b")));
        assert!(!fits(&expected, &headers("Basic !!!")));
        assert!(!fits(&expected, &headers("Bearer YTpiOmM=")));
        assert!(!fits(&expected, &HeaderMap::new()));
    }

    #[test]
    fn without_an_operators_password_only_this_machine_is_an_operator() {
        let passwords = Passwords { reports: None, operators: None, metrics: Arc::default() };
        let from = |address: &str| passwords.is_operator(&HeaderMap::new(), address.parse().unwrap());
        assert!(from("127.0.0.1:1") && from("[::1]:1") && from("[::ffff:127.0.0.1]:1"));
        assert!(!from("192.0.2.1:1"));
    }
}
