//! The source: the task that reads the log, hands deliveries out and takes settlements back.
//!
//! Owns what is in flight. It never waits for the disk itself (reads run on the blocking pool, writes on the writer's thread), and
//! the position it passes on never goes beyond an unfinished message.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::flights::{Flights, Stage};
use super::super::way::{Settled, Taken, Way};
use super::super::{AckToken, Backoff, Delivery, Message, QueueError, Tag, Unsettled};
use super::command::{Command, Moved};
use super::log::Log;
use super::reading::Stored;

/// One read: as many records, and about as many bytes.
const READ: usize = 2048;
const READ_BYTES: u64 = 4 * 1024 * 1024;

type ReadResult = fjall::Result<(Vec<Stored>, u64)>;

/// What a source is made of.
pub(super) struct Parts {
    pub(super) log: Arc<Log>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) moved: Arc<Moved>,
    pub(super) way: Arc<Way>,
    pub(super) generation: u32,
    /// The generation of the newest subscription.
    pub(super) newest: watch::Receiver<u32>,
    /// Kept, so that `newest` goes on without the queue's own handle.
    pub(super) _newest: Arc<watch::Sender<u32>>,
    pub(super) limit: Unsettled,
    pub(super) backoff: Backoff,
    pub(super) out: mpsc::Sender<Delivery>,
    pub(super) paused: watch::Receiver<bool>,
}

/// Runs a subscription to its end.
pub(super) async fn run(parts: Parts) {
    let mut source = Source::new(parts).await;
    source.run().await;
    source.settle().await;
}

pub(super) struct Source {
    pub(super) parts: Parts,
    taken: Taken,
    pub(super) flights: Flights,
    /// The next sequence to be read.
    cursor: u64,
    end: watch::Receiver<u64>,
    /// The end that was looked at last. The wait must go by this one: an end that has moved since is one to wake for, and not one that is
    /// known.
    seen_end: u64,
    /// A read under way, and from where.
    read: Option<JoinHandle<ReadResult>>,
    read_failures: u32,
    read_again: Option<Instant>,
    /// Read and not handed out.
    ahead: VecDeque<Stored>,
    pub(super) buried_sender: mpsc::UnboundedSender<(u64, Result<(), QueueError>)>,
    pub(super) buried: mpsc::UnboundedReceiver<(u64, Result<(), QueueError>)>,
    /// Rejections on their way to the disk.
    pub(super) burying: usize,
    settled: Vec<Settled>,
    pause_gone: bool,
}

impl Source {
    async fn new(parts: Parts) -> Self {
        let taken = Arc::clone(&parts.way).take().await;
        let position = parts.log.progress().position;
        let (buried_sender, buried) = mpsc::unbounded_channel();
        Self {
            flights: Flights::starting_at(position),
            cursor: position,
            end: parts.log.end.subscribe(),
            seen_end: position,
            read: None,
            read_failures: 0,
            read_again: None,
            ahead: VecDeque::new(),
            buried_sender,
            buried,
            burying: 0,
            settled: Vec::new(),
            taken,
            pause_gone: false,
            parts,
        }
    }

    async fn run(&mut self) {
        loop {
            if *self.parts.newest.borrow() != self.parts.generation {
                return;
            }
            let full = self.hand_out();
            self.skip_what_is_missing();
            self.start_read();
            let nobody_takes = self.parts.out.is_closed();
            if nobody_takes {
                // What was sent while the other end went lies in the channel until that goes: its tokens would never come back.
                self.parts.out = mpsc::channel(1).0;
            }
            if nobody_takes && self.flights.out() == 0 && self.burying == 0 {
                return;
            }
            self.wait(full && !nobody_takes, nobody_takes).await;
            let mut settled = std::mem::take(&mut self.settled);
            for (tag, settlement) in settled.drain(..) {
                self.settle_one(tag, settlement);
            }
            self.settled = settled;
            // What was nacked while nobody takes any more is handed out by the next subscription.
            while let Ok((sequence, done)) = self.buried.try_recv() {
                self.buried(sequence, done);
            }
        }
    }

    /// Waits for whatever comes first. `full`: there is something to hand out and no place for it.
    async fn wait(&mut self, full: bool, nobody_takes: bool) {
        let at_end = self.seen_end <= self.cursor;
        let Self { parts, taken, flights, end, read, read_again, buried, settled, pause_gone, .. } = self;
        let Some(receiver) = taken.receiver.as_mut() else { return };
        let idle = full || nobody_takes || *parts.paused.borrow();
        let due = flights.next_due().filter(|_| !idle);
        let wake = [due, *read_again].into_iter().flatten().min();
        let event = tokio::select! {
            _ = receiver.recv_many(settled, READ) => Event::Looked,
            Some((sequence, done)) = buried.recv() => Event::Buried(sequence, done),
            result = finished(read) => Event::Read(result),
            () = place(&parts.out), if full => Event::Looked,
            () = parts.out.closed(), if !nobody_takes => Event::Looked,
            _ = end.changed(), if at_end => Event::Looked,
            changed = parts.paused.changed(), if !*pause_gone => {
                *pause_gone = changed.is_err();
                Event::Looked
            }
            _ = parts.newest.changed() => Event::Looked,
            () = sleep_until(wake), if wake.is_some() => Event::Looked,
        };
        match event {
            Event::Looked => {}
            Event::Buried(sequence, done) => self.buried(sequence, done),
            Event::Read(result) => {
                self.read = None;
                self.read_done(result);
            }
        }
        if self.read_again.is_some_and(|again| again <= Instant::now()) {
            self.read_again = None;
        }
    }

    /// Hands out what is due and what is new. `true`: there is more, and no place in the channel.
    fn hand_out(&mut self) -> bool {
        if *self.parts.paused.borrow() {
            return false;
        }
        let now = Instant::now();
        while self.flights.next_due().is_some_and(|due| due <= now) {
            let out = self.parts.out.clone();
            let Ok(place) = out.try_reserve() else { return true };
            let Some(sequence) = self.flights.due(now) else { break };
            match self.flights.get(sequence).map(|open| &open.stage) {
                Some(Stage::Waiting) => {
                    if let Some((message, redelivered)) = self.flights.out_again(sequence) {
                        place.send(self.delivery(sequence, message, redelivered));
                    }
                }
                Some(Stage::Rejected(_)) => self.bury(sequence),
                Some(Stage::Out) | None => {}
            }
        }
        while let Some(next) = self.ahead.front() {
            let length = next.content.as_ref().map_or_else(Bytes::len, Message::size);
            if !self.flights.held().room(length, self.parts.limit) {
                return false;
            }
            let out = self.parts.out.clone();
            let Ok(place) = out.try_reserve() else { return true };
            let Some(Stored { sequence, size, content }) = self.ahead.pop_front() else { break };
            match content {
                Ok(message) => {
                    let message = Arc::new(message);
                    if self.flights.add(sequence, size, Arc::clone(&message), Stage::Out) {
                        place.send(self.delivery(sequence, message, 0));
                    }
                }
                Err(bytes) => self.poison(sequence, size, bytes),
            }
        }
        false
    }

    fn delivery(&self, sequence: u64, message: Arc<Message>, redelivered: u32) -> Delivery {
        let tag = Tag { lane: 0, generation: self.parts.generation, sequence };
        let token = AckToken::new(tag, self.parts.way.sender.clone());
        Delivery { message, redelivered, coordinates: self.coordinates(sequence), token }
    }

    pub(super) fn coordinates(&self, sequence: u64) -> String {
        format!("{}/0/{sequence}", self.parts.log.name)
    }

    fn start_read(&mut self) {
        self.seen_end = *self.end.borrow_and_update();
        let end = self.seen_end;
        let wanted = self.ahead.len() < READ / 2 && self.cursor < end && !self.parts.out.is_closed();
        if self.read.is_some() || self.read_again.is_some() || !wanted || *self.parts.paused.borrow() {
            return;
        }
        let (log, cursor) = (Arc::clone(&self.parts.log), self.cursor);
        self.read = Some(tokio::task::spawn_blocking(move || log.read(cursor, end, READ, READ_BYTES)));
    }

    fn read_done(&mut self, result: Option<ReadResult>) {
        let failed = match result {
            Some(Ok((records, cursor))) => {
                self.ahead.extend(records);
                self.cursor = cursor;
                self.read_failures = 0;
                return;
            }
            Some(Err(error)) => error.to_string(),
            None => "the read was given up".to_owned(),
        };
        self.read_failures += 1;
        let wait = self.parts.backoff.wait(self.read_failures, rand::random());
        tracing::warn!(queue = self.parts.log.name, error = failed, ?wait, "queue could not be read, trying again");
        self.read_again = Some(Instant::now() + wait);
    }

    /// Where records that should be there are not (a lost file), the position must not wait for them for ever.
    fn skip_what_is_missing(&mut self) {
        let position = self.parts.log.progress().position;
        if self.flights.is_empty() && self.ahead.is_empty() && self.read.is_none() && self.cursor > position {
            let missing = self.cursor - position;
            tracing::error!(
                queue = self.parts.log.name,
                missing,
                "records are missing in the queue and are passed over"
            );
            self.flights = Flights::starting_at(self.cursor);
            self.parts.log.advance(self.cursor, 0);
            self.parts.moved.tell(&self.parts.commands);
        }
    }
}

/// What ended a wait.
enum Event {
    /// There is something to look at.
    Looked,
    Buried(u64, Result<(), QueueError>),
    Read(Option<ReadResult>),
}

/// The result of the read under way; never where there is none. `None`: it was given up.
async fn finished(read: &mut Option<JoinHandle<ReadResult>>) -> Option<ReadResult> {
    match read {
        Some(read) => read.await.ok(),
        None => std::future::pending().await,
    }
}

async fn place(out: &mpsc::Sender<Delivery>) {
    let _ = out.reserve().await;
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{BACKOFF, DEADLINE, MANY, open, publish, store};
    use super::*;

    /// Nothing else would ever wake it: what came later would lie there, too.
    #[tokio::test]
    async fn message_that_comes_between_a_look_and_the_wait_is_not_slept_over() {
        let folder = tempfile::tempdir().unwrap();
        let queue = open(&store(folder.path()), 1000);
        let (parts, _deliveries, _pause) = queue.parts(MANY, BACKOFF);
        let mut source = Source::new(parts).await;
        source.start_read();
        assert!(source.read.is_none(), "there is nothing yet");
        publish(&queue, 0..1, 10).await;
        tokio::time::timeout(DEADLINE, source.wait(false, false)).await.expect("it sleeps");
        source.start_read();
        assert!(source.read.is_some());
    }
}
