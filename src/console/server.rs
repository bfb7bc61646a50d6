//! Listening for consoles, and answering their lines.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::noise::{self, KEY, Secure};
use super::{Answer, Line, Settings};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a console may say nothing.
const IDLE: Duration = Duration::from_secs(3600);
/// Bytes of what the first worker says, and of what all others do: in JSON each may become six, and all of it is one message.
const MAX_TEXT: usize = 512 << 10;
const MAX_OTHERS: usize = 64 << 10;
/// Consoles at once.
const MOST: usize = 16;

/// Runs one line in every worker.
pub type Run = Arc<dyn Fn(String) -> BoxFuture<'static, Answer> + Send + Sync>;

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// It would be open to everybody.
    #[error(
        "console.listen is set and console.key is not: write setKey(\"…\") or console.key; `trackalert console --make-key` makes one"
    )]
    NoKey,
    /// The key is none.
    #[error("console.key: is no base64 of {KEY} bytes; `trackalert console --make-key` makes one")]
    Key,
    /// The address cannot be used.
    #[error("console.listen: {address}: {reason}")]
    Listen {
        /// As it was set.
        address: String,
        /// For people.
        reason: String,
    },
}

/// A console that listens.
pub struct Console {
    /// Where.
    pub address: SocketAddr,
    /// Ends when it is told to stop.
    pub task: JoinHandle<()>,
}

/// Whether it could listen, as far as that can be known before it does. Gives its key; `None`: it is to listen nowhere.
pub fn check(settings: &Settings) -> Result<Option<[u8; KEY]>, ConsoleError> {
    if settings.listen.is_empty() {
        return Ok(None);
    }
    if settings.key.is_empty() {
        return Err(ConsoleError::NoKey);
    }
    noise::key(settings.key.expose()).map(Some).ok_or(ConsoleError::Key)
}

/// Listens where it is set; `None`: nowhere.
pub async fn start(settings: &Settings, run: Run, stop: CancellationToken) -> Result<Option<Console>, ConsoleError> {
    let Some(key) = check(settings)? else { return Ok(None) };
    let failed =
        |error: std::io::Error| ConsoleError::Listen { address: settings.listen.clone(), reason: error.to_string() };
    let listener = TcpListener::bind(&settings.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let task = tokio::spawn(accept(listener, key, run, stop));
    Ok(Some(Console { address, task }))
}

async fn accept(listener: TcpListener, key: [u8; KEY], run: Run, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MOST));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                    tracing::warn!(%peer, "too many consoles at once; this one is refused");
                    continue;
                };
                let (run, stop) = (Arc::clone(&run), stop.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = serve(stream, peer, key, run) => {}
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a console could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, key: [u8; KEY], run: Run) {
    let _ = stream.set_nodelay(true);
    let mut console = match tokio::time::timeout(HANDSHAKE, Secure::accept(stream, &key)).await {
        Ok(Ok(console)) => console,
        Ok(Err(error)) => return tracing::warn!(%peer, %error, "a console was refused"),
        Err(_) => return tracing::warn!(%peer, "a console did not say who it is in time"),
    };
    tracing::info!(%peer, "a console is connected");
    while let Ok(Ok(Some(message))) = tokio::time::timeout(IDLE, console.receive()).await {
        let answer = match serde_json::from_slice::<Line>(&message) {
            Ok(line) => {
                // What an operator does to a running program stands in its log.
                tracing::info!(%peer, lua = shown(&line.lua), "a line of the console");
                run(line.lua).await
            }
            Err(error) => Answer { text: format!("no line: {error}"), failed: true, ..Answer::default() },
        };
        let Ok(answer) = serde_json::to_vec(&fitting(answer)) else { return };
        if console.send(&answer).await.is_err() {
            return;
        }
    }
}

/// An answer that fits into a message. One that did not would end the session of whoever asked.
fn fitting(answer: Answer) -> Answer {
    let mut left = MAX_OTHERS;
    let others = answer.others.into_iter().map(|(worker, text)| {
        let text = cut(text, left);
        left = left.saturating_sub(text.len());
        (worker, text)
    });
    let others = others.collect();
    Answer { text: cut(answer.text, MAX_TEXT), others, ..answer }
}

fn cut(text: String, most: usize) -> String {
    if text.len() <= most {
        return text;
    }
    format!("{}… (of {} bytes)", &text[..text.floor_char_boundary(most)], text.len())
}

/// A line as the log has it. One that has a string in it, or speaks of a key or a password, shows the name of its first call only: which
/// string is a secret cannot be told.
fn shown(lua: &str) -> String {
    let words = ["key", "password", "secret", "auth", "\"", "'", "[[", "[=", "--"];
    let secret = words.iter().any(|word| lua.to_lowercase().contains(word));
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || "_.: ".contains(c);
    let shown = if secret { lua.split(|c| !part_of_name(c)).next().unwrap_or_default() } else { lua };
    let cut = shown.floor_char_boundary(200);
    format!("{}{}", &shown[..cut], if cut < lua.len() { "…" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_of_any_length_fits_into_a_message() {
        let long = || "\u{1}".repeat(6 << 20);
        let others = (2..1024).map(|worker| (worker, long()[..100_000].to_owned())).collect();
        let answer = fitting(Answer { text: long(), others, ..Answer::default() });
        assert!(serde_json::to_vec(&answer).unwrap().len() < noise::MAX_MESSAGE);
        assert!(answer.text.ends_with("… (of 6291456 bytes)"));
        let short = Answer { text: "x".to_owned(), failed: true, incomplete: true, others: vec![(2, "y".to_owned())] };
        assert_eq!(fitting(short.clone()), short);
    }

    #[test]
    fn line_with_a_secret_is_logged_by_its_name() {
        assert_eq!(shown("stats()"), "stats()");
        assert_eq!(shown("setWebserverPassword(\"hunter2\")"), "setWebserverPassword…");
        assert_eq!(shown("x.secret = 'hunter2'"), "x.secret …");
        assert_eq!(shown("setWebserverPassword[[hunter2]]"), "setWebserverPassword…");
        assert_eq!(shown("f[==[hunter2]==]"), "f…");
        assert_eq!(shown("local x, y = 1, 'hunter2'"), "local x…");
        assert_eq!(shown("x = 1 -- hunter2"), "x …");
        assert_eq!(shown("x[1] + y"), "x[1] + y");
        assert!(shown(&"x".repeat(1000)).len() < 300);
    }
}
