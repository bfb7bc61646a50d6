//! Messages over a connection that only holders of the same key can open or read: Noise, NNpsk0, by the crate `snow`.
//!
//! Owns the framing: a message is frames of a length (two bytes, big-endian; the highest frame is 65,535 bytes, Noise's own limit), the last
//! of them marked inside of what is encrypted. Never shows the key.

use std::io;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use snow::params::NoiseParams;
use snow::{Builder, TransportState};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const PROTOCOL: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// Bytes of a key.
pub const KEY: usize = 32;
const FRAME: usize = 65_535;
/// What encryption adds to a frame.
const TAG: usize = 16;
/// One message, all frames together.
pub(super) const MAX_MESSAGE: usize = 4 << 20;
/// How long the other side may take to read a message: one that reads nothing would hold its place among the consoles for ever.
const SEND: Duration = Duration::from_secs(30);

/// The first byte of a frame's plain text.
const LAST: u8 = 0;
const MORE: u8 = 1;

/// A key out of its base64; `None`: it is no base64 of 32 bytes.
pub fn key(text: &str) -> Option<[u8; KEY]> {
    STANDARD.decode(text.trim()).ok()?.try_into().ok()
}

/// A new key in base64.
pub fn make_key() -> String {
    STANDARD.encode(rand::random::<[u8; KEY]>())
}

/// A connection after its handshake.
pub struct Secure<S> {
    stream: S,
    state: TransportState,
    buffer: Vec<u8>,
    patience: Duration,
}

fn failed(error: snow::Error) -> io::Error {
    // The library's words hold nothing of the key; whoever has another one is told no more than that.
    io::Error::new(io::ErrorKind::PermissionDenied, format!("the keys differ, or this is no console ({error})"))
}

fn params() -> io::Result<NoiseParams> {
    PROTOCOL.parse().map_err(failed)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Secure<S> {
    /// The side that connects.
    pub async fn connect(mut stream: S, key: &[u8; KEY]) -> io::Result<Self> {
        let mut handshake = Builder::new(params()?).psk(0, key).map_err(failed)?.build_initiator().map_err(failed)?;
        let mut buffer = vec![0; FRAME];
        let length = handshake.write_message(&[], &mut buffer).map_err(failed)?;
        write_frame(&mut stream, &buffer[..length]).await?;
        let answer = read_frame(&mut stream).await?;
        handshake.read_message(&answer, &mut buffer).map_err(failed)?;
        Ok(Self { stream, state: handshake.into_transport_mode().map_err(failed)?, buffer, patience: SEND })
    }

    /// The side that listens.
    pub async fn accept(mut stream: S, key: &[u8; KEY]) -> io::Result<Self> {
        let mut handshake = Builder::new(params()?).psk(0, key).map_err(failed)?.build_responder().map_err(failed)?;
        let mut buffer = vec![0; FRAME];
        let greeting = read_frame(&mut stream).await?;
        handshake.read_message(&greeting, &mut buffer).map_err(failed)?;
        let length = handshake.write_message(&[], &mut buffer).map_err(failed)?;
        write_frame(&mut stream, &buffer[..length]).await?;
        Ok(Self { stream, state: handshake.into_transport_mode().map_err(failed)?, buffer, patience: SEND })
    }

    /// Sends one message.
    pub async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let patience = self.patience;
        let late =
            || io::Error::new(io::ErrorKind::TimedOut, format!("it has read no whole message within {patience:?}"));
        tokio::time::timeout(patience, self.send_frames(message)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn send_frames(&mut self, message: &[u8]) -> io::Result<()> {
        let parts: Vec<&[u8]> =
            if message.is_empty() { vec![message] } else { message.chunks(FRAME - TAG - 1).collect() };
        for (at, part) in parts.iter().enumerate() {
            let mark = if at + 1 == parts.len() { LAST } else { MORE };
            let plain = [&[mark], *part].concat();
            let length = self.state.write_message(&plain, &mut self.buffer).map_err(failed)?;
            write_frame(&mut self.stream, &self.buffer[..length]).await?;
        }
        self.stream.flush().await
    }

    /// The next message; `None`: the other side is gone.
    pub async fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut message = Vec::new();
        loop {
            let frame = match read_frame(&mut self.stream).await {
                Ok(frame) => frame,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && message.is_empty() => return Ok(None),
                Err(error) => return Err(error),
            };
            let length = self.state.read_message(&frame, &mut self.buffer).map_err(failed)?;
            let Some((mark, part)) = self.buffer[..length].split_first() else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "an empty frame"));
            };
            if message.len() + part.len() > MAX_MESSAGE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message over {MAX_MESSAGE} bytes")));
            }
            message.extend_from_slice(part);
            if *mark == LAST {
                return Ok(Some(message));
            }
        }
    }
}

/// Both sides of a handshake and one message, in memory.
pub fn test(key: &[u8; KEY], message: &[u8]) -> io::Result<()> {
    let builder = || Builder::new(params()?).psk(0, key).map_err(failed);
    let (mut one, mut other) =
        (builder()?.build_initiator().map_err(failed)?, builder()?.build_responder().map_err(failed)?);
    let (mut wire, mut plain) = (vec![0; FRAME], vec![0; FRAME]);
    let length = one.write_message(&[], &mut wire).map_err(failed)?;
    other.read_message(&wire[..length], &mut plain).map_err(failed)?;
    let length = other.write_message(&[], &mut wire).map_err(failed)?;
    one.read_message(&wire[..length], &mut plain).map_err(failed)?;
    let (mut one, mut other) =
        (one.into_transport_mode().map_err(failed)?, other.into_transport_mode().map_err(failed)?);
    for part in message.chunks(FRAME - TAG) {
        let length = one.write_message(part, &mut wire).map_err(failed)?;
        let read = other.read_message(&wire[..length], &mut plain).map_err(failed)?;
        if plain[..read] != *part {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it came out otherwise than it went in"));
        }
    }
    Ok(())
}

async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> io::Result<()> {
    let length = u16::try_from(frame.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(frame).await
}

async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut frame = vec![0; usize::from(length)];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn message_of_any_length_goes_both_ways_and_nothing_of_it_is_readable() {
        let key = [7; KEY];
        let (one, other) = tokio::io::duplex(1 << 20);
        let (client, server) = tokio::join!(Secure::connect(one, &key), Secure::accept(other, &key));
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        for length in [0, 1, FRAME - TAG - 1, FRAME - TAG, 3 * FRAME] {
            let message = vec![b'x'; length];
            let (sent, got) = tokio::join!(client.send(&message), server.receive());
            sent.unwrap();
            assert_eq!(got.unwrap().unwrap(), message);
            let (sent, got) = tokio::join!(server.send(&message), client.receive());
            sent.unwrap();
            assert_eq!(got.unwrap().unwrap(), message);
        }
        drop(client);
        assert!(server.receive().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn other_key_is_refused_on_both_sides() {
        let (one, other) = tokio::io::duplex(1 << 20);
        let server = tokio::spawn(async move { Secure::accept(other, &[2; KEY]).await.map(drop) });
        let client = Secure::connect(one, &[1; KEY]).await;
        assert_eq!(server.await.unwrap().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(client.is_err());
    }

    #[tokio::test]
    async fn truncated_and_foreign_bytes_are_refused() {
        use tokio::io::AsyncWriteExt;
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 0], &[0, 3, 1, 2, 3], &[0xff, 0xff, 1]] {
            let (mut one, other) = tokio::io::duplex(1 << 20);
            one.write_all(bytes).await.unwrap();
            drop(one);
            assert!(Secure::accept(other, &[2; KEY]).await.is_err(), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn other_side_that_reads_nothing_is_given_up() {
        let key = [7; KEY];
        let (one, other) = tokio::io::duplex(1 << 10);
        let (client, server) = tokio::join!(Secure::connect(one, &key), Secure::accept(other, &key));
        let (_client, mut server) = (client.unwrap(), server.unwrap());
        server.patience = Duration::from_millis(50);
        assert_eq!(server.send(&[b'x'; 1 << 16]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn test_of_a_key_goes_through() {
        test(&[5; KEY], &[1; 200_000]).unwrap();
    }

    #[test]
    fn key_is_32_bytes_in_base64() {
        assert_eq!(key(&STANDARD.encode([3; KEY])), Some([3; KEY]));
        assert!(key(&make_key()).is_some() && make_key() != make_key());
        for wrong in ["", "x", &STANDARD.encode([3; 31]), "not base64!"] {
            assert_eq!(key(wrong), None);
        }
    }
}
