//! Where the broker is, and what its refusals mean for people.
//!
//! Owns the address with its password. Never shows either: messages name host, port and virtual host only.

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::uri::AMQPUri;
use lapin::{Error, ErrorKind};

use super::Settings;

/// A broker that is silent for twice as many seconds is gone, where the address says nothing else.
const HEARTBEAT: u16 = 10;

/// The address of the broker.
#[derive(Clone)]
pub(super) struct Address {
    uri: AMQPUri,
}

impl Address {
    /// The address in the settings.
    pub(super) fn of(settings: &Settings) -> Result<Self, String> {
        // What the parser says of it may repeat it, so that is not passed on.
        let parsed = settings.url.expose().parse::<AMQPUri>();
        let mut uri =
            parsed.map_err(|_| "queue.amqp.url is no address such as amqp://user@host:5672/vhost".to_owned())?;
        if !settings.password.is_empty() {
            settings.password.expose().clone_into(&mut uri.authority.userinfo.password);
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        Ok(Self { uri })
    }

    /// For the client library alone.
    pub(super) const fn uri(&self) -> &AMQPUri {
        &self.uri
    }

    /// The broker, for people.
    pub(super) fn shown(&self) -> String {
        format!("{}:{}", self.uri.authority.host, self.uri.authority.port)
    }

    /// What an error means and what to do.
    pub(super) fn explain(&self, error: &Error) -> String {
        let shown = self.shown();
        let (kind, said) = match error.kind() {
            ErrorKind::ProtocolError(error) => (error.kind().clone(), error.get_message().to_string()),
            ErrorKind::IOError(error) => {
                return format!("{shown} cannot be reached ({error}); is the broker up, and queue.amqp.url right?");
            }
            ErrorKind::MissingHeartbeatError => return format!("{shown} is silent"),
            other => return format!("{shown}: {}", one_line(&format!("{other:?}"))),
        };
        let user = &self.uri.authority.userinfo.username;
        match kind {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) if said.contains("Login was refused") => format!(
                "{shown} refuses the login of the user {user}; mend the password (queue.amqp.url, password or password_file)"
            ),
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => {
                format!("{shown} allows the user {user} too little; give it configure, write and read there ({said})")
            }
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => format!(
                "{shown} has no virtual host \"{}\" for the user {user}; make it or mend the path of queue.amqp.url ({said})",
                self.uri.vhost
            ),
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => {
                format!("{shown}: {said}; declare the queue there, or set queue.amqp.declare = true")
            }
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => format!(
                "{shown}: {said}; where the queue exists in another form, set queue.amqp.declare = false to take it as it is, or delete it"
            ),
            _ => format!("{shown}: {said}"),
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::tests::settings;
    use super::*;

    #[test]
    fn password_of_a_file_takes_the_place_of_none_and_nothing_shows_it() {
        let mut settings = settings("amqp://ann@broker.example/mail");
        settings.password = "s3cret".to_owned().into();
        let address = Address::of(&settings).unwrap();
        assert_eq!(address.uri().authority.userinfo.password, "s3cret");
        assert_eq!(address.uri().vhost, "mail");
        assert_eq!(address.shown(), "broker.example:5672");
        assert!(!format!("{settings:?}").contains("s3cret"));
        let broken = Address::of(&super::super::tests::settings("http://s3cret@x/")).err().unwrap();
        assert!(!broken.contains("s3cret"), "{broken}");
    }
}
