//! Kafka: the bare rdkafka consumer, the program, and the known case of parallel-consumer.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use super::support::kafka::{Broker, broker};
use super::*;

const PARTITIONS: usize = 8;
const WAIT: &str = "function report(lt) time.sleep(0.05) end";
/// Whole milliseconds: what a handler takes is the same for everybody who measures it.
const KNOWN: &str = "function report(lt) time.sleep(math.random(0, 5) / 1000) end";
/// Reports a second at best, with a wait of 50 ms and 10,000 in flight.
const PARALLEL_CONSUMER: f64 = 26_431.0;
/// CPU seconds for 100,000 of them, and its peak memory in MiB.
const ITS_COST: f64 = 7.4;
const ITS_PEAK_MIB: f64 = 768.0;
/// Logins, and the seconds that parallel-consumer takes on such a machine.
const COLUMNS: [(usize, f64); 7] = [(1, 30.0), (2, 16.0), (5, 7.2), (10, 3.9), (50, 1.56), (100, 1.15), (1000, 1.05)];

fn client(broker: &Broker) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &broker.address);
    config
}

/// A site on topics of its own. The first start makes them.
fn site(broker: &Broker, partitions: usize, detect: &str) -> (Site, String) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let topic = format!("speed-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let site = Site::new(&format!(
        r#"history.kind = "none"
detect = {{ {detect} }}
[queue]
kind = "kafka"
reports = "{topic}"
alerts = "{topic}-alerts"
[queue.kafka]
brokers = ["{}"]
group = "{topic}"
create_topics = true
partitions = {partitions}
replication = 1
"#,
        broker.address,
    ));
    (site, topic)
}

fn make_topics(site: &Site) {
    let mut command = site.command();
    command.args(["--roles", "receive"]);
    assert_eq!(site.start_command(command).terminate(), Some(0));
}

fn fill(broker: &Broker, topic: &str, reports: impl Iterator<Item = (String, String)>) {
    let producer: ThreadedProducer<DefaultProducerContext> = client(broker)
        .set("partitioner", "murmur2_random")
        .set("compression.codec", "lz4")
        .set("linger.ms", "5")
        .create()
        .unwrap();
    for (login, report) in reports {
        let mut record = BaseRecord::to(topic).key(&login).payload(&report);
        while let Err((_, refused)) = producer.send(record) {
            // Its buffer is full.
            std::thread::park_timeout(Duration::from_millis(1));
            record = refused;
        }
    }
    producer.flush(PATIENCE).unwrap();
}

/// What it costs at least: a consumer that decodes each report into the same struct and does nothing with it.
fn bare(broker: &Broker, topic: &str, total: usize) -> Figures {
    let consumer: BaseConsumer = client(broker)
        .set("group.id", format!("{topic}-bare"))
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("fetch.queue.backoff.ms", "5")
        .set("queued.max.messages.kbytes", "16384")
        .create()
        .unwrap();
    consumer.subscribe(&[topic]).unwrap();
    let limits = trackalert::config::Config::load_with(None, [], &[]).unwrap().receive.limits();
    let (mut first, mut taken) = (None, 0);
    let deadline = Instant::now() + PATIENCE;
    while taken < total {
        assert!(Instant::now() < deadline, "only {taken} came");
        // It comes back empty after a change in the group, too.
        let Some(record) = consumer.poll(Duration::from_secs(1)) else { continue };
        let record = record.unwrap();
        first.get_or_insert_with(|| (Instant::now(), own_usage().0));
        std::hint::black_box(trackalert::decode::decode(record.payload().unwrap(), &limits).unwrap());
        taken += 1;
    }
    consumer.commit_consumer_state(CommitMode::Sync).ok();
    let (began, cpu) = first.unwrap();
    let (now, peak_mib) = own_usage();
    Figures { reports: total, seconds: began.elapsed().as_secs_f64(), cpu: now - cpu, peak_mib }
}

#[test]
fn from_kafka_to_the_commit_beside_a_bare_consumer() {
    let Some(broker) = broker() else { return };
    let total = trial::size(50_000, 1_000_000);
    let (site, topic) = site(broker, PARTITIONS, "");
    site.policy("speed", AT_ONCE);
    make_topics(&site);
    fill(broker, &topic, reports(total, 50_000));
    print_head();
    let bare = bare(broker, &topic, total);
    bare.print("bare rdkafka consumer that decodes", None);
    let at_once = drain(&site, total);
    at_once.print("trackalert, a policy that returns at once", Some(&bare));
    // 0.42 was measured: below, something has come into the way of every report. The small form is over before it
    // has warmed up.
    let floor = trial::size(0.0, 0.3);
    let ratio = at_once.rate() / bare.rate();
    assert!(ratio > floor, "{ratio:.2} of the rate of a bare consumer, which is not above {floor}");

    let total = trial::size(20_000, 200_000);
    let (site, topic) = self::site(broker, PARTITIONS, "workers = 5, in_flight = 10000");
    site.policy("speed", WAIT);
    make_topics(&site);
    fill(broker, &topic, reports(total, 50_000));
    let waiting = drain(&site, total);
    waiting.print("trackalert, wait 50 ms, 10,000 in flight", None);
    println!("{:<52}{PARALLEL_CONSUMER:>11}{ITS_COST:>12.2}{ITS_PEAK_MIB:>10}", "parallel-consumer's best, the same");
    // Of so few reports as the small form has, most of the cost is that of the start, and their rate is that of whatever else the machine
    // does within a second.
    let nothing = (0.0, f64::INFINITY, f64::INFINITY);
    let (rate, cost, peak) = trial::size(nothing, (PARALLEL_CONSUMER, ITS_COST, ITS_PEAK_MIB));
    assert!(waiting.rate() > rate, "behind parallel-consumer");
    assert!(waiting.cost() < cost, "{:.2} CPU seconds per 100,000 reports", waiting.cost());
    assert!(waiting.peak_mib < peak, "{:.0} MiB at its peak", waiting.peak_mib);
}

/// Seconds from the first record sent to the last report handled.
fn known_case(broker: &Broker, logins: usize, total: usize, backlog: usize) -> f64 {
    let (site, topic) = site(broker, 1, &format!("in_flight = 100, login_backlog = {backlog}"));
    site.policy("known", KNOWN);
    let program = site.start();
    let handled = |count: usize| {
        program.wait_until("all handled", PATIENCE, |program| {
            program.metric("trackalert_handled_reports_total") == Some(count as f64)
        });
    };
    // It has joined the group when it has handled one.
    fill(broker, &topic, reports(1, 1));
    handled(1);
    let began = Instant::now();
    fill(broker, &topic, reports(total, logins));
    handled(total + 1);
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(program.terminate(), Some(0));
    seconds
}

#[test]
fn known_case_one_partition_and_few_logins() {
    let Some(broker) = broker() else { return };
    let total = trial::size(2_000, 10_000);
    println!("{total} reports on one partition, 0-5 ms each, 100 at once: seconds by the number of logins");
    println!("{:<10}{:>20}{:>14}{:>14}", "logins", "parallel-consumer", "unlimited", "default");
    let mut slower = Vec::new();
    for (logins, theirs) in COLUMNS {
        // What it took, for so many reports. Below a second the start of the load counts for more than the reports.
        let theirs = (theirs * total as f64 / 10_000.0).max(1.05);
        let (unlimited, default) = (known_case(broker, logins, total, 0), known_case(broker, logins, total, 64));
        println!("{logins:<10}{theirs:>20.2}{unlimited:>14.2}{default:>14.2}");
        if unlimited >= theirs {
            slower.push(logins);
        }
    }
    // The small form shares the machine with another test: its seconds say nothing.
    let held = trial::size(false, true);
    assert!(!held || slower.is_empty(), "slower than parallel-consumer with these numbers of logins: {slower:?}");
}
