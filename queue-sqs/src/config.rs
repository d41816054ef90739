//! Options of the driver, and the clients that follow from them.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region, StalledStreamProtectionConfig};
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use queue_core::{Endpoint, Error, ErrorKind, Result, Secret};
use serde::Deserialize;

use crate::topology::Native;
use crate::{convert, hops};

/// The shortest poll: below, an idle receiver would ask without a pause.
const MIN_WAIT: Duration = Duration::from_secs(1);

/// The longest poll that SQS takes.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// The shortest hop of a long delay.
const MIN_HOP: Duration = Duration::from_secs(1);

/// How much longer than its wait a poll may take before its answer counts as lost; more once the broker proves slow.
pub(crate) const POLL_GRACE: Duration = Duration::from_secs(5);

/// How long a connection to the endpoint may take to open.
const CONNECT: Duration = Duration::from_millis(3100);

/// The options of the driver, as URL, environment and file name them.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SqsConfig {
    /// The region. Default: what the environment and the AWS profile say.
    pub region: Option<String>,
    /// The access key id; together with `secret_key`. Default: the credentials that the environment provides.
    pub access_key: Option<String>,
    /// The secret access key. Default: none.
    pub secret_key: Option<Secret>,
    /// The session token of temporary credentials. Default: none.
    pub session_token: Option<Secret>,
    /// The profile in the AWS configuration files. Default: `AWS_PROFILE`, else `default`.
    pub profile: Option<String>,
    /// The account that owns the queues, where it is not that of the credentials. Default: none.
    pub account: Option<String>,
    /// Whether an endpoint given as host is spoken to over TLS. Amazon's own endpoints always are. Default: false.
    pub tls: bool,
    /// The URL of the endpoint of SNS, for topics; `none` where there is none. Default: the host of the URL where one is
    /// given that is not Amazon's own, else Amazon's for the region.
    pub sns_endpoint: Option<String>,
    /// How long a poll waits for a message at the broker: 1 s to 20 s, whole seconds. Default: 20 s.
    #[serde(with = "humantime_serde")]
    pub wait_time: Duration,
    /// How long any other request may take. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// The longest time an answer waits for others to share a request with. Default: 5 ms.
    #[serde(with = "humantime_serde")]
    pub answer_linger: Duration,
    /// Most polls of one receiver at a time; one of them while the queue is empty. Default: 6.
    pub max_polls: usize,
    /// Most requests of one sender at a time. Default: 16.
    pub max_sends: usize,
    /// Lets a message be delayed by more than 15 minutes, up to a year: it travels in hops of at most this, 1 s to 15 min in
    /// whole seconds. Default: none, and more than 15 minutes is refused.
    #[serde(with = "humantime_serde")]
    pub delay_hops: Option<Duration>,
    /// What queues are made with: options of the URL that start with `sqs.`.
    #[serde(skip)]
    pub(crate) defaults: Native,
}

impl Default for SqsConfig {
    fn default() -> Self {
        Self {
            region: None,
            access_key: None,
            secret_key: None,
            session_token: None,
            profile: None,
            account: None,
            tls: false,
            sns_endpoint: None,
            wait_time: MAX_WAIT,
            request_timeout: Duration::from_secs(10),
            answer_linger: Duration::from_millis(5),
            max_polls: 6,
            max_sends: 16,
            delay_hops: None,
            defaults: Native::default(),
        }
    }
}

impl SqsConfig {
    /// Reads the options of an endpoint.
    pub(crate) fn from_endpoint(endpoint: &Endpoint) -> Result<Self> {
        let mut config: Self = endpoint.options()?;
        config.defaults = Native::of_connection(&endpoint.native)?;
        if endpoint.path.is_some() {
            return Err(invalid("an SQS URL has no path"));
        }
        if endpoint.hosts.len() > 1 {
            return Err(invalid("an SQS URL has one host at most"));
        }
        if endpoint.hosts.is_empty() && config.tls {
            return Err(invalid("`tls` is for endpoints that are given as host"));
        }
        if endpoint.user.is_some() || endpoint.password.is_some() {
            if config.access_key.is_some() || config.secret_key.is_some() {
                return Err(invalid("the credentials stand before the host or in options, not in both"));
            }
            config.access_key.clone_from(&endpoint.user);
            config.secret_key.clone_from(&endpoint.password);
        }
        if config.access_key.is_some() != config.secret_key.is_some() {
            return Err(invalid("`access_key` and `secret_key` come together"));
        }
        if config.session_token.is_some() && config.access_key.is_none() {
            return Err(invalid("`session_token` comes with `access_key` and `secret_key`"));
        }
        if !(MIN_WAIT..=MAX_WAIT).contains(&config.wait_time) || config.wait_time.subsec_nanos() != 0 {
            return Err(invalid("`wait_time` is 1 s to 20 s, in whole seconds")
                .with_context("wait_time", format!("{:?}", config.wait_time)));
        }
        if let Some(hop) = config.delay_hops
            && (!(MIN_HOP..=convert::MAX_DELAY).contains(&hop) || hop.subsec_nanos() != 0)
        {
            return Err(invalid("`delay_hops` is 1 s to 15 min, in whole seconds")
                .with_context("delay_hops", format!("{hop:?}")));
        }
        match config.sns_endpoint.as_deref() {
            None | Some(NO_SNS) => {}
            Some(_) if !cfg!(feature = "sns") => {
                let why = "`sns_endpoint` needs the feature `sns` (`sqs-sns` of the facade)";
                return Err(invalid(why).with_context("option", "sns_endpoint"));
            }
            Some(url) if is_url(url) => {}
            // Not shown: it may hold a secret.
            Some(_) => {
                let why =
                    "`sns_endpoint` is `none`, or a URL of scheme http or https, without user, query and fragment";
                return Err(invalid(why).with_context("option", "sns_endpoint"));
            }
        }
        if config.request_timeout.is_zero() || config.max_polls == 0 || config.max_sends == 0 {
            return Err(invalid("`request_timeout`, `max_polls` and `max_sends` are above zero"));
        }
        Ok(config)
    }

    /// Loads what these options and the environment say of all services.
    pub(crate) async fn load(&self) -> Result<SdkConfig> {
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12());
        if let Some(region) = &self.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(profile) = &self.profile {
            loader = loader.profile_name(profile);
        }
        if let (Some(key), Some(secret)) = (&self.access_key, &self.secret_key) {
            let token = self.session_token.as_ref().map(|t| t.expose().to_owned());
            loader = loader.credentials_provider(Credentials::new(key, secret.expose(), token, None, "configuration"));
        }
        let loaded = loader.load().await;
        if loaded.region().is_none() {
            return Err(invalid("no region: give `region` or set AWS_REGION"));
        }
        Ok(loaded)
    }

    /// Makes a client of SQS.
    pub(crate) fn client(&self, loaded: &SdkConfig, endpoint: &Endpoint) -> Client {
        let config = aws_sdk_sqs::config::Builder::from(loaded);
        Client::from_conf(match self.host_url(endpoint) {
            Some(url) => config.endpoint_url(url).build(),
            None => config.build(),
        })
    }

    /// The host of the URL where it is not Amazon's own: whoever answers there for SQS does for other services too.
    #[cfg(feature = "sns")]
    pub(crate) fn emulator_url(&self, endpoint: &Endpoint) -> Option<String> {
        let host = &endpoint.hosts.first()?.name;
        if crate::address::region_of(host).is_some() { None } else { self.host_url(endpoint) }
    }

    /// The host of the URL, as the SDK takes it.
    fn host_url(&self, endpoint: &Endpoint) -> Option<String> {
        let (scheme, port) = if self.tls { ("https", 443) } else { ("http", 80) };
        endpoint.hosts.first().map(|host| format!("{scheme}://{}", host.with_default_port(port)))
    }

    /// The longest delay of a message.
    pub(crate) fn max_delay(&self) -> Duration {
        if self.delay_hops.is_some() { hops::MAX_HOPPED } else { convert::MAX_DELAY }
    }

    /// What a poll waits, in the whole seconds of the protocol.
    pub(crate) fn wait_seconds(&self) -> i32 {
        i32::try_from(self.wait_time.as_secs().min(MAX_WAIT.as_secs())).unwrap_or_default()
    }
}

/// The value of `sns_endpoint` that says that there are no topics.
pub(crate) const NO_SNS: &str = "none";

/// Whether this is scheme, host and perhaps a path, and nothing that could be a secret.
fn is_url(text: &str) -> bool {
    let scheme = text.split_once("://").map(|(scheme, _)| scheme);
    matches!(scheme, Some("http" | "https")) && !host_of(text).is_empty() && !text.contains(['@', '?', '#'])
}

/// Host and port of a URL.
pub(crate) fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidConfig, message).with_operation("configure")
}

/// What a request may take, and all its tries together. What is not said here would be that of a client of the caller's own.
pub(crate) fn timeouts(attempt: Duration, whole: Duration) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT.min(attempt))
        .operation_attempt_timeout(attempt)
        .operation_timeout(whole)
        .disable_read_timeout()
        .build()
}

/// What a request may take that is tried once: one timer is enough.
pub(crate) fn timeout_of_one(whole: Duration) -> TimeoutConfig {
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT.min(whole)).operation_timeout(whole);
    timeouts.disable_operation_attempt_timeout().disable_read_timeout().build()
}

/// One client per kind of request: they differ in how long a request may take and who repeats it.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    /// Requests that may be repeated: the SDK does it.
    pub(crate) admin: Client,
    /// Sends and answers: whoever calls decides about another try.
    pub(crate) once: Client,
    /// Polls: they wait at the broker.
    pub(crate) poll: Client,
}

impl Clients {
    pub(crate) fn new(client: &Client, config: &SqsConfig) -> Self {
        // No answer is a stream: what stalls is over with its request's time, and to watch each body costs CPU.
        let base = || {
            let config = client.config().to_builder();
            config.stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        };
        let request = config.request_timeout;
        let poll = config.wait_time + POLL_GRACE;
        Self {
            admin: Client::from_conf(base().timeout_config(timeouts(request, 2 * request)).build()),
            once: Client::from_conf(
                base().retry_config(RetryConfig::disabled()).timeout_config(timeout_of_one(request)).build(),
            ),
            poll: Client::from_conf(
                base().retry_config(RetryConfig::disabled()).timeout_config(timeout_of_one(poll)).build(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_a_client_of_the_callers_own_cut_no_poll() {
        let own = Duration::from_secs(1);
        let own = TimeoutConfig::builder().operation_attempt_timeout(own).operation_timeout(own).read_timeout(own);
        let config = aws_sdk_sqs::Config::builder().behavior_version(BehaviorVersion::v2026_01_12());
        let client = Client::from_conf(config.timeout_config(own.build()).build());
        let config = SqsConfig::default();
        let Clients { admin, once, poll } = Clients::new(&client, &config);
        let poll_time = config.wait_time + POLL_GRACE;
        for (client, attempt, whole) in [
            (admin, Some(config.request_timeout), 2 * config.request_timeout),
            (once, None, config.request_timeout),
            (poll, None, poll_time),
        ] {
            let found = client.config().timeout_config().unwrap();
            let found = (found.operation_attempt_timeout(), found.operation_timeout(), found.read_timeout());
            assert_eq!(found, (attempt, Some(whole), None));
        }
    }

    fn read(url: &str) -> Result<SqsConfig> {
        SqsConfig::from_endpoint(&url.parse()?)
    }

    #[test]
    fn options_are_read_and_secrets_stay_hidden() {
        let config =
            read("sqs://h:1?region=eu-west-1&access_key=AK&secret_key=hunter2&wait_time=1s&max_polls=2").unwrap();
        assert_eq!(config.region.as_deref(), Some("eu-west-1"));
        assert_eq!((config.wait_seconds(), config.max_polls), (1, 2));
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for url in [
            "sqs://a,b",
            "sqs://h/path",
            "sqs://h?wait_time=21s",
            "sqs://h?wait_time=0s",
            "sqs://h?wait_time=500ms",
            "sqs://h?wait_time=1500ms",
            "sqs://h?access_key=a",
            "sqs://h?session_token=t",
            "sqs://u:p@h?access_key=a&secret_key=b",
            "sqs://?tls=true",
            "sqs://h?sqs.foo=1",
            "sqs://h?max_polls=0",
            "sqs://h?delay_hops=0s",
            "sqs://h?delay_hops=16m",
            "sqs://h?delay_hops=1500ms",
            "sqs://h?regoin=x",
            "sqs://h?sns_endpoint=h:1",
        ] {
            assert_eq!(read(url).expect_err(url).kind(), ErrorKind::InvalidConfig, "{url}");
        }
    }

    #[cfg(feature = "sns")]
    #[test]
    fn an_endpoint_of_sns_is_shown_only_where_it_has_no_secret() {
        for url in
            ["https://user:hunter2@h/", "https://h/?token=hunter2", "https://h/%23hunter2", "https://", "hunter2"]
                .map(|url| url.replace("%23", "#"))
        {
            let mut endpoint: Endpoint = "sqs://h".parse().unwrap();
            endpoint.options.insert("sns_endpoint".to_owned(), url.clone());
            let error = SqsConfig::from_endpoint(&endpoint).expect_err(&url);
            assert_eq!((error.kind(), error.context("option")), (ErrorKind::InvalidConfig, Some("sns_endpoint")));
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        for url in ["http://h", "https://h:8443/", "http://[::1]:4566/sns"] {
            assert!(read(&format!("sqs://h?sns_endpoint={url}")).is_ok(), "{url}");
        }
        assert_eq!(host_of("https://h:8443/sns"), "h:8443");
    }
}
