//! `--watch`: runs the tests again when a file of the policies has changed, until Ctrl-C.
//!
//! Looks at the stamps of the files now and then instead of asking the system to be told: a folder of policies has some dozens of files,
//! and looking works on shared folders and in containers, too.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::{Failure, output};
use super::Session;
use crate::harness::{Origin, is_old, policy_of};
use crate::policy::PolicySet;
use crate::stamp::Stamp;

/// Files that are looked at; with more, something else than policies was named.
const MOST_FILES: usize = 10_000;
/// Folders in folders.
const DEEPEST: usize = 8;

pub(super) async fn run(session: &Session<'_>) -> Result<(), Failure> {
    // What Ctrl-C ends with: the last round's outcome.
    let last = RefCell::new(Ok(()));
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => {}
        ended = rounds(session, &last) => return ended,
    }
    last.into_inner()
}

async fn rounds(session: &Session<'_>, last: &RefCell<Result<(), Failure>>) -> Result<(), Failure> {
    let mut first = true;
    loop {
        // Taken before the round: what changes while it runs is another round.
        let before = stamps(session);
        let outcome = match session.round().await {
            Ok(round) => round.outcome(),
            // Nothing to wait for where a path is wrong from the start.
            Err(failure) if first => return Err(failure),
            Err(Failure::Closed) => return Err(Failure::Closed),
            Err(failure) => Err(failure),
        };
        first = false;
        if let Err(Failure::Usage(text) | Failure::Failed(text)) = &outcome
            && !text.is_empty()
        {
            output::say(format_args!("trackalert: {text}"));
        }
        // Said already.
        *last.borrow_mut() = outcome.map_err(|failure| match failure {
            Failure::Usage(_) => Failure::usage("the last run had broken files"),
            other => other,
        });
        output::say(format_args!("watching {} files; Ctrl-C ends it", before.len()));
        let changed = change(session, &before).await;
        output::say(format_args!("\n{} has changed", changed.display()));
    }
}

/// Waits for a change and names the first file that has one.
async fn change(session: &Session<'_>, before: &BTreeMap<PathBuf, Stamp>) -> PathBuf {
    loop {
        // A time of zero would be a busy loop.
        tokio::time::sleep(session.args.interval.max(std::time::Duration::from_millis(10))).await;
        let now = stamps(session);
        let other = now.iter().find(|(path, stamp)| before.get(*path) != Some(stamp)).map(|(path, _)| path);
        if let Some(path) = other.or_else(|| before.keys().find(|path| !now.contains_key(*path))) {
            return path.clone();
        }
    }
}

/// The stamps of every file that a path's tests depend on: the policies with all in their folders, and the Lua that they share; an old
/// configuration with its tests.
fn stamps(session: &Session<'_>) -> BTreeMap<PathBuf, Stamp> {
    let mut found = BTreeMap::new();
    for path in &session.paths {
        if is_old(path, &session.settings.policy.legacy_config) {
            stamp(path, &mut found);
            look(&Origin::Old(path.clone()).tests(), DEEPEST, &mut found);
            continue;
        }
        let folder = if path.is_file() { policy_of(path) } else { Some(path.clone()) };
        let Some(folder) = folder else { continue };
        look(&folder, DEEPEST, &mut found);
        if PolicySet::is_policy(&folder)
            && let Some(around) = folder.canonicalize().ok().as_deref().and_then(Path::parent)
        {
            look(&around.join("lib"), DEEPEST, &mut found);
        }
    }
    found
}

fn look(folder: &Path, deep: usize, found: &mut BTreeMap<PathBuf, Stamp>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') || found.len() >= MOST_FILES {
            continue;
        }
        if !path.is_dir() {
            stamp(&path, found);
        } else if deep > 0 {
            look(&path, deep - 1, found);
        }
    }
}

fn stamp(path: &Path, found: &mut BTreeMap<PathBuf, Stamp>) {
    if path.is_file()
        && let Some(stamp) = Stamp::of(path)
    {
        found.insert(path.to_owned(), stamp);
    }
}
