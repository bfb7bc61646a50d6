//! Processes that come and go: a drain finishes what it holds and leaves nothing to be done twice, its partitions go to the others at
//! once, a second signal ends it at once and loses nothing, and of a group under load one may be added, drained and killed.
//!
//! History and state belong to one process each, so what two processes have handled stands in two histories: that is how it is counted.
//! The small form runs with the tests; `tests/trials/group` runs the full one (`tests/trials/group kafka` on one driver).

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use support::driver::{Driver, on_brokers, on_each_driver};
use support::load::{Load, PATIENCE, POLICY, Rig, repeated, unsettled};
use support::program::{Program, Site};
use support::sender::query;
use support::stall::Clock;
use support::trial;

/// With these the broker may be slow. What it confirms too late is in the queue and in the spool, and so handled twice, whoever is drained.
const CONFIRMED: &str = "receive.publish_timeout = \"1m\"\nreceive.spool_after = \"1m\"\n";

on_each_driver!(
    drained_with_many_waiting_for_their_turn_exits_0_and_nothing_comes_again,
    drain_that_can_finish_nothing_ends_with_its_time_and_loses_nothing,
    second_signal_ends_a_drain_at_once_and_loses_nothing,
);
on_brokers!(
    drained_process_hands_over_at_once,
    drain_while_the_broker_is_down_ends_in_time_and_loses_nothing,
    members_added_drained_and_killed_under_load_lose_nothing,
);

fn drained_with_many_waiting_for_their_turn_exits_0_and_nothing_comes_again(driver: Driver) {
    let mut rig = Rig::new(driver);
    let site = rig.site(CONFIRMED);
    // A hundred reports a login: most of what is in hand waits for its turn.
    let mut load = Load::new(3000, 30, 1, 0..=50, &mut rig.random);
    let program = site.start();
    let senders = rig.send(&site, load.shares.remove(0));
    rig.join(senders);
    rig.wait_for_work(&program);
    rig.pause(0..=400);
    let (in_hand, running) = (unsettled(&program), program.metric("trackalert_in_flight").unwrap_or_default());
    let draining = Instant::now();
    assert_eq!(program.terminate(), Some(0));
    let drained = draining.elapsed();
    let program = site.start();
    rig.everything_handled(&site, &program, &load);
    let again = repeated(&program);
    let table = [
        ("reports in hand at SIGTERM, and running", format!("{in_hand} and {running}")),
        ("seconds of the drain", format!("{:.1}", drained.as_secs_f64())),
        ("reports that came again", again.to_string()),
    ];
    rig.print("drain", &table);
    assert!(in_hand > running, "none waited for its turn at SIGTERM: this proves nothing");
    assert!(again == 0.0, "{again} reports came again after a drain");
    assert!(drained < Duration::from_secs(25), "the drain took {drained:?}");
    assert_eq!(program.terminate(), Some(0));
}

/// Handlers that wait for a minute: what ends the drain is its own time and nothing else.
fn drain_that_can_finish_nothing_ends_with_its_time_and_loses_nothing(driver: Driver) {
    const DRAIN: Duration = Duration::from_secs(2);
    let mut rig = Rig::new(driver);
    let site = rig.site("detect.drain_timeout = \"2s\"\npolicy.time_limit = \"5m\"");
    let mut load = Load::new(3000, 300, 1, 60_000..=60_000, &mut rig.random);
    let program = site.start();
    let senders = rig.send(&site, load.shares.remove(0));
    rig.join(senders);
    let many = load.total as f64 / 2.0;
    program.wait_until("many reports in hand", PATIENCE, |program| unsettled(program) > many);
    let (in_hand, running) = (unsettled(&program), program.metric("trackalert_in_flight").unwrap_or_default());
    let (draining, clock) = (Instant::now(), Clock::start());
    assert_eq!(program.terminate(), Some(0));
    let (drained, at_work) = (draining.elapsed(), clock.elapsed());
    let out_of_time = !in_time(&site);
    without_wait(&site);
    let program = site.start();
    rig.everything_handled(&site, &program, &load);
    let table = [
        ("reports in hand at SIGTERM, and running", format!("{in_hand} and {running}")),
        ("seconds of the drain", format!("{:.1}", drained.as_secs_f64())),
    ];
    rig.print("drain that can finish nothing", &table);
    assert!(running > 0.0 && in_hand > running, "none ran, or none waited for its turn: this proves nothing");
    assert!(out_of_time, "the log does not say why reports come again");
    assert!(drained >= DRAIN, "what runs got only {drained:?} of {DRAIN:?}");
    // The source stores its position, and the roles end.
    assert!(at_work < DRAIN + Duration::from_secs(4), "it drained on for {at_work:?}");
    assert_eq!(program.terminate(), Some(0));
}

/// The same policy without its wait, for the next start.
fn without_wait(site: &Site) {
    let wait = "time.sleep(tonumber(lt.attrs.wait) / 1000)";
    assert!(POLICY.contains(wait), "the policy waits in another way");
    site.policy("load", &POLICY.replace(wait, ""));
}

fn second_signal_ends_a_drain_at_once_and_loses_nothing(driver: Driver) {
    let mut rig = Rig::new(driver);
    let session = driver.short_session();
    let site = rig.site(&format!("detect.drain_timeout = \"2m\"\npolicy.time_limit = \"5m\"\n{session}"));
    // The drain would take two minutes.
    let mut load = Load::new(3000, 1000, 1, 60_000..=60_000, &mut rig.random);
    let program = site.start();
    let senders = rig.send(&site, load.shares.remove(0));
    rig.join(senders);
    rig.wait_for_work(&program);
    program.signal(Signal::SIGTERM);
    program.wait_until("the drain", PATIENCE, |_| site.log_text().contains("\"draining\""));
    rig.pause(0..=300);
    let in_hand = unsettled(&program);
    let second = Clock::start();
    assert_eq!(program.terminate(), Some(0));
    let took = second.elapsed();
    without_wait(&site);
    let program = site.start();
    rig.everything_handled(&site, &program, &load);
    let table = [
        ("reports in hand at the second signal", in_hand.to_string()),
        ("seconds until it had ended", format!("{:.2}", took.as_secs_f64())),
        ("reports that came again after they were handled", repeated(&program).to_string()),
    ];
    rig.print("second signal", &table);
    assert!(in_hand > 0.0, "nothing was in hand: this proves nothing");
    assert!(took < Duration::from_secs(1), "it drained on for {took:?}");
    assert_eq!(program.terminate(), Some(0));
}

/// The process that a trial ends by a drain hands its partitions over at once: after `queue.kafka.session_timeout`, which is five minutes
/// here, would be too late by far.
fn drained_process_hands_over_at_once(driver: Driver) {
    let mut rig = Rig::new(driver);
    let session = "queue.kafka.session_timeout = \"5m\"";
    let settings = format!("{CONFIRMED}{session}");
    let (site_a, site_b) = (rig.site(&settings), rig.site(&settings));
    let mut load = Load::new(8000, 40, 100, 0..=50, &mut rig.random);
    let (a, b) = (site_a.start(), site_b.start());
    let mut shares = load.shares.drain(..);
    until_all_work(&rig, &site_b, &[&a, &b], &mut shares, 50);
    let last = shares.next_back().unwrap();
    let senders = rig.send(&site_b, merged(shares));
    a.wait_until("many reports in hand", PATIENCE, |a| unsettled(a) > 500.0);
    rig.pause(0..=300);
    let in_hand = (unsettled(&a), a.metric("trackalert_in_flight").unwrap_or_default());
    let again = repeated(&a);
    let before = taken(&site_b);
    let draining = Instant::now();
    assert_eq!(a.terminate(), Some(0));
    let drained = draining.elapsed();
    let ended = Instant::now();
    let finished = in_time(&site_a);
    let taken_over = match driver {
        Driver::Kafka(_) => {
            b.wait_until("the partitions", PATIENCE, |_| taken(&site_b) > before);
            format!("{:.1}", ended.elapsed().as_secs_f64())
        }
        _ => "has none".to_owned(),
    };
    rig.join(senders);
    // These are of all logins, and so for all partitions.
    rig.join(rig.send(&site_b, last));
    b.wait_idle(PATIENCE);
    let histories = [site_a.start_command(looking(&site_a)), b];
    let of_each = until_all_stored(&rig, &[&site_a, &site_b], load.total);
    let took = ended.elapsed();
    let twice = of_each[0].intersection(&of_each[1]).count();
    let again = again + repeated(&histories[1]);
    let table = [
        ("reports in hand at SIGTERM, and running", format!("{} and {}", in_hand.0, in_hand.1)),
        ("seconds of the drain", format!("{:.1}", drained.as_secs_f64())),
        ("seconds from its end until its partitions were taken", taken_over),
        ("seconds from its end until all was handled", format!("{:.1}", took.as_secs_f64())),
        ("reports handled by the one and by the other", format!("{} and {}", of_each[0].len(), of_each[1].len())),
        ("reports handled by both, or twice by one", format!("{twice} and {again}")),
    ];
    rig.print("handed over by a drain", &table);
    assert!(in_hand.0 > in_hand.1, "none waited for its turn at SIGTERM: this proves nothing");
    assert!(drained < Duration::from_secs(25), "the drain took {drained:?}");
    assert!(finished, "the drain ran out of its time, TRACKALERT_SEED={}", rig.seed);
    assert!(took < Duration::from_secs(60), "it was handed over after {took:?}");
    assert_eq!((twice, again), (0, 0.0), "handled twice after a drain, TRACKALERT_SEED={}", rig.seed);
    if driver.name() == "kafka" {
        rig.in_order();
    }
}

/// The alerts of what runs cannot be published, and the position cannot be stored: neither is waited for beyond its
/// time, whether the program has noticed the outage already or not.
fn drain_while_the_broker_is_down_ends_in_time_and_loses_nothing(driver: Driver) {
    const DRAIN: Duration = Duration::from_secs(5);
    // The end of a source waits 2 s for a broker that says nothing, and the end of the threads 1; the rest is for a slow
    // machine.
    const AFTER: Duration = Duration::from_secs(6);
    let mut rig = Rig::new(driver);
    // Who could not say that it leaves keeps its partitions for so long.
    let session = driver.short_session();
    let site = rig.site(&format!("detect.drain_timeout = \"5s\"\n{session}"));
    // Ten rounds of a second: some runs, and more waits, until long after the broker is gone.
    let mut load = Load::new(3000, 300, 1, 500..=1500, &mut rig.random);
    let mut command = site.command();
    command.args(["--roles", "receive,detect"]);
    let program = site.start_command(command);
    let senders = rig.send(&site, load.shares.remove(0));
    rig.join(senders);
    rig.wait_for_work(&program);
    rig.pause(0..=400);
    let server = driver.server().unwrap();
    server.kill();
    rig.pause(0..=2000);
    let in_hand = unsettled(&program);
    let draining = Clock::start();
    let code = program.terminate();
    let drained = draining.elapsed();
    // Before anything can fail: the next case needs it.
    server.start_again();
    let program = site.start();
    rig.everything_handled(&site, &program, &load);
    let table = [
        ("reports in hand at SIGTERM", in_hand.to_string()),
        ("seconds of the drain", format!("{:.1}", drained.as_secs_f64())),
        ("reports that came again after they were handled", repeated(&program).to_string()),
    ];
    rig.print("drain while the broker is down", &table);
    assert_eq!(code, Some(0), "{}", site.log_text());
    assert!(in_hand > 0.0, "nothing was in hand: this proves nothing");
    assert!(drained < DRAIN + AFTER, "the drain took {drained:?}");
    assert_eq!(program.terminate(), Some(0));
}

/// On RabbitMQ the order of a login is not held here: several consumers take from one queue side by side.
fn members_added_drained_and_killed_under_load_lose_nothing(driver: Driver) {
    members_come_and_go(driver, driver.short_session(), driver.name() == "kafka");
}

#[cfg(feature = "amqp")]
#[test]
fn members_with_shards_added_drained_and_killed_under_load_keep_the_order_of_each_login() {
    let Some(driver) = Driver::amqp() else { return };
    let _alone = driver.alone();
    members_come_and_go(driver, "queue.amqp.shards = 8", true);
}

/// `settings`: of each member. `ordered`: each member must handle a login's reports in their order. That a login keeps it from one member to
/// the next shows in what they take, and not in their states: `order_holds_while_processes_come_go_and_die` of tests/queue looks at that.
fn members_come_and_go(driver: Driver, settings: &str, ordered: bool) {
    let mut rig = Rig::new(driver);
    let total = trial::size(20_000, 200_000);
    let [first, killed, drained, added] = std::array::from_fn(|_| rig.site(&format!("{CONFIRMED}{settings}")));
    // Small ones, so that they last until a member has its partitions.
    let mut load = Load::new(total, 100, 400, 0..=50, &mut rig.random);
    let mut shares = load.shares.drain(..);
    let (a, b, c) = (first.start(), killed.start(), drained.start());
    // What follows needs some of them.
    until_all_work(&rig, &first, &[&a, &b, &c], &mut shares, 280);
    // One is added.
    let mut senders = rig.send(&first, merged(shares.by_ref().take(80)));
    let d = added.start();
    rig.join(senders);
    let joined = until_all_work(&rig, &first, &[&d], &mut shares, 140);
    // One is drained.
    senders = rig.send(&first, merged(shares.by_ref().take(60)));
    rig.wait_for_work(&c);
    rig.pause(0..=200);
    let at_drain = unsettled(&c);
    let mut again = repeated(&c);
    assert_eq!(c.terminate(), Some(0));
    let finished = in_time(&drained);
    rig.join(senders);
    // One is killed.
    senders = rig.send(&first, merged(shares.by_ref().take(60)));
    rig.wait_for_work(&b);
    rig.pause(0..=200);
    let at_kill = unsettled(&b);
    again += repeated(&a) + repeated(&b) + repeated(&d);
    b.kill();
    rig.join(senders);
    rig.join(rig.send(&first, merged(shares)));
    for program in [&a, &d] {
        program.wait_idle(PATIENCE);
    }
    let _looking = [drained.start_command(looking(&drained)), killed.start_command(looking(&killed))];
    let of_each = until_all_stored(&rig, &[&first, &added, &drained, &killed], load.total);
    a.wait_until("every alert", PATIENCE, |_| rig.inbox.of_kind("marked").len() >= load.marked);
    let [of_a, of_d, of_c, of_b] = &of_each[..] else { unreachable!("four of them") };
    let by_both = |one: &HashSet<String>, other: &HashSet<String>| one.intersection(other).count();
    let by_drained = by_both(of_c, of_a) + by_both(of_c, of_b) + by_both(of_c, of_d);
    let by_others = by_both(of_a, of_d);
    let by_killed = by_both(of_b, of_a) + by_both(of_b, of_d);
    // All senders send to it.
    let spooled = a.metric("trackalert_spooled_reports_total").unwrap_or_default();
    let table = [
        ("in hand at SIGTERM, and at SIGKILL", format!("{at_drain} and {at_kill}")),
        ("seconds until the added one handled some", format!("{:.1}", joined.as_secs_f64())),
        (
            "handled by: first, added, drained, killed",
            format!("{:?}", of_each.iter().map(HashSet::len).collect::<Vec<_>>()),
        ),
        ("handled by the drained one and by another", by_drained.to_string()),
        ("handled twice by one until the SIGKILL", again.to_string()),
        ("handled by two that were not ended", by_others.to_string()),
        ("handled by the killed one and by another", by_killed.to_string()),
        ("confirmed too late, and so in the spool", spooled.to_string()),
    ];
    rig.print("group", &table);
    assert!(at_drain > 0.0 && at_kill > 0.0, "nothing was in hand: this proves nothing");
    assert!(finished, "the drain ran out of its time, TRACKALERT_SEED={}", rig.seed);
    assert_eq!((by_drained, by_others, again), (0, 0, 0.0), "handled twice, TRACKALERT_SEED={}", rig.seed);
    if ordered {
        rig.in_order();
    }
    for program in [a, d] {
        assert_eq!(program.terminate(), Some(0));
    }
}

/// Whether each drain of this process could finish what it had in hand. What it could not is handled by another, and stands in one
/// history alone.
fn in_time(site: &Site) -> bool {
    !site.log_text().contains("detect.drain_timeout is over")
}

/// How often this process has taken partitions of its reports' topic.
fn taken(site: &Site) -> usize {
    let is_one = |line: &&str| line.contains("partitions taken") && line.contains("\"reports-");
    site.log_text().lines().filter(is_one).count()
}

/// The command line of a process that takes part in nothing: its history can be asked.
fn looking(site: &Site) -> std::process::Command {
    let mut command = site.command();
    command.args(["--roles", "receive"]);
    command
}

/// Sends one share after the other, all but so many, until each of these has handled some. Gives how long that took: partitions move
/// when what is in hand of them is handled, and twice in a row where several members give some up.
fn until_all_work(
    rig: &Rig,
    to: &Site,
    programs: &[&Program],
    shares: &mut impl ExactSizeIterator<Item = Vec<Vec<String>>>,
    keep: usize,
) -> Duration {
    let handled = |program: &&Program| program.metric("trackalert_handled_reports_total").unwrap_or_default() > 0.0;
    let began = Instant::now();
    while !programs.iter().all(handled) {
        if shares.len() > keep {
            rig.join(rig.send(to, shares.next().unwrap()));
        }
        assert!(began.elapsed() < PATIENCE, "a member has handled nothing, TRACKALERT_SEED={}", rig.seed);
        std::thread::park_timeout(Duration::from_millis(500));
    }
    began.elapsed()
}

/// Several shares as one.
fn merged(shares: impl Iterator<Item = Vec<Vec<String>>>) -> Vec<Vec<String>> {
    shares
        .reduce(|mut all, share| {
            all.iter_mut().zip(share).for_each(|(lane, more)| lane.extend(more));
            all
        })
        .unwrap_or_default()
}

/// The ids of what each has in its history, when all of it is in one of them at least.
fn until_all_stored(rig: &Rig, sites: &[&Site], total: usize) -> Vec<HashSet<String>> {
    let ids = |site: &&Site| {
        let found = rig.runtime.block_on(query(&site.address, json!({ "size": 1_000_000, "_source": false })));
        let hits = found["hits"]["hits"].as_array().unwrap();
        hits.iter().map(|hit| hit["_id"].as_str().unwrap().to_owned()).collect::<HashSet<_>>()
    };
    let began = Instant::now();
    loop {
        let of_each: Vec<_> = sites.iter().map(ids).collect();
        let all = of_each.iter().fold(HashSet::new(), |all, some| &all | some);
        if all.len() == total {
            return of_each;
        }
        assert!(began.elapsed() < PATIENCE, "{} of {total} are in a history, TRACKALERT_SEED={}", all.len(), rig.seed);
        std::thread::park_timeout(Duration::from_millis(200));
    }
}
