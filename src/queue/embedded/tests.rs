use std::time::Instant;

use super::super::delivery::ReasonKind;
use super::super::{Delivery, Filter, Reason};
use super::*;

pub(super) const DEADLINE: Duration = Duration::from_secs(30);
pub(super) const MANY: Unsettled = Unsettled { messages: 100_000, bytes: 64 << 20 };
pub(super) const BACKOFF: Backoff = Backoff { first: Duration::from_millis(5), most: Duration::from_millis(20) };

fn settings(segment_messages: u64) -> Settings {
    Settings {
        max_bytes: ByteSize::gib(2),
        retry_after: Duration::from_secs(5),
        linger: Duration::from_millis(1),
        max_batch: 4096,
        segment_messages,
        cache: ByteSize::mib(8),
    }
}

pub(super) fn store(folder: &std::path::Path) -> Store {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match Store::open(folder, 8 << 20) {
            Ok(store) => return store,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

pub(super) fn open(store: &Store, segment_messages: u64) -> Arc<EmbeddedQueue> {
    let metrics = Arc::new(Metrics::new());
    EmbeddedQueue::open(store, "reports", &settings(segment_messages), 65_536, metrics, "reports").unwrap()
}

pub(super) async fn publish(queue: &EmbeddedQueue, numbers: std::ops::Range<u32>, length: usize) {
    let body = |n: u32| {
        let mut body = n.to_be_bytes().to_vec();
        // Nothing that would shrink when it is compressed.
        let mut x = u64::from(n) + 1;
        body.resize_with(4 + length, || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) as u8
        });
        body
    };
    queue.publisher().publish(numbers.map(|n| Message::new("k", body(n))).collect()).await.unwrap();
}

fn number(delivery: &Delivery) -> u32 {
    u32::from_be_bytes(*delivery.message.body.first_chunk().unwrap())
}

async fn next(subscription: &mut Subscription) -> Delivery {
    tokio::time::timeout(DEADLINE, subscription.deliveries.recv()).await.expect("no delivery").expect("ended")
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handled_segments_are_dropped_whole_and_their_folders_go() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(temp.path());
    let queue = open(&store, 100);
    for start in (0..2000).step_by(250) {
        publish(&queue, start..start + 250, 10).await;
    }
    assert_eq!(queue.segments(), 20);
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let first = next(&mut subscription).await;
    for _ in 1..1950 {
        next(&mut subscription).await.token.ack();
    }
    assert_eq!(queue.segments(), 20, "a segment with an unfinished message went");
    first.token.ack();
    until("handled segments stay", || queue.segments() == 1).await;
    let folders = || std::fs::read_dir(temp.path().join("store/keyspaces")).unwrap().count();
    // The database's own, two of the queue, one segment.
    until("folders of dropped segments stay", || folders() == 4).await;
    assert_eq!(number(&next(&mut subscription).await), 1950);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_record_becomes_a_dead_letter_and_blocks_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(temp.path());
    let queue = open(&store, 100);
    publish(&queue, 0..3, 10).await;
    let segment = queue.log.segment_for(1, &mut 0).unwrap();
    segment.insert(1_u64.to_be_bytes(), &b"\x01rubbish"[..]).unwrap();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    for expected in [0, 2] {
        let delivery = next(&mut subscription).await;
        assert_eq!(number(&delivery), expected);
        delivery.token.ack();
    }
    until("the position waits for the damaged record", || queue.log.progress().position == 3).await;
    let letters = queue.dead_letters().list(Filter::default(), None, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(&letters[0].message.body[..], b"\x01rubbish");
    assert_eq!(letters[0].coordinates, "reports/0/1");
    assert_eq!(queue.log.metrics.rejected.with_label_values(&["malformed"]).get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_records_are_passed_over() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(temp.path());
    let queue = open(&store, 100);
    publish(&queue, 0..350, 10).await;
    let lost = queue.log.segment_for(100, &mut 0).unwrap();
    for sequence in 100_u64..200 {
        lost.remove(sequence.to_be_bytes()).unwrap();
    }
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    for expected in (0..100).chain(200..350) {
        let delivery = next(&mut subscription).await;
        assert_eq!(number(&delivery), expected);
        delivery.token.ack();
    }
    until("the position waits for missing records", || queue.log.progress().position == 350).await;
    publish(&queue, 350..351, 10).await;
    next(&mut subscription).await.token.ack();
    until("their bytes are never free again", || queue.log.unhandled() < 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_records_missing_do_not_hold_the_position() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(temp.path());
    let queue = open(&store, 100);
    publish(&queue, 0..3, 10).await;
    let segment = queue.log.segment_for(0, &mut 0).unwrap();
    for sequence in 0_u64..3 {
        segment.remove(sequence.to_be_bytes()).unwrap();
    }
    let _subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    until("the position waits for ever", || queue.log.progress().position == 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_is_given_back_by_a_caller_that_goes_away() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(temp.path());
    let queue = open(&store, 100);
    let room = Room::take(&queue.log, 500).unwrap();
    assert_eq!(queue.log.unhandled(), 500);
    drop(room);
    assert_eq!(queue.log.unhandled(), 0);
    let (publisher, message) = (queue.publisher(), vec![Message::new("k", "b")]);
    drop(publisher.publish(message));
    assert_eq!(queue.log.unhandled(), 0);
}

#[test]
fn nothing_is_taken_when_the_disk_is_short() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(temp.path());
    assert!(store.free_bytes().is_some());
    let metrics = Arc::new(Metrics::new());
    let bound = super::Bound { bytes: ByteSize::gib(2), setting: "queue.embedded.max_bytes" };
    let (mut log, _) = Log::open(&store, "reports", &settings(100), bound, metrics, "reports").unwrap();
    log.min_free = 0;
    assert!(log.reserve(1).is_ok());
    (log.min_free, log.disk) = (u64::MAX, Default::default());
    let refused = log.reserve(1).unwrap_err();
    assert!(matches!(refused, QueueError::Full { .. }) && refused.to_string().contains("data_dir"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_wait_while_the_disk_is_short_and_nothing_is_lost() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(temp.path());
    let queue = open(&store, 100);
    publish(&queue, 0..20, 10).await;
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    // A look at the disk that is not due for an hour.
    let look = |short| {
        let looked = Some(Instant::now() + Duration::from_secs(3600));
        *queue.log.disk.lock().unwrap() = super::room::Disk { looked, short };
    };
    look(true);
    let reason = Reason { kind: ReasonKind::Policy, text: "it failed".to_owned(), only: Vec::new(), attempts: 1 };
    for _ in 0..20 {
        next(&mut subscription).await.token.reject(reason.clone());
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(queue.log.dead.len().unwrap(), 0, "a dead letter was written to a disk that is short");
    assert_eq!(queue.log.progress().position, 0, "a rejected message is done and nowhere");
    look(false);
    until("dead letters are not tried again", || queue.log.progress().position == 20).await;
    assert_eq!(queue.log.dead.len().unwrap(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn depth_is_a_question_and_sets_no_gauge() {
    let temp = tempfile::tempdir().unwrap();
    let queue = open(&store(temp.path()), 100);
    publish(&queue, 0..3, 10).await;
    let shown = queue.log.metrics.queue_messages.with_label_values(&["reports"]);
    until("what was written is shown", || shown.get() == 3).await;
    shown.set(99);
    assert_eq!(queue.depth().await.unwrap().messages, 3);
    assert_eq!(shown.get(), 99, "two set the same gauge");
}

/// The size of a measurement: a million where figures are asked for (`TRACKALERT_TRIAL=full`), else enough to see it work.
fn messages() -> u32 {
    if std::env::var_os("TRACKALERT_TRIAL").is_some_and(|form| form == "full") { 1_000_000 } else { 50_000 }
}

/// A backlog of messages of 400 bytes, written, handed out, dropped; prints figures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backlog_is_written_handed_out_and_dropped() {
    let count = messages();
    let temp = tempfile::tempdir().unwrap();
    let store = store(temp.path());
    let queue = open(&store, u64::from(count / 10));
    let started = Instant::now();
    let publishers = (0..64).map(|p| {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move {
            for batch in (p..count / 100).step_by(64) {
                publish(&queue, batch * 100..batch * 100 + 100, 380).await;
            }
        })
    });
    for publisher in Vec::from_iter(publishers) {
        publisher.await.unwrap();
    }
    println!("written: {:.0}/s, segments {}", f64::from(count) / started.elapsed().as_secs_f64(), queue.segments());
    println!("on disk: {} MB", store.database().disk_space().unwrap() >> 20);
    let started = Instant::now();
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    for _ in 0..count {
        next(&mut subscription).await.token.ack();
    }
    println!("handed out: {:.0}/s", f64::from(count) / started.elapsed().as_secs_f64());
    until("segments stay", || queue.segments() == 1).await;
    until("the disk is not free", || store.database().disk_space().unwrap() < 200 << 20).await;
    println!("on disk: {} MB", store.database().disk_space().unwrap() >> 20);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default());
}

/// What stays on disk and in memory while the consumer keeps up; prints figures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_pass_through_and_the_journal_stays_small() {
    let count = 2 * messages();
    let temp = tempfile::tempdir().unwrap();
    let store = store(temp.path());
    let queue = open(&store, u64::from(count / 20));
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    let started = Instant::now();
    let publishers = (0..16).map(|p| {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move {
            for batch in (p..count / 100).step_by(16) {
                publish(&queue, batch * 100..batch * 100 + 100, 380).await;
            }
        })
    });
    let publishers = Vec::from_iter(publishers);
    let (mut most, mut journals) = (0, 0);
    for n in 0..count {
        next(&mut subscription).await.token.ack();
        if n % 10_000 == 0 {
            most = most.max(store.database().disk_space().unwrap() >> 20);
            journals = journals.max(store.database().journal_count());
        }
    }
    for publisher in publishers {
        publisher.await.unwrap();
    }
    println!(
        "{:.0}/s, most on disk {most} MB, journals {journals}",
        f64::from(count) / started.elapsed().as_secs_f64()
    );
    assert!(journals < 10 && most < 600, "the journal grows: {journals} files, {most} MB");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default());
}

#[tokio::test]
async fn id_that_is_longer_than_a_key_may_be_is_no_letters_and_ends_no_writer() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let queue = open(&store, 100);
    for id in ["x".repeat(65), "x".repeat(65_536), "x".repeat(3 << 20)] {
        assert!(!queue.dead_letters().drop_letter(id.clone()).await.unwrap());
        assert!(!queue.dead_letters().resend(id).await.unwrap());
    }
    publish(&queue, 0..1, 0).await;
}
