//! `trackalert send`: reports from a file or stdin, one JSON a line, into the running program.
//!
//! A line counts as sent once the answer says that it is durable. What stops it is told with the line to go on from, so that nothing
//! is lost and little is sent twice.

use std::io::{BufRead, IsTerminal, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use indicatif::ProgressBar;
use reqwest::StatusCode;
use serde::Deserialize;

use super::client::{Answer, Client};
use super::session::Session;
use super::{Common, Failure, output};
use crate::config::Roles;

/// Refused lines that are shown; the rest is counted.
const SHOWN: u64 = 100;
/// The longest single wait for a full queue.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Without a terminal, a line of progress this often.
const SAY_EVERY: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  trackalert send reports.ndjson
  zcat old.ndjson.gz | trackalert send -C trackalert.toml --rate 5000
  trackalert send reports.ndjson --from 120001     go on where it stopped

Each line is one report: {\"login\": \"alice\", \"remote\": \"192.0.2.7\", \"success\": true, \"t\": 1772366400}";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The file; - or nothing reads stdin
    file: Option<PathBuf>,
    /// At most so many lines a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Lines in one request; the server takes no more than its receive.max_reports
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// Begin with this line
    #[arg(long, value_name = "LINE", default_value_t = 1)]
    from: u64,
    /// How long to go on asking when the queue is full
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// Start a process of its own on the data folder, which only takes reports; no trackalert must be running on it
    #[arg(long)]
    offline: bool,
}

#[derive(Debug, Deserialize)]
struct Taken {
    #[serde(default)]
    accepted: u64,
    #[serde(default)]
    refused: Vec<Refused>,
    /// Refused lines beyond those that the answer lists.
    #[serde(default)]
    refused_and_not_named: u64,
}

#[derive(Debug, Deserialize)]
struct Refused {
    line: usize,
    reason: String,
}

/// Lines on their way, with their numbers in the input.
#[derive(Debug, Default)]
struct Batch {
    body: Vec<u8>,
    lines: Vec<u64>,
}

pub(super) fn run(common: &Common, args: &Args) -> Result<(), Failure> {
    let max_body = size_of(common)?;
    let file = args.file.as_ref().filter(|path| path.as_os_str() != "-");
    let (input, size): (Box<dyn BufRead>, Option<u64>) = match file {
        Some(path) => {
            let fail = |error: std::io::Error| Failure::usage(format!("{}: {error}", path.display()));
            let file = std::fs::File::open(path).map_err(fail)?;
            let meta = file.metadata().map_err(fail)?;
            if meta.is_dir() {
                return Err(Failure::usage(format!("{}: is a folder; name a file", path.display())));
            }
            let size = meta.len();
            (Box::new(std::io::BufReader::with_capacity(1 << 20, file)), Some(size))
        }
        None => (Box::new(std::io::BufReader::new(std::io::stdin())), None),
    };
    let only_receive = Roles { receive: true, ..Roles::none() };
    Session::with(common, args.offline.then_some(only_receive), async |client| {
        let mut sender = Sender::new(client, args, size);
        let result = sender.all(input, max_body).await;
        sender.finish(result)
    })
}

/// The largest body that the process takes.
fn size_of(common: &Common) -> Result<usize, Failure> {
    let config = common.load()?;
    let text = config.explain().iter().find(|one| one.key == "http.max_body");
    let size = text.and_then(|one| one.value.as_str()).and_then(|text| text.parse::<ByteSize>().ok());
    Ok(size.map_or(1 << 20, |size| usize::try_from(size.as_u64()).unwrap_or(usize::MAX)))
}

struct Sender<'a> {
    client: &'a Client,
    args: &'a Args,
    bar: ProgressBar,
    started: Instant,
    said: Instant,
    /// Lines for which an answer came.
    sent: u64,
    accepted: u64,
    refused: u64,
    /// Refused lines that were shown.
    shown: u64,
    /// The first line without an answer.
    next: u64,
}

impl<'a> Sender<'a> {
    fn new(client: &'a Client, args: &'a Args, size: Option<u64>) -> Self {
        let bar = match size {
            Some(size) => ProgressBar::new(size),
            None => ProgressBar::new_spinner(),
        };
        let template =
            if size.is_some() { "{bar:30} {bytes}/{total_bytes}  {msg}  {eta} left" } else { "{spinner} {msg}" };
        if let Ok(style) = indicatif::ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let now = Instant::now();
        Self { client, args, bar, started: now, said: now, sent: 0, accepted: 0, refused: 0, shown: 0, next: args.from }
    }

    async fn all(&mut self, mut input: Box<dyn BufRead>, max_body: usize) -> Result<(), Failure> {
        let mut number = 0;
        let mut batch = Batch::default();
        let most = match self.args.rate {
            // Ten requests a second make an even flow.
            Some(rate) => (rate / 10).clamp(1, self.args.batch),
            None => self.args.batch,
        } as usize;
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = read_line(&mut input, &mut line, max_body)
                .map_err(|error| Failure::failed(format!("the input cannot be read: {error}")))?;
            if length == 0 {
                break;
            }
            number += 1;
            self.bar.inc(length);
            if number < self.args.from || line.trim_ascii().is_empty() {
                continue;
            }
            if line.len() > max_body {
                self.flush(&mut batch).await?;
                self.refuse(number, "longer than http.max_body");
                self.sent += 1;
                self.next = number + 1;
                continue;
            }
            if batch.lines.len() >= most || batch.body.len() + line.len() + 1 > max_body {
                self.flush(&mut batch).await?;
            }
            batch.body.extend_from_slice(line.trim_ascii());
            batch.body.push(b'\n');
            batch.lines.push(number);
        }
        self.flush(&mut batch).await
    }

    async fn flush(&mut self, batch: &mut Batch) -> Result<(), Failure> {
        let Some(last) = batch.lines.last().copied() else { return Ok(()) };
        if let Some(rate) = self.args.rate {
            let due = self.started + Duration::from_secs_f64(self.sent as f64 / f64::from(rate));
            tokio::time::sleep_until(due.into()).await;
        }
        let taken = self.deliver(&batch.body).await?;
        self.accepted += taken.accepted;
        self.refused += taken.refused_and_not_named;
        for refused in taken.refused {
            // The server counts the lines of its request from 1.
            let line = refused.line.checked_sub(1).and_then(|at| batch.lines.get(at)).copied().unwrap_or_default();
            self.refuse(line, &refused.reason);
        }
        self.sent += batch.lines.len() as u64;
        self.next = last + 1;
        batch.body.clear();
        batch.lines.clear();
        self.progress();
        Ok(())
    }

    /// One request until it is answered for good: a full queue is waited for.
    async fn deliver(&self, body: &[u8]) -> Result<Taken, Failure> {
        let begun = Instant::now();
        let mut backoff = Duration::from_millis(500);
        loop {
            let answer = self.client.reports(body.to_vec()).await?;
            if answer.status != StatusCode::SERVICE_UNAVAILABLE {
                return settled(&answer);
            }
            if begun.elapsed() > self.args.patience {
                return Err(Failure::failed(format!(
                    "the queue is full for longer than --patience: {}",
                    answer.reason()
                )));
            }
            // With jitter, so that many senders do not come back at once.
            let wait = answer.retry_after.unwrap_or(backoff).min(LONGEST_WAIT).mul_f64(rand::random_range(1.0..1.3));
            self.say(&format!(
                "the queue is full; waiting {}",
                humantime::format_duration(Duration::from_secs(wait.as_secs().max(1)))
            ));
            tokio::time::sleep(wait).await;
            backoff = (backoff * 2).min(LONGEST_WAIT);
        }
    }

    fn refuse(&mut self, line: u64, reason: &str) {
        self.refused += 1;
        if self.shown < SHOWN {
            self.shown += 1;
            self.say(&format!("line {line}: refused: {}", output::clean(reason)));
        }
    }

    /// A line for the person that does not tear the bar.
    fn say(&self, text: &str) {
        self.bar.suspend(|| output::say(text));
    }

    fn rate(&self) -> f64 {
        self.sent as f64 / self.started.elapsed().as_secs_f64().max(0.001)
    }

    fn progress(&mut self) {
        let text = format!("{} lines, {:.0}/s", self.sent, self.rate());
        if !std::io::stderr().is_terminal() && self.said.elapsed() > SAY_EVERY {
            self.said = Instant::now();
            output::say(&text);
        }
        self.bar.set_message(text);
    }

    fn finish(&self, result: Result<(), Failure>) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        if self.refused > self.shown {
            output::say(format_args!("and {} more lines were refused", self.refused - self.shown));
        }
        let seconds = self.started.elapsed().as_secs_f64();
        output::line(format_args!(
            "accepted {}, refused {}, in {seconds:.1} s ({:.0}/s)",
            self.accepted,
            self.refused,
            self.rate()
        ))?;
        match result {
            Err(Failure::Failed(text)) if self.sent > 0 => Err(Failure::failed(format!(
                "sent {} lines; stopped at line {} (go on with --from {}): {text}",
                self.sent, self.next, self.next
            ))),
            Err(failure) => Err(failure),
            Ok(()) if self.refused > 0 => Err(Failure::failed("")),
            Ok(()) => Ok(()),
        }
    }
}

/// What an answer other than "wait" means.
fn settled(answer: &Answer) -> Result<Taken, Failure> {
    // 400 is the answer to a batch of which nothing was accepted: it lists the lines as 200 does.
    let lists = answer.status.is_success() || answer.status == StatusCode::BAD_REQUEST;
    if lists
        && let Ok(taken) = answer.json::<Taken>()
        && (answer.status.is_success() || !taken.refused.is_empty())
    {
        return Ok(taken);
    }
    let hint = match answer.status {
        StatusCode::UNAUTHORIZED => {
            " (http.password of this configuration is not that of the running process, or its http.acl leaves this address out)"
        }
        StatusCode::PAYLOAD_TOO_LARGE => " (try a smaller --batch)",
        _ => "",
    };
    Err(Failure::failed(format!("the answer is {}: {}{hint}", answer.status.as_u16(), answer.reason())))
}

/// Reads one line of at most `most` bytes, one more where it is longer; the rest of such a line is skipped. Gives the bytes read.
fn read_line(input: &mut dyn BufRead, line: &mut Vec<u8>, most: usize) -> std::io::Result<u64> {
    let mut length = input.take(most as u64 + 1).read_until(b'\n', line)? as u64;
    if line.last() == Some(&b'\n') {
        return Ok(length);
    }
    while line.len() > most {
        let rest = input.fill_buf()?;
        if rest.is_empty() {
            break;
        }
        let end = rest.iter().position(|byte| *byte == b'\n');
        let skip = end.map_or(rest.len(), |at| at + 1);
        input.consume(skip);
        length += skip as u64;
        if end.is_some() {
            break;
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_an_end_takes_no_memory_and_the_next_one_is_found() {
        let text = format!("{}\nnext\nlast", "x".repeat(100));
        let mut input = std::io::BufReader::with_capacity(7, text.as_bytes());
        let mut lines = Vec::new();
        let mut read = 0;
        loop {
            let mut line = Vec::new();
            let length = read_line(&mut input, &mut line, 10).unwrap();
            if length == 0 {
                break;
            }
            read += length;
            lines.push(line);
        }
        assert_eq!(lines, [b"xxxxxxxxxxx".to_vec(), b"next\n".to_vec(), b"last".to_vec()]);
        assert_eq!(read as usize, text.len());
    }
}
