//! Many futures on one thread, in the order in which they can go on.
//!
//! Owns the loop of a worker, and knows nothing of what runs in it. No task for each: beside new ones the runtime looks at those that were
//! woken from another thread, which all that have waited for an answer are, once in 31 times, and a report whose history had answered
//! long ago waited for seconds behind reports that came after it.

use std::future::poll_fn;
use std::task::{Context, Poll};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

/// The most orders that are taken, and outcomes that are told, in one go: telling wakes a task on another core.
const AT_ONCE: usize = 64;

/// Starts what it is ordered to and tells what came of it, until there are no more orders and all has ended. `begin` pushes the futures
/// of an order; one without an outcome gives `None`.
pub(super) async fn run<O, F, T>(
    mut orders: mpsc::UnboundedReceiver<O>,
    mut begin: impl FnMut(O, &FuturesUnordered<F>),
    tell: impl Fn(Vec<T>),
) where
    F: Future<Output = Option<T>>,
{
    let mut running = FuturesUnordered::new();
    let (mut taken, mut more) = (Vec::with_capacity(AT_ONCE), true);
    let serving = async {
        while more || !running.is_empty() {
            tokio::select! {
                count = orders.recv_many(&mut taken, AT_ONCE), if more => more = count > 0,
                ended = poll_fn(|context| poll_ended(&mut running, context)), if !running.is_empty() => {
                    if !ended.is_empty() {
                        tell(ended);
                    }
                }
            }
            taken.drain(..).for_each(|order| begin(order, &running));
            // For what is a task of its own: the connections to Redis and mail servers.
            tokio::task::yield_now().await;
        }
    };
    // The runtime's budget is for one task, and here it would be for all of them: those that it leaves out are woken in reverse, and the
    // middle of a long row would never come to its turn.
    tokio::task::coop::unconstrained(serving).await;
}

/// Runs what can go on. The outcomes of what has ended by now.
fn poll_ended<F, T>(running: &mut FuturesUnordered<F>, context: &mut Context<'_>) -> Poll<Vec<T>>
where
    F: Future<Output = Option<T>>,
{
    let (mut count, mut outcomes) = (0, Vec::new());
    while count < AT_ONCE
        && let Poll::Ready(Some(outcome)) = running.poll_next_unpin(context)
    {
        count += 1;
        outcomes.extend(outcome);
    }
    if count == 0 { Poll::Pending } else { Poll::Ready(outcomes) }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Duration;

    use futures_util::future::LocalBoxFuture;
    use tokio::sync::oneshot;

    use super::*;

    fn on_runtime(future: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await.unwrap() });
    }

    #[test]
    fn those_that_are_answered_first_end_first_however_many_wait() {
        const MANY: usize = 2_000;
        let (order, orders) = mpsc::unbounded_channel::<LocalBoxFuture<'_, Option<usize>>>();
        let mut answers = Vec::new();
        for number in 0..MANY {
            let (senders, receivers): (Vec<_>, Vec<_>) = (0..4).map(|_| oneshot::channel()).unzip();
            let waiting = async move {
                for answer in receivers {
                    answer.await.unwrap();
                }
                Some(number)
            };
            assert!(order.send(Box::pin(waiting)).is_ok());
            answers.extend(senders);
        }
        let answering = async {
            answers.into_iter().for_each(|answer: oneshot::Sender<()>| answer.send(()).unwrap());
            None
        };
        assert!(order.send(Box::pin(answering)).is_ok());
        drop(order);
        let ended = RefCell::new(Vec::new());
        on_runtime(run(orders, |future, running| running.push(future), |outcomes| ended.borrow_mut().extend(outcomes)));
        assert_eq!(ended.into_inner(), (0..MANY).collect::<Vec<_>>());
    }

    #[test]
    fn one_without_an_outcome_ends_the_loop_as_well() {
        let (order, orders) = mpsc::unbounded_channel();
        order.send(()).unwrap();
        drop(order);
        on_runtime(run(
            orders,
            |(), running| {
                running.push(async {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    None::<()>
                })
            },
            |outcomes| panic!("{} of nothing", outcomes.len()),
        ));
    }
}
