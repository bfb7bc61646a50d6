//! `trackalert dead-letters resend` and `drop`: changes of many letters, a page at a time, with what became of each.
//!
//! Never asks for more than one page at once: what an interrupted change has done is known to a page.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::client::Client;
use super::super::session::Session;
use super::super::when::When;
use super::super::{Common, Failure, output};
use super::{Filter, Format, PAGE, Place, id_of, list, pages, word};
use crate::config::Roles;
use crate::report::Time;

#[derive(Debug, clap::Args)]
pub(super) struct Change {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    filter: Filter,
    /// These letters
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// These letters (the same as ID)
    #[arg(long = "id", value_name = "ID")]
    more_ids: Vec<String>,
    /// All letters of the queue
    #[arg(long, conflicts_with_all = ["ids", "more_ids"])]
    all: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// How to print it: a count; one object with the count and what was missing; one line a letter
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Resend,
    Drop,
}

#[derive(Debug, Deserialize)]
struct Found {
    found: BTreeSet<String>,
}

impl Verb {
    const fn done(self) -> &'static str {
        match self {
            Self::Resend => "sent again",
            Self::Drop => "dropped",
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Resend => "resend",
            Self::Drop => "drop",
        }
    }
}

pub(super) fn apply(common: &Common, change: &Change, verb: Verb) -> Result<(), Failure> {
    let ids: Vec<String> = change.ids.iter().chain(&change.more_ids).cloned().collect();
    if ids.is_empty() && change.filter.is_empty() && !change.all {
        return Err(Failure::usage(
            "which letters? name ids, or a filter (--reason, --policy, --since, --until), or --all; --dry-run shows them",
        ));
    }
    if !ids.is_empty() && !change.filter.is_empty() {
        return Err(Failure::usage("name either ids or a filter"));
    }
    Session::with(common, change.place.offline.then_some(Roles::none()), async |client| {
        if change.dry_run {
            return list(client, change.place.queue, &change.filter.query(), &ids, change.format).await;
        }
        Work::new(client, change, verb).all(ids).await
    })
}

/// A change of many letters, and how far it is.
struct Work<'a> {
    client: &'a Client,
    change: &'a Change,
    verb: Verb,
    bar: indicatif::ProgressBar,
    done: u64,
    missing: Vec<String>,
    /// A page was asked for, and not answered yet.
    asked: bool,
}

impl<'a> Work<'a> {
    fn new(client: &'a Client, change: &'a Change, verb: Verb) -> Self {
        let bar = output::bar(None, verb.done());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { client, change, verb, bar, done: 0, missing: Vec::new(), asked: false }
    }

    /// These, or those that fit the filter.
    async fn all(mut self, ids: Vec<String>) -> Result<(), Failure> {
        let result = self.pages(ids).await;
        self.bar.finish_and_clear();
        let done = self.done;
        match self.change.format {
            Format::Table => output::line(format_args!("{done} {}", self.verb.done()))?,
            Format::Json => output::line(format_args!("{:#}", json!({ "done": done, "missing": self.missing })))?,
            Format::Ndjson => {}
        }
        for id in &self.missing {
            output::say(format_args!("there is no dead letter {}", output::clean(id)));
        }
        if self.asked {
            output::say("a part of the next ones may be done, too; the same command goes on with what is left");
        }
        result?;
        if self.missing.is_empty() { Ok(()) } else { Err(Failure::failed("")) }
    }

    async fn pages(&mut self, ids: Vec<String>) -> Result<(), Failure> {
        let (client, queue) = (self.client, self.change.place.queue);
        if !ids.is_empty() {
            for page in ids.chunks(PAGE) {
                self.page(page).await?;
            }
            return Ok(());
        }
        // A letter that fails again becomes a new letter: without an end this would go on for ever.
        let mut filter = self.change.filter.clone();
        filter.until.get_or_insert(When(Time::now()));
        pages(client, queue, &filter.query(), async |letters: Vec<Value>| {
            self.page(&letters.iter().map(id_of).collect::<Vec<_>>()).await
        })
        .await
    }

    async fn page(&mut self, ids: &[String]) -> Result<(), Failure> {
        if ids.is_empty() {
            return Ok(());
        }
        let path = format!("/v1/admin/dead-letters/{}/{}", word(self.change.place.queue), self.verb.path());
        let body = json!({ "ids": ids }).to_string();
        self.asked = true;
        let Found { found } = self.client.admin(Method::POST, &path, &[], Some(body)).await?;
        self.asked = false;
        for id in ids {
            let was_there = found.contains(id);
            if self.change.format == Format::Ndjson {
                output::line(json!({ "id": id, "found": was_there }))?;
            }
            if was_there {
                self.done += 1;
            } else {
                self.missing.push(id.clone());
            }
        }
        self.bar.set_position(self.done);
        Ok(())
    }
}
