//! What one subscription has handed out and not finished: messages, their places in the window, and when a nacked one is due; for every driver. Pure.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::iter::Sum;
use std::sync::Arc;

use tokio::time::Instant;

use super::dead_letter::Rejection;
use super::offsets::OffsetWindow;
use super::{Message, Reason, Unsettled};

/// What becomes of a message that is not done.
#[derive(Debug)]
pub(super) enum Stage {
    /// A token is out.
    Out,
    /// Handed out again when due.
    Waiting,
    /// On its way to the dead letters.
    Rejected(Box<Rejection>),
}

impl Stage {
    /// Rejected now.
    pub(super) fn rejected(reason: Reason) -> Self {
        Self::Rejected(Box::new(Rejection::now(reason)))
    }
}

#[derive(Debug)]
pub(super) struct Flight {
    sequence: u64,
    /// Bytes on disk, for a driver that counts them.
    size: u64,
    /// `None`: done.
    pub(super) open: Option<Open>,
}

#[derive(Debug)]
pub(super) struct Open {
    pub(super) message: Arc<Message>,
    /// How often it was handed out before.
    pub(super) redelivered: u32,
    /// How often the dead letters refused it.
    pub(super) refused: u32,
    /// The dead letters said that it is too large.
    #[cfg(feature = "kafka")]
    pub(super) too_large: bool,
    /// Its dead letter is to have the beginning only.
    #[cfg(feature = "kafka")]
    pub(super) cut: bool,
    pub(super) stage: Stage,
}

/// What counts towards the limit of what is unsettled.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Held {
    /// Messages that are not finished.
    pub(super) unfinished: usize,
    /// Their bytes.
    pub(super) bytes: usize,
    /// Messages that are not finished, or stand behind one that is not: what a crash would hand out again.
    pub(super) span: usize,
}

impl Held {
    /// Whether a message of `bytes` may be taken in too. What is done behind something unfinished counts as well, up to
    /// sixteen times the limit.
    pub(super) const fn room(self, bytes: usize, limit: Unsettled) -> bool {
        self.unfinished == 0
            || self.unfinished < limit.messages
                && self.bytes.saturating_add(bytes) <= limit.bytes
                && self.span < limit.messages.saturating_mul(16)
    }
}

impl Sum for Held {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            unfinished: sum.unfinished + one.unfinished,
            bytes: sum.bytes + one.bytes,
            span: sum.span + one.span,
        })
    }
}

/// The messages in flight of one subscription, or of one partition of it.
#[derive(Debug)]
pub(super) struct Flights {
    window: OffsetWindow,
    flights: VecDeque<Flight>,
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    bytes: usize,
    out: usize,
    /// Rejected ones that do not wait for their next try: their letters are on their way.
    burying: usize,
}

impl Flights {
    pub(super) fn starting_at(position: u64) -> Self {
        Self {
            window: OffsetWindow::starting_at(position),
            flights: VecDeque::new(),
            due: BinaryHeap::new(),
            bytes: 0,
            out: 0,
            burying: 0,
        }
    }

    /// What it has in hand.
    pub(super) fn held(&self) -> Held {
        Held { unfinished: self.window.unfinished(), bytes: self.bytes, span: self.window.span() }
    }

    /// Takes in a message that is handed out, or rejected without being handed out. `false`: it is known already.
    pub(super) fn add(&mut self, sequence: u64, size: u64, message: Arc<Message>, stage: Stage) -> bool {
        if !self.window.add(sequence) {
            return false;
        }
        self.bytes += message.size();
        self.out += usize::from(matches!(stage, Stage::Out));
        self.burying += usize::from(matches!(stage, Stage::Rejected(_)));
        let open = Open {
            message,
            redelivered: 0,
            refused: 0,
            #[cfg(feature = "kafka")]
            too_large: false,
            #[cfg(feature = "kafka")]
            cut: false,
            stage,
        };
        self.flights.push_back(Flight { sequence, size, open: Some(open) });
        true
    }

    /// The unfinished message with this sequence.
    pub(super) fn get(&mut self, sequence: u64) -> Option<&mut Open> {
        let at = self.find(sequence)?;
        self.flights[at].open.as_mut()
    }

    fn find(&self, sequence: u64) -> Option<usize> {
        let first = self.flights.front()?.sequence;
        let guess = usize::try_from(sequence.checked_sub(first)?).ok()?;
        if self.flights.get(guess).is_some_and(|flight| flight.sequence == sequence) {
            return Some(guess);
        }
        self.flights.binary_search_by_key(&sequence, |flight| flight.sequence).ok()
    }

    /// Takes the token of a message back: it is in another stage from now on. `None`: no token of it was out.
    pub(super) fn taken_back(&mut self, sequence: u64, stage: Stage) -> Option<&mut Open> {
        let at = self.find(sequence)?;
        let open = self.flights[at].open.as_mut()?;
        if !matches!(open.stage, Stage::Out) {
            return None;
        }
        self.out -= 1;
        self.burying += usize::from(matches!(stage, Stage::Rejected(_)));
        open.stage = stage;
        Some(open)
    }

    /// The message is to be looked at again at this time.
    pub(super) fn again_at(&mut self, sequence: u64, when: Instant) {
        self.burying -= usize::from(self.is_rejected(sequence));
        self.due.push(Reverse((when, sequence)));
    }

    fn is_rejected(&self, sequence: u64) -> bool {
        let open = self.find(sequence).and_then(|at| self.flights[at].open.as_ref());
        open.is_some_and(|open| matches!(open.stage, Stage::Rejected(_)))
    }

    /// A message whose time has come.
    pub(super) fn due(&mut self, now: Instant) -> Option<u64> {
        let Reverse((when, sequence)) = *self.due.peek()?;
        if when > now {
            return None;
        }
        self.due.pop();
        self.burying += usize::from(self.is_rejected(sequence));
        Some(sequence)
    }

    /// When the next message is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((when, _))| *when)
    }

    /// A message that was waiting is handed out again.
    pub(super) fn out_again(&mut self, sequence: u64) -> Option<(Arc<Message>, u32)> {
        let at = self.find(sequence)?;
        let open = self.flights[at].open.as_mut()?;
        open.stage = Stage::Out;
        open.redelivered += 1;
        self.out += 1;
        Some((Arc::clone(&open.message), open.redelivered))
    }

    /// The message is done. Gives the new position and the bytes on disk of all that lies between the old one and that.
    pub(super) fn finish(&mut self, sequence: u64) -> Option<(u64, u64)> {
        let at = self.find(sequence)?;
        let open = self.flights[at].open.take()?;
        self.bytes -= open.message.size();
        self.out -= usize::from(matches!(open.stage, Stage::Out));
        self.burying -= usize::from(matches!(open.stage, Stage::Rejected(_)));
        let position = self.window.finish(sequence)?;
        let mut bytes = 0;
        while self.flights.front().is_some_and(|flight| flight.sequence < position) {
            bytes += self.flights.pop_front().map_or(0, |flight| flight.size);
        }
        Some((position, bytes))
    }

    /// The finished ones behind an unfinished one.
    #[cfg(feature = "amqp")]
    pub(super) fn finished(&self) -> impl Iterator<Item = u64> + '_ {
        self.flights.iter().filter(|flight| flight.open.is_none()).map(|flight| flight.sequence)
    }

    /// Everything before this sequence is finished.
    #[cfg(feature = "kafka")]
    pub(super) const fn position(&self) -> u64 {
        self.window.position()
    }

    /// Tokens that are out, and messages on their way to the dead letters.
    #[cfg(feature = "kafka")]
    pub(super) const fn busy(&self) -> usize {
        self.out + self.burying
    }

    /// The oldest unfinished message.
    #[cfg(any(feature = "amqp", feature = "kafka"))]
    pub(super) fn oldest(&self) -> Option<&Message> {
        Some(&self.flights.front()?.open.as_ref()?.message)
    }

    /// Tokens that are out.
    pub(super) const fn out(&self) -> usize {
        self.out
    }

    /// Nothing is in the window.
    pub(super) fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Arc<Message> {
        Arc::new(Message::new("", vec![0_u8; length]))
    }

    #[test]
    fn bytes_and_messages_are_bounded_and_one_large_message_still_passes() {
        let limit = Unsettled { messages: 2, bytes: 100 };
        let mut flights = Flights::starting_at(0);
        assert!(flights.held().room(1000, limit), "a message over the limit must not block an empty window");
        assert!(flights.add(0, 1000, message(60), Stage::Out));
        assert!(!flights.held().room(41, limit) && flights.held().room(40, limit));
        assert!(flights.add(1, 10, message(1), Stage::Out));
        assert!(!flights.held().room(1, limit), "two messages are the limit");
        assert_eq!(flights.finish(1), None);
        assert!(flights.held().room(1, limit));
        assert_eq!(flights.finish(0), Some((2, 1010)));
        assert!(flights.is_empty());
    }

    /// Nobody would try again for a source whose taker has gone: it would wait for ever.
    #[cfg(feature = "kafka")]
    #[test]
    fn refused_letter_that_waits_for_its_next_try_is_not_under_way() {
        use super::super::delivery::ReasonKind;
        let mut flights = Flights::starting_at(0);
        let now = Instant::now();
        let reason = Reason { kind: ReasonKind::Policy, text: String::new(), only: Vec::new(), attempts: 1 };
        assert!(flights.add(0, 1, message(1), Stage::Out));
        assert!(flights.taken_back(0, Stage::rejected(reason)).is_some());
        assert_eq!((flights.out(), flights.busy()), (0, 1));
        flights.again_at(0, now);
        assert_eq!((flights.busy(), flights.due(now), flights.busy()), (0, Some(0), 1));
        assert!(flights.finish(0).is_some());
        assert_eq!(flights.busy(), 0);
    }

    #[test]
    fn nacked_message_keeps_its_place_and_comes_when_it_is_due() {
        let mut flights = Flights::starting_at(5);
        let now = Instant::now();
        assert!(flights.add(5, 1, message(1), Stage::Out) && flights.add(9, 1, message(1), Stage::Out));
        assert!(flights.taken_back(5, Stage::Waiting).is_some());
        assert!(flights.taken_back(5, Stage::Waiting).is_none(), "its token is not out");
        flights.again_at(5, now + std::time::Duration::from_secs(1));
        assert_eq!((flights.due(now), flights.out()), (None, 1));
        assert_eq!(flights.finish(9), None);
        assert_eq!(flights.due(now + std::time::Duration::from_secs(1)), Some(5));
        assert_eq!(flights.out_again(5).unwrap().1, 1);
        assert_eq!(flights.finish(5), Some((10, 2)));
        assert_eq!(flights.out(), 0);
    }
}
