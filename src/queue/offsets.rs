//! Out-of-order completion, in-order commit: the positions of one lane that are handed out, and how far the stored position may go.
//!
//! Pure. The loss prevented: a commit that passes an unfinished message loses it at the next crash.

use std::collections::VecDeque;

/// The unfinished part of one lane. Sequences are added in rising order (gaps allowed: a compacted topic has them) and finished in
/// any order; [`OffsetWindow::position`] never passes an unfinished one.
#[derive(Debug, Default)]
pub struct OffsetWindow {
    entries: VecDeque<Entry>,
    /// One past the highest sequence below which all is finished.
    position: u64,
    unfinished: usize,
}

#[derive(Debug)]
struct Entry {
    sequence: u64,
    finished: bool,
}

impl OffsetWindow {
    /// An empty window whose stored position is `position`: the first sequence to be handed out, or any below it.
    pub const fn starting_at(position: u64) -> Self {
        Self { entries: VecDeque::new(), position, unfinished: 0 }
    }

    /// Notes that `sequence` was handed out. `false`, and nothing changed: it is not above every sequence added before, or is
    /// below the position (a source that went backwards; its message is handled already or is in the window).
    pub fn add(&mut self, sequence: u64) -> bool {
        let above_last = self.entries.back().is_none_or(|last| sequence > last.sequence);
        if !above_last || sequence < self.position {
            return false;
        }
        self.entries.push_back(Entry { sequence, finished: false });
        self.unfinished += 1;
        true
    }

    /// Notes that `sequence` is done for good. Gives the new position where that moved it. A sequence that is unknown or already
    /// finished changes nothing.
    pub fn finish(&mut self, sequence: u64) -> Option<u64> {
        let at = self.entries.binary_search_by_key(&sequence, |entry| entry.sequence).ok()?;
        let entry = &mut self.entries[at];
        if entry.finished {
            return None;
        }
        entry.finished = true;
        self.unfinished -= 1;
        let before = self.position;
        while self.entries.front().is_some_and(|first| first.finished) {
            if let Some(first) = self.entries.pop_front() {
                self.position = first.sequence + 1;
            }
        }
        (self.position > before).then_some(self.position)
    }

    /// Where to start after a crash: everything below is finished.
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// How many are handed out and not finished.
    pub const fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// How many the window holds, finished ones behind an unfinished one included: what a crash would hand out again.
    pub fn span(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn last_of_three_finished_first_does_not_move_the_position() {
        let mut window = OffsetWindow::starting_at(10);
        assert!(window.add(10) && window.add(11) && window.add(12));
        assert_eq!(window.finish(12), None);
        assert_eq!(window.finish(11), None);
        assert_eq!(window.position(), 10);
        assert_eq!(window.finish(10), Some(13));
        assert_eq!(window.span(), 0);
    }

    #[test]
    fn compacted_topic_with_gaps_commits_past_the_gap() {
        let mut window = OffsetWindow::starting_at(0);
        assert!(window.add(5) && window.add(90));
        assert_eq!(window.finish(5), Some(6));
        assert_eq!(window.finish(90), Some(91));
    }

    #[test]
    fn finished_twice_counts_once() {
        let mut window = OffsetWindow::starting_at(0);
        assert!(window.add(0) && window.add(1));
        assert_eq!(window.finish(0), Some(1));
        assert_eq!(window.finish(0), None);
        assert_eq!(window.unfinished(), 1);
    }

    #[test]
    fn source_that_goes_backwards_is_refused() {
        let mut window = OffsetWindow::starting_at(7);
        assert!(!window.add(6));
        assert!(window.add(7));
        assert!(!window.add(7));
    }

    proptest! {
        /// Whatever the order of completion, and however often it is said, the position is the lowest unfinished sequence, or one
        /// past the last.
        #[test]
        fn position_is_the_lowest_unfinished(
            start in 0_u64..1000,
            gaps in proptest::collection::vec(1_u64..4, 1..60),
            order in proptest::collection::vec(any::<prop::sample::Index>(), 0..200),
        ) {
            let mut window = OffsetWindow::starting_at(start);
            let mut sequences = Vec::new();
            let mut next = start;
            for gap in gaps {
                next += gap;
                prop_assert!(window.add(next));
                sequences.push(next);
            }
            let mut open: std::collections::BTreeSet<u64> = sequences.iter().copied().collect();
            let mut committed = start;
            for index in order {
                let sequence = sequences[index.index(sequences.len())];
                open.remove(&sequence);
                if let Some(position) = window.finish(sequence) {
                    prop_assert!(position > committed, "a commit only goes forward");
                    committed = position;
                }
                let lowest = open.first().copied().unwrap_or(next + 1);
                prop_assert!(window.position() <= lowest, "the commit passed an unfinished message");
                let finished_before = sequences.iter().take_while(|s| **s < lowest).last();
                prop_assert_eq!(window.position(), finished_before.map_or(start, |s| s + 1));
                prop_assert_eq!(window.unfinished(), open.len());
            }
        }
    }
}
