//! TLS: whom to trust, and what to show.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lapin::tcp::RustlsConnector;
use queue_core::{Error, ErrorKind, Result, files};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;

use crate::auth::read;
use crate::config::AmqpConfig;

/// The files of a connection over TLS.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tls {
    ca: Option<PathBuf>,
    /// Certificate and key.
    identity: Option<(PathBuf, PathBuf)>,
    server_name: Option<String>,
}

impl Tls {
    /// Reads the options; `None` without TLS.
    pub(crate) fn new(config: &AmqpConfig, over_tls: bool) -> Result<Option<Self>> {
        let refuse = |why: &'static str| Err(Error::new(ErrorKind::InvalidConfig, why).with_operation("configure"));
        let AmqpConfig { ca_file, client_cert_file, client_key_file, server_name, .. } = config;
        let any_file = [ca_file, client_cert_file, client_key_file].into_iter().any(Option::is_some);
        if !over_tls {
            if any_file || server_name.is_some() {
                return refuse("ca_file, client_cert_file, client_key_file and server_name are for amqps");
            }
            return Ok(None);
        }
        let identity = match (client_cert_file.clone(), client_key_file.clone()) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return refuse("client_cert_file and client_key_file go together"),
        };
        if server_name.as_deref().is_some_and(|name| ServerName::try_from(name).is_err()) {
            return refuse("server_name is the name of a host or an address");
        }
        Ok(Some(Self { ca: ca_file.clone(), identity, server_name: server_name.clone() }))
    }

    pub(crate) fn has_identity(&self) -> bool {
        self.identity.is_some()
    }

    /// The name that the certificate of a host has to be for.
    pub(crate) fn name_of<'a>(&'a self, host: &'a str) -> &'a str {
        self.server_name.as_deref().unwrap_or(host)
    }

    /// Reads the files, which may have changed since the last time.
    pub(crate) async fn connector(&self) -> Result<RustlsConnector> {
        self.client_config().await.map(RustlsConnector::from)
    }

    /// The same for other clients.
    pub(crate) async fn client_config(&self) -> Result<ClientConfig> {
        let authorities = match &self.ca {
            Some(path) => Some((path, certificates(path).await?)),
            None => None,
        };
        let identity = match &self.identity {
            Some((certificate, key)) => Some((key, certificates(certificate).await?, private_key(key).await?)),
            None => None,
        };
        // The application's choice, where it made one. Nothing is installed for the process.
        let provider =
            CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(aws_lc_rs::default_provider()));
        let unusable = |error: rustls::Error| {
            Error::new(ErrorKind::InvalidConfig, format!("TLS cannot be set up: {error}")).with_operation("connect")
        };
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(unusable)?;
        let config = match authorities {
            Some((path, certificates)) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates {
                    roots
                        .add(certificate)
                        .map_err(|e| files::bad(path, "a certificate cannot be used").with_source(e))?;
                }
                config.with_root_certificates(roots)
            }
            // Reads the system's own, which takes milliseconds.
            None => tokio::task::spawn_blocking(move || config.with_platform_verifier())
                .await
                .map_err(|e| Error::new(ErrorKind::Internal, "the system's certificates").with_source(e))?
                .map_err(unusable)?,
        };
        Ok(match identity {
            Some((path, certificates, key)) => config
                .with_client_auth_cert(certificates, key)
                .map_err(|e| files::bad(path, "the key does not fit the certificate").with_source(e))?,
            None => config.with_no_client_auth(),
        })
    }
}

async fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = read(path).await?;
    match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if certificates.is_empty() => Err(files::bad(path, "there is no certificate in the file")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(files::bad(path, "the file is not PEM").with_source(error)),
    }
}

async fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let pem = read(path).await?;
    // The cause could show a part of the key.
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| files::bad(path, "there is no private key in the file"))
}
