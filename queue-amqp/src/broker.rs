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
    Address, Broker, Capabilities, CloseReport, Consumer, ConsumerOptions, Endpoint, Error, ErrorKind, Events, Health,
    Ordering, Producer, ProducerOptions, Result, Source, Start, Stats, Topology,
};
use tokio::time::Instant;

use crate::capability;
use crate::config::Target;
use crate::consumer::AmqpConsumer;
use crate::link::Link;
use crate::producer::AmqpProducer;
use crate::server::ServerInfo;
use crate::topology::{Arguments, Facts, Known, QueueType, Topologist, native};

/// A RabbitMQ server or cluster.
pub struct AmqpBroker {
    shared: Arc<Shared>,
}

/// What producers and consumers share with their broker.
pub(crate) struct Shared {
    pub(crate) publish: Link,
    pub(crate) consume: Link,
    pub(crate) timeout: Duration,
    pub(crate) server: ServerInfo,
    /// Arguments of every queue that is made, from the URL.
    defaults: Arguments,
    known: Known,
    capabilities: Arc<Capabilities>,
    /// The queues of each topic's groups, as far as they were declared or consumed through this broker.
    groups: Mutex<BTreeMap<String, BTreeSet<String>>>,
    producers: Mutex<Vec<Weak<AmqpProducer>>>,
    consumers: Mutex<Vec<Weak<AmqpConsumer>>>,
    closed: AtomicBool,
}

impl AmqpBroker {
    /// Connects to the first host that answers.
    ///
    /// # Errors
    /// `InvalidConfig`; `Connection` when no host answers within the endpoint's `connect_timeout`; `Unauthorized` when
    /// the login or the virtual host is refused; `NotFound` when the virtual host does not exist.
    pub async fn connect(endpoint: &Endpoint, events: Events) -> Result<Self> {
        let target = Target::new(endpoint)?;
        let timeout = target.config.operation_timeout;
        let defaults = target.defaults.clone();
        let deadline = Instant::now() + endpoint.connect_timeout;
        // One after the other: a wrong password is one failed login, not two.
        let publish = Link::open(target.clone(), "publish", events.clone(), deadline).await?;
        let consume = Link::open(target, "consume", events, deadline).await?;
        Ok(Self {
            shared: Arc::new(Shared {
                server: consume.server(),
                defaults,
                known: Known::default(),
                publish,
                consume,
                timeout,
                capabilities: Arc::new(capability::of_broker()),
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

    pub(crate) fn topologist(&self) -> Result<Topologist<'_>> {
        self.check_open()?;
        Ok(Topologist {
            link: &self.consume,
            server: &self.server,
            defaults: &self.defaults,
            known: &self.known,
            deadline: Instant::now() + self.timeout,
        })
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
        let asked = native(to, &options.native)?.queue;
        if to.is_topic() {
            if let Some(option) = asked.keys().next() {
                let why = "a topic holds no messages: arguments of queues belong to its groups";
                return Err(Error::new(ErrorKind::InvalidConfig, why).with_context("option", option));
            }
            topologist.exchange(to.name()).await?;
        } else {
            topologist.queue_exists(to.name()).await?;
        }
        let facts = self.shared.known.of(to.name());
        let capabilities = Arc::new(capability::of_producer(&self.shared.server, to, &facts, &asked));
        let producer = AmqpProducer::open(&self.shared, to.clone(), options, capabilities).await?;
        register(&self.shared.producers, &producer);
        Ok(producer)
    }

    async fn consumer(&self, from: &Source, options: &ConsumerOptions) -> Result<Arc<dyn Consumer>> {
        self.shared.check_open()?;
        if options.ordering != Ordering::None {
            return Err(
                Error::unsupported("competing receivers of a queue keep no order").with_operation("open consumer")
            );
        }
        let native = native(&from.address, &options.native)?;
        let facts = self.facts(from).await?;
        let capabilities = Arc::new(capability::of_consumer(&self.shared.server, &facts));
        let consumer = AmqpConsumer::open(&self.shared, from, options, native, capabilities).await?;
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
        let problems = [self.shared.publish.problem(), self.shared.consume.problem()];
        problems.into_iter().flatten().fold(Health::up(), |health, (state, text)| health.with_problem(state, text))
    }

    async fn ping(&self) -> Result<()> {
        let deadline = self.shared.topologist()?.deadline;
        // Opening a channel is a question and an answer.
        self.shared.consume.channel(deadline).await.map(|_| ())
    }

    fn native(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        let mut report = CloseReport::default();
        if self.shared.closed.swap(true, Atomic::AcqRel) {
            return report;
        }
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

impl AmqpBroker {
    /// What is known of the queue behind a source, which has to be one that can start where the source does.
    async fn facts(&self, from: &Source) -> Result<Facts> {
        let replays = from.start != Start::Committed;
        let refuse = |why| Err(Error::unsupported(why).with_operation("open consumer").with_context("source", from));
        let Some(queue) = from.queue_name() else {
            return if replays {
                refuse("a topic without a group keeps nothing to replay")
            } else {
                Ok(Facts::default())
            };
        };
        // Asked each time: the queue may have been made anew as something else.
        let kind = self.shared.topologist()?.kind(&queue).await?;
        if let Some(kind) = kind {
            self.shared.known.is_of(&queue, kind);
        }
        match (kind == Some(QueueType::Stream), replays) {
            (false, true) => refuse("only a stream can be replayed: a queue made with x-queue-type=stream"),
            (true, false) => refuse("a stream stores no position: say where to start"),
            _ => Ok(Facts { kind, ..self.shared.known.of(&queue) }),
        }
    }

    /// The version of the server as it was when this connection was made: major, minor, patch. `None` where it says
    /// none.
    #[must_use]
    pub fn server_version(&self) -> Option<(u16, u16, u16)> {
        Some(self.shared.server.version).filter(|version| *version != (0, 0, 0))
    }

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
            .finish_non_exhaustive()
    }
}
