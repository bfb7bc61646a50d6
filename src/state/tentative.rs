//! Adds of handlers that run right now: counted by the others before they are applied.
//!
//! The loss prevented: an address that fails on twenty logins within a millisecond is handled twenty times side by side; if each
//! handler saw only what is already stored, none would count past one. Owns the table of claims; writes nothing to a store.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::report::Time;

/// The hash under which members of a set are counted and stored: the first 64 bits of SHA-256. Two members of one set of 4,096 share
/// it with a chance of 5·10⁻¹³.
pub fn member_hash(member: &str) -> u64 {
    let digest = Sha256::digest(member.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}

/// The claims of all running handlers of one process.
#[derive(Debug, Default)]
pub struct Tentative {
    sets: Mutex<HashMap<String, Vec<(u64, Time)>>>,
}

/// One add that is counted while it lives. Dropped when its batch was applied, or when its handler failed.
#[derive(Debug)]
pub struct Claim {
    table: Arc<Tentative>,
    key: String,
    member: u64,
    at: Time,
}

impl Tentative {
    /// Counts `member` in the set under the full key `key` from now on, until the claim is dropped.
    pub fn claim(self: &Arc<Self>, key: &str, member: u64, at: Time) -> Claim {
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        sets.entry(key.to_owned()).or_default().push((member, at));
        Claim { table: Arc::clone(self), key: key.to_owned(), member, at }
    }

    /// The members claimed for a key after `after` and not after `until`; a member may stand in it more than once.
    pub fn members(&self, key: &str, after: Time, until: Time) -> Vec<u64> {
        let sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        let claims = sets.get(key).map(Vec::as_slice).unwrap_or_default();
        claims.iter().filter(|(_, at)| *at > after && *at <= until).map(|(member, _)| *member).collect()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut sets = self.table.sets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut claims) = sets.entry(std::mem::take(&mut self.key)) {
            if let Some(at) = claims.get().iter().position(|claim| *claim == (self.member, self.at)) {
                claims.get_mut().swap_remove(at);
            }
            if claims.get().is_empty() {
                claims.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_is_counted_until_it_is_dropped_and_leaves_nothing_behind() {
        let table = Arc::new(Tentative::default());
        let at = Time::from_micros(50);
        let claim = table.claim("spray\x00192.0.2.1", 7, at);
        let second = table.claim("spray\x00192.0.2.1", 7, at);
        assert_eq!(table.members("spray\x00192.0.2.1", Time::from_micros(49), at), vec![7, 7]);
        assert!(table.members("spray\x00192.0.2.1", at, at).is_empty(), "the window is open at its start");
        drop(claim);
        assert_eq!(table.members("spray\x00192.0.2.1", Time::default(), at), vec![7]);
        drop(second);
        assert!(table.sets.lock().unwrap().is_empty());
    }
}
