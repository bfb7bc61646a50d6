//! Which of the reports in a virtual machine made it fail: half of them run again in a machine of their own, and what fails there again
//! in halves of that, until one fails alone.
//!
//! Pure. Knows jobs by number. The loss prevented: a thousand innocent reports that run again one by one behind one guilty neighbour,
//! each as long as its servers need to answer. In halves each runs again some ten times at most, and most of them once.

use std::collections::{BTreeMap, VecDeque};

/// The key of those that no party of known size failed with.
const FIRST: usize = usize::MAX;

/// The reports that wait for a machine apart from the others, by how many may at most share one.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    waiting: BTreeMap<usize, VecDeque<u64>>,
}

impl Suspects {
    /// Adds one that was in a machine that failed; `party`: how many shared it, if it was a machine apart; 0: it was a worker's own, with
    /// any number.
    pub(super) fn add(&mut self, job: u64, party: usize) {
        let most = if party == 0 { FIRST } else { (party / 2).max(1) };
        self.waiting.entry(most).or_default().push_back(job);
    }

    /// The next ones that run again together, at most `at_most`, which is no less than one. Those of the smallest parties come first:
    /// they have waited longest, and what is added behind them cannot hold them up.
    pub(super) fn next(&mut self, at_most: usize) -> Option<Vec<u64>> {
        let mut first = self.waiting.first_entry()?;
        let most = if *first.key() == FIRST { first.get().len().div_ceil(2) } else { *first.key() };
        let count = most.min(at_most).clamp(1, first.get().len());
        let party = first.get_mut().drain(..count).collect();
        if first.get().is_empty() {
            first.remove();
        }
        Some(party)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_that_failed_by_itself_is_alone_at_once() {
        let mut suspects = Suspects::default();
        suspects.add(7, 0);
        assert_eq!(suspects.next(100), Some(vec![7]));
        assert_eq!(suspects.next(100), None);
    }

    #[test]
    fn parties_are_no_larger_than_a_machine_holds() {
        let mut suspects = Suspects::default();
        (0..100).for_each(|job| suspects.add(job, 0));
        assert_eq!(suspects.next(3), Some(vec![0, 1, 2]));
    }

    proptest! {
        /// A machine fails for all in it where one of them is guilty. Whoever is guilty is found alone, nobody else fails alone, and
        /// nobody runs more often than halving takes.
        #[test]
        fn only_the_guilty_fail_alone_and_nobody_runs_often(
            count in 1_u64..400,
            guilty in proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
            at_once in 1_usize..9,
            at_most in 1_usize..500,
        ) {
            let guilty: BTreeSet<u64> = guilty.iter().map(|index| index.index(count as usize) as u64).collect();
            let mut suspects = Suspects::default();
            (0..count).for_each(|job| suspects.add(job, 0));
            let (mut done, mut found, mut runs) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::<u64, u32>::new());
            loop {
                let parties: Vec<_> = std::iter::from_fn(|| suspects.next(at_most)).take(at_once).collect();
                if parties.is_empty() {
                    break;
                }
                for party in parties {
                    party.iter().for_each(|job| *runs.entry(*job).or_default() += 1);
                    let fails = party.iter().any(|job| guilty.contains(job));
                    match party.as_slice() {
                        [one] if fails => drop(found.insert(*one)),
                        _ if fails => party.iter().for_each(|job| suspects.add(*job, party.len())),
                        _ => done.extend(party),
                    }
                }
            }
            prop_assert_eq!(done.len() + found.len(), count as usize);
            prop_assert_eq!(&found, &guilty);
            let most = count.ilog2() + 2;
            prop_assert!(runs.values().all(|runs| *runs <= most), "{runs:?}");
        }
    }
}
