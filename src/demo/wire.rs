//! A report as wforce writes it.
//!
//! Owns the form. What it says is decided before.

use std::net::IpAddr;

use serde::Serialize;

use super::dice::Dice;
use super::traffic::{Entry, Generated, Town, Via, Who};
use crate::report::Time;

/// Writes a report as wforce does, all keys in its order.
pub(super) fn write(town: &Town, entry: &Entry) -> Generated {
    let login = town.login(entry.who);
    let (person, fail_type) = match entry.who {
        Who::Account(number) => (u64::from(number), "credentials"),
        Who::Nobody(number) => (u64::from(number) << 32, "account"),
    };
    let mut dice = Dice::of(&[town.seed, 6, person, entry.t as u64]);
    let password = if entry.success { Dice::of(&[town.seed, 7, person]).next() } else { dice.next() };
    let t = Time::from_micros(entry.t);
    let (protocol, device) = entry.via.words();
    let wire = Wire {
        attrs: Attrs { server: if protocol == "http" { "webmail-1" } else { "mx-1" } },
        device_attrs: Nothing {},
        device_id: device,
        fail_type: if entry.success { "" } else { fail_type },
        login: &login,
        policy_reject: false,
        protocol,
        pwhash: &format!("{:04x}", password >> 52),
        remote: entry.remote,
        session_id: &format!("{:012x}", dice.next() >> 16),
        success: entry.success,
        t,
        tls: !matches!(entry.via, Via::Script),
        kind: "wforce_report",
    };
    // Writing strings, numbers and booleans into memory has no way to fail.
    let body = serde_json::to_vec(&wire).unwrap_or_default();
    Generated { t, login, remote: entry.remote, success: entry.success, body }
}

impl Via {
    /// Protocol and device id.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Phone => {
                ("imap", r#""name" "com.apple.email.maild" "version" "3774" "os" "iOS" "os-version" "17.5""#)
            }
            Self::Desktop => ("imap", r#""name" "Thunderbird" "version" "128.5.0""#),
            Self::Smtp => ("smtp", ""),
            Self::Webmail => ("http", "Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0"),
            Self::Script => ("smtp", ""),
        }
    }
}

#[derive(Serialize)]
struct Nothing {}

#[derive(Serialize)]
struct Attrs {
    server: &'static str,
}

/// All keys, in the order in which wforce writes them.
#[derive(Serialize)]
struct Wire<'a> {
    attrs: Attrs,
    device_attrs: Nothing,
    device_id: &'a str,
    fail_type: &'a str,
    login: &'a str,
    policy_reject: bool,
    protocol: &'a str,
    pwhash: &'a str,
    remote: IpAddr,
    session_id: &'a str,
    success: bool,
    t: Time,
    tls: bool,
    #[serde(rename = "type")]
    kind: &'static str,
}
