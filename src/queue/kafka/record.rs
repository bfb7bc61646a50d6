//! How a message and a dead letter stand in a record of a topic.
//!
//! Pure but for the client's own types. A record of somebody else (no key, headers that are no text) becomes a message, too.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use bytes::Bytes;
use rdkafka::message::{Header, Headers, OwnedHeaders};

use super::super::delivery::ReasonKind;
use super::super::{DeadLetter, Message, Reason};
use crate::report::Time;

/// Names of the headers of a dead letter. The original's own follow in their order, each behind [`ORIGINAL`].
const REASON: &str = "trackalert-reason";
const TEXT: &str = "trackalert-text";
const FAILED: &str = "trackalert-failed";
const TRIED: &str = "trackalert-tried";
const REJECTED: &str = "trackalert-rejected";
const COORDINATES: &str = "trackalert-coordinates";
const KEY: &str = "trackalert-key";
const PUBLISHED: &str = "trackalert-published";
const ORIGINAL: &str = "original-";

/// How far from now the time of a record may be. The broker deletes by it: a letter sent again after the topic's retention would be gone
/// before it is taken, and it refuses what is an hour ahead of its clock (`message.timestamp.after.max.ms`). Beyond, the record has the
/// time at which it is sent, and the message's stands in the header [`PUBLISHED`].
const NEAR: Duration = Duration::from_mins(10);

/// The time of a message's record in milliseconds, and its headers.
pub(super) fn stamped(message: &Message, now: Time) -> (i64, Option<OwnedHeaders>) {
    let published = message.published;
    let near = now.since(published).max(published.since(now)) <= NEAR;
    let count = message.headers.len() + usize::from(!near);
    let headers = (count > 0).then(|| {
        let all = OwnedHeaders::new_with_capacity(count);
        let all = if near { all } else { put(all, PUBLISHED, &published.micros().to_string()) };
        message.headers.iter().fold(all, |all, (name, value)| put(all, name, value))
    });
    (if near { published } else { now }.millis(), headers)
}

fn put(headers: OwnedHeaders, name: &str, value: &str) -> OwnedHeaders {
    // A NUL would end the name early; no header of ours has one.
    let name = name.replace('\0', "");
    headers.insert(Header { key: &name, value: Some(value) })
}

/// The message that a record is.
pub(super) fn message(record: &impl rdkafka::Message) -> Message {
    let mut headers = texts(record);
    let said = headers.iter().position(|(name, _)| name == PUBLISHED).and_then(|at| headers.remove(at).1.parse().ok());
    // Anybody who writes to the topic can say so, and a record's own time is never before 1970; too late a one is decode's to refuse.
    let said = said.filter(|micros: &i64| *micros >= 0);
    let given = said.or_else(|| Some(record.timestamp().to_millis()?.saturating_mul(1000)));
    Message {
        key: String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned(),
        body: Bytes::copy_from_slice(record.payload().unwrap_or_default()),
        headers,
        published: given.map_or_else(Time::now, Time::from_micros),
        untimed: given.is_none(),
    }
}

fn texts(record: &impl rdkafka::Message) -> Vec<(String, String)> {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let Some(headers) = record.headers() else { return Vec::new() };
    // The client panics at a name that is not UTF-8 (rdkafka 0.39): such a header is left out, or whoever may write to the topic could end
    // the process again and again.
    let read = |at| {
        let header =
            || headers.try_get(at).map(|header| (header.key.to_owned(), text(header.value.unwrap_or_default())));
        catch_unwind(AssertUnwindSafe(header)).ok().flatten()
    };
    (0..headers.count()).filter_map(read).collect()
}

/// The headers of a letter's record; its key is the id, its payload the original's.
pub(super) fn letter_headers(letter: &DeadLetter) -> OwnedHeaders {
    let DeadLetter { message, reason, .. } = letter;
    let (kind, tried) = (reason.kind.to_string(), reason.attempts.to_string());
    let (rejected, published) = (letter.rejected_micros.to_string(), message.published.micros().to_string());
    let own = [
        (REASON, kind),
        (TEXT, reason.text.clone()),
        (FAILED, reason.only.join(",")),
        (TRIED, tried),
        (REJECTED, rejected),
        (COORDINATES, letter.coordinates.clone()),
        (KEY, message.key.clone()),
        (PUBLISHED, published),
    ];
    let all = own.iter().fold(OwnedHeaders::new(), |all, (name, value)| put(all, name, value));
    message.headers.iter().fold(all, |all, (name, value)| put(all, &format!("{ORIGINAL}{name}"), value))
}

/// The id of a letter's record.
pub(super) fn letter_id(record: &impl rdkafka::Message) -> Option<String> {
    String::from_utf8(record.key()?.to_vec()).ok().filter(|id| !id.is_empty())
}

/// The letter that a record is. What somebody else wrote there is shown as good as it can be.
pub(super) fn read_letter(record: &impl rdkafka::Message) -> Option<DeadLetter> {
    let id = letter_id(record)?;
    let all = texts(record);
    let own = |name: &str| all.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let number = |name: &str| own(name).and_then(|text| text.parse::<i64>().ok());
    let kind = own(REASON).and_then(|kind| serde_json::from_value::<ReasonKind>(kind.into()).ok());
    let stood = format!("{}/{}/{}", record.topic(), record.partition(), record.offset());
    let mut message = message(record);
    message.key = own(KEY).unwrap_or_default();
    let rejected_micros = number(REJECTED).unwrap_or_else(|| message.published.micros());
    message.headers =
        all.iter().filter_map(|(name, value)| Some((name.strip_prefix(ORIGINAL)?.to_owned(), value.clone()))).collect();
    let failed = own(FAILED).unwrap_or_default();
    let reason = Reason {
        kind: kind.unwrap_or(ReasonKind::Internal),
        text: own(TEXT).unwrap_or_default(),
        only: failed.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        attempts: number(TRIED).and_then(|tried| u32::try_from(tried).ok()).unwrap_or(0),
    };
    let coordinates = own(COORDINATES).unwrap_or(stood);
    Some(DeadLetter { id, message, reason, rejected_micros, coordinates })
}

#[cfg(test)]
mod tests {
    use super::super::super::headers;
    use rdkafka::Timestamp;
    use rdkafka::message::OwnedMessage;

    use super::super::super::dead_letter::Rejection;
    use super::*;

    fn record(key: Option<&[u8]>, payload: &[u8], headers: Option<OwnedHeaders>) -> OwnedMessage {
        let (key, payload) = (key.map(<[u8]>::to_vec), Some(payload.to_vec()));
        OwnedMessage::new(payload, key, "reports.dead".to_owned(), Timestamp::CreateTime(5), 3, 7, headers)
    }

    #[test]
    fn letter_is_the_same_after_its_record() {
        let message = Message {
            key: "ann".to_owned(),
            body: Bytes::from_static(b"\x00\xffbody"),
            headers: vec![("a".to_owned(), "1".to_owned()), (headers::ATTEMPTS.to_owned(), "3".to_owned())],
            published: Time::from_micros(1_234_567),
            untimed: false,
        };
        let only = vec!["spray".to_owned(), "dormant".to_owned()];
        let reason = Reason { kind: ReasonKind::Policy, text: "it failed".to_owned(), only, attempts: 2 };
        let letter = DeadLetter::of(&message, &Rejection::now(reason), "reports/1/40".to_owned(), "1-28");
        let record = record(Some(letter.id.as_bytes()), &letter.message.body, Some(letter_headers(&letter)));
        assert_eq!(read_letter(&record).unwrap(), letter);
    }

    #[test]
    fn time_that_the_broker_would_delete_or_refuse_stands_in_a_header() {
        let now = Time::now();
        for (published, near) in [
            (now, true),
            (now.minus(NEAR), true),
            (now.minus(NEAR * 2), false),
            (now.plus(NEAR * 2), false),
            (Time::from_micros(0), false),
        ] {
            let mut sent = Message { published, ..Message::new("ann", "x") };
            sent.headers.push(("a".to_owned(), "1".to_owned()));
            let (millis, headers) = stamped(&sent, now);
            assert_eq!(millis, if near { published } else { now }.millis());
            let record = OwnedMessage::new(
                Some(b"x".to_vec()),
                Some(b"ann".to_vec()),
                "reports".to_owned(),
                Timestamp::CreateTime(millis),
                3,
                7,
                headers,
            );
            let came = message(&record);
            let expected = if near { Time::from_micros(published.millis() * 1000) } else { published };
            assert_eq!(came, Message { published: expected, ..sent });
        }
    }

    #[test]
    fn record_of_somebody_else_is_a_message_and_a_letter_too() {
        let message = message(&record(None, b"x", None));
        assert_eq!((message.key.as_str(), &message.body[..], message.published.micros()), ("", &b"x"[..], 5000));
        for foreign in ["-1", "-9223372036854775808", "9223372036854775808", "yesterday", ""] {
            let headers = put(OwnedHeaders::new(), PUBLISHED, foreign);
            assert_eq!(super::message(&record(None, b"x", Some(headers))).published.micros(), 5000, "{foreign}");
        }
        assert!(read_letter(&record(None, b"x", None)).is_none());
        let letter = read_letter(&record(Some(b"id"), b"x", None)).unwrap();
        assert_eq!((letter.reason.kind, letter.coordinates.as_str()), (ReasonKind::Internal, "reports.dead/3/7"));
    }
}
