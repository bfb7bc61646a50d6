//! A broker with a memory alarm: it reads nothing any more from a connection that publishes, and goes on with all others.

use super::*;

/// What the connections of a queue are for, and how many of them the broker does not read from.
fn connections(rabbit: &Rabbit, queue: &str) -> (Vec<String>, usize) {
    let all = rabbit.manage("GET", "connections", "").1;
    let prefix = format!("trackalert {queue} ");
    let role = |one: &serde_json::Value| one["user_provided_name"].as_str()?.strip_prefix(&prefix).map(str::to_owned);
    let ours: Vec<_> = all.as_array().unwrap().iter().filter_map(|one| Some((role(one)?, &one["state"]))).collect();
    let blocked = ours.iter().filter(|(_, state)| *state == "blocked").count();
    let mut roles: Vec<String> = ours.into_iter().map(|(role, _)| role).collect();
    roles.sort_unstable();
    (roles, blocked)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_with_an_alarm_takes_no_message_and_goes_on_with_what_it_has() {
    const ALL: u32 = 200;
    let Some(mut driver) = Amqp::start() else { return };
    let rabbit = Arc::new(tokio::task::spawn_blocking(Rabbit::start).await.unwrap().unwrap());
    let script = async |what: &'static str| {
        let rabbit = Arc::clone(&rabbit);
        tokio::task::spawn_blocking(move || rabbit.server.script(what)).await.unwrap().unwrap();
    };
    driver.settings = Settings {
        shards: 2,
        connect_timeout: Duration::from_secs(2),
        confirm_timeout: Duration::from_secs(1),
        start_timeout: Duration::from_secs(60),
        ..settings(&rabbit.url())
    };
    let queue = driver.open().await;
    let publisher = queue.publisher();
    publisher.publish(numbered(0..ALL)).await.unwrap();
    let mut subscription = queue.subscribe(Unsettled { messages: 20, bytes: 1 << 20 }, BACKOFF).unwrap();
    let in_hand = take(&mut subscription, 10).await;

    script("do-alarm").await;
    let refused = async || publisher.publish(numbered(ALL..ALL + 1)).await.err().map(|error| error.to_string());
    until("a publisher does not hear of the alarm", async || {
        refused().await.is_some_and(|said| said.contains("memory or disk alarm and takes nothing"))
    })
    .await;
    // The other one tells the other processes that this one lives.
    until("two connections do not publish", async || connections(&rabbit, &driver.name).1 == 2).await;
    in_hand.into_iter().for_each(|delivery| delivery.token.ack());
    for _ in 10..ALL {
        next(&mut subscription).await.token.ack();
    }
    until_open("acks were not taken", &*queue, 0).await;
    for _ in 0..10 {
        assert!(refused().await.is_some(), "it was taken");
    }
    let (roles, _) = connections(&rabbit, &driver.name);
    assert_eq!(roles, ["looks", "members", "publisher", "source"], "some were left behind");

    script("do-calm").await;
    until("it takes nothing after the alarm", async || refused().await.is_none()).await;
    assert_eq!(number(&next(&mut subscription).await), ALL);
    end(subscription).await;
    script("stop").await;
}
