//! One channel of a source: opens it, waits for what comes first, closes it.
//!
//! Owns what the broker has handed out on this channel and has not got back. Never has more than the prefetch of it, which follows the
//! limits of what is unsettled as they are when the channel opens.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::FutureExt;
use futures_util::stream::StreamExt;
use lapin::options::BasicQosOptions;
use lapin::{Channel, Connection, Consumer};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::flights::{Flights, Stage};
use super::super::patience::Patience;
use super::super::way::Settled;
use super::super::{Delivery, Message, QueueError};
use super::Settings;
use super::source::Parts;
use super::turn::Held;
use crate::report::Time;

/// A prefetch is a number of 16 bits.
const MOST_PREFETCH: usize = 65_535;
/// The broker counts messages and not bytes: how large one is taken to be, so that what lies here before it is handed out stays near the
/// limit in bytes. A report of wforce has about 1 KiB.
const RECKONED_SIZE: usize = 8 * 1024;
/// Messages that may lie here however small that limit is.
const LEAST: usize = 64;
/// Deliveries and settlements looked at in one go.
const BATCH: usize = 2048;
/// How often the connection is looked at where nothing else happens.
const TICK: Duration = Duration::from_secs(1);
/// How long the last acks may take, and then the end of their channel.
const CLOSE: Duration = Duration::from_secs(5);

/// Why a channel is used no longer.
pub(super) enum End {
    /// The subscription is over.
    Over,
    /// The broker, or the way to it, is gone.
    Lost(QueueError),
    /// All that is held goes back, and a new channel begins.
    Renew,
}

/// A delivery that is not handed out yet.
pub(super) struct Ahead {
    pub(super) tag: u64,
    pub(super) message: Message,
}

pub(super) struct Session<'a> {
    pub(super) parts: &'a mut Parts,
    connection: Arc<Connection>,
    pub(super) channel: Channel,
    /// Ends with the channel: until then the next process waits.
    turn: Held,
    pub(super) consumer: Option<Consumer>,
    pub(super) generation: u32,
    /// Queue and channel, for coordinates: no two channels of any process share it.
    pub(super) place: String,
    /// The highest tag that came.
    pub(super) last: u64,
    pub(super) prefetch: usize,
    pub(super) flights: Flights,
    pub(super) ahead: VecDeque<Ahead>,
    pub(super) ahead_bytes: usize,
    /// When a delivery was taken, oldest first, while it is not settled.
    pub(super) taken: VecDeque<(Instant, u64)>,
    /// Everything below is finished.
    pub(super) position: u64,
    /// Everything up to here is settled with the broker.
    pub(super) acked: u64,
    /// Settled with the broker one by one, above `acked`.
    pub(super) singly: BTreeSet<u64>,
    pub(super) flush_at: Option<Instant>,
    /// Deliveries that the broker waits for.
    pub(super) open: usize,
    pub(super) buried_sender: mpsc::UnboundedSender<(u64, Result<(), QueueError>)>,
    buried: mpsc::UnboundedReceiver<(u64, Result<(), QueueError>)>,
    pub(super) burying: usize,
    pause_gone: bool,
    /// When the shard goes to another process, finished or not.
    releasing: Option<Patience>,
}

impl<'a> Session<'a> {
    pub(super) async fn open(parts: &'a mut Parts) -> Result<Self, QueueError> {
        let broker = Arc::clone(&parts.link.broker);
        let (connection, channel) = parts.wire.channel(&broker, false).await?;
        let limit = parts.limit();
        let most = limit.messages.min((limit.bytes / RECKONED_SIZE).max(LEAST)).clamp(1, MOST_PREFETCH);
        broker.within("prefetch", channel.basic_qos(prefetch(most), BasicQosOptions::default())).await?;
        let turn = match parts.turn.take(&broker, &connection, &channel).await {
            Ok(turn) => turn,
            Err(failure) => {
                // An answer that comes too late would make this channel the one that the next is to wait for.
                let _ = timeout(CLOSE, channel.close(200, "done".into())).await;
                return Err(failure.error);
            }
        };
        let generation = parts.generations.fetch_add(1, Ordering::Relaxed);
        let (buried_sender, buried) = mpsc::unbounded_channel();
        let mut session = Self {
            place: format!("{}/{:x}.{generation}", parts.queue(), Time::now().micros()),
            parts,
            connection,
            channel,
            turn,
            consumer: None,
            generation,
            last: 0,
            prefetch: most,
            // The first delivery of a channel has the tag 1.
            flights: Flights::starting_at(1),
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            taken: VecDeque::new(),
            position: 1,
            acked: 0,
            singly: BTreeSet::new(),
            flush_at: None,
            open: 0,
            buried_sender,
            buried,
            burying: 0,
            pause_gone: false,
            releasing: None,
        };
        if let Err(error) = session.consume().await {
            // A broker that does it all the same, after its time, would hand out to a channel from which nobody takes, and keep that back
            // from everybody else as long as the connection lasts.
            session.close(false).await;
            return Err(error);
        }
        Ok(session)
    }

    /// Until the subscription is over or the channel is lost.
    pub(super) async fn run(&mut self, settlements: &mut mpsc::UnboundedReceiver<Settled>) -> End {
        let mut settled = Vec::new();
        loop {
            if self.parts.over() {
                return End::Over;
            }
            let pausing = *self.parts.paused.borrow() && !self.parts.out.is_closed();
            // What is on its way to the dead letters would be one twice.
            let waits = self.flights.out() > 0 && !pausing && !self.held_for(self.settings().longest_hold);
            if self.held_for_long() && self.burying == 0 && !waits {
                return End::Renew;
            }
            if let Err(error) = self.look().await {
                return End::Lost(error);
            }
            if self.is_released() {
                return End::Over;
            }
            let full = self.hand_out();
            self.show();
            let nobody_takes = self.parts.out.is_closed();
            if nobody_takes {
                // What was sent while the other end went lies in the channel until that goes: its tokens would never come back.
                self.parts.out = mpsc::channel(1).0;
            }
            if nobody_takes && self.at_rest() {
                return End::Over;
            }
            if let Some(lost) = self.wait(settlements, &mut settled, full && !nobody_takes, nobody_takes).await {
                return End::Lost(self.parts.link.broker.unavailable(lost));
            }
            for (tag, settlement) in settled.drain(..) {
                if tag.generation == self.generation {
                    self.settle(tag.sequence, settlement);
                } else {
                    self.parts.link.broker.metrics.stale_settlements.inc();
                }
            }
            while let Ok((tag, done)) = self.buried.try_recv() {
                self.buried(tag, done);
            }
        }
    }

    /// All that is due with the broker.
    async fn look(&mut self) -> Result<(), QueueError> {
        if !self.connection.status().connected() || !self.channel.status().connected() {
            return Err(self.parts.link.broker.unavailable("the connection is gone"));
        }
        let (broker, parts) = (Arc::clone(&self.parts.link.broker), &mut *self.parts);
        parts.turn.keep(&broker, &self.connection, &self.channel, &mut self.turn);
        self.consume().await?;
        self.relieve().await?;
        self.flush(false).await
    }

    /// Nobody works on anything.
    fn at_rest(&self) -> bool {
        self.flights.out() == 0 && self.burying == 0
    }

    /// Whether the oldest delivery has been here for as long as one may: the broker loses its patience a while later and closes the channel
    /// itself. All goes back with the channel, to where it was: one by one, deliveries go behind all that the queue has. What somebody still
    /// works on comes a second time then; so this waits for that, but not where it waits itself for what the source is paused for, and not
    /// for longer than `longest_hold`: the broker would give back what is done and not acked, too.
    fn held_for_long(&self) -> bool {
        self.held_for(self.settings().hold)
    }

    fn held_for(&self, time: Duration) -> bool {
        self.taken.front().is_some_and(|(at, _)| *at + time <= Instant::now())
    }

    fn settings(&self) -> &Settings {
        &self.parts.link.broker.settings
    }

    /// Whether nothing more is handed out, so that what is worked on comes to an end and all the rest goes back: nobody works on what has
    /// been here for as long as one may, or somebody has for `longest_hold`, which ends before the broker closes the channel itself.
    pub(super) fn goes_back(&mut self) -> bool {
        let Some((_, oldest)) = self.taken.front().copied().filter(|_| self.held_for_long()) else { return false };
        self.held_for(self.settings().longest_hold)
            || self.ahead.front().is_some_and(|ahead| ahead.tag <= oldest)
            || matches!(self.flights.get(oldest).map(|open| &open.stage), Some(Stage::Waiting | Stage::Rejected(_)))
    }

    /// Whether the shard is to go to another process, and what was handed out of it is done, or has had its time.
    fn is_released(&mut self) -> bool {
        if !self.parts.released.is_cancelled() {
            return false;
        }
        let (wait, out) = (self.settings().release_timeout, self.flights.out());
        let now = Instant::now().into_std();
        let late = self.releasing.get_or_insert_with(|| Patience::new(wait, out, now)).is_over(out, now);
        let at_rest = self.at_rest();
        if late && !at_rest {
            let queue = self.parts.queue();
            tracing::warn!(
                queue,
                out,
                "a shard goes to another process before all of it is handled: the rest is handled twice (queue.amqp.release_timeout)"
            );
        }
        at_rest || late
    }

    /// What is held, for whoever asks for the depth.
    fn show(&self) {
        let oldest = self.flights.oldest().or_else(|| self.ahead.front().map(|ahead| &ahead.message));
        let oldest = oldest.map_or(0, |message| u64::try_from(message.published.micros()).unwrap_or(0));
        self.parts.in_hand().set(self.open, self.flights.held().bytes + self.ahead_bytes, oldest);
    }

    /// Waits for whatever comes first. `full`: there is something to hand out and no place for it. `Some`: the channel is lost.
    async fn wait(
        &mut self,
        settlements: &mut mpsc::UnboundedReceiver<Settled>,
        settled: &mut Vec<Settled>,
        full: bool,
        nobody_takes: bool,
    ) -> Option<String> {
        let released = self.parts.released.is_cancelled();
        let idle = full || nobody_takes || released || self.goes_back() || *self.parts.paused.borrow();
        let due = self.flights.next_due().filter(|_| !idle);
        let hold = self.settings().hold;
        let held = self.taken.front().map(|(at, _)| *at + hold).filter(|_| !self.held_for_long());
        let tick = Some(Instant::now() + TICK);
        let wake = [due, held, self.flush_at, tick].into_iter().flatten().min().unwrap_or_else(Instant::now);
        let parts = &mut *self.parts;
        let came = tokio::select! {
            _ = settlements.recv_many(settled, BATCH) => None,
            Some((tag, done)) = self.buried.recv() => {
                self.buried(tag, done);
                return None;
            }
            came = next(&mut self.consumer) => Some(came),
            () = room(&parts.out), if full => None,
            () = parts.out.closed(), if !nobody_takes => None,
            () = parts.stop.cancelled() => None,
            () = parts.released.cancelled(), if !released => None,
            _ = parts.newest.changed() => None,
            changed = parts.paused.changed(), if !self.pause_gone => {
                self.pause_gone = changed.is_err();
                None
            }
            () = sleep_until(wake) => None,
        };
        let mut came = came?;
        let mut left = BATCH;
        loop {
            if let Err(lost) = self.came(came) {
                return Some(lost);
            }
            // Asked before the next one is taken out: one taken out and not looked at would be lost to this channel.
            left -= 1;
            if left == 0 {
                break;
            }
            let Some(more) = self.consumer.as_mut().and_then(|consumer| consumer.next().now_or_never()) else { break };
            came = more;
        }
        None
    }

    /// What the consumer has. The error: the channel is lost.
    pub(super) fn came(&mut self, came: Option<lapin::Result<lapin::message::Delivery>>) -> Result<(), String> {
        match came {
            Some(Ok(delivery)) => self.take(delivery),
            Some(Err(error)) => Err(self.parts.link.broker.address.explain(&error)),
            None => Err("the broker ended the consumer".to_owned()),
        }
    }

    /// Gives everything that is not done back by closing the channel. `orderly`: after what is done was acked. The channel is closed
    /// however that goes: the client library cancels a consumer that is dropped on an open channel, and what a cancelled one has in hand
    /// comes after all that the next one is handed out meanwhile.
    pub(super) async fn close(&mut self, orderly: bool) {
        if orderly {
            let acks = async {
                self.flush(true).await?;
                self.ack_the_rest().await
            };
            let done = timeout(CLOSE, acks).await;
            let queue = self.parts.queue();
            match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(queue, %error, "the last acks may not be done: what they cover comes again then")
                }
                Err(_) => {
                    tracing::warn!(
                        queue,
                        "the broker did not take the last acks in time: what they cover may come again"
                    )
                }
            }
        }
        let _ = timeout(CLOSE, self.channel.close(200, "done".into())).await;
    }
}

/// As the wire has it.
fn prefetch(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

pub(super) async fn next(consumer: &mut Option<Consumer>) -> Option<lapin::Result<lapin::message::Delivery>> {
    match consumer {
        Some(consumer) => consumer.next().await,
        None => std::future::pending().await,
    }
}

async fn room(out: &mpsc::Sender<Delivery>) {
    let _ = out.reserve().await;
}
