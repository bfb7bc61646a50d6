//! What a queue owes, on a real broker; and what only a broker can do to it.

use std::sync::atomic::{AtomicU32, Ordering};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use trackalert::queue::amqp::{AmqpQueue, OpenError, Settings};
use trackalert::settings::Secret;

use super::support::rabbitmq::{self, Rabbit};
use super::*;

#[path = "amqp_alarm.rs"]
mod alarm;
#[path = "amqp_shards.rs"]
mod shards;
#[path = "amqp_start.rs"]
mod start;
#[path = "amqp_turn.rs"]
mod turn;

/// A queue with a name of its own on the broker of this binary.
pub(crate) struct Amqp {
    rabbit: &'static Rabbit,
    pub(crate) name: String,
    pub(crate) settings: Settings,
    metrics: Arc<Metrics>,
}

pub(crate) fn settings(url: &str) -> Settings {
    Settings {
        url: Secret::from(url.to_owned()),
        url_file: PathBuf::new(),
        password: Secret::default(),
        password_file: PathBuf::new(),
        ca_file: PathBuf::new(),
        client_cert: PathBuf::new(),
        client_key: PathBuf::new(),
        declare: true,
        shards: 0,
        member_timeout: Duration::from_secs(4),
        release_timeout: Duration::from_secs(5),
        management_url: String::new(),
        start_timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(10),
        confirm_timeout: Duration::from_secs(10),
        predecessor_timeout: Duration::from_secs(30),
        ack_batch: 256,
        ack_every: Duration::from_millis(20),
        hold: Duration::from_secs(1200),
        longest_hold: Duration::from_secs(1500),
    }
}

impl Amqp {
    fn start() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let rabbit = rabbitmq::shared()?;
        let name = format!("reports-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let metrics = Arc::new(Metrics::new());
        Some(Self { rabbit, name, settings: settings(&rabbit.url()), metrics })
    }

    /// As a process that was never here before.
    async fn try_open(&self) -> Result<Arc<AmqpQueue>, OpenError> {
        self.try_open_as(&format!("{:x}", rand::random::<u64>())).await
    }

    async fn try_open_as(&self, process: &str) -> Result<Arc<AmqpQueue>, OpenError> {
        let (name, settings, metrics) = (self.name.clone(), self.settings.clone(), Arc::clone(&self.metrics));
        let process = process.to_owned();
        let open = move || AmqpQueue::open(&name, &process, &settings, BACKOFF, 10_000, metrics, "reports");
        tokio::task::spawn_blocking(open).await.unwrap()
    }

    /// What opening says when it is refused.
    async fn refused(&self) -> String {
        let said = self.try_open().await.err().expect("it was opened").to_string();
        assert!(!said.contains("guest:guest") && !said.contains("s3cret"), "the secret is shown: {said}");
        said
    }

    /// Has the broker's script do something to a queue.
    async fn script(&self, what: &str, queue: &str) {
        let (server, what) = (&self.rabbit.server, format!("{what} {queue}"));
        tokio::task::spawn_blocking(move || server.script(&what)).await.unwrap().unwrap();
    }

    /// Puts a message there as others do, of which nothing but its body is known.
    fn publish_bare(&self, queue: &str) {
        self.publish_to("amq.default", queue, "1");
    }

    fn publish_to(&self, exchange: &str, key: &str, body: &str) {
        let message =
            format!(r#"{{"properties":{{}},"routing_key":"{key}","payload":"{body}","payload_encoding":"string"}}"#);
        let (status, routed) = self.rabbit.manage("POST", &format!("exchanges/%2F/{exchange}/publish"), &message);
        assert_eq!((status, &routed["routed"]), (200, &serde_json::json!(true)));
    }

    fn management_url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.rabbit.server.port + 1)
    }

    /// What the management API says of a queue.
    fn asked(&self, queue: &str) -> serde_json::Value {
        self.rabbit.manage("GET", &format!("queues/%2F/{queue}"), "").1
    }
}

impl Driver for Amqp {
    fn open_bounded(&self, _: u64) -> BoxFuture<'_, Arc<dyn Queue>> {
        Box::pin(async { self.try_open().await.unwrap() as Arc<dyn Queue> })
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn has_position_only(&self) -> bool {
        false
    }

    fn is_first(&self, coordinates: &str, queue: &str) -> bool {
        coordinates.starts_with(&format!("{queue}/")) && coordinates.ends_with("/1")
    }
}

// full_queue_refuses_and_takes_again_after_acks does not apply: the bound of a queue on a broker is the broker's, and what it says there
// is in `refused_and_unroutable_publishes_are_errors`.
cases!(Amqp);

/// Cuts the connection of the source, as soon as the broker's own tools know it.
async fn cut_source(driver: &Amqp) {
    let called = format!("trackalert {} source", driver.name);
    until("the connection of the source is not known", async || driver.rabbit.cut(&called) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connection_hands_out_again_once_and_ignores_old_tokens() {
    let Some(driver) = Amqp::start() else { return };
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..20)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let mut old = take(&mut subscription, 20).await;
    for delivery in old.drain(..5) {
        delivery.token.ack();
    }
    until_open("the acks were not taken", &*queue, 15).await;
    cut_source(&driver).await;
    let new = take(&mut subscription, 15).await;
    assert!(new.iter().map(number).eq(5..20), "{:?}", new.iter().map(number).collect::<Vec<_>>());
    assert!(new[0].token.tag().generation > old[0].token.tag().generation);
    for delivery in old {
        delivery.token.ack();
    }
    until("stale acks were not counted", async || driver.metrics.stale_settlements.get() == 15).await;
    assert_eq!(queue.depth().await.unwrap().messages, 15, "an old token finished a message");
    for delivery in new {
        delivery.token.ack();
    }
    until_open("new acks were not taken", &*queue, 0).await;
    let again = timeout(Duration::from_millis(200), subscription.deliveries.recv()).await;
    assert!(again.is_err(), "something came twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_for_many_never_pass_an_unfinished_delivery() {
    let Some(driver) = Amqp::start() else { return };
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..1000)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let mut kept = Vec::new();
    // From the end: each ack but the last finds something unfinished below it.
    for delivery in take(&mut subscription, 1000).await.into_iter().rev() {
        if number(&delivery) == 500 { kept.push(delivery) } else { delivery.token.ack() }
    }
    until_open("the acks below were not sent", &*queue, 500).await;
    cut_source(&driver).await;
    let again = take(&mut subscription, 500).await;
    assert!(again.iter().map(number).eq(500..1000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_delivery_that_waits_does_not_stop_all_others() {
    let Some(driver) = Amqp::start() else { return };
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..150)).await.unwrap();
    let mut subscription = queue.subscribe(Unsettled { messages: 10, bytes: 1 << 20 }, BACKOFF).unwrap();
    let first = next(&mut subscription).await;
    for expected in 1..150 {
        let delivery = next(&mut subscription).await;
        assert_eq!(number(&delivery), expected);
        delivery.token.ack();
    }
    first.token.ack();
    until_open("acks after acks one by one were not taken", &*queue, 0).await;
    queue.publisher().publish(numbered(200..230)).await.unwrap();
    for delivery in take(&mut subscription, 10).await {
        delivery.token.ack();
    }
    end(subscription).await;
    until_open("the channel was closed by an ack that the broker does not know", &*queue, 20).await;
    assert_eq!(driver.metrics.stale_settlements.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_and_unroutable_publishes_are_errors() {
    let Some(driver) = Amqp::start() else { return };
    let queue = driver.open().await;
    let publisher = queue.publisher();
    let large = publisher.publish(vec![Message::new("k", vec![0; 10_001])]).await.unwrap_err();
    assert!(matches!(large, QueueError::TooLarge { size: 10_001, limit: 10_000, .. }), "{large}");
    publisher.publish(vec![Message::new("k", vec![0; 10_000])]).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    next(&mut subscription).await.token.ack();
    end(subscription).await;

    driver.rabbit.bound(&driver.name, 3);
    let mut accepted = 0;
    until("the bound of the broker is no error", async || {
        let refused = publisher.publish(numbered(0..1)).await;
        accepted += u64::from(refused.is_ok());
        refused.is_err_and(|error| matches!(error, QueueError::Unavailable { .. }))
    })
    .await;
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    for delivery in take(&mut subscription, usize::try_from(accepted).unwrap()).await {
        delivery.token.ack();
    }
    until("it stays refused", async || publisher.publish(numbered(0..1)).await.is_ok()).await;
    end(subscription).await;
    driver.rabbit.unbound(&driver.name);

    driver.rabbit.delete(&driver.name);
    // So many that the broker answers for some while others are still written.
    let many = futures_util::future::join_all((0..3000).map(|n| publisher.publish(numbered(n..n + 1)))).await;
    let confirmed = many.iter().filter(|done| done.is_ok()).count() as u64;
    assert!(confirmed < 3000, "messages to nowhere were confirmed");
    let gone = format!("the queue {} is gone from the broker", driver.name);
    let said: Vec<String> = many.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
    assert!(said.iter().any(|said| said.contains(&gone)), "{said:?}");
    until("the queue is not made again", async || publisher.publish(numbered(0..1)).await.is_ok()).await;
    let messages = queue.depth().await.unwrap().messages;
    assert!(messages > confirmed, "{confirmed} and more were confirmed, {messages} are there");
}

/// The tests' broker takes 1 MiB, and closes the channel on which more comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_that_the_broker_calls_too_large_is_told_so_and_fails_no_other_twice() {
    const MOST: usize = 1 << 20;
    let Some(driver) = Amqp::start() else { return };
    let (name, settings, metrics) = (driver.name.clone(), driver.settings.clone(), Arc::clone(&driver.metrics));
    let open = move || AmqpQueue::open(&name, "process", &settings, BACKOFF, 4 * MOST, metrics, "reports").unwrap();
    let queue = tokio::task::spawn_blocking(open).await.unwrap();
    let publisher = queue.publisher();
    for round in 0..3 {
        let others = futures_util::future::join_all((0..50).map(|n| publisher.publish(numbered(n..n + 1))));
        let (large, others) = tokio::join!(publisher.publish(vec![Message::new("k", vec![0; 2 * MOST])]), others);
        let large = large.unwrap_err();
        assert!(matches!(large, QueueError::TooLarge { size, limit: MOST, .. } if size == 2 * MOST), "{large}");
        for error in others.into_iter().filter_map(Result::err) {
            assert!(round == 0 && matches!(error, QueueError::Unavailable { .. }), "round {round}: {error}");
        }
    }
}

/// The broker goes on refusing on the channel to which it has said once that the queue is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_are_taken_again_when_the_bound_of_a_full_queue_is_taken_away() {
    let Some(driver) = Amqp::start() else { return };
    let queue = driver.open().await;
    let publisher = queue.publisher();
    driver.rabbit.bound(&driver.name, 3);
    until("the bound is no error", async || publisher.publish(numbered(0..1)).await.is_err()).await;
    driver.rabbit.unbound(&driver.name);
    until("it stays refused", async || publisher.publish(numbered(0..1)).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_acked_before_the_end_comes_twice() {
    const ALL: u32 = 4000;
    let Some(driver) = Amqp::start() else { return };
    let queue = driver.open().await;
    let seed = std::env::var("TRACKALERT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    let mut random = StdRng::seed_from_u64(seed);
    println!("seed {seed}");
    for round in 0..8 {
        for first in (0..ALL).step_by(500) {
            queue.publisher().publish(numbered(first..first + 500)).await.unwrap();
        }
        let mut subscription = queue.subscribe(Unsettled { messages: 3000, bytes: 64 << 20 }, BACKOFF).unwrap();
        let mut taken = take(&mut subscription, 2800).await;
        taken.shuffle(&mut random);
        let mut acked = BTreeSet::new();
        let unfinished = [0, 2, 700, 1900][round % 4];
        for delivery in taken.split_off(unfinished) {
            acked.insert(number(&delivery));
            delivery.token.ack();
        }
        drop(taken);
        end(subscription).await;
        let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
        let mut again = 0;
        let mut rest = BTreeSet::new();
        while rest.len() + acked.len() < ALL as usize {
            let delivery = next(&mut subscription).await;
            again += usize::from(acked.contains(&number(&delivery)));
            if !acked.contains(&number(&delivery)) {
                rest.insert(number(&delivery));
            }
            delivery.token.ack();
        }
        end(subscription).await;
        println!("round {round}: {} acked, {unfinished} in hand unfinished, {again} came twice", acked.len());
        assert_eq!(again, 0, "acked before the end, and handed out again");
        assert_eq!(queue.depth().await.unwrap().messages, 0);
    }
}

const SLOW: Backoff = Backoff { first: Duration::from_secs(60), most: Duration::from_secs(60) };
const FIVE: Unsettled = Unsettled { messages: 5, bytes: 1 << 20 };

/// Five of the ten messages of a queue are in hand, and may be for 300 ms. With the queue, and with another process's view of it.
async fn five_of_ten(driver: &mut Amqp) -> (Subscription, Vec<Delivery>, [Arc<dyn Queue>; 2]) {
    driver.settings.hold = Duration::from_millis(300);
    let queues = [driver.open().await, driver.open().await];
    queues[0].publisher().publish(numbered(0..10)).await.unwrap();
    let mut subscription = queues[0].subscribe(FIVE, SLOW).unwrap();
    let five = take(&mut subscription, 5).await;
    (subscription, five, queues)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_long_goes_back_to_its_old_place() {
    let Some(mut driver) = Amqp::start() else { return };
    let (mut subscription, mut five, _queues) = five_of_ten(&mut driver).await;
    five.pop().unwrap().token.ack();
    let generation = five[0].token.tag().generation;
    five.into_iter().for_each(|delivery| delivery.token.nack());
    let again = take(&mut subscription, 5).await;
    assert_eq!(again.iter().map(number).collect::<Vec<_>>(), [0, 1, 2, 3, 5]);
    assert!(again[0].token.tag().generation > generation, "nothing was given back");
    drop(again);
    end(subscription).await;
}

/// Who works on a report waits itself for what the source is paused for: the broker would close the channel a while later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_pause_gives_back_what_is_worked_on_as_well_and_takes_nothing_until_its_end() {
    let Some(mut driver) = Amqp::start() else { return };
    let (mut subscription, mut five, [_queue, other]) = five_of_ten(&mut driver).await;
    five.remove(0).token.ack();
    five.push(next(&mut subscription).await);
    // The other one has nothing in hand: it sees what the broker has.
    until_open("the ack was not taken", &*other, 4).await;
    subscription.pause.send(true).unwrap();
    until_open("it was not given back", &*other, 9).await;
    five.into_iter().for_each(|delivery| delivery.token.ack());
    until("old tokens were not counted", async || driver.metrics.stale_settlements.get() == 5).await;
    let left = other.depth().await.unwrap().messages;
    assert_eq!(left, 9, "an old token finished a message, or a paused source took one");
    subscription.pause.send(false).unwrap();
    let again: Vec<u32> = take(&mut subscription, 5).await.iter().map(number).collect();
    assert_eq!(again, [1, 2, 3, 4, 5]);
    end(subscription).await;
}

/// The broker would take back what is done as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_worked_on_for_too_long_goes_back_and_what_was_done_meanwhile_does_not() {
    let Some(mut driver) = Amqp::start() else { return };
    driver.settings.longest_hold = Duration::from_secs(10);
    let (mut subscription, mut five, _queues) = five_of_ten(&mut driver).await;
    five.remove(1).token.ack();
    let again: Vec<u32> = take(&mut subscription, 5).await.iter().map(number).collect();
    assert_eq!(again, [0, 2, 3, 4, 5]);
    five.into_iter().for_each(|delivery| delivery.token.ack());
    until("old tokens were not counted", async || driver.metrics.stale_settlements.get() == 4).await;
    end(subscription).await;
}

/// The broker would close the channel a while later, because there is always something that somebody works on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_long_while_others_are_worked_on_goes_back_before_more_is_handed_out() {
    for rejected in [false, true] {
        let Some(mut driver) = Amqp::start() else { return };
        drop(driver.open().await);
        driver.settings.declare = !rejected;
        let (mut subscription, mut five, _queues) = five_of_ten(&mut driver).await;
        if rejected {
            // It waits for its dead letter, then: nobody makes that queue again.
            driver.rabbit.delete(&format!("{}.dead", driver.name));
        }
        let taken = Instant::now();
        let first = five.remove(0).token;
        if rejected {
            first.reject(reason(&[]))
        } else {
            first.nack()
        }
        let last = five.pop().unwrap();
        until("it is not here for so long", async || taken.elapsed() > driver.settings.hold).await;
        five.into_iter().for_each(|delivery| delivery.token.ack());
        // Without its dead letters no queue says how much it has.
        until("three more did not come", async || driver.asked(&driver.name)["messages_ready"] == 2).await;
        last.token.ack();
        let again: Vec<u32> = take(&mut subscription, 5).await.iter().map(number).collect();
        assert_eq!(again, [0, 5, 6, 7, 8], "rejected: {rejected}");
        end(subscription).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_dead_letters_than_a_queue_shows_by_itself_are_all_listed() {
    let Some(driver) = Amqp::start() else { return };
    let queue = driver.open().await;
    let count = 2_100;
    queue.publisher().publish(numbered(0..count)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    for delivery in take(&mut subscription, count as usize).await {
        delivery.token.reject(reason(&[]));
    }
    until("dead letters are missing", async || queue.depth().await.unwrap().dead == u64::from(count)).await;
    let listed = queue.dead_letters().list(Filter::default(), None, 10_000).await.unwrap();
    assert_eq!(listed.len(), count as usize);
    end(subscription).await;
}

/// Headers travel in one frame, and the key is one of them: a letter has its reason besides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_whose_key_or_headers_just_fit_is_a_dead_letter_that_can_be_sent_again() {
    let Some(driver) = Amqp::start() else { return };
    let queue = driver.open().await;
    let header = ("large".to_owned(), "v".repeat(90_000));
    let of_headers = Message { headers: vec![header.clone()], ..Message::new("login", "body") };
    let messages = vec![Message::new("k".repeat(102_300), "body"), of_headers, Message::new("escaped", "body")];
    queue.publisher().publish(messages).await.unwrap();
    // As JSON each of its bytes is six.
    let (text, escaped) = ("\u{1}".repeat(20_000), "\u{1}".repeat(2_700));
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    for delivery in take(&mut subscription, 3).await {
        let reason = match delivery.message.key.as_str() {
            "escaped" => Reason { text: text.clone(), ..reason(&[&escaped]) },
            _ => reason(&["spray"]),
        };
        delivery.token.reject(reason);
    }
    until("one is no dead letter", async || queue.depth().await.unwrap().dead == 3).await;
    let letters = queue.dead_letters().list(Filter::default(), None, 10).await.unwrap();
    let cut: Vec<_> = letters.iter().filter(|letter| letter.reason.text.contains("too large to be kept")).collect();
    assert_eq!(cut.iter().map(|letter| letter.message.key.len()).collect::<Vec<_>>(), [16 * 1024]);
    let ids: Vec<String> = letters.iter().map(|letter| letter.id.clone()).collect();
    assert_eq!(queue.dead_letters().resend_all(ids).await.unwrap().len(), 3);
    let again = take(&mut subscription, 3).await;
    let whole = again.iter().find(|delivery| delivery.message.key == "login").unwrap();
    assert!(whole.message.headers.contains(&header) && whole.message.header(headers::ONLY) == Some("spray"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_bear_a_thousand_looks() {
    let Some(driver) = Amqp::start() else { return };
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..5)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    for delivery in take(&mut subscription, 5).await {
        delivery.token.reject(reason(&[]));
    }
    until("dead letters are missing", async || queue.depth().await.unwrap().dead == 5).await;
    let dead = queue.dead_letters();
    let letters = dead.list(Filter::default(), None, 10).await.unwrap();
    for look in 0..1000 {
        assert_eq!(dead.list(Filter::default(), None, 10).await.unwrap(), letters, "look {look}");
    }
    for letter in letters {
        assert!(dead.resend(letter.id).await.unwrap());
    }
    assert_eq!(take(&mut subscription, 5).await.iter().map(number).collect::<BTreeSet<_>>(), (0..5).collect());
    assert_eq!(queue.depth().await.unwrap().dead, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_the_broker_say_what_to_do_and_no_secret() {
    let Some(mut driver) = Amqp::start() else { return };
    let port = driver.rabbit.server.port;
    let address = |login: &str, port: u16, vhost: &str| settings(&format!("amqp://{login}@127.0.0.1:{port}/{vhost}"));
    driver.settings = address("guest:s3cret", port, "%2f");
    assert!(driver.refused().await.contains("mend the password"), "{}", driver.refused().await);
    driver.settings = address("guest:guest", port, "nowhere");
    assert!(driver.refused().await.contains("no virtual host \"nowhere\""), "{}", driver.refused().await);
    driver.settings = address("guest:guest", 1, "%2f");
    let unreachable = driver.refused().await;
    assert!(unreachable.contains("127.0.0.1:1 cannot be reached"), "{unreachable}");
    assert!(unreachable.contains("tried for 2s (queue.amqp.start_timeout)"), "{unreachable}");
    driver.settings = settings(&driver.rabbit.url());
    driver.settings.declare = false;
    let missing = driver.refused().await;
    assert!(missing.contains(&driver.name) && missing.contains("queue.amqp.declare = true"), "{missing}");
    driver.settings.password = Secret::from("guest".to_owned());
    driver.settings.url = Secret::from(format!("amqp://guest@127.0.0.1:{port}/%2f"));
    driver.settings.declare = true;
    drop(driver.try_open().await.unwrap());
    assert_eq!(driver.asked(&driver.name)["arguments"]["x-queue-type"], "quorum");
    let overview = driver.rabbit.manage("GET", "overview", "").1;
    let major: u32 = overview["rabbitmq_version"].as_str().unwrap().split('.').next().unwrap().parse().unwrap();
    // Before 4.0 a limit of -1 would drop a message at its first return, and from then on no limit is one of 20.
    let limit = if major >= 4 { serde_json::json!(-1) } else { serde_json::Value::Null };
    assert_eq!(driver.asked(&driver.name)["arguments"]["x-delivery-limit"], limit, "of release {major}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_that_somebody_else_declared_are_taken_as_they_are() {
    let Some(mut driver) = Amqp::start() else { return };
    let name = driver.name.clone();
    for shards in [0, 1, 3] {
        (driver.name, driver.settings.shards) = (format!("{name}-of-{shards}"), shards);
        driver.settings.declare = true;
        drop(driver.open().await);
        driver.settings.declare = false;
        let queue = driver.open().await;
        queue.publisher().publish(numbered(0..20)).await.unwrap();
        let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
        let mut numbers: Vec<u32> = take(&mut subscription, 20).await.iter().map(number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, Vec::from_iter(0..20), "{shards} shards");
        end(subscription).await;
    }
    let alone = driver.asked(&format!("{name}-of-1-0"));
    assert_eq!(
        alone["arguments"]["x-single-active-consumer"], true,
        "one shard is one queue for all processes: {alone}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_stays_where_it_is_while_the_dead_letters_refuse_it() {
    let Some(driver) = Amqp::start() else { return };
    keep_the_log();
    let queue = driver.open().await;
    let dead = format!("{}.dead", driver.name);
    driver.rabbit.bound(&dead, 1);
    queue.publisher().publish(numbered(0..100)).await.unwrap();
    let mut subscription = queue.subscribe(Unsettled { messages: 1, bytes: 1 << 20 }, BACKOFF).unwrap();
    // One by one, until one is not taken: the broker lets some more in than its bound says.
    let mut rejected = 0;
    until("the dead letters refuse nothing", async || {
        if let Ok(delivery) = subscription.deliveries.try_recv() {
            delivery.token.reject(reason(&[]));
            rejected += 1;
        }
        logged(&[&dead, "a dead letter was not taken"])
    })
    .await;
    let depth = queue.depth().await.unwrap();
    assert!(depth.dead < rejected, "{rejected} were rejected, {} are dead letters", depth.dead);
    assert_eq!(depth.messages + depth.dead, 100, "one is in neither");
    driver.rabbit.unbound(&dead);
    until("it is no dead letter after all", async || {
        let depth = queue.depth().await.unwrap();
        depth.dead == rejected && depth.messages == 100 - rejected
    })
    .await;
    end(subscription).await;
}

/// Rejects so many messages while the queue of dead letters answers nobody, until the first are given up. Gives the queue, and the source
/// that has them.
async fn reject_in_silence(driver: &mut Amqp, count: u32) -> (Arc<dyn Queue>, Subscription) {
    keep_the_log();
    driver.open().await.publisher().publish(numbered(0..count)).await.unwrap();
    driver.settings.confirm_timeout = Duration::from_secs(3);
    let queue = driver.open().await;
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let taken = take(&mut subscription, count as usize).await;
    let dead = format!("{}.dead", driver.name);
    driver.script("do-silence", &dead).await;
    taken.into_iter().for_each(|delivery| delivery.token.reject(reason(&[])));
    until("the silence is not told", async || logged(&[&dead, "a dead letter was not taken"])).await;
    (queue, subscription)
}

/// It is tried again before the broker has done what it was asked first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letter_that_is_confirmed_too_late_is_one_and_comes_back_once() {
    let Some(mut driver) = Amqp::start() else { return };
    let (queue, subscription) = reject_in_silence(&mut driver, 1).await;
    driver.script("do-wake", &format!("{}.dead", driver.name)).await;
    until("it is no dead letter", async || {
        let depth = queue.depth().await.unwrap();
        depth.messages == 0 && depth.dead > 1
    })
    .await;
    end(subscription).await;
    all_come_back(&*queue, 1).await;
}

/// So many letters are shown, one id is sent again, and so many messages are back.
async fn all_come_back(queue: &dyn Queue, letters: usize) {
    let dead = queue.dead_letters();
    let shown = dead.list(Filter::default(), None, 10).await.unwrap();
    assert_eq!(shown.len(), letters, "{shown:?}");
    assert!(dead.resend(shown[0].id.clone()).await.unwrap());
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.messages, depth.dead), (letters as u64, 0));
}

/// The broker puts what a policy has it drop there: two such reports may have the same body, and are two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_of_others_that_are_alike_come_back_each() {
    let Some(driver) = Amqp::start() else { return };
    let queue = driver.open().await;
    for _ in 0..2 {
        driver.publish_bare(&format!("{}.dead", driver.name));
    }
    until("they are no dead letters", async || queue.depth().await.unwrap().dead == 2).await;
    all_come_back(&*queue, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_that_nobody_takes_keep_no_report_from_its_queue() {
    let Some(mut driver) = Amqp::start() else { return };
    let (queue, subscription) = reject_in_silence(&mut driver, 5_000).await;
    for number in 5_000..5_010 {
        queue.publisher().publish(numbered(number..number + 1)).await.unwrap();
    }
    driver.script("do-wake", &format!("{}.dead", driver.name)).await;
    end(subscription).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_to_which_nobody_gave_a_time_says_so() {
    let Some(driver) = Amqp::start() else { return };
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..1)).await.unwrap();
    driver.publish_bare(&driver.name);
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let untimed: Vec<bool> = take(&mut subscription, 2).await.iter().map(|delivery| delivery.message.untimed).collect();
    assert_eq!(untimed, [false, true]);
    end(subscription).await;
}
