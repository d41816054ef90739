//! What a receiver is opened with.

use std::future::IntoFuture;
use std::time::Duration;

use futures::future::BoxFuture;
use serde::Deserialize;

use super::Receiver;
use crate::address::{Address, AddressKind, Source, Start};
use crate::broker::{ConsumerOptions, Options, ProducerOptions};
use crate::capability::{DeliveryCount, Ordering, RetryVia};
use crate::client::{Client, ClientInner};
use crate::error::{Error, ErrorKind, Result};
use crate::inbox::Inbox;
use crate::outbox::{Outbox, Owned};
use crate::sender::SenderConfig;
use crate::topology::{Declare, Entry, Topology};

/// Options of a receiver.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ReceiverConfig {
    /// The group, for topics. Default: none.
    pub group: Option<String>,
    /// Most messages fetched and not answered. Default: 256.
    pub prefetch: usize,
    /// Most bytes of those. Looked at before each fetch, so that one fetch may go over it. Default: 64 MiB.
    pub prefetch_bytes: usize,
    /// Failed attempts before a message goes to the dead letters. Default: 5.
    pub max_deliveries: u32,
    /// Where dead letters go: an address, or `discard`. Default: `<queue>-dlq`; `discard` for a topic without a group.
    pub dead_letter: Option<String>,
    /// `per_key`: at most one unanswered message per key is handed out. Default: `none`.
    #[serde(deserialize_with = "ordering")]
    pub ordering: Ordering,
    /// How long a message is leased where leases are finite; renewed at half time. Default: 30 s.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long leases are renewed. Default: 1 h.
    #[serde(with = "humantime_serde")]
    pub max_handler_time: Duration,
    /// The pause before the second attempt; doubles with each. Default: 1 s.
    #[serde(with = "humantime_serde")]
    pub backoff_min: Duration,
    /// The longest pause. Default: 5 min.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// What opening does about the address. Default: `create`.
    pub declare: Declare,
    /// Where to start, where the broker can replay. Default: `Committed`.
    #[serde(skip)]
    pub start: Start,
    /// The broker's own options of the address, by its own names. In a file they stand under the name of the broker's
    /// scheme (`amqp.x-max-length = 1000`); those under other schemes are left alone. Default: none.
    #[serde(skip)]
    pub native: Options,
}

fn ordering<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Ordering, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "none" => Ok(Ordering::None),
        "per_key" => Ok(Ordering::PerKey),
        other => Err(serde::de::Error::unknown_variant(other, &["none", "per_key"])),
    }
}

impl Default for ReceiverConfig {
    fn default() -> Self {
        Self {
            group: None,
            prefetch: 256,
            prefetch_bytes: 64 << 20,
            max_deliveries: 5,
            dead_letter: None,
            ordering: Ordering::None,
            lease: Duration::from_secs(30),
            max_handler_time: Duration::from_secs(3600),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(300),
            declare: Declare::Create,
            start: Start::Committed,
            native: Options::new(),
        }
    }
}

/// The value of `dead_letter` that throws dead letters away.
const DISCARD: &str = "discard";

/// Opens a [`Receiver`]; await it.
#[must_use = "a builder does nothing until it is awaited"]
#[derive(Debug)]
pub struct ReceiverBuilder {
    target: Result<(Client, Address)>,
    config: ReceiverConfig,
}

impl ReceiverBuilder {
    pub(crate) fn new(target: Result<(Client, Address)>, config: ReceiverConfig) -> Self {
        Self { target, config }
    }

    /// Replaces all options.
    pub fn config(mut self, config: ReceiverConfig) -> Self {
        self.config = config;
        self
    }

    /// The group, for topics. Default: none, and each receiver gets everything from now on.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.config.group = Some(group.into());
        self
    }

    /// Where to start, where the broker can replay. Default: where the group left off.
    pub fn start(mut self, start: Start) -> Self {
        self.config.start = start;
        self
    }

    /// Most messages fetched and not answered. Default: 256.
    pub fn prefetch(mut self, messages: usize) -> Self {
        self.config.prefetch = messages;
        self
    }

    /// Most bytes of those, looked at before each fetch. Default: 64 MiB.
    pub fn prefetch_bytes(mut self, bytes: usize) -> Self {
        self.config.prefetch_bytes = bytes;
        self
    }

    /// Failed attempts before a message goes to the dead letters. Default: 5.
    pub fn max_deliveries(mut self, deliveries: u32) -> Self {
        self.config.max_deliveries = deliveries;
        self
    }

    /// Where dead letters go. Default: `<queue>-dlq`.
    pub fn dead_letter(mut self, address: impl Into<String>) -> Self {
        self.config.dead_letter = Some(address.into());
        self
    }

    /// Throws dead letters away.
    pub fn discard_dead_letters(self) -> Self {
        self.dead_letter(DISCARD)
    }

    /// `PerKey`: at most one unanswered message per key is handed out. Default: `None`.
    pub fn ordering(mut self, ordering: Ordering) -> Self {
        self.config.ordering = ordering;
        self
    }

    /// How long a message is leased where leases are finite. Default: 30 s.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.config.lease = lease;
        self
    }

    /// How long leases are renewed. Default: 1 h.
    pub fn max_handler_time(mut self, time: Duration) -> Self {
        self.config.max_handler_time = time;
        self
    }

    /// The pause before the second attempt, which doubles with each, and the longest. Default: 1 s, 5 min.
    pub fn backoff(mut self, min: Duration, max: Duration) -> Self {
        (self.config.backoff_min, self.config.backoff_max) = (min, max);
        self
    }

    /// What opening does about the address. Default: creates what is missing.
    pub fn declare(mut self, declare: Declare) -> Self {
        self.config.declare = declare;
        self
    }

    /// Sets one of the broker's own options of the address, as its adapter documents them
    /// (`.native("x-max-length", "1000")`). One that the broker does not know is an error. Default: none.
    pub fn native(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.native.insert(name.into(), value.into());
        self
    }
}

impl IntoFuture for ReceiverBuilder {
    type Output = Result<Receiver>;
    type IntoFuture = BoxFuture<'static, Result<Receiver>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.open().await.map_err(|e| e.with_operation("open receiver")) })
    }
}

/// Refuses what no receiver can be opened with.
pub(crate) fn checked(config: &ReceiverConfig) -> Result<()> {
    let bad = |option: &'static str, why: &'static str| {
        Err(Error::new(ErrorKind::InvalidConfig, why).with_context("option", option))
    };
    if config.prefetch == 0 {
        return bad("prefetch", "prefetch is at least 1");
    }
    if config.prefetch_bytes == 0 {
        return bad("prefetch_bytes", "prefetch_bytes is at least 1");
    }
    if config.max_deliveries == 0 {
        return bad("max_deliveries", "max_deliveries is at least 1");
    }
    if config.lease.is_zero() {
        return bad("lease", "a lease is longer than nothing");
    }
    if config.backoff_min > config.backoff_max {
        return bad("backoff_min", "backoff_min is at most backoff_max");
    }
    Ok(())
}

impl ReceiverBuilder {
    async fn open(self) -> Result<Receiver> {
        let Self { target, config } = self;
        let (client, from) = target?;
        let inner = client.inner();
        inner.check_open()?;
        checked(&config)?;
        let source = source_of(from, &config)?;
        inner.register_name(&source.address)?;
        let capabilities = inner.broker.capabilities();
        if source.queue_name().is_none() && !capabilities.anonymous_subscribers {
            let why = "this broker has no subscribers without a group";
            return Err(Error::unsupported(why).with_context("address", &source.address));
        }
        if source.start != Start::Committed && !capabilities.replay {
            return Err(Error::unsupported("this broker cannot replay").with_context("address", &source.address));
        }
        let dead_letter = dead_letter_of(&source, &config)?;
        let mut topology = Topology::default();
        if let Some(address) = &dead_letter {
            topology.push(Entry::new(address.clone()));
        }
        let mut entry = Entry::from(&source);
        entry.dead_letter.clone_from(&dead_letter);
        entry.max_deliveries = Some(config.max_deliveries);
        entry.native.clone_from(&config.native);
        topology.push(entry);
        inner.prepare(config.declare, &topology).await?;
        let options = ConsumerOptions {
            prefetch: config.prefetch,
            prefetch_bytes: config.prefetch_bytes,
            lease: config.lease,
            ordering: config.ordering,
            native: config.native.clone(),
            events: inner.events.clone(),
        };
        let consumer = inner.broker.consumer(&source, &options).await?;
        let able = consumer.capabilities();
        let why = match (config.ordering, able.ordering) {
            (Ordering::PerKey, Ordering::None) => Some("this address cannot keep the order of a key"),
            (Ordering::Full, Ordering::None | Ordering::PerKey) => {
                Some("this address cannot keep the order of all messages")
            }
            _ => None,
        };
        if let Some(why) = why {
            return Err(Error::unsupported(why).with_context("source", source));
        }
        let dead_letters = match dead_letter {
            Some(address) => Some(copier(inner, address).await?),
            None => None,
        };
        let own = source.queue_name().map(|queue| Address::derived(AddressKind::Queue, &queue));
        // One that kills its process is told from its neighbours by copies; see the inbox.
        let counts_all = able.delivery_count == DeliveryCount::Receives && able.ordering == Ordering::None;
        let marks_to = own.clone().filter(|_| able.retry_via == RetryVia::Broker && counts_all);
        let copies = match (able.retry_via, own) {
            (RetryVia::Copy, Some(own)) => Some(copier(inner, own).await?),
            // Each copy names its tier.
            (RetryVia::InPlace, _) if !consumer.retry_tiers().is_empty() => {
                Some(copier(inner, source.address.clone()).await?)
            }
            _ => None,
        };
        let inbox = Inbox::start(consumer, source, config, inner.clone(), dead_letters, copies, marks_to);
        inner.track_receiver(&inbox);
        Ok(Receiver { inbox, current: None, receiving: Default::default() })
    }
}

/// What a receiver with these options reads.
pub(crate) fn source_of(from: Address, config: &ReceiverConfig) -> Result<Source> {
    let mut source = Source::new(from);
    source.start = config.start;
    let Some(group) = &config.group else { return Ok(source) };
    if !source.address.is_topic() {
        let why = "a group belongs to a topic; receivers of a queue compete already";
        return Err(Error::new(ErrorKind::InvalidInput, why).with_context("address", &source.address));
    }
    source.with_group(group)
}

/// Sends copies that the library makes.
pub(crate) async fn copier(client: &ClientInner, to: Address) -> Result<Owned> {
    let options = ProducerOptions { events: client.events.clone(), ..Default::default() };
    let producer = client.broker.producer(&to, &options).await?;
    Ok(Owned(Outbox::start(to, producer, SenderConfig::default(), true, client.events.clone())))
}

/// Where dead letters of the source go; `None`: they are thrown away.
pub(crate) fn dead_letter_of(source: &Source, config: &ReceiverConfig) -> Result<Option<Address>> {
    match config.dead_letter.as_deref() {
        Some(DISCARD) => Ok(None),
        Some(address) => {
            let address: Address = address.parse()?;
            if address == source.address {
                let why = "dead letters would go back to where they came from";
                return Err(Error::new(ErrorKind::InvalidConfig, why).with_context("address", address));
            }
            Ok(Some(address))
        }
        // A subscriber without a group has nothing that outlives it.
        None => Ok(source.dead_letter()),
    }
}
