//! `trackalert demo`: hands over to [`crate::demo`].

use std::path::PathBuf;

use super::Failure;

const EXAMPLES: &str = "\
Examples:
  trackalert demo                 watch the alerts arrive, then look around; Ctrl-C ends it
  trackalert demo --exit          end when the table is printed; exit code 1 if an attack was missed
  trackalert demo --keep DIR      leave configuration, data and reports in DIR; then: trackalert run -C DIR/trackalert.toml";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Leave the configuration, the data and the reports in this folder
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// End after the table instead of serving on
    #[arg(long)]
    exit: bool,
    /// Which made-up world: the same number gives the same logins
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// About how many logins in the fortnight
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    reports: usize,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let Args { keep, exit, seed, reports } = args;
    crate::demo::run(crate::demo::Options { keep, exit, seed, reports })
}
