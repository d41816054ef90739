//! How a connection logs in: passwords, certificates, tokens.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use queue_core::{Result, Secret, TokenProvider, files};
use serde::Deserialize;

/// How often a file with a token is read again.
const LOOK_AT_FILE: Duration = Duration::from_secs(2);

/// How a connection logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Auth {
    /// User and password (`PLAIN`).
    #[default]
    Plain,
    /// The certificate that the client shows (`EXTERNAL`); the server needs the plugin
    /// `rabbitmq_auth_mechanism_ssl`.
    External,
    /// A token instead of a password; the server needs the plugin `rabbitmq_auth_backend_oauth2`.
    Oauth2,
}

/// Where user and secret come from.
#[derive(Clone)]
pub(crate) enum Login {
    Password { user: String, password: Secret },
    PasswordFile { user: String, path: PathBuf },
    TokenFile { user: String, path: PathBuf },
    Tokens { user: String, provider: Arc<dyn TokenProvider> },
    External,
}

/// What a connection logs in with.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    /// `None` where the certificate says it.
    pub(crate) login: Option<(String, Secret)>,
    /// When to ask again.
    pub(crate) renew_in: Option<Duration>,
}

impl Login {
    /// What is good now. Reads files, asks providers: to be called with a deadline around.
    pub(crate) async fn credentials(&self) -> Result<Credentials> {
        let (user, secret, renew_in) = match self {
            Self::External => return Ok(Credentials { login: None, renew_in: None }),
            Self::Password { user, password } => (user, password.clone(), None),
            Self::PasswordFile { user, path } => (user, secret_of(path).await?, None),
            Self::TokenFile { user, path } => (user, secret_of(path).await?, Some(LOOK_AT_FILE)),
            Self::Tokens { user, provider } => {
                let token = provider.token().await?;
                (user, token.secret().clone(), token.renew_in())
            }
        };
        Ok(Credentials { login: Some((user.clone(), secret)), renew_in })
    }

    /// Who logs in, as far as that is known here.
    pub(crate) fn user(&self) -> &str {
        match self {
            Self::Password { user, .. }
            | Self::PasswordFile { user, .. }
            | Self::TokenFile { user, .. }
            | Self::Tokens { user, .. } => user,
            Self::External => "",
        }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(***)")
    }
}

async fn secret_of(path: &Path) -> Result<Secret> {
    off_the_runtime(path, files::secret).await
}

/// Reads a small file.
pub(crate) async fn read(path: &Path) -> Result<Vec<u8>> {
    off_the_runtime(path, files::read).await
}

async fn off_the_runtime<T: Send + 'static>(path: &Path, read: fn(&Path) -> Result<T>) -> Result<T> {
    let owned = path.to_owned();
    let read = tokio::task::spawn_blocking(move || read(&owned)).await;
    read.unwrap_or_else(|error| Err(files::bad(path, "the file cannot be read").with_source(error)))
}
