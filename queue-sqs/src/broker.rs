//! The broker: clients, queues, and everything that was opened from here.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use parking_lot::Mutex;
use queue_core::{
    Address, Broker, Capabilities, CloseReport, Consumer, ConsumerOptions, Endpoint, Error, ErrorKind, EventKind,
    Events, Health, Ordering, Producer, ProducerOptions, Result, Source, Start, Stats, Topology, request,
};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::address::{Kind, Target, is_fifo, name_of, queue_of, topic_name_of};
use crate::capabilities::{MAX_LEASE, MAX_MESSAGE, of_queue, of_topic};
use crate::config::{Clients, SqsConfig};
use crate::consumer::SqsConsumer;
use crate::error::{self, Words};
use crate::link::Link;
use crate::producer::{self, SqsProducer};
use crate::queues::Queues;
use crate::replies;
use crate::thread::Thread;
use crate::topics::{self, Topics};
use crate::topology::{self, Native};

/// The largest message of a broker that knows no such attribute: the limit of SQS until 2025, ElasticMQ's today.
const OLD_MAX_MESSAGE: usize = 256 << 10;

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
    pub(crate) topics: Option<Arc<Topics>>,
    closed: AtomicBool,
    /// Every task of every producer and consumer. They end by themselves once their owner is closed or dropped, at the
    /// latest when the poll under way has ended, and a lease or request timeout later.
    tasks: Mutex<JoinSet<()>>,
    /// Where those of receivers run, from the first on.
    thread: OnceLock<Option<Thread>>,
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
        self.spawn_on(&Handle::current(), task);
    }

    /// On the thread of requests; a runtime of one thread is as good.
    pub(crate) fn spawn_apart(&self, task: impl Future<Output = ()> + Send + 'static) {
        let current = Handle::current();
        if current.runtime_flavor() == RuntimeFlavor::CurrentThread {
            return self.spawn_on(&current, task);
        }
        match self.thread.get_or_init(|| Thread::start().ok()) {
            Some(thread) => {
                let keep = thread.clone();
                self.spawn_on(&thread.handle, async move {
                    task.await;
                    drop(keep);
                });
            }
            None => self.spawn_on(&current, task),
        }
    }

    fn spawn_on(&self, runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, runtime);
    }

    /// What topics are reached by, where there are any.
    fn topics(&self) -> Result<&Topics> {
        self.topics.as_deref().ok_or_else(topics::unsupported)
    }

    fn close_links(&self) {
        self.link.close();
        if let Some(topics) = &self.topics {
            topics.link().close();
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.close_links();
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
        let loaded = config.load().await?;
        let client = config.client(&loaded, &endpoint);
        let topics = topics::connect(&loaded, &endpoint, &config, &events);
        let broker = SqsBroker::build(client, topics, config, host.clone(), events.clone());
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
    /// retries are set as the defaults of [`SqsConfig`] say, in place of its own. No request is made. There are no topics.
    #[must_use]
    pub fn from_client(client: Client) -> Self {
        let host = format!("sqs {}", region(client.config().region()));
        Self::build(client, None, SqsConfig::default(), host, Events::new())
    }

    /// Uses clients of the caller's own, as [`from_client`](Self::from_client) does, the second one for topics. A topic
    /// that nothing makes is addressed by its ARN, because nobody tells the account.
    #[cfg(feature = "sns")]
    #[must_use]
    pub fn from_clients(sqs: Client, sns: aws_sdk_sns::Client) -> Self {
        let (config, events) = (SqsConfig::default(), Events::new());
        let host = format!("sns {}", region(sns.config().region()));
        let topics = Topics::new(&sns, None, host, &config, events.clone());
        let host = format!("sqs {}", region(sqs.config().region()));
        Self::build(sqs, Some(topics), config, host, events)
    }

    fn build(client: Client, topics: Option<Topics>, config: SqsConfig, host: String, events: Events) -> Self {
        let clients = Clients::new(&client, &config);
        let pinged = clients.once.clone();
        let link = Link::new(host, events, move || {
            let request = pinged.list_queues().max_results(1);
            Box::pin(
                async move { request.send().await.map(drop).map_err(|e| error::from_sdk("ping", &e, Words::Hidden)) },
            )
        });
        let queues =
            Arc::new(Queues::new(clients.clone(), link.clone(), config.account.clone(), config.defaults.clone()));
        let core = Core {
            clients,
            config,
            link,
            queues,
            topics: topics.map(Arc::new),
            closed: AtomicBool::new(false),
            tasks: Mutex::new(JoinSet::new()),
            thread: OnceLock::new(),
            opened: Mutex::default(),
        };
        Self { client, core: Arc::new(core) }
    }

    fn open(&self) -> Result<()> {
        if self.core.closed.load(Atomic::Acquire) { Err(Error::closed("broker")) } else { Ok(()) }
    }

    /// The same, with what is known of topics.
    fn with_topics(&self, mut can: Capabilities) -> Capabilities {
        can.topics = self.core.topics.is_some();
        can.topics_need = (!can.topics).then_some(topics::NEED);
        can
    }

    /// The queues that stand behind an address: for a topic that is there, those of its groups.
    async fn queues_of(&self, address: &Address) -> Result<Vec<String>> {
        if !address.is_topic() {
            return Ok(vec![name_of(address)?.to_owned()]);
        }
        match self.core.topics()?.groups(&self.core.queues, topic_name_of(address)?).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            other => other,
        }
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

fn region(of: Option<&aws_sdk_sqs::config::Region>) -> &str {
    of.map_or("(no region)", AsRef::as_ref)
}

#[async_trait]
impl Broker for SqsBroker {
    fn capabilities(&self) -> Arc<Capabilities> {
        Arc::new(self.with_topics(of_queue(None, MAX_MESSAGE, self.core.config.max_delay())))
    }

    async fn producer(&self, to: &Address, options: &ProducerOptions) -> Result<Arc<dyn Producer>> {
        self.open()?;
        let target = Target::of(to)?;
        let Kind { topic, fifo } = target.kind;
        if fifo {
            producer::check_fifo(options.deadline).map_err(|e| e.with_context("address", to))?;
        }
        let (can, max_batch) = if topic {
            topology::no_options(&options.native)?;
            producer::check_route(options.require_route).map_err(|e| e.with_context("address", to))?;
            self.core.topics().map_err(|e| e.with_context("address", to))?.locate(&target.name).await?;
            (of_topic(fifo), MAX_MESSAGE)
        } else {
            Native::of_queue(&options.native, fifo)?;
            self.core.queues.url(&target.name).await?;
            let (max_message, max_batch) = self.limits(&target.name).await?;
            (of_queue(Some(fifo), max_message, self.core.config.max_delay()), max_batch)
        };
        Ok(SqsProducer::open(self.core.clone(), target, self.with_topics(can), max_batch, options))
    }

    async fn consumer(&self, from: &Source, options: &ConsumerOptions) -> Result<Arc<dyn Consumer>> {
        self.open()?;
        if from.address.is_topic() {
            self.core.topics().map_err(|e| e.with_context("address", &from.address))?;
        }
        let name = &*queue_of(from)?;
        let fifo = is_fifo(name);
        Native::of_queue(&options.native, fifo)?;
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
        let can = self.with_topics(of_queue(Some(fifo), MAX_MESSAGE, self.core.config.max_delay()));
        Ok(SqsConsumer::open(self.core.clone(), name, url, can, options))
    }

    async fn declare(&self, topology: &Topology) -> Result<()> {
        self.open()?;
        topology::declare(&self.core.queues, self.core.topics.as_deref(), topology, true).await?;
        if topology.entries().iter().any(|entry| request::made_at(entry.address.name()).is_some()) {
            let queues = self.core.queues.clone();
            self.core.spawn(async move { replies::sweep(&queues).await });
        }
        Ok(())
    }

    async fn verify(&self, topology: &Topology) -> Result<()> {
        self.open()?;
        topology::declare(&self.core.queues, self.core.topics.as_deref(), topology, false).await
    }

    async fn delete(&self, address: &Address) -> Result<()> {
        self.open()?;
        for queue in self.queues_of(address).await? {
            self.core.queues.delete(&queue).await?;
        }
        if address.is_topic() {
            // Behind its groups, so that one that fails is found again.
            self.core.topics()?.delete(topic_name_of(address)?).await?;
        }
        Ok(())
    }

    async fn purge(&self, address: &Address) -> Result<()> {
        self.open()?;
        for queue in self.queues_of(address).await? {
            match self.core.queues.purge(&queue).await {
                // A group whose queue is gone has nothing, and the others are purged all the same.
                Err(error) if address.is_topic() && error.kind() == ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    async fn stats(&self, source: &Source) -> Result<Stats> {
        self.open()?;
        let asked = [Attribute::ApproximateNumberOfMessages, Attribute::ApproximateNumberOfMessagesNotVisible];
        let found = self.core.queues.attributes(&queue_of(source)?, &asked).await?;
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
        self.core.close_links();
        let mut report = CloseReport::default();
        for child in opened {
            report.merge(child.left());
        }
        report
    }
}

#[cfg(all(test, not(feature = "sns")))]
mod tests {
    use aws_sdk_sqs::config::BehaviorVersion;

    use super::*;

    #[tokio::test]
    async fn without_sns_the_missing_feature_is_named() {
        let config = aws_sdk_sqs::Config::builder().behavior_version(BehaviorVersion::v2026_01_12());
        let broker = Arc::new(SqsBroker::from_client(Client::from_conf(config.build())));
        let topic: Address = "topic:orders".parse().unwrap();
        let refused = [
            broker.producer(&topic, &ProducerOptions::default()).await.map(drop).unwrap_err(),
            broker.declare(&Topology::from_iter([queue_core::Entry::new(topic.clone())])).await.unwrap_err(),
            queue_core::Client::from_broker(broker).sender(topic).await.map(drop).unwrap_err(),
            SqsConfig::from_endpoint(&"sqs://h?sns_endpoint=http://h:1".parse().unwrap()).map(drop).unwrap_err(),
        ];
        for error in refused {
            assert!(matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::InvalidConfig), "{error}");
            assert!(error.to_string().contains("`sqs-sns`"), "{error}");
        }
        assert!(SqsConfig::from_endpoint(&"sqs://h?sns_endpoint=none".parse().unwrap()).is_ok());
    }
}
