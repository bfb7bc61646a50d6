//! TLS to the running process: exactly the certificate that this configuration gives it.
//!
//! The process listens on an address that its certificate seldom names, and the certificate is often self-signed; but the configuration
//! says which one it is. So the client compares bytes. Checking nothing would send the password to whoever took the port.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

/// Accepts one certificate.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if end_entity.as_ref() == self.certificate.as_ref() {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::General("it shows another certificate than http.tls_cert".to_owned()))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The client's TLS for a process that shows the first certificate of this PEM file.
pub(super) fn client(cert: &Path) -> Result<ClientConfig, String> {
    let fail = |said: String| format!("http.tls_cert: {}: {said}", cert.display());
    let certificate = CertificateDer::from_pem_file(cert).map_err(|error| fail(error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Pinned { certificate, provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| fail(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// A certificate for a name that no address has, in a file.
    fn certificate(folder: &Path, name: &str) -> (std::path::PathBuf, ServerConfig) {
        let made = rcgen::generate_simple_self_signed(vec!["trackalert.invalid".to_owned()]).unwrap();
        let file = folder.join(name);
        std::fs::write(&file, made.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        (file, server)
    }

    #[tokio::test]
    async fn only_the_certificate_of_the_configuration_is_taken() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let (own, server) = certificate(folder.path(), "own.pem");
        let (other, _) = certificate(folder.path(), "other.pem");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if let Ok(mut tls) = acceptor.accept(stream).await {
                    let _ = tls.write_all(b"HTTP/1.1 204 x\r\nconnection: close\r\n\r\n").await;
                    let _ = tls.shutdown().await;
                }
            }
        });
        let get = async |file: &Path| {
            let tls = client(file).unwrap();
            let client = reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls).build().unwrap();
            client.get(format!("https://{address}/")).send().await
        };
        assert_eq!(get(&own).await.unwrap().status(), 204);
        let refused = get(&other).await.unwrap_err();
        assert!(format!("{refused:?}").contains("another certificate"), "{refused:?}");
        assert!(client(&folder.path().join("none.pem")).unwrap_err().starts_with("http.tls_cert: "));
        serving.abort();
    }
}
