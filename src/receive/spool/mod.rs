//! What the broker does not confirm in time is written down here and answered 2xx: wforce tries once, and an outage of the broker must
//! not cost a report.
//!
//! ```text
//! report ─▶ broker, within receive.spool_after ────────────────────────────────▶ 2xx
//!             │ not confirmed, or this login has something in the spool
//!             └─▶ spool (an embedded queue in data_dir, synced) ───────────────▶ 2xx      full: 503 with Retry-After
//!                    └─▶ forwarder: in order, for ever, each acked after the broker's confirm
//! ```
//!
//! `books` knows whose reports are in it and which may go past, `forward` empties it. Owns the decision which errors are worth writing
//! down: what the broker will never take (too large) and the end of the program are not. A publish that was given up may be confirmed
//! later: then the report stands there twice, with one id.

mod books;
mod forward;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::books::{Books, Way};
use super::Settings;
use super::carry::Carrier;
use crate::complaints::Complaints;
use crate::health::Health;
use crate::queue::{Backoff, Message, Publisher, Queue, QueueError};
use crate::telemetry::Metrics;

/// The most reports of one request that go to the broker together: each part has the time of `receive.spool_after`, so that a large batch
/// is not taken for a broker that is down.
const PART: usize = 500;
/// The most reports that are written into the spool by one sync.
const WRITE: usize = 4096;
/// The name of what is waited for, in readyz and the metrics.
const WAITS_FOR: &str = "reports";

/// What a spool is made of.
pub struct Parts<'a> {
    /// The settings of the role.
    pub settings: &'a Settings,
    /// The first wait before the broker is tried again; the longest is a setting of the role.
    pub retry_first: Duration,
    /// The reports queue.
    pub target: Arc<dyn Publisher>,
    /// The spool on disk.
    pub store: Arc<dyn Queue>,
    /// Whether it takes anything new. If not, it is emptied of what is there from before it was switched off.
    pub takes: bool,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The latches.
    pub health: Arc<Health>,
}

/// The writing side of the reports queue, with the spool behind it.
pub struct Spool {
    target: Arc<dyn Publisher>,
    store: Arc<dyn Publisher>,
    takes: bool,
    after: Duration,
    books: Mutex<Books<Entry>>,
    /// The broker did not take what it was given last.
    down: watch::Sender<bool>,
    /// There may be something to write.
    wake: Notify,
    /// Batches that were begun to be written, and the one that is being written.
    writes: AtomicU64,
    writing: Mutex<Option<Write>>,
    /// Since when there is something in it.
    filled: Mutex<Option<Instant>>,
    forwarded: AtomicU64,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    complaints: Complaints,
}

/// A batch that is being written.
struct Write {
    since: Instant,
    /// When a report may try the broker that is taken for down.
    probe_at: Instant,
}

/// Reports that wait to be written, and who waits for that.
struct Entry {
    messages: Vec<Message>,
    answer: oneshot::Sender<Result<(), QueueError>>,
}

/// What became of a publish to the broker.
enum Direct {
    Confirmed,
    Failed(QueueError),
    /// It was given up, because another one has failed.
    KnownDown,
}

/// A publish under way to the broker. Whoever gives it up, nobody waits for it any more.
struct OnItsWay<'a> {
    spool: &'a Spool,
    number: u64,
}

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        let mut books = self.spool.books();
        books.resolved(self.number);
        if books.is_holding() {
            self.spool.wake.notify_one();
        }
    }
}

/// Reports that are to be written. While the disk stands still they are given up with whoever waits for them: what all senders try in vain
/// would fill the memory.
struct Withdrawn<'a> {
    spool: &'a Spool,
    number: u64,
}

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        if !self.spool.stands_still() {
            return;
        }
        let mut books = self.spool.books();
        let Some(entry) = books.withdraw(self.number) else { return };
        let empty = books.gone(logins(&entry.messages));
        drop(books);
        if empty {
            self.spool.emptied();
        }
        if let Some(kept_back) = self.spool.complaints.due("disk") {
            tracing::error!(
                kept_back,
                "the disk of the spool (data_dir) stands still: reports are refused until it writes again; look at that disk"
            );
        }
    }
}

fn logins(messages: &[Message]) -> impl Iterator<Item = &str> {
    messages.iter().map(|message| message.key.as_str())
}

impl Spool {
    /// Opens the books and starts the two tasks that fill and empty it; they end after `stop`.
    pub async fn start(parts: Parts<'_>, stop: CancellationToken) -> Result<(Arc<Self>, JoinHandle<()>), QueueError> {
        let before = parts.store.depth().await?.messages;
        let most_logins = parts.settings.spool_logins;
        let spool = Arc::new(Self {
            target: Arc::clone(&parts.target),
            store: parts.store.publisher(),
            takes: parts.takes,
            after: parts.settings.spool_after,
            books: Mutex::new(Books::new(before, most_logins)),
            down: watch::Sender::new(false),
            wake: Notify::new(),
            writes: AtomicU64::new(0),
            writing: Mutex::default(),
            filled: Mutex::new((before > 0).then(Instant::now)),
            forwarded: AtomicU64::new(0),
            metrics: parts.metrics,
            health: parts.health,
            complaints: Complaints::default(),
        });
        if before > 0 {
            tracing::warn!(
                reports = before,
                "the spool has reports of the last run; they go first, and new ones behind them"
            );
        }
        let backoff = Backoff { first: parts.retry_first, most: parts.settings.spool_retry_most };
        let carrier = Carrier::new(parts.target, backoff);
        let writer = tokio::spawn(Arc::clone(&spool).write(stop.clone()));
        let forwarder = forward::Forwarder::new(Arc::clone(&spool), parts.store, before, carrier, backoff);
        let both = tokio::spawn(async move {
            forwarder.run(stop).await;
            let _ = writer.await;
        });
        Ok((spool, both))
    }

    fn books(&self) -> MutexGuard<'_, Books<Entry>> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, Option<Write>> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk stands still.
    fn stands_still(&self) -> bool {
        self.writing().as_ref().is_some_and(|write| write.since.elapsed() > self.after)
    }

    /// While the disk stands still there may be nothing in the spool to try the broker with: whoever has nothing there does that, once in
    /// a while.
    fn probe_when_due(&self) {
        let now = Instant::now();
        if let Some(write) = self.writing().as_mut().filter(|write| write.probe_at <= now) {
            write.probe_at = now + self.after;
            self.down.send_replace(false);
        }
    }

    fn filled(&self) -> MutexGuard<'_, Option<Instant>> {
        self.filled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn one(&self, messages: Vec<Message>) -> Result<(), QueueError> {
        self.probe_when_due();
        let way = self.books().way(*self.down.borrow(), logins(&messages));
        match way {
            Way::Behind(number) => self.keep(number, messages).await,
            Way::Direct(number) => {
                let on_its_way = OnItsWay { spool: self, number };
                match self.direct(messages.clone()).await {
                    Direct::Confirmed => {
                        if self.stands_still() {
                            self.broker_works();
                        }
                        Ok(())
                    }
                    Direct::Failed(error @ (QueueError::TooLarge { .. } | QueueError::Closed(_))) => Err(error),
                    Direct::Failed(error) if !self.takes => Err(error),
                    Direct::Failed(error) => {
                        self.broker_is_down(&error);
                        self.keep(on_its_way.number, messages).await
                    }
                    Direct::KnownDown => self.keep(on_its_way.number, messages).await,
                }
            }
        }
    }

    /// To the broker. Once it is known to be down, nobody waits longer: all that is on its way goes into the spool in its order.
    async fn direct(&self, messages: Vec<Message>) -> Direct {
        let mut down = self.down.subscribe();
        let known_down = async {
            if !self.takes || down.wait_for(|down| *down).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            done = self.target.publish(messages) => done.map_or_else(Direct::Failed, |()| Direct::Confirmed),
            () = known_down => Direct::KnownDown,
            () = tokio::time::sleep(self.after), if self.takes => {
                let reason = format!("it did not confirm within {:?} (receive.spool_after)", self.after);
                Direct::Failed(QueueError::Unavailable { queue: WAITS_FOR.to_owned(), reason })
            }
        }
    }

    /// Into the spool; resolves when that is on disk.
    async fn keep(&self, number: u64, messages: Vec<Message>) -> Result<(), QueueError> {
        let (answer, answered) = oneshot::channel();
        let _withdrawn_where_nobody_waits = Withdrawn { spool: self, number };
        let keys: Vec<String> = logins(&messages).map(str::to_owned).collect();
        {
            let mut books = self.books();
            books.hold(number, keys.iter().map(String::as_str), Entry { messages, answer });
            if self.filled().is_none() {
                self.begun();
            }
        }
        self.wake.notify_one();
        answered.await.map_err(|_| QueueError::Closed("spool".to_owned()))?
    }

    fn begun(&self) {
        *self.filled() = Some(Instant::now());
        self.forwarded.store(0, Ordering::Relaxed);
        let error = self.health.waiting().remove(WAITS_FOR).unwrap_or_default();
        tracing::warn!(error, "reports go into the spool until the broker takes them again");
    }

    /// Nothing is in it any more. So nothing waits for the broker, although its last answer may have been that a report is too large;
    /// unless it has failed another report since.
    fn emptied(&self) {
        let books = self.books();
        if books.total() > 0 {
            return;
        }
        self.broker_works();
        let since = self.filled().take();
        drop(books);
        let seconds = since.map_or(0, |since| since.elapsed().as_secs());
        let reports = self.forwarded.swap(0, Ordering::Relaxed);
        tracing::info!(reports, seconds, "the spool is empty, and the broker has these reports of it");
    }

    fn broker_is_down(&self, error: &QueueError) {
        self.health.set_waiting(WAITS_FOR, Some(error.to_string()));
        if !self.down.send_replace(true) {
            tracing::debug!(%error, "the broker does not take reports");
        }
        self.metrics.waiting.with_label_values(&[WAITS_FOR]).set(1);
    }

    fn broker_works(&self) {
        if self.down.send_replace(false) {
            tracing::debug!("the broker takes reports again");
        }
        self.health.set_waiting(WAITS_FOR, None);
        self.metrics.waiting.with_label_values(&[WAITS_FOR]).set(0);
    }

    /// Writes what is to be written, in its order, many by one sync.
    async fn write(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let entries = self.next_entries();
            if !entries.is_empty() {
                self.write_all(entries).await;
                *self.writing() = None;
                continue;
            }
            if stop.is_cancelled() {
                return;
            }
            tokio::select! {
                () = self.wake.notified() => {}
                () = stop.cancelled() => {}
            }
        }
    }

    fn next_entries(&self) -> Vec<Entry> {
        let mut books = self.books();
        let (mut entries, mut count) = (Vec::new(), 0);
        while count < WRITE
            && let Some(entry) = books.writable()
        {
            count += entry.messages.len();
            entries.push(entry);
        }
        if !entries.is_empty() {
            self.writes.fetch_add(1, Ordering::AcqRel);
            let since = Instant::now();
            *self.writing() = Some(Write { since, probe_at: since + self.after });
        }
        entries
    }

    async fn write_all(&self, entries: Vec<Entry>) {
        let all: Vec<Message> = entries.iter().flat_map(|entry| entry.messages.iter().cloned()).collect();
        let done = self.store.publish(all).await;
        let single = entries.len() == 1;
        for entry in entries {
            // Where there is no place for all, there may be for some.
            let done = match &done {
                Err(_) if !single => self.store.publish(entry.messages.clone()).await,
                done => done.clone(),
            };
            match &done {
                Ok(()) => self.metrics.spooled.inc_by(entry.messages.len() as u64),
                Err(error) => self.not_kept(&entry, error),
            }
            // A sender that no longer waits needs no answer.
            let _ = entry.answer.send(done);
        }
    }

    fn not_kept(&self, entry: &Entry, error: &QueueError) {
        if self.books().gone(logins(&entry.messages)) {
            tracing::error!(%error, "the spool does not take reports");
            *self.filled() = None;
            // There is nothing in it that the broker could be tried with: the next report does that.
            self.broker_works();
        }
    }
}

impl Publisher for Spool {
    fn publish(&self, mut messages: Vec<Message>) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move {
            while messages.len() > PART {
                let rest = messages.split_off(PART);
                self.one(std::mem::replace(&mut messages, rest)).await?;
            }
            self.one(messages).await
        })
    }
}
