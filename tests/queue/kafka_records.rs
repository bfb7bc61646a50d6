//! What lies in a topic: where a login's records go, how large they are there, and how many are still to be handled.

use rdkafka::{Message as _, Offset, TopicPartitionList};

use super::*;

/// Keys and what `Utils.murmur2` of Kafka's own clients makes of them (its unit test has the same pairs).
const MURMUR2: [(&str, i32); 6] = [
    ("21", -973_932_308),
    ("foobar", -790_332_482),
    ("a-little-bit-long-string", -985_981_536),
    ("a-little-bit-longer-string", -1_486_304_829),
    ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
    ("abc", 479_470_107),
];

const PARTITIONS: i32 = 7;

fn partition(delivery: &Delivery) -> i32 {
    delivery.coordinates.split('/').nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn login_goes_to_the_partition_that_java_producers_choose() {
    let Some(broker) = broker() else { return };
    let mut driver = Kafka::new(broker);
    driver.settings.partitions = PARTITIONS;
    let queue = driver.open().await;
    let messages = MURMUR2.iter().map(|(login, _)| Message::new((*login).to_owned(), *login));
    queue.publisher().publish(messages.collect()).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    for delivery in take(&mut subscription, MURMUR2.len()).await {
        let (login, hash) = MURMUR2.iter().find(|(login, _)| login.as_bytes() == &*delivery.message.body).unwrap();
        assert_eq!(partition(&delivery), (hash & i32::MAX) % PARTITIONS, "{login}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_compressed_on_the_brokers_disk() {
    let Some(broker) = broker() else { return };
    let driver = Kafka::new(broker);
    let queue = driver.open().await;
    let body = "the same words again and again, ".repeat(300);
    queue.publisher().publish((0..100).map(|_| Message::new("ann".to_owned(), body.clone())).collect()).await.unwrap();
    let folder = broker.server.folder.join(format!("data/logs/{}-0", driver.name));
    let logs = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
    let logs = logs.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "log"));
    let bytes: u64 = logs.map(|entry| entry.metadata().unwrap().len()).sum();
    assert!(bytes > 0 && bytes < body.len() as u64 * 100 / 10, "{bytes}");
}

/// The broker deletes a segment whose newest record is older than the topic's retention, whenever it came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letter_sent_again_after_the_retention_is_new_to_the_broker_and_keeps_its_time() {
    const RETENTION: Duration = Duration::from_hours(7 * 24);
    let Some(broker) = broker() else { return };
    let driver = Kafka::new(broker);
    let queue = driver.open().await;
    let (sent, published) = (Time::now(), Time::now().minus(RETENTION));
    queue.publisher().publish(vec![Message { published, ..Message::new("ann", "x") }]).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    next(&mut subscription).await.token.reject(reason(&[]));
    let dead = queue.dead_letters();
    until("it is no dead letter", async || queue.depth().await.unwrap().dead == 1).await;
    let letter = dead.list(Filter::default(), None, 1).await.unwrap().remove(0);
    assert!(dead.resend(letter.id).await.unwrap());
    assert_eq!(next(&mut subscription).await.message.published, published);
    let (broker, topic) = (broker.address.clone(), driver.name.clone());
    let times = move || {
        let mut client = ClientConfig::new();
        let client: BaseConsumer = client.set("bootstrap.servers", broker).set("group.id", "looks").create().unwrap();
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(&topic, 0, Offset::Beginning).unwrap();
        client.assign(&from).unwrap();
        [(); 2].map(|()| client.poll(DEADLINE).unwrap().unwrap().timestamp().to_millis().unwrap())
    };
    for time in tokio::task::spawn_blocking(times).await.unwrap() {
        assert!(time >= sent.millis(), "{time} is the time of the message, {}", published.millis());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lag_of_each_partition_is_what_is_not_done_there() {
    let Some(broker) = broker() else { return };
    let mut driver = Kafka::new(broker);
    driver.settings.partitions = 2;
    let (queue, metrics) = driver.process().await;
    queue.publisher().publish(numbered(0..100)).await.unwrap();
    let lag = |partition: i32| {
        let label = format!("reports/{partition}");
        metrics.partition_lag.with_label_values(&[label.as_str()]).get()
    };
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let taken = take(&mut subscription, 100).await;
    queue.depth().await.unwrap();
    let of_first = taken.iter().filter(|delivery| partition(delivery) == 0).count() as i64;
    assert!(of_first > 0 && of_first < 100);
    assert_eq!((lag(0), lag(1)), (of_first, 100 - of_first));
    let (first, second): (Vec<_>, Vec<_>) = taken.into_iter().partition(|delivery| partition(delivery) == 0);
    first.into_iter().for_each(|delivery| delivery.token.ack());
    until("the first partition's is not done", async || queue.depth().await.is_ok() && lag(0) == 0).await;
    assert_eq!(lag(1), second.len() as i64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_with_large_headers_is_a_dead_letter_that_says_where_the_whole_stood_also_when_it_comes_again() {
    let Some(broker) = broker() else { return };
    let driver = Kafka::new(broker);
    let queue = driver.open().await;
    set_largest(broker, &format!("{}.dead", driver.name), 100_000).await;
    let mut message = Message::new("ann", &b"small"[..]);
    message.headers = (0..200).map(|n| (format!("h{n}"), format!("{:x?}", rand::random::<[u8; 200]>()))).collect();
    queue.publisher().publish(vec![message]).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let dead = queue.dead_letters();
    let letter = async |subscription: &mut Subscription| {
        next(subscription).await.token.reject(reason(&[]));
        until("it is no dead letter", async || queue.depth().await.unwrap().dead == 1).await;
        dead.list(Filter::default(), None, 10).await.unwrap().remove(0)
    };
    let first = letter(&mut subscription).await;
    let kept = first.message.headers.len();
    assert!((1..200).contains(&kept) && &first.message.body[..] == b"small", "{kept}");
    assert!(first.reason.text.contains("of its 200 headers"), "{}", first.reason.text);
    assert_eq!(first.coordinates, format!("{}/0/0", driver.name));
    assert!(dead.resend(first.id).await.unwrap());
    assert_eq!(letter(&mut subscription).await.coordinates, first.coordinates);
    until_open("the position does not pass them", &*queue, 0).await;
    end(subscription).await;
}
