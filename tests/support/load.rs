//! A load of reports under which a trial kills, cuts or drains something, and what must hold when it is over.
//!
//! Each report says how long its handler is to wait and its number among its login's reports. The policy counts, and tells where one is
//! handled after a later one of its login.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use super::driver::Driver;
use super::inbox::Inbox;
use super::program::{Program, Site};
use super::sender::{Progress, dead_letters, query, send_all};
use super::trial;

/// How long something may take before a trial fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// How long a program is idle when what is missing will not come: longer than it waits for the broker to see the end of the process before
/// it (`queue.amqp.predecessor_timeout`), when what that had in hand comes again.
pub(crate) const GIVEN_UP: Duration = Duration::from_secs(60);

const SENDERS: usize = 4;

/// Waits as long as the report says, counts each login's reports in the state, and raises an alert for each `mark`ed report, one with
/// the count for each login's `last`, one that is always the `same`, and one for each report that is handled after a later one of its
/// login. The state's writes and the mark of the report as handled are one batch: a report that was handled is not run again when it
/// comes again, so one that runs and is not above the last number is out of order, or counts a second time.
pub(crate) const POLICY: &str = r#"
function report(lt)
  local counted, last = "n:" .. lt.login, "last:" .. lt.login
  local n, seq, before = (state.get(counted) or 0) + 1, tonumber(lt.attrs.seq), state.get(last) or -1
  state.set(counted, n)
  state.set(last, seq)
  if seq <= before then
    alert { kind = "backwards", title = "backwards", key = lt.login .. "/" .. seq, evidence = { seq = seq, last = before } }
  end
  time.sleep(tonumber(lt.attrs.wait) / 1000)
  if lt.attrs.mark then
    alert { kind = "marked", title = "marked", key = lt.attrs.mark }
  end
  if lt.attrs.last then
    alert { kind = "count", title = "count", key = lt.login, evidence = { n = n } }
  end
  if lt.attrs.same then
    alert { kind = "same", title = "sent once in its window", key = "same" }
  end
end
"#;

/// Reports to be sent.
pub(crate) struct Load {
    /// By share and sender; all of a login on one sender, so that its order is the order of sending.
    pub(crate) shares: Vec<Vec<Vec<String>>>,
    pub(crate) total: usize,
    pub(crate) logins: usize,
    pub(crate) per_login: usize,
    pub(crate) marked: usize,
}

impl Load {
    /// `total` reports of `logins` logins, whose handlers wait so many milliseconds each, in `shares` shares.
    pub(crate) fn new(
        total: usize,
        logins: usize,
        shares: usize,
        waits: RangeInclusive<u64>,
        random: &mut StdRng,
    ) -> Self {
        let per_login = total / logins;
        let total = per_login * logins;
        let began = trial::now() - 3600.0;
        let mut all = vec![vec![Vec::new(); SENDERS]; shares];
        let mut marked = 0;
        for number in 0..total {
            let (seq, login) = (number / logins, number % logins);
            let wait = random.random_range(waits.clone());
            let mut attrs = json!({ "seq": seq.to_string(), "wait": wait.to_string() });
            if number.is_multiple_of(50) {
                attrs["mark"] = json!(number.to_string());
                marked += 1;
            }
            if number.is_multiple_of(997) {
                attrs["same"] = json!("1");
            }
            if seq == per_login - 1 {
                attrs["last"] = json!("1");
            }
            // Within one suppression window, however long the trial takes.
            let t = began + number as f64 / total as f64 * 1800.0;
            let report = json!({ "t": t, "login": format!("user{login}"), "remote": "192.0.2.1", "attrs": attrs });
            all[number * shares / total][login % SENDERS].push(report.to_string());
        }
        Self { shares: all, total, logins, per_login, marked }
    }
}

/// What one trial works with: an installation with queues of its own, senders, a receiver of its alerts, and the seed.
pub(crate) struct Rig {
    pub(crate) driver: Driver,
    pub(crate) seed: u64,
    pub(crate) random: StdRng,
    pub(crate) inbox: Inbox,
    pub(crate) progress: Arc<Progress>,
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) began: Instant,
    receiver: SocketAddr,
    number: u32,
}

pub(crate) type Senders = Vec<tokio::task::JoinHandle<()>>;

impl Rig {
    pub(crate) fn new(driver: Driver) -> Self {
        let seed = trial::seed();
        // Said first, or a failure would take it along.
        println!("TRACKALERT_SEED={seed}");
        let (inbox, receiver) = Inbox::start();
        Self {
            driver,
            seed,
            random: StdRng::seed_from_u64(seed),
            inbox,
            progress: Arc::default(),
            runtime: tokio::runtime::Runtime::new().unwrap(),
            began: Instant::now(),
            receiver,
            number: next_number(),
        }
    }

    /// The place of one process of the installation: a data folder and an address of its own, the same queues. `settings`: further
    /// lines with whole keys. A login keeps its order at any cost, or the policy's count would be wrong.
    pub(crate) fn site(&self, settings: &str) -> Site {
        self.site_through(self.driver.port(), settings)
    }

    /// The same with the server reached on another port.
    pub(crate) fn site_through(&self, port: u16, settings: &str) -> Site {
        let queue = self.driver.settings(self.number, port);
        let receiver = self.receiver;
        let site = Site::new(&format!(
            "detect.login_backlog = 0\nhistory.max_hits = 1000000\n{queue}{settings}\n\
             [[notify.channels]]\nkind = \"webhook\"\nurl = \"http://{receiver}/\"\n"
        ));
        site.policy("load", POLICY);
        site
    }

    /// The names of the queues.
    pub(crate) fn reports(&self) -> String {
        format!("reports-{}", self.number)
    }

    pub(crate) fn alerts(&self) -> String {
        format!("alerts-{}", self.number)
    }

    /// Sends a share in the background.
    pub(crate) fn send(&self, site: &Site, share: Vec<Vec<String>>) -> Senders {
        let nobody = share.iter().map(|_| self.runtime.spawn(async {})).collect();
        self.send_after(nobody, site, share)
    }

    /// The same, each sender behind what it sends still: a login's order is the order of sending.
    pub(crate) fn send_after(&self, before: Senders, site: &Site, share: Vec<Vec<String>>) -> Senders {
        assert_eq!(before.len(), share.len(), "a sender has nobody to go behind");
        let one = |(before, lane): (tokio::task::JoinHandle<()>, Vec<String>)| {
            let (address, progress) = (site.address.clone(), Arc::clone(&self.progress));
            self.runtime.spawn(async move {
                before.await.unwrap();
                send_all(&address, lane, 50, progress).await;
            })
        };
        before.into_iter().zip(share).map(one).collect()
    }

    /// Until all of it was accepted.
    pub(crate) fn join(&self, senders: Senders) {
        senders.into_iter().for_each(|sender| self.runtime.block_on(sender).unwrap());
    }

    /// Milliseconds at random.
    pub(crate) fn pause(&mut self, millis: RangeInclusive<u64>) {
        let micros = self.random.random_range(millis.start() * 1000..=millis.end() * 1000);
        std::thread::park_timeout(Duration::from_micros(micros));
    }

    /// Until some reports are in hand, and how many.
    pub(crate) fn wait_for_work(&self, program: &Program) -> f64 {
        let mut in_hand = 0.0;
        program.wait_until("reports in hand", PATIENCE, |program| {
            in_hand = unsettled(program);
            in_hand > 0.0
        });
        in_hand
    }

    /// Waits until every report is in the history, every alert has arrived and the queues are empty, then holds that each stands there once, has counted once and
    /// in its login's order, and that its alert arrived.
    pub(crate) fn everything_handled(&self, site: &Site, program: &Program, load: &Load) {
        let history = || {
            let logins = json!({ "terms": { "field": "login", "size": 10000 } });
            let body = json!({ "size": 0, "track_total_hits": true, "aggs": { "logins": logins } });
            self.runtime.block_on(query(&site.address, body))
        };
        let arrived = |kind, count| self.inbox.of_kind(kind).len() >= count;
        let mut idle = None;
        program.wait_until("every report in the history and every alert", PATIENCE, |program| {
            // What is missing when there was nothing left to be done for so long does not come any more. On a slow machine the metrics of
            // the queues are late: an alert may still be on its way.
            idle = program.idle().then(|| idle.unwrap_or_else(Instant::now));
            idle.is_some_and(|since: Instant| since.elapsed() > GIVEN_UP)
                || history()["hits"]["total"]["value"] == json!(load.total)
                    && arrived("count", load.logins)
                    && arrived("marked", load.marked)
        });
        program.wait_idle(PATIENCE);
        let history = history();
        assert_eq!(
            history["hits"]["total"]["value"],
            json!(load.total),
            "reports in the history; the log:\n{}",
            site.log_text()
        );
        let buckets = history["aggregations"]["logins"]["buckets"].as_array().unwrap();
        assert_eq!(buckets.len(), load.logins);
        for bucket in buckets {
            assert_eq!(bucket["doc_count"], json!(load.per_login), "reports of {}", bucket["key"]);
        }
        let counts = self.inbox.of_kind("count");
        assert_eq!(counts.len(), load.logins);
        for count in counts {
            assert_eq!(count.alert["evidence"]["n"], json!(load.per_login), "a report counted twice or not at all");
        }
        let marked = self.inbox.of_kind("marked").len();
        assert_eq!(marked, load.marked, "alerts that arrived; the log:\n{}", site.log_text());
        assert_eq!(self.inbox.of_kind("same").len(), 1, "an alert was sent again within its window");
        self.in_order();
        for queue in ["reports", "alerts"] {
            let dead = self.runtime.block_on(dead_letters(&site.address, queue));
            assert!(dead.is_empty(), "dead {queue}: {dead:?}");
        }
    }

    /// No report was handled after a later one of its login.
    pub(crate) fn in_order(&self) {
        let backwards = self.inbox.of_kind("backwards");
        let some: Vec<_> = backwards.iter().take(5).map(|arrival| &arrival.alert["key"]).collect();
        let (count, seed) = (backwards.len(), self.seed);
        assert!(some.is_empty(), "{count} handled after a later one of their login: {some:?} … TRACKALERT_SEED={seed}");
    }

    /// Prints what was seen.
    pub(crate) fn print(&self, name: &str, rows: &[(&str, String)]) {
        let requests = self.progress.failed.load(Ordering::Relaxed);
        let mut all = vec![("reports accepted", self.progress.accepted.load(Ordering::Relaxed).to_string())];
        all.extend_from_slice(rows);
        all.push(("requests refused or cut, and sent again", requests.to_string()));
        all.push(("alerts that came twice (same id)", self.inbox.repeated().to_string()));
        all.push(("seconds", format!("{:.0}", self.began.elapsed().as_secs_f64())));
        trial::print(&format!("{} on {}", name, self.driver.name()), self.seed, &all);
    }
}

/// A number that no other installation of this binary has: its queues on the server that they share are named after it.
pub(crate) fn next_number() -> u32 {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// Takes the last tenth of what each sender has off a share, to be sent when a fault has begun: however fast the program is, the fault
/// does not come too late then.
pub(crate) fn last_of(share: &mut [Vec<String>]) -> Vec<Vec<String>> {
    share.iter_mut().map(|lane| lane.split_off(lane.len() / 10 * 9)).collect()
}

/// Reports taken and not yet acknowledged.
pub(crate) fn unsettled(program: &Program) -> f64 {
    program.metric("trackalert_unsettled").unwrap_or_default()
}

/// Reports that came again after they were handled, as far as this process has seen.
pub(crate) fn repeated(program: &Program) -> f64 {
    program.metric("trackalert_repeated_reports_total").unwrap_or_default()
}
