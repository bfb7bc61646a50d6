//! Which reports in hand have a token that settles nothing any more, because their lane went and was taken again.
//!
//! Pure. Knows reports by id and number, and nothing of what they do. The loss prevented: such a report comes again while its first copy
//! still waits for its turn. Let in as one more, it would count towards its login's backlog, so that the login's order would be given up
//! for what is no flood, and it would hold a second place in memory, a third after the next time, and so on.

use std::collections::{BTreeSet, HashMap};

use crate::queue::Tag;
use crate::report::ReportId;

/// The reports that wait for a token that counts.
#[derive(Debug, Default)]
pub(super) struct Outdated {
    /// The newest generation of each lane.
    newest: HashMap<u32, u32>,
    reports: BTreeSet<(ReportId, u64)>,
}

impl Outdated {
    /// Notes whence a delivery came. `true`: the lane was lost since the last one, and what is in hand of it is outdated.
    pub(super) fn begins(&mut self, tag: Tag) -> bool {
        let newest = self.newest.entry(tag.lane).or_insert(tag.generation);
        let later = tag.generation > *newest;
        *newest = tag.generation.max(*newest);
        later
    }

    pub(super) fn extend(&mut self, reports: impl Iterator<Item = (ReportId, u64)>) {
        self.reports.extend(reports);
    }

    /// Those with an id, in the order in which they were taken.
    pub(super) fn of(&self, id: ReportId) -> impl Iterator<Item = u64> {
        self.reports.range((id, 0)..=(id, u64::MAX)).map(|(_, number)| *number)
    }

    /// A report has got a token that counts, or is not in hand any more.
    pub(super) fn forget(&mut self, id: ReportId, number: u64) {
        self.reports.remove(&(id, number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn tag(lane: u32, generation: u32) -> Tag {
        Tag { lane, generation, sequence: 0 }
    }

    #[test]
    fn lane_that_was_taken_again_is_told_once_and_others_are_not() {
        let mut outdated = Outdated::default();
        assert!(!outdated.begins(tag(0, 3)) && !outdated.begins(tag(1, 4)) && !outdated.begins(tag(0, 3)));
        assert!(outdated.begins(tag(0, 5)) && !outdated.begins(tag(0, 5)));
        // What lay on the way here is as outdated as what is in hand.
        assert!(!outdated.begins(tag(0, 3)) && !outdated.begins(tag(0, 5)));
    }

    #[test]
    fn report_that_is_there_twice_is_known_twice_in_its_order() {
        let (mut outdated, id) = (Outdated::default(), ReportId::default());
        outdated.extend([(id, 9), (id, 7), (id, 8)].into_iter());
        outdated.forget(id, 8);
        assert_eq!(outdated.of(id).collect::<Vec<_>>(), [7, 9]);
    }
}
