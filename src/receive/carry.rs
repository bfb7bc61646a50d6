//! Messages on their way from one queue into another: in their order, many at a time, each done only when the other queue has it.
//!
//! Owns the place of what is on its way. What the other queue does not confirm stays at the head and is tried again for ever; only what
//! is too large for it leaves the way, as a dead letter, because it would hold up all behind it for ever.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::queue::{AckToken, Backoff, Message, Publisher, QueueError, Reason, ReasonKind};

/// The most messages, and about the most bytes, in one publish.
const MOST: usize = 1000;
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// How long the publish that is under way at the end may still take: what it has given to the broker need not come twice.
const LAST: Duration = Duration::from_secs(2);

/// One message on its way.
pub(super) struct Carried {
    /// As it is to be published.
    pub(super) message: Message,
    /// Of the queue that it comes from.
    pub(super) token: AckToken,
    /// Where it stood there, for people.
    pub(super) coordinates: String,
}

/// What became of one step.
pub(super) enum Step {
    /// These keys' messages are confirmed, and acked.
    Done(Vec<String>),
    /// A message of this key is too large for the other queue, and is a dead letter now.
    TooLarge(String),
    /// Nothing is done; the next step waits before it tries again.
    Failed(QueueError),
    /// The program stops, or the other queue is closed for good.
    Over,
}

/// See the module.
pub(super) struct Carrier {
    target: Arc<dyn Publisher>,
    backoff: Backoff,
    waiting: VecDeque<Carried>,
    /// How many the next publish has. One after a failure: of many, nobody says which of them the other queue has, so all of them come
    /// twice there.
    batch: usize,
    failures: u32,
    /// Before the next publish.
    wait: Option<Duration>,
}

impl Carrier {
    pub(super) fn new(target: Arc<dyn Publisher>, backoff: Backoff) -> Self {
        Self { target, backoff, waiting: VecDeque::new(), batch: MOST, failures: 0, wait: None }
    }

    /// Puts one behind all others.
    pub(super) fn push(&mut self, carried: Carried) {
        self.waiting.push_back(carried);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Gives everything back to the queue that it comes from.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// How many more it is reasonable to take along.
    pub(super) fn room(&self) -> usize {
        MOST.saturating_sub(self.waiting.len())
    }

    /// Publishes what stands at the head, after the wait for the last failure. A publish that is under way when the program stops has a
    /// little time more; given up then, nothing is done, and some of it may come twice.
    pub(super) async fn step(&mut self, stop: &CancellationToken) -> Step {
        if let Some(wait) = self.wait.take() {
            tokio::select! {
                () = sleep(wait) => {}
                () = stop.cancelled() => return Step::Over,
            }
        }
        let stopped = async {
            stop.cancelled().await;
            sleep(LAST).await;
        };
        tokio::select! {
            biased;
            step = self.publish() => step,
            () = stopped => Step::Over,
        }
    }

    /// How long it takes is bounded by the driver of the other queue: given up earlier and tried again, each message would stand there
    /// once a try.
    async fn publish(&mut self) -> Step {
        let messages = self.head();
        let count = messages.len();
        if count == 0 {
            return Step::Done(Vec::new());
        }
        match self.target.publish(messages).await {
            Ok(()) => {
                self.failures = 0;
                self.batch = (self.batch * 2).min(MOST);
                Step::Done(self.waiting.drain(..count).map(Carried::ack).collect())
            }
            Err(error @ QueueError::TooLarge { .. }) if count == 1 => self.bury(&error),
            Err(QueueError::TooLarge { .. }) => {
                self.batch = 1;
                Step::Done(Vec::new())
            }
            Err(QueueError::Closed(_)) => Step::Over,
            Err(error) => {
                self.batch = 1;
                self.failures = self.failures.saturating_add(1);
                self.wait = Some(self.backoff.wait(self.failures, rand::random()));
                Step::Failed(error)
            }
        }
    }

    fn head(&self) -> Vec<Message> {
        let mut bytes = 0;
        let fits = |carried: &&Carried| {
            let first = bytes == 0;
            bytes += carried.message.size();
            first || bytes <= MOST_BYTES
        };
        self.waiting.iter().take(self.batch).take_while(fits).map(|carried| carried.message.clone()).collect()
    }

    /// Tried again it would be refused again, and nothing behind it would ever arrive.
    fn bury(&mut self, error: &QueueError) -> Step {
        let Some(Carried { message, token, coordinates }) = self.waiting.pop_front() else {
            return Step::Done(Vec::new());
        };
        tracing::error!(coordinates, %error, "a report is too large for its queue and is a dead letter of the one that it comes from");
        let text = format!("{error}; raise the limit there, then send it again");
        token.reject(Reason { kind: ReasonKind::Malformed, text, only: Vec::new(), attempts: 1 });
        Step::TooLarge(message.key)
    }
}

impl Carried {
    fn ack(self) -> String {
        self.token.ack();
        self.message.key
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use futures_util::future::BoxFuture;
    use tokio::sync::mpsc;

    use super::*;
    use crate::queue::{Settlement, Tag};

    /// Takes messages of up to ten bytes; fails as often as it is told to.
    #[derive(Default)]
    struct Target {
        calls: Mutex<Vec<Vec<String>>>,
        failures: Mutex<u32>,
    }

    impl Publisher for Target {
        fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), QueueError>> {
            let bodies = messages.iter().map(|message| message.key.clone()).collect();
            self.calls.lock().unwrap().push(bodies);
            let large = messages.iter().find(|message| message.body.len() > 10);
            let size = large.map(|message| message.body.len());
            let mut failures = self.failures.lock().unwrap();
            let failed = *failures > 0;
            *failures = failures.saturating_sub(1);
            Box::pin(async move {
                match size {
                    _ if failed => Err(QueueError::Unavailable { queue: "q".to_owned(), reason: "down".to_owned() }),
                    Some(size) => Err(QueueError::TooLarge { queue: "q".to_owned(), size, limit: 10 }),
                    None => Ok(()),
                }
            })
        }
    }

    #[tokio::test]
    async fn order_is_kept_after_a_failure_one_goes_ahead_and_what_is_too_large_leaves_the_way() {
        let target = Arc::new(Target { failures: Mutex::new(2), ..Target::default() });
        let backoff = Backoff { first: Duration::from_millis(10), most: Duration::from_millis(40) };
        let mut carrier = Carrier::new(Arc::clone(&target) as Arc<dyn Publisher>, backoff);
        let (settlements, mut settled) = mpsc::unbounded_channel();
        for (sequence, size) in [1, 1, 50, 1, 1].into_iter().enumerate() {
            let tag = Tag { lane: 0, generation: 0, sequence: sequence as u64 };
            let token = AckToken::new(tag, settlements.clone());
            let message = Message::new(sequence.to_string(), vec![b'x'; size]);
            carrier.push(Carried { message, token, coordinates: String::new() });
        }
        let (mut done, mut failed, mut large) = (Vec::new(), 0, Vec::new());
        let began = Instant::now();
        while !carrier.is_empty() {
            match carrier.step(&CancellationToken::new()).await {
                Step::Done(keys) => done.extend(keys),
                Step::TooLarge(key) => large.push(key),
                Step::Failed(_) => failed += 1,
                Step::Over => panic!("it is open"),
            }
        }
        assert_eq!((done, large), (["0", "1", "3", "4"].map(str::to_owned).to_vec(), vec!["2".to_owned()]));
        assert_eq!(failed, 2);
        assert!(began.elapsed() >= Duration::from_millis(10), "it did not wait after a failure");
        let calls = target.calls.lock().unwrap();
        assert_eq!(calls[0].len(), 5);
        assert_eq!(calls[1..3], [["0"], ["0"]], "after a failure the head alone is tried");
        for sequence in 0..5 {
            let (tag, settlement) = settled.try_recv().unwrap();
            assert_eq!(tag.sequence, sequence);
            assert_eq!(matches!(settlement, Settlement::Reject(_)), sequence == 2);
        }
    }
}
