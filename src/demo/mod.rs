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
pub mod ledger;
mod plant;
mod receiver;
mod screen;
mod show;
pub mod stories;
pub mod traffic;
mod wire;
mod world;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use futures_util::future::LocalBoxFuture;

use feed::FeedError;
use folder::Folder;
use receiver::Receiver;
use show::show;

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

#[cfg(test)]
mod show_tests;
#[cfg(test)]
mod tests;
