//! The demo's folder: the configuration, the GeoIP files, and the data of the program.
//!
//! Owns what is written before the program starts. A temporary folder goes with this value; one that was named stays.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::DemoError;
use super::traffic::Generated;
use super::world::write_geoip;
use crate::policy::PolicySet;

/// The reports, one a line, in a folder that stays.
pub(super) const REPORTS: &str = "reports.ndjson";

/// The shipped policies, as files.
const POLICIES: &str = "policies";

/// See the module.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    /// The configuration.
    pub(super) file: PathBuf,
    /// Signs the reports and the alerts.
    pub(super) secret: String,
    temporary: Option<TempDir>,
}

impl Folder {
    /// Makes the folder, or takes the named one if it is empty, and writes configuration and GeoIP files.
    pub(super) fn prepare(keep: Option<&Path>) -> Result<Self, DemoError> {
        let (path, temporary) = match keep {
            Some(path) => (named(path)?, None),
            None => {
                let made = tempfile::Builder::new().prefix("trackalert-demo-").tempdir();
                let folder = made.map_err(|error| DemoError::Folder(std::env::temp_dir(), error))?;
                (folder.path().to_owned(), Some(folder))
            }
        };
        let geoip = write_geoip(&path)?;
        let secret = format!("{:032x}", rand::random::<u128>());
        let file = path.join("trackalert.toml");
        PolicySet::write_shipped(&path.join(POLICIES))
            .map_err(|error| DemoError::Folder(path.join(POLICIES), error))?;
        let text = configuration(&path, &geoip, free_port()?, &secret);
        // It holds the secret: nobody else may read it.
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
        made.and_then(|mut made| made.write_all(text.as_bytes()))
            .map_err(|error| DemoError::Folder(file.clone(), error))?;
        Ok(Self { path, file, secret, temporary })
    }

    /// For the reports; writes nothing where the folder goes at the end.
    pub(super) fn recorder(&self) -> Result<Recorder, DemoError> {
        let path = self.path.join(REPORTS);
        let file = match &self.temporary {
            Some(_) => None,
            None => Some(File::create(&path).map_err(|error| DemoError::Folder(path.clone(), error))?),
        };
        Ok(Recorder { path, file: Ok(file.map(BufWriter::new)) })
    }
}

/// Writes down what is sent, where somebody keeps it: `trackalert send` takes it.
#[derive(Debug)]
pub(super) struct Recorder {
    path: PathBuf,
    file: io::Result<Option<BufWriter<File>>>,
}

impl Recorder {
    /// Writes one report. The first error is told at the end.
    pub(super) fn take(&mut self, report: &Generated) {
        if let Ok(Some(file)) = &mut self.file
            && let Err(error) = file.write_all(&report.body).and_then(|()| file.write_all(b"\n"))
        {
            self.file = Err(error);
        }
    }

    /// All is written.
    pub(super) fn end(self) -> Result<(), DemoError> {
        let ended = self.file.and_then(|file| file.map_or(Ok(()), |mut file| file.flush()));
        ended.map_err(|error| DemoError::Folder(self.path, error))
    }
}

fn named(path: &Path) -> Result<PathBuf, DemoError> {
    let fail = |error| DemoError::Folder(path.to_owned(), error);
    std::fs::create_dir_all(path).map_err(fail)?;
    // The paths in the configuration must hold from wherever it is used.
    let path = path.canonicalize().map_err(fail)?;
    if std::fs::read_dir(&path).map_err(fail)?.next().is_some() {
        return Err(DemoError::NotEmpty(path));
    }
    Ok(path)
}

/// A port that is free now. It stands in the file, so that `query -C` and a later `run -C` find the same place.
fn free_port() -> Result<u16, DemoError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(DemoError::Listen)?;
    Ok(listener.local_addr().map_err(DemoError::Listen)?.port())
}

fn configuration(folder: &Path, geoip: &[PathBuf], port: u16, secret: &str) -> String {
    let quoted = |path: &Path| toml_edit::Value::from(path.display().to_string()).to_string();
    let files: Vec<_> = geoip.iter().map(|path| quoted(path)).collect();
    format!(
        "# The demo's configuration: trackalert run -C takes it too. Every setting and its default: trackalert config\n\
         data_dir = {}\n\n\
         [policy]\n\
         # The shipped ones: a folder `policies` where the demo happens to be started must not take their place.\n\
         path = [{}]\n\n\
         [http]\n\
         listen = [\"127.0.0.1:{port}\"]\n\n\
         [receive]\n\
         # Signs what comes as wforce's webhook; a report by hand needs none.\n\
         webhook_secrets = [\"{secret}\"]\n\n\
         [history]\n\
         # The thin history before the fortnight is 120 days long.\n\
         retention_days = 200\n\n\
         [geoip]\n\
         # Made up: they know the demo's addresses only.\n\
         files = [{}]\n",
        quoted(&folder.join("data")),
        quoted(&folder.join(POLICIES)),
        files.join(", "),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nobody_else_can_read_the_configuration_with_its_secret() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::prepare(Some(&temp.path().join("kept"))).unwrap();
        assert!(std::fs::read_to_string(&folder.file).unwrap().contains(&folder.secret));
        assert_eq!(std::fs::metadata(&folder.file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
