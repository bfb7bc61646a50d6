//! Where the broker is, and what its refusals mean for people.
//!
//! Owns the address with its password. Never shows either: messages name host, port and virtual host only.

use std::path::{Path, PathBuf};

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Error, ErrorKind};

use super::Settings;
use super::topology::EXCHANGE_TYPE;

/// Of a broker without TLS, where nobody says otherwise.
const PORT: u16 = 5672;
/// A broker that is silent for twice as many seconds is gone, where the address says nothing else.
const HEARTBEAT: u16 = 10;

/// The address of the broker.
#[derive(Clone)]
pub(super) struct Address {
    uri: AMQPUri,
    ca_file: PathBuf,
    client_cert: PathBuf,
    client_key: PathBuf,
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
        let (ca_file, client_cert) = (settings.ca_file.clone(), settings.client_cert.clone());
        Ok(Self { uri, ca_file, client_cert, client_key: settings.client_key.clone() })
    }

    /// Whom to trust and who we are. The files are read for each connection: certificates are renewed while the program runs.
    pub(super) fn tls(&self) -> Result<OwnedTLSConfig, String> {
        if self.uri.scheme != AMQPScheme::AMQPS {
            return Ok(OwnedTLSConfig::default());
        }
        let chain = read(&self.ca_file, "ca_file")?.map(|pem| String::from_utf8_lossy(&pem).into_owned());
        if chain.as_ref().is_some_and(|pem| !pem.contains("BEGIN CERTIFICATE")) {
            return Err("queue.amqp.ca_file holds no certificate in PEM form".to_owned());
        }
        let pair = (read(&self.client_cert, "client_cert")?, read(&self.client_key, "client_key")?);
        let identity = match pair {
            (Some(pem), Some(key)) => Some(OwnedIdentity::PKCS8 { pem, key }),
            _ => None,
        };
        Ok(OwnedTLSConfig { identity, cert_chain: chain })
    }

    /// Those of the setting, for a client of the management API.
    pub(super) fn authorities(&self) -> Result<Vec<reqwest::Certificate>, String> {
        let Some(pem) = read(&self.ca_file, "ca_file")? else { return Ok(Vec::new()) };
        reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| format!("queue.amqp.ca_file: {error}"))
    }

    /// Name, password and virtual host, for the broker's management API.
    pub(super) fn login(&self) -> (&str, &str, &str) {
        let user = &self.uri.authority.userinfo;
        (&user.username, &user.password, &self.uri.vhost)
    }

    /// The host whose management API may be asked without anybody saying so: the password goes there in the clear already, and a broker on
    /// another port may stand beside one to which that API belongs.
    pub(super) fn host_of_defaults(&self) -> Option<&str> {
        let authority = &self.uri.authority;
        (self.uri.scheme == AMQPScheme::AMQP && authority.port == PORT).then_some(&*authority.host)
    }

    /// Whether a broker that says this will say it again: what is wrong is a setting, here or there.
    pub(super) fn lasting(error: &Error) -> bool {
        match error.kind() {
            ErrorKind::ProtocolError(error) => match error.kind() {
                AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED | AMQPSoftError::PRECONDITIONFAILED) => true,
                // A quorum queue whose replicas are still starting is "not found", too; so is a virtual host "not allowed".
                AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => !error.get_message().as_str().contains("inaccessible"),
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => !error.get_message().as_str().contains("down"),
                AMQPErrorKind::Hard(AMQPHardError::COMMANDINVALID) => true,
                _ => false,
            },
            ErrorKind::IOError(error) => is_of_tls(error),
            ErrorKind::AuthProviderError(_) => true,
            _ => false,
        }
    }

    /// For the client library alone.
    pub(super) const fn uri(&self) -> &AMQPUri {
        &self.uri
    }

    /// The broker, for people.
    pub(super) fn shown(&self) -> String {
        format!("{}:{}", self.uri.authority.host, self.uri.authority.port)
    }

    /// The most bytes of one message that the broker takes, where it closed a channel because one had more.
    pub(super) fn largest(error: &Error) -> Option<usize> {
        let ErrorKind::ProtocolError(error) = error.kind() else { return None };
        let (said, most) = error.get_message().as_str().rsplit_once(" max size ")?;
        if said.contains("larger than") { most.trim().parse().ok() } else { None }
    }

    /// What an error means and what to do.
    pub(super) fn explain(&self, error: &Error) -> String {
        let shown = self.shown();
        let (kind, said) = match error.kind() {
            ErrorKind::ProtocolError(error) => (error.kind().clone(), error.get_message().to_string()),
            ErrorKind::IOError(error) if is_of_tls(error) => {
                return if error.to_string().contains("received") {
                    format!(
                        "{shown} wants a certificate of this program that it trusts ({error}); set queue.amqp.client_cert and client_key"
                    )
                } else {
                    format!(
                        "{shown}: its certificate is not trusted ({error}); set queue.amqp.ca_file to the certificate of the authority that signed it"
                    )
                };
            }
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
            // A hard error before RabbitMQ 4.
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)
            | AMQPErrorKind::Hard(AMQPHardError::COMMANDINVALID)
                if said.contains("unknown exchange type") =>
            {
                format!(
                    "{shown} has no exchanges of the type {EXCHANGE_TYPE}, which queue.amqp.shards needs; enable the plugin on each of its nodes: rabbitmq-plugins enable rabbitmq_consistent_hash_exchange"
                )
            }
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) if said.contains("x-delivery-limit") => format!(
                "{shown}: {said}; the queue is of a time when the broker had no limit of returns, and has one now: stop what sends to it, handle the rest with queue.amqp.declare = false, delete it, and start with queue.amqp.declare = true (docs/deploy.md, \"From RabbitMQ 3 to 4\")"
            ),
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) if Self::largest(error).is_some() => {
                format!("{shown}: {said}; raise max_message_size there, or set receive.max_report below it")
            }
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => format!(
                "{shown}: {said}; where the queue exists in another form, set queue.amqp.declare = false to take it as it is, or delete it"
            ),
            _ => format!("{shown}: {said}"),
        }
    }
}

/// Not of the way to the broker.
fn is_of_tls(error: &std::io::Error) -> bool {
    let said = error.to_string();
    said.contains("certificate") || said.contains("fatal alert")
}

fn read(path: &Path, key: &str) -> Result<Option<Vec<u8>>, String> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    let read = std::fs::read(path);
    read.map(Some).map_err(|error| format!("queue.amqp.{key}: {} cannot be read: {error}", path.display()))
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
        assert_eq!(address.host_of_defaults(), Some("broker.example"));
        for other in ["amqps://broker.example", "amqps://broker.example:5672", "amqp://broker.example:5673"] {
            let address = Address::of(&super::super::tests::settings(other)).unwrap();
            assert_eq!(
                address.host_of_defaults(),
                None,
                "{other}: the password would go to somebody else, or in the clear"
            );
        }
        let broken = Address::of(&super::super::tests::settings("http://s3cret@x/")).err().unwrap();
        assert!(!broken.contains("s3cret"), "{broken}");
    }
}
