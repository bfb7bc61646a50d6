//! Which reports were handled by which policies: one keyspace for each quarter of the time they are kept, dropped as a whole.
//!
//! Owns the keyspaces. There are as many markers as reports, so they are never removed one by one.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use fjall::Keyspace;

use crate::report::{ReportId, Time};
use crate::store::{Store, StoreError};

const PREFIX: &str = "state.handled.";

/// The markers of all reports.
pub(super) struct Markers {
    /// By the time at which each begins, wall clock in microseconds.
    slots: RwLock<BTreeMap<i64, Keyspace>>,
    length: i64,
    kept: Duration,
}

impl Markers {
    pub(super) fn open(store: &Store, kept: Duration) -> Result<Self, StoreError> {
        let mut slots = BTreeMap::new();
        for name in store.database().list_keyspace_names() {
            let begins = name.strip_prefix(PREFIX).and_then(|begins| i64::from_str_radix(begins, 16).ok());
            if let Some(begins) = begins {
                slots.insert(begins, store.keyspace(&name)?);
            }
        }
        let length = i64::try_from(kept.as_micros() / 4).unwrap_or(i64::MAX).max(60_000_000);
        Ok(Self { slots: RwLock::new(slots), length, kept })
    }

    /// Where the markers of now go.
    pub(super) fn slot(&self, store: &Store, now: Time) -> fjall::Result<Keyspace> {
        let begins = now.micros().max(0) / self.length * self.length;
        if let Some(slot) = self.slots.read().unwrap_or_else(PoisonError::into_inner).get(&begins) {
            return Ok(slot.clone());
        }
        let slot = store.database().keyspace(&format!("{PREFIX}{begins:016x}"), Default::default)?;
        self.slots.write().unwrap_or_else(PoisonError::into_inner).insert(begins, slot.clone());
        Ok(slot)
    }

    /// The policies that have handled a report, as far as that is still known.
    pub(super) fn get(&self, report: ReportId, now: Time) -> fjall::Result<Vec<String>> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        for slot in slots.values().rev() {
            if let Some(bytes) = slot.get(report.as_bytes())? {
                let Some((until, names)) = bytes.split_first_chunk() else { continue };
                let known = i64::from_le_bytes(*until) > now.micros();
                return Ok(if known { serde_json::from_slice(names).unwrap_or_default() } else { Vec::new() });
            }
        }
        Ok(Vec::new())
    }

    /// Drops what is too old as a whole. Gives about how many markers that were.
    pub(super) fn drop_old(&self, store: &Store, now: Time) -> fjall::Result<usize> {
        let mut removed = 0;
        loop {
            let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
            // A slot has got its last marker when the next one begins.
            let ended = slots.keys().nth(1).copied();
            if ended.is_none_or(|ended| Time::from_micros(ended).plus(self.kept) >= now) {
                return Ok(removed);
            }
            let Some((_, slot)) = slots.pop_first() else { return Ok(removed) };
            drop(slots);
            removed += slot.approximate_len();
            store.database().delete_keyspace(slot)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_slots_go_as_a_whole_and_the_others_stay() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path(), 8 << 20).unwrap();
        let hour = Duration::from_secs(3600);
        let markers = Markers::open(&store, 4 * hour).unwrap();
        let start = Time::from_micros(1_699_999_200_000_000);
        let report = |n: u32| ReportId::of(&n.to_be_bytes());
        for n in 0..6 {
            let now = start.plus(hour * n);
            let mut bytes = now.plus(4 * hour).micros().to_le_bytes().to_vec();
            bytes.extend_from_slice(br#"["p"]"#);
            markers.slot(&store, now).unwrap().insert(report(n).as_bytes(), bytes).unwrap();
        }
        let now = start.plus(hour * 5);
        assert!(markers.get(report(0), now).unwrap().is_empty(), "it is kept for four hours");
        assert_eq!(markers.get(report(2), now).unwrap(), ["p"]);
        assert_eq!(markers.drop_old(&store, now).unwrap(), 0);
        let now = start.plus(hour * 6);
        assert!(markers.drop_old(&store, now).unwrap() >= 1);
        assert_eq!(markers.get(report(4), now).unwrap(), ["p"]);
        assert_eq!(Markers::open(&store, 4 * hour).unwrap().get(report(5), now).unwrap(), ["p"]);
    }
}
