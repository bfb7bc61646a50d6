//! What a start finds of topics: those it has made, those that others have made, and those that would lose dead letters. And topics that
//! are made anew beneath a process.

use super::*;

/// How a topic lets go of its records.
async fn cleanup(broker: &Broker, topic: &str) -> String {
    property_of(broker, topic, "cleanup.policy").await
}

/// Opens the queue as that of reports or of alerts. Gives what that logs: it is all done on one thread, and the log of the process belongs to no test.
async fn opening(driver: &Kafka, label: &'static str) -> String {
    let (settings, name, metrics) = (driver.settings.clone(), driver.name.clone(), Arc::new(Metrics::new()));
    let open = move || {
        let file = tempfile::NamedTempFile::new().unwrap();
        let writer = std::sync::Mutex::new(file.reopen().unwrap());
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
        tracing::subscriber::with_default(log, || {
            KafkaQueue::open(&name, &settings, 10_000, metrics, label).unwrap();
        });
        std::fs::read_to_string(file.path()).unwrap()
    };
    tokio::task::spawn_blocking(open).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topic_of_dead_letters_that_does_not_keep_them_is_a_warning() {
    let Some(broker) = broker() else { return };
    let driver = Kafka::new(broker);
    let dead = format!("{}.dead", driver.name);
    drop(driver.open().await);
    // Others may make it as topics are made without a word of it, or with a retention besides.
    for (policy, told) in [("delete", 1), ("compact,delete", 1), ("compact", 0)] {
        broker.set_property(&dead, "cleanup.policy", policy).await;
        until("the broker does not have it", async || cleanup(broker, &dead).await == policy).await;
        let log = opening(&driver, "reports").await;
        let warnings = log.lines().filter(|line| line.contains("WARN") && line.contains("dead letters vanish"));
        let warnings: Vec<_> = warnings.collect();
        assert_eq!(warnings.len(), told, "{policy}:\n{log}");
        for part in [dead.as_str(), policy, "retention", "kafka-configs", "--add-config cleanup.policy=compact"] {
            assert!(warnings.iter().all(|line| line.contains(part)), "{part} is not told:\n{log}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topic_that_takes_less_than_an_alert_may_have_is_a_warning() {
    let Some(broker) = broker() else { return };
    let driver = Kafka::new(broker);
    let told =
        async |label| opening(&driver, label).await.lines().filter(|line| line.contains("max.message.bytes=")).count();
    drop(driver.open().await);
    assert_eq!(told("alerts").await, 0, "of a topic that this program made");
    broker.set_property(&driver.name, "max.message.bytes", "9999").await;
    until("it is not told", async || told("alerts").await == 1).await;
    assert_eq!(told("reports").await, 0, "a report that is too large is refused where it comes in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topic_of_dead_letters_that_was_missing_is_made_to_keep_them() {
    let Some(broker) = broker() else { return };
    let driver = Kafka::new(broker);
    drop(driver.open().await);
    assert_eq!(cleanup(broker, &format!("{}.dead", driver.name)).await, "compact");
    assert_eq!(cleanup(broker, &driver.name).await, "delete", "reports that are done would be kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_are_there_are_used_where_none_may_be_made() {
    let Some(broker) = broker() else { return };
    let mut driver = Kafka::new(broker);
    drop(driver.open().await);
    driver.settings.create_topics = false;
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..20)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let mut taken = take(&mut subscription, 20).await;
    assert!(taken.iter().map(number).eq(0..20));
    taken.pop().unwrap().token.reject(reason(&["spray"]));
    taken.into_iter().for_each(|delivery| delivery.token.ack());
    until_open("they are not done", &*queue, 0).await;
    assert_eq!(queue.depth().await.unwrap().dead, 1);
    end(subscription).await;
}

/// A broker refuses all that comes together where that is too large, and none of it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_come_together_are_no_more_than_the_topic_takes_at_once() {
    let Some(broker) = broker() else { return };
    let driver = Kafka::new(broker);
    // Not to be compressed: the broker counts what comes.
    let many = || (0..500).map(|n| Message::new(format!("login{n}"), rand::random::<[u8; 1000]>().to_vec())).collect();
    let unaware = driver.open().await;
    broker.set_property(&driver.name, "max.message.bytes", "20000").await;
    until("it takes what it does not take", async || {
        matches!(unaware.publisher().publish(many()).await, Err(QueueError::TooLarge { .. }))
    })
    .await;
    driver.open().await.publisher().publish(many()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_of_a_topic_that_was_made_anew_are_shown_and_those_before_are_not() {
    let Some(broker) = broker() else { return };
    let driver = Kafka::new(broker);
    let reject = async |queue: &dyn Queue, count: u32| {
        queue.publisher().publish(numbered(0..count)).await.unwrap();
        let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
        for delivery in take(&mut subscription, count as usize).await {
            delivery.token.reject(reason(&[]));
        }
        let dead = async || queue.depth().await.is_ok_and(|depth| depth.dead == u64::from(count));
        until("they are no dead letters", dead).await;
        end(subscription).await;
    };
    let queue = driver.open().await;
    reject(&*queue, 5).await;
    broker.delete_topic(&format!("{}.dead", driver.name)).await;
    reject(&*driver.open().await, 2).await;
    until("the letters of before are counted", async || queue.depth().await.is_ok_and(|depth| depth.dead == 2)).await;
    let listed = queue.dead_letters().list(Filter::default(), None, 10).await.unwrap();
    assert_eq!(listed.len(), 2, "{listed:?}");
}

/// What came is repeated from somewhere in the middle of what is in hand: here by a topic that was made anew, whose beginning is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partition_that_goes_back_to_behind_what_is_unfinished_is_joined_again() {
    let Some(broker) = broker() else { return };
    let mut driver = Kafka::new(broker);
    driver.settings.partitions = 1;
    keep_the_log();
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..200)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let mut taken = take(&mut subscription, 200).await;
    subscription.pause.send(true).unwrap();
    taken.remove(10).token.nack();
    taken.into_iter().for_each(|delivery| delivery.token.ack());
    until_open("they are not done", &*queue, 190).await;
    broker.delete_topic(&driver.name).await;
    let anew = driver.open().await;
    anew.publisher().publish(numbered(1000..1100)).await.unwrap();
    broker.delete_records(&driver.name, 50).await;
    subscription.pause.send(false).unwrap();
    until("it goes on as if nothing were", async || logged(&[&driver.name, "the group is joined again"])).await;
    // A position that was committed beyond where it went back to would be one that is there, and be gone on from.
    anew.publisher().publish(numbered(1100..1300)).await.unwrap();
    let mut numbers = Vec::new();
    while numbers.len() < 250 {
        let one = next(&mut subscription).await;
        // Before the group is left it may come once more.
        if number(&one) != 10 {
            numbers.push(number(&one));
        }
        one.token.ack();
    }
    assert_eq!(numbers, Vec::from_iter(1050..1300));
    until_open("they are not done", &*queue, 0).await;
    end(subscription).await;
}
