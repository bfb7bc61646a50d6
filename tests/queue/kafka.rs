//! The cases of `tests/queue.rs` on a real Kafka broker, and those that only a consumer group has.

use std::sync::atomic::{AtomicU32, Ordering};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::support::kafka::{Broker, broker, broker_to_stall};
use super::*;
use trackalert::queue::kafka::{KafkaQueue, Settings};

#[path = "kafka_records.rs"]
mod records;
#[path = "kafka_topics.rs"]
mod topics;

/// A topic and a group of its own for each case.
struct Kafka {
    settings: Settings,
    name: String,
    metrics: Arc<Metrics>,
}

impl Kafka {
    fn new(broker: &Broker) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("case-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut settings: Settings = reference();
        settings.brokers = vec![broker.address.clone()];
        settings.group.clone_from(&name);
        settings.create_topics = true;
        (settings.partitions, settings.replication) = (1, 1);
        Self { settings, name, metrics: Arc::new(Metrics::new()) }
    }

    fn start() -> Option<Self> {
        broker().map(Self::new)
    }

    async fn process(&self) -> (Arc<dyn Queue>, Arc<Metrics>) {
        let (settings, name, metrics) = (self.settings.clone(), self.name.clone(), Arc::new(Metrics::new()));
        let of_queue = Arc::clone(&metrics);
        let open = move || KafkaQueue::open(&name, &settings, 10_000, of_queue, "reports").unwrap();
        (tokio::task::spawn_blocking(open).await.unwrap(), metrics)
    }
}

fn reference() -> Settings {
    trackalert::config::Config::load_with(None, [], &[]).unwrap().queue.kafka
}

impl Driver for Kafka {
    /// A topic has no bound of bytes that a publisher would hear of: its retention removes the oldest instead.
    fn open_bounded(&self, _: u64) -> BoxFuture<'_, Arc<dyn Queue>> {
        let (settings, name, metrics) = (self.settings.clone(), self.name.clone(), Arc::clone(&self.metrics));
        Box::pin(async move {
            let open =
                move || -> Arc<dyn Queue> { KafkaQueue::open(&name, &settings, 10_000, metrics, "reports").unwrap() };
            tokio::task::spawn_blocking(open).await.unwrap()
        })
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

// Without full_queue_refuses_and_takes_again_after_acks: a topic has no bound that a publisher hears of.
cases!(Kafka, too_large_is_refused_and_the_largest_is_taken);

/// A property of a topic, as the broker has it.
async fn property_of(broker: &Broker, topic: &str, name: &str) -> String {
    use rdkafka::admin::{AdminOptions, ResourceSpecifier};
    let which = [ResourceSpecifier::Topic(topic)];
    let found = broker.admin().describe_configs(&which, &AdminOptions::new()).await.unwrap().remove(0).unwrap();
    found.get(name).unwrap().value.clone().unwrap()
}

/// Deliveries until none has come for so long.
async fn take_all(subscription: &mut Subscription, quiet: Duration) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while let Ok(Some(delivery)) = timeout(quiet, subscription.deliveries.recv()).await {
        taken.push(delivery);
    }
    taken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backlog_comes_from_all_partitions_side_by_side() {
    let Some(broker) = broker() else { return };
    let mut driver = Kafka::new(broker);
    driver.settings.partitions = 4;
    let queue = driver.open().await;
    // Not to be compressed: it is compressed bytes that a fetch counts.
    let large = |n: u32| Message::new(format!("login{n}"), rand::random::<[u8; 250]>().to_vec());
    let publisher = queue.publisher();
    for start in (0..64_000).step_by(16_000) {
        publisher.publish((start..start + 16_000).map(large).collect()).await.unwrap();
    }
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let lane = |delivery: &Delivery| delivery.coordinates.split('/').nth(1).unwrap().to_owned();
    // The client asks where each partition begins, and takes from those that have answered meanwhile.
    let (mut met, mut before) = (BTreeSet::new(), 0);
    while met.len() < 4 {
        let delivery = next(&mut subscription).await;
        met.insert(lane(&delivery));
        delivery.token.ack();
        before += 1;
    }
    let lanes: BTreeSet<_> = take(&mut subscription, 3000).await.iter().map(lane).collect();
    assert!(lanes.len() > 2, "all of it is from {lanes:?}, after {before}: few logins, and the others wait");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_that_nobody_takes_fail_no_report_that_is_on_its_way() {
    let Some(broker) = broker() else { return };
    let mut driver = Kafka::new(broker);
    keep_the_log();
    driver.settings.delivery_timeout = Duration::from_secs(5);
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..100)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let taken = take(&mut subscription, 100).await;
    let dead = format!("{}.dead", driver.name);
    broker.delete_topic(&dead).await;
    taken.into_iter().for_each(|delivery| delivery.token.reject(reason(&[])));
    // Each replaced client is told once in half a minute.
    let replaced = || logged(&[&format!("{:?}", driver.name), "the producer gave messages up"]);
    let senders = (0..8).map(|_| {
        let publisher = queue.publisher();
        async move {
            let mut after = 0;
            while after < 5 {
                publisher.publish(numbered(0..1000)).await.unwrap();
                after += usize::from(replaced());
            }
        }
    });
    let deliveries = &mut subscription.deliveries;
    let taker = async {
        while let Some(delivery) = deliveries.recv().await {
            delivery.token.ack()
        }
    };
    tokio::select! {
        _ = futures_util::future::join_all(senders) => {}
        () = taker => panic!("the source has ended"),
        () = tokio::time::sleep(DEADLINE) => panic!("no client was replaced"),
    }
    // It makes the topic again.
    drop(driver.open().await);
    until("they are no dead letters after all", async || queue.depth().await.is_ok_and(|depth| depth.dead == 100))
        .await;
}

/// A queue of two partitions with a hundred messages, of which one goes to another member soon, whatever is in flight.
async fn two_partitions(broker: &'static Broker) -> (Kafka, Arc<dyn Queue>, Arc<Metrics>) {
    let mut driver = Kafka::new(broker);
    driver.settings.partitions = 2;
    driver.settings.revoke_timeout = Duration::from_millis(200);
    let (first, metrics) = driver.process().await;
    first.publisher().publish(numbered(0..100)).await.unwrap();
    (driver, first, metrics)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_then_regained_partition_ignores_old_tokens() {
    let Some(broker) = broker() else { return };
    let (driver, first, metrics) = two_partitions(broker).await;
    let mut of_first = first.subscribe(MANY, BACKOFF).unwrap();
    let old = take(&mut of_first, 100).await;
    let lanes: BTreeSet<u32> = old.iter().map(|delivery| delivery.token.tag().lane).collect();
    assert_eq!(lanes.len(), 2);

    // Another member gets one of the two, although what is in flight there is not done.
    let (second, _) = driver.process().await;
    let mut of_second = second.subscribe(MANY, BACKOFF).unwrap();
    let lent = next(&mut of_second).await;
    let lane = lent.token.tag().lane;
    let moved: Vec<_> = old.iter().filter(|delivery| delivery.token.tag().lane == lane).map(number).collect();
    let mut there = take(&mut of_second, moved.len() - 1).await;
    there.insert(0, lent);
    assert!(there.iter().map(number).eq(moved.iter().copied()), "the new member starts elsewhere");
    drop(there);
    end(of_second).await;

    // It comes back, and everything of it comes again; what is out from before settles nothing.
    let new = take(&mut of_first, moved.len()).await;
    assert!(new.iter().map(number).eq(moved.iter().copied()));
    assert!(new.iter().all(|delivery| delivery.token.tag().lane == lane));
    for delivery in old {
        delivery.token.ack();
    }
    let stale = moved.len() as u64;
    until("stale acks were not counted", async || metrics.stale_settlements.get() == stale).await;
    until_open("an old token finished a message", &*first, stale).await;
    for delivery in new {
        delivery.token.ack();
    }
    until_open("new acks were not taken", &*first, 0).await;
    end(of_first).await;
}

/// The client keeps a partition paused over its way to another member and back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partition_that_went_while_the_source_was_full_is_read_on_when_it_comes_back() {
    let Some(broker) = broker() else { return };
    let (driver, first, _) = two_partitions(broker).await;
    let mut of_first = first.subscribe(Unsettled { messages: 10, ..MANY }, BACKOFF).unwrap();
    let in_hand = take(&mut of_first, 10).await;

    let (second, _) = driver.process().await;
    let mut of_second = second.subscribe(MANY, BACKOFF).unwrap();
    next(&mut of_second).await;
    in_hand.into_iter().for_each(|delivery| delivery.token.ack());
    // It has room again, and has read all of the other one, before that partition comes back.
    while let Ok(Some(delivery)) = timeout(Duration::from_secs(1), of_first.deliveries.recv()).await {
        delivery.token.ack();
    }
    end(of_second).await;
    until("what came back is not read", async || {
        while let Ok(delivery) = of_first.deliveries.try_recv() {
            delivery.token.ack();
        }
        first.depth().await.unwrap().messages == 0
    })
    .await;
    end(of_first).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_come_and_go_lose_nothing_and_handle_nothing_twice() {
    let Some(broker) = broker() else { return };
    let mut driver = Kafka::new(broker);
    driver.settings.partitions = 4;
    let (first, _) = driver.process().await;
    let (second, _) = driver.process().await;
    let publisher = first.publisher();
    let publishing = tokio::spawn(async move {
        for start in (0..4000).step_by(20) {
            publisher.publish(numbered(start..start + 20)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    });
    let handled = Arc::new(std::sync::Mutex::new(Vec::new()));
    let work = |mut subscription: Subscription| {
        let handled = Arc::clone(&handled);
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let worker = tokio::spawn(async move {
            loop {
                let delivery = tokio::select! {
                    delivery = subscription.deliveries.recv() => delivery.unwrap(),
                    _ = &mut stopped => break,
                };
                let handled = Arc::clone(&handled);
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(u64::from(number(&delivery) % 20))).await;
                    handled.lock().unwrap().push(number(&delivery));
                    delivery.token.ack();
                });
            }
            // A drain: nothing more is handed out, what is in hand is finished.
            subscription.pause.send(true).unwrap();
            while let Some(delivery) = take_all(&mut subscription, Duration::from_millis(50)).await.pop() {
                delivery.token.nack();
            }
            end(subscription).await;
        });
        (stop, worker)
    };
    let (stop_first, first_worker) = work(first.subscribe(MANY, BACKOFF).unwrap());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let (stop_second, second_worker) = work(second.subscribe(MANY, BACKOFF).unwrap());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    stop_second.send(()).unwrap();
    second_worker.await.unwrap();
    publishing.await.unwrap();
    until_open("not all is done", &*first, 0).await;
    stop_first.send(()).unwrap();
    first_worker.await.unwrap();
    let handled = handled.lock().unwrap();
    let distinct: BTreeSet<u32> = handled.iter().copied().collect();
    assert_eq!(distinct.len(), 4000, "messages are missing");
    assert_eq!(handled.len(), 4000, "messages were handled twice although every member ended in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_without_a_partition_leaves_no_place_behind() {
    let Some(broker) = broker() else { return };
    let driver = Kafka::new(broker);
    let members = async |expected: usize| {
        let (broker, group) = (broker.address.clone(), driver.name.clone());
        let ask = move || {
            let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", broker).create().unwrap();
            let groups = client.fetch_group_list(Some(&group), Duration::from_secs(5)).unwrap();
            groups.groups().iter().map(|group| group.members().len()).sum::<usize>()
        };
        tokio::task::spawn_blocking(ask).await.unwrap() == expected
    };
    let (first, _) = driver.process().await;
    first.publisher().publish(numbered(0..1)).await.unwrap();
    let mut of_first = first.subscribe(MANY, BACKOFF).unwrap();
    next(&mut of_first).await.token.ack();
    // There is one partition: this one gets none.
    let (second, _) = driver.process().await;
    let of_second = second.subscribe(MANY, BACKOFF).unwrap();
    until("the second is no member", async || members(2).await).await;
    end(of_second).await;
    // The session of a member that says nothing lasts 45 s, more than is waited here.
    until("the second is still a member", async || members(1).await).await;
    end(of_first).await;
    until("the first is still a member", async || members(0).await).await;
}

/// Its controller takes such a broker for dead, and its partitions have no leader for a moment when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_that_stalled_takes_messages_again() {
    let Some(broker) = broker_to_stall() else { return };
    let mut driver = Kafka::new(broker);
    driver.settings.partitions = 8;
    driver.settings.delivery_timeout = Duration::from_secs(3);
    let queue = driver.open().await;
    let publisher = queue.publisher();
    publisher.publish(numbered(0..100)).await.unwrap();
    let script = async |what: &'static str| {
        tokio::task::spawn_blocking(move || broker.server.script(what)).await.unwrap().unwrap();
    };
    for _ in 0..3 {
        script("do-freeze").await;
        until("a broker that stands still confirms", async || publisher.publish(numbered(0..10)).await.is_err()).await;
        script("do-thaw").await;
        until("nothing is published any more", async || publisher.publish(numbered(0..100)).await.is_ok()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_are_looked_at_a_hundred_times_and_are_still_there() {
    let Some(broker) = broker() else { return };
    let driver = Kafka::new(broker);
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..20)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    for delivery in take(&mut subscription, 20).await {
        delivery.token.reject(reason(&["spray"]));
    }
    until("dead letters are missing", async || queue.depth().await.unwrap().dead == 20).await;
    end(subscription).await;
    let dead = queue.dead_letters();
    let all = dead.list(Filter::default(), None, 100).await.unwrap();
    for _ in 0..100 {
        assert_eq!(dead.list(Filter::default(), None, 100).await.unwrap(), all);
    }
    // Another process finds the same, and what one changes the other sees.
    let (other, _) = driver.process().await;
    assert!(other.dead_letters().drop_letter(all[3].id.clone()).await.unwrap());
    assert!(!dead.resend(all[3].id.clone()).await.unwrap());
    assert_eq!(dead.list(Filter::default(), Some(all[2].id.clone()), 1).await.unwrap(), all[4..5]);
}

/// A record as another program may write it, with the body of a report and this for the name of a header.
#[allow(unsafe_code, reason = "the client takes no name that is not UTF-8, and other clients do")]
fn write_with_header(broker: &Broker, topic: &str, body: &[u8], name: &[u8]) {
    use rdkafka::bindings::{self as client, rd_kafka_vtype_t as Is};
    use rdkafka::producer::{BaseProducer, Producer as _};
    use rdkafka::types::RDKafkaRespErr;
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &broker.address)
        .set("message.timeout.ms", "30000")
        .create()
        .unwrap();
    let topic = std::ffi::CString::new(topic).unwrap();
    // SAFETY: the producer lives until the end, the client copies topic, body and header, and END ends the arguments.
    let answer = unsafe {
        client::rd_kafka_producev(
            producer.client().native_ptr(),
            Is::RD_KAFKA_VTYPE_TOPIC,
            topic.as_ptr(),
            Is::RD_KAFKA_VTYPE_MSGFLAGS,
            2_i32,
            Is::RD_KAFKA_VTYPE_VALUE,
            body.as_ptr(),
            body.len(),
            Is::RD_KAFKA_VTYPE_HEADER,
            name.as_ptr(),
            b"v".as_ptr(),
            1_isize,
            Is::RD_KAFKA_VTYPE_END,
        )
    };
    assert_eq!(answer, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
    producer.flush(DEADLINE).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_with_a_name_that_is_no_text_is_left_out_and_ends_nothing() {
    let Some(broker) = broker() else { return };
    let driver = Kafka::new(broker);
    let queue = driver.open().await;
    write_with_header(broker, &driver.name, b"first", b"\xff\xfe\0");
    write_with_header(broker, &driver.name, b"second", b"name\0");
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let read: Vec<_> = take(&mut subscription, 2).await.into_iter().map(|read| Arc::clone(&read.message)).collect();
    assert_eq!((&read[0].body[..], read[0].headers.as_slice()), (&b"first"[..], &[][..]));
    assert_eq!((&read[1].body[..], read[1].headers.as_slice()), (&b"second"[..], &[("name".into(), "v".into())][..]));
    end(subscription).await;
}

/// Sets what a topic takes.
async fn set_largest(broker: &Broker, topic: &str, bytes: usize) {
    broker.set_property(topic, "max.message.bytes", &bytes.to_string()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_larger_than_the_queue_takes_is_a_dead_letter_and_holds_nothing_up() {
    let Some(broker) = broker() else { return };
    let driver = Kafka::new(broker);
    let queue = driver.open().await;
    // Far over what our own publisher takes; small on the wire.
    let large = vec![b'x'; 3 << 20];
    let producer: rdkafka::producer::BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &broker.address)
        .set("message.max.bytes", "10000000")
        .set("compression.codec", "lz4")
        .create()
        .unwrap();
    let write = |body: &[u8]| {
        use rdkafka::producer::{BaseRecord, Producer as _};
        producer.send(BaseRecord::<(), _>::to(&driver.name).payload(body)).map_err(|(error, _)| error).unwrap();
        producer.flush(DEADLINE).unwrap();
    };
    write(&large);
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    next(&mut subscription).await.token.reject(reason(&["spray"]));
    let dead = async || queue.depth().await.unwrap().dead;
    until("the large one is no dead letter", async || dead().await == 1).await;

    // Where the dead letters take less than the topic, the beginning has to do.
    set_largest(broker, &format!("{}.dead", driver.name), 100_000).await;
    let random: Vec<u8> = (0..200_000).map(|_| rand::random()).collect();
    write(&random);
    next(&mut subscription).await.token.reject(reason(&["spray"]));
    until("the second one is no dead letter", async || dead().await == 2).await;
    write(b"after");
    next(&mut subscription).await.token.ack();
    until_open("the position does not pass them", &*queue, 0).await;
    let letters = queue.dead_letters().list(Filter::default(), None, 10).await.unwrap();
    assert_eq!(letters[0].message.body, large);
    let (kept, text) = (&letters[1].message.body, &letters[1].reason.text);
    assert!(random.starts_with(kept) && !kept.is_empty() && text.contains("200000 bytes"), "{} {text}", kept.len());
    end(subscription).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_whose_reader_does_not_come_back_still_takes_part_in_its_group() {
    let Some(broker) = broker() else { return };
    let mut driver = Kafka::new(broker);
    driver.settings.partitions = 2;
    driver.settings.revoke_timeout = Duration::from_millis(200);
    let (first, _) = driver.process().await;
    first.publisher().publish(numbered(0..20_000)).await.unwrap();
    let of_first = first.subscribe(MANY, BACKOFF).unwrap();
    // Nobody reads: it holds as much as it may, and pauses. Whatever that is, the second one must get its partition.
    let used = of_first.deliveries.max_capacity();
    until("the channel is not full", async || of_first.deliveries.len() == used).await;
    let (second, _) = driver.process().await;
    let mut of_second = second.subscribe(MANY, BACKOFF).unwrap();
    next(&mut of_second).await;
    drop(of_first);
    end(of_second).await;
}

#[test]
fn missing_topic_and_silent_broker_are_told_in_the_words_of_the_settings() {
    let Some(broker) = broker() else { return };
    let mut driver = Kafka::new(broker);
    driver.settings.create_topics = false;
    let open = |settings: &Settings| {
        let opened = KafkaQueue::open("never-made", settings, 10_000, Arc::new(Metrics::new()), "reports");
        opened.err().unwrap().to_string()
    };
    let expected = format!(
        "kafka: topic `never-made` does not exist on {}; create it or set queue.kafka.create_topics = true",
        broker.address
    );
    assert_eq!(open(&driver.settings), expected);
    driver.settings.brokers = vec!["127.0.0.1:9".to_owned()];
    driver.settings.start_timeout = Duration::from_secs(1);
    let told = open(&driver.settings);
    assert!(told.starts_with("kafka: no broker of 127.0.0.1:9 served topic"), "{told}");
    driver.settings.properties =
        serde_json::from_str(r#"{"ssl.key.password": "hunter2", "no.such": "hunter2"}"#).unwrap();
    let told = open(&driver.settings);
    assert!(told.contains("no.such") && !told.contains("hunter2"), "{told}");
    driver.settings.properties = serde_json::from_str(r#"{"max.poll.interval.ms": "40000"}"#).unwrap();
    driver.settings.session_timeout = Duration::from_secs(45);
    let told = open(&driver.settings);
    assert!(told.contains("max.poll.interval.ms"), "{told}");
}
