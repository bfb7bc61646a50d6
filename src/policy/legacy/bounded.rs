//! A connection to a Redis whose answers have a bound, over a client library that reads each as a whole, whatever its length, and makes
//! room at once for as many values as an array announces.
//!
//! Owns where an answer begins and ends. Knows no command, and leaves what an answer says to the library. The loss prevented: answers are
//! read outside of Lua's memory, so that one large value, which `policy.memory` does not hold, would take the memory of the process, and
//! a few bytes that announce a billion values would end it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes of the shortest value: its type and the end of its line.
const SHORTEST: u64 = 3;

/// How much of an answer was read, in the form of <https://redis.io/docs/latest/develop/reference/protocol-spec/>.
#[derive(Debug)]
struct Answer {
    /// Bytes that one may have.
    most: u64,
    /// Bytes of it so far.
    bytes: u64,
    /// Values that it still needs; none: it is over, and the next byte begins another.
    values: u64,
    /// Bytes of a text that still come, its end of line included.
    text: u64,
    /// The type of the value whose line is read, once it has come.
    kind: Option<u8>,
    /// The last byte of that line was one that only the end of a line has.
    ends: bool,
    /// The number in that line. One that is negative stands for nothing, as zero does.
    number: u64,
    negative: bool,
}

impl Answer {
    const fn new(most: u64) -> Self {
        Self { most, bytes: 0, values: 0, text: 0, kind: None, ends: false, number: 0, negative: false }
    }

    /// These came. `false`: there is an answer with more than it may have, or that says so.
    fn read(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((first, rest)) = bytes.split_first() {
            if self.text > 0 {
                let (now, later) = bytes.split_at(bytes.len().min(usize::try_from(self.text).unwrap_or(usize::MAX)));
                self.text -= now.len() as u64;
                self.bytes += now.len() as u64;
                bytes = later;
            } else {
                self.bytes += 1;
                self.read_line(*first);
                bytes = rest;
            }
            let to_begin = self.values - u64::from(self.kind.is_some());
            let announced = to_begin.saturating_mul(SHORTEST).saturating_add(self.text);
            if self.bytes.saturating_add(announced) > self.most {
                return false;
            }
            if self.kind.is_none() && announced == 0 {
                self.bytes = 0;
            }
        }
        true
    }

    fn read_line(&mut self, byte: u8) {
        let ends = std::mem::replace(&mut self.ends, byte == b'\r');
        match (self.kind, byte) {
            (None, kind) => {
                // The first value of an answer is one that nobody has announced.
                self.values = self.values.max(1);
                (self.kind, self.number, self.negative) = (Some(kind), 0, false);
            }
            (Some(kind), b'\n') if ends => {
                self.kind = None;
                self.values -= 1;
                let number = if self.negative { 0 } else { self.number };
                match kind {
                    b'$' | b'=' | b'!' if !self.negative => self.text = number.saturating_add(2),
                    b'*' | b'~' | b'>' => self.values = self.values.saturating_add(number),
                    b'%' => self.values = self.values.saturating_add(number.saturating_mul(2)),
                    // What it is about comes behind it.
                    b'|' => self.values = self.values.saturating_add(number.saturating_mul(2).saturating_add(1)),
                    _ => {}
                }
            }
            (Some(_), b'-') => self.negative = true,
            (Some(_), digit @ b'0'..=b'9') => {
                self.number = self.number.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
            }
            (Some(_), _) => {}
        }
    }
}

/// A connection that breaks where an answer has more than it may.
pub(super) struct Bounded {
    stream: TcpStream,
    answer: Answer,
    broken: Arc<AtomicBool>,
}

impl Bounded {
    /// With the most bytes of one answer. `broken` is set where one had more.
    pub(super) fn new(stream: TcpStream, most: u64, broken: Arc<AtomicBool>) -> Self {
        Self { stream, answer: Answer::new(most), broken }
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if !self.answer.read(&buffer.filled()[before..]) {
            self.broken.store(true, Ordering::Relaxed);
            // Nothing of it is for the library: the first values of an array are enough for it to make room for all of them.
            buffer.set_filled(before);
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bounded {
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

    /// Whether an answer of 100 bytes at most may be so, in pieces of every length.
    fn fits(bytes: &[u8]) -> bool {
        let whole = Answer::new(100).read(bytes);
        for length in 1..bytes.len() {
            let mut answer = Answer::new(100);
            let piecewise = bytes.chunks(length).all(|piece| answer.read(piece));
            assert_eq!(piecewise, whole, "{length}: {}", bytes.escape_ascii());
        }
        whole
    }

    #[test]
    fn each_answer_is_bounded_for_itself_and_where_it_only_announces_too_much() {
        let text = |length: usize| format!("${length}\r\n{}\r\n", "x".repeat(length)).into_bytes();
        assert!(fits(&text(93)) && !fits(&text(94)));
        assert!(fits(&text(93).repeat(5)));
        assert!(!fits(b"$94\r\n") && !fits(b"$99999999999999999999999\r\n"));
        let line = |length: usize| format!("+{}\r\n", "x".repeat(length)).into_bytes();
        assert!(fits(&line(97)) && !fits(&line(98)) && fits(&line(97).repeat(3)));
        for kind in ['*', '~', '%', '>', '|'] {
            assert!(!fits(format!("{kind}2000000000\r\n").as_bytes()), "{kind}");
        }
        // The client takes a bare end of line for a part of the line.
        assert!(fits(b"*2\r\n+a\n$99\r\n+b\r\n"));
        // Arrays in arrays: what is announced counts together.
        assert!(fits(b"*2\r\n*2\r\n:1\r\n$-1\r\n*-1\r\n:1\r\n+OK\r\n"));
        assert!(!fits(b"*20\r\n*20\r\n"));
        let full = [b"*3\r\n".to_vec(), text(40), b"*0\r\n".to_vec(), text(38)].concat();
        assert_eq!(full.len(), 100);
        assert!(fits(&full.repeat(3)));
        assert!(!fits(&[full, text(94)].concat()));
        assert!(fits(b"%1\r\n+a\r\n|1\r\n+b\r\n:1\r\n:2\r\n:3\r\n"));
    }
}
