//! The state as one handler sees it: what is stored, with the handler's own writes on top.
//!
//! Owns the writes of one call until it has returned. Writes nothing to the store: what a handler that failed wrote must never be
//! seen, so its writes die with its session.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::tentative::{Claim, member_hash};
use super::{State, StateError, Tentative, Write, full_key};
use crate::report::Time;

/// Writes of one call; a handler that makes more is broken, and its batch would hold up those of all others.
pub const MAX_WRITES: usize = 1_000;
/// Bytes of a key or a member that are kept as they are; the rest of a longer one is replaced by a hash, so that a login of 4 KiB
/// makes no handler fail and two of them stay apart.
pub const MAX_NAME: usize = 512;

/// Why a session did not do what it was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SessionError {
    /// Asking in this way never works; says what is allowed.
    #[error("{0}")]
    Wrong(String),
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StateError),
}

/// The state as one handler sees it.
pub struct Session {
    state: Arc<dyn State>,
    tentative: Arc<Tentative>,
    owner: String,
    at: Time,
    max_value: usize,
    own: RefCell<Own>,
}

#[derive(Default)]
struct Own {
    writes: Vec<Write>,
    claims: Vec<Claim>,
    /// The last value set here under a full key; `None` where it was removed.
    values: HashMap<String, Option<Bytes>>,
    added: HashSet<(String, u64)>,
    closed: bool,
}

impl Session {
    /// A session for one call of `owner` (a policy's name) at a report's time. Values over `max_value` bytes are refused.
    pub fn new(state: Arc<dyn State>, tentative: Arc<Tentative>, at: Time, owner: &str, max_value: usize) -> Self {
        Self { state, tentative, owner: owner.to_owned(), at, max_value, own: RefCell::default() }
    }

    /// The value under the owner's key `name`: the one set in this session, else the stored one.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>, SessionError> {
        let key = self.key(name)?;
        if let Some(value) = self.own.borrow().values.get(&key) {
            return Ok(value.clone());
        }
        Ok(self.state.get(&key, self.at).await?)
    }

    /// Sets the value, or removes it (`None`). With `ttl` it is there until the report's time plus `ttl`.
    pub fn set(&self, name: &str, value: Option<Bytes>, ttl: Option<Duration>) -> Result<(), SessionError> {
        let key = self.key(name)?;
        if let Some(value) = &value
            && value.len() > self.max_value
        {
            return Err(SessionError::Wrong(format!(
                "the value is {} bytes of JSON; state.max_value allows {}",
                value.len(),
                self.max_value
            )));
        }
        let mut own = self.own.borrow_mut();
        own.may_write()?;
        own.values.insert(key.clone(), value.clone());
        own.writes.push(match value {
            Some(value) => Write::Set { key, value, expires: ttl.map(|ttl| self.at.plus(ttl)) },
            None => Write::Remove { key },
        });
        Ok(())
    }

    /// Notes that `member` was seen now and gives how many distinct members were seen within the window that ends now, this one and
    /// those of handlers that run right now included.
    pub async fn add(&self, name: &str, member: &str, within: Duration) -> Result<usize, SessionError> {
        let key = self.key(name)?;
        let member = shorten(member);
        let hash = member_hash(&member);
        self.claim(&key, member, hash, within)?;
        let mut seen = self.seen(&key, within).await?;
        seen.insert(hash);
        Ok(seen.len())
    }

    /// How many distinct members were seen within the window that ends now, those of handlers that run right now included.
    pub async fn count(&self, name: &str, within: Duration) -> Result<usize, SessionError> {
        Ok(self.seen(&self.key(name)?, within).await?.len())
    }

    async fn seen(&self, key: &str, within: Duration) -> Result<HashSet<u64>, SessionError> {
        let after = self.at.minus(within);
        // The neighbours' claims first, then the store: a claim is dropped only after its batch is applied, so a neighbour that goes
        // from one to the other in between is met at least once.
        let mut seen: HashSet<u64> = self.tentative.members(key, after, self.at).into_iter().collect();
        seen.extend(self.state.members(key, after, self.at).await?);
        Ok(seen)
    }

    fn claim(&self, key: &str, member: String, hash: u64, within: Duration) -> Result<(), SessionError> {
        let mut own = self.own.borrow_mut();
        own.may_write()?;
        if own.added.insert((key.to_owned(), hash)) {
            own.claims.push(self.tentative.claim(key, hash, self.at));
        }
        own.writes.push(Write::Add { key: key.to_owned(), member, at: self.at, within });
        Ok(())
    }

    /// Ends the session and gives what it wants to take effect. Whatever still holds it (a coroutine that was never resumed) can
    /// write no more.
    pub fn take(&self) -> (Vec<Write>, Vec<Claim>) {
        let mut own = self.own.borrow_mut();
        own.closed = true;
        (std::mem::take(&mut own.writes), std::mem::take(&mut own.claims))
    }

    fn key(&self, name: &str) -> Result<String, SessionError> {
        if name.is_empty() {
            return Err(SessionError::Wrong("key: must not be empty".to_owned()));
        }
        Ok(full_key(&self.owner, &shorten(name)))
    }
}

impl Own {
    fn may_write(&self) -> Result<(), SessionError> {
        if self.closed {
            return Err(SessionError::Wrong("the handler has returned; nothing can be written any more".to_owned()));
        }
        if self.writes.len() >= MAX_WRITES {
            return Err(SessionError::Wrong(format!("more than {MAX_WRITES} writes in one call")));
        }
        Ok(())
    }
}

fn shorten(name: &str) -> String {
    if name.len() <= MAX_NAME {
        return name.to_owned();
    }
    let cut = name.floor_char_boundary(MAX_NAME - 65);
    let mut short = name[..cut].to_owned();
    short.push('#');
    for byte in Sha256::digest(name.as_bytes()) {
        short.push_str(&format!("{byte:02x}"));
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_that_differ_at_their_end_stay_apart() {
        let (a, b) = (shorten(&("ä".repeat(4000) + "1")), shorten(&("ä".repeat(4000) + "2")));
        assert_ne!(a, b);
        assert!(a.len() <= MAX_NAME && a.starts_with('ä'));
        assert_eq!(shorten("short"), "short");
    }
}
