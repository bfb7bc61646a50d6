//! A process that comes back while the broker still has the connection of the one before.

use super::start::{keep_the_log, logged};
use super::*;

const FEW: Unsettled = Unsettled { messages: 10, bytes: 1 << 20 };

/// The first of two has ten of twenty in hand. Gives it with them, and the second.
async fn two_of_one_process(driver: &Amqp) -> (Subscription, Vec<Delivery>, Subscription) {
    keep_the_log();
    let (first, second) = (driver.try_open_as("one").await.unwrap(), driver.try_open_as("one").await.unwrap());
    first.publisher().publish(numbered(0..20)).await.unwrap();
    let mut before = first.subscribe(FEW, BACKOFF).unwrap();
    let in_hand = take(&mut before, 10).await;
    (before, in_hand, second.subscribe(MANY, BACKOFF).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_that_comes_back_gets_what_its_last_connection_had_in_hand_first() {
    let Some(driver) = Amqp::start() else { return };
    let (before, _in_hand, mut after) = two_of_one_process(&driver).await;
    until("it does not wait", async || logged(&[&driver.name, "predecessor_timeout", "trying again"])).await;
    assert!(after.deliveries.is_empty(), "it has taken what follows first");
    before.source.abort();
    let numbers: Vec<u32> = take(&mut after, 20).await.iter().map(number).collect();
    assert_eq!(numbers, Vec::from_iter(0..20));
    end(after).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_that_never_ends_is_waited_for_no_longer_than_is_set() {
    let Some(mut driver) = Amqp::start() else { return };
    driver.settings.predecessor_timeout = Duration::from_secs(1);
    let (before, _in_hand, mut after) = two_of_one_process(&driver).await;
    assert_eq!(number(&next(&mut after).await), 10);
    assert!(logged(&[&driver.name, "is handled late"]));
    before.source.abort();
    // It is the one to be waited for from then on.
    let turn = format!("{}.process.one", driver.name);
    until("the queue of the first one stays", async || driver.asked(&turn)["name"].is_null()).await;
    until("the second one never has its turn", async || driver.asked(&turn)["name"].is_string()).await;
    end(after).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_without_a_right_to_the_queue_of_the_turn_takes_without_it() {
    let Some(mut driver) = Amqp::start() else { return };
    keep_the_log();
    let rights = r#"{ "configure": "^(?!.*[.]process[.])", "write": ".*", "read": ".*" }"#;
    let made = driver.rabbit.manage("PUT", "users/narrow", r#"{ "password": "narrow", "tags": "" }"#);
    assert_eq!(made, (201, serde_json::Value::Null));
    assert_eq!(driver.rabbit.manage("PUT", "permissions/%2F/narrow", rights).0, 201);
    driver.settings.url = Secret::from(driver.rabbit.url().replace("guest:guest", "narrow:narrow"));
    let queue = driver.try_open().await.unwrap();
    queue.publisher().publish(numbered(0..1)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    assert_eq!(number(&next(&mut subscription).await), 0);
    assert!(logged(&[&driver.name, "cannot be made"]));
    end(subscription).await;
}
