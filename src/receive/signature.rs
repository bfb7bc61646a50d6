//! The signature of wforce's webhooks: base64 of the HMAC-SHA256 of the exact body.
//!
//! Owns the comparison, in constant time and over every secret, so that its duration tells nobody which one nearly fitted. No time is
//! signed, so a signature alone does not stop a replay; the report's id does.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::settings::Secret;

/// Whether `signature` fits the body with one of the secrets.
pub(super) fn fits(secrets: &[Secret], body: &[u8], signature: &[u8]) -> bool {
    let Ok(given) = STANDARD.decode(signature) else { return false };
    let mut fits = false;
    for secret in secrets {
        // A key of any length is taken.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()) else { continue };
        mac.update(body);
        fits |= mac.verify_slice(&given).is_ok();
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_4231_case_2_fits_and_its_neighbours_do_not() {
        let secrets = [Secret::from("old".to_owned()), Secret::from("Jefe".to_owned())];
        let body = b"what do ya want for nothing?";
        let signature = "W9zHQ/NHMepqxu46HqKQpW6wT5VVkUJ4lsPclEvz67c=";
        let hex = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let mut mac = Hmac::<Sha256>::new_from_slice(b"Jefe").unwrap();
        mac.update(body);
        let made = mac.finalize().into_bytes();
        assert_eq!(made.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), hex);
        let real = STANDARD.encode(made);
        assert!(fits(&secrets, body, real.as_bytes()));
        assert!(!fits(&secrets, b"what do ya want for nothing!", real.as_bytes()));
        assert!(!fits(&secrets[..1], body, real.as_bytes()));
        assert!(!fits(&secrets, body, signature.trim_end_matches('=').as_bytes()), "not base64");
        assert!(!fits(&secrets, body, b""));
    }
}
