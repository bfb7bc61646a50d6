//! What a value may be, beyond its type, and which values must fit together.
//!
//! The checks go by key, on the values before they are turned into structs, so that a mistake can be told with its place.

use std::time::Duration;

use serde_json::Value;

use super::merged::Merged;
use super::unknown::{CHANNEL_KEYS, nearest};
use super::{amqp, hooks, kafka};
use crate::http::Listen;
use crate::receive::MAX_REPORTS;

/// Key, kinds of this program, kinds to come.
const KINDS: [(&str, &[&str], &[&str]); 4] = [
    ("queue.kind", &["embedded", "kafka", "amqp"], &[]),
    ("history.kind", &["embedded", "none"], &["elasticsearch"]),
    ("state.kind", &["embedded"], &["redis", "elasticsearch"]),
    ("schedule.election.kind", &["none"], &["kubernetes", "kafka", "amqp"]),
];

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
const LOG_FORMATS: [&str; 3] = ["auto", "text", "json"];

const REKEY: &str = "receive.rekey_from";
const WFORCE: &str = "policy.wforce.servers";
/// A policy's call goes to each of them.
const MOST_WFORCE: usize = 64;

/// Key, least, most, and why.
const WHOLE: [(&str, i64, i64, &str); 31] = [
    ("http.max_connections", 1, 1_000_000, ""),
    ("http.max_headers", 8, 10_000, ""),
    ("receive.max_attrs", 1, 100_000, ""),
    ("receive.spool_logins", 1, 10_000_000, ""),
    ("receive.max_reports", 1, MAX_REPORTS as i64, ""),
    ("queue.embedded.max_batch", 1, 1_000_000, ""),
    ("queue.embedded.segment_messages", 100, 100_000_000, ""),
    ("queue.kafka.partitions", 1, 100_000, ""),
    ("queue.kafka.replication", 1, 1000, ""),
    ("queue.amqp.ack_batch", 1, 10_000, ""),
    ("queue.amqp.shards", 0, 1000, ""),
    ("detect.workers", 0, 1024, ""),
    ("detect.in_flight", 1, 1_000_000, ""),
    ("detect.unsettled", 1, 10_000_000, ""),
    ("detect.login_backlog", 0, 1_000_000, ""),
    ("detect.device_cache", 1, 10_000_000, ""),
    ("detect.errands", 1, 100_000, ""),
    ("policy.in_flight", 1, 4000, "one LuaJIT VM holds about 8,000 references"),
    ("policy.max_attempts", 1, 1000, ""),
    ("policy.http.in_flight", 1, 100_000, "each has a connection"),
    ("policy.breaker_calls", 1, 1_000_000, ""),
    ("history.retention_days", 1, 36_500, ""),
    ("history.commit_at", 1, 10_000_000, ""),
    ("history.max_hits", 1, 1_000_000, ""),
    ("history.max_buckets", 1, 10_000_000, ""),
    ("state.max_members", 1, 1_000_000, ""),
    ("state.sweep_entries", 1, 100_000_000, ""),
    ("notify.in_flight", 1, 100_000, ""),
    ("notify.channel_in_flight", 1, 10_000, ""),
    ("notify.custom_in_flight", 0, 10_000, ""),
    ("notify.max_attempts", 1, 1000, ""),
];

/// Durations that may be zero; any other one at zero would spin or never wait.
const MAY_BE_ZERO: [&str; 3] = ["receive.max_skew", "queue.embedded.linger", "notify.suppress"];

/// Several times this, from now on, is still a time that the system's clocks can tell.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);

/// Key and least size in bytes, and why.
const SIZES: [(&str, u64, &str); 15] = [
    ("http.max_body", 1 << 10, ""),
    ("http.max_bodies", 1 << 10, ""),
    ("policy.max_alert", 1 << 10, ""),
    ("http.max_head", 8 << 10, "a browser's cookies alone may have that"),
    ("receive.max_report", 256, ""),
    ("receive.max_field", 16, ""),
    ("receive.spool_max_bytes", 1 << 20, ""),
    ("queue.embedded.max_bytes", 1 << 20, ""),
    ("queue.embedded.cache", 1 << 20, ""),
    ("detect.unsettled_bytes", 64 << 10, ""),
    ("detect.device_max", 16, ""),
    ("policy.memory", 4 << 20, "an empty VM with its libraries takes most of that"),
    ("policy.http.max_answer", 1 << 10, ""),
    ("history.writer_memory", 16 << 20, "the index writer takes no less"),
    ("state.max_value", 16, ""),
];

/// Key, key that must not be smaller.
const ORDERED: [(&str, &str); 12] = [
    ("http.max_body", "http.max_bodies"),
    ("history.search_timeout", "policy.time_limit"),
    ("receive.max_field", "receive.max_report"),
    ("receive.max_report", "http.max_body"),
    ("receive.max_report", "detect.unsettled_bytes"),
    ("receive.spool_after", "receive.publish_timeout"),
    ("queue.retry_first", "queue.retry_most"),
    ("policy.retry_first", "policy.retry_most"),
    ("notify.retry_first", "notify.retry_most"),
    ("policy.cpu_limit", "policy.time_limit"),
    ("policy.stuck_after", "policy.abort_after"),
    ("detect.in_flight", "detect.unsettled"),
];

const OF_AMQP: [(&str, &str); 2] =
    [("notify.give_up_after", "queue.amqp.hold"), ("queue.amqp.hold", "queue.amqp.longest_hold")];

/// Checks everything; mistakes are noted in `merged`.
pub(super) fn all(merged: &mut Merged) {
    kinds(merged);
    amqp::all(merged);
    ranges(merged);
    order(merged);
    http(merged);
    names(merged);
    kafka::all(merged);
    channels(merged);
    hooks::all(merged);
    outbound(merged);
    wforce(merged);
    log(merged);
}

fn wforce(merged: &mut Merged) {
    let Some(list) = merged.list(WFORCE) else { return };
    if list.len() > MOST_WFORCE {
        return merged.refuse(WFORCE, format!("names {} servers; at most {MOST_WFORCE}", list.len()));
    }
    // Not repeated: somebody may have written the password into it.
    let fits = |url: reqwest::Url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
    };
    for (index, item) in list.iter().enumerate() {
        if let Some(text) = item.as_str()
            && !text.parse().is_ok_and(fits)
        {
            let text =
                "is no address such as \"http://wforce.example.net:8084\"; the password is policy.wforce.password";
            return merged.refuse(&format!("{WFORCE}[{index}]"), text);
        }
    }
}

fn log(merged: &mut Merged) {
    if let Some(format) = merged.text("log.format")
        && !LOG_FORMATS.contains(&format.as_str())
    {
        let near = nearest(&format, LOG_FORMATS.into_iter()).map(|near| format!("; did you mean \"{near}\"?"));
        let near = near.unwrap_or_else(|| "; use \"auto\", \"text\" or \"json\"".to_owned());
        merged.refuse("log.format", format!("\"{format}\" is no form of the log{near}"));
    }
    let Some(level) = merged.text("log.level") else { return };
    let word = level.trim();
    // The filter takes a single word that is no level for the name of a module, and shows nothing else.
    if !word.contains(['=', ',']) && !LEVELS.contains(&word.to_lowercase().as_str()) {
        let near = nearest(&word.to_lowercase(), LEVELS.into_iter())
            .map(|near| format!("did you mean \"{near}\"?"))
            .unwrap_or_else(|| {
                format!("use {}, or a filter such as \"info,trackalert::detect=debug\"", LEVELS.join(", "))
            });
        merged.refuse("log.level", format!("\"{level}\" is no level; {near}"));
    } else if let Err(error) = tracing_subscriber::EnvFilter::try_new(word) {
        merged.refuse("log.level", format!("\"{level}\" is no level and no filter: {error}"));
    }
}

fn kinds(merged: &mut Merged) {
    for (key, known, to_come) in KINDS {
        let Some(kind) = merged.text(key) else { continue };
        if known.contains(&kind.as_str()) {
            continue;
        }
        let words = known.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ");
        if to_come.contains(&kind.as_str()) {
            merged.refuse(key, format!("\"{kind}\" is not in this program yet; use {words}"));
        } else {
            merged.refuse(key, format!("\"{kind}\" is no kind; use {words}"));
        }
    }
}

fn ranges(merged: &mut Merged) {
    for (key, least, most, why) in WHOLE {
        if let Some(value) = merged.whole(key)
            && !(least..=most).contains(&value)
        {
            let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
            merged.refuse(key, format!("{value} is out of range: {least} to {most}{why}"));
        }
    }
    for (key, least, why) in SIZES {
        if let Some(size) = merged.size(key)
            && size < least
        {
            let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
            merged.refuse(key, format!("{} is too small: at least {}{why}", bytes(size), bytes(least)));
        }
    }
    for key in merged.known.order.clone() {
        let is_duration =
            merged.known.default_of(&key).as_str().is_some_and(|text| humantime::parse_duration(text).is_ok());
        let Some(duration) = merged.duration(&key).filter(|_| is_duration) else { continue };
        if duration.is_zero() && !MAY_BE_ZERO.contains(&key.as_str()) {
            merged.refuse(&key, "must be longer than nothing");
        }
        if duration > LONGEST {
            merged.refuse(&key, "is too long: 100 years at most");
        }
    }
    if let Some(share) = merged.get("policy.breaker").as_f64()
        && !(0.0..=1.0).contains(&share)
    {
        merged.refuse("policy.breaker", format!("{share} is no share: 0 to 1 (1 turns the breaker off)"));
    }
}

fn bytes(size: u64) -> String {
    bytesize::ByteSize(size).to_string()
}

fn order(merged: &mut Merged) {
    let amqp = merged.text("queue.kind").is_some_and(|kind| kind == "amqp");
    for (low, high) in ORDERED.into_iter().chain(OF_AMQP.into_iter().filter(|_| amqp)) {
        let larger = match (merged.duration(low), merged.duration(high)) {
            (Some(a), Some(b)) => a > b,
            _ => match (merged.size(low), merged.size(high)) {
                (Some(a), Some(b)) => a > b,
                _ => false,
            },
        };
        if larger {
            let (a, b) = (show(merged.get(low)), show(merged.get(high)));
            // The one that somebody wrote is the one to correct.
            let key = if merged.source(low) == Some(&super::Source::Default) { high } else { low };
            merged.complain(key, format!("{low} ({a}) must not be larger than {high} ({b})"));
        }
    }
}

fn show(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn http(merged: &mut Merged) {
    if let Some(list) = merged.list("http.listen") {
        if list.is_empty() {
            merged.refuse("http.listen", "names no address; the operators' commands and the probes need one");
        }
        for (index, item) in list.iter().enumerate() {
            let Some(text) = item.as_str() else { continue };
            let certificate = merged.text("http.tls_cert").is_some_and(|path| !path.is_empty());
            let said = match Listen::parse(text, certificate) {
                None => format!("\"{text}\" is no address with port, such as \"127.0.0.1:8085\" or \"[::1]:8085\""),
                Some(listen) if listen.tls && !certificate => {
                    "HTTPS needs a certificate; set http.tls_cert and http.tls_key".to_owned()
                }
                Some(_) => continue,
            };
            merged.refuse(&format!("http.listen[{index}]"), said);
            break;
        }
    }
    if let Some(list) = merged.list("http.acl") {
        if list.is_empty() {
            merged.refuse(
                "http.acl",
                "locks everybody out; name the networks that may connect (\"0.0.0.0/0\" and \"::/0\" let in all)",
            );
        }
        for (index, item) in list.iter().enumerate() {
            if let Some(text) = item.as_str()
                && text.parse::<ipnet::IpNet>().is_err()
                && text.parse::<std::net::IpAddr>().is_err()
            {
                let key = format!("http.acl[{index}]");
                merged.refuse(&key, format!("\"{text}\" is no network, such as \"10.0.0.0/8\" or \"192.0.2.7/32\""));
                break;
            }
        }
    }
    let set = |key: &str| merged.text(key).is_some_and(|path| !path.is_empty());
    match (set("http.tls_cert"), set("http.tls_key")) {
        (true, false) => merged.complain("http.tls_cert", "http.tls_key is not set; HTTPS needs both"),
        (false, true) => merged.complain("http.tls_key", "http.tls_cert is not set; HTTPS needs both"),
        _ => {}
    }
}

fn outbound(merged: &mut Merged) {
    let set = |key: &str| merged.text(key).is_some_and(|path| !path.is_empty());
    match (set("outbound.client_cert"), set("outbound.client_key")) {
        (true, false) => merged.complain("outbound.client_cert", "outbound.client_key is not set; a client has both"),
        (false, true) => merged.complain("outbound.client_key", "outbound.client_cert is not set; a client has both"),
        _ => {}
    }
    for key in ["outbound.verify_certificates", "outbound.verify_hosts"] {
        if merged.get(key) == &Value::Bool(false) {
            merged.warn(key, "is off: whoever stands on the way can answer for a server, and read what is sent to it");
        }
    }
}

fn names(merged: &mut Merged) {
    let rekey = merged.text(REKEY).filter(|topic| !topic.is_empty()).map(|_| REKEY);
    for key in ["queue.reports", "queue.alerts"].into_iter().chain(rekey) {
        if let Some(name) = merged.text(key) {
            let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if name.is_empty() || name.len() > 200 || !name.chars().all(fits) {
                merged.refuse(key, format!("\"{name}\" is no name of a queue: letters, digits, . _ - (at most 200)"));
            }
        }
    }
    if merged.get("queue.reports") == merged.get("queue.alerts") {
        merged.complain("queue.alerts", "is the same as queue.reports; reports and alerts need a queue each");
    }
    // Refused above, it is not set any more.
    if merged.text(REKEY).is_none_or(|topic| topic.is_empty()) {
        return;
    }
    if merged.text("queue.kind").is_some_and(|kind| kind != "kafka") {
        merged.complain(REKEY, "moves reports from topic to topic; it needs queue.kind = \"kafka\"");
    }
    for key in ["queue.reports", "queue.alerts"] {
        if merged.get(REKEY) == merged.get(key) {
            let text = format!("is the same as {key}; name the topic whose reports are to be moved into queue.reports");
            merged.complain(REKEY, text);
        }
    }
}

fn channels(merged: &mut Merged) {
    let Some(list) = merged.list("notify.channels") else { return };
    let before = merged.errors.len();
    for (index, channel) in list.iter().enumerate() {
        let name = format!("notify.channels[{index}]");
        let Some(channel) = channel.as_object() else {
            merged.complain(&name, "is no channel; write [[notify.channels]] with kind and url below");
            continue;
        };
        for key in channel.keys().filter(|key| !CHANNEL_KEYS.contains(&key.as_str())) {
            let text = match nearest(key, CHANNEL_KEYS.into_iter()) {
                Some(near) => format!("unknown; did you mean {near}?"),
                None => format!("unknown; a channel has {}", CHANNEL_KEYS.join(", ")),
            };
            merged.complain(&format!("{name}.{key}"), text);
        }
        let text = |key: &str| channel.get(key).map_or(Some(""), Value::as_str);
        match text("kind") {
            Some("webhook") => match text("url") {
                Some("") => merged.complain(&name, "has no url"),
                Some(url) if !is_http(url) => {
                    merged.complain(
                        &format!("{name}.url"),
                        "is no address that begins with http:// or https:// and names a host",
                    );
                }
                Some(_) => {}
                None => merged.complain(&format!("{name}.url"), "must be a text; put it in quotes"),
            },
            Some("") => merged.complain(&name, "has no kind; use \"webhook\""),
            // Not said which: whatever stands in a channel may be a secret in the wrong place.
            Some(_) => merged.complain(
                &format!("{name}.kind"),
                "is no kind of channel; use \"webhook\" (the log has every alert anyhow)",
            ),
            None => merged.complain(&format!("{name}.kind"), "must be a text; put it in quotes"),
        }
        for key in ["secret", "secret_file"] {
            if text(key).is_none() {
                merged.complain(&format!("{name}.{key}"), "must be a text; put it in quotes");
            }
        }
    }
    if merged.errors.len() > before {
        merged.set("notify.channels", Value::Array(Vec::new()));
        return;
    }
    // What may be left out is filled in, because a list has no defaults of its own.
    for index in 0..list.len() {
        for key in CHANNEL_KEYS {
            let key = format!("notify.channels[{index}].{key}");
            if merged.get(&key).is_null() {
                merged.set(&key, Value::from(""));
            }
        }
    }
}

pub(super) fn is_http(url: &str) -> bool {
    url.parse::<reqwest::Url>().is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}
