//! The real program on a real Kafka broker that asks who is there: TLS, SASL with PLAIN and SCRAM, certificates of clients; and what a
//! person is told whose settings do not fit.

#![cfg(feature = "kafka")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what it expects")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::json;

use support::inbox::Inbox;
use support::kafka::{Broker, broker_with};
use support::program::{PATIENCE, Site};
use support::wire;

const USER: &str = "trackalert";
const PASSWORD: &str = "kept-to-ourselves";
/// The listeners of the broker, counted from its port.
const SASL_SSL: u16 = 2;
const SSL: u16 = 3;

const POLICY: &str = r#"function report(lt) alert { kind = "seen", title = "seen", key = lt.login } end"#;

/// A folder with an authority, certificates for a broker and a client, and an authority that signed neither.
fn certificates() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap().keep();
        let authority = |name: &str| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        let (ours, other) = (authority("the house"), authority("somebody else"));
        let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
        write("ca.pem", ours.pem());
        write("other.pem", other.pem());
        for name in ["broker", "client"] {
            let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &ours).unwrap();
            write(&format!("{name}.key"), key.serialize_pem());
            write(&format!("{name}.crt"), certificate.pem());
            write(&format!("{name}.pem"), key.serialize_pem() + &certificate.pem());
        }
        folder
    })
}

fn secure() -> Option<&'static Broker> {
    broker_with(|| {
        let folder = certificates().display().to_string();
        vec![("SECURE_DIR", folder), ("SASL_USER", USER.to_owned()), ("SASL_PASSWORD", PASSWORD.to_owned())]
    })
}

/// A site on a listener of the broker. Each line of `properties` is one of `[queue.kafka.properties]`.
fn site(address: &str, password: &str, properties: &[(&str, &str)]) -> (Site, Inbox) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let (inbox, receiver) = Inbox::start();
    let site = Site::new("");
    let secret = site.folder.path().join("kafka-password");
    std::fs::write(&secret, format!("{password}\n")).unwrap();
    let lines: Vec<String> = properties.iter().map(|(name, value)| format!("\"{name}\" = \"{value}\"")).collect();
    let settings = format!(
        r#"
history.commit_every = "200ms"
[queue]
kind = "kafka"
reports = "reports-{number}"
alerts = "alerts-{number}"
[queue.kafka]
brokers = ["{address}"]
group = "group-{number}"
create_topics = true
partitions = 2
replication = 1
start_timeout = "3s"
{password}
[queue.kafka.properties]
{properties}
[[notify.channels]]
kind = "webhook"
url = "http://{receiver}/"
"#,
        password =
            if password.is_empty() { String::new() } else { format!("password_file = \"{}\"", secret.display()) },
        properties = lines.join("\n"),
    );
    let head = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), head + &settings).unwrap();
    site.policy("seen", POLICY);
    (site, inbox)
}

fn in_certificates(name: &str) -> String {
    certificates().join(name).display().to_string()
}

/// With SASL over TLS, as the settings of most clusters are.
fn sasl<'a>(mechanism: &'a str, ca: &'a str) -> [(&'a str, &'a str); 4] {
    [("security.protocol", "SASL_SSL"), ("sasl.mechanism", mechanism), ("sasl.username", USER), ("ssl.ca.location", ca)]
}

/// A report goes in over HTTP, through both queues, and its alert out.
fn handles_a_report(site: &Site, inbox: &Inbox) {
    let program = site.start();
    let report = json!({ "login": "ann", "remote": "192.0.2.7", "success": true, "protocol": "imap" }).to_string();
    let request = wire::request("POST", "/v1/reports", "Content-Type: application/json\r\n", report.as_bytes());
    assert_eq!(wire::exchange(&program.address, &request).unwrap().status, 200);
    program.wait_until("the alert", PATIENCE, |_| inbox.of_kind("seen").len() == 1);
    program.wait_until("nothing left", PATIENCE, support::program::Program::idle);
    assert_eq!(program.terminate(), Some(0));
    assert!(!site.log_text().contains(PASSWORD), "the password stands in the log");
}

#[test]
fn sasl_with_scram_or_plain_over_tls_with_the_password_in_a_file() {
    let Some(broker) = secure() else { return };
    for mechanism in ["SCRAM-SHA-512", "PLAIN"] {
        let (site, inbox) = site(&broker.listener(SASL_SSL), PASSWORD, &sasl(mechanism, &in_certificates("ca.pem")));
        handles_a_report(&site, &inbox);
    }
}

#[test]
fn a_certificate_instead_of_a_password() {
    let Some(broker) = secure() else { return };
    let (ca, certificate, key) =
        (in_certificates("ca.pem"), in_certificates("client.crt"), in_certificates("client.key"));
    let properties = [
        ("security.protocol", "SSL"),
        ("ssl.ca.location", ca.as_str()),
        ("ssl.certificate.location", certificate.as_str()),
        ("ssl.key.location", key.as_str()),
    ];
    let (site, inbox) = site(&broker.listener(SSL), "", &properties);
    handles_a_report(&site, &inbox);
}

/// Runs the program, which does not start, and gives what it wrote to the terminal.
fn refused(site: &Site) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_trackalert")).args(["run", "-C"]).arg(site.config()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for secret in [PASSWORD, "not-the-password"] {
        assert!(!said.contains(secret), "a password is shown: {said}");
    }
    said
}

/// What does not fit, at which listener, the password and the properties; and what the last line must name.
type Case<'a> = (&'a str, u16, &'a str, Vec<(&'a str, &'a str)>, &'a [&'a str]);

#[test]
fn settings_that_do_not_fit_end_the_start_with_the_cause_and_what_to_change() {
    let Some(broker) = secure() else { return };
    let (ca, other) = (in_certificates("ca.pem"), in_certificates("other.pem"));
    let missing = in_certificates("missing.pem");
    let of_user: &[&str] = &["SASL authentication error", "queue.kafka.password_file", "sasl.username"];
    let of_ca: &[&str] = &["certificate", "ssl.ca.location", "name in that certificate"];
    let protocol = |protocol| {
        let mut properties = sasl("PLAIN", &ca).to_vec();
        properties[0].1 = protocol;
        properties
    };
    let mut stranger = sasl("SCRAM-SHA-512", &ca).to_vec();
    stranger[2].1 = "somebody";
    let mut nobody = sasl("PLAIN", &ca).to_vec();
    nobody[2].1 = "nobody";
    let cases: Vec<Case<'_>> = vec![
        ("wrong password, SCRAM", SASL_SSL, "not-the-password", sasl("SCRAM-SHA-512", &ca).to_vec(), of_user),
        ("wrong password, PLAIN", SASL_SSL, "not-the-password", sasl("PLAIN", &ca).to_vec(), of_user),
        ("wrong user", SASL_SSL, PASSWORD, stranger, of_user),
        (
            "no rights",
            SASL_SSL,
            PASSWORD,
            nobody,
            &["Topic authorization failed", "allow this user Describe, Read and Write"],
        ),
        ("no password", SASL_SSL, "", sasl("PLAIN", &ca).to_vec(), &["queue.kafka.password must be set"]),
        (
            "a mechanism that the broker lacks",
            SASL_SSL,
            PASSWORD,
            sasl("SCRAM-SHA-256", &ca).to_vec(),
            &["PLAIN,SCRAM-SHA-512", "set sasl.mechanism"],
        ),
        ("another authority", SASL_SSL, PASSWORD, sasl("PLAIN", &other).to_vec(), of_ca),
        (
            "no file of the authority",
            SASL_SSL,
            PASSWORD,
            sasl("PLAIN", &missing).to_vec(),
            &["ssl.ca.location", "missing"],
        ),
        (
            "no TLS on a port with TLS",
            SASL_SSL,
            PASSWORD,
            protocol("SASL_PLAINTEXT"),
            &["security.protocol", "hangs up"],
        ),
        ("TLS on a port without", 0, PASSWORD, protocol("SASL_SSL"), &["PLAINTEXT", "queue.kafka.brokers"]),
        ("no certificate", SSL, PASSWORD, protocol("SSL"), &["ssl.certificate.location", "ssl.key.location"]),
    ];
    for (what, listener, password, properties, words) in cases {
        let (site, _) = site(&broker.listener(listener), password, &properties);
        let said = refused(&site);
        let last = said.lines().rfind(|line| line.starts_with("trackalert: kafka: ")).unwrap_or_default();
        println!("{what}\n  {last}");
        for word in words {
            assert!(last.contains(word), "{what}: no \"{word}\" in the last line of\n{said}");
        }
        // While it waits, a line a try says the same: nobody reads for minutes of brokers that are down.
        let lines = said.lines().count();
        assert!(lines <= 4, "{what}: {lines} lines:\n{said}");
    }
}
