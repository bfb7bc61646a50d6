//! Cases side by side: a thread for each, so many at once as the settings say, their verdicts in the order of the cases.
//!
//! Owns the threads. One that hangs in C code is given up, so that the other cases still run; it ends with the process.

use std::any::Any;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::case::{self, Case, Work};
use super::{Settings, Verdict};
use crate::policy::watchdog::{self, Event};

/// What the threads tell.
enum News {
    Done(Verdict),
    Stuck(usize),
}

/// Runs the cases, each in a folder below `root`. A verdict comes for each, in their order. Once the receiver is dropped no further case
/// is begun.
pub fn start(
    cases: Arc<[Arc<Case>]>,
    settings: Arc<Settings>,
    root: &Path,
) -> Result<UnboundedReceiver<Verdict>, std::io::Error> {
    let (verdicts, receiver) = unbounded_channel();
    let work = Work { cases, settings, root: root.to_owned() };
    let thread = std::thread::Builder::new().name("test-cases".to_owned());
    thread.spawn(move || coordinate(&work, &verdicts))?;
    Ok(receiver)
}

fn coordinate(work: &Work, verdicts: &UnboundedSender<Verdict>) {
    let (tell, news): (Sender<News>, Receiver<News>) = channel();
    let mut running: HashMap<usize, Instant> = HashMap::new();
    let mut decided: HashMap<usize, Verdict> = HashMap::new();
    let (mut next, mut sent) = (0, 0);
    loop {
        while next < work.cases.len() && running.len() < work.settings.jobs.max(1) && !verdicts.is_closed() {
            match begin(next, work, &tell) {
                Ok(()) => drop(running.insert(next, Instant::now())),
                Err(error) => drop(decided.insert(next, case::fault(next, format!("cannot start a thread: {error}")))),
            }
            next += 1;
        }
        while let Some(verdict) = decided.remove(&sent) {
            sent += 1;
            // Nobody waits for the rest: no further case begins.
            let _ = verdicts.send(verdict);
        }
        if running.is_empty() && (next == work.cases.len() || verdicts.is_closed()) {
            return;
        }
        match news.recv() {
            // The thread of a case that was given up may still come back.
            Ok(News::Done(verdict)) if running.remove(&verdict.number).is_some() => {
                decided.insert(verdict.number, verdict);
            }
            Ok(News::Stuck(number)) => {
                if let Some(began) = running.remove(&number) {
                    let limit = work.settings.policy.stuck_after;
                    decided.insert(number, case::stuck(number, limit, began.elapsed()));
                }
            }
            Ok(News::Done(_)) => {}
            // This function has a sender itself.
            Err(_) => return,
        }
    }
}

fn begin(number: usize, work: &Work, tell: &Sender<News>) -> Result<(), std::io::Error> {
    let (work, tell) = (work.clone(), tell.clone());
    let thread = std::thread::Builder::new().name(format!("case-{number}"));
    thread.spawn(move || {
        let stuck = tell.clone();
        let _watched = watchdog::register(number, work.settings.policy.stuck_after, move |event| {
            if let Event::Stuck { worker, .. } = event {
                let _ = stuck.send(News::Stuck(worker));
            }
        });
        let ran = std::panic::catch_unwind(AssertUnwindSafe(|| {
            case::run(number, &work.cases[number], &work.settings, &work.root)
        }));
        let verdict = ran.unwrap_or_else(|panic| {
            let said = format!("a fault of this program: {}", words(&*panic));
            case::fault(number, said)
        });
        let _ = tell.send(News::Done(verdict));
    })?;
    Ok(())
}

fn words(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?")
}
