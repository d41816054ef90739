//! Options of a connection.

use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use queue_core::{Endpoint, Error, ErrorKind, Result, Secret, TokenProvider};
use serde::Deserialize;

use crate::auth::{Auth, Login};
#[cfg(feature = "management")]
use crate::management::Management;
use crate::tls::Tls;
use crate::topology::{Arguments, Native};

/// The scheme of AMQP over TLS.
pub(crate) const TLS_SCHEME: &str = "amqps";
/// The ports of AMQP without and with TLS.
const DEFAULT_PORTS: (u16, u16) = (5672, 5671);
/// The user and the password of a fresh server, which accepts them from its own machine only.
const DEFAULT_LOGIN: &str = "guest";
/// Texts in the protocol's short form have a length of one byte.
pub(crate) const MAX_SHORT: usize = 255;

/// With 512 sends are some hundredths slower than by hand, with 1,024 each takes a tenth more CPU (`benches/amqp`).
const MAX_UNCONFIRMED: NonZeroU16 = NonZeroU16::new(640).expect("it is not zero");
/// The longest time that an option can give: the clock of the system cannot tell a time far beyond.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Options of the URL of a RabbitMQ server.
///
/// ```
/// use queue_amqp::AmqpConfig;
/// use queue_core::Endpoint;
///
/// let endpoint: Endpoint = "amqp://localhost?heartbeat=5s".parse()?;
/// assert_eq!(endpoint.options::<AmqpConfig>()?.heartbeat.as_secs(), 5);
/// # Ok::<(), queue_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct AmqpConfig {
    /// Longest silence between heartbeats; twice as long, and the connection counts as lost. Whole seconds, at least
    /// one. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// How long one question to the broker may take (declare, purge, flush, …), a day at most. One whose answer
    /// is lost with the connection is asked again within it. Default: 30 s.
    #[serde(with = "humantime_serde")]
    pub operation_timeout: Duration,
    /// Longest wait between two attempts to reconnect, a day at most. Default: 3 s.
    #[serde(with = "humantime_serde")]
    pub max_backoff: Duration,
    /// Messages that the server may have and has not answered, 1 to 65,535, on each of the two channels of a client: that
    /// of queues, and that of topics and delays. Further ones wait here. Divided by the time that
    /// the server takes for an answer, it bounds the rate: more on a link with long delays. On a fast one more cost CPU,
    /// because the client looks at each for every answer. Default: 640.
    pub max_unconfirmed: NonZeroU16,
    /// What the server's tools show as the name of the connections. Default: `anyqueue`.
    pub connection_name: String,
    /// Whether messages are delayed by queues that the library declares for it (`anyqueue-delay-…`). Without, no
    /// message can be sent with a delay, and a retry is held back by its receiver for 20 minutes at most.
    /// Default: true.
    pub delay_queues: bool,

    /// How to log in: `plain` with user and password, `external` with the client certificate, `oauth2` with a token.
    /// Default: `plain`.
    pub auth: Auth,
    /// A file with the password, instead of one in the URL. It is read at every connect and reconnect, so a password
    /// changes without a restart. White space at its end does not count. Default: none.
    pub password_file: Option<PathBuf>,
    /// A file with the token, for `auth=oauth2`. It is read at every connect and every two seconds, and a changed token
    /// is given to the server on the open connection: whoever writes the file renews the token in time. Default: none;
    /// the password of the URL is the token, and not renewed.
    pub token_file: Option<PathBuf>,
    /// A PEM file with the certificates of the authorities that may vouch for the server, for `amqps`. The system's own
    /// do not count then. Read at every connect. Default: none; those of the system.
    pub ca_file: Option<PathBuf>,
    /// A PEM file with the client's certificate and those between it and an authority, for `amqps`. Read at every
    /// connect, so that certificates can be renewed. Default: none.
    pub client_cert_file: Option<PathBuf>,
    /// A PEM file with the private key of the client's certificate, without a passphrase. Default: none.
    pub client_key_file: Option<PathBuf>,
    /// The name that the server's certificate has to be for, for `amqps`. Default: the host of the URL.
    pub server_name: Option<String>,

    /// The server's HTTP API, `http://user:password@host:15672` or `https://…`, which `verify` asks for every difference
    /// where AMQP tells one at a time. Needs the feature `management` (`amqp-management` of the facade), and is asked
    /// for nothing else. Default: none.
    pub management_url: Option<Secret>,
}

impl Default for AmqpConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(30),
            max_backoff: Duration::from_secs(3),
            max_unconfirmed: MAX_UNCONFIRMED,
            connection_name: "anyqueue".to_owned(),
            delay_queues: true,

            auth: Auth::Plain,
            password_file: None,
            token_file: None,
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            server_name: None,

            management_url: None,
        }
    }
}

/// Everything that is needed to connect.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) hosts: Vec<(String, u16)>,
    pub(crate) login: Login,
    /// `None` without TLS.
    pub(crate) tls: Option<Tls>,
    pub(crate) vhost: String,
    /// In seconds.
    pub(crate) heartbeat: u16,
    pub(crate) connect_timeout: Duration,
    /// Arguments of every queue that is made: options of the URL that start with `amqp.`.
    pub(crate) defaults: Arguments,
    #[cfg(feature = "management")]
    pub(crate) management: Option<Management>,
    pub(crate) config: AmqpConfig,
}

impl Target {
    pub(crate) fn new(endpoint: &Endpoint, tokens: Option<Arc<dyn TokenProvider>>) -> Result<Self> {
        let refuse = |why: &'static str| Err(refused(why));
        let config: AmqpConfig = endpoint.options()?;
        let defaults = Native::of_queue(&endpoint.native)?.queue;
        let Ok(heartbeat @ 1..) = u16::try_from(config.heartbeat.as_secs()) else {
            return refuse("heartbeat is between 1 s and 65535 s");
        };
        if config.operation_timeout.is_zero() || config.max_backoff.is_zero() {
            return refuse("operation_timeout and max_backoff are longer than nothing");
        }
        if [config.operation_timeout, config.max_backoff, endpoint.connect_timeout].iter().any(|d| *d > LONGEST) {
            return refuse("operation_timeout, max_backoff and connect_timeout are at most a day");
        }
        let vhost = endpoint.path.clone().unwrap_or_else(|| "/".to_owned());
        if vhost.len() > MAX_SHORT {
            return refuse("the name of a virtual host has at most 255 bytes");
        }
        let over_tls = endpoint.scheme == TLS_SCHEME;
        let default_port = if over_tls { DEFAULT_PORTS.1 } else { DEFAULT_PORTS.0 };
        let mut hosts: Vec<_> =
            endpoint.hosts.iter().map(|h| (h.name.clone(), h.port.unwrap_or(default_port))).collect();
        if hosts.is_empty() {
            hosts.push(("localhost".to_owned(), default_port));
        }
        let tls = Tls::new(&config, over_tls)?;
        #[cfg(not(feature = "management"))]
        if config.management_url.is_some() {
            return refuse("management_url needs the feature `management` (`amqp-management` of the facade)");
        }
        #[cfg(feature = "management")]
        let management = match &config.management_url {
            Some(url) => Some(Management::new(url, tls.as_ref(), &vhost)?),
            None => None,
        };
        Ok(Self {
            hosts,
            login: login(endpoint, &config, tls.as_ref(), tokens)?,
            tls,
            vhost,
            heartbeat,
            connect_timeout: endpoint.connect_timeout,
            defaults,
            #[cfg(feature = "management")]
            management,
            config,
        })
    }
}

fn refused(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidConfig, why).with_operation("configure")
}

/// How to log in; every combination that would leave an option without effect is refused.
fn login(
    endpoint: &Endpoint,
    config: &AmqpConfig,
    tls: Option<&Tls>,
    tokens: Option<Arc<dyn TokenProvider>>,
) -> Result<Login> {
    let auth = if tokens.is_some() { Auth::Oauth2 } else { config.auth };
    let sources = [endpoint.password.is_some(), config.password_file.is_some(), config.token_file.is_some()];
    if sources.into_iter().filter(|s| *s).count() + usize::from(tokens.is_some()) > 1 {
        return Err(refused("there is one password or token: in the URL, in a file, or from a provider"));
    }
    if config.token_file.is_some() && auth != Auth::Oauth2 {
        return Err(refused("token_file is for auth=oauth2"));
    }
    if config.password_file.is_some() && auth != Auth::Plain {
        return Err(refused("password_file is for auth=plain"));
    }
    let user = endpoint.user.clone();
    Ok(match auth {
        Auth::Plain => {
            let user = user.unwrap_or_else(|| DEFAULT_LOGIN.to_owned());
            match &config.password_file {
                Some(path) => Login::PasswordFile { user, path: path.clone() },
                None => {
                    let password = endpoint.password.clone().unwrap_or_else(|| Secret::from(DEFAULT_LOGIN));
                    Login::Password { user, password }
                }
            }
        }
        Auth::External => {
            if user.is_some() || endpoint.password.is_some() {
                return Err(refused("with auth=external the certificate says who logs in: no user, no password"));
            }
            if !tls.is_some_and(Tls::has_identity) {
                return Err(refused("auth=external needs amqps, client_cert_file and client_key_file"));
            }
            Login::External
        }
        Auth::Oauth2 => {
            // The server takes the user from the token.
            let user = user.unwrap_or_default();
            match (tokens, &config.token_file, &endpoint.password) {
                (Some(provider), ..) if provider.needs_tls() && tls.is_none() => {
                    return Err(refused(
                        "the tokens of this provider go over TLS only: the URL has to start with amqps",
                    ));
                }
                (Some(provider), ..) => Login::Tokens { user, provider },
                (None, Some(path), _) => Login::TokenFile { user, path: path.clone() },
                (None, None, Some(token)) => Login::Password { user, password: token.clone() },
                (None, None, None) => return Err(refused("auth=oauth2 needs token_file, or the token as password")),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use queue_core::{ErrorKind, Token};

    use super::*;

    struct Shy;

    #[async_trait]
    impl TokenProvider for Shy {
        async fn token(&self) -> Result<Token> {
            Ok(Token::new("a-token"))
        }

        fn needs_tls(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_provider_that_needs_tls_gets_it() {
        let target = |url: &str| Target::new(&url.parse().unwrap(), Some(Arc::new(Shy)));
        let error = target("amqp://a").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.message().contains("amqps"), "{error}");
        assert!(target("amqps://a").is_ok());
    }
}
