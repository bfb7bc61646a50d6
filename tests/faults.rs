//! A broker that is there and cannot be reached, and one that refuses: the connection is cut, delayed, reset again and again; the alerts
//! queue takes nothing, or with a memory alarm none does. Nothing is lost, no report becomes a dead letter, the process stays alive and goes on by itself; where it is
//! killed after a cut, nothing is lost either.
//!
//! The small form runs with the tests; `tests/trials/faults` runs the full one (`tests/trials/faults kafka` on one driver).

#![cfg(any(feature = "kafka", feature = "amqp"))]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

#[path = "faults/log.rs"]
mod log;
#[path = "faults/refusal.rs"]
mod refusal;
mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::RngExt;
use refusal::Refusal;
use support::driver::{Driver, on_brokers};
use support::load::{Load, PATIENCE, Rig, last_of, repeated, unsettled};
use support::program::{Program, Site};
use support::proxy::{Lasts, Proxy};
use support::trial;

on_brokers!(
    connection_cut_under_load_loses_nothing_and_work_resumes,
    connection_delayed_by_five_seconds_under_load_loses_nothing_and_work_resumes,
    connection_reset_again_and_again_under_load_loses_nothing_and_work_resumes,
    process_killed_while_it_still_works_on_what_a_lost_connection_gave_it_loses_nothing,
    alerts_queue_that_refuses_writes_pauses_the_source_and_makes_no_dead_letter,
);

fn connection_cut_under_load_loses_nothing_and_work_resumes(driver: Driver) {
    under_load(driver, "connection cut", trial::size(5, 30), "", |proxy| Box::new(proxy.cut()));
}

fn connection_delayed_by_five_seconds_under_load_loses_nothing_and_work_resumes(driver: Driver) {
    let late = Duration::from_secs(5);
    under_load(driver, "each byte 5 s late", trial::size(8, 30), "", |proxy| Box::new(proxy.delay(late)));
}

fn connection_reset_again_and_again_under_load_loses_nothing_and_work_resumes(driver: Driver) {
    under_load(driver, "connection reset", trial::size(5, 30), "", |proxy| Box::new(proxy.reset()));
}

/// The processes that share the shards publish to each other, too, and nothing of that must keep acks from the broker.
#[cfg(feature = "amqp")]
#[test]
fn broker_with_a_memory_alarm_under_load_loses_nothing_and_work_resumes_on_amqp() {
    let Some(driver @ Driver::Amqp(rabbit)) = Driver::amqp() else { return };
    let _alone = driver.alone();
    under_load(driver, "memory alarm", trial::size(5, 30), "queue.amqp.shards = 8\n", |_| Box::new(rabbit.alarm()));
}

/// What was seen while a fault lasted.
#[derive(Default)]
struct Seen {
    /// Answers to livez, and how many of them were not 200.
    asked: u32,
    dead: u32,
    /// What stood in readyz's body.
    waited_for: Vec<String>,
}

/// Asks the probes for so long.
fn watch(program: &Program, lasts: Duration) -> Seen {
    let (began, mut seen) = (Instant::now(), Seen::default());
    while began.elapsed() < lasts {
        seen.asked += 1;
        seen.dead += u32::from(!program.lives());
        let body = program.get("/readyz").unwrap_or_default();
        let body: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        for name in body["waiting_for"].as_array().into_iter().flatten().filter_map(|name| name.as_str()) {
            if !seen.waited_for.iter().any(|known| known == name) {
                seen.waited_for.push(name.to_owned());
            }
        }
        std::thread::park_timeout(Duration::from_millis(250));
    }
    seen
}

fn under_load(
    driver: Driver,
    name: &str,
    seconds: u64,
    settings: &str,
    begin: impl FnOnce(&Proxy) -> Box<dyn Lasts + '_>,
) {
    let mut rig = Rig::new(driver);
    let (listen, to) = driver.way_through_a_proxy();
    let Some(proxy) = Proxy::open(listen, to) else { return };
    let site = rig.site_through(listen, settings);
    let mut load = Load::new(trial::size(20_000, 200_000), 500, 2, 0..=50, &mut rig.random);
    let program = site.start();
    // Until something is taken in: a group may need seconds to come together, and the load would be over by then.
    rig.join(rig.send(&site, load.shares.remove(0)));
    rig.wait_for_work(&program);
    let some = load.total / 2 + rig.random.random_range(load.total / 20..load.total / 4);
    let mut share = load.shares.remove(0);
    let last = last_of(&mut share);
    let senders = rig.send(&site, share);
    let accepted = || rig.progress.accepted.load(Ordering::Relaxed);
    program.wait_until("enough reports accepted", PATIENCE, |_| accepted() >= some);
    let (in_hand, sent, before) = (rig.wait_for_work(&program), accepted(), log::lines(&site));
    let spooled_before = program.metric("trackalert_spooled_reports_total").unwrap_or_default();
    let fault = begin(&proxy);
    let senders = rig.send_after(senders, &site, last);
    let seen = watch(&program, Duration::from_secs(seconds));
    let spooled = program.metric("trackalert_spooled_reports_total").unwrap_or_default() - spooled_before;
    drop(fault);
    let over = Instant::now();
    rig.join(senders);
    rig.everything_handled(&site, &program, &load);
    let said = log::since(&site, before);
    let table = [
        ("accepted when it began", sent.to_string()),
        ("in hand when it began", in_hand.to_string()),
        ("seconds of it", seconds.to_string()),
        ("seconds until all was handled afterwards", format!("{:.1}", over.elapsed().as_secs_f64())),
        ("livez asked, not 200", format!("{}, {}", seen.asked, seen.dead)),
        ("not confirmed in time, and so in the spool", spooled.to_string()),
        ("waited for, as readyz says", seen.waited_for.join(", ")),
        ("warnings and errors in the log", said.count().to_string()),
    ];
    rig.print(name, &table);
    said.print();
    assert!(in_hand > 0.0 && sent < load.total, "nothing was in flight: this proves nothing");
    assert!(spooled > 0.0, "the broker confirmed everything in time: there was no fault, and this proves nothing");
    assert_eq!(seen.dead, 0, "it was taken for dead");
    assert!(said.count() <= log::bearable(seconds), "a storm in the log");
    assert_eq!(program.terminate(), Some(0));
}

/// The work on what the lost connection gave goes on while all of it is handed out again, and the kill comes in the middle of both.
fn process_killed_while_it_still_works_on_what_a_lost_connection_gave_it_loses_nothing(driver: Driver) {
    let total = trial::size(4_000, 20_000);
    let mut rig = Rig::new(driver);
    let (listen, to) = driver.way_through_a_proxy();
    let Some(proxy) = Proxy::open(listen, to) else { return };
    let site = rig.site_through(listen, driver.lane_lost_soon());
    // Two reports of each login: the second one waits for the first.
    let mut load = Load::new(total, total / 2, 1, 0..=15_000, &mut rig.random);
    let mut program = site.start();
    let senders = rig.send(&site, load.shares.remove(0));
    rig.join(senders);
    rig.wait_for_work(&program);
    rig.pause(500..=1500);
    let in_hand = unsettled(&program);
    let fault = proxy.cut();
    std::thread::park_timeout(driver.loses_its_lanes_after());
    // Nothing comes again before the cut is over: these are of the lost connection.
    let working = program.metric("trackalert_in_flight").unwrap();
    drop(fault);
    program.wait_until("something handled to come again", PATIENCE, |program| repeated(program) > 0.0);
    rig.pause(0..=1000);
    let [ignored, at_the_kill] =
        ["trackalert_stale_settlements_total", "trackalert_in_flight"].map(|name| program.metric(name).unwrap());
    program.kill();
    program = site.start();
    rig.everything_handled(&site, &program, &load);
    let table = [
        ("in hand at the cut", in_hand.to_string()),
        ("worked on at the end of the cut, at the kill", format!("{working}, {at_the_kill}")),
        ("settlements of the lost connection, ignored", ignored.to_string()),
        ("reports that came again after they were handled", repeated(&program).to_string()),
    ];
    rig.print("cut and killed", &table);
    assert!(working > 0.0 && at_the_kill > 0.0, "nothing was in flight: this proves nothing");
    assert!(ignored > 0.0, "nothing of the lost connection was settled after it: this proves nothing");
    assert_eq!(program.terminate(), Some(0));
}

/// Raises an alert for each report.
const EACH: &str = r#"
function report(lt)
  alert { kind = "each", title = "each", key = lt.login .. "/" .. lt.attrs.seq }
end
"#;

fn start(site: &Site, roles: &str) -> Program {
    let mut command = site.command();
    command.args(["--roles", roles]);
    site.start_command(command)
}

/// What is in hand when nothing is added to it any more: what was on its way when the source was paused has come.
fn at_rest(program: &Program) -> f64 {
    let (began, mut before) = (Instant::now(), unsettled(program));
    loop {
        std::thread::park_timeout(Duration::from_secs(1));
        let now = unsettled(program);
        if now == before {
            return now;
        }
        assert!(began.elapsed() < PATIENCE, "the source is not paused: {before} in hand became {now}");
        before = now;
    }
}

fn alerts_queue_that_refuses_writes_pauses_the_source_and_makes_no_dead_letter(driver: Driver) {
    let mut rig = Rig::new(driver);
    let lasts = Duration::from_secs(trial::size(5, 60));
    let Some(refusal) = Refusal::prepare(driver, &rig.alerts()) else { return };
    // What the client tries again by itself is no refusal: it would hide ten seconds. And reports that a slow machine confirms late are
    // not refused, only the alerts are.
    let site = rig.site("queue.kafka.delivery_timeout = \"5s\"\nreceive.spool_after = \"10s\"\n");
    site.policy("each", EACH);
    let mut load = Load::new(trial::size(20_000, 200_000), 500, 2, 0..=50, &mut rig.random);
    // Without notify: what takes alerts would make room for more.
    let program = start(&site, "receive,detect");
    let before = log::lines(&site);
    let senders = rig.send(&site, load.shares.remove(0));
    rig.wait_for_work(&program);
    refusal.begin();
    rig.join(senders);
    let waits = |program: &Program| program.metric("trackalert_waiting_for{dependency=\"alerts\"}") == Some(1.0);
    program.wait_until("the refusal", PATIENCE, waits);
    let (in_hand, memory) = (at_rest(&program), program.memory_mib().0);
    // More comes, and stays in its queue.
    let senders = rig.send(&site, load.shares.remove(0));
    let seen = watch(&program, lasts);
    rig.join(senders);
    let (at_its_end, memory_then) = (unsettled(&program), program.memory_mib().0);
    let waiting = program.metric("trackalert_queue_messages{queue=\"reports\"}").unwrap_or_default();
    assert!(waits(&program), "it does not wait any more");
    refusal.end();
    let over = Instant::now();
    let (notify_site, total) = (rig.site(""), load.total);
    let notify = start(&notify_site, "notify");
    rig.everything_handled(&site, &program, &load);
    notify.wait_until("an alert of each report", PATIENCE, |_| rig.inbox.of_kind("each").len() == total);
    let said = log::since(&site, before);
    let table = [
        ("in hand when the source was paused", in_hand.to_string()),
        ("in hand at the end of the refusal", at_its_end.to_string()),
        ("not done in the reports queue then", waiting.to_string()),
        ("seconds of it", lasts.as_secs().to_string()),
        ("MiB when the source was paused, at the end", format!("{memory:.0}, {memory_then:.0}")),
        ("waited for, as readyz says", seen.waited_for.join(", ")),
        ("seconds until all was handled afterwards", format!("{:.1}", over.elapsed().as_secs_f64())),
        ("livez asked, not 200", format!("{}, {}", seen.asked, seen.dead)),
        ("warnings and errors in the log", said.count().to_string()),
    ];
    rig.print("alerts refused", &table);
    said.print();
    assert!(in_hand > 0.0, "nothing was in flight: this proves nothing");
    assert!(at_its_end <= in_hand, "the source is not paused: {in_hand} in hand became {at_its_end}");
    assert!(waiting >= (total / 2) as f64, "what came meanwhile is not in the queue");
    assert_eq!((seen.dead, seen.waited_for), (0, vec!["alerts".to_owned()]));
    assert!(memory_then < memory + 32.0, "it grew from {memory:.0} to {memory_then:.0} MiB");
    assert!(said.count() <= log::bearable(lasts.as_secs()), "a storm in the log");
    assert_eq!((program.terminate(), notify.terminate()), (Some(0), Some(0)));
}
