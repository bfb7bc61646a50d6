//! `trackalert demo`: hands over to [`crate::demo`], with the program to start.

use std::path::Path;

use super::{Failure, block_on};
use crate::app::App;
use crate::config::{Config, Roles};
use crate::demo::{self, Options, Running};
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

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let all_found = block_on(async move {
        demo::run(args.options, start).await.map_err(|error| Failure::failed(error.to_string()))
    })?;
    if all_found { Ok(()) } else { Err(Failure::failed("an attack was missed; the table names it".to_owned())) }
}

async fn start(file: &Path, sets: &[String]) -> Result<Running, String> {
    let config = Config::load(Some(file), sets).map_err(|errors| errors.to_string())?;
    telemetry::init_log(&config.log)?;
    let app = App::start(config, Roles::all()).await.map_err(|error| error.to_string())?;
    let address = app.address();
    let drain = Box::pin(async move {
        if let Err(error) = app.drain().await {
            tracing::error!(%error, "the program did not end well");
        }
    });
    Ok(Running { address, drain })
}
