//! `trackalert dead-letters`: what could not be handled, and what to do with it.
//!
//! Owns the words and the pages. Never takes a letter away by itself: the running process does, and confirms the copy first.

mod change;

use clap::{Subcommand, ValueEnum};
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;

use change::{Change, Verb, apply};

use super::client::Client;
use super::session::Session;
use super::when::When;
use super::{Common, Failure, output};
use crate::config::Roles;

/// Letters asked for, and changed, at once. A broker's letters are read as a whole for each page, so small pages would cost more.
const PAGE: usize = 200;

const EXAMPLES: &str = "\
Examples:
  trackalert dead-letters list
  trackalert dead-letters list --queue alerts --since 7d --format ndjson
  trackalert dead-letters show 0195c7e2a4b0-00000003
  trackalert dead-letters resend --policy new_origin --dry-run
  trackalert dead-letters resend --policy new_origin       runs that policy only
  trackalert dead-letters drop --reason malformed --until 30d
  trackalert dead-letters list --offline                   when no trackalert runs on this data folder";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// One line a letter, oldest first
    List {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        filter: Filter,
        /// Only these
        #[arg(long = "id", value_name = "ID")]
        ids: Vec<String>,
        /// How to print them
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// All of one letter: why, where it stood, headers and body
    Show {
        #[command(flatten)]
        place: Place,
        /// The letter
        id: String,
        /// How to print it
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Put letters back into their queue; only what failed is run again
    Resend(Change),
    /// Forget letters for good
    Drop(Change),
}

#[derive(Debug, Clone, clap::Args)]
struct Place {
    /// Of which queue
    #[arg(long, value_enum, default_value_t = Queue::Reports)]
    queue: Queue,
    /// Open the data folder; no trackalert must be running on it
    #[arg(long)]
    offline: bool,
}

#[derive(Debug, Clone, clap::Args)]
struct Filter {
    /// Only of this reason
    #[arg(long, value_enum, value_name = "REASON")]
    reason: Option<Reason>,
    /// Only where this policy (or, for alerts, this channel) failed
    #[arg(long, alias = "channel", value_name = "NAME")]
    policy: Option<String>,
    /// Only those rejected since: 7d, 2026-03-01, 2026-03-01T12:00:00Z
    #[arg(long, value_name = "WHEN")]
    since: Option<When>,
    /// Only those rejected before
    #[arg(long, value_name = "WHEN")]
    until: Option<When>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Queue {
    Reports,
    Alerts,
    /// What the broker will never take, of what was kept while it was down
    Spool,
    /// What is no report in the topic of receive.rekey_from
    Rekey,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Reason {
    Malformed,
    Policy,
    Hung,
    Channel,
    Internal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// One JSON document
    Json,
    /// One JSON object a line
    Ndjson,
}

#[derive(Debug, Deserialize)]
struct Page {
    letters: Vec<Value>,
    more: bool,
}

fn word<T: ValueEnum>(value: T) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl Filter {
    fn is_empty(&self) -> bool {
        self.reason.is_none() && self.policy.is_none() && self.since.is_none() && self.until.is_none()
    }

    /// As the route takes it.
    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        query.extend(self.reason.map(|reason| ("kind", word(reason))));
        query.extend(self.policy.clone().map(|name| ("only", name)));
        query.extend(self.since.map(|when| ("since", when.0.rfc3339())));
        query.extend(self.until.map(|when| ("until", when.0.rfc3339())));
        query
    }
}

/// The text of a key of a letter, `reason.kind` say, fit for a terminal.
fn field(letter: &Value, path: &str) -> String {
    match letter.pointer(path) {
        Some(Value::String(text)) => output::clean(text),
        Some(Value::Null) | None => String::new(),
        Some(other) => output::clean(&other.to_string()),
    }
}

fn id_of(letter: &Value) -> String {
    letter.get("id").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Calls `each` with the letters that match, page after page.
async fn pages(
    client: &Client,
    queue: Queue,
    query: &[(&'static str, String)],
    mut each: impl AsyncFnMut(Vec<Value>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let path = format!("/v1/admin/dead-letters/{}", word(queue));
    let mut after: Option<String> = None;
    loop {
        let mut query = query.to_vec();
        query.push(("most", PAGE.to_string()));
        query.extend(after.take().map(|id| ("after", id)));
        let page: Page = client.admin(Method::GET, &path, &query, None).await?;
        let last = page.letters.last().map(id_of);
        each(page.letters).await?;
        match last {
            Some(last) if page.more => after = Some(last),
            _ => return Ok(()),
        }
    }
}

pub(super) fn run(common: &Common, args: &Args) -> Result<(), Failure> {
    let offline = |place: &Place| place.offline.then_some(Roles::none());
    match &args.action {
        Action::List { place, filter, ids, format } => Session::with(common, offline(place), async |client| {
            list(client, place.queue, &filter.query(), ids, *format).await
        }),
        Action::Show { place, id, format } => {
            Session::with(common, offline(place), async |client| show(client, place.queue, id, *format).await)
        }
        Action::Resend(change) => apply(common, change, Verb::Resend),
        Action::Drop(change) => apply(common, change, Verb::Drop),
    }
}

async fn list(
    client: &Client,
    queue: Queue,
    query: &[(&'static str, String)],
    ids: &[String],
    format: Format,
) -> Result<(), Failure> {
    let mut table = output::table(&["id", "rejected", "key", "reason", "failed", "tries", "why"]);
    let mut count = 0_usize;
    let mut each = async |letters: Vec<Value>| -> Result<(), Failure> {
        for letter in letters {
            match format {
                Format::Ndjson => output::line(&letter)?,
                Format::Json => output::print(format_args!("{}{letter}", if count == 0 { "[\n" } else { ",\n" }))?,
                Format::Table => {
                    table.add_row(row(&letter));
                }
            }
            count += 1;
        }
        Ok(())
    };
    if ids.is_empty() {
        pages(client, queue, query, &mut each).await?;
    }
    // The route takes one id at a time.
    for id in ids {
        let query = [query, &[("id", id.clone())]].concat();
        pages(client, queue, &query, &mut each).await?;
    }
    match format {
        Format::Ndjson => Ok(()),
        Format::Json => output::line(if count == 0 { "[]" } else { "\n]" }),
        Format::Table if count == 0 => {
            output::say(format_args!("no dead letters in the {} queue fit", word(queue)));
            Ok(())
        }
        Format::Table => output::line(table),
    }
}

fn row(letter: &Value) -> Vec<String> {
    let paths = ["/id", "/rejected", "/key", "/reason/kind"];
    let mut row: Vec<String> = paths.iter().map(|path| field(letter, path)).collect();
    row.push(only(letter));
    row.push(field(letter, "/reason/attempts"));
    row.push(field(letter, "/reason/text"));
    row
}

fn only(letter: &Value) -> String {
    let names = letter.pointer("/reason/only").and_then(Value::as_array);
    let names = names.into_iter().flatten().filter_map(Value::as_str).map(output::clean);
    names.collect::<Vec<_>>().join(", ")
}

async fn show(client: &Client, queue: Queue, id: &str, format: Format) -> Result<(), Failure> {
    let mut found = None;
    pages(client, queue, &[("id", id.to_owned())], async |letters: Vec<Value>| {
        found = letters.into_iter().find(|letter| id_of(letter) == id);
        Ok(())
    })
    .await?;
    let Some(letter) = found else {
        return Err(Failure::failed(format!(
            "there is no dead letter {} in the {} queue",
            output::clean(id),
            word(queue)
        )));
    };
    match format {
        Format::Ndjson => output::line(&letter),
        Format::Json => output::line(format_args!("{letter:#}")),
        Format::Table => {
            for (name, path) in [
                ("id", "/id"),
                ("key", "/key"),
                ("published", "/published"),
                ("rejected", "/rejected"),
                ("reason", "/reason/kind"),
                ("why", "/reason/text"),
                ("tries", "/reason/attempts"),
                ("stood at", "/coordinates"),
                ("headers", "/headers"),
            ] {
                output::line(format_args!("{name:<10} {}", field(&letter, path)))?;
            }
            output::line(format_args!("{:<10} {}", "failed", only(&letter)))?;
            let body = letter.get("body").or_else(|| letter.get("body_base64")).cloned().unwrap_or_default();
            match body.as_str().map(serde_json::from_str::<Value>) {
                Some(Ok(json)) => output::line(format_args!("\n{}", clean_lines(&format!("{json:#}")))),
                _ => output::line(format_args!(
                    "\n{}",
                    field(&letter, if letter.get("body").is_some() { "/body" } else { "/body_base64" })
                )),
            }
        }
    }
}

fn clean_lines(text: &str) -> String {
    text.lines().map(output::clean).collect::<Vec<_>>().join("\n")
}
