//! `trackalert console`: lines of Lua in the running program.
//!
//! Owns the editing (history, completion, a line that goes on) and the printing. The connection is [`crate::console`]'s.

use std::io::IsTerminal;
use std::time::Duration;

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Context, Editor, Helper};
use tokio::net::TcpStream;

use super::{Common, Failure, block_on, output};
use crate::console::noise::{self, KEY, Secure};
use crate::console::{Answer, Line, NAMES};

const EXAMPLES: &str = "\
Examples:
  trackalert console -C trackalert.conf                 lines with history and completion; Ctrl-D ends it
  trackalert console -C trackalert.conf -e 'stats()'    one line, its result on the standard output
  trackalert console -C trackalert.toml -e 'reload()'   the changed policies and files, as SIGHUP does
  trackalert console --make-key                         a key for console.key, or for setKey(\"…\")

Each line runs in every policy worker. What the first answers is printed; a worker that answers something else is named.";

/// How long the program may take to answer a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// What no environment has among its names: Lua's own words.
const WORDS: [&str; 14] = [
    "break", "else", "elseif", "false", "for", "function", "goto", "local", "nil", "repeat", "return", "then", "true",
    "while",
];

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// One line instead of a prompt (may be given again)
    #[arg(short = 'e', long = "execute", value_name = "LUA")]
    lines: Vec<String>,
    /// Print a new key and end
    #[arg(long, conflicts_with = "lines")]
    make_key: bool,
}

pub(super) fn run(common: &Common, args: &Args) -> Result<(), Failure> {
    if args.make_key {
        return output::line(noise::make_key());
    }
    let config = common.load()?;
    let settings = &config.console;
    if settings.listen.is_empty() || settings.key.is_empty() {
        return Err(Failure::usage(
            "the program has no console: set console.listen and console.key (controlSocket and setKey in a trackalert.conf)",
        ));
    }
    let key = noise::key(settings.key.expose())
        .ok_or_else(|| Failure::usage(format!("console.key: is no base64 of {KEY} bytes; --make-key makes one")))?;
    let address = settings.listen.clone();
    block_on(async move {
        let mut console = connect(&address, &key).await?;
        if !args.lines.is_empty() {
            let mut failed = false;
            for line in &args.lines {
                let answer = ask(&mut console, line).await?;
                failed |= answer.failed;
                show(&answer)?;
            }
            return if failed { Err(Failure::failed("the line failed")) } else { Ok(()) };
        }
        talk(console).await
    })
}

async fn connect(address: &str, key: &[u8; KEY]) -> Result<Secure<TcpStream>, Failure> {
    let failed = |said: String| Failure::failed(format!("console at {address} (console.listen): {said}"));
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Secure::connect(stream, key).await
    };
    match tokio::time::timeout(CONNECT, connecting).await {
        Ok(Ok(console)) => Ok(console),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(failed("it hung up: console.key differs from the running program's".to_owned()))
        }
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no answer within {CONNECT:?}"))),
    }
}

async fn ask(console: &mut Secure<TcpStream>, lua: &str) -> Result<Answer, Failure> {
    let gone = |error: std::io::Error| Failure::failed(format!("the console is gone: {error}"));
    let line = serde_json::to_vec(&Line { lua: lua.to_owned() }).map_err(|error| Failure::failed(error.to_string()))?;
    console.send(&line).await.map_err(gone)?;
    let answer = console.receive().await.map_err(gone)?;
    let answer = answer.ok_or_else(|| Failure::failed("the console is gone: the program has ended"))?;
    serde_json::from_slice(&answer).map_err(|error| Failure::failed(format!("an answer of another version: {error}")))
}

fn show(answer: &Answer) -> Result<(), Failure> {
    if !answer.text.is_empty() {
        output::line(clean(&answer.text))?;
    }
    for (worker, text) in &answer.others {
        output::line(format!("worker {worker} differs: {}", clean(text)))?;
    }
    Ok(())
}

/// Fit for a terminal; lines and columns stay.
fn clean(text: &str) -> String {
    text.split_inclusive(['\n', '\t']).fold(String::new(), |clean, part| {
        let end = part.chars().next_back().filter(|c| matches!(c, '\n' | '\t'));
        let body = end.map_or(part, |end| part.strip_suffix(end).unwrap_or(part));
        clean + &output::clean(body) + &end.map(String::from).unwrap_or_default()
    })
}

/// Reads lines until there are no more.
async fn talk(mut console: Secure<TcpStream>) -> Result<(), Failure> {
    let failed = |error: ReadlineError| Failure::failed(format!("the terminal: {error}"));
    let mut editor: Editor<Names, FileHistory> = Editor::new().map_err(failed)?;
    // Nobody completes a line that comes from a pipe.
    if std::io::stdin().is_terminal() {
        let answer = ask(&mut console, NAMES).await?;
        editor.set_helper(Some(Names::of(&answer)));
    }
    let history = std::env::home_dir().map(|home| home.join(".trackalert_history"));
    if let Some(history) = history.as_ref().filter(|_| std::io::stdin().is_terminal()) {
        let _ = editor.load_history(history);
    }
    let mut begun = String::new();
    loop {
        let prompt = if begun.is_empty() { "> " } else { ">> " };
        match editor.readline(prompt) {
            Ok(line) => {
                if !begun.is_empty() {
                    begun.push('\n');
                }
                begun.push_str(&line);
            }
            // Ctrl-C takes back what was begun.
            Err(ReadlineError::Interrupted) if !begun.is_empty() => {
                begun.clear();
                continue;
            }
            Err(ReadlineError::Interrupted | ReadlineError::Eof) => break,
            Err(error) => return Err(failed(error)),
        }
        if begun.trim().is_empty() {
            begun.clear();
            continue;
        }
        let answer = ask(&mut console, &begun).await?;
        if answer.incomplete {
            continue;
        }
        let _ = editor.add_history_entry(begun.as_str());
        begun.clear();
        show(&answer)?;
    }
    if let Some(history) = history.filter(|_| std::io::stdin().is_terminal()) {
        let _ = editor.save_history(&history);
    }
    Ok(())
}

/// Completes names: what the running program has, as it was when the console was opened, and Lua's words.
struct Names(Vec<String>);

impl Names {
    /// Of what the program says. Where it could not say it, Lua's words are left.
    fn of(answer: &Answer) -> Self {
        let given = answer.text.lines().filter(|_| !answer.failed).map(str::to_owned);
        Self(given.chain(WORDS.map(str::to_owned)).collect())
    }
}

impl Completer for Names {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let before = line.get(..at).unwrap_or_default();
        let start = before.rfind(|c: char| !c.is_alphanumeric() && c != '_' && c != '.').map_or(0, |at| at + 1);
        let word = &before[start..];
        let names = self.0.iter().filter(|name| !word.is_empty() && name.starts_with(word));
        Ok((start, names.cloned().collect()))
    }
}

impl Hinter for Names {
    type Hint = String;
}
impl Highlighter for Names {}
impl Validator for Names {}
impl Helper for Names {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_behind_whatever_stands_before() {
        let history = FileHistory::new();
        let said = Answer { text: "net.set(\nshowACL(\nshowVersion(\nx".to_owned(), ..Answer::default() };
        let names = Names::of(&said);
        let complete = |line: &str| names.complete(line, line.len(), &Context::new(&history)).unwrap();
        assert_eq!(complete("showA"), (0, vec!["showACL(".to_owned()]));
        assert_eq!(complete("print(showVer"), (6, vec!["showVersion(".to_owned()]));
        assert_eq!(complete("y = net."), (4, vec!["net.set(".to_owned()]));
        assert_eq!(complete("retu").1, ["return"]);
        assert_eq!(complete("x = ").1, Vec::<String>::new());
        let none = Names::of(&Answer { failed: true, ..said.clone() });
        assert_eq!(none.0, WORDS);
    }
}
