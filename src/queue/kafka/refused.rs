//! Why no broker can be reached, in words that say what to change.
//!
//! The client's own error is "transport failure" whatever the cause, and the cause stands in its log between much else. Owns hearing
//! the cause. Pure, but for the last thing heard.

use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

use super::client::{FAILED_CONNECTION, ToLog};

/// What is said where nothing better is known.
const ANYHOW: &str = "check queue.kafka.brokers and the network";

/// What stands in the client's words, and what to do then. The first that fits counts.
const HINTS: [(&str, &str); 8] = [
    ("Unsupported SASL mechanism", "set sasl.mechanism in queue.kafka.properties to one that the broker has"),
    (
        "SASL authentication error",
        "check sasl.username and sasl.mechanism in queue.kafka.properties, and queue.kafka.password or the file of queue.kafka.password_file",
    ),
    (
        "certificate verify failed",
        "ssl.ca.location in queue.kafka.properties must name the authority that signed the broker's certificate, and queue.kafka.brokers the name in that certificate",
    ),
    (
        "PLAINTEXT broker listener",
        "that port has no TLS: name the one that has in queue.kafka.brokers, or set security.protocol in queue.kafka.properties to what the port speaks",
    ),
    (
        "Topic authorization failed",
        "allow this user Describe, Read and Write on that topic (and Create, where queue.kafka.create_topics is true), and Read on the groups that begin with queue.kafka.group",
    ),
    ("alert bad certificate", CLIENT_CERTIFICATE),
    ("certificate required", CLIENT_CERTIFICATE),
    (
        "in state APIVERSION_QUERY",
        "it hangs up at the first word: if that port asks for TLS, set security.protocol in queue.kafka.properties to SSL or SASL_SSL",
    ),
];
const CLIENT_CERTIFICATE: &str = "the broker asks for a certificate of yours: set ssl.certificate.location and ssl.key.location in queue.kafka.properties to one that it trusts";

fn hint(said: &str) -> Option<&'static str> {
    HINTS.iter().find(|(words, _)| said.contains(words)).map(|(_, hint)| *hint)
}

/// What the client said without what only its authors need: the thread, and how long it was in which state.
fn plain(said: &str) -> &str {
    let said = said.strip_prefix("[thrd:").and_then(|rest| rest.split_once("]: ")).map_or(said, |(_, rest)| rest);
    said.rsplit_once(" (after ").map_or(said, |(text, _)| text)
}

#[derive(Debug, Default)]
struct Heard {
    cause: String,
    hint: Option<&'static str>,
}

/// Listens to a client that tries to reach a broker; what it says is told once, by the one that waits, and not line by line.
#[derive(Debug, Clone)]
pub(super) struct Listener {
    heard: Arc<Mutex<Heard>>,
    to_log: ToLog,
}

impl Listener {
    pub(super) fn new(to_log: &ToLog) -> Self {
        Self { heard: Arc::default(), to_log: to_log.clone() }
    }

    pub(super) fn note(&self, said: &str) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let hint = hint(said);
        // What tells nothing, such as "1/1 brokers are down", comes last and must not hide what tells something.
        if heard.cause.is_empty() || (heard.hint.is_none() && hint.is_some()) {
            *heard = Heard { cause: plain(said).to_owned(), hint };
        }
    }

    /// What was heard since the last time, or else `error`; and what to do.
    pub(super) fn reason(&self, error: &str) -> (String, &'static str) {
        let heard = std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner));
        let cause = if heard.cause.is_empty() { error.to_owned() } else { heard.cause };
        (cause, heard.hint.unwrap_or(ANYHOW))
    }
}

impl ClientContext for Listener {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        if facility == FAILED_CONNECTION { self.note(text) } else { self.to_log.log(level, facility, text) }
    }

    fn error(&self, _: KafkaError, reason: &str) {
        self.note(reason);
    }
}

impl ConsumerContext for Listener {}

#[cfg(test)]
mod tests {
    use super::*;

    /// As librdkafka 2.12 says it to a broker 4.4.
    #[test]
    fn each_cause_is_told_once_with_what_to_change_whatever_comes_before_and_after_it() {
        for (said, cause, word) in [
            (
                "[thrd:sasl_ssl://b:1/bootstrap]: sasl_ssl://b:1/bootstrap: SASL authentication error: Authentication failed during authentication due to invalid credentials with SASL mechanism SCRAM-SHA-512 (after 312ms in state AUTH_REQ)",
                "sasl_ssl://b:1/bootstrap: SASL authentication error: Authentication failed during authentication due to invalid credentials with SASL mechanism SCRAM-SHA-512",
                "queue.kafka.password",
            ),
            (
                "b: SASL SCRAM-SHA-256 mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported mechanisms: PLAIN (after 1ms in state AUTH_HANDSHAKE)",
                "b: SASL SCRAM-SHA-256 mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported mechanisms: PLAIN",
                "sasl.mechanism",
            ),
            (
                "b: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate could not be verified (after 4ms in state SSL_HANDSHAKE)",
                "b: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate could not be verified",
                "ssl.ca.location",
            ),
            (
                "b: Disconnected: connection closed by peer: receive 0 after POLLIN (after 0ms in state APIVERSION_QUERY)",
                "b: Disconnected: connection closed by peer: receive 0 after POLLIN",
                "security.protocol",
            ),
            (
                "b: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)",
                "b: Connect to ipv4#127.0.0.1:1 failed: Connection refused",
                "queue.kafka.brokers",
            ),
        ] {
            let listener = Listener::new(&ToLog::of("reports"));
            listener.note(said);
            listener.note("1/1 brokers are down");
            let (reason, hint) = listener.reason("transport failure");
            assert_eq!(reason, cause);
            assert!(hint.contains(word), "{hint}");
            assert_eq!(listener.reason("transport failure"), ("transport failure".to_owned(), ANYHOW));
        }
        let listener = Listener::new(&ToLog::of("reports"));
        listener.note("b: something is amiss");
        listener.note("b: SASL authentication error: no");
        assert!(listener.reason("").0.contains("SASL"));
    }
}
