//! `trackalert check`: everything that can be known before a start.
//!
//! Opens no data folder and sends nothing, so that it can run beside the running process.

use serde_json::{Value, json};

use super::{Common, Failure, output};
use crate::config::{Config, Roles};
use crate::geoip::GeoIp;
use crate::notify;
use crate::policy::PolicySet;

const EXAMPLES: &str = "\
Examples:
  trackalert check -C /etc/trackalert.toml && systemctl restart trackalert
  trackalert check -C trackalert.toml --format json";

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
    /// An object with `ok`, `summary`, `warnings`, `errors`
    Json,
}

/// What is found, beyond the configuration itself.
#[derive(Debug, Default)]
struct Findings {
    summary: Vec<(&'static str, String)>,
    warnings: Vec<String>,
    errors: Vec<String>,
}

pub(super) fn run(common: &Common, args: &Args) -> Result<(), Failure> {
    let config = match common.load() {
        Ok(config) => config,
        Err(errors) if args.format == Format::Json => {
            let errors: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
            output::line(format_args!(
                "{:#}",
                json!({ "ok": false, "summary": {}, "warnings": [], "errors": errors })
            ))?;
            return Err(Failure::usage("the configuration is wrong"));
        }
        Err(errors) => return Err(errors.into()),
    };
    let findings = Findings::of(&config, args.roles);
    match args.format {
        Format::Json => {
            let summary: serde_json::Map<String, Value> =
                findings.summary.iter().map(|(name, text)| ((*name).to_owned(), json!(text))).collect();
            let ok = findings.errors.is_empty();
            let all = json!({ "ok": ok, "summary": summary, "warnings": findings.warnings, "errors": findings.errors });
            output::line(format_args!("{all:#}"))?;
        }
        Format::Text => {
            for (name, text) in &findings.summary {
                output::line(format_args!("{name:<10} {text}"))?;
            }
            for warning in &findings.warnings {
                output::line(format_args!("warning: {warning}"))?;
            }
            for error in &findings.errors {
                output::line(format_args!("error: {error}"))?;
            }
            if findings.errors.is_empty() {
                output::line("all well")?;
            }
        }
    }
    match findings.errors.len() {
        0 => Ok(()),
        1 => Err(Failure::usage("there is an error")),
        many => Err(Failure::usage(format!("there are {many} errors"))),
    }
}

impl Findings {
    fn of(config: &Config, roles: Roles) -> Self {
        let mut findings = Self { warnings: config.warnings.clone(), ..Self::default() };
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
        findings.add("data", config.data_dir.display().to_string());
        let scheme = if value("http.tls_cert").is_empty() { "http" } else { "https" };
        findings.add("listen", format!("{scheme}://{}", value("http.listen")));
        findings
            .add("queue", format!("{} ({}, {})", value("queue.kind"), value("queue.reports"), value("queue.alerts")));
        findings.add("history", format!("{}, {} days", value("history.kind"), value("history.retention_days")));
        findings.add("state", value("state.kind"));
        findings.policies(config);
        findings.geoip(config);
        findings.channels(config);
        findings.tls(&value("http.tls_cert"), &value("http.tls_key"));
        findings.passwords(config, &value("http.listen"));
        findings
    }

    fn add(&mut self, name: &'static str, text: String) {
        self.summary.push((name, text));
    }

    fn policies(&mut self, config: &Config) {
        let checked = PolicySet::resolve(&config.policy.path);
        match checked {
            Ok(set) => self.add("policies", set.names().collect::<Vec<_>>().join(", ")),
            Err(error) => self.errors.push(format!("policy.path: {error}")),
        }
    }

    fn geoip(&mut self, config: &Config) {
        let files: Vec<String> = config.geoip.files.iter().map(|file| file.display().to_string()).collect();
        match GeoIp::open(&config.geoip) {
            Ok(_) if files.is_empty() => {
                self.add("geoip", "none".to_owned());
                self.warnings.push("geoip.files is empty: no policy can tell countries or networks".to_owned());
            }
            Ok(_) => self.add("geoip", files.join(", ")),
            Err(error) => self.errors.push(error.to_string()),
        }
    }

    fn channels(&mut self, config: &Config) {
        match notify::build_channels(&config.notify) {
            Ok(channels) => {
                let names: Vec<&str> =
                    std::iter::once("log").chain(channels.iter().map(|channel| channel.name())).collect();
                self.add("channels", names.join(", "));
            }
            Err(errors) => self.errors.extend(errors),
        }
    }

    fn tls(&mut self, cert: &str, key: &str) {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        if cert.is_empty() {
            return;
        }
        if let Err(error) = CertificateDer::from_pem_file(cert) {
            self.errors.push(format!("http.tls_cert: {cert}: {error}"));
        }
        if let Err(error) = PrivateKeyDer::from_pem_file(key) {
            self.errors.push(format!("http.tls_key: {key}: {error}"));
        }
    }

    fn passwords(&mut self, config: &Config, listen: &str) {
        let loopback =
            |text: &str| text.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
        if listen.split(", ").all(loopback) {
            return;
        }
        if config.http.password.is_empty() {
            self.warnings.push("http.password is not set: whoever http.acl lets in may send reports".to_owned());
        }
        if config.http.admin_password.is_empty() {
            self.warnings
                .push("http.admin_password is not set: operators' commands work on this machine only".to_owned());
        }
    }
}
