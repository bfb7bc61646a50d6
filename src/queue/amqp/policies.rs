//! What would break a promise of ours on the broker and does not show over AMQP: limits of returns, of a policy or of a queue that
//! somebody else declared, and the form of such a queue. Looked for after the start by way of the management API, where there is one; a
//! limit is otherwise told by its effect.
//!
//! Owns the warnings; changes nothing on the broker, and holds up no start.

use std::time::Duration;

use reqwest::{Client, Response};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::sleep;

use super::AUTO;
use super::broker::Broker;
use super::topology::LIMITS_RETURNS;
use crate::outbound::{self, Tls};

/// A message that came back so often makes one think of what a limit would do to it.
pub(super) const RETURNS: i64 = 5;

/// How long after the start the API is asked. It knows of a policy that fits a new queue when the queue has told of it and that was
/// collected, each of which is done every five seconds by default.
const COLLECTED: Duration = Duration::from_secs(15);
/// Bytes of what it says of a queue: a few KiB, and some for each of its consumers.
const MAX_ANSWER: usize = 16 << 20;
/// Where the management plugin listens if nobody says otherwise.
const PORT: u16 = 15672;

/// What the management API says of a queue.
#[derive(Deserialize)]
struct Described {
    #[serde(rename = "type")]
    kind: Option<String>,
    policy: Option<String>,
    operator_policy: Option<String>,
    effective_policy_definition: Option<Value>,
    arguments: Option<Value>,
}

/// What limits the returns of a queue.
#[derive(Debug, PartialEq, Eq)]
enum Limit {
    Policy(i64),
    /// The queue was declared with it.
    Declared(i64),
    /// Nothing was said, and the broker has one of its own.
    Default,
}

impl Broker {
    /// Looks at all our queues. Never an error: the program works without.
    pub(super) async fn look_at_queues(&self) {
        sleep(COLLECTED).await;
        let setting = self.settings.management_url.as_str();
        let looked = match (setting, self.address.host_of_defaults()) {
            ("", _) => return self.tell_limit_by_default().await,
            (AUTO, Some(host)) => {
                let url = format!("http://{host}:{PORT}");
                self.ask_of_all(&url).await.map_err(|error| format!("{url}: {error}"))
            }
            (AUTO, None) => Err("by default only a broker without TLS on port 5672 is asked".to_owned()),
            (url, _) => self.ask_of_all(url).await,
        };
        let Err(why) = looked else { return };
        if setting == AUTO {
            tracing::info!(
                queue = self.name,
                why,
                "whether a policy of the broker limits returns is not known; set queue.amqp.management_url (the user needs the tag management), or \"\" to have nobody asked"
            );
        } else {
            tracing::warn!(
                queue = self.name,
                why,
                "queue.amqp.management_url does not say whether a policy of the broker limits returns, nor how queues were declared"
            );
        }
        self.tell_limit_by_default().await;
    }

    async fn ask_of_all(&self, url: &str) -> Result<(), String> {
        let client = self.client(url)?;
        // Unknown, it is taken for one that has no limit of its own: a policy is told in any case.
        let major = self.major().await.unwrap_or(0);
        for name in self.queues.iter().chain([&self.dead]) {
            let described = self.ask(&client, url, name).await.map_err(|error| format!("{name}: {error}"))?;
            tell_limit(name, &described, major);
            self.tell_form(name, &described);
        }
        Ok(())
    }

    /// What a queue may have that somebody else declared, where nobody can be asked.
    async fn tell_limit_by_default(&self) {
        if !self.settings.declare && self.major().await.is_ok_and(|major| major >= LIMITS_RETURNS) {
            tracing::warn!(
                queue = self.name,
                "this broker gives up a message that was given back 20 times, unless its queue was declared with x-delivery-limit = -1: see that these and {} were, or let this program look (queue.amqp.management_url)",
                self.dead
            );
        }
    }

    fn client(&self, url: &str) -> Result<Client, String> {
        let timeout = self.settings.connect_timeout;
        let client = match outbound::url(url)?.scheme() {
            "https" => Tls::trusting(self.address.authorities()?).client(timeout),
            _ => outbound::plain(timeout),
        };
        client.build().map_err(outbound::words)
    }

    async fn ask(&self, client: &Client, url: &str, queue: &str) -> Result<Described, String> {
        let (user, password, vhost) = self.address.login();
        let mut url = outbound::url(url)?;
        url.path_segments_mut()
            .map_err(|()| "it is no address")?
            .pop_if_empty()
            .extend(["api", "queues", vhost, queue]);
        let answer = client.get(url).basic_auth(user, Some(password)).send().await;
        let mut answer = answer.and_then(Response::error_for_status).map_err(outbound::words)?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(outbound::words)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(format!("its answer is longer than {MAX_ANSWER} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|error| format!("its answer is not understood: {error}"))
    }

    /// A queue that this program declared itself has its form; AMQP says of another one only that it is there.
    fn tell_form(&self, queue: &str, described: &Described) {
        if self.settings.declare {
            return;
        }
        for lacks in lacking(described, self.sharded() && queue != self.dead) {
            tracing::warn!(
                queue,
                "this queue was declared without {lacks}; let it run empty, delete it, and declare it with that (queue.amqp.declare = true does)"
            );
        }
    }

    /// A message came that was given back so often.
    pub(super) fn tell_returns(&self, queue: &str, returns: i64) {
        if returns < RETURNS {
            return;
        }
        let Some(kept_back) = self.complaints.due("returns") else { return };
        tracing::warn!(
            queue,
            returns,
            kept_back,
            "a message came back many times: where a policy of the broker sets delivery-limit on this queue, the broker drops it, or moves it to the dead letters; see that none does (rabbitmqctl list_policies, list_operator_policies), or set queue.amqp.management_url and this program looks after its start"
        );
    }
}

fn tell_limit(queue: &str, described: &Described, major: u64) {
    const LOSS: &str = "what is given back more often (a drain, an outage, a look at dead letters) the broker drops, or moves to the dead letters where the queue names them as its dead-letter exchange";
    match limit_in(described, major) {
        None => {}
        Some(Limit::Policy(limit)) => {
            let policies: Vec<_> =
                [&described.policy, &described.operator_policy].into_iter().flatten().cloned().collect();
            let policies = policies.join(", ");
            tracing::warn!(
                queue,
                limit,
                policies,
                "a policy of the broker sets delivery-limit on this queue: {LOSS}; take delivery-limit out of that policy, or let it not match this queue"
            );
        }
        Some(Limit::Declared(limit)) => tracing::warn!(
            queue,
            limit,
            "this queue was declared with x-delivery-limit: {LOSS}; let it run empty, delete it, and let this program declare it (queue.amqp.declare = true)"
        ),
        Some(Limit::Default) => tracing::warn!(
            queue,
            limit = 20,
            "this queue was declared without x-delivery-limit, and this release of the broker has a limit of its own: {LOSS}; let it run empty, delete it, and declare it with x-delivery-limit = -1 (queue.amqp.declare = true does)"
        ),
    }
}

/// Arguments without which a queue does not do what docs/guarantees.md says of it, with what is lost.
fn lacking(described: &Described, of_shards: bool) -> Vec<&'static str> {
    let mut lacks = Vec::new();
    if is_of_another_kind(described) {
        lacks.push("x-queue-type = quorum, and what it confirms is lost with the one node or the disk that has it");
    }
    let single = described.arguments.as_ref().and_then(|table| table.get("x-single-active-consumer")?.as_bool());
    if of_shards && single != Some(true) {
        lacks.push(
            "x-single-active-consumer = true, and two processes take from this shard at once, past the order of a login",
        );
    }
    lacks
}

/// Only quorum queues limit returns.
fn is_of_another_kind(described: &Described) -> bool {
    described.kind.as_ref().is_some_and(|kind| kind != "quorum")
}

/// The limit that is in force. -1 is none; from 4.0 on.
fn limit_in(described: &Described, major: u64) -> Option<Limit> {
    let number = |table: &Option<Value>, name: &str| table.as_ref()?.get(name)?.as_i64();
    let of_policy = number(&described.effective_policy_definition, "delivery-limit");
    let declared = number(&described.arguments, "x-delivery-limit");
    match (of_policy, declared) {
        (Some(limit), _) if limit >= 0 => Some(Limit::Policy(limit)),
        // Before 4.0, -1 is reached at the first return.
        (_, Some(limit)) if limit >= 0 || major < LIMITS_RETURNS => Some(Limit::Declared(limit)),
        (None, None) if major >= LIMITS_RETURNS && !is_of_another_kind(described) => Some(Limit::Default),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_found_where_one_is_in_force() {
        let limit = |json: &str, major| limit_in(&serde_json::from_str::<Described>(json).unwrap(), major);
        assert_eq!(
            limit(r#"{"policy":"p","effective_policy_definition":{"delivery-limit":7}}"#, 3),
            Some(Limit::Policy(7))
        );
        assert_eq!(limit(r#"{"effective_policy_definition":{"delivery-limit":-1}}"#, 4), None);
        // What this release shows where there is no policy at all.
        assert_eq!(limit(r#"{"effective_policy_definition":[],"arguments":{}}"#, 3), None);
        assert_eq!(limit(r#"{"policy":null,"effective_policy_definition":{"max-length":7}}"#, 3), None);
    }

    #[test]
    fn limit_of_the_queue_itself_is_found_too() {
        let limit = |arguments: &str, major| {
            let json = format!(r#"{{"effective_policy_definition":[],"arguments":{arguments}}}"#);
            limit_in(&serde_json::from_str::<Described>(&json).unwrap(), major)
        };
        assert_eq!(limit(r#"{"x-queue-type":"quorum","x-delivery-limit":-1}"#, 4), None);
        assert_eq!(limit(r#"{"x-queue-type":"quorum"}"#, 4), Some(Limit::Default));
        let classic = serde_json::from_str(r#"{"type":"classic","arguments":{}}"#).unwrap();
        assert_eq!(limit_in(&classic, 4), None, "these have none");
        assert_eq!(limit(r#"{"x-queue-type":"quorum","x-delivery-limit":-1}"#, 3), Some(Limit::Declared(-1)));
        assert_eq!(limit(r#"{"x-delivery-limit":5}"#, 3), Some(Limit::Declared(5)));
    }

    #[test]
    fn form_that_breaks_a_promise_is_told_and_no_other() {
        let lacks = |json: &str, of_shards| lacking(&serde_json::from_str::<Described>(json).unwrap(), of_shards).len();
        let single = r#"{"type":"quorum","arguments":{"x-single-active-consumer":true}}"#;
        assert_eq!((lacks(single, true), lacks(single, false)), (0, 0));
        let shared = r#"{"type":"quorum","arguments":{"x-queue-type":"quorum"}}"#;
        assert_eq!((lacks(shared, true), lacks(shared, false)), (1, 0));
        assert_eq!(lacks(r#"{"type":"classic","arguments":[]}"#, true), 2);
        // A broker that does not say it says nothing against it.
        assert_eq!(lacks("{}", false), 0);
    }
}
