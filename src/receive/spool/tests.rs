//! The spool on a disk that stands still, which no real one does on demand; and its count of letters that were sent again.

use std::sync::atomic::AtomicBool;

use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::config::Config;
use crate::queue::{DeadLetters, Depth, Subscription, Unsettled, headers};

/// Writes when it is let. With what was in it at the start.
struct Disk(Arc<Semaphore>, u64);

impl Publisher for Disk {
    fn publish(&self, _: Vec<Message>) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move {
            drop(self.0.acquire().await);
            Ok(())
        })
    }
}

impl Queue for Disk {
    fn name(&self) -> &str {
        "spool"
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(Self(Arc::clone(&self.0), self.1))
    }

    fn subscribe(&self, _: Unsettled, _: Backoff) -> Result<Subscription, QueueError> {
        let (kept, deliveries) = mpsc::channel(1);
        let source = tokio::spawn(async move { kept.closed().await });
        Ok(Subscription { deliveries, pause: watch::channel(false).0, source })
    }

    fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        unreachable!("a spool asks for none")
    }

    fn depth(&self) -> BoxFuture<'_, Result<Depth, QueueError>> {
        Box::pin(async { Ok(Depth { messages: self.1, ..Depth::default() }) })
    }
}

/// Takes everything, unless it is down.
#[derive(Default)]
struct Broker {
    down: AtomicBool,
    has: Mutex<Vec<String>>,
}

impl Publisher for Broker {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), QueueError>> {
        let unavailable = || QueueError::Unavailable { queue: "reports".to_owned(), reason: "down".to_owned() };
        Box::pin(async move {
            if self.down.load(Ordering::Relaxed) {
                return Err(unavailable());
            }
            self.has.lock().unwrap().extend(messages.into_iter().map(|message| message.key));
            Ok(())
        })
    }
}

fn settings() -> Settings {
    let mut settings = Config::load_with(None, [], &[]).unwrap().receive;
    (settings.spool_after, settings.publish_timeout) = (Duration::from_millis(10), Duration::from_millis(50));
    settings
}

fn parts<'a>(settings: &'a Settings, target: &Arc<Broker>, store: Disk) -> Parts<'a> {
    Parts {
        settings,
        retry_first: Duration::from_millis(10),
        target: Arc::clone(target) as Arc<dyn Publisher>,
        store: Arc::new(store),
        takes: true,
        metrics: Arc::default(),
        health: Arc::default(),
    }
}

#[tokio::test]
async fn letter_that_was_sent_again_is_counted_once_whether_it_was_there_at_the_start_or_is_met_twice() {
    let (settings, broker, stop) = (settings(), Arc::new(Broker::default()), CancellationToken::new());
    let disk = || Disk(Arc::new(Semaphore::new(0)), 1);
    let (spool, tasks) = Spool::start(parts(&settings, &broker, disk()), stop.clone()).await.unwrap();
    let backoff = Backoff { first: Duration::from_millis(10), most: Duration::from_millis(10) };
    let carrier = Carrier::new(broker, backoff);
    let mut forwarder = forward::Forwarder::new(Arc::clone(&spool), Arc::new(disk()), 1, carrier, backoff);
    let mut letter = Message::new("ann", "{}");
    letter.headers.push((headers::ATTEMPTS.to_owned(), "1".to_owned()));
    let mut total_after = |sequence| {
        forwarder.meet(sequence, &letter);
        spool.books().total()
    };
    assert_eq!([total_after(7), total_after(8), total_after(8), total_after(9)], [1, 2, 2, 3]);
    stop.cancel();
    tasks.await.unwrap();
}

#[tokio::test]
async fn disk_that_stands_still_keeps_no_report_whose_sender_was_refused_and_none_from_a_broker_that_is_back() {
    let (settings, broker, writes) = (settings(), Arc::new(Broker::default()), Arc::new(Semaphore::new(0)));
    let (stop, patience) = (CancellationToken::new(), settings.publish_timeout);
    let disk = Disk(Arc::clone(&writes), 0);
    let (spool, tasks) = Spool::start(parts(&settings, &broker, disk), stop.clone()).await.unwrap();
    let send = async |login: &str| {
        let sent = spool.publish(vec![Message::new(login, "{}")]);
        tokio::time::timeout(patience, sent).await.is_ok_and(|done| done.is_ok())
    };
    broker.down.store(true, Ordering::Relaxed);
    for login in ["first", "second", "third"] {
        assert!(!send(login).await, "it is on no disk");
    }
    assert_eq!(spool.books().total(), 1, "the first one is being written, and nobody waits for the others");
    broker.down.store(false, Ordering::Relaxed);
    assert!(send("second").await, "the broker is not tried");
    assert!(!send("first").await, "it went past what is being written");
    assert_eq!(*broker.has.lock().unwrap(), ["second"]);
    writes.add_permits(1);
    stop.cancel();
    tasks.await.unwrap();
}
