//! The broker and its driver.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Weak};

use async_trait::async_trait;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;

use super::consumer::MemoryConsumer;
use super::producer::MemoryProducer;
use super::profile::Profile;
use super::queue::Queue;
use super::topic::Topic;
use crate::address::{Address, Source, Start};
use crate::broker::{Broker, CloseReport, ConsumerOptions, Driver, Options, ProducerOptions, Stats};
use crate::capability::Capabilities;
use crate::config::{Endpoint, option_names};
use crate::consumer::Consumer;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Health, HealthState};
use crate::producer::Producer;
use crate::topology::{Entry, Topology};

/// The driver of the embedded broker.
pub const DRIVER: Driver = Driver::new("memory", &["memory"], option_names::<MemoryConfig>, |endpoint, _events| {
    Box::pin(async move { Ok(Arc::new(MemoryBroker::open(&endpoint)?) as Arc<dyn Broker>) })
});

/// Options of the embedded broker.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct MemoryConfig {
    /// Whose limits and habits to take on. Default: its own.
    pub profile: Profile,
    /// Most messages in a queue; a send beyond it waits for room. Also the messages that a topic keeps for new groups
    /// and replay. Default: 1,000,000.
    pub capacity: usize,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { profile: Profile::Memory, capacity: 1_000_000 }
    }
}

/// What every handle of one embedded broker shares.
pub(super) struct Shared {
    pub(super) profile: Profile,
    capacity: usize,
    queues: Mutex<HashMap<String, Arc<Queue>>>,
    topics: Mutex<HashMap<String, Arc<Topic>>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("profile", &self.profile).finish_non_exhaustive()
    }
}

impl Shared {
    /// The queue of this name; that of a group is called `<topic>--<group>`.
    pub(super) fn queue(&self, name: &str) -> Option<Arc<Queue>> {
        if let Some(queue) = self.queues.lock().get(name) {
            return Some(queue.clone());
        }
        let (topic, group) = name.split_once("--")?;
        self.topic(topic)?.find_group(group)
    }

    pub(super) fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.topics.lock().get(name).cloned()
    }
}

/// Brokers with a name, for as long as somebody holds them.
static NAMED: LazyLock<Mutex<HashMap<String, Weak<Shared>>>> = LazyLock::new(Mutex::default);

/// A connection to an embedded broker.
#[derive(Debug)]
pub struct MemoryBroker {
    connection: Arc<Connection>,
    capabilities: Arc<Capabilities>,
}

/// One connection: closing it leaves the others of a shared broker alone.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    closed: AtomicBool,
    /// Those that wait for messages; a close wakes them.
    pollers: Mutex<Vec<Weak<AtomicWaker>>>,
}

impl std::ops::Deref for Connection {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Connection {
    pub(super) fn poller(&self) -> Arc<AtomicWaker> {
        let poller = Arc::new(AtomicWaker::new());
        let mut pollers = self.pollers.lock();
        pollers.retain(|p| p.strong_count() > 0);
        pollers.push(Arc::downgrade(&poller));
        poller
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl MemoryBroker {
    /// Makes a broker of its own.
    #[must_use]
    pub fn new(config: &MemoryConfig) -> Self {
        Self::over(Arc::new(Shared {
            profile: config.profile,
            capacity: config.capacity.max(1),
            queues: Mutex::default(),
            topics: Mutex::default(),
        }))
    }

    fn over(shared: Arc<Shared>) -> Self {
        let capabilities = Arc::new(shared.profile.capabilities());
        let connection = Arc::new(Connection { shared, closed: AtomicBool::new(false), pollers: Mutex::default() });
        Self { connection, capabilities }
    }

    fn open(endpoint: &Endpoint) -> Result<Self> {
        let config: MemoryConfig = endpoint.options()?;
        let refuse = |why| Err(Error::new(ErrorKind::InvalidConfig, why));
        if config.capacity == 0 {
            return refuse("capacity is at least 1");
        }
        if endpoint.hosts.len() > 1 || endpoint.path.is_some() || endpoint.user.is_some() {
            return refuse("a memory URL reads memory:// or memory://name");
        }
        let Some(name) = endpoint.hosts.first().map(|h| h.with_default_port(1)) else {
            return Ok(Self::new(&config));
        };
        let mut named = NAMED.lock();
        named.retain(|_, shared| shared.strong_count() > 0);
        if let Some(shared) = named.get(&name).and_then(Weak::upgrade) {
            if shared.profile != config.profile {
                let why = "the memory broker of this name has another profile";
                return Err(
                    Error::new(ErrorKind::Conflict, why).with_context("profile", format!("{:?}", shared.profile))
                );
            }
            return Ok(Self::over(shared));
        }
        let broker = Self::new(&config);
        named.insert(name, Arc::downgrade(&broker.connection.shared));
        Ok(broker)
    }

    fn check(&self) -> Result<()> {
        if self.connection.is_closed() { Err(Error::closed("broker")) } else { Ok(()) }
    }

    fn declare_entry(&self, entry: &Entry) -> Result<()> {
        let shared = &self.connection.shared;
        no_native(&entry.native)?;
        let name = entry.address.name();
        if !entry.address.is_topic() {
            let make = || Arc::new(Queue::new(name, shared.profile, shared.capacity));
            shared.queues.lock().entry(name.to_owned()).or_insert_with(make);
            return Ok(());
        }
        if !self.capabilities.topics {
            return Err(Error::unsupported("this profile has no topics").with_context("address", &entry.address));
        }
        let make = || Arc::new(Topic::new(name, shared.profile, shared.capacity));
        let topic = shared.topics.lock().entry(name.to_owned()).or_insert_with(make).clone();
        // A group that exists gets what comes from now on, as a bound queue does; where groups have a backlog it is
        // made by its first receiver.
        if let Some(group) = &entry.group
            && !self.capabilities.group_backlog
        {
            topic.group(group, Start::Committed);
        }
        Ok(())
    }

    fn find(&self, source: &Source) -> Result<Option<Arc<Queue>>> {
        let missing = || Error::new(ErrorKind::NotFound, "there is no such address").with_context("source", source);
        let name = source.address.name();
        if !source.address.is_topic() {
            return self.connection.queue(name).map(Some).ok_or_else(missing);
        }
        let topic = self.connection.topic(name).ok_or_else(missing)?;
        Ok(source.group.as_ref().and_then(|group| topic.find_group(group)))
    }
}

fn no_native(native: &Options) -> Result<()> {
    if native.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = native.keys().map(String::as_str).collect();
    Err(Error::unsupported("the memory broker has no native options").with_context("options", names.join(", ")))
}

#[async_trait]
impl Broker for MemoryBroker {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.capabilities.clone()
    }

    async fn producer(&self, to: &Address, options: &ProducerOptions) -> Result<Arc<dyn Producer>> {
        self.check()?;
        no_native(&options.native)?;
        Ok(Arc::new(MemoryProducer::new(self.connection.clone(), to.clone(), options.require_route)))
    }

    async fn consumer(&self, from: &Source, options: &ConsumerOptions) -> Result<Arc<dyn Consumer>> {
        self.check()?;
        no_native(&options.native)?;
        let name = from.address.name();
        let queue = if from.address.is_topic() {
            let topic = self.connection.topic(name);
            match &from.group {
                Some(group) => topic.and_then(|t| t.group(group, from.start)),
                None => topic.and_then(|t| t.subscriber(from.start)),
            }
        } else if from.start == Start::Committed {
            self.connection.queue(name)
        } else {
            return Err(Error::unsupported("a queue cannot be replayed").with_context("address", &from.address));
        };
        let missing = || Error::new(ErrorKind::NotFound, "there is no such address").with_context("source", from);
        let queue = queue.ok_or_else(missing)?;
        Ok(Arc::new(MemoryConsumer::new(self.connection.clone(), queue, from, options)))
    }

    async fn declare(&self, topology: &Topology) -> Result<()> {
        self.check()?;
        topology.entries().iter().try_for_each(|entry| self.declare_entry(entry))
    }

    async fn verify(&self, topology: &Topology) -> Result<()> {
        self.check()?;
        topology.entries().iter().try_for_each(|entry| self.find(&entry.source()).map(drop))
    }

    async fn delete(&self, address: &Address) -> Result<()> {
        self.check()?;
        if address.is_topic() {
            let topic = self.connection.shared.topics.lock().remove(address.name());
            if let Some(topic) = topic {
                topic.delete();
            }
        } else {
            let queue = self.connection.shared.queues.lock().remove(address.name());
            if let Some(queue) = queue {
                queue.delete();
            }
        }
        Ok(())
    }

    async fn purge(&self, address: &Address) -> Result<()> {
        self.check()?;
        let missing = || Error::new(ErrorKind::NotFound, "there is no such address").with_context("address", address);
        if address.is_topic() {
            let topic = self.connection.topic(address.name()).ok_or_else(missing)?;
            topic.forget();
            topic.queues().iter().for_each(|queue| queue.purge());
        } else {
            self.connection.queue(address.name()).ok_or_else(missing)?.purge();
        }
        Ok(())
    }

    async fn stats(&self, source: &Source) -> Result<Stats> {
        self.check()?;
        Ok(self.find(source)?.map(|queue| queue.stats()).unwrap_or_default())
    }

    fn health(&self) -> Health {
        if self.connection.is_closed() {
            return Health::up().with_problem(HealthState::Down, "the broker is closed");
        }
        Health::up()
    }

    async fn ping(&self) -> Result<()> {
        self.check()
    }

    fn native(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    async fn close(&self, _deadline: Instant) -> CloseReport {
        self.connection.closed.store(true, Ordering::Release);
        let pollers = std::mem::take(&mut *self.connection.pollers.lock());
        pollers.iter().filter_map(Weak::upgrade).for_each(|p| p.wake());
        CloseReport::default()
    }
}
