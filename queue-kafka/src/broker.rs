//! The broker: a cluster that is connected.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use queue_core::{
    Address, Broker, Capabilities, CloseReport, Consumer, ConsumerOptions, DeliveryCount, Endpoint, Error,
    EventBinding, Events, Health, HealthState, Ordering, PartitionStats, Producer, ProducerOptions, ReplyVia, Result,
    RetryVia, Source, Stats, TokenProvider, Topology, TransactionOptions, TransactionSession, Transactions,
};
use rdkafka::{ClientConfig, Offset};
use tokio::time::Instant;

use crate::admin::{Admin, topic_of};
use crate::auth::Login;
use crate::config::Settings;
use crate::consumer::{self, KafkaConsumer, group_of};
use crate::inbox::Inbox;
use crate::lanes::partition_of;
use crate::link::Link;
use crate::monitor::Monitor;
use crate::native::Engine;
use crate::producer::KafkaProducer;
use crate::transaction::Session;

/// Messages that are given to librdkafka in one call.
const MAX_BATCH: usize = 8192;

/// A connection to a Kafka cluster.
///
/// [`native`](Broker::native) is the [`ClientConfig`] that it was made with, from which a program can make clients of
/// its own.
pub struct KafkaBroker {
    settings: Settings,
    native: ClientConfig,
    link: Link,
    admin: Admin,
    capabilities: Arc<Capabilities>,
    engines: Mutex<Vec<Arc<Engine>>>,
    producers: Mutex<Vec<Weak<KafkaProducer>>>,
    consumers: Mutex<Vec<Weak<Inbox>>>,
    sessions: Mutex<Vec<Weak<Session>>>,
    closed: AtomicBool,
}

impl fmt::Debug for KafkaBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaBroker").field("hosts", &self.settings.hosts).finish_non_exhaustive()
    }
}

impl KafkaBroker {
    /// Connects to the cluster; events go to the sink.
    ///
    /// # Errors
    /// `InvalidConfig` for options that are unknown, do not fit or would break a promise; `Connection` when no broker
    /// answers within the endpoint's `connect_timeout`; `Unauthorized` when one refuses the login.
    pub async fn connect(endpoint: &Endpoint, events: Events) -> Result<Self> {
        Self::connect_as(endpoint, events, None).await
    }

    /// The same with tokens from the application, for `auth=oauth2`, which this implies. The user of the URL is a name for
    /// the log; brokers take it from the token. Needs the feature `tls`.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), and those of the provider; `Timeout` when it gives no token within the endpoint's
    /// `connect_timeout`.
    pub async fn connect_with_tokens(
        endpoint: &Endpoint,
        events: Events,
        tokens: Arc<dyn TokenProvider>,
    ) -> Result<Self> {
        Self::connect_as(endpoint, events, Some(tokens)).await
    }

    async fn connect_as(endpoint: &Endpoint, events: Events, tokens: Option<Arc<dyn TokenProvider>>) -> Result<Self> {
        let settings = Settings::new(endpoint, tokens)?;
        let native = settings.client()?;
        if let Login::Tokens(tokens) = &settings.login {
            tokens.start(endpoint.connect_timeout, settings.config.request_timeout).await?;
        }
        let monitor = Monitor::new(&settings.hosts, settings.login.clone(), events);
        let link = Link::open(&native, monitor, endpoint.connect_timeout, settings.config.request_timeout).await?;
        let capabilities = Arc::new(capabilities(&settings));
        Ok(Self {
            settings,
            native,
            link,
            admin: Admin::new(),
            capabilities,
            engines: Mutex::default(),
            producers: Mutex::default(),
            consumers: Mutex::default(),
            sessions: Mutex::default(),
            closed: AtomicBool::new(false),
        })
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Atomic::Acquire) { Err(Error::closed("broker")) } else { Ok(()) }
    }

    /// The native producer for this deadline. Those for other deadlines go when nobody uses them.
    fn engine(&self, deadline: Duration) -> Result<Arc<Engine>> {
        let mut engines = self.engines.lock();
        self.check_open()?;
        if let Some(engine) = engines.iter().find(|e| e.deadline() == deadline) {
            return Ok(engine.clone());
        }
        let engine = Arc::new(Engine::new(&self.settings, self.link.monitor(), deadline)?);
        engines.retain(|e| Arc::strong_count(e) > 1);
        engines.push(engine.clone());
        Ok(engine)
    }
}

/// What Kafka can do through this adapter.
fn capabilities(settings: &Settings) -> Capabilities {
    let mut c = Capabilities::default();
    c.max_message_bytes = settings.max_message_bytes;
    c.max_batch = MAX_BATCH;
    c.events = Some(EventBinding::Kafka);
    c.ordering = Ordering::PerKey;
    c.topics = true;
    c.group_backlog = true;
    c.anonymous_subscribers = true;
    c.delayed_retry = true;
    c.retry_via = RetryVia::InPlace;
    c.max_retry_delay = consumer::max_retry_delay(settings.retry_tiers.last().copied());
    c.dead_letter = true;
    c.tombstones = true;
    c.typed_headers = true;
    c.replay = true;
    c.delivery_count = if settings.config.crash_guard { DeliveryCount::Losses } else { DeliveryCount::Answers };
    c.transactions = true;
    c.reply_via = ReplyVia::Topic;
    c.durable = true;
    // The client for changes cannot log in with a token.
    c.purge = !settings.has_tokens();
    c.stats = true;
    c
}

/// Keeps what lives, and this one.
fn remember<T>(all: &Mutex<Vec<Weak<T>>>, one: &Arc<T>) {
    let mut all = all.lock();
    all.retain(|w| w.strong_count() > 0);
    all.push(Arc::downgrade(one));
}

fn living<T>(all: &Mutex<Vec<Weak<T>>>) -> Vec<Arc<T>> {
    std::mem::take(&mut *all.lock()).iter().filter_map(Weak::upgrade).collect()
}

#[async_trait]
impl Broker for KafkaBroker {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.capabilities.clone()
    }

    async fn producer(&self, to: &Address, options: &ProducerOptions) -> Result<Arc<dyn Producer>> {
        self.check_open()?;
        let topic = topic_of(to)?;
        self.link.existing(topic, "send").await?;
        let engine = self.engine(options.deadline)?;
        engine.find(topic).await;
        let producer = Arc::new(KafkaProducer::new(topic, engine, self.capabilities.clone()));
        remember(&self.producers, &producer);
        Ok(producer)
    }

    async fn consumer(&self, from: &Source, options: &ConsumerOptions) -> Result<Arc<dyn Consumer>> {
        self.check_open()?;
        let consumer =
            KafkaConsumer::open(&self.settings, &self.link, from, options, self.capabilities.clone()).await?;
        if self.settings.is_static_member() {
            consumer.inbox().keep_place();
        }
        remember(&self.consumers, consumer.inbox());
        if let Err(closed) = self.check_open() {
            consumer.inbox().close(std::time::Instant::now());
            return Err(closed);
        }
        Ok(Arc::new(consumer))
    }

    async fn declare(&self, topology: &Topology) -> Result<()> {
        self.check_open()?;
        self.admin.declare(&self.settings, &self.link, topology).await
    }

    async fn verify(&self, topology: &Topology) -> Result<()> {
        self.check_open()?;
        self.admin.verify(&self.settings, &self.link, topology).await
    }

    async fn delete(&self, address: &Address) -> Result<()> {
        self.check_open()?;
        self.admin.delete(&self.settings, &self.link, address).await
    }

    async fn purge(&self, address: &Address) -> Result<()> {
        self.check_open()?;
        self.admin.purge(&self.settings, &self.link, address).await
    }

    async fn stats(&self, source: &Source) -> Result<Stats> {
        self.check_open()?;
        let topic = topic_of(&source.address)?;
        let partitions: Vec<i32> = self.link.existing(topic, "stats").await?.iter().map(|p| p.id).collect();
        let mut stats = Stats::default();
        // Who reads without a group leaves no trace on the broker.
        let Some(group) = group_of(source) else { return Ok(stats) };
        let config = self.settings.consumer(group, &ConsumerOptions::default())?;
        let first = self.link.offsets(topic, &partitions, Offset::Beginning).await?;
        let end = self.link.offsets(topic, &partitions, Offset::End).await?;
        let committed = self.link.committed(config, topic, &partitions).await?;
        let position = |partition: i32, low: i64| {
            committed.iter().find(|(p, _)| *p == partition).map_or(low, |(_, offset)| low.max(*offset))
        };
        let low = |partition: i32| first.iter().find(|(p, _)| *p == partition).map_or(0, |(_, low)| *low);
        for (partition, end) in end {
            let mut part = PartitionStats::default();
            part.partition = partition.unsigned_abs();
            part.lag = Some(u64::try_from(end - position(partition, low(partition))).unwrap_or(0));
            stats.partitions.push(part);
        }
        stats.partitions.sort_by_key(|part| part.partition);
        stats.lag = stats.partitions.iter().map(|part| part.lag).sum();
        stats.ready = stats.lag;
        // What was acknowledged out of order counts in it, and so do markers of transactions and offsets that were compacted.
        stats.approximate = stats.lag != Some(0);
        Ok(stats)
    }

    fn health(&self) -> Health {
        let mut health = self.link.monitor().health();
        for inbox in self.consumers.lock().iter().filter_map(Weak::upgrade) {
            let long = |(_, time): &(i32, Duration)| *time >= self.settings.config.max_unanswered_age;
            if let Some((lane, time)) = inbox.waits().filter(long) {
                let partition = partition_of(lane);
                let (topic, seconds) = (inbox.topic(), time.as_secs());
                let problem = format!(
                    "partition {partition} of {topic} has waited for the answer of one message for {seconds} s"
                );
                health = health.with_problem(HealthState::Down, problem);
            }
        }
        health
    }

    async fn ping(&self) -> Result<()> {
        self.check_open()?;
        self.link.ping().await
    }

    fn native(&self) -> &(dyn Any + Send + Sync) {
        &self.native
    }

    fn transactions(&self) -> Option<&dyn Transactions> {
        Some(self)
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        let mut report = CloseReport::default();
        if self.closed.swap(true, Atomic::AcqRel) {
            return report;
        }
        // All at once: each may take until the deadline.
        let consumers = living(&self.consumers);
        let consumers = futures::future::join_all(consumers.iter().map(|c| consumer::close(c, deadline)));
        let producers = living(&self.producers);
        let producers = futures::future::join_all(producers.iter().map(|p| p.close(deadline)));
        let sessions = living(&self.sessions);
        let sessions = futures::future::join_all(sessions.iter().map(|s| s.close(deadline)));
        let (consumers, producers, sessions) = tokio::join!(consumers, producers, sessions);
        for part in consumers.into_iter().chain(producers).chain(sessions) {
            report.merge(part);
        }
        for engine in self.engines.lock().drain(..) {
            engine.close();
        }
        self.admin.close();
        self.link.stop();
        report
    }
}

#[async_trait]
impl Transactions for KafkaBroker {
    async fn open(&self, name: &str, options: &TransactionOptions) -> Result<Arc<dyn TransactionSession>> {
        self.check_open()?;
        let (settings, monitor) = (&self.settings, self.link.monitor());
        let session = Session::open(name, options, settings, monitor, self.capabilities.clone()).await?;
        remember(&self.sessions, &session);
        if let Err(closed) = self.check_open() {
            session.close(Instant::now()).await;
            return Err(closed);
        }
        Ok(session)
    }
}
