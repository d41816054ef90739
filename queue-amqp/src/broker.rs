//! The broker: two connections and what is opened on them.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use parking_lot::Mutex;
use queue_core::{
    Address, Broker, Capabilities, CloseReport, Consumer, ConsumerOptions, DeliveryCount, Endpoint, Error, ErrorKind,
    Events, Health, Message, Ordering, Producer, ProducerOptions, Requests, Result, RetryVia, Source, Start, Stats,
    Topology,
};
use tokio::time::Instant;

use crate::auth::TokenProvider;
use crate::config::Target;
use crate::consumer::AmqpConsumer;
use crate::link::Link;
use crate::producer::AmqpProducer;
use crate::requests::Requester;
use crate::topology::Topologist;

/// The largest message of RabbitMQ 4 unless configured; earlier ones take 128 MiB.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Far from the limit that counts, which is the bytes of one frame (128 KiB unless configured).
const MAX_HEADERS: usize = 1000;
/// The server takes no longer one.
const MAX_TTL: Duration = Duration::from_millis(u32::MAX as u64);
/// Below the 30 minutes after which the server takes an unanswered message away.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(20 * 60);

/// A RabbitMQ server or cluster.
pub struct AmqpBroker {
    shared: Arc<Shared>,
}

/// What producers and consumers share with their broker.
pub(crate) struct Shared {
    pub(crate) publish: Link,
    pub(crate) consume: Link,
    pub(crate) timeout: Duration,
    requester: Requester,
    capabilities: Arc<Capabilities>,
    /// The queues of each topic's groups, as far as they were declared or consumed through this broker.
    groups: Mutex<BTreeMap<String, BTreeSet<String>>>,
    producers: Mutex<Vec<Weak<AmqpProducer>>>,
    consumers: Mutex<Vec<Weak<AmqpConsumer>>>,
    closed: AtomicBool,
}

fn capabilities() -> Capabilities {
    let mut c = Capabilities::default();
    c.max_message_bytes = MAX_MESSAGE_BYTES;
    c.max_headers = MAX_HEADERS;
    c.max_ttl = MAX_TTL;
    c.ttl = true;
    c.ordering = Ordering::None;
    c.topics = true;
    c.anonymous_subscribers = true;
    c.delayed_retry = true;
    c.retry_via = RetryVia::Copy;
    c.max_retry_delay = MAX_RETRY_DELAY;
    c.dead_letter = true;
    c.tombstones = true;
    c.typed_headers = true;
    c.delivery_count = DeliveryCount::Losses;
    c.requests = true;
    c.durable = true;
    c.purge = true;
    c.stats = true;
    c
}

impl AmqpBroker {
    /// Connects to the first host that answers.
    ///
    /// # Errors
    /// `InvalidConfig`; `Connection` when no host answers within the endpoint's `connect_timeout`; `Unauthorized` when
    /// the login or the virtual host is refused; `NotFound` when the virtual host does not exist.
    pub async fn connect(endpoint: &Endpoint, events: Events) -> Result<Self> {
        Self::connect_to(Target::new(endpoint, None)?, events).await
    }

    /// Connects as [`connect`](Self::connect), and logs in with tokens of OAuth 2, which are renewed before they expire.
    ///
    /// The URL has no password then. The server takes the user from the token.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); what the provider fails with.
    pub async fn connect_with_tokens(
        endpoint: &Endpoint,
        events: Events,
        tokens: Arc<dyn TokenProvider>,
    ) -> Result<Self> {
        Self::connect_to(Target::new(endpoint, Some(tokens))?, events).await
    }

    async fn connect_to(target: Target, events: Events) -> Result<Self> {
        let timeout = target.config.operation_timeout;
        let deadline = Instant::now() + target.connect_timeout;
        // One after the other: a wrong password is one failed login, not two.
        let publish = Link::open(target.clone(), "publish", events.clone(), deadline).await?;
        let consume = Link::open(target, "consume", events, deadline).await?;
        let requester = Requester::new(publish.sessions(), timeout);
        Ok(Self {
            shared: Arc::new(Shared {
                requester,
                publish,
                consume,
                timeout,
                capabilities: Arc::new(capabilities()),
                groups: Mutex::default(),
                producers: Mutex::default(),
                consumers: Mutex::default(),
                closed: AtomicBool::new(false),
            }),
        })
    }
}

impl Shared {
    fn check_open(&self) -> Result<()> {
        if self.closed.load(Atomic::Acquire) { Err(Error::closed("broker")) } else { Ok(()) }
    }

    fn topologist(&self) -> Result<Topologist<'_>> {
        self.check_open()?;
        Ok(Topologist { link: &self.consume, deadline: Instant::now() + self.timeout })
    }

    fn remember(&self, source: &Source) {
        if let (true, Some(queue)) = (source.address.is_topic(), source.queue_name()) {
            self.groups.lock().entry(source.address.name().to_owned()).or_default().insert(queue);
        }
    }

    /// The queues that stand behind an address.
    fn queues(&self, address: &Address) -> Vec<String> {
        if address.is_topic() {
            self.groups.lock().get(address.name()).map(|q| q.iter().cloned().collect()).unwrap_or_default()
        } else {
            vec![address.name().to_owned()]
        }
    }
}

/// Keeps a list of what is still open.
fn register<T>(list: &Mutex<Vec<Weak<T>>>, item: &Arc<T>) {
    let mut list = list.lock();
    list.retain(|weak| weak.strong_count() > 0);
    list.push(Arc::downgrade(item));
}

fn open<T>(list: &Mutex<Vec<Weak<T>>>) -> Vec<Arc<T>> {
    std::mem::take(&mut *list.lock()).iter().filter_map(Weak::upgrade).collect()
}

#[async_trait]
impl Broker for AmqpBroker {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.shared.capabilities.clone()
    }

    async fn producer(&self, to: &Address, options: &ProducerOptions) -> Result<Arc<dyn Producer>> {
        let topologist = self.shared.topologist()?;
        if to.is_topic() {
            topologist.exchange(to.name()).await?;
        } else {
            topologist.queue_exists(to.name()).await?;
        }
        let capabilities = self.shared.capabilities.clone();
        let producer = AmqpProducer::open(&self.shared, to.clone(), options, capabilities).await?;
        register(&self.shared.producers, &producer);
        Ok(producer)
    }

    async fn consumer(&self, from: &Source, options: &ConsumerOptions) -> Result<Arc<dyn Consumer>> {
        self.shared.check_open()?;
        if from.start != Start::Committed {
            return Err(Error::unsupported("a queue cannot be replayed").with_operation("open consumer"));
        }
        if options.ordering != Ordering::None {
            return Err(
                Error::unsupported("competing receivers of a queue keep no order").with_operation("open consumer")
            );
        }
        let consumer = AmqpConsumer::open(&self.shared, from, options, self.shared.capabilities.clone()).await?;
        self.shared.remember(from);
        register(&self.shared.consumers, &consumer);
        Ok(consumer)
    }

    async fn declare(&self, topology: &Topology) -> Result<()> {
        for entry in topology.entries() {
            self.shared.topologist()?.declare(entry).await?;
            self.shared.remember(&entry.source());
        }
        Ok(())
    }

    async fn verify(&self, topology: &Topology) -> Result<()> {
        for entry in topology.entries() {
            self.shared.topologist()?.verify(entry).await?;
        }
        Ok(())
    }

    async fn delete(&self, address: &Address) -> Result<()> {
        self.shared.topologist()?.delete(address, &self.shared.queues(address)).await?;
        self.shared.groups.lock().remove(address.name());
        Ok(())
    }

    async fn purge(&self, address: &Address) -> Result<()> {
        self.shared.topologist()?.purge(&self.shared.queues(address)).await
    }

    async fn stats(&self, source: &Source) -> Result<Stats> {
        let topologist = self.shared.topologist()?;
        let Some(queue) = source.queue_name() else {
            return Err(Error::unsupported("a topic without a group holds no messages").with_operation("stats"));
        };
        let queue = topologist.queue(&queue).await?;
        let mut stats = Stats::default();
        stats.ready = Some(queue.message_count().into());
        stats.consumers = Some(queue.consumer_count().into());
        Ok(stats)
    }

    fn health(&self) -> Health {
        let links = [&self.shared.publish, &self.shared.consume];
        links
            .into_iter()
            .flat_map(Link::problems)
            .fold(Health::up(), |health, (state, text)| health.with_problem(state, text))
    }

    async fn ping(&self) -> Result<()> {
        let deadline = self.shared.topologist()?.deadline;
        // Opening a channel is a question and an answer.
        self.shared.consume.channel(deadline).await.map(|_| ())
    }

    fn native(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn requests(&self) -> Option<&dyn Requests> {
        Some(self)
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        let mut report = CloseReport::default();
        if self.shared.closed.swap(true, Atomic::AcqRel) {
            return report;
        }
        self.shared.requester.close();
        let (consumers, producers) = (open(&self.shared.consumers), open(&self.shared.producers));
        // Answers first: a retry or a dead letter may still be on its way out.
        for closed in join_all(consumers.iter().map(|c| c.close(deadline))).await {
            report.merge(closed);
        }
        for closed in join_all(producers.iter().map(|p| p.close(deadline))).await {
            report.merge(closed);
        }
        for link in [&self.shared.publish, &self.shared.consume] {
            if let Err(error) = link.close(deadline).await {
                report.errors.push(error);
            }
        }
        report
    }
}

#[async_trait]
impl Requests for AmqpBroker {
    async fn request(&self, to: &Address, message: Message, deadline: Instant) -> Result<Message> {
        self.shared.check_open()?;
        let limit = self.shared.capabilities.max_message_bytes;
        if message.size() > limit {
            let error = Error::new(ErrorKind::TooLarge, "the message is over the limit").with_operation("request");
            return Err(error.with_context("limit", limit).with_context("actual", message.size()));
        }
        self.shared.requester.request(to, message, deadline).await
    }
}

impl AmqpBroker {
    /// Opens a channel of the client (lapin) on the connection that consumes, for what this crate does not do.
    ///
    /// # Errors
    /// `Connection` when there is no connection within the operation timeout.
    pub async fn open_channel(&self) -> Result<lapin::Channel> {
        let deadline = self.shared.topologist()?.deadline;
        self.shared.consume.channel(deadline).await
    }
}

impl fmt::Debug for AmqpBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpBroker")
            .field("publish", &self.shared.publish)
            .field("consume", &self.shared.consume)
            .field("requests", &self.shared.requester)
            .finish_non_exhaustive()
    }
}
