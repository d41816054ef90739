//! Options of a connection.

use std::time::Duration;

use queue_core::{Endpoint, Error, ErrorKind, Result, Secret};
use serde::Deserialize;

/// The port of AMQP without TLS.
const DEFAULT_PORT: u16 = 5672;
/// The user and the password of a fresh server, which accepts them from its own machine only.
const DEFAULT_LOGIN: &str = "guest";
/// Texts in the protocol's short form have a length of one byte.
pub(crate) const MAX_SHORT: usize = 255;

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
    /// How long one question to the broker may take (declare, purge, flush, …). Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub operation_timeout: Duration,
    /// Longest wait between two attempts to reconnect. Default: 3 s.
    #[serde(with = "humantime_serde")]
    pub max_backoff: Duration,
    /// What the server's tools show as the name of the connections. Default: `anyqueue`.
    pub connection_name: String,
    /// Whether messages are delayed by queues that the library declares for it (`anyqueue-delay-…`). Without, no
    /// message can be sent with a delay, and a retry is held back by its receiver for 20 minutes at most.
    /// Default: true.
    pub delay_queues: bool,
}

impl Default for AmqpConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(10),
            max_backoff: Duration::from_secs(3),
            connection_name: "anyqueue".to_owned(),
            delay_queues: true,
        }
    }
}

/// Everything that is needed to connect.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) hosts: Vec<(String, u16)>,
    pub(crate) user: String,
    pub(crate) password: Secret,
    pub(crate) vhost: String,
    /// In seconds.
    pub(crate) heartbeat: u16,
    pub(crate) connect_timeout: Duration,
    pub(crate) config: AmqpConfig,
}

impl Target {
    pub(crate) fn new(endpoint: &Endpoint) -> Result<Self> {
        let refuse = |why: &'static str| Err(Error::new(ErrorKind::InvalidConfig, why).with_operation("configure"));
        let config: AmqpConfig = endpoint.options()?;
        if let Some(option) = endpoint.native.keys().next() {
            return Err(Error::new(ErrorKind::InvalidConfig, format!("unknown option `amqp.{option}`"))
                .with_operation("configure")
                .with_context("option", option));
        }
        let Ok(heartbeat @ 1..) = u16::try_from(config.heartbeat.as_secs()) else {
            return refuse("heartbeat is between 1 s and 65535 s");
        };
        if config.operation_timeout.is_zero() || config.max_backoff.is_zero() {
            return refuse("operation_timeout and max_backoff are longer than nothing");
        }
        let vhost = endpoint.path.clone().unwrap_or_else(|| "/".to_owned());
        if vhost.len() > MAX_SHORT {
            return refuse("the name of a virtual host has at most 255 bytes");
        }
        let mut hosts: Vec<_> =
            endpoint.hosts.iter().map(|h| (h.name.clone(), h.port.unwrap_or(DEFAULT_PORT))).collect();
        if hosts.is_empty() {
            hosts.push(("localhost".to_owned(), DEFAULT_PORT));
        }
        Ok(Self {
            hosts,
            user: endpoint.user.clone().unwrap_or_else(|| DEFAULT_LOGIN.to_owned()),
            password: endpoint.password.clone().unwrap_or_else(|| Secret::from(DEFAULT_LOGIN)),
            vhost,
            heartbeat,
            connect_timeout: endpoint.connect_timeout,
            config,
        })
    }
}
