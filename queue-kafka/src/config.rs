//! Options, and what they mean to librdkafka.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use queue_core::{ConsumerOptions, Endpoint, Error, ErrorKind, Result, TokenProvider, TransactionOptions};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use serde::Deserialize;
use serde::de::Error as _;

use crate::auth::{Auth, Login};
use crate::tls::Tls;
use crate::{error, lanes};

/// The scheme of Kafka over TLS.
pub(crate) const TLS_SCHEME: &str = "kafkas";
/// The ports of a host that names none, without and with TLS.
const PORTS: (u16, u16) = (9092, 9093);
/// librdkafka's limit of a message with everything, and of a batch. The broker's own default is 1,048,588 bytes for a
/// batch with its framing.
const CLIENT_MESSAGE_BYTES: usize = 1_040_000;
/// What headers, the note and framing may add to a message of the largest size.
const OVERHEAD_BYTES: usize = 40_000;
/// Bounds of the memory into which librdkafka reads ahead, in KiB.
const READ_AHEAD_KIB: (usize, usize) = (1024, 65_536);
/// Messages of a partition below which librdkafka fetches more: with fewer, two million a second would be gone before
/// it looks again (`fetch.queue.backoff.ms`); with its own 100,000 they leave the processor's cache meanwhile.
const READ_AHEAD: usize = 50_000;

/// Bounds of the time after which a transaction expires, as librdkafka has them.
const MIN_EXPIRY: Duration = Duration::from_secs(1);
const MAX_EXPIRY: Duration = Duration::from_millis(i32::MAX as u64);

/// Options of the classic protocol of groups, which the newer one (`group.protocol=consumer`) has on the broker's side.
const CLASSIC: &[&str] = &["partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"];

/// Options that would break a promise of this crate, and what stands for them.
const REFUSED: &[(&str, &str)] = &[
    ("bootstrap.servers", "the hosts of the URL are used"),
    ("metadata.broker.list", "the hosts of the URL are used"),
    ("client.id", "use `client_id`"),
    ("group.id", "the queue or the receiver's group is used"),
    ("enable.auto.commit", "offsets are committed when messages are acknowledged"),
    ("auto.commit.enable", "offsets are committed when messages are acknowledged"),
    ("enable.auto.offset.store", "offsets are committed when messages are acknowledged"),
    ("auto.offset.reset", "new groups start at the earliest message; use the receiver's start"),
    ("message.timeout.ms", "use the sender's deadline"),
    ("delivery.timeout.ms", "use the sender's deadline"),
    ("transactional.id", "use the name of `Client::transactions`"),
    ("transaction.timeout.ms", "use `expires_after` of `Client::transactions`"),
    ("security.protocol", "use a URL with `kafka://` or `kafkas://`, and `auth`"),
    ("sasl.mechanism", "use `auth`"),
    ("sasl.mechanisms", "use `auth`"),
    ("sasl.username", "use the user of the URL"),
    ("sasl.password", "use the password of the URL, or `password_file`"),
    ("enable.sasl.oauthbearer.unsecure.jwt", "use `token_file`, or a provider of tokens"),
    ("sasl.oauthbearer.config", "use `token_file`, or a provider of tokens"),
    ("ssl.ca.location", "use `ca_file`"),
    ("ssl.certificate.location", "use `client_cert_file`"),
    ("ssl.key.location", "use `client_key_file`"),
    ("log_level", "use `debug`, and the levels of `tracing`"),
    ("log.queue", "logs go to `tracing`"),
];

/// Options of the adapter, as they stand in the URL.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct KafkaConfig {
    /// The name that the broker shows in its logs, metrics and quotas. Default: `anyqueue`.
    pub client_id: String,
    /// Partitions of a topic that is created and does not say itself. Default: 12.
    pub partitions: NonZeroU32,
    /// How long a question to the broker may take: metadata, topology, flush. Default: 10 s. A topic that was made or deleted
    /// may take three times that until all of it shows.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// How long an acknowledgement may wait until its offset is committed. Default: 200 ms.
    #[serde(with = "humantime_serde")]
    pub commit_interval: Duration,
    /// How far a partition goes on behind a message that is not answered; then it waits for the answer. What was
    /// acknowledged behind it comes again after a crash. Default: 10000.
    pub max_ahead: NonZeroU32,
    /// How long the oldest message of a partition may stay without an answer until `health()` is down: the partition
    /// cannot be committed beyond it, and waits when it is full. Counted from when everything before it was answered, so
    /// that slow handlers in turn are no problem, and not while the receiver is paused. A retry that waits in place has no
    /// answer: make it longer than the longest of those. Default: 60 s.
    #[serde(with = "humantime_serde")]
    pub max_unanswered_age: Duration,
    /// Whether the group's positions say of a message that it is being handled before it is handed out, so that one which
    /// kills its process is counted, and dead-lettered in the end. Each batch of messages waits for a commit then.
    /// Default: false.
    pub crash_guard: bool,
    /// Delays of the topics in which retries wait, such as `30s,10m,1h`: whole seconds, at most six. A retry with a delay
    /// goes to the first that is no shorter, and loses its place in the order; one that is shorter than all waits in
    /// memory. The topics, `<topic>--<group>-retry-<n>s`, are made with the source, and those that are not there are not
    /// used. Default: none, and every retry waits in memory.
    #[serde(deserialize_with = "delays")]
    pub retry_tiers: Option<Vec<Duration>>,
    /// How to log in: `plain`, `scram-sha-256` or `scram-sha-512` with user and password, `external` with the client
    /// certificate, `oauth2` with a token, `aws-iam` with an identity of AWS. Default: `plain` where the URL has a user,
    /// else none.
    pub auth: Option<Auth>,
    /// A file with the password, instead of one in the URL. It is read when connecting and whenever a sender or a receiver
    /// needs a native client; those that run keep the password that they were made with. White space at its end does not
    /// count. Default: none.
    pub password_file: Option<PathBuf>,
    /// A file with the token, for `auth=oauth2`. It is read every second or two, so whoever writes the file renews
    /// the token in time. White space at its end does not count. Default: none; the password of the URL is the token, and
    /// not renewed.
    pub token_file: Option<PathBuf>,
    /// The AWS region of the cluster, for `auth=aws-iam`. Default: none; what the environment and the AWS profile say.
    pub region: Option<String>,
    /// The profile in the AWS configuration files from which the credentials come, and no others, for `auth=aws-iam`.
    /// Default: none; credentials are searched for as AWS's own programs do.
    pub profile: Option<String>,
    /// A PEM file with the certificates of the authorities that may vouch for the brokers, for `kafkas`. The system's own
    /// do not count then. Read when connecting and whenever a native client is made. Default: none; those of the system.
    pub ca_file: Option<PathBuf>,
    /// A PEM file with the client's certificate and those between it and an authority, for `kafkas`. Read as `ca_file` is.
    /// Default: none.
    pub client_cert_file: Option<PathBuf>,
    /// A PEM file with the private key of the client's certificate, without a passphrase. Default: none.
    pub client_key_file: Option<PathBuf>,
}

fn delays<'de, D: serde::Deserializer<'de>>(text: D) -> std::result::Result<Option<Vec<Duration>>, D::Error> {
    let text = String::deserialize(text)?;
    let delay = |part: &str| humantime::parse_duration(part.trim()).map_err(D::Error::custom);
    text.split(',').map(delay).collect::<std::result::Result<_, _>>().map(Some)
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            client_id: "anyqueue".to_owned(),
            partitions: NonZeroU32::MIN.saturating_add(11),
            request_timeout: Duration::from_secs(10),
            commit_interval: Duration::from_millis(200),
            max_ahead: NonZeroU32::MIN.saturating_add(9_999),
            max_unanswered_age: Duration::from_secs(60),
            crash_guard: false,
            retry_tiers: None,
            auth: None,
            password_file: None,
            token_file: None,
            region: None,
            profile: None,
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
        }
    }
}

/// Everything that a connection was configured with.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) config: KafkaConfig,
    /// The hosts in one line.
    pub(crate) hosts: String,
    /// Delays of the topics in which retries wait, the shortest first.
    pub(crate) retry_tiers: Vec<Duration>,
    /// Largest message, as the core counts.
    pub(crate) max_message_bytes: usize,
    pub(crate) login: Login,
    tls: Option<Tls>,
    base: ClientConfig,
}

impl fmt::Debug for Settings {
    /// Without the native options: any of them may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("hosts", &self.hosts).field("config", &self.config).finish_non_exhaustive()
    }
}

impl Settings {
    pub(crate) fn new(endpoint: &Endpoint, tokens: Option<Arc<dyn TokenProvider>>) -> Result<Self> {
        let config: KafkaConfig = endpoint.options()?;
        let retry_tiers = lanes::checked(config.retry_tiers.as_deref().unwrap_or_default())?;
        let invalid = |why: &'static str| Error::new(ErrorKind::InvalidConfig, why).with_operation("configure");
        if endpoint.hosts.is_empty() {
            return Err(invalid("the URL names no host"));
        }
        if endpoint.path.is_some() {
            return Err(invalid("the URL of a Kafka cluster has no path"));
        }
        let durations = [
            ("request_timeout", config.request_timeout),
            ("commit_interval", config.commit_interval),
            ("max_unanswered_age", config.max_unanswered_age),
        ];
        if let Some((option, _)) = durations.into_iter().find(|(_, duration)| duration.is_zero()) {
            return Err(invalid("a duration is not zero").with_context("option", option));
        }
        let over_tls = endpoint.scheme == TLS_SCHEME;
        let tls = Tls::new(&config, over_tls)?;
        let login = Login::new(endpoint, &config, tls.as_ref(), tokens)?;
        let port = if over_tls { PORTS.1 } else { PORTS.0 };
        let hosts: Vec<_> = endpoint.hosts.iter().map(|h| h.with_default_port(port)).collect();
        let hosts = hosts.join(",");

        let mut base = ClientConfig::new();
        base.set_log_level(RDKafkaLogLevel::Info)
            .set("bootstrap.servers", &hosts)
            .set("client.id", &config.client_id)
            // A frozen broker is noticed in this time instead of a minute.
            .set("socket.timeout.ms", "10000")
            .set("socket.keepalive.enable", "true")
            .set("log.connection.close", "false")
            // A broker that is back is found within two seconds instead of ten.
            .set("reconnect.backoff.max.ms", "2000")
            // How long metadata may say that a topic is missing before its messages fail.
            .set("topic.metadata.propagation.max.ms", "5000")
            .set("message.max.bytes", CLIENT_MESSAGE_BYTES.to_string());
        login.prepare(over_tls, &mut base);
        if let Some(tls) = &tls {
            tls.prepare(&mut base)?;
        }
        for (key, value) in &endpoint.native {
            refuse_broken_promise(key, value)?;
            base.set(key, value);
            if key == "debug" {
                base.set_log_level(RDKafkaLogLevel::Debug);
            }
        }
        base.create_native_config().map_err(|e| error::of_config(&e))?;

        let client_bytes = base.get("message.max.bytes").and_then(|v| v.parse().ok()).unwrap_or(CLIENT_MESSAGE_BYTES);
        Ok(Self {
            config,
            hosts,
            retry_tiers,
            max_message_bytes: client_bytes - OVERHEAD_BYTES.min(client_bytes / 25),
            login,
            tls,
            base,
        })
    }

    /// Whether it logs in with a token.
    pub(crate) fn has_tokens(&self) -> bool {
        matches!(self.login, Login::Tokens(_))
    }

    /// Whether consumers have an id by which their group knows them when they come back.
    pub(crate) fn is_static_member(&self) -> bool {
        self.base.get("group.instance.id").is_some_and(|id| !id.is_empty())
    }

    /// The configuration of a client that neither sends nor receives.
    pub(crate) fn client(&self) -> Result<ClientConfig> {
        self.with_defaults(&[])
    }

    /// The configuration of producers whose messages may take this long.
    pub(crate) fn producer(&self, deadline: Duration) -> Result<ClientConfig> {
        // Zero would mean for ever.
        let timeout = deadline.as_millis().clamp(1, i32::MAX as u128);
        let mut config = self.with_defaults(&[
            // Leaves a moment for a batch to fill; messages that follow one another closely go together.
            ("linger.ms", "1".to_owned()),
            // The same partition for a key as Java clients choose.
            ("partitioner", "murmur2_random".to_owned()),
            // Beyond the senders' windows, which are what bounds memory.
            ("queue.buffering.max.messages", "10000000".to_owned()),
            ("queue.buffering.max.kbytes", "2097151".to_owned()),
        ])?;
        config.set("enable.idempotence", "true").set("acks", "all").set("message.timeout.ms", timeout.to_string());
        Ok(config)
    }

    /// The configuration of the producer of the transactions of this name.
    pub(crate) fn transactional(&self, name: &str, options: &TransactionOptions) -> Result<ClientConfig> {
        // librdkafka lets neither a message nor a request take longer than the transaction.
        let expiry = options.expires_after.clamp(MIN_EXPIRY, MAX_EXPIRY);
        let mut config = self.producer(options.deadline.min(expiry))?;
        let socket = config.get("socket.timeout.ms").and_then(|v| v.parse().ok()).map_or(expiry, Duration::from_millis);
        config
            .set("transactional.id", name)
            .set("transaction.timeout.ms", expiry.as_millis().to_string())
            .set("socket.timeout.ms", socket.min(expiry).as_millis().to_string());
        Ok(config)
    }

    /// The configuration of a consumer in this group.
    pub(crate) fn consumer(&self, group: &str, options: &ConsumerOptions) -> Result<ClientConfig> {
        let kib = (options.prefetch_bytes / 1024).clamp(READ_AHEAD_KIB.0, READ_AHEAD_KIB.1);
        let mut config = self.with_defaults(&[
            ("queued.max.messages.kbytes", kib.to_string()),
            ("queued.min.messages", READ_AHEAD.to_string()),
            // A full queue would stop the fetcher for a second.
            ("fetch.queue.backoff.ms", "10".to_owned()),
            ("partition.assignment.strategy", "cooperative-sticky".to_owned()),
            // A member that died gives up its partitions after this.
            ("session.timeout.ms", "10000".to_owned()),
            ("heartbeat.interval.ms", "1000".to_owned()),
            ("isolation.level", "read_committed".to_owned()),
        ])?;
        if self.base.get("group.protocol") == Some("consumer") {
            for option in CLASSIC.iter().filter(|option| self.base.get(option).is_none()) {
                config.remove(option);
            }
        }
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest");
        Ok(config)
    }

    /// Looks into the files, which may have changed since the last time, and takes what is in them now.
    fn with_defaults(&self, defaults: &[(&str, String)]) -> Result<ClientConfig> {
        let mut config = self.base.clone();
        if let Some(tls) = &self.tls {
            tls.check()?;
        }
        self.login.complete(&mut config)?;
        for (key, value) in defaults {
            if self.base.get(key).is_none() {
                config.set(*key, value);
            }
        }
        Ok(config)
    }
}

/// Options must not take back what the crate promises.
fn refuse_broken_promise(key: &str, value: &str) -> Result<()> {
    let refuse = |why: &str| {
        Err(Error::new(ErrorKind::InvalidConfig, format!("the option `{key}` cannot be set: {why}"))
            .with_operation("configure")
            .with_context("option", key))
    };
    if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == key) {
        return refuse(why);
    }
    match key {
        "enable.idempotence" if value != "true" => refuse("a message would be stored twice or out of order"),
        "acks" | "request.required.acks" if !["all", "-1"].contains(&value) => {
            refuse("a message would be lost that was confirmed")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Result<Settings> {
        Settings::new(&url.parse()?, None)
    }

    #[test]
    fn hosts_and_options_reach_the_client() {
        let s = settings("kafka://a,[::1]:9?client_id=me&partitions=3&kafka.linger.ms=7").unwrap();
        let producer = s.producer(Duration::from_secs(2)).unwrap();
        assert_eq!(producer.get("bootstrap.servers"), Some("a:9092,[::1]:9"));
        assert_eq!(producer.get("client.id"), Some("me"));
        assert_eq!(producer.get("linger.ms"), Some("7"));
        assert_eq!(producer.get("message.timeout.ms"), Some("2000"));
        assert_eq!(s.config.partitions.get(), 3);
        assert_eq!(s.max_message_bytes, 1_000_000);
    }

    #[test]
    fn an_option_that_librdkafka_does_not_know_is_named() {
        let error = settings("kafka://a?kafka.lingr.ms=7").unwrap_err();
        assert_eq!((error.kind(), error.context("option")), (ErrorKind::InvalidConfig, Some("lingr.ms")));
        let error = settings("kafka://a?clientid=7").unwrap_err();
        assert_eq!(error.context("did_you_mean"), Some("client_id"));
    }

    #[test]
    fn options_that_would_break_a_promise_are_refused() {
        for option in [
            "enable.auto.commit=false",
            "enable.idempotence=false",
            "acks=1",
            "request.required.acks=0",
            "group.id=x",
            "bootstrap.servers=x",
            "enable.auto.offset.store=true",
            "message.timeout.ms=1",
            "auto.offset.reset=latest",
            "security.protocol=plaintext",
            "sasl.mechanism=PLAIN",
            "ssl.ca.location=/x",
        ] {
            let error = settings(&format!("kafka://a?kafka.{option}")).expect_err(option);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{option}");
            assert_eq!(error.context("option"), option.split_once('=').map(|(key, _)| key));
        }
        settings("kafka://a?kafka.acks=all&kafka.enable.idempotence=true").unwrap();
    }

    #[test]
    fn the_newer_protocol_of_groups_gets_no_option_of_the_classic_one() {
        let options = ConsumerOptions::default();
        let classic = settings("kafka://a").unwrap().consumer("g", &options).unwrap();
        let newer = settings("kafka://a?kafka.group.protocol=consumer").unwrap().consumer("g", &options).unwrap();
        for option in CLASSIC {
            assert!(classic.get(option).is_some(), "{option}");
            assert_eq!(newer.get(option), None);
        }
        newer.create::<rdkafka::consumer::BaseConsumer>().expect("librdkafka takes it");
    }

    #[test]
    fn passwords_do_not_show() {
        let s = settings("kafka://me:hunter2@a").unwrap();
        assert_eq!(s.client().unwrap().get("sasl.password"), Some("hunter2"));
        assert!(!format!("{s:?}").contains("hunter2"));
    }

    #[cfg(feature = "tls")]
    #[test]
    fn native_options_do_not_show() {
        let s = settings("kafka://a?kafka.ssl.key.pem=hunter2").unwrap();
        assert!(!format!("{s:?}").contains("hunter2"));
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn without_tls_the_missing_feature_is_named() {
        for url in ["kafkas://a", "kafka://u:p@a?auth=scram-sha-256", "kafka://:p@a?auth=oauth2"] {
            let error = settings(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
            assert!(error.message().contains("`kafka-tls`"), "{url}: {error}");
        }
        let error = settings("kafka://a?kafka.ssl.key.password=hunter2").unwrap_err();
        assert_eq!((error.kind(), error.context("option")), (ErrorKind::InvalidConfig, Some("ssl.key.password")));
        let shown = format!("{error} {error:?}");
        assert!(shown.contains("`kafka-tls`") && !shown.contains("hunter2"), "{shown}");
        // What needs no OpenSSL works.
        settings("kafka://u:p@a").unwrap();
    }

    #[cfg(feature = "tls")]
    #[test]
    fn the_scheme_and_auth_choose_the_protocol() {
        for (url, protocol, mechanism) in [
            ("kafka://a", "plaintext", None),
            ("kafka://u:p@a", "sasl_plaintext", Some("PLAIN")),
            ("kafkas://u:p@a", "sasl_ssl", Some("PLAIN")),
            ("kafkas://u:p@a?auth=scram-sha-512", "sasl_ssl", Some("SCRAM-SHA-512")),
            ("kafkas://:token@a?auth=oauth2", "sasl_ssl", Some("OAUTHBEARER")),
            ("kafkas://a", "ssl", None),
        ] {
            let client = settings(url).unwrap().client().unwrap();
            assert_eq!((client.get("security.protocol"), client.get("sasl.mechanism")), (Some(protocol), mechanism));
        }
        let s = settings("kafkas://a").unwrap();
        assert_eq!(s.hosts, "a:9093");
        assert_eq!(s.client().unwrap().get("ssl.ca.location"), Some("probe"));
    }
}
