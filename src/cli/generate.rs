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
    let whole = documented();
    let Some(folder) = &args.folder else {
        return output::print(String::from_utf8_lossy(&page(&whole)?));
    };
    let fail = |error: std::io::Error| Failure::failed(format!("{}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(fail)?;
    // A page for each command at any depth: each is named in the page above it.
    let mut left = vec![&whole];
    while let Some(command) = left.pop() {
        let name = command.get_display_name().unwrap_or_else(|| command.get_name());
        std::fs::write(folder.join(format!("{name}.1")), page(command)?).map_err(fail)?;
        left.extend(command.get_subcommands());
    }
    Ok(())
}

/// All commands but `help`, which needs no page.
fn documented() -> clap::Command {
    let mut whole = Cli::command().disable_help_subcommand(true);
    whole.build();
    whole
}

/// The page of one command. Like [`clap_mangen::Man::render`] but for the examples, which it would fill like prose.
fn page(command: &clap::Command) -> Result<Vec<u8>, Failure> {
    let man = clap_mangen::Man::new(command.clone());
    let mut text = Vec::new();
    let mut write = || -> std::io::Result<()> {
        man.render_title(&mut text)?;
        man.render_name_section(&mut text)?;
        man.render_synopsis_section(&mut text)?;
        man.render_description_section(&mut text)?;
        man.render_options_section(&mut text)?;
        if command.has_subcommands() {
            man.render_subcommands_section(&mut text)?;
        }
        if let Some(after) = command.get_after_help() {
            text.extend_from_slice(as_it_is(&after.to_string()).as_bytes());
        }
        if command.get_version().is_some() {
            man.render_version_section(&mut text)?;
        }
        Ok(())
    };
    write().map_err(|error| Failure::failed(error.to_string()))?;
    Ok(text)
}

/// The examples in the language of manual pages, line by line as they are written.
fn as_it_is(after: &str) -> String {
    let mut page = ".SH EXAMPLES\n.nf\n".to_owned();
    for line in after.strip_prefix("Examples:\n").unwrap_or(after).lines() {
        // A backslash, a hyphen and a quote would be changed into others; a dot or an apostrophe in front makes a line a command.
        let line = line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
        if line.starts_with(['.', '\'']) {
            page.push_str("\\&");
        }
        page.push_str(&line);
        page.push('\n');
    }
    page.push_str(".fi\n");
    page
}
