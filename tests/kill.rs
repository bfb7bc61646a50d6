//! Nothing is lost when the process is killed: SIGKILL at random instants under load, again and again.
//!
//! What must hold afterwards: every report that was answered 2xx was handled, stands in the history exactly once, has counted exactly
//! once in the state, and its alert arrived; an alert that is suppressed was sent once, whatever the number of restarts.
//!
//! The small form runs with the tests; `tests/trials/kill` runs the full one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use support::inbox::Inbox;
use support::program::Site;
use support::sender::{Progress, query, send_all};
use support::trial;

/// Counts each login's reports in the state, raises an alert for each `mark`ed report, one with the count for each login's `last`, and
/// one that is always the same. A short wait keeps reports in flight for a kill to hit. A counter that is read and written needs its
/// login's order, so no login may give it up (`detect.login_backlog = 0`).
const POLICY: &str = r#"
function report(lt)
  local name = "n:" .. lt.login
  local n = (state.get(name) or 0) + 1
  state.set(name, n)
  time.sleep(0.02)
  if lt.attrs.mark then
    alert { kind = "marked", title = "marked", key = lt.attrs.mark }
  end
  if lt.attrs.last then
    alert { kind = "count", title = "count", evidence = { n = n } }
  end
  if lt.attrs.same then
    alert { kind = "same", title = "sent once in its window", key = "same" }
  end
end
"#;

struct Load {
    reports: Vec<Vec<String>>,
    total: usize,
    marked: usize,
    logins: usize,
}

/// Reports of `logins` logins over `lanes` senders; all of a login on one lane, so that its order is the order of sending.
fn load(total: usize, logins: usize, lanes: usize) -> Load {
    let began = trial::now() - 3600.0;
    let per_login = total / logins;
    let mut reports = vec![Vec::new(); lanes];
    let mut marked = 0;
    for index in 0..per_login {
        for login in 0..logins {
            let number = index * logins + login;
            let mut attrs = serde_json::Map::new();
            if number.is_multiple_of(50) {
                attrs.insert("mark".into(), json!(number.to_string()));
                marked += 1;
            }
            if number.is_multiple_of(997) {
                attrs.insert("same".into(), json!("1"));
            }
            if index == per_login - 1 {
                attrs.insert("last".into(), json!("1"));
            }
            // Within one suppression window, however long the trial takes.
            let t = began + number as f64 / total as f64 * 1800.0;
            let report = json!({ "t": t, "login": format!("user{login}"), "remote": "192.0.2.1", "attrs": attrs });
            reports[login % lanes].push(report.to_string());
        }
    }
    Load { reports, total: per_login * logins, marked, logins }
}

#[test]
fn killed_again_and_again_under_load_loses_nothing_and_counts_nothing_twice() {
    let (total, kills) = trial::size((20_000, 5), (300_000, 20));
    let seed = trial::seed();
    let mut random = StdRng::seed_from_u64(seed);
    let (inbox, receiver) = Inbox::start();
    let site = Site::new(&format!(
        "detect.login_backlog = 0\n[history]\ncommit_every = \"200ms\"\n[[notify.channels]]\nkind = \"webhook\"\nurl = \"http://{receiver}/\"\n"
    ));
    site.policy("kill", POLICY);
    let load = load(total, 500, 8);
    let progress = Arc::new(Progress::default());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut program = site.start();
    let mut senders = Vec::new();
    for lane in load.reports {
        let (address, progress) = (site.address.clone(), Arc::clone(&progress));
        senders.push(runtime.spawn(async move { send_all(&address, lane, 50, progress).await }));
    }

    let mut in_flight_at_kill = Vec::new();
    let began = Instant::now();
    for kill in 0..kills {
        // The kills are spread over the load: each comes at a random instant of its share, measured in accepted reports.
        let share = load.total * 9 / 10 / kills;
        let at = share * kill + random.random_range(0..share);
        let extra = Duration::from_micros(random.random_range(0..200_000));
        program.wait_until("enough reports accepted", Duration::from_secs(300), |_| {
            progress.accepted.load(Ordering::Relaxed) >= at
        });
        std::thread::park_timeout(extra);
        let unsettled = program.metric("trackalert_unsettled").unwrap_or_default();
        in_flight_at_kill.push(unsettled as usize + progress.outstanding.load(Ordering::Relaxed));
        program.kill();
        program = site.start();
    }
    runtime.block_on(async {
        for sender in senders {
            sender.await.unwrap();
        }
    });
    program.wait_until("everything handled", Duration::from_secs(300), |program| program.idle());

    let history = runtime.block_on(query(
        &site.address,
        json!({
            "size": 0, "track_total_hits": true,
            "aggs": { "logins": { "terms": { "field": "login", "size": 10000 } } },
        }),
    ));
    let alerts = inbox.alerts();
    let of_kind = |kind: &str| inbox.of_kind(kind).len();
    let table = [
        ("reports accepted", load.total.to_string()),
        ("kills", kills.to_string()),
        ("in flight at each kill", format!("{in_flight_at_kill:?}")),
        ("requests that were cut and sent again", progress.failed.load(Ordering::Relaxed).to_string()),
        ("in the history", history["hits"]["total"]["value"].to_string()),
        ("alerts marked, expected and arrived", format!("{} and {}", load.marked, of_kind("marked"))),
        ("alerts that came twice (same id)", alerts.values().filter(|arrival| arrival.times > 1).count().to_string()),
        ("alerts suppressed but for the first", of_kind("same").to_string()),
        ("seconds", format!("{:.0}", began.elapsed().as_secs_f64())),
    ];
    trial::print("kill", seed, &table);

    assert!(in_flight_at_kill.iter().any(|n| *n > 0), "nothing was in flight at any kill: this proves nothing");
    assert_eq!(history["hits"]["total"]["value"], json!(load.total), "reports in the history");
    let buckets = history["aggregations"]["logins"]["buckets"].as_array().unwrap().clone();
    assert_eq!(buckets.len(), load.logins);
    for bucket in &buckets {
        assert_eq!(bucket["doc_count"], json!(load.total / load.logins), "reports of {}", bucket["key"]);
    }
    assert_eq!(of_kind("marked"), load.marked, "alerts that arrived");
    assert_eq!(of_kind("same"), 1, "an alert was sent again within its window");
    let counts = inbox.of_kind("count");
    assert_eq!(counts.len(), load.logins);
    for count in counts {
        assert_eq!(count.alert["evidence"]["n"], json!(load.total / load.logins), "a counter of the state went wrong");
    }
    assert_eq!(program.terminate(), Some(0));
}
