//! A connection to a Redis whose answers have a bound, over a client library that reads each as a whole, whatever its length.
//!
//! Owns the counting. Knows no command and nothing of the form of an answer. The loss prevented: answers are read outside of Lua's memory,
//! so that one large value, which `policy.memory` does not hold, would take the memory of the process.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Commands under way at once on one connection. Further ones wait: the answers come one after another in any case.
pub(super) const AT_ONCE: u16 = 64;

/// What was asked and read on one connection. Answers come in the order of their commands.
#[derive(Debug)]
pub(super) struct Meter {
    /// Bytes that one answer may have.
    most: u64,
    asked: AtomicU64,
    /// The last command that was answered.
    answered: AtomicU64,
    /// Bytes since somebody was last given an answer.
    read: AtomicU64,
}

impl Meter {
    pub(super) fn new(most: u64) -> Arc<Self> {
        Arc::new(Self { most, asked: AtomicU64::new(0), answered: AtomicU64::new(0), read: AtomicU64::new(0) })
    }

    /// A command goes out: its number.
    pub(super) fn ask(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The command of this number is answered, and with it those before it for which nobody waits any more.
    pub(super) fn answered(&self, number: u64) {
        self.answered.fetch_max(number, Ordering::Relaxed);
        self.read.store(0, Ordering::Relaxed);
    }

    /// More was read than all answers that may be on their way can have. They may be read at once, before anybody is given the first.
    pub(super) fn is_over(&self) -> bool {
        let under_way = self.asked.load(Ordering::Relaxed).saturating_sub(self.answered.load(Ordering::Relaxed));
        self.read.load(Ordering::Relaxed) > self.most.saturating_mul(under_way.clamp(1, u64::from(AT_ONCE)))
    }
}

/// A connection that breaks where its meter is over.
pub(super) struct Metered {
    pub(super) stream: TcpStream,
    pub(super) meter: Arc<Meter>,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.meter.is_over() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.meter.read.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_answer_is_bounded_and_many_that_are_read_at_once_are_not_taken_for_one() {
        let meter = Meter::new(100);
        let read = |bytes| {
            meter.read.fetch_add(bytes, Ordering::Relaxed);
            meter.is_over()
        };
        let first = meter.ask();
        assert!(!read(100) && read(1));
        let second = meter.ask();
        assert!(!read(99) && read(1));
        // Nobody waits for the first any more, and its answer came before the second's.
        meter.answered(second);
        assert!(!read(100) && read(1));
        meter.answered(first);
        assert!(!read(0));
        for _ in 0..1000 {
            meter.ask();
        }
        assert!(!read(100 * u64::from(AT_ONCE)) && read(1));
    }
}
