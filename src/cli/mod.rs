//! The command line: what a person or a unit file types.
//!
//! ```text
//! run  check  test  demo                  this process does it
//! send  query  dead-letters               ask the running process over HTTP, found from the same -C (or --offline)
//! console                                 speaks to it encrypted
//! config  completions  man                print
//! ```
//!
//! Owns arguments, output and exit codes: 0 well, 1 failed, 2 wrong usage or configuration. Never opens the data folder itself: a
//! folder has one owner, the running process.

mod check;
mod client;
mod config;
mod console;
mod dead_letters;
mod demo;
mod generate;
mod old;
mod output;
mod pin;
mod query;
mod run;
mod send;
mod session;
mod test;
mod when;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Config, Errors};
pub use output::Failure;

/// What the help says before all else.
const ABOUT: &str =
    "Remembers every login report for months and tells people about the abuse that nobody sees in real time";

const EXAMPLES: &str = "\
Examples:
  trackalert demo                            everything at once, with made-up logins and attacks
  trackalert run                             the whole program, data in ./trackalert-data
  trackalert run -C /etc/trackalert.toml     the same, configured
  trackalert check -C /etc/trackalert.toml   what would run, and what is wrong
  trackalert test policies                   the tests of policies
  trackalert send reports.ndjson             reports of a file into the running program
  trackalert query --login alice --since 7d  what is remembered about alice

Exit codes: 0 well, 1 failed, 2 wrong usage or configuration.";

/// The arguments.
#[derive(Debug, Parser)]
#[command(name = "trackalert", version, about = ABOUT, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What every command takes.
#[derive(Debug, Clone, clap::Args)]
struct Common {
    /// The configuration; without it the defaults hold (`trackalert config` shows them)
    // An id that no command has: clap leaves a global argument out of a command with an argument of the same id.
    #[arg(id = "configuration", short = 'C', long = "config", value_name = "FILE", global = true)]
    file: Option<PathBuf>,
    /// One setting, over file and environment: --set detect.workers=4 (may be given again)
    #[arg(long = "set", value_name = "KEY=VALUE", global = true)]
    sets: Vec<String>,
    /// The regexes that User-Agents are read by, a regexes.yaml of uap-core: --set detect.device_regexes=FILE
    #[arg(short = 'R', long, value_name = "FILE", global = true)]
    device_regexes: Option<PathBuf>,
}

impl Common {
    fn load(&self) -> Result<Config, Errors> {
        self.load_and(&[])
    }

    /// With further settings that win.
    fn load_and(&self, more: &[&str]) -> Result<Config, Errors> {
        let regexes = self.device_regexes.iter().map(|file| format!("detect.device_regexes={}", file.display()));
        let more = more.iter().map(|set| (*set).to_owned());
        let sets: Vec<String> = self.sets.iter().cloned().chain(regexes).chain(more).collect();
        Config::load(self.file.as_deref(), &sets)
    }

    /// The arguments again, for a message that says what to type.
    fn again(&self) -> String {
        self.file.as_ref().map(|file| format!(" -C {}", file.display())).unwrap_or_default()
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the program: all roles, or some of them
    Run(run::Args),
    /// Check configuration, policies, GeoIP files and channels, and say what would run
    Check(check::Args),
    /// Run the tests of policies and show what is different
    Test(test::Args),
    /// Put reports from a file or stdin into the running program
    Send(send::Args),
    /// See it work: generated logins of a small provider with attacks hidden in them
    Demo(demo::Args),
    /// Search the history
    Query(query::Args),
    /// List, show, send again or drop what could not be handled
    #[command(name = "dead-letters")]
    DeadLetters(dead_letters::Args),
    /// Type lines of Lua into the running program
    Console(console::Args),
    /// Print every setting in force and where it comes from; secrets are masked
    Config(config::Args),
    /// Print a completion script for a shell
    Completions(generate::CompletionsArgs),
    /// Print the manual page, or write one page a command into a folder
    Man(generate::ManArgs),
}

/// Reads the arguments, does what they say, and gives the exit code.
pub fn main() -> ExitCode {
    // The TLS of everything in this process; a second call (a test) finds it there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = match Cli::try_parse_from(old::translated(std::env::args_os().collect())) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout with 0, mistakes to stderr with 2; a closed pipe is nobody's fault.
            let _ = error.print();
            return u8::try_from(error.exit_code()).map_or(ExitCode::from(2), ExitCode::from);
        }
    };
    let Some(command) = cli.command else {
        return no_command();
    };
    output::end(match command {
        Command::Run(args) => run::run(&cli.common, &args),
        Command::Check(args) => check::run(&cli.common, &args),
        Command::Test(args) => test::run(&cli.common, &args),
        Command::Send(args) => send::run(&cli.common, &args),
        Command::Demo(args) => demo::run(&cli.common, args),
        Command::Query(args) => query::run(&cli.common, &args),
        Command::DeadLetters(args) => dead_letters::run(&cli.common, &args),
        Command::Console(args) => console::run(&cli.common, &args),
        Command::Config(args) => config::run(&cli.common, &args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
    })
}

/// Nothing at all asks for the help; a configuration without a command was meant for one. Whether it can be written changes nothing.
fn no_command() -> ExitCode {
    let mut cli = Cli::command();
    if std::env::args_os().len() < 2 {
        let _ = cli.print_help();
        return ExitCode::SUCCESS;
    }
    let said = "no command given; which of `trackalert run`, `check`, `config`, … was meant?";
    let _ = cli.error(clap::error::ErrorKind::MissingSubcommand, said).print();
    ExitCode::from(2)
}

/// Allows this process as many open files as the system allows it at most: each sender, and each server that a policy asks, is one, and
/// the 1,024 that it gets unasked are fewer than may be in flight.
fn allow_open_files() {
    use nix::sys::resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit};
    let raised = getrlimit(RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Runs the future of an operator's command to its end.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start threads: {error}")))?;
    let ended = runtime.block_on(future);
    // A name that is still looked up for nobody must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_have_no_contradiction() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_takes_a_configuration() {
        let mut whole = Cli::command();
        whole.build();
        for command in whole.get_subcommands().filter(|command| command.get_name() != "help") {
            for long in ["config", "set"] {
                let takes = command.get_arguments().any(|argument| argument.get_long() == Some(long));
                assert!(takes, "{} does not take --{long}", command.get_name());
            }
        }
    }

    #[test]
    fn every_command_has_examples_in_its_help() {
        for command in Cli::command().get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example"), "{}: no example", command.get_name());
        }
    }
}
