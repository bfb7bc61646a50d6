//! What a dead letter is and what one can do with it, on every broker alike.
//!
//! Owns the form of a dead letter and the filter. Never decides what becomes one (that is the role that rejects).

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::delivery::{Reason, ReasonKind};
use super::{Message, QueueError, headers};
use crate::report::Time;

/// Bytes of coordinates that come with a message: whoever may write to a queue may have written them.
const MAX_COORDINATES: usize = 512;

/// Bytes of a reason's text, and of its names as JSON: whoever publishes can have both repeat a header. The end of a longer text is cut off;
/// more names are left out, and a copy is limited by what the message itself says, or not at all.
const MAX_REASON: usize = 16 * 1024;

/// A message that will not be handled as it is, with all that is needed to understand it and to send it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Sorts by the time of rejection; unique in its queue.
    pub id: String,
    /// The original, bytes and headers.
    pub message: Message,
    /// Why.
    pub reason: Reason,
    /// When, in microseconds since the epoch (wall clock).
    pub rejected_micros: i64,
    /// Where the original stood.
    pub coordinates: String,
}

/// Why and when a message was rejected. Its letter is the same however often it is written: where the place of the letters takes one and
/// says so too late, the next try puts it there again.
#[derive(Debug)]
pub(super) struct Rejection {
    pub(super) reason: Reason,
    micros: i64,
}

impl Rejection {
    pub(super) fn now(reason: Reason) -> Self {
        Self { reason, micros: Time::now().micros() }
    }
}

impl DeadLetter {
    /// The letter of a rejected message; `unique` tells it from others of the same microsecond. One that was a dead letter before goes on
    /// counting its attempts: who looks at it sees that sending it again did not help.
    pub(super) fn of(message: &Message, rejection: &Rejection, coordinates: String, unique: &str) -> Self {
        let (mut reason, micros) = (rejection.reason.clone(), rejection.micros);
        reason.text.truncate(reason.text.floor_char_boundary(MAX_REASON));
        if serde_json::to_string(&reason.only).is_ok_and(|names| names.len() > MAX_REASON) {
            reason.only.clear();
        }
        let before = message.header(headers::ATTEMPTS).and_then(|attempts| attempts.parse::<u32>().ok());
        reason.attempts = reason.attempts.saturating_add(before.unwrap_or(0));
        // Of one that was cut and sent again the whole is still where it was.
        let stood = message.header(headers::CUT).filter(|stood| stood.len() <= MAX_COORDINATES);
        let coordinates = stood.map_or(coordinates, str::to_owned);
        Self { id: letter_id(micros, unique), message: message.clone(), reason, rejected_micros: micros, coordinates }
    }

    /// Keeps so many bytes of the body, and a quarter of that of the headers, of what is too large for the place of the letters.
    #[cfg(feature = "kafka")]
    pub(super) fn cut(&mut self, keep: usize) {
        let Self { message, reason, coordinates, .. } = self;
        let (size, headers, key) = (message.body.len(), message.headers.len(), message.key.len());
        message.body.truncate(keep);
        let mut left = keep / 4;
        let mut fits = |(name, value): &(String, String)| {
            // What a broker adds for each is a few bytes.
            let length = name.len() + value.len() + 16;
            let fits = length <= left;
            left = if fits { left - length } else { 0 };
            fits
        };
        message.headers.retain(|header| header.0 != headers::CUT && fits(header));
        message.key.truncate(message.key.floor_char_boundary(keep / 4));
        // It was refused together with others.
        if (message.body.len(), message.headers.len(), message.key.len()) == (size, headers, key) {
            return;
        }
        reason.text = format!(
            "{}; the dead letters do not take all of it: {} of its {size} bytes, {} of its {headers} headers and {} of the {key} bytes of its \
             key stand here, the whole stood at {coordinates}",
            reason.text,
            message.body.len(),
            message.headers.len(),
            message.key.len(),
        );
        message.headers.push((headers::CUT.to_owned(), coordinates.clone()));
    }

    /// The copy that goes back into the queue.
    pub(super) fn into_copy(self) -> Message {
        let Self { mut message, reason, .. } = self;
        let mut set = |name: &str, value: String| {
            message.headers.retain(|(header, _)| header != name);
            // Where they are sorted they stay so: what the broker sorts itself would have to be written twice to keep another order.
            let place = message.headers.partition_point(|(header, _)| header.as_str() < name);
            message.headers.insert(place, (name.to_owned(), value));
        };
        // A letter that was limited before and now failed as a whole stays limited.
        if !reason.only.is_empty() {
            set(headers::ONLY, reason.only.join(","));
        }
        set(headers::ATTEMPTS, reason.attempts.to_string());
        message
    }
}

/// An id that sorts by the time of rejection.
pub(super) fn letter_id(micros: i64, unique: &str) -> String {
    format!("{:016x}-{unique}", u64::try_from(micros).unwrap_or(0))
}

/// Which dead letters are meant. Empty means all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// Only these ids.
    pub ids: Vec<String>,
    /// Only of this kind.
    pub kind: Option<ReasonKind>,
    /// Only where this policy or channel failed.
    pub only: Option<String>,
    /// Only those rejected at or after this time (wall clock).
    #[serde(with = "optional_micros")]
    pub since: Option<Time>,
    /// Only those rejected before this time (wall clock).
    #[serde(with = "optional_micros")]
    pub until: Option<Time>,
}

mod optional_micros {
    use super::Time;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Option<Time>, serializer: S) -> Result<S::Ok, S::Error> {
        time.map(Time::micros).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Time>, D::Error> {
        Ok(Option::<i64>::deserialize(deserializer)?.map(Time::from_micros))
    }
}

impl Filter {
    /// Whether a dead letter is meant.
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        let rejected = Time::from_micros(letter.rejected_micros);
        (self.ids.is_empty() || self.ids.contains(&letter.id))
            && self.kind.is_none_or(|kind| kind == letter.reason.kind)
            && self.only.as_ref().is_none_or(|name| letter.reason.only.contains(name))
            && self.since.is_none_or(|since| rejected >= since)
            && self.until.is_none_or(|until| rejected < until)
    }
}

/// The dead-letter place of one queue. Reading it changes nothing.
pub trait DeadLetters: Send + Sync {
    /// At most `most` letters that match, oldest first, after the id `after`.
    fn list(
        &self,
        filter: Filter,
        after: Option<String>,
        most: usize,
    ) -> BoxFuture<'_, Result<Vec<DeadLetter>, QueueError>>;
    /// Puts one back into its queue, with the header that limits it to what failed; the new copy is durable before the old goes.
    /// `false`: there is none with this id.
    fn resend(&self, id: String) -> BoxFuture<'_, Result<bool, QueueError>>;
    /// Forgets one. `false`: there is none with this id.
    fn drop_letter(&self, id: String) -> BoxFuture<'_, Result<bool, QueueError>>;
    /// Puts these back, as `resend` does one, and gives those that were there. After an error some of them may be back. A driver that
    /// reads all letters to find one has its own, which reads them once.
    fn resend_all(&self, ids: Vec<String>) -> BoxFuture<'_, Result<Vec<String>, QueueError>> {
        Box::pin(async move {
            let mut found = Vec::new();
            for id in ids {
                if self.resend(id.clone()).await? {
                    found.push(id);
                }
            }
            Ok(found)
        })
    }
    /// Forgets these, as `drop_letter` does one, and gives those that were there.
    fn drop_all(&self, ids: Vec<String>) -> BoxFuture<'_, Result<Vec<String>, QueueError>> {
        Box::pin(async move {
            let mut found = Vec::new();
            for id in ids {
                if self.drop_letter(id.clone()).await? {
                    found.push(id);
                }
            }
            Ok(found)
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn letter() -> DeadLetter {
        DeadLetter {
            id: "a".to_owned(),
            message: Message {
                key: "k".to_owned(),
                body: Bytes::new(),
                headers: Vec::new(),
                published: Time::default(),
                untimed: false,
            },
            reason: Reason {
                kind: ReasonKind::Policy,
                text: "failed".to_owned(),
                only: vec!["spray".to_owned()],
                attempts: 3,
            },
            rejected_micros: 500,
            coordinates: "reports/0/1".to_owned(),
        }
    }

    #[test]
    fn each_condition_of_a_filter_counts_and_an_empty_one_means_all() {
        let filter = |text: &str| serde_json::from_str::<Filter>(text).unwrap();
        for (text, meant) in [
            ("{}", true),
            (r#"{"ids":["b","a"]}"#, true),
            (r#"{"ids":["b"]}"#, false),
            (r#"{"kind":"policy"}"#, true),
            (r#"{"kind":"hung"}"#, false),
            (r#"{"only":"spray"}"#, true),
            (r#"{"only":"spra"}"#, false),
            (r#"{"since":500,"until":501}"#, true),
            (r#"{"since":501}"#, false),
            (r#"{"until":500}"#, false),
            (r#"{"kind":"policy","ids":["b"]}"#, false),
        ] {
            assert_eq!(filter(text).matches(&letter()), meant, "{text}");
        }
    }

    #[test]
    fn message_rejected_again_goes_on_counting_and_stays_limited_to_what_failed() {
        let copy = letter().into_copy();
        assert_eq!((copy.header(headers::ONLY), copy.header(headers::ATTEMPTS)), (Some("spray"), Some("3")));
        let reason = Reason { only: Vec::new(), attempts: 2, ..letter().reason };
        let again = DeadLetter::of(&copy, &Rejection::now(reason), "reports/0/9".to_owned(), "9");
        assert_eq!(again.reason.attempts, 5);
        let copy = again.into_copy();
        assert_eq!((copy.header(headers::ONLY), copy.header(headers::ATTEMPTS)), (Some("spray"), Some("5")));
        assert_eq!(copy.headers.len(), 2, "a header came twice");
    }

    #[cfg(feature = "kafka")]
    #[test]
    fn what_is_cut_is_said_also_where_it_is_the_key_alone() {
        let cut = |message: Message| {
            let mut cut = DeadLetter { message, ..letter() };
            cut.cut(100);
            cut
        };
        let whole = letter().message;
        assert_eq!(cut(whole.clone()), letter());
        for message in [
            Message { key: "ü".repeat(20), ..whole.clone() },
            Message { body: Bytes::from(vec![0; 101]), ..whole.clone() },
            Message { headers: vec![("name".to_owned(), "value".repeat(10))], ..whole.clone() },
        ] {
            let cut = cut(message);
            assert!(cut.message.key.len() <= 25 && cut.message.body.len() <= 100, "{cut:?}");
            assert_eq!(cut.message.header(headers::CUT), Some("reports/0/1"), "{cut:?}");
            assert!(cut.reason.text.contains("do not take all of it"), "{cut:?}");
        }
    }

    #[test]
    fn letter_is_the_same_after_json() {
        let text = serde_json::to_string(&letter()).unwrap();
        assert_eq!(serde_json::from_str::<DeadLetter>(&text).unwrap(), letter());
    }
}
