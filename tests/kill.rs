//! Nothing is lost when a process or a broker is killed: SIGKILL at random instants under load, again and again.
//!
//! What must hold afterwards: every report that was answered 2xx was handled, stands in the history exactly once, has counted exactly
//! once in the state, in its login's order, and its alert arrived; an alert that is suppressed was sent once, whatever the number of
//! restarts.
//!
//! The small form runs with the tests; `tests/trials/kill` runs the full one (`tests/trials/kill kafka` on one driver).

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use support::driver::{Driver, on_brokers, on_each_driver};
use support::load::{Load, PATIENCE, Rig, last_of, repeated, unsettled};
use support::trial;

/// Milliseconds from the first report in hand to the latest kill: more than two commits of the history and of a position (1 s each).
const UNTIL_KILL: u64 = 2500;

on_each_driver!(process_killed_again_and_again_under_load_loses_nothing);
on_brokers!(broker_killed_under_load_and_started_again_loses_nothing);

/// On RabbitMQ, too, the order of a login is held here although processes follow each other: what a killed one had in hand goes back to
/// the head of the queue in its old order when the broker has seen its channel end, and the next one waits for that. With several
/// consumers at once nothing of it is promised.
fn process_killed_again_and_again_under_load_loses_nothing(driver: Driver) {
    let (total, kills) = trial::size((20_000, 5), (200_000, 20));
    let mut rig = Rig::new(driver);
    let site = rig.site(driver.short_session());
    // A hundred reports of each login in a share: that lasts as long as the longest time before a kill, at 25 ms each.
    let mut load = Load::new(total, total / kills / 100, kills, 0..=50, &mut rig.random);
    let mut program = site.start();
    let (mut in_flight, mut again) = (Vec::new(), 0.0);
    let mut turns: Vec<usize> = (0..kills).collect();
    turns.shuffle(&mut rig.random);
    for (share, turn) in std::mem::take(&mut load.shares).into_iter().zip(turns) {
        let senders = rig.send(&site, share);
        // The kill comes at a random instant from here, in a part of the time of its own: were all within the first second, none would
        // come after the history's first commit, nor between that and the ack.
        rig.wait_for_work(&program);
        let at = |turn: usize| UNTIL_KILL * turn as u64 / kills as u64;
        rig.pause(at(turn)..=at(turn + 1));
        in_flight.push(unsettled(&program));
        again += repeated(&program);
        program.kill();
        program = site.start();
        rig.join(senders);
    }
    rig.everything_handled(&site, &program, &load);
    again += repeated(&program);
    let table = [
        ("kills", kills.to_string()),
        ("in flight at each kill", format!("{in_flight:?}")),
        ("reports that came again after they were handled", again.to_string()),
        ("alerts marked, and arrived", load.marked.to_string()),
        ("reports handled after a later one of their login", "0".to_owned()),
    ];
    rig.print("kill", &table);
    let hits = in_flight.iter().filter(|n| **n > 0.0).count();
    assert!(hits * 2 > kills, "nothing was in flight at most of the kills: this proves little");
    assert!(again > 0.0, "no kill came between the history and the ack: this proves little");
    assert_eq!(program.terminate(), Some(0));
}

fn broker_killed_under_load_and_started_again_loses_nothing(driver: Driver) {
    broker_killed(driver, "");
}

/// What is in a shard when the broker goes comes before what is sent when it is back.
#[cfg(feature = "amqp")]
#[test]
fn broker_with_shards_killed_under_load_keeps_the_order_of_each_login_on_amqp() {
    let Some(driver) = Driver::amqp() else { return };
    let _alone = driver.alone();
    broker_killed(driver, "queue.amqp.shards = 8\n");
}

fn broker_killed(driver: Driver, settings: &str) {
    let (total, down) = trial::size((20_000, Duration::from_secs(5)), (200_000, Duration::from_secs(30)));
    let mut rig = Rig::new(driver);
    let site = rig.site(settings);
    let mut load = Load::new(total, 500, 2, 0..=50, &mut rig.random);
    let program = site.start();
    let first = rig.send(&site, load.shares.remove(0));
    rig.join(first);
    rig.wait_for_work(&program);
    let mut share = load.shares.remove(0);
    let last = last_of(&mut share);
    let senders = rig.send(&site, share);
    let accepted = || rig.progress.accepted.load(Ordering::Relaxed);
    program.wait_until("more reports accepted", PATIENCE, |_| accepted() > total / 2);
    let in_flight = rig.wait_for_work(&program);
    let server = driver.server().unwrap();
    // The senders go on while it is down: each batch is sent until it is answered 2xx.
    server.kill();
    let accepted = accepted();
    let senders = rig.send_after(senders, &site, last);
    std::thread::park_timeout(down);
    assert!(program.lives(), "it does not live without its broker");
    server.start_again();
    let back = Instant::now();
    rig.join(senders);
    rig.everything_handled(&site, &program, &load);
    let table = [
        ("accepted and in flight when the broker was killed", format!("{accepted} and {in_flight}")),
        ("seconds down", down.as_secs().to_string()),
        ("seconds until all was handled afterwards", format!("{:.1}", back.elapsed().as_secs_f64())),
        ("reports that came again after they were handled", repeated(&program).to_string()),
    ];
    rig.print(if settings.is_empty() { "broker killed" } else { "broker with shards killed" }, &table);
    assert!(in_flight > 0.0 && accepted < load.total, "nothing was in flight: this proves nothing");
    assert_eq!(program.terminate(), Some(0));
}
