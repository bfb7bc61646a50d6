//! Limits of returns that a policy of the broker sets on our queues: looked for at the start by way of the management API, where the
//! settings say where that is, and otherwise told by their effect.
//!
//! AMQP itself shows no policy. Owns the two warnings; changes nothing on the broker.

use serde::Deserialize;
use serde_json::Value;

use super::broker::Broker;
use crate::outbound::{self, Tls};

/// A message that came back so often makes one think of what a limit would do to it.
pub(super) const RETURNS: i64 = 5;

/// What the management API says of a queue.
#[derive(Deserialize)]
struct Shown {
    policy: Option<String>,
    operator_policy: Option<String>,
    effective_policy_definition: Option<Value>,
}

impl Broker {
    /// Looks at all our queues. Never an error: the program works without.
    pub(super) async fn look_for_limits(&self) {
        if self.settings.management_url.is_empty() {
            return;
        }
        for name in self.queues.iter().chain([&self.dead]) {
            match self.ask(name).await {
                Ok(shown) => self.tell_limit(name, &shown),
                Err(error) => {
                    tracing::warn!(queue = name, %error, "queue.amqp.management_url does not answer: whether a policy of the broker limits returns is not known");
                    return;
                }
            }
        }
    }

    async fn ask(&self, queue: &str) -> Result<Shown, String> {
        let (user, password, vhost) = self.address.login();
        let mut url = outbound::url(&self.settings.management_url)?;
        url.path_segments_mut()
            .map_err(|()| "it is no address")?
            .pop_if_empty()
            .extend(["api", "queues", vhost, queue]);
        let timeout = self.settings.connect_timeout;
        let client = match url.scheme() {
            "https" => Tls::trusting(self.address.authorities()?).client(timeout),
            _ => outbound::plain(timeout),
        };
        let client = client.build().map_err(outbound::words)?;
        let answer = client.get(url).basic_auth(user, Some(password)).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status);
        let body = match answer {
            Ok(answer) => answer.bytes().await,
            Err(error) => Err(error),
        };
        let body = body.map_err(outbound::words)?;
        serde_json::from_slice(&body).map_err(|error| format!("its answer is not understood: {error}"))
    }

    fn tell_limit(&self, queue: &str, shown: &Shown) {
        let Some(limit) = limit_in(shown) else { return };
        let policies: Vec<_> = [&shown.policy, &shown.operator_policy].into_iter().flatten().cloned().collect();
        let policies = policies.join(", ");
        tracing::warn!(
            queue,
            limit,
            policies,
            "a policy of the broker sets delivery-limit on this queue: what is given back more often (a drain, an outage, a look at dead letters) the broker drops, or moves to the dead letters where the queue names them as its dead-letter exchange; take delivery-limit out of that policy, or let it not match this queue"
        );
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
            "a message came back many times: where a policy of the broker sets delivery-limit on this queue, the broker drops it, or moves it to the dead letters; see that none does (rabbitmqctl list_policies, list_operator_policies), or set queue.amqp.management_url and this program looks at its start"
        );
    }
}

/// The limit that is in force. -1 is none; from 4.0 on.
fn limit_in(shown: &Shown) -> Option<i64> {
    let limit = shown.effective_policy_definition.as_ref()?.get("delivery-limit")?.as_i64()?;
    (limit >= 0).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_found_where_one_is_in_force() {
        let limit = |json: &str| limit_in(&serde_json::from_str::<Shown>(json).unwrap());
        assert_eq!(limit(r#"{"policy":"p","effective_policy_definition":{"delivery-limit":7}}"#), Some(7));
        assert_eq!(limit(r#"{"effective_policy_definition":{"delivery-limit":-1}}"#), None);
        // What this release shows where there is no policy at all.
        assert_eq!(limit(r#"{"effective_policy_definition":[]}"#), None);
        assert_eq!(limit(r#"{"policy":null,"effective_policy_definition":{"max-length":7}}"#), None);
    }
}
