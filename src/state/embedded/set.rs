//! One set on disk: which members were seen when. Pure.
//!
//! The newest occurrences stand in the head, which is rewritten at each add; when it is full they move into a chunk that never changes
//! again, so that an add to a large set costs no more than one to a small set. Occurrences are kept, not only the last one of each
//! member: a report that is asked again later must get the answer that it got before.

use std::time::Duration;

use super::age::{Horizon, Hour};

/// Occurrences in a head before it is thinned, and sealed where that did not help.
const HEAD: usize = 128;
/// A thinned head with so many occurrences is sealed.
const SEAL: usize = 96;
const VERSION: u8 = 2;
const FIXED: usize = 1 + 8 + 8 + 4 + 4 + 4;
/// Bytes of a chunk's entry in the head.
const CHUNK: usize = 4 + 8 + 8 + 4;

/// One occurrence: the member's hash and the time in microseconds.
pub(super) type Seen = (u64, i64);

/// A chunk's number, the times of its first and last occurrence, and when it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) number: u32,
    pub(super) first: i64,
    pub(super) last: i64,
    pub(super) written: Hour,
}

/// What stands under the set's own key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// The longest and the shortest time, in microseconds, for which an occurrence may be asked for.
    longest: i64,
    shortest: i64,
    next: u32,
    /// The last add.
    written: Hour,
    pub(super) chunks: Vec<Chunk>,
    pub(super) seen: Vec<Seen>,
}

impl Default for Head {
    fn default() -> Self {
        Self { longest: 0, shortest: i64::MAX, next: 0, written: Hour::default(), chunks: Vec::new(), seen: Vec::new() }
    }
}

/// What an add does besides changing the head.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// A new chunk.
    pub(super) sealed: Option<(u32, Vec<Seen>)>,
    /// Chunks that go.
    pub(super) dropped: Vec<u32>,
}

impl Head {
    /// Notes an occurrence. `None`: nothing new was learnt. Chunks that are `old` (less the longest time) go, and so does the oldest
    /// where there are more than `most` chunks. Nothing leaves the head by its age alone: what a replay of last month has just put
    /// there is old by its report time and young all the same.
    pub(super) fn add(&mut self, (member, at): Seen, within: Duration, old: Horizon, most: usize) -> Option<Moved> {
        let within = i64::try_from(within.as_micros()).unwrap_or(i64::MAX);
        let known = self.seen.contains(&(member, at));
        if known && within <= self.longest && within >= self.shortest && self.written == old.now {
            return None;
        }
        self.longest = self.longest.max(within);
        self.shortest = self.shortest.min(within);
        self.written = old.now;
        let mut moved = Moved::default();
        if known {
            return Some(moved);
        }
        self.seen.push((member, at));
        if self.seen.len() < HEAD {
            return Some(moved);
        }
        thin(&mut self.seen, self.shortest);
        if self.seen.len() >= SEAL {
            moved.sealed = Some(self.seal());
        }
        let longest = self.longest;
        let gone = |chunk: &Chunk| old.passed(chunk.last.saturating_add(longest), chunk.written);
        let (go, stay): (Vec<Chunk>, Vec<Chunk>) = self.chunks.iter().copied().partition(gone);
        self.chunks = stay;
        moved.dropped = go.iter().map(|chunk| chunk.number).collect();
        while self.chunks.len() > most {
            let oldest = self.chunks.iter().enumerate().min_by_key(|(_, chunk)| chunk.last).map_or(0, |(at, _)| at);
            moved.dropped.push(self.chunks.swap_remove(oldest).number);
        }
        Some(moved)
    }

    fn seal(&mut self) -> (u32, Vec<Seen>) {
        let seen = std::mem::take(&mut self.seen);
        let first = seen.iter().map(|(_, at)| *at).min().unwrap_or_default();
        let last = seen.iter().map(|(_, at)| *at).max().unwrap_or_default();
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.chunks.push(Chunk { number, first, last, written: self.written });
        (number, seen)
    }

    /// Whether nothing in the set is asked for any more.
    pub(super) fn is_old(&self, old: Horizon) -> bool {
        let last = self.seen.iter().map(|(_, at)| *at).chain(self.chunks.iter().map(|chunk| chunk.last)).max();
        last.is_none_or(|last| old.passed(last.saturating_add(self.longest), self.written))
    }

    /// The bytes on disk.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED + CHUNK * self.chunks.len() + 16 * self.seen.len());
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.longest.to_le_bytes());
        bytes.extend_from_slice(&self.shortest.to_le_bytes());
        bytes.extend_from_slice(&self.next.to_le_bytes());
        bytes.extend_from_slice(&self.written.to_bytes());
        bytes.extend_from_slice(&(self.chunks.len() as u32).to_le_bytes());
        for chunk in &self.chunks {
            bytes.extend_from_slice(&chunk.number.to_le_bytes());
            bytes.extend_from_slice(&chunk.first.to_le_bytes());
            bytes.extend_from_slice(&chunk.last.to_le_bytes());
            bytes.extend_from_slice(&chunk.written.to_bytes());
        }
        encode_seen(&self.seen, &mut bytes);
        bytes
    }

    /// The head in these bytes. `None`: they are none.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&version, bytes) = bytes.split_first()?;
        if version != VERSION {
            return None;
        }
        let (longest, bytes) = bytes.split_first_chunk()?;
        let (shortest, bytes) = bytes.split_first_chunk()?;
        let (next, bytes) = bytes.split_first_chunk()?;
        let (written, bytes) = bytes.split_first_chunk()?;
        let (count, bytes) = bytes.split_first_chunk()?;
        let length = (u32::from_le_bytes(*count) as usize).checked_mul(CHUNK)?;
        let (chunks, seen) = bytes.split_at_checked(length)?;
        let mut head = Self {
            longest: i64::from_le_bytes(*longest),
            shortest: i64::from_le_bytes(*shortest),
            next: u32::from_le_bytes(*next),
            written: Hour::from_bytes(*written),
            chunks: Vec::with_capacity(length / CHUNK),
            seen: decode_seen(seen),
        };
        for chunk in chunks.chunks_exact(CHUNK) {
            let (number, times) = chunk.split_first_chunk()?;
            let (first, times) = times.split_first_chunk()?;
            let (last, written) = times.split_first_chunk()?;
            head.chunks.push(Chunk {
                number: u32::from_le_bytes(*number),
                first: i64::from_le_bytes(*first),
                last: i64::from_le_bytes(*last),
                written: Hour::from_bytes(written.try_into().ok()?),
            });
        }
        Some(head)
    }
}

/// Leaves out what no question can tell: an occurrence between two others of its member that lie no further apart than the shortest
/// time asked for. Whatever window of that length holds it holds one of the two.
fn thin(seen: &mut Vec<Seen>, shortest: i64) {
    seen.sort_unstable();
    seen.dedup();
    let mut kept: Vec<Seen> = Vec::with_capacity(seen.len());
    for (index, &(member, at)) in seen.iter().enumerate() {
        let before = kept.last().filter(|(of, _)| *of == member);
        let after = seen.get(index + 1).filter(|(of, _)| *of == member);
        if let (Some((_, before)), Some((_, after))) = (before, after)
            && after.saturating_sub(*before) <= shortest
        {
            continue;
        }
        kept.push((member, at));
    }
    *seen = kept;
}

/// The bytes of a chunk, appended.
pub(super) fn encode_seen(seen: &[Seen], bytes: &mut Vec<u8>) {
    for (member, at) in seen {
        bytes.extend_from_slice(&member.to_le_bytes());
        bytes.extend_from_slice(&at.to_le_bytes());
    }
}

/// The occurrences in a chunk. Bytes over at the end are left out.
pub(super) fn decode_seen(bytes: &[u8]) -> Vec<Seen> {
    let (pairs, _) = bytes.as_chunks::<16>();
    let half = |bytes: &[u8]| <[u8; 8]>::try_from(bytes).unwrap_or_default();
    pairs.iter().map(|pair| (u64::from_le_bytes(half(&pair[..8])), i64::from_le_bytes(half(&pair[8..])))).collect()
}

/// The distinct members, the latest `most` of them.
pub(super) fn distinct(mut seen: Vec<Seen>, most: usize) -> Vec<u64> {
    seen.sort_unstable_by(|a, b| b.cmp(a));
    seen.dedup_by_key(|(member, _)| *member);
    if seen.len() > most {
        seen.sort_unstable_by_key(|(_, at)| std::cmp::Reverse(*at));
        seen.truncate(most);
    }
    seen.into_iter().map(|(member, _)| member).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn within(window: &[Seen], after: i64, until: i64) -> BTreeSet<u64> {
        window.iter().filter(|(_, at)| *at > after && *at <= until).map(|(member, _)| *member).collect()
    }

    proptest! {
        /// Whatever is left out, each question of at least the shortest length has the same answer at each time.
        #[test]
        fn thinning_changes_no_answer(
            seen in proptest::collection::vec((0_u64..4, 0_i64..100), 0..60), shortest in 0_i64..40, longer in 0_i64..20,
        ) {
            let mut thinned = seen.clone();
            thin(&mut thinned, shortest);
            for until in -1..140 {
                let after = until - shortest - longer;
                prop_assert_eq!(within(&thinned, after, until), within(&seen, after, until));
            }
        }

        #[test]
        fn head_comes_back_as_it_was(
            adds in proptest::collection::vec((any::<u64>(), 0_i64..1_000_000), 0..400), rubbish in any::<Vec<u8>>(),
        ) {
            let mut head = Head::default();
            let mut chunks = 0;
            for add in adds {
                let moved = head.add(add, Duration::from_secs(1), Horizon::default(), 2).unwrap_or_default();
                chunks += usize::from(moved.sealed.is_some());
                chunks -= moved.dropped.len();
                prop_assert_eq!(head.chunks.len(), chunks);
                prop_assert!(chunks <= 2 && head.seen.len() < HEAD);
            }
            let bytes = head.encode();
            prop_assert_eq!(Head::decode(&bytes), Some(head));
            Head::decode(&rubbish);
        }
    }

    #[test]
    fn one_member_that_comes_all_the_time_costs_no_chunks() {
        let mut head = Head::default();
        for at in 0..10_000 {
            head.add((1, at), Duration::from_secs(300), Horizon::default(), 128);
        }
        assert!(head.chunks.is_empty() && head.seen.len() < HEAD);
    }

    #[test]
    fn latest_members_are_kept_where_there_are_too_many() {
        let seen = vec![(1, 10), (2, 20), (1, 40), (3, 30)];
        let mut latest = distinct(seen, 2);
        latest.sort_unstable();
        assert_eq!(latest, [1, 3]);
    }
}
