//! `trackalert completions` and `trackalert man`.

use std::path::PathBuf;

use clap::CommandFactory;

use super::{Cli, Failure, output};

const COMPLETIONS: &str = "\
Examples:
  trackalert completions bash > /etc/bash_completion.d/trackalert
  trackalert completions zsh > /usr/share/zsh/site-functions/_trackalert
  trackalert completions fish > ~/.config/fish/completions/trackalert.fish";

const MAN: &str = "\
Examples:
  trackalert man | man -l -                  read it now
  trackalert man /usr/share/man/man1         one page a command";

/// The arguments of `completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = COMPLETIONS)]
pub(super) struct CompletionsArgs {
    /// For which shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// The arguments of `man`.
#[derive(Debug, clap::Args)]
#[command(after_help = MAN)]
pub(super) struct ManArgs {
    /// A folder to write one page a command into
    folder: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "trackalert", &mut script);
    output::print(String::from_utf8_lossy(&script))
}

pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    let Some(folder) = &args.folder else {
        return output::print(String::from_utf8_lossy(&page(Cli::command())?));
    };
    let fail = |error: std::io::Error| Failure::failed(format!("{}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(fail)?;
    let mut whole = Cli::command();
    whole.build();
    std::fs::write(folder.join("trackalert.1"), page(whole.clone())?).map_err(fail)?;
    for command in whole.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("trackalert-{}", command.get_name());
        let text = page(command.clone().display_name(name.clone()))?;
        std::fs::write(folder.join(format!("{name}.1")), text).map_err(fail)?;
    }
    Ok(())
}

fn page(command: clap::Command) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text).map_err(|error| Failure::failed(error.to_string()))?;
    Ok(text)
}
