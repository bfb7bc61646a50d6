//! A process that comes back while the broker still has the channel of the one before.

use super::start::through_proxy;
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
    until_taker_has_turn(&driver).await;
    end(after).await;
}

/// What is asked and answered for it takes seconds there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turn_that_was_given_up_is_taken_from_a_broker_far_away_too() {
    let Some(mut driver) = Amqp::start() else { return };
    let Some(proxy) = through_proxy(&mut driver) else { return };
    driver.settings.predecessor_timeout = Duration::from_secs(1);
    let (before, _in_hand, mut after) = two_of_one_process(&driver).await;
    assert_eq!(number(&next(&mut after).await), 10);
    let far = proxy.delay(Duration::from_millis(800));
    before.source.abort();
    until_taker_has_turn(&driver).await;
    drop(far);
    end(after).await;
}

/// The channels that take from a queue, as the broker's own tools name them.
fn channels(driver: &Amqp, queue: &str) -> Vec<String> {
    let asked = driver.asked(queue);
    let consumers = asked["consumer_details"].as_array().cloned().unwrap_or_default();
    consumers.iter().filter_map(|consumer| Some(consumer["channel_details"]["name"].as_str()?.to_owned())).collect()
}

async fn until_taker_has_turn(driver: &Amqp) {
    let turn = format!("{}.process.one", driver.name);
    until("the channel that takes does not have the turn", async || {
        let of_turn = channels(driver, &turn);
        of_turn.len() == 1 && of_turn == channels(driver, &driver.name)
    })
    .await;
}

/// At its end a source subscribes a second time, to hear that its acks are done: what comes to that must not go back first. How the
/// two sort depends on a name that is made at random.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ended_sources_had_in_hand_comes_again_in_its_old_order() {
    let Some(driver) = Amqp::start() else { return };
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..40)).await.unwrap();
    for round in 0..40 {
        let mut subscription = queue.subscribe(FEW, BACKOFF).unwrap();
        let in_hand = take(&mut subscription, 10).await;
        assert_eq!(in_hand.iter().map(number).collect::<Vec<_>>(), Vec::from_iter(0..10), "round {round}");
        subscription.source.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn report_that_an_ended_source_has_not_finished_comes_before_what_followed_it() {
    let Some(driver) = Amqp::start() else { return };
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..6)).await.unwrap();
    let mut subscription = queue.subscribe(FEW, BACKOFF).unwrap();
    let mut in_hand = take(&mut subscription, 6).await;
    let (_unfinished, last) = (in_hand.remove(0), in_hand.pop().unwrap());
    in_hand.into_iter().for_each(|delivery| delivery.token.ack());
    last.token.nack();
    // When the last one comes again, the source has heard of the acks, too.
    let _last = next(&mut subscription).await;
    subscription.source.abort();
    let mut after = queue.subscribe(MANY, BACKOFF).unwrap();
    let numbers: Vec<u32> = take(&mut after, 2).await.iter().map(number).collect();
    assert_eq!(numbers, [0, 5]);
}

/// Each ack is room for one more, which may be on its way in the moment of a pause: with a broken policy pauses come by the second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pauses_under_a_backlog_keep_its_order() {
    let Some(driver) = Amqp::start() else { return };
    let (queue, other) = (driver.open().await, driver.open().await);
    queue.publisher().publish(numbered(0..400)).await.unwrap();
    let mut subscription = queue.subscribe(FEW, BACKOFF).unwrap();
    let mut came = Vec::new();
    while came.len() < 400 {
        let taken = take(&mut subscription, 5).await;
        came.extend(taken.iter().map(number));
        subscription.pause.send(true).unwrap();
        taken.into_iter().for_each(|delivery| delivery.token.ack());
        // The paused source has as many again, and no more. The other one has nothing in hand: it sees what the broker has.
        let left = 400_u64.saturating_sub(came.len() as u64 + 10);
        until("the prefetch is not filled", async || other.depth().await.unwrap().messages <= left).await;
        assert_eq!(other.depth().await.unwrap().messages, left, "the paused source has taken more than its limit");
        subscription.pause.send(false).unwrap();
    }
    assert_eq!(came, Vec::from_iter(0..400));
    end(subscription).await;
}

/// Why a pause keeps its consumer. Of the broker alone: one in which this fails may be left at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_its_way_to_a_cancelled_consumer_comes_after_all_that_follows_it() {
    use futures_util::StreamExt;
    use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
    use lapin::types::FieldTable;
    let Some(driver) = Amqp::start() else { return };
    let publisher = driver.open().await.publisher();
    let url = driver.rabbit.url();
    let connection = lapin::Connection::connect(&url, lapin::ConnectionProperties::default()).await.unwrap();
    // On a slow machine it may all have arrived before the consumer goes.
    for _round in 0..20 {
        publisher.publish(numbered(0..200)).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let consume = async |tag: &str, prefetch: u16| {
            channel.basic_qos(prefetch, BasicQosOptions::default()).await.unwrap();
            let (queue, options) = (driver.name.as_str().into(), BasicConsumeOptions::default());
            let consumer = channel.basic_consume(queue, tag.into(), options, FieldTable::default()).await.unwrap();
            let body = |came: lapin::Result<lapin::message::Delivery>| String::from_utf8(came.unwrap().data).unwrap();
            consumer.map(move |came| body(came).parse::<u32>().unwrap())
        };
        let mut first = consume("first", 50).await;
        let mut came: Vec<u32> = timeout(DEADLINE, first.by_ref().take(50).collect()).await.unwrap();
        // Room for 25 more.
        let ack = channel.basic_ack(25, BasicAckOptions { multiple: true });
        let cancel = channel.basic_cancel("first".into(), BasicCancelOptions::default());
        let (acked, cancelled) = tokio::join!(ack, cancel);
        acked.and(cancelled).unwrap();
        came.extend(timeout(DEADLINE, first.collect::<Vec<_>>()).await.unwrap());
        let rest = consume("second", 200).await.take(200 - came.len());
        came.extend(timeout(DEADLINE, rest.collect::<Vec<_>>()).await.unwrap());
        if !came.is_sorted() {
            return connection.close(200, "done".into()).await.unwrap();
        }
        channel.basic_ack(0, BasicAckOptions { multiple: true }).await.unwrap();
        channel.close(200, "done".into()).await.unwrap();
    }
    panic!("this broker keeps the order");
}

/// Its last acks are room for more while it asks whether they are done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_while_a_source_ends_goes_back_to_its_old_place() {
    let Some(driver) = Amqp::start() else { return };
    let queue = driver.open().await;
    // With so many the queue has more than what may be in hand, until the end; or less.
    for (round, all) in [300, 300, 110, 110].into_iter().cycle().take(20).enumerate() {
        queue.publisher().publish(numbered(0..all)).await.unwrap();
        let mut subscription = queue.subscribe(Unsettled { messages: 100, bytes: 1 << 20 }, BACKOFF).unwrap();
        let mut in_hand = take(&mut subscription, 100).await;
        let unfinished = in_hand.remove(0);
        // Fewer than would be acked one by one before the end.
        in_hand.drain(..45).for_each(|delivery| delivery.token.ack());
        // The source hears of this one after those.
        in_hand.pop().unwrap().token.nack();
        let _again = next(&mut subscription).await;
        if round % 2 == 0 {
            subscription.source.abort();
        } else {
            drop((unfinished, in_hand, _again));
            end(subscription).await;
        }
        let mut after = queue.subscribe(MANY, BACKOFF).unwrap();
        let rest = take(&mut after, all as usize - 45).await;
        let numbers: Vec<u32> = rest.iter().map(number).collect();
        assert!(numbers.iter().copied().eq(std::iter::once(0).chain(46..all)), "round {round}: {numbers:?}");
        rest.into_iter().for_each(|delivery| delivery.token.ack());
        end(after).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_under_a_stream_is_not_held_up_and_keeps_the_order() {
    const EACH: usize = 200;
    // More than comes in the time that an end may take.
    const ROOM: Unsettled = Unsettled { messages: 60_000, bytes: 1 << 30 };
    let Some(driver) = Amqp::start() else { return };
    keep_the_log();
    let queue = driver.open().await;
    let publisher = queue.publisher();
    let stream = tokio::spawn(async move {
        for first in (0..).step_by(10) {
            publisher.publish(numbered(first..first + 10)).await.unwrap();
        }
    });
    let mut follows = 1;
    for _ in 0..10 {
        let mut subscription = queue.subscribe(ROOM, BACKOFF).unwrap();
        let mut came = take(&mut subscription, EACH).await;
        let numbers: Vec<u32> = came.iter().map(number).collect();
        assert!(numbers.iter().copied().eq(std::iter::once(0).chain(follows..).take(EACH)), "{follows}: {numbers:?}");
        follows += EACH as u32 - 1;
        came.drain(1..).for_each(|delivery| delivery.token.ack());
        drop(came);
        end(subscription).await;
    }
    stream.abort();
    assert!(!logged(&[&driver.name, "the last acks"]), "they were not waited for");
}

/// The broker takes a consumer of a queue of this kind away first, and hands what a quorum queue has given out back a moment later. Here
/// that moment lasts until the first one ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_whose_turn_is_free_before_the_deliveries_are_back_waits_for_them() {
    let Some(driver) = Amqp::start() else { return };
    keep_the_log();
    let (first, second) = (driver.try_open_as("one").await.unwrap(), driver.try_open_as("one").await.unwrap());
    first.publisher().publish(numbered(0..20)).await.unwrap();
    let mut before = first.subscribe(FEW, BACKOFF).unwrap();
    let _in_hand = take(&mut before, 10).await;
    let turn = format!("{}.process.one", driver.name);
    driver.rabbit.delete(&turn);
    let mut after = second.subscribe(MANY, BACKOFF).unwrap();
    until("it does not wait", async || logged(&[&driver.name, "is not back yet"])).await;
    before.source.abort();
    let numbers: Vec<u32> = take(&mut after, 20).await.iter().map(number).collect();
    assert_eq!(numbers, Vec::from_iter(0..20));
    end(after).await;
}

/// A connection ends before its channels do, and what they had in hand goes back with the channels.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turn_is_of_the_channel_that_has_the_deliveries_and_not_of_its_connection() {
    let Some(driver) = Amqp::start() else { return };
    let queue = driver.try_open_as("one").await.unwrap();
    queue.publisher().publish(numbered(0..1)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    next(&mut subscription).await.token.ack();
    until_taker_has_turn(&driver).await;
    end(subscription).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_who_may_not_make_the_queue_of_the_turn_takes_without_it() {
    takes_without_a_turn("maker", r#"{ "configure": "^(?!.*[.]process[.])", "write": ".*", "read": ".*" }"#).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_who_may_not_take_from_the_queue_of_the_turn_takes_without_it() {
    takes_without_a_turn("taker", r#"{ "configure": ".*", "write": ".*", "read": "^(?!.*[.]process[.])" }"#).await;
}

async fn takes_without_a_turn(user: &str, rights: &str) {
    let Some(mut driver) = Amqp::start() else { return };
    keep_the_log();
    let made = driver.rabbit.manage("PUT", &format!("users/{user}"), r#"{ "password": "narrow", "tags": "" }"#);
    assert_eq!(made, (201, serde_json::Value::Null));
    assert_eq!(driver.rabbit.manage("PUT", &format!("permissions/%2F/{user}"), rights).0, 201);
    driver.settings.url = Secret::from(driver.rabbit.url().replace("guest:guest", &format!("{user}:narrow")));
    let queue = driver.try_open().await.unwrap();
    queue.publisher().publish(numbered(0..1)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    assert_eq!(number(&next(&mut subscription).await), 0);
    assert!(logged(&[&format!("{}.process.", driver.name), "cannot be had"]));
    end(subscription).await;
}
