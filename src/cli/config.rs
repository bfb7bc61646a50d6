//! `trackalert config`.

use super::{Common, Failure, output};

const EXAMPLES: &str = "\
Examples:
  trackalert config                          every setting with the source of its value, as a file that -C takes
  trackalert config -C trackalert.toml --format json
  trackalert config | grep -v '# default'    what differs from the defaults

A value with a secret in it is masked and printed as a comment: in a file made of this, write it anew.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Toml)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Lines `key = value  # source`; with `#` in front where something is masked
    Toml,
    /// A list of objects with key, value, masked, source
    Json,
}

pub(super) fn run(common: &Common, args: &Args) -> Result<(), Failure> {
    let config = common.load()?;
    for warning in &config.warnings {
        output::say(format_args!("warning: {warning}"));
    }
    if args.format == Format::Json {
        let text =
            serde_json::to_string_pretty(config.explain()).map_err(|error| Failure::failed(error.to_string()))?;
        return output::line(text);
    }
    for one in config.explain() {
        let comment = if one.masked { "# " } else { "" };
        output::line(format_args!("{:<60} # {}", format!("{comment}{} = {}", one.key, one.toml()), one.source))?;
    }
    Ok(())
}
