//! TLS: whom to trust, and what to show.

use std::path::{Path, PathBuf};

use queue_core::{Result, files};
use rdkafka::ClientConfig;

use crate::auth::{Auth, NEEDS_MSK_IAM, refused};
use crate::config::KafkaConfig;

/// The files of a connection over TLS.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tls {
    ca: Option<PathBuf>,
    /// Certificate and key.
    identity: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    /// Reads the options; `None` without TLS.
    pub(crate) fn new(config: &KafkaConfig, over_tls: bool) -> Result<Option<Self>> {
        let KafkaConfig { ca_file, client_cert_file, client_key_file, .. } = config;
        if !over_tls {
            if [ca_file, client_cert_file, client_key_file].into_iter().any(Option::is_some) {
                return Err(refused("ca_file, client_cert_file and client_key_file are for kafkas"));
            }
            return Ok(None);
        }
        if !cfg!(feature = "tls") {
            let needs = match config.auth {
                // Which brings the other.
                Some(Auth::AwsIam) => NEEDS_MSK_IAM,
                _ => "kafkas needs the feature `tls` (`kafka-tls` of the facade)",
            };
            return Err(refused(needs));
        }
        let identity = match (client_cert_file.clone(), client_key_file.clone()) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(refused("client_cert_file and client_key_file go together")),
        };
        Ok(Some(Self { ca: ca_file.clone(), identity }))
    }

    pub(crate) fn has_identity(&self) -> bool {
        self.identity.is_some()
    }

    /// Sets where the client finds what it needs. It reads the files when it is made.
    pub(crate) fn prepare(&self, config: &mut ClientConfig) -> Result<()> {
        match &self.ca {
            Some(path) => config.set("ssl.ca.location", text(path)?),
            // OpenSSL is built in, and does not know where this system keeps its authorities.
            None => config.set("ssl.ca.location", "probe"),
        };
        if let Some((certificate, key)) = &self.identity {
            config.set("ssl.certificate.location", text(certificate)?).set("ssl.key.location", text(key)?);
        }
        Ok(())
    }

    /// Looks into the files, for an error that names the one that is wrong.
    pub(crate) fn check(&self) -> Result<()> {
        let certificate = "CERTIFICATE-----";
        if let Some(path) = &self.ca {
            contains(path, certificate, "there is no certificate in the file")?;
        }
        if let Some((chain, key)) = &self.identity {
            contains(chain, certificate, "there is no certificate in the file")?;
            contains(key, "PRIVATE KEY-----", "there is no private key in the file")?;
        }
        Ok(())
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| files::bad(path, "the name of the file is not UTF-8"))
}

fn contains(path: &Path, part: &str, otherwise: &'static str) -> Result<()> {
    let found = files::read(path)?.windows(part.len()).any(|w| w == part.as_bytes());
    if found { Ok(()) } else { Err(files::bad(path, otherwise)) }
}
