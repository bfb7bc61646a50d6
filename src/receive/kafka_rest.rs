//! The Kafka REST proxy's v2 form, which wforce's webhooks speak with `kafka=true`: POST `/topics/NAME`.
//!
//! Owns its envelope. The topic's name is not looked at: there is one reports queue. Each record is answered for itself, as the proxy
//! does; there is no partition and no offset to tell, so both count from 0.

use std::fmt;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Authenticated, MAX_REPORTS, Receiver, answer};
use crate::decode;
use crate::report::Time;

/// The path without the topic's name.
pub(super) const PATH: &str = "/topics/";

const CONTENT_TYPE: &str = "application/vnd.kafka.json.v2+json";

/// The proxy's code for a record that will not be taken however often it is sent.
const NOT_RETRIABLE: u32 = 1;

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    records: Records<'a>,
}

/// As many records as are looked at: each costs far more here than the two bytes that it may have.
struct Records<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Records<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Kept;

        impl<'de> Visitor<'de> for Kept {
            type Value = Vec<&'de RawValue>;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
                let mut kept = Vec::new();
                while let Some(record) = all.next_element()? {
                    if kept.len() <= MAX_REPORTS {
                        kept.push(record);
                    }
                }
                Ok(kept)
            }
        }

        from.deserialize_seq(Kept).map(Self)
    }
}

#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    value: &'a RawValue,
}

pub(super) fn error(status: StatusCode, text: &str) -> Response {
    answer::json(status, &json!({ "error_code": status.as_u16(), "message": text }))
}

pub(super) async fn records(
    State(receiver): State<Arc<Receiver>>,
    Extension(Authenticated(authenticated)): Extension<Authenticated>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if !authenticated {
        return receiver.unauthorized("unauthorized", "Unauthorized");
    }
    let sent = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if sent.split(';').next().unwrap_or_default().trim() != CONTENT_TYPE {
        receiver.refused("header");
        return error(StatusCode::UNSUPPORTED_MEDIA_TYPE, &format!("Content-Type: {CONTENT_TYPE} is expected"));
    }
    let most = receiver.max_reports;
    let records = match decode::object::<Envelope<'_>>(&body).map(|envelope| envelope.records.0) {
        Ok(records) if records.len() > most => {
            receiver.refused("too_large");
            return error(StatusCode::PAYLOAD_TOO_LARGE, &super::too_many(most));
        }
        Ok(records) if !records.is_empty() => records,
        refused => {
            receiver.refused("malformed");
            let reason = refused.err().map_or("`records` is empty".to_owned(), |malformed| malformed.to_string());
            let text = format!("not {{\"records\":[{{\"value\":…}}]}}: {reason}");
            return error(StatusCode::UNPROCESSABLE_ENTITY, &text);
        }
    };
    let received = Time::now();
    let (mut messages, mut answers) = (Vec::with_capacity(records.len()), Vec::<Value>::new());
    for record in records {
        let record =
            decode::object::<Record<'_>>(record.get().as_bytes()).inspect_err(|_| receiver.refused("malformed"));
        match record.and_then(|record| receiver.message(record.value.get().as_bytes(), received)) {
            Ok(message) => {
                answers.push(json!({ "partition": 0, "offset": messages.len(), "error_code": null, "error": null }));
                messages.push(message);
            }
            Err(malformed) => answers.push(json!({
                "partition": null, "offset": null, "error_code": NOT_RETRIABLE, "error": malformed.to_string(),
            })),
        }
    }
    if messages.is_empty() {
        let reason = answers.first().and_then(|first| first["error"].as_str()).unwrap_or_default();
        return error(StatusCode::UNPROCESSABLE_ENTITY, reason);
    }
    match receiver.publish(messages, "kafka_rest").await {
        Ok(()) => {
            let body = json!({ "offsets": answers, "key_schema_id": null, "value_schema_id": null });
            answer::json(StatusCode::OK, &body)
        }
        Err(refused) => *refused,
    }
}
