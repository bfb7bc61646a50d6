//! A queue on a broker that need not be there yet: it is opened beside the running program, and says "unavailable" until that is done.
//!
//! Owns the opening, and telling a broker that does not answer (tried again for ever) from one that refuses (the program ends with what
//! it said). For the bridge only: it accepts reports into its spool meanwhile, and a restart of it during an outage must lose none.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::StartError;
use crate::queue::{
    Backoff, DeadLetter, DeadLetters, Depth, Filter, Message, Publisher, Queue, QueueError, Subscription, Unsettled,
};

/// The longest wait between two tries to open; an outage may be over at any moment.
const MOST: Duration = Duration::from_secs(5);

/// Why a queue was not opened.
pub(super) enum Failure {
    /// Its broker does not answer; it may later.
    Unreachable(String),
    /// A person has to mend something first.
    Refused(String),
}

impl Failure {
    pub(super) fn into_start(self) -> StartError {
        match self {
            Self::Unreachable(said) | Self::Refused(said) => StartError::Settings(said),
        }
    }
}

#[derive(Clone)]
enum State {
    Opening(String),
    Open(Arc<dyn Queue>),
    Refused(String),
}

/// See the module.
pub(super) struct Late {
    name: String,
    state: watch::Receiver<State>,
}

impl Late {
    /// Begins to open it. The thread is one that nobody waits for: a client library may take minutes to give up.
    pub(super) fn start(
        name: &str,
        backoff: Backoff,
        open: impl Fn() -> Result<Arc<dyn Queue>, Failure> + Send + 'static,
    ) -> Result<Arc<Self>, StartError> {
        let (sender, state) =
            watch::channel(State::Opening("the broker has not served it since the start; the log says why".to_owned()));
        let called = name.to_owned();
        std::thread::Builder::new()
            .name("open-queue".to_owned())
            .spawn(move || open_some_time(&called, backoff, &open, &sender))
            .map_err(|error| StartError::Settings(format!("a thread could not be started: {error}")))?;
        Ok(Arc::new(Self { name: name.to_owned(), state }))
    }

    fn queue(&self) -> Result<Arc<dyn Queue>, QueueError> {
        let unavailable = |reason| QueueError::Unavailable { queue: self.name.clone(), reason };
        match &*self.state.borrow() {
            State::Open(queue) => Ok(Arc::clone(queue)),
            State::Opening(said) | State::Refused(said) => Err(unavailable(said.clone())),
        }
    }

    /// Resolves when it is open, or never will be.
    pub(super) async fn decided(&self) {
        let mut state = self.state.clone();
        let _ = state.wait_for(|state| !matches!(state, State::Opening(_))).await;
    }

    /// Why it will never be open.
    pub(super) fn refused(&self) -> Option<StartError> {
        match &*self.state.borrow() {
            State::Refused(said) => Some(StartError::Settings(said.clone())),
            _ => None,
        }
    }
}

fn open_some_time(
    name: &str,
    backoff: Backoff,
    open: &dyn Fn() -> Result<Arc<dyn Queue>, Failure>,
    state: &watch::Sender<State>,
) {
    let backoff = Backoff { most: backoff.most.min(MOST), ..backoff };
    let mut failures = 0_u32;
    while !state.is_closed() {
        match open() {
            Ok(queue) => {
                if failures > 0 {
                    tracing::info!(queue = name, "the broker answers, the queue is open");
                }
                let _ = state.send(State::Open(queue));
                return;
            }
            Err(Failure::Refused(said)) => {
                let _ = state.send(State::Refused(said));
                return;
            }
            Err(Failure::Unreachable(said)) => {
                failures = failures.saturating_add(1);
                let wait = backoff.wait(failures, rand::random());
                tracing::warn!(queue = name, error = said, ?wait, "the queue cannot be opened yet, trying again");
                let _ = state.send(State::Opening(said));
                std::thread::park_timeout(wait);
            }
        }
    }
}

impl Queue for Late {
    fn name(&self) -> &str {
        &self.name
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(Self { name: self.name.clone(), state: self.state.clone() })
    }

    fn subscribe(&self, limit: Unsettled, backoff: Backoff) -> Result<Subscription, QueueError> {
        self.queue()?.subscribe(limit, backoff)
    }

    fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        Arc::new(Self { name: self.name.clone(), state: self.state.clone() })
    }

    fn depth(&self) -> BoxFuture<'_, Result<Depth, QueueError>> {
        Box::pin(async move { self.queue()?.depth().await })
    }
}

impl Publisher for Late {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move { self.queue()?.publisher().publish(messages).await })
    }
}

impl DeadLetters for Late {
    fn list(
        &self,
        filter: Filter,
        after: Option<String>,
        most: usize,
    ) -> BoxFuture<'_, Result<Vec<DeadLetter>, QueueError>> {
        Box::pin(async move { self.queue()?.dead_letters().list(filter, after, most).await })
    }

    fn resend(&self, id: String) -> BoxFuture<'_, Result<bool, QueueError>> {
        Box::pin(async move { self.queue()?.dead_letters().resend(id).await })
    }

    fn drop_letter(&self, id: String) -> BoxFuture<'_, Result<bool, QueueError>> {
        Box::pin(async move { self.queue()?.dead_letters().drop_letter(id).await })
    }

    fn resend_all(&self, ids: Vec<String>) -> BoxFuture<'_, Result<Vec<String>, QueueError>> {
        Box::pin(async move { self.queue()?.dead_letters().resend_all(ids).await })
    }

    fn drop_all(&self, ids: Vec<String>) -> BoxFuture<'_, Result<Vec<String>, QueueError>> {
        Box::pin(async move { self.queue()?.dead_letters().drop_all(ids).await })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::queue::embedded::EmbeddedQueue;
    use crate::store::Store;
    use crate::telemetry::Metrics;

    const BACKOFF: Backoff = Backoff { first: Duration::from_millis(1), most: Duration::from_millis(4) };

    async fn until(mut holds: impl FnMut() -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !holds() {
            assert!(std::time::Instant::now() < deadline, "it never held");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    #[tokio::test]
    async fn queue_that_is_not_there_yet_is_unavailable_and_takes_once_it_is_open() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path(), 8 << 20).unwrap();
        let settings = crate::config::Config::load_with(None, [], &[]).unwrap().queue.embedded;
        let queue = EmbeddedQueue::open(&store, "q", &settings, 100, Arc::new(Metrics::new()), "reports").unwrap();
        let there = Arc::new(Mutex::new(None::<Arc<dyn Queue>>));
        let asked = Arc::clone(&there);
        let open = move || asked.lock().unwrap().clone().ok_or_else(|| Failure::Unreachable("nobody there".to_owned()));
        let late = Late::start("q", BACKOFF, open).unwrap();
        let publisher = late.publisher();
        until(|| late.queue().err().is_some_and(|error| error.to_string().contains("nobody there"))).await;
        let refused = publisher.publish(vec![Message::new("k", "b")]).await.unwrap_err();
        assert!(matches!(refused, QueueError::Unavailable { .. }));
        assert!(late.depth().await.is_err() && late.refused().is_none());
        *there.lock().unwrap() = Some(queue);
        until(|| late.queue().is_ok()).await;
        publisher.publish(vec![Message::new("k", "b")]).await.unwrap();
        assert_eq!(late.depth().await.unwrap().messages, 1);
    }

    #[tokio::test]
    async fn refusal_of_the_broker_is_told_and_not_tried_again() {
        let late = Late::start("q", BACKOFF, || Err(Failure::Refused("no such topic".to_owned()))).unwrap();
        until(|| late.refused().is_some()).await;
        assert_eq!(late.refused().unwrap().to_string(), "no such topic");
    }
}
