//! What becomes of reports when this program's own code fails, when a policy is broken, and when a dependency is away: nobody else pays,
//! and nothing is lost.
//!
//! The whole program runs in this process on its real stores, with a thin layer around them that fails as it is told.

#![allow(clippy::unwrap_used, reason = "a test states what it expects")]

mod support;
#[path = "support/web.rs"]
mod web;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
#[cfg(any(feature = "amqp", feature = "kafka"))]
use support::driver::Driver;
use support::layers::{Watch, watched};
use support::program::Site;
use support::sender::{Progress, query, send_all};
use trackalert::app::{App, Stores};
use trackalert::config::{Config, Roles};
use trackalert::history::HistoryError;
use trackalert::queue::{DeadLetter, Filter, Message, ReasonKind, headers};
use trackalert::report::LoginReport;
use trackalert::state::{Batch, StateError, Write};
use trackalert::telemetry::Metrics;
use web::{Page, Server};

/// What is to fail.
#[derive(Default)]
struct Faults {
    panics: AtomicBool,
    state_is_down: AtomicBool,
    handled_is_down: AtomicBool,
    search_is_down: AtomicBool,
}

impl Faults {
    fn panic_at(&self, text: &str, place: &str) {
        assert!(
            !(self.panics.load(Ordering::SeqCst) && text.contains(place)),
            "the store fails at {place}, as it was told"
        );
    }
}

impl Watch for Faults {
    fn before_get(&self, key: &str) {
        self.panic_at(key, "at-get");
    }
    fn before_handled(&self) -> Result<(), StateError> {
        if self.handled_is_down.load(Ordering::SeqCst) { Err(StateError("it is down".to_owned())) } else { Ok(()) }
    }
    fn before_search(&self) -> Result<(), HistoryError> {
        let down = self.search_is_down.load(Ordering::SeqCst);
        if down { Err(HistoryError::Unavailable("it is down".to_owned())) } else { Ok(()) }
    }
    fn before_apply(&self, batch: &Batch) -> Result<(), StateError> {
        for write in &batch.writes {
            if let Write::Set { key, .. } = write {
                self.panic_at(key, "at-apply");
            }
        }
        if self.state_is_down.load(Ordering::SeqCst) { Err(StateError("it is down".to_owned())) } else { Ok(()) }
    }
    fn before_store(&self, report: &LoginReport) {
        self.panic_at(&report.login, "at-store");
    }
}

/// A running program, and what a test does with it.
struct Running {
    app: App,
    stores: Stores,
    metrics: Arc<Metrics>,
    faults: Arc<Faults>,
    address: String,
    site: Site,
}

impl Running {
    async fn start(settings: &str, policy: &str) -> Self {
        let site = Site::new(&format!("history.commit_every = \"20ms\"\n{settings}"));
        site.policy("p", policy);
        let config = Config::load(Some(&site.config()), &[]).unwrap();
        let (metrics, faults) = (Arc::new(Metrics::new()), Arc::new(Faults::default()));
        // As in the program, on a thread that may block: a queue on Kafka runs a runtime of its own meanwhile.
        let stores = tokio::task::block_in_place(|| Stores::open(&config, &metrics)).unwrap();
        let stores = watched(stores, &faults);
        let app = App::assemble(config, Roles::all(), stores.clone(), Arc::clone(&metrics)).await.unwrap();
        let address = app.address().to_string();
        Self { app, stores, metrics, faults, address, site }
    }

    async fn send(&self, logins: impl IntoIterator<Item = String>) {
        let reports = logins.into_iter().enumerate().map(|(n, login)| {
            let remote = format!("198.18.{}.{}", n / 250, n % 250);
            json!({ "login": login, "remote": remote }).to_string()
        });
        send_all(&self.address, reports.collect(), 50, Arc::new(Progress::default())).await;
    }

    async fn until(&self, what: &str, holds: impl Fn(&Metrics) -> bool) {
        let began = Instant::now();
        while !holds(&self.metrics) {
            assert!(began.elapsed() < Duration::from_secs(30), "waited for {what}:\n{}", self.metrics.render());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_handled(&self, reports: u64) {
        self.until("the reports to be handled", |metrics| metrics.handled.get() >= reports).await;
        self.until("nothing in hand", |metrics| metrics.unsettled.get() == 0 && metrics.in_flight.get() == 0).await;
    }

    async fn letters(&self) -> Vec<DeadLetter> {
        self.stores.reports.dead_letters().list(Filter::default(), None, 1000).await.unwrap()
    }

    async fn letters_when(&self, count: usize) -> Vec<DeadLetter> {
        let began = Instant::now();
        loop {
            let letters = self.letters().await;
            if letters.len() == count {
                return letters;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "{count} dead letters wanted: {letters:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stored(&self) -> Value {
        query(&self.address, json!({ "size": 0 })).await["hits"]["total"]["value"].clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn panic_costs_the_report_at_hand_and_nobody_else() {
    let policy =
        "function report(lt) state.set(lt.login, (state.get(lt.login) or 0) + 1); alert{kind='k', title='t'} end";
    let running = Running::start("", policy).await;
    running.faults.panics.store(true, Ordering::SeqCst);
    let logins = ["ann", "at-get", "at-apply", "at-store"];
    running.send((0..40).map(|n| logins[n % 4].to_owned())).await;
    running.until_handled(40).await;
    let letters = running.letters_when(30).await;
    assert!(letters.iter().all(|letter| letter.reason.kind == ReasonKind::Internal), "{letters:#?}");
    assert!(letters[0].reason.text.contains("as it was told"), "{:?}", letters[0].reason);

    running.faults.panics.store(false, Ordering::SeqCst);
    for letter in letters {
        assert!(running.stores.reports.dead_letters().resend(letter.id).await.unwrap());
    }
    running.until_handled(70).await;
    running.letters_when(0).await;
    assert_eq!(running.stored().await, json!(40), "each stands in the history once");
    running.app.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn burst_that_trips_a_policy_does_not_keep_it_out_for_ever() {
    let settings = "policy.breaker_calls = 20\npolicy.breaker_pause = \"50ms\"\npolicy.max_attempts = 2\npolicy.retry_first = \"1ms\"";
    let running =
        Running::start(settings, "function report(lt) if lt.login:find('^bad') then error('trips') end end").await;
    running.send((0..40).map(|n| format!("bad{n}"))).await;
    running.until("the breaker", |metrics| metrics.waiting.with_label_values(&["policy"]).get() == 1).await;
    let early = running.letters().await.len();
    let began = Instant::now();
    let mut good = 0;
    // Traffic goes on, as it does: the good reports show each time that the policy works.
    while running.metrics.handled.get() < 40 + good {
        assert!(began.elapsed() < Duration::from_secs(30), "kept out:\n{}", running.metrics.render());
        running.send((good..good + 20).map(|n| format!("good{n}"))).await;
        good += 20;
        running.until("the good ones", |metrics| metrics.handled.get() >= good).await;
    }
    let letters = running.letters_when(40).await;
    assert!(early <= 20, "{early} dead letters before the breaker opened");
    assert!(letters.iter().all(|letter| letter.message.key.starts_with("bad") && letter.reason.only == ["p"]));
    assert_eq!(running.metrics.waiting.with_label_values(&["policy"]).get(), 0);
    running.app.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn letter_for_a_policy_that_is_gone_stays_a_letter_until_the_policy_is_back() {
    let running = Running::start("policy.max_attempts = 1", "function report(lt) error('fails') end").await;
    running.send(["ann".to_owned()]).await;
    let letter = running.letters_when(1).await.remove(0);
    std::fs::remove_dir_all(running.site.folder.path().join("policies/p")).unwrap();
    running.site.policy("q", "function report(lt) end");
    running.app.reload().await.unwrap();
    running.stores.reports.dead_letters().resend(letter.id.clone()).await.unwrap();
    running.until_handled(2).await;
    let letter = running.letters_when(1).await.remove(0);
    assert!(
        letter.reason.text.contains("no policy of that name is loaded") && letter.reason.only == ["p"],
        "{letter:?}"
    );
    running.site.policy("p", "function report(lt) end");
    running.app.reload().await.unwrap();
    running.stores.reports.dead_letters().resend(letter.id).await.unwrap();
    running.until_handled(3).await;
    running.letters_when(0).await;
    running.app.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn message_that_names_policies_without_end_is_a_dead_letter_that_does_not_repeat_them() {
    let running = Running::start("", "function report(lt) error('fails') end").await;
    let report = json!({ "login": "ann", "remote": "192.0.2.1", "t": 1_700_000_000 }).to_string();
    let mut message = Message::new("ann", report);
    message.headers.push((headers::ONLY.to_owned(), "nobody,".repeat(50_000)));
    running.stores.reports.publisher().publish(vec![message]).await.unwrap();
    let reason = running.letters_when(1).await.remove(0).reason;
    assert_eq!((reason.kind, reason.only.len()), (ReasonKind::Malformed, 0));
    assert!(reason.text.contains("350000 bytes in the header") && reason.text.len() < 200, "{reason:?}");
    running.app.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn letter_whose_policy_goes_while_it_waits_for_its_turn_stays_a_letter() {
    let (server, gate) = Server::gated(1, |_| Page::json("{}")).await;
    let running = Running::start("policy.max_attempts = 1", "function report(lt) error('fails') end").await;
    running.send(["ann".to_owned()]).await;
    let letter = running.letters_when(1).await.remove(0);
    running.site.policy("p", &format!("function report(lt) http.get('{}') end", server.url()));
    running.app.reload().await.unwrap();
    // The login's next report runs, and the letter waits behind it while its policy goes.
    running.send(["ann".to_owned()]).await;
    gate.reached().await;
    assert!(running.stores.reports.dead_letters().resend(letter.id).await.unwrap());
    running.until("the letter behind it", |metrics| metrics.unsettled.get() == 2).await;
    std::fs::remove_dir_all(running.site.folder.path().join("policies/p")).unwrap();
    running.site.policy("q", "function report(lt) end");
    running.app.reload().await.unwrap();
    gate.open();
    running.until_handled(3).await;
    let letter = running.letters_when(1).await.remove(0);
    assert!(letter.reason.text.contains("no policy of that name is loaded"), "{letter:?}");
    running.app.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_before_a_reload_that_fail_after_it_open_no_breaker() {
    let settings = "policy.breaker_calls = 20\npolicy.breaker_pause = \"50ms\"\npolicy.max_attempts = 1";
    let (server, gate) = Server::gated(100, |_| Page::json("{}")).await;
    let waits = format!("function report(lt) http.get('{}') error('late') end", server.url());
    let running = Running::start(settings, &waits).await;
    running.send((0..100).map(|n| format!("user{n}"))).await;
    gate.reached().await;
    std::fs::remove_dir_all(running.site.folder.path().join("policies/p")).unwrap();
    running.site.policy("q", "function report(lt) end");
    running.app.reload().await.unwrap();
    gate.open();
    running.until("all to fail", |metrics| metrics.policy_failures.with_label_values(&["error"]).get() == 100).await;
    running.send(["bob".to_owned()]).await;
    running.until_handled(101).await;
    running.letters_when(100).await;
    assert_eq!(
        running.metrics.waiting.with_label_values(&["policy"]).get(),
        0,
        "a policy that is gone holds reports up"
    );
    running.app.drain().await.unwrap();
}

/// Takes a second or several in C code, where nothing can stop it: the more, the longer.
fn hangs(name: &str, much: usize) -> String {
    format!("if lt.login == '{name}' then (('a'):rep({much})):find(('a?'):rep({much}) .. ('a'):rep({much})) end")
}

#[tokio::test(flavor = "multi_thread")]
async fn report_that_hangs_in_its_next_policy_too_is_written_down_again() {
    let settings = "policy.max_attempts = 1\npolicy.cpu_limit = \"20ms\"\npolicy.stuck_after = \"50ms\"";
    let running = Running::start(settings, &format!("function report(lt) {} end", hangs("ann", 25))).await;
    running.site.policy("q", &format!("function report(lt) {} end", hangs("ann", 27)));
    running.app.reload().await.unwrap();
    running.send(["ann".to_owned()]).await;
    let path = Config::load(Some(&running.site.config()), &[]).unwrap().data_dir.join("hung.json");
    for policy in ["p", "q"] {
        let written = format!("\"policy\":\"{policy}\"");
        running.until(policy, |_| std::fs::read_to_string(&path).is_ok_and(|list| list.contains(&written))).await;
    }
    running.until_handled(1).await;
    assert_eq!(running.metrics.workers_stuck.get(), 0);
    running.app.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_from_a_worker_that_hung_does_not_go_on_there_when_it_comes_back() {
    let (server, gate) = Server::gated(20, |_| Page::json("{}")).await;
    let settings =
        "detect.workers = 1\npolicy.cpu_limit = \"20ms\"\npolicy.stuck_after = \"50ms\"\npolicy.max_attempts = 1";
    let policy = format!(
        "function report(lt) {} if lt.login ~= 'ann' then http.get('{}/first') http.get('{}/second?' .. lt.login) end end",
        hangs("ann", 27),
        server.url(),
        server.url()
    );
    let running = Running::start(settings, &policy).await;
    running.send((0..20).map(|n| format!("user{n}"))).await;
    gate.reached().await;
    running.send(["ann".to_owned()]).await;
    running.until("the hang", |metrics| metrics.workers_stuck.get() == 1).await;
    gate.open();
    running.until_handled(21).await;
    running.until("the worker to come back", |metrics| metrics.workers_stuck.get() == 0).await;
    let second = server.seen().into_iter().filter(|seen| seen.path == "/second").count();
    assert_eq!(second, 20, "some went on in both workers");
    running.app.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn outage_of_the_state_delays_reports_and_costs_none() {
    let running =
        Running::start("queue.retry_most = \"20s\"", "function report(lt) state.set('n', lt.login) end").await;
    running.faults.state_is_down.store(true, Ordering::SeqCst);
    running.send((0..200).map(|n| format!("user{n}"))).await;
    running.until("the circuit", |metrics| metrics.waiting.with_label_values(&["state"]).get() == 1).await;
    running.until("some tries", |metrics| metrics.retries.with_label_values(&["dependency"]).get() > 200).await;
    assert_eq!(running.metrics.waiting.with_label_values(&["state"]).get(), 1, "reads that work close no circuit");
    running.faults.state_is_down.store(false, Ordering::SeqCst);
    let recovered = Instant::now();
    running.until_handled(200).await;
    running.until("the circuit to close", |metrics| metrics.waiting.with_label_values(&["state"]).get() == 0).await;
    assert!(
        recovered.elapsed() < Duration::from_secs(20),
        "they slept through the recovery: {:?}",
        recovered.elapsed()
    );
    assert!(running.letters().await.is_empty());
    running.app.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn outage_of_the_state_ends_where_the_history_refuses_next() {
    let running = Running::start("", "function report(lt) state.set(lt.login, 1) end").await;
    running.site.policy("q", "function report(lt) history.search{query={match_all={}}, size=0} end");
    running.app.reload().await.unwrap();
    running.faults.handled_is_down.store(true, Ordering::SeqCst);
    running.faults.search_is_down.store(true, Ordering::SeqCst);
    running.send((0..50).map(|n| format!("user{n}"))).await;
    let waits = |[state, history]: [i64; 2]| {
        move |metrics: &Metrics| {
            let shown = |dependency| metrics.waiting.with_label_values(&[dependency]).get();
            (shown("state"), shown("history")) == (state, history)
        }
    };
    running.until("the state to be waited for", waits([1, 0])).await;
    running.faults.handled_is_down.store(false, Ordering::SeqCst);
    running.until("the history alone to be waited for", waits([0, 1])).await;
    running.faults.search_is_down.store(false, Ordering::SeqCst);
    running.until_handled(50).await;
    running.until("nothing to be waited for", waits([0, 0])).await;
    assert!(running.letters().await.is_empty());
    assert_eq!(running.stored().await, json!(50));
    running.app.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_file_of_networks_is_taken_while_running_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("list.txt");
    let write = |text: &str| {
        let fresh = folder.path().join("fresh");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, &list).unwrap();
    };
    write("203.0.113.0/24\n");
    let policy = format!(
        "local set = net.file({list:?})
        function report(lt) if set:has(lt.remote) then alert {{ kind = 'listed', title = 'x', key = lt.login, severity = 'high' }} end end"
    );
    let running = Running::start("policy.check_files_every = \"10ms\"", &policy).await;
    let files = |metrics: &Metrics, outcome: &str| metrics.policy_files.with_label_values(&[outcome]).get();
    let alerts = |metrics: &Metrics| metrics.alerts.with_label_values(&["high"]).get();
    running.send(["a".to_owned()]).await;
    running.until_handled(1).await;
    assert_eq!(alerts(&running.metrics), 0);

    write("198.18.0.0/15\n");
    running.until("the new file", |metrics| files(metrics, "read") == 1).await;
    running.send(["b".to_owned()]).await;
    running.until_handled(2).await;
    assert_eq!(alerts(&running.metrics), 1);

    write("198.18.0.0/15\nnonsense\n");
    running.until("the refusal", |metrics| files(metrics, "refused") == 1).await;
    let error = running.app.reload().await.unwrap_err();
    assert!(error.contains("list.txt:2: \"nonsense\" is no network") && error.contains("stay in use"), "{error}");
    running.send(["c".to_owned()]).await;
    running.until_handled(3).await;
    assert_eq!(alerts(&running.metrics), 2, "what was read before stays in use");

    // The files of the policies that are in use since a reload are looked after, too.
    write("198.18.0.0/15\n192.0.2.0/24\n");
    running.app.reload().await.unwrap();
    let read = files(&running.metrics, "read");
    write("203.0.113.0/24\n");
    running.until("the file of the new policies", |metrics| files(metrics, "read") > read).await;
    running.send(["d".to_owned()]).await;
    running.until_handled(4).await;
    assert_eq!(alerts(&running.metrics), 2);
    running.app.drain().await.unwrap();
}

/// A policy that says when a login's reports run out of their order. The first one of each login waits at the first gate, and so on.
#[cfg(any(feature = "amqp", feature = "kafka"))]
fn in_order_through(gates: &[&Server]) -> String {
    let urls: Vec<String> = gates.iter().map(|server| format!("'{}'", server.url())).collect();
    format!(
        "local gates = {{ {} }}
        function report(lt)
            local n = tonumber(lt.attrs.n)
            if gates[n] then http.get(gates[n]) end
            if n < (state.get(lt.login) or 0) then alert{{kind='backwards', severity='high', title='t'}} end
            state.set(lt.login, n)
        end",
        urls.join(", ")
    )
}

/// What keeps the policy at its gate.
#[cfg(any(feature = "amqp", feature = "kafka"))]
const PATIENT: &str = "policy.time_limit = \"5m\"\npolicy.http.timeout = \"4m\"\n";

#[cfg(any(feature = "amqp", feature = "kafka"))]
impl Running {
    /// Straight into the queue.
    async fn publish(&self, logins: usize, numbers: std::ops::RangeInclusive<usize>) {
        let reports = numbers.flat_map(|n| (0..logins).map(move |login| (format!("user{login}"), n)));
        let reports = reports.map(|(login, n)| {
            let report = json!({ "login": login, "remote": "192.0.2.1", "t": support::trial::now(), "attrs": { "n": n.to_string() } });
            Message::new(login, report.to_string())
        });
        self.stores.reports.publisher().publish(reports.collect()).await.unwrap();
    }

    async fn handled_in_order(self, reports: usize) {
        self.until_handled(reports as u64).await;
        assert_eq!(self.metrics.unordered.get(), 0, "the order of a login was given up");
        assert_eq!(self.metrics.alerts.with_label_values(&["high"]).get(), 0, "a report ran before an earlier one");
        assert_eq!(self.stored().await, reports);
        self.app.drain().await.unwrap();
    }
}

/// A pause that is longer than `queue.amqp.hold` gives all back, and detect still has it in hand when it comes again.
#[cfg(feature = "amqp")]
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_again_while_it_waits_for_its_turn_takes_no_second_one() {
    let Some(driver) = Driver::amqp() else { return };
    let Driver::Amqp(rabbit) = driver else { return };
    let settings = driver.settings(1, driver.port());
    let settings = format!(
        "{PATIENT}{settings}queue.amqp.hold = \"1s\"\nqueue.retry_most = \"1s\"\nnotify.give_up_after = \"500ms\"\n"
    );
    let (first, before_the_pause) = Server::gated(1, |_| Page::json("{}")).await;
    let (second, after_the_pause) = Server::gated(1, |_| Page::json("{}")).await;
    let running = Running::start(&settings, &in_order_through(&[&first, &second])).await;
    // Nearly as many as detect.login_backlog lets wait in order.
    running.publish(1, 1..=60).await;
    // The first one waits meanwhile: with the state down before, the source would be paused before all had come.
    running.until("all in hand", |metrics| metrics.unsettled.get() == 60).await;
    before_the_pause.reached().await;
    // It tells what was a few seconds ago.
    let broker_has = |kind: &str| rabbit.manage("GET", "queues/%2F/reports-1", "").1[kind] == 60;
    running.until("the broker to see that", |_| broker_has("messages_unacknowledged")).await;
    running.faults.state_is_down.store(true, Ordering::SeqCst);
    before_the_pause.open();
    running.until("all to be given back", |_| broker_has("messages_ready")).await;
    running.faults.state_is_down.store(false, Ordering::SeqCst);
    running.until("the old tokens", |metrics| metrics.stale_settlements.get() >= 60).await;
    after_the_pause.open();
    running.handled_in_order(60).await;
}

/// Another process takes half of the partitions, can finish nothing either, and leaves: its reports come again to who has them in hand.
#[cfg(feature = "kafka")]
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_again_with_a_partition_that_went_and_came_back_takes_no_second_turn() {
    const LOGINS: usize = 32;
    let Some(driver) = Driver::kafka() else { return };
    let settings = driver.settings(1, driver.port());
    let settings =
        format!("{PATIENT}{settings}queue.kafka.revoke_timeout = \"500ms\"\ndetect.drain_timeout = \"1s\"\n");
    let (server, gate) = Server::gated(LOGINS, |_| Page::json("{}")).await;
    let policy = in_order_through(&[&server]);
    let running = Running::start(&settings, &policy).await;
    // Twice as many would be more than detect.login_backlog lets wait in order.
    running.publish(LOGINS, 1..=40).await;
    running.until("all in hand", |metrics| metrics.unsettled.get() == 40 * LOGINS as i64).await;
    gate.reached().await;
    let other = Running::start(&settings, &policy).await;
    other.until("some partitions to have moved", |metrics| metrics.unsettled.get() > 0).await;
    other.app.drain().await.unwrap();
    // Behind all that comes again.
    running.publish(LOGINS, 41..=41).await;
    running.until("all to have come again", |metrics| metrics.unsettled.get() == 41 * LOGINS as i64).await;
    running.until("the old tokens", |metrics| metrics.stale_settlements.get() > 0).await;
    gate.open();
    let metrics = Arc::clone(&running.metrics);
    running.handled_in_order(41 * LOGINS).await;
    assert_eq!(metrics.repeated.get(), 0, "a report ran twice");
}
