//! `trackalert run`.

use super::{Common, Failure, allow_open_files, block_on, check};
use crate::app::{App, Signals};
use crate::config::{Config, Roles};
use crate::telemetry;

const EXAMPLES: &str = "\
Examples:
  trackalert run                                   all roles, data in ./trackalert-data
  trackalert run -C trackalert.toml --roles receive,detect
  trackalert run --set http.listen=0.0.0.0:8085 --set data_dir=/var/lib/trackalert

SIGTERM and Ctrl-C finish what is in flight (detect.drain_timeout); SIGHUP reads policies, GeoIP files,
the regexes of User-Agents and certificates again.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Which roles this process runs, of receive, detect, schedule, notify
    #[arg(long, value_name = "LIST", default_value = "receive,detect,schedule,notify")]
    roles: Roles,
}

pub(super) fn run(common: &Common, args: &Args) -> Result<(), Failure> {
    block_on(async {
        let mut signals = Signals::set().map_err(|error| Failure::failed(error.to_string()))?;
        let (common, roles) = (common.clone(), args.roles);
        let preparing = tokio::task::spawn_blocking(move || prepare(&common, roles));
        let config = tokio::select! {
            prepared = preparing => prepared.map_err(|error| Failure::failed(error.to_string()))??,
            () = signals.end() => return Ok(()),
        };
        App::run(config, args.roles, signals).await.map_err(|error| Failure::failed(error.to_string()))
    })
}

/// Before anything is opened, and before the log starts: what is wrong is told at once, and with exit code 2.
fn prepare(common: &Common, roles: Roles) -> Result<Config, Failure> {
    let config = common.load()?;
    check::before_start(&config, roles)?;
    telemetry::init_log(&config.log).map_err(Failure::usage)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    allow_open_files();
    Ok(config)
}
