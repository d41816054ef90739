//! How a connection logs in: passwords, certificates, tokens.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use queue_core::{Error, ErrorKind, Result, Secret};
use serde::Deserialize;

/// How often a file with a token is read again.
const LOOK_AT_FILE: Duration = Duration::from_secs(2);
/// Shortest time between two questions for a token.
const MIN_RENEWAL: Duration = Duration::from_millis(500);
/// A token is renewed when this part of its life is over.
const RENEW_AT: f64 = 0.75;
/// Far above what a server takes as a token, a password, or a list of authorities.
const MAX_FILE: u64 = 4 << 20;

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

/// A token of OAuth 2, and how long it is good for.
///
/// ```
/// use std::time::Duration;
/// use queue_amqp::Token;
///
/// let token = Token::new("eyJhbGciOi…").valid_for(Duration::from_secs(300));
/// assert_eq!(format!("{token:?}"), "Token { secret: ***, valid_for: Some(300s) }");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    secret: Secret,
    valid_for: Option<Duration>,
}

impl Token {
    /// Makes a token that never expires; see [`valid_for`](Self::valid_for).
    #[must_use]
    pub fn new(secret: impl Into<Secret>) -> Self {
        Self { secret: secret.into(), valid_for: None }
    }

    /// Says how long the token is good for from now on: `expires_in` of a token server's answer. Three quarters of it
    /// later the next one is asked for.
    #[must_use]
    pub fn valid_for(mut self, time: Duration) -> Self {
        self.valid_for = Some(time);
        self
    }
}

/// Gives tokens of OAuth 2, for [`AmqpBroker::connect_with_tokens`](crate::AmqpBroker::connect_with_tokens).
///
/// Asked at every connect and reconnect of each of the two connections, and before a token expires; a provider for which
/// a token is expensive keeps it.
#[async_trait]
pub trait TokenProvider: Send + Sync + 'static {
    /// Gives a token that is good now.
    ///
    /// The wait is bounded: by `connect_timeout` or the time between reconnects while connecting, by
    /// `operation_timeout` while connected. The future is dropped then, and the provider asked again later.
    ///
    /// # Errors
    /// Whatever hinders it; shown in `health()`. Never put the token into it.
    async fn token(&self) -> Result<Token>;
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
                (user, token.secret, token.valid_for.map(|time| time.mul_f64(RENEW_AT).max(MIN_RENEWAL)))
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
    let bytes = read(path).await?;
    match std::str::from_utf8(&bytes).map(str::trim_end) {
        Ok("") => Err(bad_file(path, "the file is empty")),
        Ok(text) => Ok(Secret::from(text)),
        Err(_) => Err(bad_file(path, "the file is not text")),
    }
}

/// Reads a small file.
pub(crate) async fn read(path: &Path) -> Result<Vec<u8>> {
    let owned = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        std::fs::File::open(owned)?.take(MAX_FILE).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    });
    match read.await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(bad_file(path, "the file cannot be read").with_source(error)),
        Err(error) => Err(bad_file(path, "the file cannot be read").with_source(error)),
    }
}

pub(crate) fn bad_file(path: &Path, why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidConfig, why).with_operation("connect").with_context("file", path.display())
}
