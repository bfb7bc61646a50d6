//! Processes that come and go: a drain leaves nothing to be done twice.
//!
//! The small form runs with the tests; `tests/trials/group` runs the full one (`tests/trials/group kafka::` on one driver).

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;

use std::time::{Duration, Instant};

use support::driver::{Driver, on_each_driver};
use support::load::{Load, Rig, repeated, unsettled};

on_each_driver!(drained_under_load_exits_0_and_the_next_start_handles_nothing_twice);

fn drained_under_load_exits_0_and_the_next_start_handles_nothing_twice(driver: Driver) {
    let mut rig = Rig::new(driver);
    let site = rig.site("");
    // A hundred reports a login: most of what is in hand waits for its turn.
    let mut load = Load::new(3000, 30, 1, 0..=50, &mut rig.random);
    let program = site.start();
    let senders = rig.send(&site, load.shares.remove(0));
    rig.wait_for_work(&program);
    rig.join(senders);
    let in_hand = unsettled(&program);
    let draining = Instant::now();
    assert_eq!(program.terminate(), Some(0));
    let drained = draining.elapsed();
    let program = site.start();
    rig.everything_handled(&site, &program, &load);
    let again = repeated(&program);
    let table = [
        ("reports in hand at SIGTERM", in_hand.to_string()),
        ("seconds of the drain", format!("{:.1}", drained.as_secs_f64())),
        ("reports that came again", again.to_string()),
    ];
    rig.print("drain", &table);
    assert!(in_hand > 0.0, "nothing was in hand at SIGTERM: this proves nothing");
    assert!(again == 0.0, "{again} reports came again after a drain");
    assert!(drained < Duration::from_secs(25), "the drain took {drained:?}");
    assert_eq!(program.terminate(), Some(0));
}
