//! How a message and a dead letter look on the wire. Pure.
//!
//! The body is the body, a header is a header, the key and the exact time are headers of their own: other programs can read and
//! write our queues. What AMQP's table of headers cannot hold (the same name twice, an order) goes along as JSON.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::super::dead_letter::letter_id;
use super::super::delivery::ReasonKind;
use super::super::{DeadLetter, Message, Reason};
use crate::report::Time;

/// What keeps its order.
const KEY: &str = "trackalert-key";
/// Microseconds since 1970; the property `timestamp` has seconds only.
const PUBLISHED: &str = "trackalert-published";
/// All headers as JSON, where the table cannot hold them.
const HEADERS: &str = "trackalert-headers";
/// Id, reason, time and place of a dead letter as JSON.
const DEAD: &str = "trackalert-dead";
const OURS: [&str; 4] = [KEY, PUBLISHED, HEADERS, DEAD];
/// What the broker counts, and writes into the headers of what it hands out: no part of the message.
const BROKERS: [&str; 9] = [
    "x-delivery-count",
    "x-acquired-count",
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    FIRST_DEATH,
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
];
/// Why the broker itself has put a message among the dead letters.
const FIRST_DEATH: &str = "x-first-death-reason";

const PERSISTENT: u8 = 2;
/// Headers travel in one frame, and a broker's frame has 128 KiB at least by default.
pub(super) const MAX_HEADERS: usize = 100 * 1024;

/// What a dead letter has besides its message.
#[derive(Serialize, Deserialize)]
struct Burial {
    id: String,
    reason: Reason,
    rejected_micros: i64,
    coordinates: String,
}

/// A message as it is published.
#[derive(Clone)]
pub(super) struct Outgoing {
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

/// The wire form of a message. `Err`: the bytes of its headers, which are too many.
pub(super) fn outgoing(message: &Message) -> Result<Outgoing, usize> {
    let table = table(message);
    finish(message, table)
}

/// The wire form of a dead letter.
pub(super) fn buried(letter: &DeadLetter) -> Result<Outgoing, usize> {
    let burial = Burial {
        id: letter.id.clone(),
        reason: letter.reason.clone(),
        rejected_micros: letter.rejected_micros,
        coordinates: letter.coordinates.clone(),
    };
    let mut table = table(&letter.message);
    insert(&mut table, DEAD, serde_json::to_string(&burial).unwrap_or_default());
    finish(&letter.message, table)
}

fn finish(message: &Message, table: FieldTable) -> Result<Outgoing, usize> {
    let size: usize = table.inner().iter().map(|(name, value)| name.as_str().len() + 8 + length(value)).sum();
    if size > MAX_HEADERS {
        return Err(size);
    }
    let seconds = u64::try_from(message.published.micros().div_euclid(1_000_000)).unwrap_or(0);
    let properties =
        BasicProperties::default().with_delivery_mode(PERSISTENT).with_timestamp(seconds).with_headers(table);
    Ok(Outgoing { properties, body: message.body.clone() })
}

/// The first 64 bits of the key's SHA-256: every process and every release must find the same shard by it.
pub(super) fn hash(message: &Outgoing) -> u64 {
    let key = message.properties.headers().as_ref().and_then(|table| table.inner().get(KEY));
    let digest = match key {
        Some(AMQPValue::LongString(key)) => Sha256::digest(key.as_bytes()),
        _ => Sha256::digest(""),
    };
    digest.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

/// How often the broker says that a message was given back.
pub(super) fn returns(properties: &BasicProperties) -> i64 {
    properties.headers().as_ref().and_then(|table| number_of(table, "x-delivery-count")).unwrap_or(0)
}

fn length(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(text) => text.as_bytes().len(),
        _ => 8,
    }
}

fn insert(table: &mut FieldTable, name: &str, value: impl Into<Vec<u8>>) -> bool {
    let Ok(name) = ShortString::try_new(name) else { return false };
    table.insert(name, AMQPValue::LongString(value.into().into()));
    true
}

fn table(message: &Message) -> FieldTable {
    let mut table = FieldTable::default();
    let mut fits = true;
    let mut last = "";
    for (name, value) in &message.headers {
        // The table is sorted by name, and has each once.
        fits &= name.as_str() > last && !OURS.contains(&name.as_str());
        last = name;
        fits &= OURS.contains(&name.as_str()) || insert(&mut table, name, value.as_str());
    }
    if !fits {
        insert(&mut table, HEADERS, serde_json::to_string(&message.headers).unwrap_or_default());
    }
    insert(&mut table, KEY, message.key.as_str());
    if let Ok(name) = ShortString::try_new(PUBLISHED) {
        table.insert(name, AMQPValue::LongLongInt(message.published.micros()));
    }
    table
}

/// The message in what came. One of another program has what it has: no key, its own headers, its time in seconds or none.
pub(super) fn message(properties: &BasicProperties, body: Bytes) -> Message {
    let empty = FieldTable::default();
    let table = properties.headers().as_ref().unwrap_or(&empty);
    let headers = text_of(table, HEADERS).and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_else(|| {
        let others = table
            .inner()
            .iter()
            .filter(|(name, _)| !OURS.contains(&name.as_str()) && !BROKERS.contains(&name.as_str()));
        others.filter_map(|(name, value)| Some((name.as_str().to_lowercase(), text(value)?))).collect()
    });
    let own = number_of(table, PUBLISHED);
    let millis = || number_of(table, "timestamp_in_ms").and_then(|millis| millis.checked_mul(1000));
    let seconds = || i64::try_from((*properties.timestamp())?).ok()?.checked_mul(1_000_000);
    let given = own.or_else(millis).or_else(seconds);
    let published = given.map_or_else(Time::now, Time::from_micros);
    Message { key: text_of(table, KEY).unwrap_or_default(), body, headers, published, untimed: given.is_none() }
}

/// The dead letter in what came from the dead-letter queue. `false`: somebody else put it there, and it gets an id made of its content,
/// which is not its alone.
pub(super) fn letter(queue: &str, properties: &BasicProperties, body: Bytes) -> (DeadLetter, bool) {
    let message = message(properties, body);
    let table = properties.headers().as_ref();
    let burial = table.and_then(|table| text_of(table, DEAD)).and_then(|json| serde_json::from_str(&json).ok());
    let ours = burial.is_some();
    let Burial { id, reason, rejected_micros, coordinates } = burial.unwrap_or_else(|| {
        let hash = Sha256::new().chain_update(message.key.as_bytes()).chain_update(&message.body).finalize();
        let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let micros = message.published.micros();
        let text = match table.and_then(|table| text_of(table, FIRST_DEATH)) {
            Some(why) => format!("the broker put it here and not we: {why}; a policy of the broker limits the queue"),
            None => "it was put here by somebody else".to_owned(),
        };
        Burial {
            // The same at each look.
            id: letter_id(if message.untimed { 0 } else { micros }, &hash),
            reason: Reason { kind: ReasonKind::Internal, text, only: Vec::new(), attempts: 0 },
            rejected_micros: micros,
            coordinates: format!("{queue}/unknown"),
        }
    });
    (DeadLetter { id, message, reason, rejected_micros, coordinates }, ours)
}

fn text_of(table: &FieldTable, name: &str) -> Option<String> {
    table.inner().get(name).and_then(text)
}

fn number_of(table: &FieldTable, name: &str) -> Option<i64> {
    match table.inner().get(name)? {
        AMQPValue::LongLongInt(number) => Some(*number),
        AMQPValue::LongInt(number) => Some(i64::from(*number)),
        AMQPValue::Timestamp(number) => i64::try_from(*number).ok(),
        _ => None,
    }
}

fn text(value: &AMQPValue) -> Option<String> {
    Some(match value {
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        AMQPValue::ShortString(text) => text.to_string(),
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::ShortShortInt(value) => value.to_string(),
        AMQPValue::ShortShortUInt(value) => value.to_string(),
        AMQPValue::ShortInt(value) => value.to_string(),
        AMQPValue::ShortUInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        AMQPValue::LongUInt(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::Timestamp(value) => value.to_string(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::dead_letter::Rejection;
    use super::*;

    fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
        let name = prop_oneof!["[a-c]{1,2}", Just(KEY.to_owned()), Just(DEAD.to_owned()), Just("x".repeat(300))];
        proptest::collection::vec((name, ".{0,5}"), 0..5)
    }

    proptest! {
        #[test]
        fn message_is_the_same_after_the_wire(key in ".{0,9}", body: Vec<u8>, headers in headers(), micros in 0..i64::MAX / 2) {
            let message = Message { key, body: body.into(), headers, published: Time::from_micros(micros), untimed: false };
            let out = outgoing(&message).unwrap();
            prop_assert_eq!(super::message(&out.properties, out.body), message.clone());
            let reason = Reason { kind: ReasonKind::Policy, text: "t".into(), only: vec!["a".into()], attempts: 2 };
            let letter = DeadLetter::of(&message, &Rejection::now(reason), "reports/1/2".into(), "2");
            let out = buried(&letter).unwrap();
            prop_assert_eq!(super::letter("reports", &out.properties, out.body), (letter, true));
        }
    }

    #[test]
    fn message_of_another_program_is_read_as_far_as_it_goes() {
        let mut table = FieldTable::default();
        table.insert("X-Origin".into(), AMQPValue::LongInt(7));
        table.insert("x-delivery-count".into(), AMQPValue::LongLongInt(3));
        table.insert("nested".into(), AMQPValue::FieldTable(FieldTable::default()));
        let properties = BasicProperties::default().with_headers(table).with_timestamp(1_700_000_000);
        let read = message(&properties, Bytes::from_static(b"b"));
        assert_eq!(read.headers, [("x-origin".to_owned(), "7".to_owned())]);
        assert_eq!((read.key.as_str(), read.published.micros()), ("", 1_700_000_000_000_000));
        let letter_of = |properties: &BasicProperties| letter("reports", properties, Bytes::from_static(b"b")).0;
        assert_eq!(letter_of(&properties).id, letter_of(&properties).id, "its id changes");
        let untimed = || letter_of(&BasicProperties::default());
        let (first, began) = (untimed(), Time::now());
        while Time::now() == began {}
        assert_eq!(first.id, untimed().id, "its id changes with the clock");
        assert!(first.message.untimed);
    }

    #[test]
    fn hash_of_a_key_never_changes() {
        assert_eq!(hash(&outgoing(&Message::new("anna", "")).unwrap()), 0x5557_9b55_7896_d0ce);
    }

    #[test]
    fn headers_over_a_frame_are_refused() {
        let mut message = Message::new("k", "b");
        message.headers = vec![("a".into(), "x".repeat(MAX_HEADERS))];
        assert!(outgoing(&message).is_err());
    }
}
