//! How a message and a dead letter look on disk. Pure.
//!
//! A record is: version (1), published (8), length of the key (4), number of headers (4), the key, for each header two lengths (4, 4)
//! and two texts, and the body to the end. Numbers are little-endian. The body is not copied when a record is read.

use bytes::{Buf, Bytes};

use super::super::{DeadLetter, Message, Reason};
use crate::report::Time;

const VERSION: u8 = 1;
/// Length of the fixed part.
const HEAD: usize = 1 + 8 + 4 + 4;

/// The bytes of a message. `None`: a text of it is longer than 4 GiB.
pub(super) fn encode(message: &Message) -> Option<Vec<u8>> {
    let headers: usize = message.headers.iter().map(|(name, value)| 8 + name.len() + value.len()).sum();
    let mut record = Vec::with_capacity(HEAD + message.key.len() + headers + message.body.len());
    record.push(VERSION);
    record.extend_from_slice(&message.published.micros().to_le_bytes());
    record.extend_from_slice(&u32::try_from(message.key.len()).ok()?.to_le_bytes());
    record.extend_from_slice(&u32::try_from(message.headers.len()).ok()?.to_le_bytes());
    record.extend_from_slice(message.key.as_bytes());
    for (name, value) in &message.headers {
        record.extend_from_slice(&u32::try_from(name.len()).ok()?.to_le_bytes());
        record.extend_from_slice(&u32::try_from(value.len()).ok()?.to_le_bytes());
        record.extend_from_slice(name.as_bytes());
        record.extend_from_slice(value.as_bytes());
    }
    record.extend_from_slice(&message.body);
    Some(record)
}

/// The message in a record. `None`: it is no record.
pub(super) fn decode(mut record: Bytes) -> Option<Message> {
    if record.len() < HEAD || record.get_u8() != VERSION {
        return None;
    }
    let published = Time::from_micros(record.get_i64_le());
    let key = record.get_u32_le() as usize;
    let headers = record.get_u32_le() as usize;
    let key = text(&mut record, key)?;
    // No more room than the record has: the number may be rubbish.
    let mut pairs = Vec::with_capacity(headers.min(record.len() / 8));
    for _ in 0..headers {
        let name = record.try_get_u32_le().ok()? as usize;
        let value = record.try_get_u32_le().ok()? as usize;
        pairs.push((text(&mut record, name)?, text(&mut record, value)?));
    }
    Some(Message { key, body: record, headers: pairs, published, untimed: false })
}

fn text(record: &mut Bytes, length: usize) -> Option<String> {
    let text = std::str::from_utf8(record.get(..length)?).ok()?.to_owned();
    record.advance(length);
    Some(text)
}

/// The bytes of a dead letter without its id: time of rejection, lengths of the coordinates and of the reason as JSON, these two, and
/// the record of the message.
pub(super) fn encode_letter(letter: &DeadLetter) -> Option<Vec<u8>> {
    let reason = serde_json::to_vec(&letter.reason).ok()?;
    let message = encode(&letter.message)?;
    let mut bytes = Vec::with_capacity(16 + letter.coordinates.len() + reason.len() + message.len());
    bytes.extend_from_slice(&letter.rejected_micros.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(letter.coordinates.len()).ok()?.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(reason.len()).ok()?.to_le_bytes());
    bytes.extend_from_slice(letter.coordinates.as_bytes());
    bytes.extend_from_slice(&reason);
    bytes.extend_from_slice(&message);
    Some(bytes)
}

/// The dead letter stored under `id`. `None`: it is none.
pub(super) fn decode_letter(id: String, mut bytes: Bytes) -> Option<DeadLetter> {
    if bytes.len() < 16 {
        return None;
    }
    let rejected_micros = bytes.get_i64_le();
    let coordinates = bytes.get_u32_le() as usize;
    let reason = bytes.get_u32_le() as usize;
    let coordinates = text(&mut bytes, coordinates)?;
    let reason: Reason = serde_json::from_str(&text(&mut bytes, reason)?).ok()?;
    Some(DeadLetter { id, message: decode(bytes)?, reason, rejected_micros, coordinates })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::delivery::ReasonKind;
    use super::*;

    fn message() -> impl Strategy<Value = Message> {
        let headers = proptest::collection::vec((".{0,9}", ".{0,30}"), 0..4);
        (".{0,20}", proptest::collection::vec(any::<u8>(), 0..200), headers, any::<i64>()).prop_map(
            |(key, body, headers, published)| Message {
                key,
                body: body.into(),
                headers,
                published: Time::from_micros(published),
                untimed: false,
            },
        )
    }

    proptest! {
        #[test]
        fn message_comes_back_as_it_was(message in message()) {
            prop_assert_eq!(decode(encode(&message).unwrap().into()).unwrap(), message);
        }

        #[test]
        fn rubbish_and_records_cut_short_are_refused_without_a_panic(
            message in message(), rubbish in proptest::collection::vec(any::<u8>(), 0..80), cut in any::<prop::sample::Index>(),
        ) {
            let record = encode(&message).unwrap();
            let head = record.len() - message.body.len();
            prop_assert!(decode(record[..cut.index(head)].to_vec().into()).is_none());
            decode(rubbish.clone().into());
            decode_letter(String::new(), rubbish.into());
        }

        #[test]
        fn letter_comes_back_as_it_was(message in message(), text in ".{0,40}", rejected in any::<i64>()) {
            let reason = Reason { kind: ReasonKind::Policy, text, only: vec!["spray".to_owned()], attempts: 3 };
            let letter = DeadLetter {
                id: "7".to_owned(), message, reason, rejected_micros: rejected, coordinates: "reports/0/7".to_owned(),
            };
            let bytes = encode_letter(&letter).unwrap();
            prop_assert_eq!(decode_letter("7".to_owned(), bytes.into()).unwrap(), letter);
        }
    }
}
