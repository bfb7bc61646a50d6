//! `trackalert demo`: the whole program on a temporary folder, a fortnight of a small provider's logins with attacks hidden in them,
//! and what was found.
//!
//! A client plus a configuration file: everything goes in over HTTP as wforce sends it, and comes out at a webhook. Owns the order of
//! the show. How the program is started is handed in ([`run`]), so that nothing here knows the parts of it.

mod accounts;
mod cards;
mod dice;
mod drained;
pub mod feed;
mod folder;
mod receiver;
mod screen;
pub mod stories;
pub mod traffic;
mod world;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::LocalBoxFuture;

use crate::alert::Alert;
use crate::report::Time;
use drained::{Drained, drained};
use feed::{Door, FeedError, Progress, feed};
use folder::{Folder, Recorder};
use receiver::Receiver;
use screen::Screen;
use stories::Ledger;
use traffic::{TrafficOptions, traffic};

/// The last report is so long ago, so that none lies in the future.
const BEFORE_NOW: Duration = Duration::from_secs(600);
const TICK: Duration = Duration::from_millis(200);

/// What the demo may be told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Leave the configuration, the data and the reports in this folder, which must be new or empty
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// End after the table instead of serving on until Ctrl-C
    #[arg(long)]
    pub exit: bool,
    /// Which made-up world: the same number gives the same logins
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// About how many login reports to make (at least 5,000)
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    pub reports: usize,
}

/// Why the demo did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A file could not be written.
    #[error("{path}: {1}; name another folder with --keep", path = .0.display())]
    Folder(PathBuf, #[source] std::io::Error),
    /// A folder with something in it is not overwritten.
    #[error("{} is not empty; name a new folder with --keep, or empty this one", .0.display())]
    NotEmpty(PathBuf),
    /// The GeoIP files could not be made.
    #[error("the GeoIP files could not be made: {0}")]
    GeoIp(String),
    /// No port on loopback.
    #[error("cannot listen on 127.0.0.1: {0}")]
    Listen(#[source] std::io::Error),
    /// Too few reports to hide anything in.
    #[error("--reports {0} is too few to hide anything in; give at least {FEWEST}", FEWEST = traffic::FEWEST)]
    TooFew(usize),
    /// The program did not start.
    #[error("the program did not start: {0}")]
    Start(String),
    /// The program did not take a report.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// The program stopped working.
    #[error("the program has handled {handled} of {fed} reports and does not get on; its log says why")]
    Stuck {
        /// Reports handled.
        handled: u64,
        /// Reports that it had accepted.
        fed: u64,
    },
    /// Ctrl-C before the end.
    #[error("interrupted before the end")]
    Interrupted,
}

/// The program, once started.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// Ends it well.
    pub drain: LocalBoxFuture<'static, ()>,
}

/// How long it took.
struct Times {
    reports: u64,
    fed: Duration,
    handled: Duration,
    dead: u64,
}

/// Runs the demo. `start` starts the program with a configuration file and settings that go over it (`section.key=value`). Gives
/// whether every attack was found.
pub async fn run(
    options: Options,
    start: impl AsyncFnOnce(&Path, &[String]) -> Result<Running, String>,
) -> Result<bool, DemoError> {
    if options.reports < traffic::FEWEST {
        return Err(DemoError::TooFew(options.reports));
    }
    let folder = Folder::prepare(options.keep.as_deref())?;
    let mut receiver = Receiver::listen(&folder.secret).await?;
    // Not in the file: a later `run -C` has no receiver, and would try it for hours. The log would tear the cards apart.
    let sets = [
        format!(
            "notify.channels=[{{kind = \"webhook\", url = \"http://{}/alerts\", secret = \"{}\"}}]",
            receiver.address, folder.secret
        ),
        "log.level=error".to_owned(),
    ];
    let running = start(&folder.file, &sets).await.map_err(DemoError::Start)?;
    let shown = show(&options, &folder, running.address, &mut receiver).await;
    tokio::select! {
        () = running.drain => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    if shown.is_ok() && options.keep.is_some() {
        screen::print(format_args!(
            "Configuration, data and reports are left in {0}. To see it all again, without the show:\n\
             \x20 rm -r {0}/data; trackalert run -C {0}/trackalert.toml\n\
             \x20 trackalert send -C {0}/trackalert.toml {0}/{1}",
            folder.path.display(),
            folder::REPORTS,
        ));
    }
    shown
}

async fn show(
    options: &Options,
    folder: &Folder,
    address: SocketAddr,
    receiver: &mut Receiver,
) -> Result<bool, DemoError> {
    let until = Time::now().minus(BEFORE_NOW);
    let stream = traffic(options.seed, &TrafficOptions { reports: options.reports, until });
    let mut screen = Screen::new(options.reports as u64);
    screen.say(format_args!(
        "A small provider with {} customers: {} reports of thin history, then a fortnight; some {} reports in all.\n\
         Hidden in it: {} attacks, and {} things that only look like one. The program runs at http://{address}\n",
        stream.accounts(),
        stream.thin(),
        options.reports,
        stream.stories().iter().filter(|story| story.is_attack()).count(),
        stream.stories().iter().filter(|story| !story.is_attack()).count(),
    ));
    let mut ledger = Ledger::new(stream.stories());
    let progress = Arc::new(Progress::default());
    let door = Door { address, secret: folder.secret.clone() };
    let work = work(door, stream, folder.recorder()?, Arc::clone(&progress));
    let times = watch(work, &mut screen, &progress, receiver, &mut ledger).await;
    screen.end();
    let times = times?;
    // What was answered is in the channel before the alerts queue is empty.
    while let Ok(alert) = receiver.alerts.try_recv() {
        tell(&screen, &mut ledger, &alert);
    }
    screen.say(cards::table(&ledger, screen.wide, screen.colour));
    screen.say(summary(&times));
    if !options.exit {
        serve(&screen, folder, address, receiver, &ledger).await;
    }
    Ok(ledger.all_found())
}

/// Feeds all and waits until all is handled.
async fn work(
    door: Door,
    stream: traffic::Traffic,
    mut recorder: Recorder,
    progress: Arc<Progress>,
) -> Result<Times, DemoError> {
    let (address, began) = (door.address, Instant::now());
    let reports = feed(door, stream.inspect(|report| recorder.take(report)), progress).await?;
    recorder.end()?;
    let fed = began.elapsed();
    let Drained { at, dead } = drained(address, reports).await?;
    Ok(Times { reports, fed, handled: at.duration_since(began), dead })
}

/// Shows what happens while the work goes on.
async fn watch(
    work: impl Future<Output = Result<Times, DemoError>>,
    screen: &mut Screen,
    progress: &Progress,
    receiver: &mut Receiver,
    ledger: &mut Ledger,
) -> Result<Times, DemoError> {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    screen.begin();
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(work, interrupted);
    loop {
        tokio::select! {
            done = &mut work => return done,
            Some(alert) = receiver.alerts.recv() => tell(screen, ledger, &alert),
            _ = tick.tick() => screen.tick(progress, ledger.alerts()),
            _ = &mut interrupted => return Err(DemoError::Interrupted),
        }
    }
}

fn tell(screen: &Screen, ledger: &mut Ledger, alert: &Alert) {
    let verdict = ledger.take(alert);
    if verdict != stories::Verdict::Again {
        screen.say(cards::card(alert, Some((verdict, ledger)), screen.colour));
    }
}

fn summary(times: &Times) -> String {
    let rate = |time: Duration| times.reports as f64 / time.as_secs_f64().max(0.001);
    let dead = if times.dead == 0 { String::new() } else { format!("; {} dead letters", times.dead) };
    format!(
        "{} reports, one POST each: accepted in {:.1} s ({:.0}/s), all handled after {:.1} s ({:.0}/s){dead}",
        times.reports,
        times.fed.as_secs_f64(),
        rate(times.fed),
        times.handled.as_secs_f64(),
        rate(times.handled),
    )
}

/// Goes on showing alerts until Ctrl-C.
async fn serve(screen: &Screen, folder: &Folder, address: SocketAddr, receiver: &mut Receiver, ledger: &Ledger) {
    let (mut login, mut sprayer, file) = ("nobody", "nowhere", folder.file.display());
    for expected in ledger.stories().iter().flat_map(|(story, _)| &story.expected).rev() {
        match &expected.subject {
            stories::Subject::Login(name) => login = name,
            stories::Subject::Address(address) => sprayer = address,
        }
    }
    screen.say(format_args!(
        "\nIt goes on serving at http://{address} until Ctrl-C. To look around, in another terminal:\n\
         \x20 trackalert query -C {file} --login {login} --since 200d\n\
         \x20 trackalert query -C {file} --remote {sprayer} --failed --by login\n\
         \x20 curl http://{address}/metrics\n\
         or make an alert of your own (its card shows up here):\n\
         \x20 curl -d '{{\"login\":\"{login}\",\"remote\":\"198.19.80.7\",\"success\":true,\"protocol\":\"imap\"}}' \
         http://{address}/command/report\n"
    ));
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        tokio::select! {
            Some(alert) = receiver.alerts.recv() => screen.say(cards::card(&alert, None, screen.colour)),
            _ = &mut interrupted => return,
        }
    }
}

#[cfg(test)]
mod show_tests;
#[cfg(test)]
mod tests;
