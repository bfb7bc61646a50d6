//! What every queue owes, whatever driver stands behind it: the same cases, with the driver as a parameter.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where an answer is not what it must be")]

mod support;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::time::timeout;

use trackalert::queue::delivery::ReasonKind;
use trackalert::queue::{
    Backoff, Delivery, Filter, Message, Queue, QueueError, Reason, Subscription, Unsettled, headers,
};
use trackalert::report::Time;
use trackalert::telemetry::Metrics;

/// The cases that every driver must pass, and `more` of those that not every queue can have.
macro_rules! cases {
    ($driver:ident $(, $more:ident)*) => {
        cases!(@each $driver
            published_comes_out_in_order_with_all_its_parts
            finished_out_of_order_only_the_unfinished_rest_comes_again
            nacked_and_dropped_keep_their_place_and_come_again
            no_more_than_the_limit_is_unsettled
            paused_source_hands_nothing_out_and_takes_settlements
            second_subscription_takes_over_and_ignores_old_tokens
            aborted_source_leaves_the_unsettled_to_the_next
            rejected_is_listed_resent_and_dropped
            handled_backlog_goes_and_the_rest_is_still_there
            message_returned_forty_times_is_still_there
            receiver_that_goes_while_it_is_handed_to_ends_the_source
            $($more)*);
    };
    (@each $driver:ident $($case:ident)*) => {
        $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            let Some(driver) = $driver::start() else { return };
            $crate::$case(&driver).await;
        } )*
    };
}

#[cfg(feature = "amqp")]
#[path = "queue/amqp.rs"]
mod amqp;
#[path = "queue/embedded.rs"]
mod embedded;
#[cfg(feature = "kafka")]
#[path = "queue/kafka.rs"]
mod kafka;

const DEADLINE: Duration = Duration::from_secs(30);
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(5), most: Duration::from_millis(20) };
const MANY: Unsettled = Unsettled { messages: 10_000, bytes: 64 << 20 };

/// What a driver must offer to be tested.
trait Driver {
    /// Opens the queue, after everything of the last opening was dropped; with a bound of bytes.
    fn open_bounded(&self, max_bytes: u64) -> BoxFuture<'_, Arc<dyn Queue>>;
    fn metrics(&self) -> &Metrics;
    /// Whether the position is all that is stored, so that what is done behind something unfinished comes again.
    fn has_position_only(&self) -> bool {
        true
    }
    /// Whether these are the coordinates of the first message.
    fn is_first(&self, coordinates: &str, queue: &str) -> bool {
        coordinates == format!("{queue}/0/0")
    }

    fn open(&self) -> BoxFuture<'_, Arc<dyn Queue>> {
        self.open_bounded(1 << 30)
    }
}

fn numbered(numbers: std::ops::Range<u32>) -> Vec<Message> {
    numbers.map(|n| Message::new(format!("login{}", n % 7), n.to_string())).collect()
}

fn number(delivery: &Delivery) -> u32 {
    std::str::from_utf8(&delivery.message.body).unwrap().parse().unwrap()
}

async fn next(subscription: &mut Subscription) -> Delivery {
    timeout(DEADLINE, subscription.deliveries.recv()).await.expect("no delivery came").expect("the source ended")
}

async fn take(subscription: &mut Subscription, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.push(next(subscription).await);
    }
    taken
}

/// Drops the subscription and waits until its position is stored.
async fn end(subscription: Subscription) {
    let Subscription { deliveries, pause, source } = subscription;
    drop((deliveries, pause));
    timeout(DEADLINE, source).await.expect("the source did not end").unwrap();
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn until_open(what: &str, queue: &dyn Queue, messages: u64) {
    until(what, async || queue.depth().await.unwrap().messages == messages).await;
}

/// What the program has logged in this process.
static LOGGED: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOGGED.lock().unwrap_or_else(PoisonError::into_inner).extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn keep_the_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let log = tracing_subscriber::fmt().with_env_filter("off,trackalert=info").with_ansi(false);
        log.with_writer(|| Log).init();
    });
}

/// Whether one line of the log has all of these.
fn logged(parts: &[&str]) -> bool {
    let log = String::from_utf8_lossy(&LOGGED.lock().unwrap_or_else(PoisonError::into_inner)).into_owned();
    log.lines().any(|line| parts.iter().all(|part| line.contains(part)))
}

fn reason(only: &[&str]) -> Reason {
    let only = only.iter().map(|name| (*name).to_owned()).collect();
    Reason { kind: ReasonKind::Policy, text: "it failed three times".to_owned(), only, attempts: 3 }
}

async fn published_comes_out_in_order_with_all_its_parts(driver: &dyn Driver) {
    let queue = driver.open().await;
    let mut message = Message::new("anna", &b"\x00\xffbody"[..]);
    // A broker's own clock may know no more than milliseconds.
    message.published = Time::from_micros(message.published.micros() / 1000 * 1000);
    message.headers = vec![("a".to_owned(), "1".to_owned()), ("a".to_owned(), String::new())];
    queue.publisher().publish(vec![message.clone()]).await.unwrap();
    queue.publisher().publish(numbered(0..250)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let first = next(&mut subscription).await;
    assert_eq!(*first.message, message);
    assert_eq!(first.redelivered, 0);
    let rest = take(&mut subscription, 250).await;
    assert!(rest.iter().map(number).eq(0..250));
    let places: BTreeSet<_> = rest.iter().map(|delivery| delivery.coordinates.clone()).collect();
    assert_eq!(places.len(), 250);
    // Published while the source waits at the end.
    queue.publisher().publish(numbered(250..251)).await.unwrap();
    assert_eq!(number(&next(&mut subscription).await), 250);
}

async fn finished_out_of_order_only_the_unfinished_rest_comes_again(driver: &dyn Driver) {
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..300)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let mut kept = Vec::new();
    for delivery in take(&mut subscription, 300).await {
        // 150 stays open: what lies behind it comes again after a crash, what lies before it does not.
        if number(&delivery) == 150 { kept.push(delivery) } else { delivery.token.ack() }
    }
    until_open("the acks were not taken", &*queue, 150).await;
    drop(kept);
    end(subscription).await;
    drop(queue);
    let queue = driver.open().await;
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let unfinished = if driver.has_position_only() { 150..300 } else { 150..151 };
    let again = take(&mut subscription, unfinished.len()).await;
    assert!(again.iter().map(number).eq(unfinished));
    for delivery in again {
        delivery.token.ack();
    }
    end(subscription).await;
    until_open("the acks were not taken at the end", &*queue, 0).await;
    assert_eq!(queue.depth().await.unwrap().bytes, 0);
}

async fn nacked_and_dropped_keep_their_place_and_come_again(driver: &dyn Driver) {
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..3)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let mut deliveries = take(&mut subscription, 3).await;
    deliveries.pop().unwrap().token.ack();
    deliveries.pop().unwrap().token.nack();
    drop(deliveries);
    let mut again = take(&mut subscription, 2).await;
    again.sort_by_key(number);
    assert!(again.iter().map(number).eq(0..2));
    assert!(again.iter().all(|delivery| delivery.redelivered == 1));
    assert_eq!(queue.depth().await.unwrap().messages, 3, "a nacked message gave its place up");
    let second = again.pop().unwrap();
    again.pop().unwrap().token.ack();
    second.token.nack();
    let third = next(&mut subscription).await;
    assert_eq!((number(&third), third.redelivered), (1, 2));
    third.token.ack();
    end(subscription).await;
    assert_eq!(queue.depth().await.unwrap().messages, 0);
}

async fn no_more_than_the_limit_is_unsettled(driver: &dyn Driver) {
    let queue = driver.open().await;
    // Nine bytes each, with their keys.
    queue.publisher().publish(numbered(100..150)).await.unwrap();
    let mut subscription = queue.subscribe(Unsettled { messages: 10, bytes: 36 }, BACKOFF).unwrap();
    let mut taken = take(&mut subscription, 4).await;
    let early = timeout(Duration::from_millis(100), subscription.deliveries.recv()).await;
    assert!(early.is_err(), "all bytes are out, and there was more");
    taken.remove(2).token.ack();
    assert_eq!(number(&next(&mut subscription).await), 104);
}

async fn paused_source_hands_nothing_out_and_takes_settlements(driver: &dyn Driver) {
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..2)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let mut two = take(&mut subscription, 2).await;
    subscription.pause.send(true).unwrap();
    queue.publisher().publish(numbered(2..5)).await.unwrap();
    two.pop().unwrap().token.nack();
    two.pop().unwrap().token.ack();
    until_open("the ack was not taken", &*queue, 4).await;
    let early = timeout(Duration::from_millis(100), subscription.deliveries.recv()).await;
    assert!(early.is_err(), "a paused source handed something out");
    subscription.pause.send(false).unwrap();
    let mut rest: Vec<_> = take(&mut subscription, 4).await.iter().map(number).collect();
    rest.sort_unstable();
    assert_eq!(rest, [1, 2, 3, 4]);
}

async fn full_queue_refuses_and_takes_again_after_acks(driver: &dyn Driver) {
    let queue = driver.open_bounded(2000).await;
    let publisher = queue.publisher();
    let one = || vec![Message::new("k", vec![b'x'; 500])];
    let mut accepted = 0;
    let refused = loop {
        match publisher.publish(one()).await {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 10, "the bound was passed");
    };
    let wait = Duration::from_secs(3);
    assert!(matches!(refused, QueueError::Full { retry_after, .. } if retry_after == wait), "{refused}");
    assert!(accepted >= 3);
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    for delivery in take(&mut subscription, accepted).await {
        delivery.token.ack();
    }
    until("the queue stays full", async || publisher.publish(one()).await.is_ok()).await;
}

async fn too_large_is_refused_and_the_largest_is_taken(driver: &dyn Driver) {
    let queue = driver.open().await;
    let publisher = queue.publisher();
    let large = publisher.publish(vec![Message::new("k", vec![0; 10_001])]).await.unwrap_err();
    assert!(matches!(large, QueueError::TooLarge { size: 10_001, limit: 10_000, .. }), "{large}");
    publisher.publish(vec![Message::new("k", vec![7; 10_000])]).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    assert_eq!(next(&mut subscription).await.message.body.len(), 10_000);
}

async fn second_subscription_takes_over_and_ignores_old_tokens(driver: &dyn Driver) {
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..2)).await.unwrap();
    let mut first = queue.subscribe(MANY, BACKOFF).unwrap();
    let old = take(&mut first, 2).await;
    let mut second = queue.subscribe(MANY, BACKOFF).unwrap();
    timeout(DEADLINE, first.source).await.expect("the first source goes on").unwrap();
    assert!(first.deliveries.recv().await.is_none());
    let new = take(&mut second, 2).await;
    for delivery in old {
        delivery.token.ack();
    }
    until("stale acks were not counted", async || driver.metrics().stale_settlements.get() == 2).await;
    assert_eq!(queue.depth().await.unwrap().messages, 2, "an old token finished a message");
    for delivery in new {
        delivery.token.ack();
    }
    until_open("new acks were not taken", &*queue, 0).await;
}

async fn aborted_source_leaves_the_unsettled_to_the_next(driver: &dyn Driver) {
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..4)).await.unwrap();
    let mut first = queue.subscribe(MANY, BACKOFF).unwrap();
    let mut taken = take(&mut first, 4).await;
    taken.remove(0).token.ack();
    until_open("the ack was not taken", &*queue, 3).await;
    first.source.abort();
    let mut second = queue.subscribe(MANY, BACKOFF).unwrap();
    assert!(take(&mut second, 3).await.iter().map(number).eq(1..4));
}

async fn rejected_is_listed_resent_and_dropped(driver: &dyn Driver) {
    let queue = driver.open().await;
    queue.publisher().publish(numbered(0..3)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let only = [&["spray", "dormant"][..], &[], &["spray"]];
    for (delivery, only) in take(&mut subscription, 3).await.into_iter().zip(only) {
        delivery.token.reject(reason(only));
    }
    until("dead letters are missing", async || queue.depth().await.unwrap().dead == 3).await;
    until_open("rejected ones are not done", &*queue, 0).await;
    assert_eq!(driver.metrics().rejected.with_label_values(&["policy"]).get(), 3);
    end(subscription).await;
    drop(queue);

    let queue = driver.open().await;
    let dead = queue.dead_letters();
    let letters = dead.list(Filter::default(), None, 10).await.unwrap();
    assert_eq!(dead.list(Filter::default(), None, 10).await.unwrap(), letters, "looking changed something");
    assert_eq!(letters.len(), 3);
    let mut sorted = letters.clone();
    sorted.sort_by_key(|letter| letter.coordinates.clone());
    let [first, second, third] = &sorted[..] else { unreachable!("three of them") };
    assert_eq!(first.reason, reason(&["spray", "dormant"]));
    assert_eq!(&first.message.body[..], b"0");
    assert!(driver.is_first(&first.coordinates, queue.name()), "{}", first.coordinates);
    let after = dead.list(Filter::default(), Some(letters[0].id.clone()), 1).await.unwrap();
    assert_eq!(after, letters[1..2]);
    let spray = Filter { only: Some("spray".to_owned()), ..Filter::default() };
    assert_eq!(dead.list(spray, None, 10).await.unwrap().len(), 2);

    assert!(dead.drop_letter(second.id.clone()).await.unwrap());
    assert!(!dead.drop_letter(second.id.clone()).await.unwrap());
    let twice = tokio::join!(dead.resend(first.id.clone()), dead.resend(first.id.clone()));
    assert!(twice.0.unwrap() ^ twice.1.unwrap(), "a letter was sent twice, or not at all");
    assert_eq!(dead.list(Filter::default(), None, 10).await.unwrap(), std::slice::from_ref(third));
    assert_eq!(queue.depth().await.unwrap().dead, 1);
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let resent = next(&mut subscription).await;
    assert_eq!(resent.message.header(headers::ONLY), Some("spray,dormant"));
    assert_eq!(resent.message.header(headers::ATTEMPTS), Some("3"));
    assert_eq!(resent.message.published, first.message.published);
    assert_eq!(&resent.message.body[..], b"0");
    resent.token.reject(reason(&["spray"]));
    until("it is no dead letter again", async || queue.depth().await.unwrap().dead == 2).await;
    let letters = dead.list(Filter::default(), None, 10).await.unwrap();
    assert_eq!(letters.last().unwrap().reason.attempts, 6, "the attempts before it was sent again are forgotten");
}

async fn handled_backlog_goes_and_the_rest_is_still_there(driver: &dyn Driver) {
    let queue = driver.open().await;
    for start in (0..5000).step_by(500) {
        queue.publisher().publish(numbered(start..start + 500)).await.unwrap();
    }
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    for expected in 0..4950 {
        let delivery = next(&mut subscription).await;
        assert_eq!(number(&delivery), expected);
        delivery.token.ack();
    }
    until_open("acks were not taken", &*queue, 50).await;
    subscription.source.abort();
    drop((queue, subscription));
    let queue = driver.open().await;
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    assert!(take(&mut subscription, 50).await.iter().map(number).eq(4950..5000));
}

/// A broker that counts returns drops the message at some number, or takes it for dead.
async fn message_returned_forty_times_is_still_there(driver: &dyn Driver) {
    let queue = driver.open().await;
    queue.publisher().publish(numbered(7..8)).await.unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    for times in 0..40 {
        let delivery = next(&mut subscription).await;
        assert_eq!((number(&delivery), delivery.redelivered), (7, times));
        delivery.token.nack();
    }
    end(subscription).await;
    for times in 0..40 {
        let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
        let delivery = next(&mut subscription).await;
        assert_eq!(number(&delivery), 7);
        if times % 2 == 0 {
            // As by a process that ends in the middle of its work.
            subscription.source.abort();
            continue;
        }
        drop(delivery);
        end(subscription).await;
    }
    until_open("a message that was given back is gone", &*queue, 1).await;
    assert_eq!(queue.depth().await.unwrap().dead, 0);
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    next(&mut subscription).await.token.ack();
    until_open("the message that was given back is not taken", &*queue, 0).await;
}

async fn receiver_that_goes_while_it_is_handed_to_ends_the_source(driver: &dyn Driver) {
    let queue = driver.open().await;
    for start in (0..4000).step_by(500) {
        queue.publisher().publish(numbered(start..start + 500)).await.unwrap();
    }
    // The moment is short: a source that is quick is missed by most rounds.
    let (began, mut rounds) = (Instant::now(), 0);
    while rounds < 10 || began.elapsed() < Duration::from_secs(8) {
        rounds += 1;
        let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
        // Taken as fast as they come, so that nothing lies in the channel when the other end goes in the middle of the next one: what is
        // sent at that moment must come back to the source.
        let (mut taken, deadline) = (Vec::new(), Instant::now() + DEADLINE);
        while taken.len() < 200 {
            taken.extend(subscription.deliveries.try_recv());
            assert!(Instant::now() < deadline, "no delivery came");
        }
        let Subscription { deliveries, pause, source } = subscription;
        drop(deliveries);
        drop((pause, taken));
        timeout(DEADLINE, source).await.expect("the source did not end").unwrap();
    }
    until_open("messages are missing", &*queue, 4000).await;
}
