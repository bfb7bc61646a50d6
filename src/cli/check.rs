//! `trackalert check`: everything that can be known before a start.
//!
//! Opens no data folder and sends nothing, so that it can run beside the running process. `run` looks at the same before it opens
//! anything, so that what is wrong comes all at once and with the same words.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::client::as_reached;
use super::{Common, Failure, output};
use crate::config::{Config, Error, Errors, OldCall, Roles};
use crate::device::Devices;
use crate::geoip::GeoIp;
use crate::outbound::Tls;
use crate::policy::PolicySet;
use crate::{console, http, notify, queue};

const EXAMPLES: &str = "\
Examples:
  trackalert check -C /etc/trackalert.toml && systemctl restart trackalert
  trackalert check -C trackalert.toml --format json
  trackalert check -C trackalert.conf                       what each call of the old program's file means here";

/// The setting of the file that User-Agents are read by.
const DEVICE_REGEXES: &str = "detect.device_regexes";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Which roles would run
    #[arg(long, value_name = "LIST", default_value = "receive,detect,schedule,notify")]
    roles: Roles,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people
    Text,
    /// An object with `ok`, `summary`, `findings`, each with `severity`, `key`, `source`, `text`, and of a configuration of the old
    /// program `calls`, each with `source`, `call`, `here`
    Json,
}

/// What is found, beyond the configuration itself.
#[derive(Debug, Default)]
struct Findings {
    /// Of a configuration of the old program.
    calls: Vec<OldCall>,
    summary: Vec<(&'static str, String)>,
    warnings: Vec<Error>,
    errors: Vec<Error>,
}

pub(super) fn run(common: &Common, args: &Args) -> Result<(), Failure> {
    let config = match common.load() {
        Ok(config) => config,
        Err(errors) if args.format == Format::Json => {
            Findings { errors: errors.0, ..Findings::default() }.json()?;
            return Err(Failure::usage("the configuration is wrong"));
        }
        Err(errors) => return Err(errors.into()),
    };
    let findings = Findings::of(&config, args.roles);
    match args.format {
        Format::Json => findings.json()?,
        Format::Text => findings.text()?,
    }
    match findings.errors.len() {
        0 => Ok(()),
        1 => Err(Failure::usage("there is an error")),
        many => Err(Failure::usage(format!("there are {many} errors"))),
    }
}

/// Whether a process with these roles can start, as far as that can be known before it opens anything.
pub(super) fn before_start(config: &Config, roles: Roles) -> Result<(), Errors> {
    let errors = Findings::of(config, roles).errors;
    if errors.is_empty() { Ok(()) } else { Err(Errors(errors)) }
}

impl Findings {
    fn of(config: &Config, roles: Roles) -> Self {
        let (calls, warnings) = (config.old_calls().to_vec(), config.warnings.clone());
        let mut findings = Self { calls, warnings, ..Self::default() };
        let value = |key: &str| {
            let value = config.explain().iter().find(|one| one.key == key).map(|one| &one.value);
            match value {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Array(items)) => items
                    .iter()
                    .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned))
                    .collect::<Vec<_>>()
                    .join(", "),
                other => other.map(ToString::to_string).unwrap_or_default(),
            }
        };
        findings.add("roles", roles.names().join(", "));
        findings.data_dir(config);
        let listen = config.http.listeners().map(|listen| format!("{}://{}", listen.scheme(), listen.address));
        findings.add("listen", listen.collect::<Vec<_>>().join(", "));
        findings
            .add("queue", format!("{} ({}, {})", value("queue.kind"), value("queue.reports"), value("queue.alerts")));
        if roles.receive {
            findings.add("spool", spool(config, &value("receive.spool_max_bytes")));
            if !config.receive.rekey_from.is_empty() {
                findings.add("rekey", format!("from topic {}", config.receive.rekey_from));
            }
        }
        findings.add("history", format!("{}, {} days", value("history.kind"), value("history.retention_days")));
        findings.add("state", value("state.kind"));
        let tls = if roles.detect || roles.notify { findings.outbound(config) } else { Tls::default() };
        if roles.detect {
            findings.policies(config);
            findings.geoip(config);
            findings.devices(config);
            findings.console(config);
        }
        if roles.notify {
            findings.channels(config, &tls);
        }
        findings.tls(config);
        findings.reachable(config);
        findings
    }

    fn text(&self) -> Result<(), Failure> {
        if !self.calls.is_empty() {
            let mut table = output::table(&["line", "call", "here"]);
            for OldCall { source, call, here } in &self.calls {
                table.add_row([source, call, &here.join("; ")].map(|cell| output::clean(cell)));
            }
            output::line(format_args!("{table}\n"))?;
        }
        for (name, text) in &self.summary {
            output::line(format_args!("{name:<10} {text}"))?;
        }
        for warning in &self.warnings {
            output::line(format_args!("warning: {warning}"))?;
        }
        for error in &self.errors {
            output::line(format_args!("error: {error}"))?;
        }
        if self.errors.is_empty() { output::line("all well") } else { Ok(()) }
    }

    fn json(&self) -> Result<(), Failure> {
        let summary: serde_json::Map<String, Value> =
            self.summary.iter().map(|(name, text)| ((*name).to_owned(), json!(text))).collect();
        let object = |severity: &str, one: &Error| {
            let key = Some(&one.key).filter(|key| !key.is_empty());
            let source = one.source.as_ref().map(ToString::to_string);
            json!({ "severity": severity, "key": key, "source": source, "text": one.text })
        };
        let errors = self.errors.iter().map(|error| object("error", error));
        let findings: Vec<Value> =
            errors.chain(self.warnings.iter().map(|warning| object("warning", warning))).collect();
        let mut all = json!({ "ok": self.errors.is_empty(), "summary": summary, "findings": findings });
        if !self.calls.is_empty() {
            all["calls"] = json!(self.calls);
        }
        output::line(format_args!("{all:#}"))
    }

    fn add(&mut self, name: &'static str, text: String) {
        self.summary.push((name, text));
    }

    fn error(&mut self, key: &str, text: impl Into<String>) {
        self.errors.push(Error { source: None, key: key.to_owned(), text: text.into() });
    }

    /// An error of a part, which begins with the key of the setting.
    fn said(&mut self, said: &str) {
        match said.split_once(": ") {
            Some((key, text)) if !key.contains([' ', '/']) => self.error(key, text),
            _ => self.error("", said),
        }
    }

    fn warn(&mut self, key: &str, text: &str) {
        self.warnings.push(Error { source: None, key: key.to_owned(), text: text.to_owned() });
    }

    fn data_dir(&mut self, config: &Config) {
        self.add("data", config.data_dir.display().to_string());
        if let Err(said) = can_hold_data(&config.data_dir) {
            self.error("data_dir", said);
        }
    }

    fn policies(&mut self, config: &Config) {
        match PolicySet::resolve(&config.policy) {
            Ok(set) => {
                let names = set.names().collect::<Vec<_>>().join(", ");
                self.add("policies", format!("{}: {names}", PolicySet::place(&config.policy)));
                if set.is_empty() {
                    self.warn("policy.path", "no policies there: reports are stored and nothing is detected");
                }
            }
            Err(error) => {
                for problem in error.problems {
                    self.error("policy.path", problem);
                }
            }
        }
    }

    fn outbound(&mut self, config: &Config) -> Tls {
        Tls::new(&config.outbound).unwrap_or_else(|error| {
            self.said(&error);
            Tls::default()
        })
    }

    fn geoip(&mut self, config: &Config) {
        let files: Vec<String> = config.geoip.files.iter().map(|file| file.display().to_string()).collect();
        match GeoIp::open(&config.geoip) {
            Ok(_) if files.is_empty() => {
                self.add("geoip", "none".to_owned());
                self.warn("geoip.files", "is empty: no policy can tell countries or networks");
            }
            Ok(_) => self.add("geoip", files.join(", ")),
            Err(error) => self.said(&error.to_string()),
        }
    }

    fn devices(&mut self, config: &Config) {
        match Devices::check(&config.detect.device_regexes) {
            Ok(what) => self.add("devices", what),
            Err(error) => {
                let said = error.to_string();
                // Without them the rest works, and of a file that nobody named nobody wants to hear more than that it is of no use.
                let named = !config.detect.device_regexes.as_os_str().is_empty();
                if named && !error.is_absent() {
                    self.said(&said);
                } else {
                    self.add("devices", "User-Agents are not read".to_owned());
                    self.warn(DEVICE_REGEXES, said.strip_prefix(&format!("{DEVICE_REGEXES}: ")).unwrap_or(&said));
                }
            }
        }
    }

    fn channels(&mut self, config: &Config, tls: &Tls) {
        match notify::build_channels(&config.notify, tls) {
            Ok(channels) => {
                let names: Vec<&str> =
                    std::iter::once("log").chain(channels.iter().map(|channel| channel.name())).collect();
                self.add("channels", names.join(", "));
            }
            Err(errors) => errors.iter().for_each(|error| self.said(error)),
        }
        if let Err(errors) = notify::build_hooks(&config.notify, tls) {
            errors.iter().for_each(|error| self.said(error));
        }
    }

    fn console(&mut self, config: &Config) {
        match console::check(&config.console) {
            Ok(None) => {}
            Ok(Some(_)) => self.add("console", config.console.listen.clone()),
            Err(error) => self.said(&error.to_string()),
        }
    }

    fn tls(&mut self, config: &Config) {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let (cert, key) = (&config.http.tls_cert, &config.http.tls_key);
        if cert.as_os_str().is_empty() {
            return;
        }
        // Each file by itself first: the server's own reading ends at the first that is wrong.
        let before = self.errors.len();
        if let Err(error) = CertificateDer::from_pem_file(cert) {
            self.error("http.tls_cert", format!("{}: {error}", cert.display()));
        }
        if let Err(error) = PrivateKeyDer::from_pem_file(key) {
            self.error("http.tls_key", format!("{}: {error}", key.display()));
        }
        if self.errors.len() == before
            && let Err(error) = http::check_tls(&config.http)
        {
            self.said(&error.to_string());
        }
    }

    fn reachable(&mut self, config: &Config) {
        let listen: Vec<SocketAddr> = config.http.listeners().map(|listen| listen.address).collect();
        // A client on this machine has the address that it connects to.
        let own = listen.first().map(|first| as_reached(first.ip()));
        let acl: Vec<ipnet::IpNet> = config.http.acl.iter().filter_map(|text| text.parse().ok()).collect();
        if let Some(own) = own.filter(|own| !acl.iter().any(|net| net.contains(own))) {
            let text = format!("leaves {own} out: this machine's own query, send and dead-letters will be refused");
            self.warn("http.acl", &text);
        }
        if listen.iter().all(|address| address.ip().is_loopback()) {
            return;
        }
        if config.http.password.is_empty() {
            self.warn("http.password", "is not set: whoever http.acl lets in may send reports");
        }
        if config.http.admin_password.is_empty() {
            self.warn("http.admin_password", "is not set: operators' commands work on this machine only");
        }
    }
}

/// What becomes of reports that the queue does not take.
fn spool(config: &Config, most: &str) -> String {
    match (config.queue.kind, config.receive.spool) {
        (queue::Kind::Embedded, _) => "none: the queue is in the data folder".to_owned(),
        (_, true) => format!("in the data folder, {most} at most"),
        (_, false) => "none: reports are refused while the broker is down".to_owned(),
    }
}

/// Whether the folder is one that this user may write to, or can be made. Makes nothing.
fn can_hold_data(folder: &Path) -> Result<(), String> {
    use nix::unistd::{AccessFlags, eaccess};
    let whole = std::path::absolute(folder).map_err(|error| error.to_string())?;
    for at in whole.ancestors() {
        match std::fs::metadata(at) {
            Ok(meta) if !meta.is_dir() => return Err(format!("{} is no folder", at.display())),
            Ok(_) => {
                return eaccess(at, AccessFlags::W_OK | AccessFlags::X_OK)
                    .map_err(|error| format!("this user may not write to {}: {}", at.display(), error.desc()));
            }
            // What is above says more, or is where it can be made.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {}
            Err(error) => return Err(format!("{}: {error}", at.display())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_folder_is_one_that_can_be_made_or_written() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(can_hold_data(temp.path()), Ok(()));
        assert_eq!(can_hold_data(&temp.path().join("new/data")), Ok(()));
        assert!(!temp.path().join("new").exists());
        assert!(can_hold_data(&file).unwrap_err().ends_with("file is no folder"));
        assert!(can_hold_data(&file.join("data")).unwrap_err().ends_with("file is no folder"));
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o500)).unwrap();
        // The administrator may write everywhere.
        if std::fs::write(temp.path().join("tried"), "").is_err() {
            assert!(can_hold_data(temp.path()).unwrap_err().contains("may not write"));
        }
    }
}
