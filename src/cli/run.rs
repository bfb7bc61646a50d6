//! `trackalert run`.

use super::{Common, Failure, allow_open_files, block_on, check};
use crate::app::App;
use crate::config::Roles;
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
    let config = common.load()?;
    // Before the log starts and before anything is opened: what is wrong is told at once, and with exit code 2.
    check::before_start(&config, args.roles)?;
    telemetry::init_log(&config.log).map_err(Failure::usage)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    allow_open_files();
    let roles = args.roles;
    block_on(async move { App::run(config, roles).await.map_err(|error| Failure::failed(error.to_string())) })
}
