//! Reading the log: in chunks, past what is damaged, never past the end.
//!
//! Changes nothing. Blocks on the disk: for the blocking pool only.

use std::sync::PoisonError;

use bytes::Bytes;
use fjall::Keyspace;

use super::super::Message;
use super::log::Log;
use super::record;

/// A record as it was read.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    /// Bytes on disk.
    pub(super) size: u64,
    /// The message, or the bytes that are none.
    pub(super) content: Result<Message, Bytes>,
}

impl Log {
    /// Reads on from `cursor`, at most `most` records and about `bytes` bytes, never past `end`. Gives the records, and where to go
    /// on. Blocks on the disk.
    pub(super) fn read(&self, cursor: u64, end: u64, most: usize, bytes: u64) -> fjall::Result<(Vec<Stored>, u64)> {
        let (segment, until) = {
            let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
            let until = segments.range(cursor + 1..).next().map_or(end, |(first, _)| (*first).min(end));
            (segments.range(..=cursor).next_back().map(|(_, segment)| segment.clone()), until)
        };
        let Some(segment) = segment else { return Ok((Vec::new(), until)) };
        let mut records = Vec::with_capacity(most.min(usize::try_from(until - cursor).unwrap_or(most)));
        let mut read = 0;
        for entry in segment.range(cursor.to_be_bytes()..until.to_be_bytes()) {
            let (key, value) = match entry.into_inner() {
                Ok(entry) => entry,
                Err(error) if damaged(&error) => return read_singly(&segment, cursor, until, most),
                Err(error) => return Err(error),
            };
            let Ok(key) = <[u8; 8]>::try_from(&key[..]) else { continue };
            let stored = stored(u64::from_be_bytes(key), value.into());
            read += stored.size;
            let sequence = stored.sequence;
            records.push(stored);
            if records.len() >= most || read >= bytes {
                return Ok((records, sequence + 1));
            }
        }
        Ok((records, until))
    }
}

fn stored(sequence: u64, value: Bytes) -> Stored {
    let size = value.len() as u64;
    let content = record::decode(value.clone()).ok_or(value);
    Stored { sequence, size, content }
}

/// Whether the bytes are there and wrong, for good. Anything else may be well at the next try.
fn damaged(error: &fjall::Error) -> bool {
    use fjall::LsmError;
    matches!(
        error,
        fjall::Error::Storage(
            LsmError::ChecksumMismatch { .. }
                | LsmError::Decompress(_)
                | LsmError::InvalidHeader(_)
                | LsmError::InvalidTrailer
                | LsmError::InvalidTag(_)
        )
    )
}

/// Reads record by record, so that one damaged block costs no more than the records in it: these come out as what is no message.
fn read_singly(segment: &Keyspace, cursor: u64, until: u64, most: usize) -> fjall::Result<(Vec<Stored>, u64)> {
    let last = until.min(cursor.saturating_add(most as u64));
    let mut records = Vec::new();
    for sequence in cursor..last {
        match segment.get(sequence.to_be_bytes()) {
            Ok(Some(value)) => records.push(stored(sequence, value.into())),
            Ok(None) => {}
            Err(error) if damaged(&error) => {
                records.push(Stored { sequence, size: 0, content: Err(Bytes::new()) });
            }
            Err(error) => return Err(error),
        }
    }
    Ok((records, last))
}
