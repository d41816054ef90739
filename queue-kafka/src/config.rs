//! Options, and what they mean to librdkafka.

use std::num::NonZeroU32;
use std::time::Duration;

use queue_core::{ConsumerOptions, Endpoint, Error, ErrorKind, Result};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use serde::Deserialize;

use crate::error;

/// The port of a host that names none.
const PORT: u16 = 9092;
/// librdkafka's limit of a message with everything, and of a batch. The broker's own default is 1,048,588 bytes for a
/// batch with its framing.
const CLIENT_MESSAGE_BYTES: usize = 1_040_000;
/// What headers, the note and framing may add to a message of the largest size.
const OVERHEAD_BYTES: usize = 40_000;
/// Bounds of the memory into which librdkafka reads ahead, in KiB.
const READ_AHEAD_KIB: (usize, usize) = (1024, 65_536);
/// Bounds of the number of messages that librdkafka reads ahead in a partition.
const READ_AHEAD: (usize, usize) = (1_000, 100_000);

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
    ("transactional.id", "transactions are not supported"),
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
    /// How long a question to the broker may take: metadata, topology, flush. Default: 10 s.
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
        }
    }
}

/// Everything that a connection was configured with.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) config: KafkaConfig,
    /// The hosts in one line.
    pub(crate) hosts: String,
    /// Largest message, as the core counts.
    pub(crate) max_message_bytes: usize,
    base: ClientConfig,
}

impl Settings {
    pub(crate) fn new(endpoint: &Endpoint) -> Result<Self> {
        let config: KafkaConfig = endpoint.options()?;
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
        let hosts: Vec<_> = endpoint.hosts.iter().map(|h| h.with_default_port(PORT)).collect();
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
        if let Some(user) = &endpoint.user {
            base.set("sasl.username", user).set("sasl.mechanisms", "PLAIN").set("security.protocol", "sasl_plaintext");
        }
        if let Some(password) = &endpoint.password {
            base.set("sasl.password", password.expose());
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
        Ok(Self { config, hosts, max_message_bytes: client_bytes - OVERHEAD_BYTES.min(client_bytes / 25), base })
    }

    /// The configuration of a client that neither sends nor receives.
    pub(crate) fn client(&self) -> ClientConfig {
        self.base.clone()
    }

    /// The configuration of producers whose messages may take this long.
    pub(crate) fn producer(&self, deadline: Duration) -> ClientConfig {
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
        ]);
        config.set("enable.idempotence", "true").set("acks", "all").set("message.timeout.ms", timeout.to_string());
        config
    }

    /// The configuration of a consumer in this group.
    pub(crate) fn consumer(&self, group: &str, options: &ConsumerOptions) -> ClientConfig {
        let kib = (options.prefetch_bytes / 1024).clamp(READ_AHEAD_KIB.0, READ_AHEAD_KIB.1);
        let count = options.prefetch.clamp(READ_AHEAD.0, READ_AHEAD.1);
        let mut config = self.with_defaults(&[
            ("queued.max.messages.kbytes", kib.to_string()),
            ("queued.min.messages", count.to_string()),
            // A full queue would stop the fetcher for a second.
            ("fetch.queue.backoff.ms", "10".to_owned()),
            ("partition.assignment.strategy", "cooperative-sticky".to_owned()),
            // A member that died gives up its partitions after this.
            ("session.timeout.ms", "10000".to_owned()),
            ("heartbeat.interval.ms", "1000".to_owned()),
            ("isolation.level", "read_committed".to_owned()),
        ]);
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
        config
    }

    fn with_defaults(&self, defaults: &[(&str, String)]) -> ClientConfig {
        let mut config = self.base.clone();
        for (key, value) in defaults {
            if self.base.get(key).is_none() {
                config.set(*key, value);
            }
        }
        config
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
        Settings::new(&url.parse()?)
    }

    #[test]
    fn hosts_and_options_reach_the_client() {
        let s = settings("kafka://a,[::1]:9?client_id=me&partitions=3&kafka.linger.ms=7").unwrap();
        let producer = s.producer(Duration::from_secs(2));
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
        let classic = settings("kafka://a").unwrap().consumer("g", &options);
        let newer = settings("kafka://a?kafka.group.protocol=consumer").unwrap().consumer("g", &options);
        for option in CLASSIC {
            assert!(classic.get(option).is_some(), "{option}");
            assert_eq!(newer.get(option), None);
        }
        newer.create::<rdkafka::consumer::BaseConsumer>().expect("librdkafka takes it");
    }

    #[test]
    fn passwords_do_not_show() {
        let s = settings("kafka://me:hunter2@a").unwrap();
        assert_eq!(s.client().get("sasl.password"), Some("hunter2"));
        assert!(!format!("{s:?}").contains("hunter2"));
    }
}
