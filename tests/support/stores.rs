//! Stores in memory for tests of what stands on the contracts: a state that keeps everything, a history that answers as it is told.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use trackalert::history::{History, HistoryError, Search, Stored};
use trackalert::report::{Geo, LoginReport, ReportId, Time};
use trackalert::state::tentative::member_hash;
use trackalert::state::{Batch, State, StateError, Write};

type Members = BTreeMap<(Time, u64), ()>;

/// A state in memory.
#[derive(Default)]
pub(crate) struct MemoryState {
    values: Mutex<HashMap<String, (Bytes, Option<Time>)>>,
    sets: Mutex<HashMap<String, Members>>,
    handled: Mutex<HashMap<ReportId, Vec<String>>>,
    pub down: AtomicBool,
}

impl MemoryState {
    fn up(&self) -> Result<(), StateError> {
        if self.down.load(Ordering::SeqCst) { Err(StateError("it is down".into())) } else { Ok(()) }
    }
}

impl State for MemoryState {
    fn get<'a>(&'a self, key: &'a str, at: Time) -> BoxFuture<'a, Result<Option<Bytes>, StateError>> {
        Box::pin(async move {
            self.up()?;
            let values = self.values.lock().unwrap();
            let there = values.get(key).filter(|(_, expires)| expires.is_none_or(|expires| at < expires));
            Ok(there.map(|(value, _)| value.clone()))
        })
    }

    fn members<'a>(&'a self, key: &'a str, after: Time, until: Time) -> BoxFuture<'a, Result<Vec<u64>, StateError>> {
        Box::pin(async move {
            self.up()?;
            let sets = self.sets.lock().unwrap();
            let all = sets.get(key).into_iter().flat_map(BTreeMap::keys);
            Ok(all.filter(|(at, _)| *at > after && *at <= until).map(|(_, member)| *member).collect())
        })
    }

    fn handled(&self, report: ReportId) -> BoxFuture<'_, Result<Vec<String>, StateError>> {
        Box::pin(async move { Ok(self.handled.lock().unwrap().get(&report).cloned().unwrap_or_default()) })
    }

    fn apply(&self, batch: Batch) -> BoxFuture<'_, Result<(), StateError>> {
        Box::pin(async move {
            self.up()?;
            for write in batch.writes {
                match write {
                    Write::Set { key, value, expires } => {
                        self.values.lock().unwrap().insert(key, (value, expires));
                    }
                    Write::Remove { key } => {
                        self.values.lock().unwrap().remove(&key);
                    }
                    Write::Add { key, member, at, .. } => {
                        self.sets.lock().unwrap().entry(key).or_default().insert((at, member_hash(&member)), ());
                    }
                }
            }
            if let Some((report, policies)) = batch.handled {
                self.handled.lock().unwrap().insert(report, policies);
            }
            Ok(())
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StateError>> {
        Box::pin(async { Ok(()) })
    }

    fn sweep(&self) -> BoxFuture<'_, Result<usize, StateError>> {
        Box::pin(async { Ok(0) })
    }
}

/// A history that gives the answer it was given, and keeps the questions.
pub(crate) struct CannedHistory {
    pub answer: Mutex<Result<Value, HistoryError>>,
    pub asked: Mutex<Vec<Search>>,
}

impl Default for CannedHistory {
    fn default() -> Self {
        let answer = json!({
            "took": 1, "timed_out": false,
            "hits": { "total": { "value": 0, "relation": "eq" }, "hits": [] },
        });
        Self { answer: Mutex::new(Ok(answer)), asked: Mutex::default() }
    }
}

impl History for CannedHistory {
    fn store(&self, _: Arc<LoginReport>) -> BoxFuture<'_, Result<Stored, HistoryError>> {
        Box::pin(async { Ok(Stored::New) })
    }

    fn search(&self, search: Search) -> BoxFuture<'_, Result<Value, HistoryError>> {
        self.asked.lock().unwrap().push(search);
        let answer = self.answer.lock().unwrap().clone();
        Box::pin(async move {
            tokio::task::yield_now().await;
            answer
        })
    }

    fn retain(&self, _: Time) -> BoxFuture<'_, Result<usize, HistoryError>> {
        Box::pin(async { Ok(0) })
    }
}

/// A report of this login at this second.
pub(crate) fn report(login: &str, second: f64) -> Arc<LoginReport> {
    let mut report = LoginReport {
        id: ReportId::default(),
        t: Time::from_seconds(second).unwrap(),
        login: login.into(),
        remote: "192.0.2.7".parse().unwrap(),
        pwhash: "5a5f".into(),
        success: true,
        policy_reject: false,
        fail_type: String::new(),
        session_id: "s1".into(),
        protocol: "imap".into(),
        tls: true,
        device_id: "\"name\" \"Thunderbird\"".into(),
        device_attrs: vec![("os.family".into(), "Linux".into())],
        attrs: vec![("country".into(), "NL".into())],
        attrs_mv: vec![("groups".into(), vec!["staff".into(), "admin".into()])],
        parsed_device: OnceLock::new(),
        geo: Geo {
            country: Some("NL".into()),
            city: Some("Delft".into()),
            location: Some((52.37, 4.9)),
            asn: Some(64500),
            as_org: Some("Example Net".into()),
        },
    };
    report.stamp();
    Arc::new(report)
}
