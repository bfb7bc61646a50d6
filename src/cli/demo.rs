//! `trackalert demo`: hands [`crate::demo`] what it needs to start the program.

use std::path::Path;

use super::{Common, Failure, allow_open_files, block_on};
use crate::app::App;
use crate::config::{Config, Roles};
use crate::demo::{DemoError, Options, Running};
use crate::telemetry;

const EXAMPLES: &str = "\
Examples:
  trackalert demo                 watch the alerts arrive, then look around; Ctrl-C ends it
  trackalert demo --exit          end when the table is printed; exit code 1 if an attack was missed
  trackalert demo --keep DIR      leave configuration, data and reports in DIR; then: trackalert run -C DIR/trackalert.toml";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    options: Options,
}

pub(super) fn run(common: &Common, args: Args) -> Result<(), Failure> {
    if common.file.is_some() {
        return Err(Failure::usage(
            "the demo writes its own configuration; change it with --set, or run your own with `trackalert run`",
        ));
    }
    allow_open_files();
    let own: Vec<String> = common.sets.clone();
    block_on(async move {
        let start = async |file: &Path, sets: &[String]| start(file, [sets, &own].concat()).await;
        match crate::demo::run(args.options, start).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::failed("an attack was missed; the table names it")),
            Err(error @ (DemoError::TooFew(_) | DemoError::NotEmpty(_))) => Err(Failure::usage(error.to_string())),
            Err(error) => Err(Failure::failed(error.to_string())),
        }
    })
}

async fn start(file: &Path, sets: Vec<String>) -> Result<Running, String> {
    let config = Config::load(Some(file), &sets).map_err(|errors| errors.to_string())?;
    telemetry::init_log(&config.log)?;
    let app = App::start(config, Roles::all()).await.map_err(|error| error.to_string())?;
    let address = app.address();
    let drain = Box::pin(async move {
        if let Err(error) = app.drain().await {
            tracing::error!(%error, "the drain was not clean");
        }
    });
    Ok(Running { address, drain })
}
