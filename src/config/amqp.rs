//! What `[queue.amqp]` may say, beyond the types of its settings.
//!
//! Owns which of its settings go together. Never shows an address: it may hold a password.

use std::time::Duration;

use super::merged::Merged;
use crate::queue::amqp::AUTO;

const URL: &str = "queue.amqp.url";
const PASSWORD: &str = "queue.amqp.password";
const MANAGEMENT: &str = "queue.amqp.management_url";
const SILENCE: &str = "queue.amqp.member_timeout";
/// With the name of the one that goes with it.
const PAIR: [(&str, &str); 2] =
    [("queue.amqp.client_cert", "queue.amqp.client_key"), ("queue.amqp.client_key", "queue.amqp.client_cert")];
const OF_TLS: [&str; 3] = ["queue.amqp.ca_file", "queue.amqp.client_cert", "queue.amqp.client_key"];

/// Only where the queues are there.
pub(super) fn all(merged: &mut Merged) {
    if merged.text("queue.kind").is_none_or(|kind| kind != "amqp") {
        return;
    }
    if !cfg!(feature = "amqp") {
        let text =
            "\"amqp\" was left out of this program; build it with the cargo feature \"amqp\", or use \"embedded\"";
        return merged.refuse("queue.kind", text);
    }
    let encrypted = address(merged);
    for (key, other) in PAIR {
        if is_set(merged, key) && !is_set(merged, other) {
            merged.complain(key, format!("needs {other} as well"));
        }
    }
    for key in OF_TLS {
        if is_set(merged, key) && encrypted == Some(false) {
            merged.complain(key, "is of use with TLS only; write amqps:// in queue.amqp.url");
        }
    }
    if merged.duration(SILENCE).is_some_and(|silence| silence < Duration::from_secs(1)) {
        merged.refuse(SILENCE, "is too short: 1s at least");
    }
    management(merged);
}

/// Whether it is one with TLS. `None`: it is none.
fn address(merged: &mut Merged) -> Option<bool> {
    let url = merged.text(URL).unwrap_or_default();
    if url.is_empty() {
        merged.complain(URL, "is not set; queue.kind = \"amqp\" needs the address of the broker");
        return None;
    }
    let parsed = url.parse::<reqwest::Url>().ok();
    let Some(url) = parsed.filter(|url| matches!(url.scheme(), "amqp" | "amqps") && url.has_host()) else {
        merged.complain(URL, "is no address such as \"amqp://user@host:5672/vhost\" or \"amqps://…\"");
        return None;
    };
    if url.host_str().is_some_and(|host| host.starts_with('[')) {
        // Without a word it would connect to localhost.
        merged.complain(
            URL,
            "has an IPv6 address, which the client library does not take; write a name that stands for it",
        );
    }
    if url.password().is_some() && is_set(merged, PASSWORD) {
        merged.complain(PASSWORD, "queue.amqp.url has a password too; set one of the two");
    }
    Some(url.scheme() == "amqps")
}

fn management(merged: &mut Merged) {
    let url = merged.text(MANAGEMENT).unwrap_or_default();
    if url.is_empty() || url == AUTO {
        return;
    }
    let parsed = url.parse::<reqwest::Url>().ok();
    let fits = parsed.is_some_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
    });
    if !fits {
        merged.complain(
            MANAGEMENT,
            "is no address such as \"http://host:15672\", nor \"auto\"; user and password are those of queue.amqp.url",
        );
    }
}

fn is_set(merged: &Merged, key: &str) -> bool {
    merged.text(key).is_some_and(|text| !text.is_empty())
}
