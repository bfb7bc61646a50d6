//! What a person sees, from the first report to the last alert and on.
//!
//! Owns the order in which things are shown. Starts and ends nothing of the program.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::drained::{Drained, drained};
use super::feed::{Door, Progress, feed};
use super::folder::{Folder, Recorder};
use super::ledger::{Ledger, Verdict};
use super::receiver::Receiver;
use super::screen::Screen;
use super::stories::Subject;
use super::traffic::{Traffic, TrafficOptions, traffic};
use super::{DemoError, Options, cards};
use crate::alert::Alert;
use crate::report::Time;

/// The last report is so long ago, so that none lies in the future.
const BEFORE_NOW: Duration = Duration::from_secs(600);
const TICK: Duration = Duration::from_millis(200);

/// How long it took.
struct Times {
    reports: u64,
    fed: Duration,
    handled: Duration,
    dead: u64,
}

/// Shows all. Gives whether every attack was found.
pub(super) async fn show(
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
    stream: Traffic,
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
    if verdict != Verdict::Again {
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
            Subject::Login(name) => login = name,
            Subject::Address(address) => sprayer = address,
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
