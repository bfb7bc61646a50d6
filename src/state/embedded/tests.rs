use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::state::tentative::member_hash;
use crate::state::{Tentative, Write};

fn settings(max_members: usize) -> Settings {
    Settings {
        kind: crate::state::Kind::Embedded,
        handled_for: Duration::from_secs(86_400),
        max_members,
        max_value: bytesize::ByteSize::kib(16),
        sweep_every: Duration::from_secs(10),
        sweep_entries: 20_000,
    }
}

/// Opens the state once the threads of the last opening are gone.
fn open(folder: &Path, max_members: usize) -> Arc<EmbeddedState> {
    EmbeddedState::open(&store(folder), &settings(max_members)).unwrap()
}

fn store(folder: &Path) -> Store {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match Store::open(folder, 8 << 20) {
            Ok(store) => return store,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

/// A state whose wall clock is moved on by hand, in seconds.
fn open_with_clock(folder: &Path) -> (Arc<EmbeddedState>, Arc<AtomicI64>) {
    let ahead = Arc::new(AtomicI64::new(0));
    let clock = {
        let (ahead, start) = (Arc::clone(&ahead), Time::now());
        Box::new(move || start.plus(Duration::from_secs(ahead.load(Ordering::Relaxed) as u64)))
    };
    (EmbeddedState::open_at(&store(folder), &settings(4096), clock).unwrap(), ahead)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A time in the past, in seconds.
fn at(seconds: i64) -> Time {
    Time::from_micros((1_700_000_000 + seconds) * 1_000_000)
}

fn add(key: &str, member: &str, seconds: i64, within: u64) -> Write {
    Write::Add { key: key.to_owned(), member: member.to_owned(), at: at(seconds), within: Duration::from_secs(within) }
}

fn set(key: &str, value: &str, expires: Option<i64>) -> Write {
    Write::Set { key: key.to_owned(), value: Bytes::copy_from_slice(value.as_bytes()), expires: expires.map(at) }
}

fn batch(writes: Vec<Write>) -> Batch {
    Batch { writes, ..Batch::default() }
}

#[derive(Debug, Clone)]
enum Op {
    Apply(Vec<(u8, u8, i64)>, Option<u8>),
    Set(u8, u8, Option<i64>),
    Remove(u8),
    Get(u8, i64),
    Members(u8, i64, i64),
    Handled(u8),
    Sweep,
    Reopen,
}

const WITHIN: i64 = 600;

fn op() -> impl Strategy<Value = Op> {
    // A few hot members and many others, over a day: enough for heads that are thinned and heads that are sealed.
    let member = prop_oneof![0_u8..3, any::<u8>()];
    let adds = proptest::collection::vec((0_u8..2, member, 0_i64..7200), 0..60);
    prop_oneof![
        12 => (adds, proptest::option::of(any::<u8>())).prop_map(|(adds, report)| Op::Apply(adds, report)),
        2 => (0_u8..6, any::<u8>(), proptest::option::of(0_i64..7200)).prop_map(|(k, v, e)| Op::Set(k, v, e)),
        1 => (0_u8..6).prop_map(Op::Remove),
        3 => (0_u8..6, 0_i64..7200).prop_map(|(k, t)| Op::Get(k, t)),
        8 => (0_u8..2, 0_i64..7200, 0_i64..600).prop_map(|(k, t, more)| Op::Members(k, t, WITHIN + more)),
        2 => any::<u8>().prop_map(Op::Handled),
        1 => Just(Op::Sweep),
        1 => Just(Op::Reopen),
    ]
}

#[derive(Default)]
struct Model {
    values: BTreeMap<u8, (u8, Option<i64>)>,
    sets: BTreeMap<u8, Vec<(u8, i64)>>,
    handled: BTreeSet<u8>,
}

fn report(n: u8) -> ReportId {
    ReportId::of(&[n])
}

async fn step(state: &EmbeddedState, model: &mut Model, op: Op) {
    match op {
        Op::Apply(adds, handled) => {
            let writes =
                adds.iter().map(|(k, m, t)| add(&format!("s{k}"), &m.to_string(), *t, WITHIN as u64)).collect();
            let handled_by = handled.map(|n| (report(n), vec![format!("p{n}")]));
            state.apply(Batch { writes, handled: handled_by, claims: Vec::new() }).await.unwrap();
            for (key, member, time) in adds {
                model.sets.entry(key).or_default().push((member, time));
            }
            model.handled.extend(handled);
        }
        Op::Set(key, value, expires) => {
            state.apply(batch(vec![set(&key.to_string(), &value.to_string(), expires)])).await.unwrap();
            model.values.insert(key, (value, expires));
        }
        Op::Remove(key) => {
            state.apply(batch(vec![Write::Remove { key: key.to_string() }])).await.unwrap();
            model.values.remove(&key);
        }
        Op::Get(key, time) => {
            let got = state.get(&key.to_string(), at(time)).await.unwrap();
            let there = model.values.get(&key).filter(|(_, expires)| expires.is_none_or(|expires| time < expires));
            assert_eq!(got, there.map(|(value, _)| Bytes::from(value.to_string())));
        }
        Op::Members(key, until, within) => {
            let got: Vec<_> = state.members(&format!("s{key}"), at(until - within), at(until)).await.unwrap();
            let seen = model.sets.get(&key).map(Vec::as_slice).unwrap_or_default();
            let inside = seen.iter().filter(|(_, time)| *time > until - within && *time <= until);
            let expected: BTreeSet<_> = inside.map(|(member, _)| member_hash(&member.to_string())).collect();
            assert_eq!(got.len(), expected.len(), "a member stands in the answer twice, or one is missing");
            assert_eq!(BTreeSet::from_iter(got), expected);
        }
        Op::Handled(n) => {
            let expected = if model.handled.contains(&n) { vec![format!("p{n}")] } else { Vec::new() };
            assert_eq!(state.handled(report(n)).await.unwrap(), expected);
        }
        Op::Sweep => {
            assert_eq!(state.sweep().await.unwrap(), 0, "all lies within a day of the latest report");
        }
        Op::Reopen => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Whatever is done in whatever order of report times, each question has the answer that keeping everything would give.
    #[test]
    fn answers_are_those_of_a_model_that_keeps_everything(ops in proptest::collection::vec(op(), 1..80)) {
        let temp = tempfile::tempdir().unwrap();
        let runtime = runtime();
        let mut state = open(temp.path(), 4096);
        let mut model = Model::default();
        for op in ops {
            if matches!(op, Op::Reopen) {
                drop(state);
                state = open(temp.path(), 4096);
            }
            runtime.block_on(step(&state, &mut model, op));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_is_there_with_its_marker_after_a_reopen_or_not_at_all() {
    let temp = tempfile::tempdir().unwrap();
    let state = open(temp.path(), 10);
    let claims = Arc::new(Tentative::default());
    let writes =
        vec![set("p\0last", "\"DE\"", None), add("p\0seen", "192.0.2.1", 5, 60), set("p\0last", "\"FR\"", None)];
    let claim = claims.claim("p\0seen", member_hash("192.0.2.1"), at(5));
    let handled = Some((report(1), vec!["p".to_owned(), "q".to_owned()]));
    state.apply(Batch { writes, handled, claims: vec![claim] }).await.unwrap();
    assert!(claims.members("p\0seen", at(0), at(9)).is_empty(), "the claim outlived its batch");
    state.sync().await.unwrap();
    drop(state);
    let state = open(temp.path(), 10);
    assert_eq!(state.handled(report(1)).await.unwrap(), ["p", "q"]);
    assert_eq!(state.get("p\0last", at(0)).await.unwrap().as_deref(), Some(&b"\"FR\""[..]));
    assert_eq!(state.members("p\0seen", at(0), at(5)).await.unwrap(), [member_hash("192.0.2.1")]);
    assert!(state.members("p\0seen", at(5), at(9)).await.unwrap().is_empty(), "the window is open at its start");
    assert!(state.handled(report(2)).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_reports_add_to_one_set_at_once_and_all_count() {
    let temp = tempfile::tempdir().unwrap();
    let state = open(temp.path(), 4096);
    let adds = (0..1000).map(|n| state.apply(batch(vec![add("hot", &n.to_string(), n, 3600)])));
    for applied in futures_util::future::join_all(adds).await {
        applied.unwrap();
    }
    assert_eq!(state.members("hot", at(-1), at(2000)).await.unwrap().len(), 1000);
    assert_eq!(
        state.members("hot", at(-1), at(9)).await.unwrap().len(),
        10,
        "asked again later, an early report gets more"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latest_members_stay_where_there_are_too_many() {
    let temp = tempfile::tempdir().unwrap();
    let state = open(temp.path(), 64);
    for start in (0..3000).step_by(100) {
        let writes = (start..start + 100).map(|n| add("s", &n.to_string(), n, 86_400)).collect();
        state.apply(batch(writes)).await.unwrap();
    }
    let latest: BTreeSet<_> = (3000 - 64..3000).map(|n: i64| member_hash(&n.to_string())).collect();
    assert_eq!(BTreeSet::from_iter(state.members("s", at(-1), at(5000)).await.unwrap()), latest);
    assert!(state.shelves.chunks.len().unwrap() <= state.shelves.max_chunks(), "the set has no bound on disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweep_removes_what_expired_more_than_a_day_ago_and_nothing_else() {
    let temp = tempfile::tempdir().unwrap();
    let (state, clock) = open_with_clock(temp.path());
    let day = 86_400;
    let mut writes = vec![set("old", "1", Some(50)), set("young", "1", Some(2 * day)), set("for ever", "1", None)];
    writes.extend((0..500).map(|n| add("old set", &n.to_string(), n, 60)));
    writes.push(add("young set", "x", 2 * day, 60));
    state.apply(batch(writes)).await.unwrap();
    assert!(!state.shelves.chunks.is_empty().unwrap(), "the old set is meant to have chunks");
    assert_eq!(state.sweep().await.unwrap(), 0, "all was written just now");
    clock.store(26 * 3600, Ordering::Relaxed);
    assert_eq!(state.sweep().await.unwrap(), 2);
    assert!(state.get("old", at(10)).await.unwrap().is_none());
    assert!(state.get("young", at(day)).await.unwrap().is_some());
    assert!(state.get("for ever", at(9 * day)).await.unwrap().is_some());
    assert!(state.shelves.chunks.is_empty().unwrap(), "the chunks of a removed set stay for ever");
    assert_eq!(state.members("young set", at(0), at(2 * day)).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_of_last_month_beside_live_traffic_keeps_its_counts_and_windows() {
    let temp = tempfile::tempdir().unwrap();
    let (state, clock) = open_with_clock(temp.path());
    let month = 30 * 86_400;
    // The live traffic fills the same set, so that its head is thinned and sealed under the replay's members.
    for n in 0..300 {
        let live = month + n;
        state.apply(batch(vec![add("address", &format!("live{n}"), live, 300)])).await.unwrap();
        state.get("window", at(live)).await.unwrap();
        let replayed =
            vec![add("address", &format!("replayed{n}"), n, 300), set("window", &n.to_string(), Some(n + 60))];
        state.apply(batch(replayed)).await.unwrap();
        if n % 20 == 0 {
            assert_eq!(state.sweep().await.unwrap(), 0, "{n}");
        }
        let counted = state.members("address", at(n - 300), at(n)).await.unwrap().len() as i64;
        assert_eq!(counted, n + 1, "members of the replay are forgotten");
        assert!(state.get("window", at(n + 1)).await.unwrap().is_some(), "the window of {n} is forgotten");
    }
    // It ends at some time, or this would be no sweep.
    clock.store(26 * 3600, Ordering::Relaxed);
    state.get("window", at(month + 2 * 86_400)).await.unwrap();
    state.apply(batch((300..600).map(|n| add("address", &n.to_string(), month + n, 300)).collect())).await.unwrap();
    assert!(state.members("address", at(-300), at(300)).await.unwrap().len() < 128, "old chunks stay for ever");
    assert_eq!(state.sweep().await.unwrap(), 1, "the window goes, the set was just written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn same_report_replayed_keeps_what_the_live_run_left() {
    let temp = tempfile::tempdir().unwrap();
    let (state, clock) = open_with_clock(temp.path());
    state.apply(batch(vec![add("s", "a", 0, 300)])).await.unwrap();
    clock.store(30 * 86_400, Ordering::Relaxed);
    state.get("other", at(30 * 86_400)).await.unwrap();
    // The same add again teaches nothing but that the set is in use.
    state.apply(batch(vec![add("s", "a", 0, 300)])).await.unwrap();
    state.sweep().await.unwrap();
    assert_eq!(state.members("s", at(-1), at(1)).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_keys_are_kept_apart() {
    let temp = tempfile::tempdir().unwrap();
    let state = open(temp.path(), 10);
    let long = "ä".repeat(40_000);
    let keys = [String::new(), "\0".to_owned(), long.clone(), format!("{long}b")];
    for (n, key) in keys.iter().enumerate() {
        state.apply(batch(vec![set(key, &n.to_string(), None), add(key, &n.to_string(), 1, 60)])).await.unwrap();
    }
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(state.get(key, at(0)).await.unwrap().unwrap(), n.to_string());
        assert_eq!(state.members(key, at(0), at(1)).await.unwrap(), [member_hash(&n.to_string())]);
    }
}

/// What a report with a value, two adds and a marker costs; prints figures. Full form: `TRACKALERT_TRIAL=full`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_of_many_logins_are_applied_at_once() {
    let full = std::env::var_os("TRACKALERT_TRIAL").is_some_and(|form| form == "full");
    let each: i64 = if full { 1000 } else { 100 };
    let temp = tempfile::tempdir().unwrap();
    let state = open(temp.path(), 4096);
    let cpu = || nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap().user_time();
    let (started, before) = (Instant::now(), cpu());
    let tasks = (0..200_i64).map(|task| {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            for n in 0..each {
                let (login, t) = (format!("login{}", n % 50 * 200 + task), task + n);
                let key = format!("p\0{login}");
                let id = ReportId::of(login.as_bytes());
                assert!(state.handled(id).await.is_ok());
                state.get(&key, at(t)).await.unwrap();
                let writes = vec![
                    set(&key, "{\"last\":1700000000}", Some(t + 86_400)),
                    add(&key, &(n % 3).to_string(), t, 86_400),
                    add(&format!("q\0{}", n % 16), &login, t, 300),
                ];
                let handled = Some((ReportId::of(format!("{login}{n}").as_bytes()), vec!["p".to_owned()]));
                state.apply(Batch { writes, handled, claims: Vec::new() }).await.unwrap();
            }
        })
    });
    for task in Vec::from_iter(tasks) {
        task.await.unwrap();
    }
    println!(
        "applied: {:.0}/s, user CPU {:?} -> {:?}",
        (200 * each) as f64 / started.elapsed().as_secs_f64(),
        before,
        cpu()
    );
    let asked = Instant::now();
    for n in 0..1000 {
        state.members(&format!("q\0{}", n % 16), at(0), at(2000)).await.unwrap();
    }
    println!(
        "members: {:?} each, of {}",
        asked.elapsed() / 1000,
        state.members(&crate::state::full_key("q", "1"), at(0), at(2000)).await.unwrap().len()
    );
}
