//! The writing side: records on their way to the broker, and what became of each.
//!
//! Owns the producer. A call resolves when the broker has confirmed all of its records; how long that may take is bounded by
//! `queue.kafka.delivery_timeout`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseRecord, DeliveryResult, ProducerContext, ThreadedProducer};
use tokio::sync::{mpsc, oneshot};

use super::super::{DeadLetter, Message, Publisher, QueueError, Tag};
use super::client::ToLog;
use super::topic::{OpenError, client_error};
use super::{Settings, client, record};

/// What key and headers may add to a message of the largest size.
pub(super) const ENVELOPE: usize = 64 * 1024;

/// What became of a rejected message's letter.
pub(super) type Buried = (Tag, Result<(), QueueError>);

/// Who waits for a record to be confirmed.
pub(super) enum Waiter {
    /// One call of many records.
    Call(Arc<Call>),
    /// A source that rejected a message.
    Letter(Tag, mpsc::UnboundedSender<Buried>),
}

/// The records of one call.
pub(super) struct Call {
    /// Records that are not confirmed, and one for the call itself until it has handed all of them over.
    left: AtomicUsize,
    failed: Mutex<Option<QueueError>>,
    answer: Mutex<Option<oneshot::Sender<Result<(), QueueError>>>>,
}

impl Call {
    fn one_done(&self, result: Result<(), QueueError>) {
        if let Err(error) = result {
            lock(&self.failed).get_or_insert(error);
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(answer) = lock(&self.answer).take()
        {
            // A caller that no longer waits needs no answer.
            let _ = answer.send(lock(&self.failed).take().map_or(Ok(()), Err));
        }
    }
}

impl Waiter {
    fn done(self, result: Result<(), QueueError>) {
        match self {
            Self::Call(call) => call.one_done(result),
            Self::Letter(tag, source) => {
                let _ = source.send((tag, result));
            }
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the producer's thread tells.
struct Told {
    queue: String,
    limit: usize,
    delivery_timeout: Duration,
    to_log: ToLog,
}

impl Told {
    fn error(&self, error: &KafkaError, size: usize) -> QueueError {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge) {
            return QueueError::TooLarge { queue: self.queue.clone(), size, limit: self.limit.min(size) };
        }
        let reason = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageTimedOut) => format!(
                "kafka: not confirmed within {:?} (queue.kafka.delivery_timeout); are the brokers up, and has the topic as many \
                 replicas in sync as its min.insync.replicas asks for?",
                self.delivery_timeout
            ),
            _ => format!("kafka: {error}"),
        };
        QueueError::Unavailable { queue: self.queue.clone(), reason }
    }
}

impl ClientContext for Told {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.to_log.log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.to_log.error(error, reason);
    }
}

impl ProducerContext for Told {
    type DeliveryOpaque = Box<Waiter>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiter: Box<Waiter>) {
        let result = result.as_ref().map(|_| ()).map_err(|(error, message)| self.error(error, message.payload_len()));
        waiter.done(result);
    }
}

/// The producer of one queue and of its dead letters.
pub(super) struct Producer {
    queue: String,
    dead: String,
    max_message: usize,
    told: Told,
    inner: ThreadedProducer<Told>,
}

impl Producer {
    pub(super) fn new(
        settings: &Settings,
        queue: &str,
        dead: &str,
        max_message: usize,
        to_log: &ToLog,
    ) -> Result<Self, OpenError> {
        let delivery_timeout = settings.delivery_timeout;
        let told = || Told { queue: queue.to_owned(), limit: max_message, delivery_timeout, to_log: to_log.clone() };
        let inner = client::producer(settings, max_message + ENVELOPE)
            .create_with_context(told())
            .map_err(|error| OpenError::Client(client_error(&error)))?;
        Ok(Self { queue: queue.to_owned(), dead: dead.to_owned(), max_message, told: told(), inner })
    }

    fn hand_over(&self, record: BaseRecord<'_, str, [u8], Box<Waiter>>, size: usize) -> Result<(), QueueError> {
        match self.inner.send(record) {
            Ok(()) => Ok(()),
            Err((error, record)) => {
                let error = self.told.error(&error, size);
                record.delivery_opaque.done(Err(error.clone()));
                Err(error)
            }
        }
    }

    /// Sends messages. The answer comes when all are confirmed, or given up.
    fn send(&self, messages: &[Message]) -> Result<oneshot::Receiver<Result<(), QueueError>>, QueueError> {
        if let Some(large) = messages.iter().find(|message| message.body.len() > self.max_message) {
            let size = large.body.len();
            return Err(QueueError::TooLarge { queue: self.queue.clone(), size, limit: self.max_message });
        }
        let (answer, answered) = oneshot::channel();
        let call =
            Arc::new(Call { left: AtomicUsize::new(1), failed: Mutex::new(None), answer: Mutex::new(Some(answer)) });
        for message in messages {
            call.left.fetch_add(1, Ordering::AcqRel);
            let waiter = Box::new(Waiter::Call(Arc::clone(&call)));
            let record = BaseRecord::with_opaque_to(&self.queue, waiter).key(message.key.as_str());
            let record = record.payload(&message.body[..]).timestamp(millis(message));
            let record = with_headers(record, record::headers_of(message));
            // What comes after one that was not taken would overtake it.
            if self.hand_over(record, message.body.len()).is_err() {
                break;
            }
        }
        call.one_done(Ok(()));
        Ok(answered)
    }

    /// Resolves when all messages are confirmed.
    pub(super) async fn publish(&self, messages: &[Message]) -> Result<(), QueueError> {
        if messages.is_empty() {
            return Ok(());
        }
        let answered = self.send(messages)?;
        answered.await.map_err(|_| QueueError::Closed(self.queue.clone()))?
    }

    /// Sends a letter to the dead-letter topic; what became of it is told to `source`, also where it was not taken at all.
    pub(super) fn bury(&self, tag: Tag, letter: &DeadLetter, source: &mpsc::UnboundedSender<Buried>) {
        let waiter = Box::new(Waiter::Letter(tag, source.clone()));
        let record = BaseRecord::with_opaque_to(&self.dead, waiter).key(letter.id.as_str());
        let record = record.payload(&letter.message.body[..]).headers(record::letter_headers(letter));
        let _ = self.hand_over(record, letter.message.body.len());
    }

    /// Forgets a letter: a record without a payload, which lets the broker remove the one before.
    pub(super) async fn forget(&self, id: &str) -> Result<(), QueueError> {
        let (source, mut told) = mpsc::unbounded_channel();
        let tag = Tag { lane: 0, generation: 0, sequence: 0 };
        let record = BaseRecord::<str, [u8], _>::with_opaque_to(&self.dead, Box::new(Waiter::Letter(tag, source)));
        let _ = self.hand_over(record.key(id), 0);
        told.recv().await.map_or_else(|| Err(QueueError::Closed(self.queue.clone())), |(_, done)| done)
    }
}

fn with_headers<'a>(
    record: BaseRecord<'a, str, [u8], Box<Waiter>>,
    headers: Option<OwnedHeaders>,
) -> BaseRecord<'a, str, [u8], Box<Waiter>> {
    match headers {
        Some(headers) => record.headers(headers),
        None => record,
    }
}

fn millis(message: &Message) -> i64 {
    // Zero and below mean "now" to the client, or are refused.
    (message.published.micros() / 1000).max(1)
}

/// The writing side of one queue.
pub(super) struct KafkaPublisher(pub(super) Arc<Producer>);

impl Publisher for KafkaPublisher {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move { self.0.publish(&messages).await })
    }
}
