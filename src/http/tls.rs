//! TLS by rustls: the certificate and key of the listener, reread on demand.
//!
//! Owns the reading. A broken new file leaves the old certificate in use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::server::HttpError;
use super::{Settings, TlsVersion};

pub(super) struct Tls {
    cert: PathBuf,
    key: PathBuf,
    oldest: TlsVersion,
    current: ArcSwap<ServerConfig>,
}

impl Tls {
    /// Reads both files.
    pub(super) fn open(settings: &Settings) -> Result<Self, HttpError> {
        let (cert, key, oldest) = (settings.tls_cert.clone(), settings.tls_key.clone(), settings.tls_min);
        let current = ArcSwap::new(read(&cert, &key, oldest)?);
        Ok(Self { cert, key, oldest, current })
    }

    pub(super) fn reload(&self) -> Result<(), HttpError> {
        self.current.store(read(&self.cert, &self.key, self.oldest)?);
        Ok(())
    }

    pub(super) fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        tokio_rustls::TlsAcceptor::from(self.current.load_full())
    }
}

fn read(cert: &Path, key: &Path, oldest: TlsVersion) -> Result<Arc<ServerConfig>, HttpError> {
    let error = |setting: &str, path: &Path, what: String| {
        HttpError::Tls(format!("http.{setting}: {}: {what}", path.display()))
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|what| error("tls_cert", cert, what.to_string()))?;
    if chain.is_empty() {
        return Err(error("tls_cert", cert, "no certificate in it".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|what| error("tls_key", key, what.to_string()))?;
    let versions: &[&rustls::SupportedProtocolVersion] = match oldest {
        TlsVersion::V12 => rustls::ALL_VERSIONS,
        TlsVersion::V13 => &[&rustls::version::TLS13],
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
        .map_err(|what| error("tls_key", key, what.to_string()))?;
    Ok(Arc::new(config))
}
