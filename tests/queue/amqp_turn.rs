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
    end(after).await;
}
