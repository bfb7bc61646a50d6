//! The bridge, `trackalert run --roles receive`, on real brokers, with senders that try once as wforce does: no report that was answered
//! 2xx is lost, and none is refused, whatever becomes of the broker and of the bridge.
//!
//! The small form runs with the tests; `tests/trials/bridge` runs the full one.

#![cfg(all(feature = "kafka", feature = "amqp"))]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, TopicPartitionList};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use support::driver::{Driver, on_brokers};
use support::program::{Program, Site};
use support::sender::{client, query};
use support::server::Server;
use support::stall::Clock;
use support::trial;
use support::wire::{self, post};
use trackalert::config::Config;
use trackalert::queue::amqp::AmqpQueue;
use trackalert::queue::kafka::KafkaQueue;
use trackalert::queue::{Backoff, Queue, Unsettled};
use trackalert::telemetry::Metrics;

const PATIENCE: Duration = Duration::from_secs(120);
/// Partitions of the topic without keys.
const UNKEYED: usize = 4;
const IN_SPOOL: &str = "trackalert_queue_messages{queue=\"spool\"}";
/// Whose reports come in the middle of a kill: nobody knows how many of them were accepted.
const CUT: &str = "cut";
const SPOOLED: &str = "trackalert_spooled_reports_total";

on_brokers!(
    broker_down_under_a_sender_that_tries_once_loses_nothing_and_refuses_nothing,
    started_while_the_broker_is_down_and_killed_loses_nothing,
    broker_down_without_a_spool_is_told_to_the_sender_and_nothing_is_claimed,
);

/// A broker that was killed is started again also when the test fails: the next one needs it.
struct Down(&'static Server);

impl Down {
    fn kill(driver: Driver) -> Self {
        let server = driver.server().unwrap();
        server.kill();
        Self(server)
    }
}

impl Drop for Down {
    fn drop(&mut self) {
        self.0.start_again();
    }
}

/// Queues of a test's own on a broker.
struct Rig {
    driver: Driver,
    number: u32,
}

impl Rig {
    fn new(driver: Driver) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        Self { driver, number: NUMBER.fetch_add(1, Ordering::Relaxed) }
    }

    fn reports(&self) -> String {
        format!("bridge-reports-{}", self.number)
    }

    /// The configuration of the queues, for a group of consumers.
    fn queues(&self, group: &str) -> String {
        let number = self.number;
        let (kind, driver) = match self.driver {
            Driver::Embedded => panic!("a bridge leads to a broker"),
            Driver::Kafka(broker) => (
                "kafka",
                format!(
                    "[queue.kafka]\nbrokers = [\"{}\"]\ngroup = \"{group}-{number}\"\ncreate_topics = true\npartitions = 4\nreplication = 1\nsession_timeout = \"6s\"\n",
                    broker.address
                ),
            ),
            Driver::Amqp(rabbit) => ("amqp", format!("[queue.amqp]\nurl = \"{}\"\n", rabbit.url())),
        };
        let reports = self.reports();
        format!("[queue]\nkind = \"{kind}\"\nreports = \"{reports}\"\nalerts = \"bridge-alerts-{number}\"\n{driver}")
    }

    /// A bridge: `more` are further settings, one a line.
    fn bridge(&self, more: &str) -> Site {
        Site::new(&format!("http.metrics_password = false\n{more}{}", self.queues("bridge")))
    }

    /// A process that handles what the bridge has put into the queue.
    fn detect(&self) -> (Site, Program) {
        let site = Site::new(&format!("history.commit_every = \"100ms\"\n{}", self.queues("detect")));
        site.policy("none", "function report(lt) end");
        let program = start(&site, "detect");
        (site, program)
    }

    /// Reads the reports queue from its beginning until it has `wanted` distinct reports besides those of `CUT`, and then a little longer.
    fn read(&self, runtime: &Runtime, wanted: usize) -> Vec<Read> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("reader.toml");
        std::fs::write(&file, self.queues("reader")).unwrap();
        let settings = Config::load(Some(&file), &[]).unwrap().queue;
        let (name, metrics, backoff) = (self.reports(), Arc::new(Metrics::new()), settings.backoff());
        let queue: Arc<dyn Queue> = match self.driver {
            Driver::Embedded => panic!("a bridge leads to a broker"),
            Driver::Kafka(_) => KafkaQueue::open(&name, &settings.kafka, 1 << 20, metrics, "reports").unwrap(),
            Driver::Amqp(_) => {
                AmqpQueue::open(&name, "reader", &settings.amqp, backoff, 1 << 20, metrics, "reports").unwrap()
            }
        };
        runtime.block_on(take_all(queue, backoff, wanted))
    }
}

/// A report as it stands in the queue.
struct Read {
    lane: u32,
    key: String,
    body: Value,
}

impl Read {
    fn login(&self) -> &str {
        self.body["login"].as_str().unwrap()
    }

    fn n(&self) -> u64 {
        self.body["attrs"]["n"].as_str().unwrap().parse().unwrap()
    }
}

async fn take_all(queue: Arc<dyn Queue>, backoff: Backoff, wanted: usize) -> Vec<Read> {
    let mut subscription = queue.subscribe(Unsettled { messages: 60_000, bytes: 1 << 30 }, backoff).unwrap();
    let (mut read, mut distinct) = (Vec::new(), BTreeSet::new());
    loop {
        let patience = if distinct.len() < wanted { PATIENCE } else { Duration::from_secs(2) };
        let Ok(Some(delivery)) = timeout(patience, subscription.deliveries.recv()).await else { break };
        let body: Value = serde_json::from_slice(&delivery.message.body).unwrap();
        if body["login"] != CUT {
            distinct.insert(body["id"].as_str().unwrap().to_owned());
        }
        read.push(Read { lane: delivery.token.tag().lane, key: delivery.message.key.clone(), body });
        delivery.token.ack();
    }
    read
}

fn start(site: &Site, roles: &str) -> Program {
    let mut command = site.command();
    command.args(["--roles", roles]);
    site.start_command(command)
}

fn status(site: &Site) -> Value {
    wire::get(&site.address, "/v1/admin/status", "").json()
}

fn report(login: u64, n: u64) -> String {
    let attrs = json!({ "n": n.to_string() });
    json!({ "t": trial::now(), "login": format!("user{login}"), "remote": "192.0.2.1", "attrs": attrs }).to_string()
}

/// What a sender saw that sends each report once, at a steady rate, whatever becomes of the ones before.
#[derive(Default)]
struct Sent {
    /// Login and number of each that was answered 2xx.
    accepted: Mutex<Vec<(u64, u64)>>,
    refused: Mutex<Vec<String>>,
    longest: AtomicU64,
    stop: AtomicBool,
}

impl Sent {
    async fn run(self: Arc<Self>, address: String, rate: u64, logins: u64) {
        let (client, url) = (client(), format!("http://{address}/command/report"));
        let mut clock = tokio::time::interval(Duration::from_micros(1_000_000 / rate));
        let mut requests = tokio::task::JoinSet::new();
        for number in 0.. {
            clock.tick().await;
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let (login, n) = (number % logins, number / logins);
            let (this, request) = (Arc::clone(&self), client.post(&url).body(report(login, n)).send());
            requests.spawn(async move {
                let began = Clock::start();
                match request.await {
                    Ok(answer) if answer.status().is_success() => this.accepted.lock().unwrap().push((login, n)),
                    Ok(answer) => this.refused.lock().unwrap().push(answer.status().to_string()),
                    Err(error) => this.refused.lock().unwrap().push(error.to_string()),
                }
                this.longest.fetch_max(u64::try_from(began.elapsed().as_millis()).unwrap(), Ordering::Relaxed);
            });
        }
        while requests.join_next().await.is_some() {}
    }
}

/// How often the log says that reports go into the spool, and how often that it is empty again.
fn begun_and_ended(site: &Site) -> (usize, usize) {
    let log = site.log_text();
    (log.matches("reports go into the spool").count(), log.matches("the spool is empty").count())
}

/// Holds that all of these are there, in order for each login but for whole repetitions, and gives how many came again.
fn all_there_in_order(read: &[Read], accepted: &[(u64, u64)]) -> usize {
    let mut logins: BTreeMap<&str, BTreeMap<u64, &Value>> = BTreeMap::new();
    let mut again = 0;
    for one in read {
        assert_eq!(one.key, one.login(), "it is not keyed by its login");
        let seen = logins.entry(one.login()).or_default();
        if let Some(before) = seen.get(&one.n()) {
            assert_eq!(**before, one.body, "it came again as another one");
            again += 1;
            continue;
        }
        let last = seen.last_key_value().map(|(n, _)| *n);
        assert!(last.is_none_or(|last| last < one.n()), "{}: {} came behind {last:?}", one.key, one.n());
        seen.insert(one.n(), &one.body);
    }
    for (login, n) in accepted {
        let there = logins.get(format!("user{login}").as_str()).is_some_and(|seen| seen.contains_key(n));
        assert!(there, "report {n} of user{login} was answered 2xx and is lost");
    }
    again
}

fn broker_down_under_a_sender_that_tries_once_loses_nothing_and_refuses_nothing(driver: Driver) {
    let (rate, down, logins) = trial::size((300, 5, 150), (500, 30, 250));
    let seed = trial::seed();
    let rig = Rig::new(driver);
    let site = rig.bridge("");
    let program = start(&site, "receive");
    let runtime = Runtime::new().unwrap();
    let sent = Arc::new(Sent::default());
    let sending = runtime.spawn(Arc::clone(&sent).run(site.address.clone(), rate, logins));
    let accepted = || sent.accepted.lock().unwrap().len();
    program.wait_until("reports to be accepted", PATIENCE, |_| accepted() > 500);
    let (begun_before, _) = begun_and_ended(&site);
    let began = Instant::now();
    let killed = Down::kill(driver);
    let before = accepted();
    program.wait_until("the spool to be used", PATIENCE, |program| program.metric(SPOOLED) > Some(100.0));
    std::thread::park_timeout(Duration::from_secs(down));
    let during = accepted() - before;
    let most = program.metric(IN_SPOOL).unwrap();
    assert_eq!(status(&site)["ready"], true, "a bridge that spools is ready");
    assert!(status(&site)["waiting_for"]["reports"].is_string(), "it does not name what it waits for");
    // A broker that is slow for a moment before or after, on a machine that is, is one more outage, and told rightly.
    let begun = begun_and_ended(&site).0 - begun_before;
    drop(killed);
    let seconds_down = began.elapsed().as_secs_f64();
    let back = Instant::now();
    program.wait_until("the spool to be empty", PATIENCE, |program| program.metric(IN_SPOOL) == Some(0.0));
    let drained = back.elapsed();
    let after = accepted();
    program.wait_until("reports to be accepted afterwards", PATIENCE, |_| accepted() > after + 300);
    sent.stop.store(true, Ordering::Relaxed);
    runtime.block_on(sending).unwrap();
    // It looks into the spool once a second, and may have done so last before the last ones went in.
    program.wait_until("the spool to be empty at the end", PATIENCE, |p| {
        let (begun, ended) = begun_and_ended(&site);
        begun == ended && p.metric(IN_SPOOL) == Some(0.0)
    });
    let spooled = program.metric(SPOOLED).unwrap();
    let sent_before = sent.accepted.lock().unwrap().clone();
    let read = rig.read(&runtime, sent_before.len());
    let again = all_there_in_order(&read, &sent_before);
    let table = [
        ("reports sent once a piece, a second", rate.to_string()),
        ("reports answered 2xx, and otherwise", format!("{} and {}", accepted(), sent.refused.lock().unwrap().len())),
        ("of them in the first seconds of it being down", during.to_string()),
        ("seconds down", format!("{seconds_down:.1}")),
        ("reports that went into the spool", spooled.to_string()),
        ("in it then", most.to_string()),
        ("seconds until it was empty", format!("{:.1}", drained.as_secs_f64())),
        ("longest answer in milliseconds", sent.longest.load(Ordering::Relaxed).to_string()),
        ("reports in the queue twice", again.to_string()),
    ];
    trial::print(&format!("bridge: {} down", driver.name()), seed, &table);
    assert_eq!(*sent.refused.lock().unwrap(), Vec::<String>::new(), "a sender that tries once was refused");
    assert!(during > 0 && most > 0.0, "nothing came while the broker was down: this proves nothing");
    // wforce waits 2 s. In the small form all cores are shared with other tests.
    let (longest, patience) = (sent.longest.load(Ordering::Relaxed), trial::size(4000, 2000));
    assert!(longest < patience, "an answer took {longest} ms; a sender that waits {patience} ms had given up");
    assert!(begun <= 1, "one outage is told {begun} times: {}", site.log_text());
    assert_eq!(program.terminate(), Some(0));
    let (begun, ended) = begun_and_ended(&site);
    assert!(begun > 0 && begun == ended, "told {begun} times, and {ended} times its end: {}", site.log_text());
}

/// Sends `count` reports, a hundred in a batch; all must be accepted. `next` is the number of the next one.
fn send_batches(site: &Site, count: u64, next: &mut u64, accepted: &mut Vec<(u64, u64)>) {
    const LOGINS: u64 = 50;
    let numbers: Vec<u64> = (*next..*next + count).collect();
    for part in numbers.chunks(100) {
        let lines: Vec<String> = part.iter().map(|number| report(number % LOGINS, number / LOGINS)).collect();
        let answer = post(&site.address, "/v1/reports", "", lines.join("\n"));
        assert_eq!((answer.status, answer.json()["accepted"].as_u64()), (200, Some(part.len() as u64)), "{answer:?}");
        accepted.extend(part.iter().map(|number| (number % LOGINS, number / LOGINS)));
    }
    *next += count;
}

fn started_while_the_broker_is_down_and_killed_loses_nothing(driver: Driver) {
    let count = trial::size(3000, 50_000);
    let seed = trial::seed();
    let mut random = StdRng::seed_from_u64(seed);
    let rig = Rig::new(driver);
    let site = rig.bridge("");
    let (mut next, mut accepted) = (0, Vec::new());
    let down = Down::kill(driver);
    let program = start(&site, "receive");
    send_batches(&site, count, &mut next, &mut accepted);
    program.wait_until("all of it in the spool", PATIENCE, |program| program.metric(IN_SPOOL) == Some(count as f64));
    // With what is on disk alone, in the middle of more.
    let more = site.address.clone();
    let sending = std::thread::spawn(move || {
        while std::net::TcpStream::connect(&more).is_ok() {
            let report = json!({ "login": CUT, "remote": "192.0.2.1" }).to_string();
            let body = wire::request("POST", "/command/report", "", report.as_bytes());
            let Ok(stream) = std::net::TcpStream::connect(&more) else { return };
            let _ = std::panic::catch_unwind(|| wire::talk(stream, &body));
        }
    });
    std::thread::park_timeout(Duration::from_millis(random.random_range(20..200)));
    let in_spool_at_kill = program.metric(IN_SPOOL).unwrap();
    program.kill();
    sending.join().unwrap();
    let program = start(&site, "receive");
    assert!(program.metric(IN_SPOOL) >= Some(count as f64), "the spool lost something to SIGKILL");
    send_batches(&site, count / 10, &mut next, &mut accepted);
    // A drain in an orderly way leaves it there, and says so.
    assert_eq!(program.terminate(), Some(0));
    assert!(site.log_text().contains("reports stay in the spool in data_dir"), "{}", site.log_text());
    let program = start(&site, "receive");
    send_batches(&site, count / 10, &mut next, &mut accepted);
    let before = program.metric(IN_SPOOL).unwrap();
    drop(down);
    // Killed as soon as some of it is on its way.
    program.wait_until("forwarding to begin", PATIENCE, |program| program.metric(IN_SPOOL) < Some(before));
    let left_at_kill = program.metric(IN_SPOOL).unwrap();
    program.kill();
    let program = start(&site, "receive");
    send_batches(&site, count / 10, &mut next, &mut accepted);
    program.wait_until("the spool to be empty", PATIENCE, |program| program.metric(IN_SPOOL) == Some(0.0));
    let runtime = Runtime::new().unwrap();
    let mut read = rig.read(&runtime, accepted.len());
    read.retain(|one| one.login() != CUT);
    let again = all_there_in_order(&read, &accepted);
    let table = [
        ("reports answered 2xx", accepted.len().to_string()),
        ("in the spool at the first kill", in_spool_at_kill.to_string()),
        ("in the spool before forwarding", before.to_string()),
        ("left in it at the kill while forwarding", left_at_kill.to_string()),
        ("reports in the queue twice", again.to_string()),
    ];
    trial::print(&format!("bridge: {} down at the start, kills", driver.name()), seed, &table);
    assert_eq!(program.terminate(), Some(0));
}

/// Who has switched the spool off is told of each report that is not in the queue, and may send the same bytes again.
fn broker_down_without_a_spool_is_told_to_the_sender_and_nothing_is_claimed(driver: Driver) {
    let rig = Rig::new(driver);
    let site = rig.bridge("receive.spool = false\nreceive.publish_timeout = \"5s\"\n");
    let program = start(&site, "receive");
    let (mut next, mut accepted) = (0, Vec::new());
    send_batches(&site, 300, &mut next, &mut accepted);
    let down = Down::kill(driver);
    // So many that each partition gets some.
    let later: Vec<(u64, String)> = (1000..1020).map(|login| (login, report(login, 0))).collect();
    let batch = [&*later[1].1, &*later[2].1].join("\n");
    for (path, body) in [("/command/report", later[0].1.clone()), ("/v1/reports", batch)] {
        let refused = post(&site.address, path, "", body);
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{path}: {refused:?}");
        assert_eq!(refused.json()["status"], "failure", "{path}: {refused:?}");
    }
    assert!(program.metric("trackalert_refused_total{reason=\"queue_unavailable\"}") >= Some(2.0));
    let sent = |body: &str| post(&site.address, "/command/report", "", body).status;
    // It says so for as long as senders were told to wait, which is over soon.
    program.wait_until("readyz to say no", PATIENCE, |program| {
        assert_eq!(sent(&later[0].1), 503);
        program.get("/readyz").is_none()
    });
    drop(down);
    for (login, body) in &later {
        program.wait_until("a report to be accepted again", PATIENCE, |_| sent(body) == 200);
        accepted.push((*login, 0));
    }
    program.wait_until("readiness", PATIENCE, |program| program.get("/readyz").is_some());
    let received = ["report", "batch"].map(|form| {
        program.metric(&format!("trackalert_received_reports_total{{form=\"{form}\"}}")).unwrap_or_default()
    });
    assert_eq!(received.iter().sum::<f64>(), accepted.len() as f64, "what was refused is counted as received");
    assert_eq!(program.metric(SPOOLED), Some(0.0), "there is a spool");
    all_there_in_order(&rig.read(&Runtime::new().unwrap(), accepted.len()), &accepted);
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn full_spool_refuses_with_retry_after_and_accepts_again_when_the_broker_is_back() {
    let Some(driver) = Driver::amqp() else { return };
    let _alone = driver.alone();
    let rig = Rig::new(driver);
    let site = rig.bridge("receive.spool_max_bytes = \"1 MiB\"\n");
    let down = Down::kill(driver);
    let program = start(&site, "receive");
    let mut accepted = Vec::new();
    let refused = loop {
        let n = accepted.len() as u64;
        let answer = post(&site.address, "/command/report", "", report(n % 7, n / 7));
        if answer.status != 200 {
            break answer;
        }
        accepted.push((n % 7, n / 7));
        assert!(accepted.len() < 20_000, "the bound was passed");
    };
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("retry-after"), Some("5"), "{refused:?}");
    assert!(refused.json()["reason"].as_str().unwrap().contains("receive.spool_max_bytes"), "{refused:?}");
    assert_eq!(wire::get(&site.address, "/readyz", "").status, 503, "neither queue nor spool takes anything");
    assert!(accepted.len() > 1000, "it was full at {}", accepted.len());
    drop(down);
    program.wait_until("readiness", PATIENCE, |program| program.get("/readyz").is_some());
    program.wait_until("reports to be accepted again", PATIENCE, |_| {
        let n = accepted.len() as u64;
        let taken = post(&site.address, "/command/report", "", report(n % 7, n / 7)).status == 200;
        accepted.extend(taken.then_some((n % 7, n / 7)));
        taken
    });
    program.wait_until("the spool to be empty", PATIENCE, |program| program.metric(IN_SPOOL) == Some(0.0));
    all_there_in_order(&rig.read(&Runtime::new().unwrap(), accepted.len()), &accepted);
    assert_eq!(program.terminate(), Some(0));
}

fn signature(secret: &str, body: &[u8]) -> String {
    use base64::Engine;
    use hmac::{Hmac, KeyInit, Mac};
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body);
    base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes())
}

#[test]
fn each_form_of_report_goes_through_the_spool_and_is_handled_once() {
    let Some(driver) = Driver::kafka() else { return };
    let _alone = driver.alone();
    let rig = Rig::new(driver);
    let site = rig.bridge("receive.webhook_secrets = [\"s1\"]\n");
    let program = start(&site, "receive");
    let (of_detect, detect) = rig.detect();
    let down = Down::kill(driver);
    let (webhook, rest, api) = (report(0, 0), report(1, 0), report(2, 0));
    let head = format!("X-Wforce-Event: report\r\nX-Wforce-Signature: {}\r\n", signature("s1", webhook.as_bytes()));
    let forged = head.replace("Signature: ", "Signature: AAAA");
    let send = |path: &str, head: &str, body: String| post(&site.address, path, head, body);
    assert_eq!(send("/command/report", &head, webhook.clone()).json(), json!({ "status": "ok" }));
    assert_eq!(send("/command/report", &forged, webhook).status, 401);
    let kafka = "Content-Type: application/vnd.kafka.json.v2+json\r\n";
    let answer = send("/topics/logins", kafka, format!("{{\"records\":[{{\"value\":{rest}}}]}}"));
    assert_eq!((answer.status, answer.json()["offsets"][0]["error_code"].is_null()), (200, true), "{answer:?}");
    assert_eq!(send("/command/report", "", api.clone()).status, 200);
    assert_eq!(send("/?command=report", "", api).status, 200, "the same report again");
    let batch = send("/v1/reports", "", format!("{}\nnonsense\n{}", report(3, 0), report(3, 1)));
    assert_eq!((batch.status, batch.json()["accepted"].as_u64()), (200, Some(2)));
    assert_eq!(program.metric(SPOOLED), Some(6.0));
    for (form, count) in [("webhook", 1.0), ("kafka_rest", 1.0), ("report", 2.0), ("batch", 2.0)] {
        let metric = format!("trackalert_received_reports_total{{form=\"{form}\"}}");
        assert_eq!(program.metric(&metric), Some(count), "{form}");
    }
    drop(down);
    let runtime = Runtime::new().unwrap();
    let stored = || runtime.block_on(query(&of_detect.address, json!({ "size": 100, "track_total_hits": true })));
    detect.wait_until("the reports in the history", PATIENCE, |_| stored()["hits"]["total"]["value"] == 5);
    program.wait_until("the spool to be empty", PATIENCE, |program| program.metric(IN_SPOOL) == Some(0.0));
    detect.wait_until("nothing left", PATIENCE, |detect| detect.metric("trackalert_unsettled") == Some(0.0));
    assert_eq!(stored()["hits"]["total"]["value"], 5, "a report stands there twice");
    assert_eq!((program.terminate(), detect.terminate()), (Some(0), Some(0)));
}

/// Both ways on which reports wait for the broker, and then are more than it takes.
#[test]
fn last_report_that_is_too_large_for_its_topic_leaves_nothing_waiting() {
    let Some(driver) = Driver::kafka() else { return };
    let Driver::Kafka(broker) = driver else { return };
    let _alone = driver.alone();
    let runtime = Runtime::new().unwrap();
    let rig = Rig::new(driver);
    let topic = format!("wforce-{}", rig.number);
    let site = rig.bridge(&format!("receive.rekey_from = \"{topic}\"\n"));
    let mut command = site.command();
    command.args(["--roles", "receive", "--set", "queue.kafka.delivery_timeout=2s"]);
    let program = site.start_command(command);
    for queue in ["reports", "rekey"] {
        program.wait_until("the topics", PATIENCE, |_| status(&site)["queues"][queue]["messages"].is_u64());
    }
    let (admin, options, reports) = (broker.admin(), AdminOptions::new(), rig.reports());
    runtime.block_on(admin.delete_topics(&[&reports], &options)).unwrap().remove(0).unwrap();
    // The broker hears of it from its controller.
    program.wait_until("the topic to be gone", PATIENCE, |_| {
        let all = admin.inner().fetch_metadata(None, PATIENCE).unwrap();
        all.topics().iter().all(|topic| topic.name() != reports)
    });
    let mut noise = StdRng::seed_from_u64(1);
    let noise: String = (0..4000).map(|_| char::from(noise.random_range(b'a'..=b'z'))).collect();
    let large = json!({ "login": "ann", "remote": "192.0.2.1", "attrs": { "noise": noise } }).to_string();
    let producer = ClientConfig::new().set("bootstrap.servers", &broker.address).create().unwrap();
    write_unkeyed(&producer, &topic, std::slice::from_ref(&large));
    assert_eq!(post(&site.address, "/command/report", "", large).status, 200);
    let waits_for = |names: [&str; 2]| {
        let waiting_for = status(&site)["waiting_for"].as_object().unwrap().clone();
        names.into_iter().filter(|name| waiting_for.contains_key(*name)).count()
    };
    const BOTH: [&str; 2] = ["rekey", "reports"];
    program.wait_until("both to wait", PATIENCE, |_| waits_for(BOTH) == 2);
    let small = NewTopic::new(&reports, 4, TopicReplication::Fixed(1)).set("max.message.bytes", "2000");
    program.wait_until("the topic to be made again", PATIENCE, |_| {
        runtime.block_on(admin.create_topics([&small], &options)).unwrap().remove(0).is_ok()
    });
    for queue in ["rekey", "spool"] {
        let dead = format!("trackalert_dead_letters{{queue=\"{queue}\"}}");
        program.wait_until("the dead letter", PATIENCE, |program| program.metric(&dead) == Some(1.0));
    }
    program.wait_until("nothing to wait", PATIENCE, |_| waits_for(BOTH) == 0);
    for name in BOTH {
        let waiting = format!("trackalert_waiting_for{{dependency=\"{name}\"}}");
        program.wait_until("the metric", PATIENCE, |program| program.metric(&waiting) == Some(0.0));
    }
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn missing_topic_ends_the_bridge_with_what_to_do_although_it_could_spool() {
    let Some(Driver::Kafka(broker)) = Driver::kafka() else { return };
    let _alone = Driver::Kafka(broker).alone();
    let site = Site::new(&format!(
        "[queue]\nkind = \"kafka\"\nreports = \"never-made\"\n[queue.kafka]\nbrokers = [\"{}\"]\n",
        broker.address
    ));
    let mut command = site.command();
    command.args(["--roles", "receive"]);
    let mut program = site.start_unasked(command);
    let began = Instant::now();
    let code = loop {
        if let Some(code) = program.ended() {
            break code;
        }
        assert!(began.elapsed() < PATIENCE, "it goes on: {}", site.log_text());
        std::thread::park_timeout(Duration::from_millis(50));
    };
    assert_eq!(code, 1);
    assert!(site.log_text().contains("topic `never-made` does not exist"), "{}", site.log_text());
}

/// Records that are written in one go.
const PIECE: usize = 100;

/// Records that are no reports.
const BAD: usize = 5;

/// Reports as wforce writes them, and some records that are none.
fn unkeyed(count: usize, random: &mut StdRng) -> Vec<String> {
    let mut values: Vec<String> = (0..count)
        .map(|number| {
            let mut report = json!({
                "login": format!("user{}", number % 500), "remote": "192.0.2.1", "attrs": { "n": number.to_string() },
                "type": "wforce_report",
            });
            // One in three has no time of its own: it gets that of its record, each time it is moved.
            if number % 3 > 0 {
                report["t"] = json!(trial::now() - 60.0);
            }
            report.to_string()
        })
        .collect();
    for _ in 0..BAD {
        values.insert(random.random_range(0..values.len()), "{\"login\":\"x\"}".to_owned());
    }
    values
}

/// How many were moved after a later one of their login that stood in the same partition of those without a key.
fn backwards<'a>(read: &[Read], pieces: impl Iterator<Item = &'a [String]>) -> usize {
    let stood = pieces.flat_map(|piece| (0..UNKEYED).cycle().zip(piece));
    let stood: BTreeMap<u64, usize> =
        stood.filter_map(|(partition, value)| Some((numbered(value)?, partition))).collect();
    let (mut moved, mut last) = (BTreeSet::new(), BTreeMap::new());
    // What a kill has moved a second time is behind its first.
    let first = read.iter().filter(|one| moved.insert(one.n()));
    first.filter(|one| last.insert((&one.key, stood[&one.n()]), one.n()) > Some(one.n())).count()
}

/// The number of a report, where it is one.
fn numbered(value: &str) -> Option<u64> {
    serde_json::from_str::<Value>(value).unwrap()["attrs"]["n"].as_str()?.parse().ok()
}

/// Writes records without a key, one after another over the partitions, as a REST proxy does; they are confirmed when it returns.
fn write_unkeyed(producer: &ThreadedProducer<DefaultProducerContext>, topic: &str, values: &[String]) {
    for (number, value) in values.iter().enumerate() {
        let mut record =
            BaseRecord::<(), str>::to(topic).payload(value).partition((number % UNKEYED).try_into().unwrap());
        while let Err((error, again)) = producer.send(record) {
            assert_eq!(error.rdkafka_error_code(), Some(rdkafka::types::RDKafkaErrorCode::QueueFull), "{error}");
            std::thread::park_timeout(Duration::from_millis(20));
            record = again;
        }
    }
    producer.flush(PATIENCE).unwrap();
}

/// Records of a topic that the group has not finished.
fn unfinished(config: &ClientConfig, topic: &str) -> i64 {
    let consumer: BaseConsumer = config.create().unwrap();
    let mut asked = TopicPartitionList::new();
    asked.add_partition_range(topic, 0, UNKEYED as i32 - 1);
    let committed = consumer.committed_offsets(asked, PATIENCE).unwrap();
    let left = committed.elements().into_iter().map(|partition| {
        let (_, end) = consumer.fetch_watermarks(topic, partition.partition(), PATIENCE).unwrap();
        end - partition.offset().to_raw().unwrap().max(0)
    });
    left.sum()
}

#[test]
fn topic_without_keys_is_moved_to_the_keyed_one_through_a_kill_and_nothing_is_lost_or_new() {
    let Some(driver) = Driver::kafka() else { return };
    let _alone = driver.alone();
    let Driver::Kafka(kafka) = driver else { return };
    let (count, kills) = trial::size((20_000, 2), (200_000, 10));
    let seed = trial::seed();
    let mut random = StdRng::seed_from_u64(seed);
    let rig = Rig::new(driver);
    let topic = format!("wforce-{}", rig.number);
    let site = rig.bridge(&format!("receive.rekey_from = \"{topic}\"\n"));
    // The first start makes the topics.
    let mut program = start(&site, "receive");
    program.wait_until("the topics", PATIENCE, |_| status(&site)["queues"]["rekey"]["messages"].is_u64());
    let values = unkeyed(count, &mut random);
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &kafka.address)
        .set("acks", "all")
        .set("group.id", format!("bridge-{}-rekey", rig.number));
    let producer: ThreadedProducer<DefaultProducerContext> = config.create().unwrap();
    let share = values.len() / (kills + 1) + 1;
    let mut unfinished_at_kill = Vec::new();
    for (round, part) in values.chunks(share).enumerate() {
        let mut pieces = part.chunks(PIECE);
        if round < kills {
            let goal = random.random_range(1..share / 2) as f64;
            let moved =
                |program: &Program| program.metric("trackalert_received_reports_total{form=\"rekey\"}") >= Some(goal);
            while pieces.len() > 1 && !moved(&program) {
                write_unkeyed(&producer, &topic, pieces.next().unwrap());
            }
            program.wait_until("reports to be moved", PATIENCE, moved);
            // However fast the bridge is and however slow the test: there is something that it has not finished when it is killed.
            write_unkeyed(&producer, &topic, pieces.next().unwrap());
            program.kill();
            unfinished_at_kill.push(unfinished(&config, &topic));
            program = start(&site, "receive");
        }
        pieces.for_each(|piece| write_unkeyed(&producer, &topic, piece));
    }
    let (of_detect, detect) = rig.detect();
    let runtime = Runtime::new().unwrap();
    let stored = || runtime.block_on(query(&of_detect.address, json!({ "size": 0, "track_total_hits": true })));
    let total = json!(count);
    detect.wait_until("every report in the history", PATIENCE, |_| stored()["hits"]["total"]["value"] == total);
    program.wait_until("nothing left to move", PATIENCE, |_| status(&site)["queues"]["rekey"]["messages"] == 0);
    let letters = runtime.block_on(support::sender::dead_letters(&site.address, "rekey"));
    let bad = letters.iter().filter(|letter| letter["reason"]["kind"] == "malformed").count();
    let read = rig.read(&runtime, count);
    let mut lanes: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for one in &read {
        assert_eq!(one.key, one.login());
        lanes.entry(one.key.clone()).or_default().insert(one.lane);
    }
    let backwards = backwards(&read, values.chunks(share).flat_map(|part| part.chunks(PIECE)));
    let table = [
        ("records without a key", values.len().to_string()),
        ("of them no reports, and dead letters of theirs", format!("{BAD} and {}", letters.len())),
        ("not finished at each kill", format!("{unfinished_at_kill:?}")),
        ("reports in the keyed topic, twice", (read.len() - count).to_string()),
        ("moved after a later one of their login and partition", backwards.to_string()),
        ("reports in the history", stored()["hits"]["total"]["value"].to_string()),
    ];
    trial::print("bridge: rekey", seed, &table);
    assert!(lanes.values().all(|lanes| lanes.len() == 1), "one login's reports are in several partitions");
    assert_eq!(backwards, 0, "reports overtook others of their login");
    assert_eq!(stored()["hits"]["total"]["value"], total, "a report moved twice is another one");
    assert!(bad == letters.len() && bad >= BAD, "{letters:?}");
    assert!(unfinished_at_kill.iter().any(|left| *left > 0), "all was finished at each kill: this proves nothing");
    assert_eq!((program.terminate(), detect.terminate()), (Some(0), Some(0)));
    assert_eq!(unfinished(&config, &topic), 0, "it is not the group that moves them which was asked");
}
