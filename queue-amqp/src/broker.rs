//! The broker: two connections and what is opened on them.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use queue_core::{
    Address, Broker, Capabilities, CloseReport, Consumer, ConsumerOptions, Endpoint, Error, ErrorKind, Events, Health,
    Message, Producer, ProducerOptions, Requests, Result, Source, Start, Stats, TokenProvider, Topology,
};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};

use crate::capability;
use crate::config::Target;
use crate::consumer::AmqpConsumer;
use crate::delay::Ladder;
use crate::link::{Link, Task, while_up};
#[cfg(feature = "management")]
use crate::management::Management;
use crate::producer::AmqpProducer;
use crate::publisher::Publisher;
use crate::requests::Requester;
use crate::server::ServerInfo;
use crate::topology::{Arguments, Facts, Known, QueueType, Topologist, native, of_classic};

/// Pause before a question is asked again whose answer was lost with the connection.
const AGAIN: Duration = Duration::from_millis(200);

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
    pub(crate) ladder: Arc<Ladder>,
    /// Ends the work on the ladder with the broker.
    ladder_task: Mutex<Option<Task>>,
    pub(crate) server: ServerInfo,
    /// Arguments of every queue that is made, from the URL.
    defaults: Arguments,
    #[cfg(feature = "management")]
    management: Option<Management>,
    pub(crate) known: Known,
    capabilities: Arc<Capabilities>,
    /// The queues of each topic's groups, as far as they were declared or consumed through this broker.
    groups: Mutex<BTreeMap<String, BTreeSet<String>>>,
    /// What all producers send through, once there was one.
    publisher: OnceCell<Arc<Publisher>>,
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
        let defaults = target.defaults.clone();
        #[cfg(feature = "management")]
        let management = target.management.clone();
        let deadline = Instant::now() + target.connect_timeout;
        // One after the other: a wrong password is one failed login, not two.
        let publish = Link::open(target.clone(), "publish", events.clone(), deadline).await?;
        let delay_queues = target.config.delay_queues;
        let consume = Link::open(target, "consume", events, deadline).await?;
        let server = consume.server();
        let ladder = Ladder::new();
        let task = Task(tokio::spawn(ladder.clone().run(consume.sessions(), timeout)));
        let requester = Requester::new(publish.sessions(), timeout);
        Ok(Self {
            shared: Arc::new(Shared {
                requester,
                capabilities: Arc::new(capability::of_broker(&server, delay_queues)),
                server,
                defaults,
                #[cfg(feature = "management")]
                management,
                known: Known::default(),
                publish,
                consume,
                timeout,
                ladder,
                ladder_task: Mutex::new(Some(task)),
                groups: Mutex::default(),
                publisher: OnceCell::new(),
                producers: Mutex::default(),
                consumers: Mutex::default(),
                closed: AtomicBool::new(false),
            }),
        })
    }
}

/// Whether the connection went before the answer came.
fn is_lost(error: &Error) -> bool {
    error.kind() == ErrorKind::Connection && error.is_retryable()
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

    /// Asks, and again while the connection is lost before the answer is there: none of these questions changes anything
    /// the second time.
    async fn ask<'a, T>(&'a self, question: impl Fn(Topologist<'a>) -> BoxFuture<'a, Result<T>>) -> Result<T> {
        let topologist = self.topologist()?;
        let mut sessions = self.consume.sessions();
        loop {
            sessions.mark_unchanged();
            match while_up(&sessions, question(topologist)).await {
                Err(error) if is_lost(&error) && Instant::now() + AGAIN < topologist.deadline => sleep(AGAIN).await,
                answer => return answer,
            }
            self.check_open()?;
        }
    }

    /// A queue was found to be gone.
    pub(crate) fn forget(&self, queue: &str) {
        self.known.forget(queue);
        self.ladder.forget(queue);
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

fn cannot_start(from: &Source, why: &'static str) -> Error {
    Error::unsupported(why).with_operation("open consumer").with_context("source", from)
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
        self.shared.check_open()?;
        let asked = native(to, &options.native)?.queue;
        if to.is_topic()
            && let Some(option) = asked.keys().next()
        {
            let why = "a topic holds no messages: arguments of queues belong to its groups";
            return Err(Error::new(ErrorKind::InvalidConfig, why).with_context("option", option));
        }
        self.shared.ask(|asked| async move { asked.is_not_missing(to).await }.boxed()).await?;
        // A topic may have the name of a queue.
        let facts = if to.is_topic() { Facts::default() } else { self.shared.known.of(to.name()) };
        let upper = &self.shared.capabilities;
        let capabilities = Arc::new(capability::of_producer(upper, &self.shared.server, to, &facts, &asked));
        let Shared { publish, publisher, ladder, .. } = &*self.shared;
        let publisher =
            publisher.get_or_try_init(async || Publisher::open(publish, ladder).await.map(Arc::new)).await?;
        let producer = AmqpProducer::new(publisher.clone(), to.clone(), options, capabilities);
        register(&self.shared.producers, &producer);
        Ok(producer)
    }

    async fn consumer(&self, from: &Source, options: &ConsumerOptions) -> Result<Arc<dyn Consumer>> {
        self.shared.check_open()?;
        let mut native = native(&from.address, &options.native)?;
        let facts = match from.queue_name() {
            Some(queue) => self.facts(from, &queue).await?,
            None if from.start != Start::Committed => {
                return Err(cannot_start(from, "a topic without a group keeps nothing to replay"));
            }
            None => {
                for (name, value) in of_classic(&self.shared.defaults) {
                    native.queue.entry(name.clone()).or_insert_with(|| value.clone());
                }
                Facts::with(&native.queue)
            }
        };
        let Shared { capabilities, server, .. } = &*self.shared;
        let queue = from.queue_name();
        let capabilities = Arc::new(capability::of_consumer(capabilities, server, queue.as_deref(), &facts));
        if options.ordering > capabilities.ordering {
            let why = "competing receivers of a queue keep no order; with x-single-active-consumer=true by key";
            return Err(Error::unsupported(why).with_operation("open consumer"));
        }
        let consumer = AmqpConsumer::open(&self.shared, from, options, native, capabilities).await?;
        self.shared.remember(from);
        register(&self.shared.consumers, &consumer);
        Ok(consumer)
    }

    async fn declare(&self, topology: &Topology) -> Result<()> {
        for entry in topology.entries() {
            self.shared.ask(|asked| async move { asked.declare(entry).await }.boxed()).await?;
            let source = entry.source();
            self.shared.remember(&source);
            // It may be new.
            source.queue_name().iter().for_each(|queue| self.shared.ladder.forget(queue));
        }
        Ok(())
    }

    async fn verify(&self, topology: &Topology) -> Result<()> {
        #[cfg(feature = "management")]
        if let Some(management) = &self.shared.management {
            return self.verify_by(management, topology).await;
        }
        for entry in topology.entries() {
            self.shared.ask(|asked| async move { asked.verify(entry).await }.boxed()).await?;
        }
        Ok(())
    }

    async fn delete(&self, address: &Address) -> Result<()> {
        let queues = &self.shared.queues(address);
        self.shared.ask(|asked| async move { asked.delete(address, queues).await }.boxed()).await?;
        queues.iter().for_each(|queue| self.shared.ladder.forget(queue));
        self.shared.groups.lock().remove(address.name());
        Ok(())
    }

    async fn purge(&self, address: &Address) -> Result<()> {
        let queues = &self.shared.queues(address);
        self.shared.ask(|asked| async move { asked.purge(queues).await }.boxed()).await
    }

    async fn stats(&self, source: &Source) -> Result<Stats> {
        self.shared.check_open()?;
        let Some(queue) = &source.queue_name() else {
            return Err(Error::unsupported("a topic without a group holds no messages").with_operation("stats"));
        };
        let queue = self.shared.ask(|asked| async move { asked.queue(queue).await }.boxed()).await?;
        let mut stats = Stats::default();
        stats.ready = Some(queue.message_count().into());
        stats.consumers = Some(queue.consumer_count().into());
        // A quorum queue whose leader is slow to answer counts as empty.
        stats.approximate = queue.message_count() == 0;
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
        drop(self.shared.ladder_task.lock().take());
        if let Some(publisher) = self.shared.publisher.get() {
            publisher.close(deadline).await;
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
    /// What is known of the queue behind a source, which has to be one that can start where the source does.
    async fn facts(&self, from: &Source, queue: &str) -> Result<Facts> {
        let known = &self.shared.known;
        let facts = match known.take_fresh(queue) {
            Some(facts) => facts,
            None => {
                let kind = self.shared.ask(|asked| async move { asked.kind(queue).await }.boxed()).await?;
                known.is_of(queue, kind);
                Facts { kind, ..known.take_fresh(queue).unwrap_or_else(|| known.of(queue)) }
            }
        };
        match (facts.kind == Some(QueueType::Stream), from.start != Start::Committed) {
            (false, true) => {
                Err(cannot_start(from, "only a stream can be replayed: a queue made with x-queue-type=stream"))
            }
            (true, false) => Err(cannot_start(from, "a stream stores no position: say where to start")),
            _ => Ok(facts),
        }
    }

    /// Compares through the server's HTTP API, and names every difference.
    #[cfg(feature = "management")]
    async fn verify_by(&self, management: &Management, topology: &Topology) -> Result<()> {
        let topologist = self.shared.topologist()?;
        let mut differences = Vec::new();
        for entry in topology.entries() {
            let (native, wanted) = topologist.wanted(entry)?;
            let found = management.differences(entry, &native, wanted.as_ref(), topologist.deadline).await?;
            if let (Some(queue), Some(wanted), true) = (entry.source().queue_name(), &wanted, found.is_empty()) {
                self.shared.known.has(&queue, &wanted.asked);
            }
            differences.extend(found);
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Conflict, "what exists differs from what was asked for")
            .with_operation("verify")
            .with_context("differences", differences.join("; ")))
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
            .field("requests", &self.shared.requester)
            .finish_non_exhaustive()
    }
}
