//! The writing side: records on their way to the broker, and what became of each.
//!
//! Owns the producers. A call resolves when the broker has confirmed all of its records; how long that may take is bounded by
//! `queue.kafka.delivery_timeout`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer};
use tokio::sync::{mpsc, oneshot};

use super::super::{DeadLetter, Message, Publisher, QueueError, Tag};
use super::client::{EndsBeside, ToLog};
use super::topic::{OpenError, client_error};
use super::{Settings, client, record};
use crate::report::Time;

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
    /// A record was given up: see [`Producer::healthy`].
    gave_up: Arc<AtomicBool>,
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
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.gave_up.store(true, Ordering::Release);
        }
        self.to_log.error(error, reason);
    }
}

impl ProducerContext for Told {
    type DeliveryOpaque = Box<Waiter>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiter: Box<Waiter>) {
        let result = result.as_ref().map(|_| ()).map_err(|(error, message)| {
            let given_up = [RDKafkaErrorCode::MessageTimedOut, RDKafkaErrorCode::Fatal];
            if error.rdkafka_error_code().is_some_and(|code| given_up.contains(&code)) {
                self.gave_up.store(true, Ordering::Release);
            }
            self.error(error, message.payload_len())
        });
        waiter.done(result);
    }
}

/// The client, and whether it gave a record up, or will take none any more.
struct Client {
    inner: EndsBeside<ThreadedProducer<Told>>,
    gave_up: Arc<AtomicBool>,
}

impl Client {
    fn new(settings: &Settings, queue: &str, limit: Limit, to_log: &ToLog) -> Result<Self, OpenError> {
        let (gave_up, delivery_timeout) = (Arc::default(), settings.delivery_timeout);
        let told = Told {
            gave_up: Arc::clone(&gave_up),
            queue: queue.to_owned(),
            limit: limit.message,
            delivery_timeout,
            to_log: to_log.clone(),
        };
        let made = client::producer(settings, limit.batch).create_with_context(told);
        let made = made.map_err(|error| OpenError::Client(client_error(&error)))?;
        Ok(Self { inner: EndsBeside::new(made), gave_up })
    }

    fn hand_over(&self, record: BaseRecord<'_, str, [u8], Box<Waiter>>, size: usize) -> Result<(), QueueError> {
        let Err((error, record)) = self.inner.send(record) else { return Ok(()) };
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.gave_up.store(true, Ordering::Release);
        }
        let error = self.inner.context().error(&error, size);
        record.delivery_opaque.done(Err(error.clone()));
        Err(error)
    }
}

/// What a topic takes, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    /// The body of one message.
    pub(super) message: usize,
    /// Messages that are sent together, where the broker has said so.
    pub(super) batch: Option<usize>,
}

/// What writes to one topic: the reports (or alerts), or their dead letters. Each has a client of its own: one whose topic takes nothing
/// gives up what it has, and must not take what goes elsewhere with it.
pub(super) struct Producer {
    queue: String,
    topic: String,
    limit: Limit,
    settings: Settings,
    to_log: ToLog,
    /// Held while a call hands its messages over, so that none goes to a client that was replaced.
    client: Mutex<Client>,
}

impl Producer {
    pub(super) fn new(
        settings: &Settings,
        queue: &str,
        topic: &str,
        limit: Limit,
        to_log: &ToLog,
    ) -> Result<Self, OpenError> {
        let client = Client::new(settings, queue, limit, to_log)?;
        Ok(Self {
            queue: queue.to_owned(),
            topic: topic.to_owned(),
            limit,
            settings: settings.clone(),
            to_log: to_log.clone(),
            client: Mutex::new(client),
        })
    }

    /// A client that has given nothing up. One that has may never publish again: where a partition was without a leader for a moment, the
    /// idempotent producer of librdkafka 2.12 was seen to wait for it for ever, with the broker up (a broker that stalls is enough); and
    /// after an error that it calls fatal it takes nothing. Its callers send again what they did not hear of, under the same ids.
    fn healthy<'a>(&self, held: &'a mut Client) -> &'a Client {
        if held.gave_up.load(Ordering::Acquire) {
            match Client::new(&self.settings, &self.queue, self.limit, &self.to_log) {
                Ok(new) => {
                    let old = std::mem::replace(held, new);
                    let why = "one that has given messages up may never publish again";
                    self.to_log.complain("given up", &why, "the producer gave messages up; a new one takes its place");
                    // What is left in the old one must not come behind what the new one sends, which has to connect first.
                    old.inner.purge(PurgeConfig::default().queue().inflight().non_blocking());
                }
                Err(error) => tracing::error!(queue = self.queue, %error, "kafka: no new producer could be made"),
            }
        }
        held
    }

    /// Hands one record over. Where that fails, its waiter was told.
    fn hand_over(&self, record: BaseRecord<'_, str, [u8], Box<Waiter>>, size: usize) {
        let _ = self.healthy(&mut lock(&self.client)).hand_over(record, size);
    }

    /// Sends messages. The answer comes when all are confirmed, or given up.
    fn send(&self, messages: &[Message]) -> Result<oneshot::Receiver<Result<(), QueueError>>, QueueError> {
        let limit = self.limit.message;
        if let Some(large) = messages.iter().find(|message| message.body.len() > limit) {
            let size = large.body.len();
            return Err(QueueError::TooLarge { queue: self.queue.clone(), size, limit });
        }
        let mut held = lock(&self.client);
        let client = self.healthy(&mut held);
        let (answer, answered) = oneshot::channel();
        let call =
            Arc::new(Call { left: AtomicUsize::new(1), failed: Mutex::new(None), answer: Mutex::new(Some(answer)) });
        let now = Time::now();
        for message in messages {
            call.left.fetch_add(1, Ordering::AcqRel);
            let waiter = Box::new(Waiter::Call(Arc::clone(&call)));
            let record = BaseRecord::with_opaque_to(&self.topic, waiter).key(message.key.as_str());
            let (millis, headers) = record::stamped(message, now);
            let record = with_headers(record.payload(&message.body[..]).timestamp(millis), headers);
            // What comes after one that was not taken would overtake it.
            if client.hand_over(record, message.body.len()).is_err() {
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

    /// Sends a letter, where the topic is that of the dead ones; what became of it is told to `source`, also where it was not taken at all.
    pub(super) fn bury(&self, tag: Tag, letter: &DeadLetter, source: &mpsc::UnboundedSender<Buried>) {
        let waiter = Box::new(Waiter::Letter(tag, source.clone()));
        let record = BaseRecord::with_opaque_to(&self.topic, waiter).key(letter.id.as_str());
        let record = record.payload(&letter.message.body[..]).headers(record::letter_headers(letter));
        self.hand_over(record, letter.message.body.len());
    }

    /// Forgets a letter: a record without a payload, which lets the broker remove the one before.
    pub(super) async fn forget(&self, id: &str) -> Result<(), QueueError> {
        let (source, mut told) = mpsc::unbounded_channel();
        let tag = Tag { lane: 0, generation: 0, sequence: 0 };
        let record = BaseRecord::<str, [u8], _>::with_opaque_to(&self.topic, Box::new(Waiter::Letter(tag, source)));
        self.hand_over(record.key(id), 0);
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

/// The writing side of one queue.
pub(super) struct KafkaPublisher(pub(super) Arc<Producer>);

impl Publisher for KafkaPublisher {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move { self.0.publish(&messages).await })
    }
}
