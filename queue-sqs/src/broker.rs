//! The broker: clients, queues, and everything that was opened from here.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use parking_lot::Mutex;
use queue_core::{
    Address, Broker, Capabilities, CloseReport, Consumer, ConsumerOptions, DeliveryCount, Endpoint, Error, ErrorKind,
    EventKind, Events, Health, Ordering, Producer, ProducerOptions, Result, RetryVia, Source, Start, Stats, Topology,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::{Clients, SqsConfig};
use crate::consumer::SqsConsumer;
use crate::link::Link;
use crate::producer::{self, SqsProducer};
use crate::queues::{self, Queues};
use crate::topology::{self, Native};

/// The largest message and batch of SQS, and of a queue that does not tell its own limit.
pub(crate) const MAX_MESSAGE: usize = 1 << 20;
/// The largest message of a broker that knows no such attribute: the limit of SQS until 2025, ElasticMQ's today.
const OLD_MAX_MESSAGE: usize = 256 << 10;
/// Most messages that one call of a producer takes; it cuts them itself.
const MAX_BATCH: usize = 4096;
/// The longest time that a message stays with a receiver, from its receipt.
pub(crate) const MAX_LEASE: Duration = Duration::from_secs(12 * 3600);
/// The longest delay of a retry: an hour less, so that it fits behind the time the message was worked on.
pub(crate) const MAX_RETRY_DELAY: Duration = Duration::from_secs(11 * 3600);

/// Amazon SQS, or an endpoint that speaks its protocol.
///
/// [`Broker::native`] gives the [`aws_sdk_sqs::Client`].
pub struct SqsBroker {
    client: Client,
    core: Arc<Core>,
}

/// What broker, producers and consumers share.
pub(crate) struct Core {
    pub(crate) clients: Clients,
    pub(crate) config: SqsConfig,
    pub(crate) link: Arc<Link>,
    pub(crate) queues: Arc<Queues>,
    closed: AtomicBool,
    /// Every task of every producer and consumer. They end by themselves once their owner is closed or dropped, at the
    /// latest when the poll under way has ended, and a lease or request timeout later.
    tasks: Mutex<JoinSet<()>>,
    opened: Mutex<Vec<Weak<dyn Opened>>>,
}

/// A producer or consumer, as far as closing the broker goes.
pub(crate) trait Opened: Send + Sync {
    /// Takes nothing new; the tasks end once what is under way has ended.
    fn begin_close(&self);
    /// The deadline has passed: gives up what need not go on.
    fn abandon(&self);
    /// What is left undone.
    fn left(&self) -> CloseReport;
}

impl Core {
    /// Has the broker close this with itself.
    pub(crate) fn adopt(&self, child: Weak<dyn Opened>) {
        let mut opened = self.opened.lock();
        opened.retain(|child| child.strong_count() > 0);
        opened.push(child);
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.link.close();
        self.tasks.get_mut().detach_all();
    }
}

impl fmt::Debug for SqsBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsBroker").field("host", &self.core.link.host()).finish_non_exhaustive()
    }
}

/// Connects as the endpoint says, and makes sure that it answers.
pub(crate) async fn connect(endpoint: Endpoint, events: Events) -> Result<Arc<dyn Broker>> {
    let config = SqsConfig::from_endpoint(&endpoint)?;
    let host = match endpoint.host_list() {
        host if host.is_empty() => format!("sqs {}", config.region.as_deref().unwrap_or("(region of the environment)")),
        host => host,
    };
    let opened = timeout(endpoint.connect_timeout, async {
        let client = config.client(&endpoint).await?;
        let broker = SqsBroker::build(client, config, host.clone(), events.clone());
        broker.core.link.ping().await?;
        Ok::<_, Error>(broker)
    })
    .await;
    let failed = |error: Error| error.with_operation("connect").with_context("host", &host);
    match opened {
        Ok(Ok(broker)) => {
            events.emit(EventKind::Connected, &host, None);
            Ok(Arc::new(broker))
        }
        // Slow or away is the same to whoever connects.
        Ok(Err(error)) if error.kind() == ErrorKind::Timeout => {
            Err(failed(Error::new(ErrorKind::Connection, "the broker does not answer")))
        }
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(failed(Error::new(ErrorKind::Connection, "the broker does not answer"))),
    }
}

impl SqsBroker {
    /// Uses a client of the caller's own, with its credentials, endpoint, HTTP stack and interceptors. Timeouts and
    /// retries are set as the defaults of [`SqsConfig`] say. No request is made.
    #[must_use]
    pub fn from_client(client: Client) -> Self {
        let region = client.config().region().map_or_else(|| "(no region)".to_owned(), ToString::to_string);
        Self::build(client, SqsConfig::default(), format!("sqs {region}"), Events::new())
    }

    fn build(client: Client, config: SqsConfig, host: String, events: Events) -> Self {
        let clients = Clients::new(&client, &config);
        let link = Link::new(host, events, clients.once.clone());
        let queues =
            Arc::new(Queues::new(clients.clone(), link.clone(), config.account.clone(), config.defaults.clone()));
        let core = Core {
            clients,
            config,
            link,
            queues,
            closed: AtomicBool::new(false),
            tasks: Mutex::new(JoinSet::new()),
            opened: Mutex::default(),
        };
        Self { client, core: Arc::new(core) }
    }

    fn open(&self) -> Result<()> {
        if self.core.closed.load(Atomic::Acquire) { Err(Error::closed("broker")) } else { Ok(()) }
    }

    /// The largest message that the queue takes, and the largest batch.
    async fn limits(&self, name: &str) -> Result<(usize, usize)> {
        match self.core.queues.attributes(name, &[Attribute::MaximumMessageSize]).await {
            Ok(attributes) => {
                let own = attributes.get(&Attribute::MaximumMessageSize).and_then(|n| n.parse().ok());
                Ok(own.map_or((OLD_MAX_MESSAGE, OLD_MAX_MESSAGE), |own| (own, MAX_MESSAGE)))
            }
            Err(error) if error.kind() == ErrorKind::Unauthorized => Ok((MAX_MESSAGE, MAX_MESSAGE)),
            // Named as unknown by an endpoint that does not have the attribute.
            Err(error) if error.kind() == ErrorKind::InvalidInput => Ok((OLD_MAX_MESSAGE, OLD_MAX_MESSAGE)),
            Err(error) => Err(error),
        }
    }
}

/// What every queue can do, with delays up to this; `None` is the upper bound over both kinds.
pub(crate) fn capabilities(fifo: Option<bool>, max_message: usize, max_delay: Duration) -> Capabilities {
    let mut can = Capabilities::default();
    can.max_message_bytes = max_message;
    can.max_batch = MAX_BATCH;
    can.per_request = true;
    can.max_lease = Some(MAX_LEASE);
    can.ordering = if fifo == Some(false) { Ordering::None } else { Ordering::PerKey };
    can.delayed_send = fifo != Some(true);
    can.max_delay = if can.delayed_send { max_delay } else { Duration::ZERO };
    can.delayed_retry = true;
    can.retry_via = RetryVia::Broker;
    can.max_retry_delay = MAX_RETRY_DELAY;
    can.dead_letter = true;
    can.tombstones = true;
    can.typed_headers = true;
    can.delivery_count = DeliveryCount::Receives;
    can.durable = true;
    can.purge = true;
    can.stats = true;
    can
}

#[async_trait]
impl Broker for SqsBroker {
    fn capabilities(&self) -> Arc<Capabilities> {
        Arc::new(capabilities(None, MAX_MESSAGE, self.core.config.max_delay()))
    }

    async fn producer(&self, to: &Address, options: &ProducerOptions) -> Result<Arc<dyn Producer>> {
        self.open()?;
        let name = queues::name_of(to)?;
        let fifo = queues::is_fifo(name);
        Native::of_queue(&options.native, fifo)?;
        if fifo {
            producer::check_fifo(options.deadline).map_err(|e| e.with_context("address", name))?;
        }
        self.core.queues.url(name).await?;
        let (max_message, max_batch) = self.limits(name).await?;
        let can = capabilities(Some(fifo), max_message, self.core.config.max_delay());
        Ok(SqsProducer::open(self.core.clone(), name, can, max_batch, options))
    }

    async fn consumer(&self, from: &Source, options: &ConsumerOptions) -> Result<Arc<dyn Consumer>> {
        self.open()?;
        let name = queues::name_of(&from.address)?;
        let fifo = queues::is_fifo(name);
        Native::of_queue(&options.native, fifo)?;
        if from.group.is_some() {
            return Err(Error::unsupported("an SQS queue has no groups").with_context("address", name));
        }
        if from.start != Start::Committed {
            return Err(Error::unsupported("SQS cannot replay").with_context("address", name));
        }
        match options.ordering {
            Ordering::None => {}
            Ordering::PerKey if fifo => {}
            _ => return Err(Error::unsupported("only FIFO queues keep order, per key").with_context("address", name)),
        }
        if options.lease > MAX_LEASE {
            return Err(Error::unsupported("a lease is 12 hours at most").with_context("address", name));
        }
        let url = match self.core.queues.find(name).await {
            // A URL needs no right to be found: whether it leads anywhere shows when it is polled.
            Err(error) if error.kind() == ErrorKind::Unauthorized => self.core.queues.url(name).await?,
            found => found?,
        };
        let can = capabilities(Some(fifo), MAX_MESSAGE, self.core.config.max_delay());
        Ok(SqsConsumer::open(self.core.clone(), name, url, can, options))
    }

    async fn declare(&self, topology: &Topology) -> Result<()> {
        self.open()?;
        topology::declare(&self.core.queues, topology, true).await
    }

    async fn verify(&self, topology: &Topology) -> Result<()> {
        self.open()?;
        topology::declare(&self.core.queues, topology, false).await
    }

    async fn delete(&self, address: &Address) -> Result<()> {
        self.open()?;
        self.core.queues.delete(queues::name_of(address)?).await
    }

    async fn purge(&self, address: &Address) -> Result<()> {
        self.open()?;
        self.core.queues.purge(queues::name_of(address)?).await
    }

    async fn stats(&self, source: &Source) -> Result<Stats> {
        self.open()?;
        let asked = [Attribute::ApproximateNumberOfMessages, Attribute::ApproximateNumberOfMessagesNotVisible];
        let found = self.core.queues.attributes(queues::name_of(&source.address)?, &asked).await?;
        let number = |name: &Attribute| found.get(name).and_then(|n| n.parse().ok());
        let mut stats = Stats::default();
        stats.ready = number(&asked[0]);
        stats.in_flight = number(&asked[1]);
        stats.approximate = true;
        Ok(stats)
    }

    fn health(&self) -> Health {
        self.core.link.events().health()
    }

    async fn ping(&self) -> Result<()> {
        self.open()?;
        self.core.link.ping().await
    }

    fn native(&self) -> &(dyn Any + Send + Sync) {
        &self.client
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        self.core.closed.store(true, Atomic::Release);
        let opened: Vec<_> = std::mem::take(&mut *self.core.opened.lock()).iter().filter_map(Weak::upgrade).collect();
        for child in &opened {
            child.begin_close();
        }
        let mut tasks = std::mem::take(&mut *self.core.tasks.lock());
        let ended = timeout_at(deadline, async { while tasks.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            for child in &opened {
                child.abandon();
            }
            // What is left are polls under way, whose messages would be away for a lease if nobody gave them back, and
            // their answers. Both have their own deadlines.
            tasks.detach_all();
        }
        self.core.link.close();
        let mut report = CloseReport::default();
        for child in opened {
            report.merge(child.left());
        }
        report
    }
}
