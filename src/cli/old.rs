//! The command line of the old program: `trackalert -C trackalert.conf -s`, in unit files and scripts that are there.
//!
//! Owns what each of its flags means here. Pure: arguments in, arguments out.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::policy::legacy::is_old;

/// Flags without a meaning here, and how many values each has: to go to the background or not is the supervisor's business, and the log
/// goes to the standard error.
const IGNORED: [(&str, usize); 5] = [("-s", 0), ("-d", 0), ("-D", 0), ("-f", 1), ("-l", 1)];

/// The arguments as this program has them. Only those are touched that begin with a flag: all else has a command.
pub(super) fn translated(arguments: Vec<OsString>) -> Vec<OsString> {
    let is_flag = |argument: &OsString| {
        let known = ["-C", "-R", "-c", "-e", "-v"].into_iter().chain(IGNORED.map(|(flag, _)| flag));
        known.into_iter().any(|flag| argument == flag)
    };
    if !arguments.get(1).is_some_and(is_flag) {
        return arguments;
    }
    let original = arguments.clone();
    let mut given = arguments.into_iter();
    let program = given.next().unwrap_or_default();
    let (mut command, mut rest) = (OsStr::new("run"), Vec::new());
    let (mut common, mut verbose, mut only_toml) = (Vec::new(), false, true);
    while let Some(argument) = given.next() {
        only_toml &= argument == "-C";
        match argument.to_str() {
            Some("-c") => command = OsStr::new("console"),
            Some("-e") => {
                command = OsStr::new("console");
                rest.push(argument);
                rest.extend(given.next());
            }
            Some("-C" | "-R") => {
                let value = given.next();
                only_toml &= !value.as_ref().is_some_and(|file| is_old(Path::new(file)));
                common.push(argument);
                common.extend(value);
            }
            Some("-v") => verbose = true,
            flag => match IGNORED.iter().find(|(name, _)| flag == Some(name)) {
                Some((_, values)) => drop(given.by_ref().take(*values).count()),
                // A command follows, or what neither program knows: that is told as always.
                None => {
                    let before = [program].into_iter().chain(common);
                    return before.chain([argument]).chain(given).collect();
                }
            },
        }
    }
    if only_toml {
        return original;
    }
    if verbose {
        common.extend(["--set".into(), "log.level=debug".into()]);
    }
    [program, command.to_owned()].into_iter().chain(common).chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(given: &str) -> String {
        let arguments = format!("trackalert {given}").split_whitespace().map(OsString::from).collect();
        let words = translated(arguments).into_iter().skip(1).map(|word| word.into_string().unwrap());
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn old_line_becomes_ours_and_ours_stays() {
        assert_eq!(line("-C x.conf"), "run -C x.conf");
        assert_eq!(line("-s -C x.conf -R r.yaml -f local0 -l 6"), "run -C x.conf -R r.yaml");
        assert_eq!(line("-D -v"), "run --set log.level=debug");
        assert_eq!(line("-C x.conf -c"), "console -C x.conf");
        assert_eq!(line("-C x.conf -e stats()"), "console -C x.conf -e stats()");
        for ours in [
            "",
            "run -C x.toml",
            "check --format json",
            "--version",
            "-C x.toml",
            "-C x.toml check",
            "-C x.toml --set a=b run",
            "-x",
        ] {
            assert_eq!(line(ours), ours);
        }
    }
}
