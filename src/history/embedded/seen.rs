//! Which report ids a day may hold: a Bloom filter over the committed ones, so that a new report costs no look-up on disk.
//!
//! Owns the filter. "No" is certain; "maybe" (1 in 100 for a new one) is settled by the index.

/// Bits for each id, and hashes of it: 1 in 100 is a false "maybe".
const BITS: usize = 10;
const HASHES: u64 = 7;

/// One filter after another, each twice as large: a day's size is not known when it begins.
#[derive(Debug)]
pub(super) struct Seen {
    filters: Vec<Filter>,
}

#[derive(Debug)]
struct Filter {
    bits: Vec<u64>,
    room: usize,
}

impl Seen {
    /// For about so many ids.
    pub(super) fn with_room(ids: usize) -> Self {
        Self { filters: vec![Filter::new(ids.max(8192))] }
    }

    pub(super) fn insert(&mut self, id: u64) {
        let next = match self.filters.last_mut() {
            Some(filter) if filter.room > 0 => return filter.insert(id),
            Some(filter) => filter.bits.len() * 64 / BITS * 2,
            None => 8192,
        };
        let mut filter = Filter::new(next);
        filter.insert(id);
        self.filters.push(filter);
    }

    pub(super) fn may_have(&self, id: u64) -> bool {
        self.filters.iter().any(|filter| filter.places(id).all(|(word, bit)| filter.bits[word] & bit != 0))
    }
}

impl Filter {
    fn new(ids: usize) -> Self {
        Self { bits: vec![0; (ids * BITS).div_ceil(64)], room: ids }
    }

    fn insert(&mut self, id: u64) {
        for place in 0..HASHES {
            let (word, bit) = self.place(id, place);
            self.bits[word] |= bit;
        }
        self.room = self.room.saturating_sub(1);
    }

    fn places(&self, id: u64) -> impl Iterator<Item = (usize, u64)> + '_ {
        (0..HASHES).map(move |place| self.place(id, place))
    }

    /// The ids are parts of SHA-256 already; the second hash only has to differ from the first.
    fn place(&self, id: u64, n: u64) -> (usize, u64) {
        let step = (id ^ (id >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let hash = id.wrapping_add(n.wrapping_mul(step)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let word = (u128::from(hash) * self.bits.len() as u128) >> 64;
        (word as usize, 1 << (hash & 63))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::embedded::schema::half;
    use crate::report::ReportId;

    #[test]
    fn what_was_put_in_is_found_and_little_else() {
        let id = |n: u32| half(&ReportId::of(&n.to_be_bytes()));
        let mut seen = Seen::with_room(0);
        (0..50_000).for_each(|n| seen.insert(id(n)));
        assert!((0..50_000).all(|n| seen.may_have(id(n))));
        let wrong = (50_000..100_000).filter(|n| seen.may_have(id(*n))).count();
        assert!(wrong < 2_500, "{wrong} of 50,000 are held for seen");
    }
}
