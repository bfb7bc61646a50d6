//! The one thread that writes: puts reports into their days, commits, and only then answers.
//!
//! Owns put-if-absent and the group commit. A report is in one of three places: waiting here with its caller, committed, or refused
//! back to its caller; after an error a day's writer is thrown away with all that it had not committed, so nothing is half there.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tantivy::indexer::IndexWriterOptions;
use tantivy::merge_policy::LogMergePolicy;
use tantivy::{IndexWriter, TantivyDocument};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::{error, warn};

use super::closer::Closer;
use super::day::{Day, Days, day_of, name_of};
use super::schema::half;
use super::seen::Seen;
use super::{Problem, unavailable};
use crate::history::{HistoryError, Settings, Stored};
use crate::report::{LoginReport, ReportId, Time};
use crate::telemetry::Metrics;

/// The least memory that an index writer takes, and the most writers that are open at once.
const LEAST_MEMORY: usize = 15_000_000;
const MOST_OPEN: usize = 4;
/// A day into which nothing came for so long is closed and its segments are merged into one.
const IDLE: Duration = Duration::from_secs(60);

type Reply<T> = oneshot::Sender<Result<T, HistoryError>>;

/// What the thread is asked for.
pub(super) enum Command {
    /// Put this in.
    Store(Arc<LoginReport>, Reply<Stored>, OwnedSemaphorePermit),
    /// Remove the days before this one.
    Retain(i64, Reply<usize>),
}

/// A day that is being written.
pub(super) struct OpenDay {
    pub(super) day: Arc<Day>,
    pub(super) writer: IndexWriter,
    seen: Seen,
    fresh: HashSet<ReportId>,
    waiting: Vec<(Reply<Stored>, Stored, OwnedSemaphorePermit)>,
    touched: Instant,
}

pub(super) struct Writer {
    days: Arc<Days>,
    settings: Settings,
    metrics: Arc<Metrics>,
    open: HashMap<i64, OpenDay>,
    closer: Closer,
    waiting: usize,
    due: Option<Instant>,
}

impl Writer {
    pub(super) fn new(days: Arc<Days>, settings: &Settings, metrics: Arc<Metrics>) -> Result<Self, HistoryError> {
        let closer = Closer::start().map_err(|error| unavailable(format!("no thread can be started: {error}")))?;
        Ok(Self { days, settings: settings.clone(), metrics, open: HashMap::new(), closer, waiting: 0, due: None })
    }

    /// Runs until every sender is gone; commits what waits.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let until = self.due.map_or(IDLE, |due| due.saturating_duration_since(Instant::now()));
            let command = match commands.recv_timeout(until) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            // A panic in the index library must not end the thread that everybody waits for; what waited is refused and retried.
            let step = std::panic::catch_unwind(AssertUnwindSafe(|| self.step(command)));
            if step.is_err() {
                error!("the history's writer panicked; what was not committed is stored again");
                self.open.clear();
                self.waiting = 0;
                self.due = None;
            }
        }
        self.commit_all();
        for (_, open) in self.open.drain() {
            self.closer.close(open, false);
        }
        self.closer.finish();
    }

    fn step(&mut self, command: Option<Command>) {
        match command {
            Some(Command::Store(report, reply, permit)) => self.store(&report, reply, permit),
            Some(Command::Retain(before, reply)) => {
                let _ = reply.send(self.retain(before));
            }
            None => {}
        }
        let due = self.due.is_some_and(|due| due <= Instant::now());
        if due || self.waiting >= self.settings.commit_at {
            self.commit_all();
        }
        self.close_idle();
    }

    fn store(&mut self, report: &LoginReport, reply: Reply<Stored>, permit: OwnedSemaphorePermit) {
        let number = day_of(report.t.micros());
        if number < first_day(Time::now(), &self.settings) {
            let _ = reply.send(Ok(Stored::TooOld));
            return;
        }
        let found = self.open_day(number).and_then(|open| open.put(report));
        let stored = match found {
            Ok(Some(stored)) => stored,
            Ok(None) => {
                let _ = reply.send(Ok(Stored::Already));
                return;
            }
            Err(problem) => {
                let problem = self.fail(number, &problem);
                let _ = reply.send(Err(problem));
                return;
            }
        };
        if let Some(open) = self.open.get_mut(&number) {
            open.waiting.push((reply, stored, permit));
            self.waiting += 1;
            self.due.get_or_insert_with(|| Instant::now() + self.settings.commit_every);
        }
    }

    fn open_day(&mut self, number: i64) -> Result<&mut OpenDay, Problem> {
        if !self.open.contains_key(&number) {
            let memory = self.settings.writer_memory.as_u64() as usize;
            let most = (memory / LEAST_MEMORY).clamp(1, MOST_OPEN);
            while self.open.len() >= most {
                let Some(oldest) = self.open.iter().min_by_key(|(_, open)| open.touched).map(|(day, _)| *day) else {
                    break;
                };
                self.close(oldest);
            }
            self.closer.wait_for(number);
            let open = OpenDay::open(self.days.create(number)?, memory / most)?;
            self.open.insert(number, open);
        }
        self.open.get_mut(&number).ok_or_else(|| Problem("a day that was opened is not open".to_owned()))
    }

    /// Refuses all that waits for this day and throws its writer away.
    fn fail(&mut self, number: i64, problem: &Problem) -> HistoryError {
        let error = unavailable(format!("{} of {}", problem.0, name_of(number)));
        warn!(day = name_of(number), error = problem.0, "the history cannot be written");
        if let Some(open) = self.open.remove(&number) {
            self.waiting -= open.waiting.len();
            for (reply, ..) in open.waiting {
                let _ = reply.send(Err(error.clone()));
            }
        }
        error
    }

    fn commit_all(&mut self) {
        let days: Vec<i64> = self.open.iter().filter(|(_, o)| !o.waiting.is_empty()).map(|(day, _)| *day).collect();
        days.into_iter().for_each(|day| self.commit(day));
        self.due = None;
    }

    fn commit(&mut self, number: i64) {
        let Some(open) = self.open.get_mut(&number) else { return };
        if open.waiting.is_empty() {
            return;
        }
        let started = Instant::now();
        if let Err(problem) = open.commit() {
            self.fail(number, &problem);
            return;
        }
        self.metrics.commit.observe(started.elapsed().as_secs_f64());
        self.waiting -= open.waiting.len();
        for (reply, stored, _) in open.waiting.drain(..) {
            if stored == Stored::New {
                self.metrics.stored.inc();
            }
            let _ = reply.send(Ok(stored));
        }
    }

    fn close(&mut self, number: i64) {
        self.commit(number);
        if let Some(open) = self.open.remove(&number) {
            self.closer.close(open, true);
        }
    }

    fn close_idle(&mut self) {
        let newest = self.open.keys().max().copied();
        let idle = self
            .open
            .iter()
            .find(|(day, open)| Some(**day) != newest && open.waiting.is_empty() && open.touched.elapsed() >= IDLE);
        if let Some(day) = idle.map(|(day, _)| *day) {
            self.close(day);
        }
    }

    fn retain(&mut self, before: i64) -> Result<usize, HistoryError> {
        let gone: Vec<i64> = self.open.keys().filter(|day| **day < before).copied().collect();
        gone.into_iter().for_each(|day| self.close(day));
        self.closer.wait_before(before);
        self.days.remove_before(before).map_err(|problem| unavailable(problem.0))
    }
}

/// The first day that is kept, seen from this time.
pub(super) fn first_day(now: Time, settings: &Settings) -> i64 {
    day_of(now.micros()) - i64::from(settings.retention_days)
}

impl OpenDay {
    fn open(day: Arc<Day>, memory: usize) -> Result<Self, Problem> {
        let options = IndexWriterOptions::builder()
            .num_worker_threads(1)
            .num_merge_threads(1)
            .memory_budget_per_thread(memory.max(LEAST_MEMORY))
            .build();
        let writer: IndexWriter<TantivyDocument> = day.index.writer_with_options(options)?;
        writer.set_merge_policy(Box::new(LogMergePolicy::default()));
        let seen = day.seen()?;
        Ok(Self { day, writer, seen, fresh: HashSet::new(), waiting: Vec::new(), touched: Instant::now() })
    }

    /// What the caller gets after the commit; `None`: it is committed already.
    fn put(&mut self, report: &LoginReport) -> Result<Option<Stored>, Problem> {
        self.touched = Instant::now();
        if self.fresh.contains(&report.id) {
            return Ok(Some(Stored::Already));
        }
        if self.seen.may_have(half(&report.id)) && self.day.has(&report.id)? {
            return Ok(None);
        }
        let document = self.day.fields.document(report).map_err(|error| Problem(error.to_string()))?;
        self.writer.add_document(document)?;
        self.fresh.insert(report.id);
        Ok(Some(Stored::New))
    }

    fn commit(&mut self) -> Result<(), Problem> {
        self.writer.commit()?;
        self.day.reload()?;
        for id in self.fresh.drain() {
            Day::note(&mut self.seen, &id);
        }
        Ok(())
    }
}
