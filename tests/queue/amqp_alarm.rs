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
    let (queue, other) = (driver.open().await, driver.open().await);
    let publisher = queue.publisher();
    publisher.publish(numbered(0..ALL)).await.unwrap();
    let few = Unsettled { messages: 20, bytes: 1 << 20 };
    let (mut stays, mut goes) = (queue.subscribe(few, BACKOFF).unwrap(), other.subscribe(few, BACKOFF).unwrap());
    // Each has a shard.
    let in_hand = [next(&mut stays).await, next(&mut goes).await];

    script("do-alarm").await;
    let refused = async || publisher.publish(numbered(ALL..ALL + 1)).await.err().map(|error| error.to_string());
    until("a publisher does not hear of the alarm", async || {
        refused().await.is_some_and(|said| said.contains("memory or disk alarm and takes nothing"))
    })
    .await;
    // Over two more they tell each other that they live.
    until("three connections are read from", async || connections(&rabbit, &driver.name).1 == 3).await;
    let mut handled: BTreeSet<u32> = in_hand.iter().map(number).collect();
    in_hand.into_iter().for_each(|delivery| delivery.token.ack());
    end(goes).await;
    drop(other);
    // Not by the depth: what is on its way from the broker is neither there nor here.
    until("what there is was not handled", async || {
        while let Ok(delivery) = stays.deliveries.try_recv() {
            handled.insert(number(&delivery));
            delivery.token.ack();
        }
        handled.len() == ALL as usize
    })
    .await;
    until("the depth is not told", async || queue.depth().await.unwrap().messages == 0).await;
    for _ in 0..10 {
        assert!(refused().await.is_some(), "it was taken");
    }
    let ours = async || connections(&rabbit, &driver.name).0 == ["looks", "members", "publisher", "source"];
    until("some connections were left behind", ours).await;

    script("do-calm").await;
    until("it takes nothing after the alarm", async || refused().await.is_none()).await;
    assert_eq!(number(&next(&mut stays).await), ALL);
    end(stays).await;
    script("stop").await;
}
