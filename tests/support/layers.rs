//! A thin layer around the real stores that a test looks through and fails as it likes. What it does not ask for passes as it is.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::Value;
use trackalert::app::Stores;
use trackalert::history::{History, HistoryError, Search, Stored};
use trackalert::queue::{Backoff, DeadLetters, Depth, Message, Publisher, Queue, QueueError, Subscription, Unsettled};
use trackalert::report::{LoginReport, ReportId, Time};
use trackalert::state::{Batch, State, StateError};

/// What a test does at the calls of the stores. A panic in there is a fault of the store.
pub(crate) trait Watch: Send + Sync + 'static {
    fn before_publish(&self) {}
    fn after_publish(&self) {}
    fn before_get(&self, _key: &str) {}
    fn before_handled(&self) -> Result<(), StateError> {
        Ok(())
    }
    fn before_apply(&self, _batch: &Batch) -> Result<(), StateError> {
        Ok(())
    }
    /// Of a report's batch.
    fn after_apply(&self) {}
    fn before_store(&self, _report: &LoginReport) {}
    fn after_store(&self) {}
    fn before_search(&self) -> Result<(), HistoryError> {
        Ok(())
    }
}

/// The same stores, watched: what is published to `alerts`, the state, the history.
pub(crate) fn watched(stores: Stores, watch: &Arc<impl Watch>) -> Stores {
    let watch = || Arc::clone(watch) as Arc<dyn Watch>;
    Stores {
        alerts: Arc::new(Layer(stores.alerts, watch())),
        state: Arc::new(Layer(stores.state, watch())),
        history: Arc::new(Layer(stores.history, watch())),
        reports: stores.reports,
    }
}

struct Layer<T: ?Sized>(Arc<T>, Arc<dyn Watch>);

impl Queue for Layer<dyn Queue> {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(Layer(self.0.publisher(), Arc::clone(&self.1)))
    }
    fn subscribe(&self, limit: Unsettled, backoff: Backoff) -> Result<Subscription, QueueError> {
        self.0.subscribe(limit, backoff)
    }
    fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        self.0.dead_letters()
    }
    fn depth(&self) -> BoxFuture<'_, Result<Depth, QueueError>> {
        self.0.depth()
    }
}

impl Publisher for Layer<dyn Publisher> {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move {
            self.1.before_publish();
            let done = self.0.publish(messages).await;
            self.1.after_publish();
            done
        })
    }
}

impl State for Layer<dyn State> {
    fn get<'a>(&'a self, key: &'a str, at: Time) -> BoxFuture<'a, Result<Option<Bytes>, StateError>> {
        self.1.before_get(key);
        self.0.get(key, at)
    }
    fn members<'a>(&'a self, key: &'a str, after: Time, until: Time) -> BoxFuture<'a, Result<Vec<u64>, StateError>> {
        self.0.members(key, after, until)
    }
    fn handled(&self, report: ReportId) -> BoxFuture<'_, Result<Vec<String>, StateError>> {
        Box::pin(async move {
            self.1.before_handled()?;
            self.0.handled(report).await
        })
    }
    fn apply(&self, batch: Batch) -> BoxFuture<'_, Result<(), StateError>> {
        let before = self.1.before_apply(&batch);
        let of_a_report = batch.handled.is_some();
        Box::pin(async move {
            before?;
            let done = self.0.apply(batch).await;
            if of_a_report {
                self.1.after_apply();
            }
            done
        })
    }
    fn sync(&self) -> BoxFuture<'_, Result<(), StateError>> {
        self.0.sync()
    }
    fn sweep(&self) -> BoxFuture<'_, Result<usize, StateError>> {
        self.0.sweep()
    }
}

impl History for Layer<dyn History> {
    fn store(&self, report: Arc<LoginReport>) -> BoxFuture<'_, Result<Stored, HistoryError>> {
        self.1.before_store(&report);
        Box::pin(async move {
            let done = self.0.store(report).await;
            self.1.after_store();
            done
        })
    }
    fn keeps(&self) -> bool {
        self.0.keeps()
    }
    fn search(&self, search: Search) -> BoxFuture<'_, Result<Value, HistoryError>> {
        Box::pin(async move {
            self.1.before_search()?;
            self.0.search(search).await
        })
    }
    fn retain(&self, now: Time) -> BoxFuture<'_, Result<usize, HistoryError>> {
        self.0.retain(now)
    }
    fn close(&self) -> BoxFuture<'_, ()> {
        self.0.close()
    }
}
