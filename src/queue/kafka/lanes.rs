//! The partitions that one source has, and what is in flight in each.
//!
//! Pure. A partition that is lost and comes back is another lane: its generation is higher, and a token of the old one finds nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::super::flights::{Flights, Held, Open, Stage};
use super::super::{Message, Tag, Unsettled};
use crate::report::Time;

#[derive(Debug)]
struct Lane {
    generation: u32,
    /// Made at the first message: only then is it known where the partition starts.
    flights: Option<Flights>,
    /// The position that was given to the broker last.
    given: Option<u64>,
    /// The message that came first.
    first: Option<u64>,
    /// One past the message that came last.
    next: u64,
    /// No position beyond this one is given: the partition went back to it.
    most: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Lanes(BTreeMap<u32, Lane>);

impl Lanes {
    /// The partition is ours from now on.
    pub(super) fn assign(&mut self, lane: u32, generation: u32) {
        self.0.insert(lane, Lane { generation, flights: None, given: None, first: None, next: 0, most: u64::MAX });
    }

    /// The partition is not ours any more; what is in flight of it is forgotten.
    pub(super) fn remove(&mut self, lane: u32) {
        self.0.remove(&lane);
    }

    /// No partition is ours.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    fn generation(&self, lane: u32) -> Option<u32> {
        self.0.get(&lane).map(|lane| lane.generation)
    }

    /// Which sequence was to come at least, where this one is before it: the partition is another one than it was, or repeats itself. Left
    /// alone, what it holds would be taken for known up to there, and lost.
    pub(super) fn went_back(&self, lane: u32, sequence: u64) -> Option<u64> {
        self.0.get(&lane).map(|lane| lane.next).filter(|next| sequence < *next)
    }

    /// Where the position of a partition is before this message, to which it went back: gives no position beyond it from now on, as what
    /// stands there now is not what was handed out. `false`: nothing unfinished is before it.
    pub(super) fn ends_at(&mut self, lane: u32, sequence: u64) -> bool {
        let Some(lane) = self.0.get_mut(&lane) else { return false };
        let position = lane.flights.as_ref().map(Flights::position).or(lane.first);
        let before = position.is_some_and(|position| position < sequence);
        if before {
            lane.most = sequence;
        }
        before
    }

    /// How many of a partition's messages are not finished.
    pub(super) fn in_hand(&self, lane: u32) -> usize {
        let flights = self.0.get(&lane).and_then(|lane| lane.flights.as_ref());
        flights.map_or(0, |flights| flights.held().unfinished)
    }

    /// Notes that a message came. Gives the generation of its partition; `None`: that is not ours.
    pub(super) fn came(&mut self, lane: u32, sequence: u64) -> Option<u32> {
        let lane = self.0.get_mut(&lane)?;
        lane.first.get_or_insert(sequence);
        lane.next = sequence + 1;
        Some(lane.generation)
    }

    /// Whether this generation of the partition is ours still. The one place that tells an old token from a new one.
    pub(super) fn has(&self, tag: Tag) -> bool {
        self.generation(tag.lane) == Some(tag.generation)
    }

    fn of(&mut self, tag: Tag) -> Option<&mut Flights> {
        if self.has(tag) { self.0.get_mut(&tag.lane)?.flights.as_mut() } else { None }
    }

    fn flights(&self) -> impl Iterator<Item = &Flights> {
        self.0.values().filter_map(|lane| lane.flights.as_ref())
    }

    fn held(&self) -> Held {
        self.flights().map(Flights::held).sum()
    }

    /// Whether a message of `bytes` may be handed out too.
    pub(super) fn room(&self, bytes: usize, limit: Unsettled) -> bool {
        self.held().room(bytes, limit)
    }

    /// Whether there is room for so much that it pays to have messages sent again.
    pub(super) fn plenty(&self, limit: Unsettled) -> bool {
        let held = self.held();
        held.unfinished <= limit.messages / 4 * 3 && held.bytes <= limit.bytes / 4 * 3 && held.room(0, limit)
    }

    /// Takes in a message that is handed out. `false`: it is known already, or the partition is not ours.
    pub(super) fn add(&mut self, tag: Tag, message: Arc<Message>) -> bool {
        if !self.has(tag) {
            return false;
        }
        let Some(lane) = self.0.get_mut(&tag.lane) else { return false };
        let flights = lane.flights.get_or_insert_with(|| Flights::starting_at(tag.sequence));
        flights.add(tag.sequence, 0, message, Stage::Out)
    }

    /// The unfinished message with this tag.
    pub(super) fn get(&mut self, tag: Tag) -> Option<&mut Open> {
        self.of(tag)?.get(tag.sequence)
    }

    /// Takes the token of a message back: it is in another stage from now on. `None`: no token of it was out.
    pub(super) fn taken_back(&mut self, tag: Tag, stage: Stage) -> Option<&mut Open> {
        self.of(tag)?.taken_back(tag.sequence, stage)
    }

    /// The message is to be looked at again at this time.
    pub(super) fn again_at(&mut self, tag: Tag, when: Instant) {
        if let Some(flights) = self.of(tag) {
            flights.again_at(tag.sequence, when);
        }
    }

    /// A message whose time has come.
    pub(super) fn due(&mut self, now: Instant) -> Option<Tag> {
        self.0.iter_mut().find_map(|(&number, lane)| {
            let sequence = lane.flights.as_mut()?.due(now)?;
            Some(Tag { lane: number, generation: lane.generation, sequence })
        })
    }

    /// Whether a message is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.flights().filter_map(Flights::next_due).any(|when| when <= now)
    }

    /// A message that was waiting is handed out again.
    pub(super) fn out_again(&mut self, tag: Tag) -> Option<(Arc<Message>, u32)> {
        self.of(tag)?.out_again(tag.sequence)
    }

    /// The message is done.
    pub(super) fn finish(&mut self, tag: Tag) {
        if let Some(flights) = self.of(tag) {
            flights.finish(tag.sequence);
        }
    }

    /// Positions that the broker was not given yet, of all partitions or of some.
    pub(super) fn moved(&mut self, only: Option<&[u32]>) -> Vec<(u32, u64)> {
        let mut moved = Vec::new();
        for (number, lane) in &mut self.0 {
            if only.is_some_and(|only| !only.contains(number)) {
                continue;
            }
            // Before the first message the position is where the partition started: nothing to be stored.
            let Some(position) = lane.flights.as_ref().map(Flights::position) else { continue };
            let position = position.min(lane.most);
            if lane.given.is_none_or(|given| position > given) {
                lane.given = Some(position);
                moved.push((*number, position));
            }
        }
        moved
    }

    /// What was given of all partitions, or of some, may not have arrived: it is given again.
    pub(super) fn give_again(&mut self, only: Option<&[u32]>) {
        let meant = self.0.iter_mut().filter(|(number, _)| only.is_none_or(|only| only.contains(number)));
        meant.for_each(|(_, lane)| lane.given = None);
    }

    /// The positions of the partitions that are ours.
    pub(super) fn positions(&self) -> BTreeMap<u32, Option<u64>> {
        self.0.iter().map(|(number, lane)| (*number, lane.flights.as_ref().map(Flights::position))).collect()
    }

    /// How many tokens are out, and letters on their way, of some partitions.
    pub(super) fn busy(&self, lanes: &[u32]) -> usize {
        lanes.iter().filter_map(|number| self.0.get(number)?.flights.as_ref()).map(Flights::busy).sum()
    }

    /// Nothing is handed out and no letter is on its way: nothing will be settled any more.
    pub(super) fn at_rest(&self) -> bool {
        self.flights().all(|flights| flights.busy() == 0)
    }

    /// Nothing is unfinished.
    pub(super) fn is_empty(&self) -> bool {
        self.held().unfinished == 0
    }

    /// Bytes of what is not finished, and when the oldest of it was published.
    pub(super) fn unfinished(&self) -> (u64, Option<Time>) {
        let oldest = self.flights().filter_map(Flights::oldest).map(|message| message.published).min();
        (self.held().bytes as u64, oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Arc<Message> {
        Arc::new(Message::new("", vec![0_u8; length]))
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
        let held = lanes.held();
        assert_eq!((held.unfinished, held.bytes, lanes.busy(&[0, 1])), (1, 1, 1));
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
    fn partition_that_went_back_starts_there_and_old_tokens_find_nothing() {
        let mut lanes = Lanes::default();
        assert_eq!((lanes.came(0, 5), lanes.went_back(0, 0)), (None, None), "it is not ours");
        lanes.assign(0, 1);
        for sequence in [5, 6, 9] {
            assert_eq!((lanes.went_back(0, sequence), lanes.came(0, sequence)), (None, Some(1)));
            assert!(lanes.add(tag(0, 1, sequence), message(1)));
        }
        lanes.finish(tag(0, 1, 5));
        assert_eq!(lanes.moved(None), [(0, 6)]);
        assert_eq!(lanes.went_back(0, 2), Some(10));
        assert_eq!([2, 6].map(|sequence| lanes.ends_at(0, sequence)), [false, false]);
        lanes.assign(0, 2);
        assert_eq!((lanes.went_back(0, 2), lanes.came(0, 2)), (None, Some(2)));
        assert!(lanes.add(tag(0, 2, 2), message(1)));
        lanes.finish(tag(0, 1, 6));
        lanes.finish(tag(0, 2, 2));
        assert_eq!(lanes.moved(None), [(0, 3)], "what stands there now is taken for known");
    }

    #[test]
    fn partition_that_went_back_into_what_is_in_hand_has_no_position_beyond_that() {
        let mut lanes = Lanes::default();
        assert!(!lanes.ends_at(0, 5), "it is not ours");
        lanes.assign(0, 1);
        for sequence in 5..10 {
            assert_eq!(lanes.came(0, sequence), Some(1));
        }
        assert!(!lanes.ends_at(0, 4) && !lanes.ends_at(0, 5), "nothing came before");
        assert!(lanes.ends_at(0, 9), "what came and is not handed out is lost");
        for sequence in 5..10 {
            assert!(lanes.add(tag(0, 1, sequence), message(1)));
        }
        lanes.finish(tag(0, 1, 5));
        assert!(!lanes.ends_at(0, 6) && lanes.ends_at(0, 7));
        (6..10).for_each(|sequence| lanes.finish(tag(0, 1, sequence)));
        assert_eq!(lanes.moved(None), [(0, 7)], "what stands there now is taken for done");
        lanes.assign(0, 2);
        assert!(lanes.add(tag(0, 2, 7), message(1)));
        lanes.finish(tag(0, 2, 7));
        assert_eq!(lanes.moved(None), [(0, 8)]);
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
