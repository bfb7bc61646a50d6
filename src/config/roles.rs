//! Which roles a process runs.
//!
//! Owns the parsing of `--roles`. Never starts one (that is [`crate::app`]).

use std::fmt;
use std::str::FromStr;

/// The roles of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Roles {
    /// Takes reports over HTTP and puts them into the reports queue.
    pub receive: bool,
    /// Takes reports from the queue, runs the policies, writes the history.
    pub detect: bool,
    /// Runs what runs on a clock.
    pub schedule: bool,
    /// Takes alerts from the queue and tells people.
    pub notify: bool,
}

/// The text names something that is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRoles {
    /// An unknown word.
    #[error("\"{0}\" is no role; the roles are receive, detect, schedule, notify")]
    Unknown(String),
    /// Nothing at all.
    #[error("no role given; the roles are receive, detect, schedule, notify")]
    Empty,
}

impl Roles {
    /// All four: the whole program in one process.
    pub const fn all() -> Self {
        Self { receive: true, detect: true, schedule: true, notify: true }
    }

    /// None: the data folder and the operators' routes only.
    pub const fn none() -> Self {
        Self { receive: false, detect: false, schedule: false, notify: false }
    }

    /// The words for those that run, in the order of the flow.
    pub fn names(self) -> Vec<&'static str> {
        [(self.receive, "receive"), (self.detect, "detect"), (self.schedule, "schedule"), (self.notify, "notify")]
            .into_iter()
            .filter_map(|(runs, name)| runs.then_some(name))
            .collect()
    }
}

impl FromStr for Roles {
    type Err = BadRoles;

    fn from_str(text: &str) -> Result<Self, BadRoles> {
        let mut roles = Self::none();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word {
                "receive" => roles.receive = true,
                "detect" => roles.detect = true,
                "schedule" => roles.schedule = true,
                "notify" => roles.notify = true,
                _ => return Err(BadRoles::Unknown(word.to_owned())),
            }
        }
        if roles == Self::none() { Err(BadRoles::Empty) } else { Ok(roles) }
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_roles_is_read_and_written_in_the_order_of_the_flow() {
        assert_eq!("notify, receive".parse::<Roles>().unwrap().to_string(), "receive,notify");
        assert_eq!("receive,detect,schedule,notify".parse::<Roles>().unwrap(), Roles::all());
    }

    #[test]
    fn a_word_that_is_no_role_is_named() {
        let error = "receive,detct".parse::<Roles>().unwrap_err().to_string();
        assert_eq!(error, "\"detct\" is no role; the roles are receive, detect, schedule, notify");
        assert_eq!(" , ".parse::<Roles>().unwrap_err(), BadRoles::Empty);
    }
}
