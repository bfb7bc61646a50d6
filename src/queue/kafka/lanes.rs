//! The partitions that one source has, and what is in flight in each: messages, their places in the window, when a nacked one is due.
//!
//! Pure. A partition that is lost and comes back is another lane: its generation is higher, and a token of the old one finds nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::super::offsets::OffsetWindow;
use super::super::{Message, Reason, Tag, Unsettled};
use crate::report::Time;

/// What becomes of a message that is not done.
#[derive(Debug)]
pub(super) enum Stage {
    /// A token is out.
    Out,
    /// Handed out again when due.
    Waiting,
    /// On its way to the dead letters.
    Rejected(Box<Reason>),
}

#[derive(Debug)]
pub(super) struct Open {
    pub(super) message: Arc<Message>,
    /// How often it was handed out before.
    pub(super) redelivered: u32,
    /// How often the dead letters refused it.
    pub(super) refused: u32,
    pub(super) stage: Stage,
}

#[derive(Debug)]
struct Flight {
    sequence: u64,
    /// `None`: done.
    open: Option<Open>,
}

#[derive(Debug)]
struct Lane {
    generation: u32,
    /// Made at the first message: only then is it known where the partition starts.
    window: Option<OffsetWindow>,
    flights: VecDeque<Flight>,
    /// The position that was given to the broker last.
    given: Option<u64>,
}

impl Lane {
    fn find(&self, sequence: u64) -> Option<usize> {
        let first = self.flights.front()?.sequence;
        let guess = usize::try_from(sequence.checked_sub(first)?).ok()?;
        if self.flights.get(guess).is_some_and(|flight| flight.sequence == sequence) {
            return Some(guess);
        }
        self.flights.binary_search_by_key(&sequence, |flight| flight.sequence).ok()
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<u32, Lane>,
    due: BinaryHeap<Reverse<(Instant, Tag)>>,
    unfinished: usize,
    bytes: usize,
    out: usize,
    burying: usize,
}

impl Lanes {
    /// The partition is ours from now on.
    pub(super) fn assign(&mut self, lane: u32, generation: u32) {
        self.remove(lane);
        let new = Lane { generation, window: None, flights: VecDeque::new(), given: None };
        self.lanes.insert(lane, new);
    }

    /// The partition is not ours any more; what is in flight of it is forgotten.
    pub(super) fn remove(&mut self, lane: u32) {
        let Some(lane) = self.lanes.remove(&lane) else { return };
        for open in lane.flights.into_iter().filter_map(|flight| flight.open) {
            self.uncount(&open);
        }
    }

    /// No partition is ours.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn uncount(&mut self, open: &Open) {
        self.unfinished -= 1;
        self.bytes -= open.message.body.len();
        match open.stage {
            Stage::Out => self.out -= 1,
            Stage::Rejected(_) => self.burying -= 1,
            Stage::Waiting => {}
        }
    }

    pub(super) fn generation(&self, lane: u32) -> Option<u32> {
        self.lanes.get(&lane).map(|lane| lane.generation)
    }

    fn lane(&mut self, tag: Tag) -> Option<&mut Lane> {
        if self.has(tag) { self.lanes.get_mut(&tag.lane) } else { None }
    }

    /// Whether this generation of the partition is ours still. The one place that tells an old token from a new one.
    pub(super) fn has(&self, tag: Tag) -> bool {
        self.generation(tag.lane) == Some(tag.generation)
    }

    /// Whether a message with a body of `bytes` may be handed out too. What is done behind something unfinished counts as well, up to
    /// sixteen times the limit: it is what a crash would hand out again.
    pub(super) fn room(&self, bytes: usize, limit: Unsettled) -> bool {
        let span = self.lanes.values().filter_map(|lane| lane.window.as_ref()).map(OffsetWindow::span).sum::<usize>();
        self.unfinished == 0
            || self.unfinished < limit.messages
                && self.bytes.saturating_add(bytes) <= limit.bytes
                && span < limit.messages.saturating_mul(16)
    }

    /// Whether there is room for so much that it pays to have messages sent again.
    pub(super) fn plenty(&self, limit: Unsettled) -> bool {
        self.unfinished <= limit.messages / 4 * 3 && self.bytes <= limit.bytes / 4 * 3 && self.room(0, limit)
    }

    /// Takes in a message that is handed out. `false`: it is known already, or the partition is not ours.
    pub(super) fn add(&mut self, tag: Tag, message: Arc<Message>) -> bool {
        let bytes = message.body.len();
        let Some(lane) = self.lane(tag) else { return false };
        let window = lane.window.get_or_insert_with(|| OffsetWindow::starting_at(tag.sequence));
        if !window.add(tag.sequence) {
            return false;
        }
        let open = Open { message, redelivered: 0, refused: 0, stage: Stage::Out };
        lane.flights.push_back(Flight { sequence: tag.sequence, open: Some(open) });
        self.unfinished += 1;
        self.bytes += bytes;
        self.out += 1;
        true
    }

    /// The unfinished message with this tag.
    pub(super) fn get(&mut self, tag: Tag) -> Option<&mut Open> {
        let lane = self.lane(tag)?;
        let at = lane.find(tag.sequence)?;
        lane.flights[at].open.as_mut()
    }

    /// Takes the token of a message back: it is in another stage from now on. `None`: no token of it was out.
    pub(super) fn taken_back(&mut self, tag: Tag, stage: Stage) -> Option<&mut Open> {
        if !matches!(self.get(tag)?.stage, Stage::Out) {
            return None;
        }
        self.out -= 1;
        self.burying += usize::from(matches!(stage, Stage::Rejected(_)));
        let open = self.get(tag)?;
        open.stage = stage;
        Some(open)
    }

    /// The message is to be looked at again at this time.
    pub(super) fn again_at(&mut self, tag: Tag, when: Instant) {
        self.due.push(Reverse((when, tag)));
    }

    /// A message whose time has come.
    pub(super) fn due(&mut self, now: Instant) -> Option<Tag> {
        let Reverse((when, tag)) = *self.due.peek()?;
        if when > now {
            return None;
        }
        self.due.pop();
        Some(tag)
    }

    /// Whether a message is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.peek().is_some_and(|Reverse((when, _))| *when <= now)
    }

    /// A message that was waiting is handed out again.
    pub(super) fn out_again(&mut self, tag: Tag) -> Option<(Arc<Message>, u32)> {
        let open = self.get(tag)?;
        open.stage = Stage::Out;
        open.redelivered += 1;
        let again = (Arc::clone(&open.message), open.redelivered);
        self.out += 1;
        Some(again)
    }

    /// The message is done.
    pub(super) fn finish(&mut self, tag: Tag) {
        let Some(lane) = self.lane(tag) else { return };
        let Some(open) = lane.find(tag.sequence).and_then(|at| lane.flights[at].open.take()) else { return };
        if let Some(position) = lane.window.as_mut().and_then(|window| window.finish(tag.sequence)) {
            while lane.flights.front().is_some_and(|flight| flight.sequence < position) {
                lane.flights.pop_front();
            }
        }
        self.uncount(&open);
    }

    /// Positions that the broker was not given yet, of all partitions or of some.
    pub(super) fn moved(&mut self, only: Option<&[u32]>) -> Vec<(u32, u64)> {
        let mut moved = Vec::new();
        for (number, lane) in &mut self.lanes {
            if only.is_some_and(|only| !only.contains(number)) {
                continue;
            }
            // Before the first one is finished the position is where the partition started: nothing to be stored.
            let Some(position) = lane.window.as_ref().map(OffsetWindow::position) else { continue };
            if lane.given.is_none_or(|given| position > given) {
                lane.given = Some(position);
                moved.push((*number, position));
            }
        }
        moved
    }

    /// What was given of all partitions, or of some, may not have arrived: it is given again.
    pub(super) fn give_again(&mut self, only: Option<&[u32]>) {
        let meant = self.lanes.iter_mut().filter(|(number, _)| only.is_none_or(|only| only.contains(number)));
        meant.for_each(|(_, lane)| lane.given = None);
    }

    /// The positions of the partitions that are ours.
    pub(super) fn positions(&self) -> BTreeMap<u32, Option<u64>> {
        let position = |lane: &Lane| lane.window.as_ref().map(OffsetWindow::position);
        self.lanes.iter().map(|(number, lane)| (*number, position(lane))).collect()
    }

    /// How many tokens are out, and letters on their way, of some partitions.
    pub(super) fn busy(&self, lanes: &[u32]) -> usize {
        let moves = |flight: &Flight| flight.open.as_ref().is_some_and(|open| !matches!(open.stage, Stage::Waiting));
        let mine = self.lanes.iter().filter(|(number, _)| lanes.contains(number));
        mine.flat_map(|(_, lane)| &lane.flights).filter(|flight| moves(flight)).count()
    }

    /// Nothing is handed out and no letter is on its way: nothing will be settled any more.
    pub(super) const fn at_rest(&self) -> bool {
        self.out == 0 && self.burying == 0
    }

    /// Nothing is unfinished.
    pub(super) const fn is_empty(&self) -> bool {
        self.unfinished == 0
    }

    /// Bytes of what is not finished, and when the oldest of it was published.
    pub(super) fn unfinished(&self) -> (u64, Option<Time>) {
        let first = |lane: &Lane| lane.flights.iter().find_map(|flight| Some(flight.open.as_ref()?.message.published));
        (self.bytes as u64, self.lanes.values().filter_map(first).min())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Arc<Message> {
        Arc::new(Message::new("k", vec![0_u8; length]))
    }

    const fn tag(lane: u32, generation: u32, sequence: u64) -> Tag {
        Tag { lane, generation, sequence }
    }

    #[test]
    fn partition_that_was_lost_and_came_back_is_another_lane() {
        let mut lanes = Lanes::default();
        lanes.assign(0, 1);
        lanes.assign(1, 2);
        assert!(
            lanes.add(tag(0, 1, 5), message(10))
                && lanes.add(tag(0, 1, 6), message(1))
                && lanes.add(tag(1, 2, 0), message(1))
        );
        lanes.finish(tag(0, 1, 6));
        assert_eq!(lanes.moved(None), [(0, 5), (1, 0)]);
        lanes.assign(0, 3);
        assert!(!lanes.has(tag(0, 1, 5)) && lanes.has(tag(0, 3, 5)));
        lanes.finish(tag(0, 1, 5));
        assert!(lanes.taken_back(tag(0, 1, 5), Stage::Waiting).is_none() && !lanes.add(tag(0, 1, 7), message(1)));
        assert_eq!((lanes.unfinished, lanes.bytes, lanes.out), (1, 1, 1));
        assert!(lanes.add(tag(0, 3, 5), message(1)));
        lanes.finish(tag(0, 3, 5));
        assert_eq!(lanes.moved(Some(&[0])), [(0, 6)]);
        assert_eq!(lanes.moved(None), []);
        lanes.give_again(None);
        assert_eq!(lanes.moved(None), [(0, 6), (1, 0)]);
        lanes.finish(tag(1, 2, 0));
        assert!(lanes.is_empty() && lanes.at_rest());
    }

    #[test]
    fn limits_count_over_all_partitions_and_one_large_message_still_passes() {
        let limit = Unsettled { messages: 4, bytes: 100 };
        let mut lanes = Lanes::default();
        lanes.assign(0, 1);
        lanes.assign(1, 2);
        assert!(lanes.room(1000, limit), "a message over the limit must not block an empty window");
        assert!(lanes.add(tag(0, 1, 0), message(60)) && lanes.room(40, limit) && !lanes.room(41, limit));
        for sequence in 0..3 {
            assert!(lanes.add(tag(1, 2, sequence), message(1)));
        }
        assert!(!lanes.room(1, limit) && !lanes.plenty(limit));
        lanes.finish(tag(1, 2, 1));
        assert!(lanes.room(1, limit) && lanes.plenty(limit));
    }

    #[test]
    fn nacked_message_keeps_its_place_and_comes_when_it_is_due() {
        let mut lanes = Lanes::default();
        lanes.assign(0, 1);
        let (one, now) = (tag(0, 1, 5), Instant::now());
        assert!(lanes.add(one, message(1)) && lanes.busy(&[0]) == 1 && lanes.busy(&[1]) == 0);
        assert!(lanes.taken_back(one, Stage::Waiting).is_some());
        assert!(lanes.taken_back(one, Stage::Waiting).is_none(), "its token is not out");
        assert!(lanes.at_rest() && !lanes.is_empty() && lanes.busy(&[0]) == 0);
        lanes.again_at(one, now);
        assert!(lanes.is_due(now));
        assert_eq!(lanes.due(now), Some(one));
        assert_eq!(lanes.out_again(one).unwrap().1, 1);
        lanes.finish(one);
        assert_eq!(lanes.moved(None), [(0, 6)]);
    }
}
