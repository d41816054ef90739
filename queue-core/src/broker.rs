//! The contract of a broker.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::address::{Address, Source};
use crate::capability::{Capabilities, Ordering};
use crate::config::Endpoint;
use crate::consumer::Consumer;
use crate::error::{Error, Result};
use crate::event::{Events, Health};
use crate::producer::Producer;
use crate::request::Requests;
use crate::topology::Topology;
use crate::transaction::Transactions;

/// A kind of broker that can be connected to by URL.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Driver {
    /// The name of the kind, such as `rabbitmq`.
    pub name: &'static str,
    /// URL schemes, without `://`.
    pub schemes: &'static [&'static str],
    /// Every option of the driver, for the message about an unknown one.
    pub options: fn() -> &'static [&'static str],
    /// Connects.
    pub connect: Connect,
}

/// Connects to the endpoint; events and problems go to the sink. Bounded by the endpoint's `connect_timeout`.
pub type Connect = fn(Endpoint, Events) -> BoxFuture<'static, Result<Arc<dyn Broker>>>;

impl Driver {
    /// Describes a kind of broker.
    #[must_use]
    pub const fn new(
        name: &'static str,
        schemes: &'static [&'static str],
        options: fn() -> &'static [&'static str],
        connect: Connect,
    ) -> Self {
        Self { name, schemes, options, connect }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("name", &self.name).field("schemes", &self.schemes).finish()
    }
}

/// What a producer is opened with.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ProducerOptions {
    /// How long a message may take in all; the handle answers at this time, so nothing is gained by holding it longer.
    pub deadline: Duration,
    /// Most messages in flight; the handle keeps the window, this is for sizing buffers.
    pub window: usize,
    /// Whether a message that reaches no queue is an error on a topic as well. Always so for queues.
    pub require_route: bool,
    /// The broker's own options of the address. What they say about its making is the business of `declare`, which got
    /// them too.
    pub native: Options,
    /// Where events go.
    pub events: Events,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            window: 8192,
            require_route: false,
            native: Options::new(),
            events: Events::new(),
        }
    }
}

/// What a consumer is opened with.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConsumerOptions {
    /// Most messages that the consumer may have fetched and not seen answered.
    pub prefetch: usize,
    /// Most bytes of those; a single larger message still passes.
    pub prefetch_bytes: usize,
    /// How long a message is leased where leases are finite.
    pub lease: Duration,
    /// The order that the receiver asked for.
    pub ordering: Ordering,
    /// The broker's own options of the address. What they say about its making is the business of `declare`, which got
    /// them too; the rest, such as how a topic without a group is read, is the consumer's.
    pub native: Options,
    /// Where events go.
    pub events: Events,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self {
            prefetch: 256,
            prefetch_bytes: 64 << 20,
            lease: Duration::from_secs(30),
            ordering: Ordering::None,
            native: Options::new(),
            events: Events::new(),
        }
    }
}

/// Figures about a source, each where the broker tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Messages that wait.
    pub ready: Option<u64>,
    /// Messages handed out and not answered.
    pub in_flight: Option<u64>,
    /// Age of the oldest message.
    pub oldest: Option<Duration>,
    /// Receivers.
    pub consumers: Option<u64>,
    /// Messages behind the end of the log, in all partitions.
    pub lag: Option<u64>,
    /// Whether `ready` may be behind or off, as that of a broker that estimates.
    pub approximate: bool,
    /// Figures by partition, in the order of their numbers; empty where there are none, or the broker does not tell.
    pub partitions: Vec<PartitionStats>,
}

/// Figures about one partition of a source, each where the broker tells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionStats {
    /// The partition's number, as in [`Position::partition`](crate::Position::partition).
    pub partition: u32,
    /// Messages behind the end of its log. Those of all partitions add up to [`Stats::lag`].
    pub lag: Option<u64>,
}

/// What a close could not do.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CloseReport {
    /// Sent messages without a verdict: the broker may or may not have them.
    pub unconfirmed: usize,
    /// Messages that were handed out and not answered; the broker hands them out again.
    pub unanswered: usize,
    /// Fetched messages given back without having been handed out.
    pub released: usize,
    /// What went wrong.
    pub errors: Vec<Error>,
}

impl CloseReport {
    /// Whether nothing was left undone.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.unconfirmed == 0 && self.unanswered == 0 && self.errors.is_empty()
    }

    /// Adds another report to this one.
    pub fn merge(&mut self, other: Self) {
        self.unconfirmed += other.unconfirmed;
        self.unanswered += other.unanswered;
        self.released += other.released;
        self.errors.extend(other.errors);
    }
}

/// A connection to a broker.
///
/// # Contract
/// * Every method may be called concurrently. Every wait is bounded: an unreachable, blocked or frozen broker is an
///   error after at most the configured timeout, never a hang.
/// * The adapter reconnects by itself, with everything that was open, and retries nothing else: repeated sends are the
///   handle's business.
/// * Dropping the future of any method loses no message and leaks nothing.
/// * Wrappers override every method, those with a default too.
#[async_trait]
pub trait Broker: fmt::Debug + Send + Sync + 'static {
    /// What this broker can do at most.
    fn capabilities(&self) -> Arc<Capabilities>;

    /// Opens a producer. Declares nothing. A missing address is `NotFound` here where the broker can tell, else at
    /// the send.
    async fn producer(&self, to: &Address, options: &ProducerOptions) -> Result<Arc<dyn Producer>>;

    /// Opens a consumer. Declares nothing; a missing address is `NotFound`. For a topic without a group (and any
    /// `Start::Latest`), the position is taken when this returns.
    async fn consumer(&self, from: &Source, options: &ConsumerOptions) -> Result<Arc<dyn Consumer>>;

    /// Creates what is missing. What exists is taken as it is, unless an entry asks for something that differs:
    /// that is a `Conflict`. Idempotent.
    async fn declare(&self, topology: &Topology) -> Result<()>;

    /// Checks that everything exists as asked, and changes nothing. `NotFound` or `Conflict` otherwise.
    async fn verify(&self, topology: &Topology) -> Result<()>;

    /// Deletes the address with everything the adapter made for it (the queues of a topic's groups). Idempotent:
    /// what does not exist is deleted.
    async fn delete(&self, address: &Address) -> Result<()>;

    /// Removes every message that waits.
    async fn purge(&self, address: &Address) -> Result<()>;

    /// Figures about a source.
    async fn stats(&self, source: &Source) -> Result<Stats>;

    /// How the connection is doing; no network call.
    fn health(&self) -> Health;

    /// Asks the broker for any answer.
    async fn ping(&self) -> Result<()>;

    /// The broker's own client, as the adapter's docs say.
    fn native(&self) -> &(dyn Any + Send + Sync);

    /// Requests with replies, where the capability `requests` is declared.
    fn requests(&self) -> Option<&dyn Requests> {
        None
    }

    /// Transactions, where the capability `transactions` is declared.
    fn transactions(&self) -> Option<&dyn Transactions> {
        None
    }

    /// Closes everything that was opened from here. Idempotent; a second call has an empty report.
    async fn close(&self, deadline: Instant) -> CloseReport;
}

/// Wraps a broker to change how it behaves: tracing, fault injection, encryption.
///
/// A layer wraps the broker and, where it needs to, the producers and consumers it opens. It implements every method,
/// and passes the conformance suite.
pub trait BrokerLayer: fmt::Debug + Send + Sync {
    /// Wraps `inner`.
    fn layer(&self, inner: Arc<dyn Broker>) -> Arc<dyn Broker>;
}

/// Options of a driver, as given by URL, environment or file: names and texts.
pub type Options = BTreeMap<String, String>;
