//! Starts against a broker that is down, wants TLS, lacks a plugin or has a policy that would lose messages.

use super::*;
use crate::support::proxy::Proxy;
use crate::support::server::free_ports;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_waits_for_the_broker_and_says_which_plugin_is_missing() {
    let Some(mut driver) = Amqp::start() else { return };
    keep_the_log();
    let rabbit = Rabbit::prepare("rabbitmq_management").unwrap();
    driver.settings = settings(&rabbit.url());
    driver.settings.start_timeout = Duration::from_secs(300);
    let (name, waiting) = (driver.name.clone(), driver.settings.clone());
    let metrics = Arc::clone(&driver.metrics);
    let open = move || AmqpQueue::open(&name, "", &waiting, BACKOFF, 10_000, metrics, "reports");
    let opening = tokio::task::spawn_blocking(open);
    let (port, name) = (rabbit.server.port.to_string(), driver.name.clone());
    until("no try is told", async || logged(&[&name, &port, "cannot be reached", "trying again"])).await;
    assert!(!opening.is_finished(), "the start did not wait");
    let rabbit =
        tokio::task::spawn_blocking(move || rabbit.server.script("start").map(|()| rabbit)).await.unwrap().unwrap();
    let queue = timeout(Duration::from_secs(60), opening).await.unwrap().unwrap().unwrap();
    queue.publisher().publish(numbered(0..1)).await.unwrap();
    drop(queue);

    driver.name.push_str("-sharded");
    driver.settings.shards = 4;
    let began = Instant::now();
    let missing = driver.refused().await;
    assert!(missing.contains("rabbitmq-plugins enable rabbitmq_consistent_hash_exchange"), "{missing}");
    assert!(began.elapsed() < Duration::from_secs(60), "it went on trying");
    tokio::task::spawn_blocking(move || rabbit.server.script("stop")).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_goes_by_the_authority_and_the_certificate_that_are_set() {
    let Some(mut driver) = Amqp::start() else { return };
    let rabbit = driver.rabbit;
    assert_eq!(rabbit.manage("PUT", "vhosts/mail", "").0 / 100, 2);
    assert_eq!(rabbit.manage("PUT", "users/ann", r#"{"password":"s3cret of a file","tags":""}"#).0 / 100, 2);
    let all = r#"{"configure":".*","write":".*","read":".*"}"#;
    assert_eq!(rabbit.manage("PUT", "permissions/mail/ann", all).0 / 100, 2);
    driver.settings = settings(&format!("amqps://ann@localhost:{}/mail", rabbit.server.port + 4));
    driver.settings.password = Secret::from("s3cret of a file".to_owned());

    let unknown = driver.refused().await;
    assert!(unknown.contains("is not trusted") && unknown.contains("queue.amqp.ca_file"), "{unknown}");
    driver.settings.ca_file = rabbit.tls("other");
    let wrong = driver.refused().await;
    assert!(wrong.contains("is not trusted") && wrong.contains("queue.amqp.ca_file"), "{wrong}");
    driver.settings.ca_file = rabbit.tls("key");
    assert!(driver.refused().await.contains("queue.amqp.ca_file holds no certificate"));
    driver.settings.ca_file = rabbit.tls("nowhere");
    assert!(driver.refused().await.contains("nowhere.pem cannot be read"));
    driver.settings.ca_file = rabbit.tls("ca");
    let nobody = driver.refused().await;
    assert!(nobody.contains("client_cert"), "{nobody}");

    driver.settings.client_cert = rabbit.tls("client");
    driver.settings.client_key = rabbit.tls("client-key");
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..100)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    assert!(take(&mut subscription, 100).await.iter().map(number).eq(0..100));
    let there = rabbit.manage("GET", &format!("queues/mail/{}", driver.name), "").1;
    assert_eq!(there["type"], "quorum", "{there}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limit_of_returns_in_a_policy_is_a_warning() {
    let Some(mut driver) = Amqp::start() else { return };
    keep_the_log();
    driver.settings.management_url = driver.management_url();
    for (kind, limit) in [("policies", 7), ("operator-policies", 6)] {
        driver.name.push_str("-limited");
        let policy = format!(
            r#"{{"pattern":"^{}$","apply-to":"queues","definition":{{"delivery-limit":{limit}}}}}"#,
            driver.name
        );
        let policy_name = format!("{kind}-of-{}", driver.name);
        let path = format!("{kind}/%2F/{policy_name}");
        assert_eq!(driver.rabbit.manage("PUT", &path, &policy).0, 201);
        let limit = format!("limit={limit}");
        let told =
            [&driver.name, &policy_name, &limit, "a policy of the broker", "take delivery-limit out of that policy"];
        // It is there before the queue, and the API knows that it fits a while after the queue is made.
        let _queue = driver.open().await;
        until("no warning", async || logged(&told)).await;
        assert_eq!(driver.rabbit.manage("DELETE", &path, "").0, 204);
    }
    for (url, told) in [
        ("http://127.0.0.1:1/", "management_url does not say whether"),
        ("auto", "whether a policy of the broker limits returns is not known; set"),
    ] {
        url.clone_into(&mut driver.settings.management_url);
        let _queue = driver.open().await;
        until("its silence is not told", async || logged(&[&driver.name, told])).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queue_of_a_form_that_loses_or_mixes_reports_is_a_warning() {
    let Some(mut driver) = Amqp::start() else { return };
    keep_the_log();
    driver.settings.shards = 1;
    drop(driver.open().await);
    let shard = format!("{}-0", driver.name);
    assert_eq!(driver.rabbit.manage("DELETE", &format!("queues/%2F/{shard}"), "").0, 204);
    assert_eq!(driver.rabbit.manage("PUT", &format!("queues/%2F/{shard}"), r#"{"durable":true}"#).0, 201);
    driver.settings.management_url = driver.management_url();
    assert!(driver.refused().await.contains("x-"), "a queue of another form was taken for the one it declares");
    driver.settings.declare = false;
    let _queue = driver.open().await;
    for lacks in ["x-queue-type = quorum", "x-single-active-consumer = true"] {
        until("its form is not told", async || logged(&[&shard, "declared without", lacks])).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_that_a_policy_has_the_broker_drop_is_a_dead_letter() {
    let Some(driver) = Amqp::start() else { return };
    let queue = driver.open().await;
    let path = format!("policies/%2F/few-returns-of-{}", driver.name);
    let policy =
        format!(r#"{{"pattern":"^{}$","apply-to":"queues","definition":{{"delivery-limit":3}}}}"#, driver.name);
    assert_eq!(driver.rabbit.manage("PUT", &path, &policy).0, 201);
    let message = numbered(0..1).remove(0);
    queue.publisher().publish(vec![message.clone()]).await.unwrap();
    until("it is dropped for good", async || {
        let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
        let _ = timeout(Duration::from_millis(200), subscription.deliveries.recv()).await;
        end(subscription).await;
        queue.depth().await.unwrap().dead == 1
    })
    .await;
    let letter = queue.dead_letters().list(Filter::default(), None, 10).await.unwrap().remove(0);
    assert_eq!((&letter.message.key, &letter.message.body), (&message.key, &message.body));
    assert!(letter.reason.text.contains("delivery_limit") && letter.message.headers == message.headers, "{letter:?}");
    assert!(queue.dead_letters().resend(letter.id).await.unwrap());
    assert_eq!(driver.rabbit.manage("DELETE", &path, "").0, 204);
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    next(&mut subscription).await.token.ack();
    end(subscription).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_that_comes_back_again_and_again_is_told_without_the_management_api() {
    let Some(driver) = Amqp::start() else { return };
    keep_the_log();
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..1)).await.unwrap();
    for times in 0..7 {
        let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
        next(&mut subscription).await;
        end(subscription).await;
        assert!(times > 3 || !logged(&[&driver.name, "came back many times"]), "told after {times}");
    }
    assert!(logged(&[&driver.name, "came back many times", "management_url"]));
}

/// As in rabbitmq/rabbitmq-server#10070: the broker is there, and a queue of it answers nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queue_without_a_leader_is_told_from_a_broker_that_is_away_and_resumes_when_it_has_one() {
    let Some(mut driver) = Amqp::start() else { return };
    keep_the_log();
    driver.settings.connect_timeout = Duration::from_secs(1);
    // So little time for an answer, and a slow machine, may take more than one try.
    driver.settings.start_timeout = Duration::from_secs(60);
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..1)).await.unwrap();
    driver.script("do-silence", &driver.name).await;
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let told = [&driver.name, "(consume)", "may be without a leader", "rabbitmq-queues quorum_status"];
    until("the silence of the queue is not told", async || logged(&told)).await;
    let unknown = format!("how much is in {}:", driver.name);
    until("the metrics go by what the broker says of it", async || match queue.depth().await {
        Ok(depth) => panic!("it is taken for empty: {depth:?}"),
        Err(error) => error.to_string().contains(&unknown),
    })
    .await;
    driver.script("do-wake", &driver.name).await;
    // What the broker did too late must not keep the message from the consumer that is there.
    assert_eq!(number(&next(&mut subscription).await), 0);
}

/// A broker whose disk can stand still without harm to other tests: its queues say what they have then, and hand nothing out.
async fn of_its_own() -> Arc<Rabbit> {
    Arc::new(tokio::task::spawn_blocking(Rabbit::start).await.unwrap().unwrap())
}

async fn script(rabbit: &Arc<Rabbit>, what: &'static str) {
    let rabbit = Arc::clone(rabbit);
    tokio::task::spawn_blocking(move || rabbit.server.script(what)).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn look_at_dead_letters_that_comes_to_nothing_keeps_none_of_them() {
    let Some(mut driver) = Amqp::start() else { return };
    let rabbit = of_its_own().await;
    // So little time for an answer, and a slow machine, may take more than one try.
    let (connect_timeout, start_timeout) = (Duration::from_secs(2), Duration::from_secs(60));
    driver.settings = Settings { connect_timeout, start_timeout, ..settings(&rabbit.url()) };
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..1)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    next(&mut subscription).await.token.reject(reason(&[]));
    until("it is no dead letter", async || queue.depth().await.unwrap().dead == 1).await;
    script(&rabbit, "do-hold-log").await;
    let silent = queue.dead_letters().list(Filter::default(), None, 10).await.unwrap_err().to_string();
    assert!(silent.contains("did not answer") && silent.contains("(look)"), "{silent}");
    script(&rabbit, "do-free-log").await;
    let listed = async || queue.dead_letters().list(Filter::default(), None, 10).await;
    until("the letter stays with the look that failed", async || listed().await.is_ok_and(|all| all.len() == 1)).await;
    script(&rabbit, "stop").await;
}

/// What the broker's side of a channel has not sent on it forgets with the channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_waits_until_the_last_acks_are_done() {
    let Some(mut driver) = Amqp::start() else { return };
    let rabbit = of_its_own().await;
    driver.settings = settings(&rabbit.url());
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..200)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let mut taken = take(&mut subscription, 200).await;
    let unfinished = taken.remove(0);
    script(&rabbit, "do-hold-log").await;
    taken.into_iter().for_each(|delivery| delivery.token.ack());
    drop(unfinished);
    let mut ending = std::pin::pin!(end(subscription));
    assert!(timeout(Duration::from_secs(1), &mut ending).await.is_err(), "it did not wait");
    script(&rabbit, "do-free-log").await;
    ending.await;
    script(&rabbit, "stop").await;
}

/// Has the driver reach its broker through the fault proxy.
pub(super) fn through_proxy(driver: &mut Amqp) -> Option<Proxy> {
    let (listen, broker) = (free_ports(1), driver.rabbit.server.port);
    let proxy = Proxy::open(listen, broker)?;
    driver.settings = settings(&driver.rabbit.url().replace(&broker.to_string(), &listen.to_string()));
    Some(proxy)
}

/// Here an answer that comes late says nothing of the queue's leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_queue_of_a_broker_far_away_is_known_to_be_empty() {
    let Some(mut driver) = Amqp::start() else { return };
    let Some(proxy) = through_proxy(&mut driver) else { return };
    let queue = driver.open().await;
    let _far = proxy.delay(Duration::from_millis(200));
    let asked = Instant::now();
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.messages, depth.dead), (0, 0));
    assert!(asked.elapsed() > Duration::from_millis(800), "the broker is not far away");
}

/// Each letter takes longer than one that another process has taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_that_come_slowly_are_all_shown() {
    let Some(mut driver) = Amqp::start() else { return };
    let Some(proxy) = through_proxy(&mut driver) else { return };
    driver.settings.connect_timeout = Duration::from_secs(60);
    let queue = driver.open().await;
    queue.publisher().publish((0..3).map(|_| Message::new("k", vec![0; 9_000])).collect()).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    for delivery in take(&mut subscription, 3).await {
        delivery.token.reject(reason(&[]));
    }
    until("they are no dead letters", async || queue.depth().await.unwrap().dead == 3).await;
    end(subscription).await;
    let _slow = proxy.slow(3);
    assert_eq!(queue.dead_letters().list(Filter::default(), None, 10).await.unwrap().len(), 3);
}

/// Its channel takes a while to be there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publish_that_was_given_up_before_its_turn_is_not_done() {
    let Some(mut driver) = Amqp::start() else { return };
    let Some(proxy) = through_proxy(&mut driver) else { return };
    let queue = driver.open().await;
    let publisher = queue.publisher();
    let far = proxy.delay(Duration::from_millis(500));
    let given_up = timeout(Duration::from_millis(50), publisher.publish(numbered(1..2)));
    let (first, given_up) = tokio::join!(publisher.publish(numbered(0..1)), given_up);
    first.unwrap();
    assert!(given_up.is_err(), "its turn came before it was given up");
    drop(far);
    publisher.publish(numbered(2..3)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let numbers: Vec<u32> = take(&mut subscription, 2).await.iter().map(number).collect();
    assert_eq!(numbers, [0, 2]);
    end(subscription).await;
}
