//! The real binary with its queues on a real broker: nothing is lost when the process is killed under load, or the broker.
//!
//! The small form runs with the tests; `tests/trials/amqp` runs the full one.

#![cfg(feature = "amqp")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

#[path = "support/rabbitmq.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod rabbitmq;
mod support;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use rabbitmq::Rabbit;
use support::inbox::Inbox;
use support::program::{Program, Site};
use support::sender::{Progress, dead_letters, query, send_all};
use support::trial;

/// Waits 0 to 50 ms, and raises an alert for each `mark`ed report.
const POLICY: &str = r#"
function report(lt)
  time.sleep(math.random() * 0.05)
  if lt.attrs.mark then
    alert { kind = "marked", title = "marked", key = lt.attrs.mark }
  end
end
"#;

const PATIENCE: Duration = Duration::from_secs(300);

/// One trial at a time: the machine is small, and one of them stops the broker.
static ALONE: Mutex<()> = Mutex::new(());

struct Trial {
    _alone: MutexGuard<'static, ()>,
    rabbit: &'static Rabbit,
    site: Site,
    inbox: Inbox,
    progress: Arc<Progress>,
    runtime: tokio::runtime::Runtime,
    total: usize,
    marked: usize,
}

impl Trial {
    /// A site on queues of its own. `None`: there is no broker here.
    fn new(name: &str, total: usize) -> Option<Self> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let rabbit = rabbitmq::shared()?;
        let (inbox, receiver) = Inbox::start();
        let site = Site::new(&format!(
            "[history]\ncommit_every = \"200ms\"\n[queue]\nkind = \"amqp\"\nreports = \"{name}-reports\"\nalerts = \"{name}-alerts\"\n[queue.amqp]\nurl = \"{}\"\n[[notify.channels]]\nkind = \"webhook\"\nurl = \"http://{receiver}/\"\n",
            rabbit.url()
        ));
        site.policy("wait", POLICY);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        Some(Self {
            _alone: alone,
            rabbit,
            site,
            inbox,
            progress: Arc::default(),
            runtime,
            total,
            marked: total.div_ceil(50),
        })
    }

    /// Starts sending, over eight connections, each login on one.
    fn send(&self) -> Vec<tokio::task::JoinHandle<()>> {
        let mut lanes = vec![Vec::new(); 8];
        let began = trial::now() - 3600.0;
        for number in 0..self.total {
            let login = number % 500;
            let mark = if number.is_multiple_of(50) { json!({ "mark": number.to_string() }) } else { json!({}) };
            let t = began + number as f64 / self.total as f64 * 1800.0;
            let report = json!({ "t": t, "login": format!("user{login}"), "remote": "192.0.2.1", "attrs": mark });
            lanes[login % 8].push(report.to_string());
        }
        let send = |lane| {
            let (address, progress) = (self.site.address.clone(), Arc::clone(&self.progress));
            self.runtime.spawn(async move { send_all(&address, lane, 50, progress).await })
        };
        lanes.into_iter().map(send).collect()
    }

    /// Everything was handled, and nothing is missing.
    fn settle(&self, senders: Vec<tokio::task::JoinHandle<()>>, program: &Program) {
        self.runtime.block_on(async {
            for sender in senders {
                sender.await.unwrap();
            }
        });
        let body = json!({ "size": 0, "track_total_hits": true });
        program.wait_until("everything handled", PATIENCE, |program| {
            let stored = self.runtime.block_on(query(&self.site.address, body.clone()));
            stored["hits"]["total"]["value"] == json!(self.total)
                && self.inbox.of_kind("marked").len() == self.marked
                && program.idle()
        });
        for queue in ["reports", "alerts"] {
            assert!(self.runtime.block_on(dead_letters(&self.site.address, queue)).is_empty(), "dead {queue}");
        }
    }

    fn accepted(&self) -> usize {
        self.progress.accepted.load(Ordering::Relaxed)
    }
}

#[test]
fn killed_again_and_again_under_load_loses_nothing() {
    let (total, kills) = trial::size((20_000, 5), (200_000, 20));
    let Some(trial) = Trial::new("kill", total) else { return };
    let seed = trial::seed();
    let mut random = StdRng::seed_from_u64(seed);
    let began = Instant::now();
    let mut program = trial.site.start();
    let senders = trial.send();
    let mut in_flight = Vec::new();
    let share = total * 9 / 10 / kills;
    for kill in 0..kills {
        let at = share * kill + random.random_range(0..share);
        program.wait_until("enough reports accepted", PATIENCE, |_| trial.accepted() >= at);
        std::thread::park_timeout(Duration::from_micros(random.random_range(0..200_000)));
        in_flight.push(program.metric("trackalert_unsettled").unwrap_or_default() as usize);
        program.kill();
        program = trial.site.start();
    }
    trial.settle(senders, &program);
    let twice = trial.inbox.alerts().values().filter(|arrival| arrival.times > 1).count();
    let table = [
        ("reports accepted and in the history", total.to_string()),
        ("kills", kills.to_string()),
        ("in flight at each kill", format!("{in_flight:?}")),
        ("requests that were cut and sent again", trial.progress.failed.load(Ordering::Relaxed).to_string()),
        ("alerts that arrived", trial.marked.to_string()),
        ("alerts that came twice (same id)", twice.to_string()),
        ("seconds", format!("{:.0}", began.elapsed().as_secs_f64())),
    ];
    trial::print("amqp, process killed", seed, &table);
    assert!(in_flight.iter().any(|n| *n > 0), "nothing was in flight at any kill: this proves nothing");
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn broker_restarted_under_load_loses_nothing_and_work_resumes() {
    let Some(trial) = Trial::new("restart", trial::size(20_000, 200_000)) else { return };
    let began = Instant::now();
    let program = trial.site.start();
    let senders = trial.send();
    program.wait_until("reports accepted", PATIENCE, |_| trial.accepted() >= trial.total / 4);
    let unsettled = program.metric("trackalert_unsettled").unwrap_or_default();
    trial.rabbit.restart();
    trial.settle(senders, &program);
    let table = [
        ("reports accepted and in the history", trial.total.to_string()),
        ("in flight when the broker was stopped", unsettled.to_string()),
        ("requests refused or cut, and sent again", trial.progress.failed.load(Ordering::Relaxed).to_string()),
        ("seconds", format!("{:.0}", began.elapsed().as_secs_f64())),
    ];
    trial::print("amqp, broker restarted", 0, &table);
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn drained_under_load_exits_0_and_handles_the_rest_after_the_next_start() {
    let Some(trial) = Trial::new("drain", 5_000) else { return };
    let program = trial.site.start();
    let senders = trial.send();
    program.wait_until("reports accepted", PATIENCE, |_| trial.accepted() >= trial.total / 4);
    assert_eq!(program.terminate(), Some(0), "{}", trial.site.log_text());
    let program = trial.site.start();
    trial.settle(senders, &program);
    // Batches whose answer the drain cut were sent again, too: these are the same reports.
    let twice = program.metric("trackalert_repeated_reports_total").unwrap_or_default();
    trial::print("amqp, drained under load", 0, &[("reports that came twice", twice.to_string())]);
    assert_eq!(program.terminate(), Some(0));
}
