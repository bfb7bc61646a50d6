//! The state as one handler sees it: what is stored, plus its own writes, which nobody else sees before the handler has returned.
//!
//! Owns the collecting of writes. Never writes to the store.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::tentative::{Claim, Tentative, member_hash};
use super::{State, StateError, Write, full_key};
use crate::report::Time;

/// One handler's view.
pub struct Session {
    state: Arc<dyn State>,
    tentative: Arc<Tentative>,
    owner: String,
    at: Time,
    written: RefCell<Written>,
}

#[derive(Default)]
struct Written {
    writes: Vec<Write>,
    claims: Vec<Claim>,
    /// The last value written under a full key; `None`: removed.
    values: HashMap<String, Option<Bytes>>,
}

impl Session {
    /// The view of `owner` at a report's time.
    pub fn new(state: Arc<dyn State>, tentative: Arc<Tentative>, owner: &str, at: Time) -> Self {
        Self { state, tentative, owner: owner.to_owned(), at, written: RefCell::default() }
    }

    /// The value under a name, JSON.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>, StateError> {
        let key = full_key(&self.owner, name);
        if let Some(written) = self.written.borrow().values.get(&key) {
            return Ok(written.clone());
        }
        self.state.get(&key, self.at).await
    }

    /// Replaces the value under a name; it is there until `ttl` after the report's time.
    pub fn set(&self, name: &str, value: Bytes, ttl: Option<Duration>) {
        let key = full_key(&self.owner, name);
        let mut written = self.written.borrow_mut();
        written.values.insert(key.clone(), Some(value.clone()));
        written.writes.push(Write::Set { key, value, expires: ttl.map(|ttl| self.at.plus(ttl)) });
    }

    /// Removes the value under a name.
    pub fn remove(&self, name: &str) {
        let key = full_key(&self.owner, name);
        let mut written = self.written.borrow_mut();
        written.values.insert(key.clone(), None);
        written.writes.push(Write::Remove { key });
    }

    /// Notes that `member` was seen in the set `name` now. Gives how many distinct members were seen within `within` before the
    /// report's time, this one and those of handlers that run right now included.
    pub async fn add(&self, name: &str, member: &str, within: Duration) -> Result<usize, StateError> {
        let key = full_key(&self.owner, name);
        let claim = self.tentative.claim(&key, member_hash(member), self.at);
        {
            let mut written = self.written.borrow_mut();
            written.claims.push(claim);
            written.writes.push(Write::Add { key: key.clone(), member: member.to_owned(), at: self.at, within });
        }
        self.count_key(&key, within).await
    }

    /// How many distinct members of the set `name` were seen within `within` before the report's time.
    pub async fn count(&self, name: &str, within: Duration) -> Result<usize, StateError> {
        self.count_key(&full_key(&self.owner, name), within).await
    }

    async fn count_key(&self, key: &str, within: Duration) -> Result<usize, StateError> {
        let after = self.at.minus(within);
        let mut members = self.state.members(key, after, self.at).await?;
        members.extend(self.tentative.members(key, after, self.at));
        members.sort_unstable();
        members.dedup();
        Ok(members.len())
    }

    /// The writes, to be applied, and the claims, to be held until they are.
    pub fn take(&self) -> (Vec<Write>, Vec<Claim>) {
        let written = self.written.take();
        (written.writes, written.claims)
    }
}
