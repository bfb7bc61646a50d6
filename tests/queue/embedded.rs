//! The cases of `tests/queue.rs` on the queue in the data folder, and a kill of the process that has it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::*;
use trackalert::queue::embedded::{EmbeddedQueue, Settings};
use trackalert::store::Store;

struct Embedded {
    folder: tempfile::TempDir,
    metrics: Arc<Metrics>,
}

impl Embedded {
    fn start() -> Option<Self> {
        Some(Self { folder: tempfile::tempdir().unwrap(), metrics: Arc::new(Metrics::new()) })
    }
}

fn open_embedded(folder: &Path, max_bytes: u64, metrics: Arc<Metrics>) -> Arc<EmbeddedQueue> {
    // Threads of the last opening may still be on their way out.
    let deadline = Instant::now() + DEADLINE;
    let store = loop {
        match Store::open(folder, 8 << 20) {
            Ok(store) => break store,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    let settings = Settings {
        max_bytes: bytesize::ByteSize(max_bytes),
        retry_after: Duration::from_secs(3),
        linger: Duration::from_millis(1),
        max_batch: 1000,
        segment_messages: 100,
        cache: bytesize::ByteSize::mib(8),
    };
    EmbeddedQueue::open(&store, "reports", &settings, 10_000, metrics, "reports").unwrap()
}

impl Driver for Embedded {
    fn open_bounded(&self, max_bytes: u64) -> BoxFuture<'_, Arc<dyn Queue>> {
        let (folder, metrics) = (self.folder.path().to_owned(), Arc::clone(&self.metrics));
        Box::pin(async move {
            let open = move || -> Arc<dyn Queue> { open_embedded(&folder, max_bytes, metrics) };
            tokio::task::spawn_blocking(open).await.unwrap()
        })
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

cases!(Embedded, full_queue_refuses_and_takes_again_after_acks, too_large_is_refused_and_the_largest_is_taken);

/// The folder in which the child of the crash test publishes.
const CHILD: &str = "TRACKALERT_TEST_QUEUE_CHILD";

/// Publishes for ever and prints each number that is answered; takes all and acks the first 500.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other half of answered_survives_sigkill, which starts it"]
async fn child_that_publishes_until_it_is_killed() {
    let folder = PathBuf::from(std::env::var_os(CHILD).expect("started by answered_survives_sigkill only"));
    let queue = open_embedded(&folder, 1 << 30, Arc::new(Metrics::new()));
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    for n in 0.. {
        queue.publisher().publish(numbered(n * 10..n * 10 + 10)).await.unwrap();
        println!("answered {}", n * 10 + 9);
        for delivery in take(&mut subscription, 10).await {
            if number(&delivery) < 500 { delivery.token.ack() } else { std::mem::forget(delivery) }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answered_survives_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "embedded::child_that_publishes_until_it_is_killed", "--ignored", "--nocapture"])
        .env(CHILD, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut answered, mut killed) = (0, false);
    // After the kill the pipe still holds what the child said before: all of that must be kept.
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        if let Some(number) = line.strip_prefix("answered ").and_then(|number| number.parse::<u32>().ok()) {
            answered = number;
        }
        if answered >= 1500 && !killed {
            child.kill().unwrap();
            killed = true;
        }
    }
    assert!(!child.wait().unwrap().success() && killed, "the child ended by itself");
    let queue = open_embedded(folder.path(), 1 << 30, Arc::new(Metrics::new()));
    let mut subscription = queue.subscribe(MANY, BACKOFF).unwrap();
    // All are kept: one that is dropped would come again between the others.
    let all = take(&mut subscription, answered as usize + 1 - 500).await;
    assert_eq!(number(&all[0]), 500, "the stored position is too old although much was written since, or too far");
    assert!(all.iter().map(number).eq(500..=answered));
}
