//! Empties the spool: takes its reports in their order and gives each to the broker until that has confirmed it.
//!
//! Owns the probing of a broker that is down: as long as something is in the spool its head is the one report that is tried; beside a
//! disk that stands still, where there may be no head, `Spool` lets others try. Stops when
//! the program drains: what is left is on disk, and goes at the next start.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::super::carry::{Carried, Carrier, Step};
use super::Spool;
use crate::queue::{Backoff, Delivery, Message, Queue, Subscription, Unsettled, headers};

/// What is taken from the spool ahead of the broker.
const AHEAD: Unsettled = Unsettled { messages: 4000, bytes: 32 * 1024 * 1024 };
/// How often it is looked whether the spool is empty although it was counted otherwise: a file of it may be lost.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub(super) struct Forwarder {
    spool: Arc<Spool>,
    queue: Arc<dyn Queue>,
    /// How many of those that were there at the start it has not met yet, and the last that it has met: each is met once.
    before: u64,
    met: Option<u64>,
    carrier: Carrier,
    backoff: Backoff,
}

/// Why forwarding ended.
#[derive(PartialEq, Eq)]
enum End {
    /// The program stops.
    Stopped,
    /// The spool hands nothing out any more.
    NoSource,
}

impl Forwarder {
    /// `before`: how many were in it at the start.
    pub(super) const fn new(
        spool: Arc<Spool>,
        queue: Arc<dyn Queue>,
        before: u64,
        carrier: Carrier,
        backoff: Backoff,
    ) -> Self {
        Self { spool, queue, before, met: None, carrier, backoff }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut failures = 0;
        loop {
            match self.queue.subscribe(AHEAD, self.backoff) {
                Ok(subscription) => {
                    failures = 0;
                    if self.forward(subscription, &stop).await == End::Stopped {
                        break;
                    }
                }
                Err(error) => tracing::warn!(%error, "the spool cannot be read, trying again"),
            }
            failures += 1;
            tokio::select! {
                () = tokio::time::sleep(self.backoff.wait(failures, rand::random())) => {}
                () = stop.cancelled() => break,
            }
        }
        let reports = self.spool.books().total();
        if reports > 0 {
            tracing::warn!(reports, "reports stay in the spool in data_dir; they go out at the next start");
        }
    }

    async fn forward(&mut self, subscription: Subscription, stop: &CancellationToken) -> End {
        let Subscription { mut deliveries, pause, source } = subscription;
        let mut got: Vec<Delivery> = Vec::new();
        let end = loop {
            if self.carrier.is_empty() {
                tokio::select! {
                    () = stop.cancelled() => break End::Stopped,
                    count = deliveries.recv_many(&mut got, self.carrier.room()) => {
                        if count == 0 {
                            break End::NoSource;
                        }
                    }
                    () = tokio::time::sleep(LOOK_EVERY), if self.spool.books().total() > 0 => {
                        self.look().await;
                        continue;
                    }
                }
            }
            while got.len() < self.carrier.room()
                && let Ok(next) = deliveries.try_recv()
            {
                got.push(next);
            }
            got.drain(..).for_each(|delivery| self.take(delivery));
            if !self.step(stop).await {
                break End::Stopped;
            }
        };
        // What is not confirmed is taken again by the next subscription.
        self.carrier.clear();
        drop((deliveries, pause));
        let _ = source.await;
        end
    }

    fn take(&mut self, delivery: Delivery) {
        let Delivery { message, coordinates, token, .. } = delivery;
        let message = Arc::unwrap_or_clone(message);
        self.meet(token.tag().sequence, &message);
        self.carrier.push(Carried { message, token, coordinates });
    }

    /// What was there at the start, and what came by way of the books, is counted there. A letter that was sent again is not.
    pub(super) fn meet(&mut self, sequence: u64, message: &Message) {
        if self.met.is_some_and(|met| sequence <= met) {
            return;
        }
        self.met = Some(sequence);
        if self.before > 0 {
            self.before -= 1;
        } else if message.header(headers::ATTEMPTS).is_some() {
            self.spool.books().count(&message.key);
        }
    }

    /// One publish. `false`: the program stops.
    async fn step(&mut self, stop: &CancellationToken) -> bool {
        match self.carrier.step(stop).await {
            Step::Done(logins) if logins.is_empty() => {}
            Step::Done(logins) => {
                self.spool.broker_works();
                self.spool.forwarded.fetch_add(logins.len() as u64, Ordering::Relaxed);
                self.gone(&logins);
            }
            Step::TooLarge(login) => self.gone(&[login]),
            Step::Failed(error) => self.spool.broker_is_down(&error),
            Step::Over => return false,
        }
        !stop.is_cancelled()
    }

    fn gone(&self, logins: &[String]) {
        if self.spool.books().gone(logins.iter().map(String::as_str)) {
            self.spool.emptied();
        }
    }

    /// Nothing came for a while: is the spool empty, and only the count of it wrong?
    async fn look(&self) {
        let writes = self.spool.writes.load(Ordering::Acquire);
        let Ok(depth) = self.queue.depth().await else { return };
        let mut books = self.spool.books();
        let quiet = writes == self.spool.writes.load(Ordering::Acquire)
            && self.spool.writing().is_none()
            && !books.is_holding();
        if depth.messages == 0 && quiet && books.emptied() {
            drop(books);
            self.spool.emptied();
        }
    }
}
