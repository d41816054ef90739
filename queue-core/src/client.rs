//! The handle of a connection.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use crate::address::{Address, AddressKind, Source};
use crate::broker::{Broker, CloseReport, Driver, Stats};
use crate::capability::Capabilities;
use crate::config::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{EventKind, EventStream, Events, Health, HealthState};
use crate::inbox::Inbox;
use crate::message::Message;
use crate::outbox::Outbox;
use crate::receiver::{ReceiverBuilder, ReceiverConfig};
use crate::redrive::RedriveBuilder;
use crate::registry;
use crate::request::{Desk, RequestBuilder};
use crate::sender::{SenderBuilder, SenderConfig};
use crate::topology::{Declare, Topology};
use crate::transactor::TransactorBuilder;

/// The kind of a broker that was not connected by a driver.
const OTHER: &str = "_OTHER";

/// A connection to a broker, from which senders and receivers are opened. Cheap to clone.
///
/// ```
/// # use queue_core::{Client, memory};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> queue_core::Result<()> {
/// let client = Client::connect_with("memory://?prefetch=64", &[memory::DRIVER]).await?;
/// let orders = client.sender("orders").await?;
/// let mut inbox = client.receiver("orders").prefetch(512).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client(Arc<ClientInner>);

pub(crate) struct ClientInner {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) events: Events,
    /// What kind of broker it is, in spans and metrics.
    pub(crate) system: &'static str,
    sender_defaults: SenderConfig,
    receiver_defaults: ReceiverConfig,
    names: Mutex<HashMap<String, AddressKind>>,
    senders: Mutex<Vec<Weak<Outbox>>>,
    receivers: Mutex<Vec<Weak<Inbox>>>,
    dropped: Mutex<HashMap<String, u64>>,
    pub(crate) desk: Arc<Desk>,
    closed: AtomicBool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("broker", &self.0.broker).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to the broker that the URL names, with one of these drivers. Options in the URL are those of the
    /// driver and those of [`SenderConfig`] and [`ReceiverConfig`], which become the defaults of every handle.
    ///
    /// # Errors
    /// `InvalidConfig`: malformed URL, unknown scheme, unknown option, a value that does not fit. `Connection` or
    /// `Timeout`: the broker cannot be reached within `connect_timeout` (default 10 s). `Unauthorized`.
    pub async fn connect_with(url: &str, drivers: &[Driver]) -> Result<Self> {
        registry::connect(url.parse()?, drivers).await
    }

    /// Connects to the broker that the environment names: `QUEUE_URL`, and `QUEUE_<OPTION>` for each option of the
    /// URL (`QUEUE_PREFETCH=256`), which wins over the URL's.
    ///
    /// # Errors
    /// As [`connect_with`](Self::connect_with); `InvalidConfig` without `QUEUE_URL`.
    pub async fn from_env_with(drivers: &[Driver]) -> Result<Self> {
        registry::connect(
            registry::endpoint_of(
                std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
            )?,
            drivers,
        )
        .await
    }

    /// Connects to an endpoint that was put together by the program.
    ///
    /// # Errors
    /// As [`connect_with`](Self::connect_with).
    pub async fn connect_endpoint(endpoint: Endpoint, drivers: &[Driver]) -> Result<Self> {
        registry::connect(endpoint, drivers).await
    }

    /// Makes a client over a broker of one's own: a wrapper, a test double, a broker made from a native client.
    #[must_use]
    pub fn from_broker(broker: Arc<dyn Broker>) -> Self {
        Self::new(OTHER, broker, Events::new(), SenderConfig::default(), ReceiverConfig::default())
    }

    pub(crate) fn new(
        system: &'static str,
        broker: Arc<dyn Broker>,
        events: Events,
        sender_defaults: SenderConfig,
        receiver_defaults: ReceiverConfig,
    ) -> Self {
        let inner = Arc::new(ClientInner {
            system,
            broker,
            events,
            sender_defaults,
            receiver_defaults,
            names: Mutex::default(),
            senders: Mutex::default(),
            receivers: Mutex::default(),
            dropped: Mutex::default(),
            desk: Desk::new(),
            closed: AtomicBool::new(false),
        });
        #[cfg(feature = "otel")]
        crate::observe::metrics::watch(&inner);
        Self(inner)
    }

    pub(crate) fn inner(&self) -> &Arc<ClientInner> {
        &self.0
    }

    /// The same connection behind a layer. Handles that are open already stay as they are.
    #[must_use]
    pub fn layer(&self, layer: &dyn crate::broker::BrokerLayer) -> Self {
        Self::new(
            self.0.system,
            layer.layer(self.0.broker.clone()),
            self.0.events.clone(),
            self.0.sender_defaults.clone(),
            self.0.receiver_defaults.clone(),
        )
    }

    /// Opens a sender: `client.sender("orders").await?`.
    pub fn sender<A: TryInto<Address>>(&self, to: A) -> SenderBuilder
    where
        Error: From<A::Error>,
    {
        let target = to.try_into().map_err(Error::from).map(|to| (self.clone(), to));
        SenderBuilder::new(target, self.0.sender_defaults.clone())
    }

    /// Opens a receiver: `client.receiver("topic:orders").group("billing").await?`.
    pub fn receiver<A: TryInto<Address>>(&self, from: A) -> ReceiverBuilder
    where
        Error: From<A::Error>,
    {
        let target = from.try_into().map_err(Error::from).map(|from| (self.clone(), from));
        ReceiverBuilder::new(target, self.0.receiver_defaults.clone())
    }

    /// Puts the dead letters of a queue, or of a topic's group, back: `client.redrive("orders").await?`.
    ///
    /// Each that came from there is sent back as a copy without the library's headers (`anyqueue-…`), so that it starts
    /// with attempt 1, and is acknowledged when the broker has confirmed the copy: at least once, never lost. It keeps body,
    /// key, id, headers and properties, and stands behind what waits. One that does not say where it came from (another
    /// program's) counts as this source's own; one that came from elsewhere stays.
    ///
    /// Each dead letter is looked at once. The pass ends with those that were there when it began, by the broker's count, or,
    /// where that is an estimate (SQS, Kafka), when nothing has come for [`idle`](RedriveBuilder::idle). What dies again
    /// meanwhile waits for another pass, by the clock of the receiver that gave it up. Nothing is created.
    ///
    /// ```
    /// # use queue_core::{Client, dead_letter, memory};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> queue_core::Result<()> {
    /// # let client = Client::connect_with("memory://", &[memory::DRIVER]).await?;
    /// # client.sender("orders").await?.send("hello").await?;
    /// let mut inbox = client.receiver("orders").await?;
    /// inbox.receive().await?.reject("the customer is unknown");
    /// inbox.flush().await?; // the dead letter is in orders-dlq
    ///
    /// let redriven = client
    ///     .redrive("orders")
    ///     .filter(|m| m.headers().get(dead_letter::REASON).and_then(|v| v.as_str()) == Some("the customer is unknown"))
    ///     .await?;
    /// assert_eq!((redriven.moved, redriven.kept), (1, 0));
    /// assert_eq!(inbox.receive().await?.attempt(), 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Before anything is looked at: `InvalidInput` where there is no dead-letter address (a topic without a group, dead
    /// letters that are discarded); `InvalidConfig` for one that is the source itself; `NotFound` where there is no such
    /// queue of dead letters, and where the broker tells it when a sender opens, none to put them back to; `Unsupported`,
    /// `Unauthorized`, `Connection`, `Timeout`. Later errors are told in [`Redriven`](crate::Redriven).
    ///
    /// # Cancel safety
    /// Dropped, nothing is lost: copies under way may arrive while their dead letters stay, which makes them come twice if
    /// they are put back again.
    pub fn redrive<A: TryInto<Address>>(&self, address: A) -> RedriveBuilder
    where
        Error: From<A::Error>,
    {
        let target = address.try_into().map_err(Error::from).map(|address| (self.clone(), address));
        RedriveBuilder::new(target, self.0.receiver_defaults.clone())
    }

    /// Opens the transactions of this name: `client.transactions("billing-1").await?`. See [`Transactor`](crate::Transactor).
    ///
    /// The name belongs to one instance of a program at a time, and is the same whenever that instance starts again: what
    /// its predecessor left open is given up then, and a predecessor that still runs is shut out.
    pub fn transactions(&self, name: impl Into<String>) -> TransactorBuilder {
        TransactorBuilder::new(self.clone(), name.into())
    }

    /// Sends a request to a queue and waits for the reply: `client.request("prices", "EUR/CHF").await?`.
    ///
    /// Whoever receives it answers by a [`Replier`](crate::Replier); the worker does so with what its handler returns.
    /// Replies that come late or twice, or are somebody else's, are ignored. Nothing is declared at the queue. A message
    /// without a time to live gets that of the request, or says in a header until when the reply is waited for, by this
    /// machine's clock, so that nobody works on what is not waited for any more.
    ///
    /// RabbitMQ replies directly, at most once. Elsewhere the first request opens an address that replies come to: a queue
    /// of the client's own, deleted when it closes, or, on Kafka, the topic `anyqueue-replies` that all share. There a
    /// request is sent as any message is, at least once, and outlives a worker that is killed.
    ///
    /// ```
    /// # use queue_core::{Client, memory};
    /// # async fn ask(client: Client) -> queue_core::Result<()> {
    /// use std::time::Duration;
    ///
    /// let reply = client.request("prices", "EUR/CHF").timeout(Duration::from_secs(5)).await?;
    /// println!("{:?}", reply.text());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// * `Remote`: whoever answered says why there is no answer; the context has under `sort` what is meant.
    /// * `Timeout`: no reply in time. `NotFound` or `Unroutable`: there is no such queue.
    /// * `Closed`: at once, when the client closes. `Throttled`: 8,192 requests wait.
    /// * `Unsupported`: a topic, a delay. Those of [`Sender::send`](crate::Sender::send), and of opening a receiver.
    ///
    /// [`Error::outcome`] is `Unknown` where the request may have reached the queue.
    ///
    /// # Cancel safety
    /// Dropped, the request is forgotten: it may have been sent, and its reply is ignored.
    pub fn request<A: TryInto<Address>>(&self, to: A, message: impl Into<Message>) -> RequestBuilder
    where
        Error: From<A::Error>,
    {
        let target = to.try_into().map_err(Error::from).map(|to| (self.clone(), to));
        RequestBuilder::new(target, message.into())
    }

    /// What the broker can do at most; a sender's and a receiver's own are exact.
    #[must_use]
    pub fn capabilities(&self) -> Arc<Capabilities> {
        self.0.broker.capabilities()
    }

    async fn bounded<T>(&self, operation: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
        /// Adapters bound their waits themselves; this is the backstop.
        const MOST: Duration = Duration::from_secs(60);
        self.0.check_open()?;
        match timeout(MOST, work).await {
            Ok(done) => done.map_err(|e| e.with_operation(operation)),
            Err(_) => Err(Error::new(ErrorKind::Timeout, "the broker did not answer").with_operation(operation)),
        }
    }

    /// Creates what is missing; see [`Broker::declare`].
    ///
    /// # Errors
    /// `Conflict`, `Unauthorized`, `Connection`, `Timeout`.
    pub async fn declare(&self, topology: &Topology) -> Result<()> {
        self.bounded("declare", self.0.broker.declare(topology)).await
    }

    /// Checks that everything exists as asked, and changes nothing.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Unauthorized`, `Connection`, `Timeout`.
    pub async fn verify(&self, topology: &Topology) -> Result<()> {
        self.bounded("verify", self.0.broker.verify(topology)).await
    }

    /// Deletes an address with its messages. Deleting what does not exist is fine.
    ///
    /// # Errors
    /// `Unauthorized`, `Connection`, `Timeout`.
    pub async fn delete<A: TryInto<Address>>(&self, address: A) -> Result<()>
    where
        Error: From<A::Error>,
    {
        let address = address.try_into()?;
        self.bounded("delete", self.0.broker.delete(&address)).await?;
        self.0.names.lock().remove(address.name());
        Ok(())
    }

    /// Removes every message that waits.
    ///
    /// # Errors
    /// `Unsupported`, `NotFound`, `Unauthorized`, `Connection`, `Timeout`.
    pub async fn purge<A: TryInto<Address>>(&self, address: A) -> Result<()>
    where
        Error: From<A::Error>,
    {
        let address = address.try_into()?;
        self.bounded("purge", self.0.broker.purge(&address)).await
    }

    /// Figures about a source, each where the broker tells it.
    ///
    /// # Errors
    /// `Unsupported`, `NotFound`, `Unauthorized`, `Connection`, `Timeout`.
    pub async fn stats(&self, source: &Source) -> Result<Stats> {
        self.bounded("stats", self.0.broker.stats(source)).await
    }

    /// How the connection and everything that was opened from it is doing; no network call.
    #[must_use]
    pub fn health(&self) -> Health {
        let mut health = self.0.broker.health();
        let own = self.0.events.health();
        health.state = health.state.max(own.state);
        health.problems.extend(own.problems);
        if self.0.closed.load(Ordering::Acquire) {
            health.closed = true;
            health = health.with_problem(HealthState::Down, "the client was closed");
        }
        health
    }

    /// Asks the broker for any answer.
    ///
    /// # Errors
    /// `Connection`, `Timeout`, `Unauthorized`.
    pub async fn ping(&self) -> Result<()> {
        self.bounded("ping", self.0.broker.ping()).await
    }

    /// What happens behind the handles, from now on.
    #[must_use]
    pub fn events(&self) -> EventStream {
        self.0.events.listen()
    }

    /// The broker behind the client.
    #[must_use]
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.0.broker
    }

    /// Closes every receiver, then every sender, then the connection, within this time in all. The report says what
    /// could not be done. Closing twice is fine.
    pub async fn close(&self, within: Duration) -> CloseReport {
        let mut report = CloseReport::default();
        // Every part is idempotent: a close that was dropped midway is taken up by the next.
        self.0.closed.store(true, Ordering::Release);
        self.0.desk.begin_close();
        let deadline = crate::memory::far(Instant::now(), within);
        let receivers = self.0.open_receivers();
        for part in join_all(receivers.iter().map(|r| r.close(deadline))).await {
            report.merge(part);
        }
        let senders: Vec<_> = self.0.senders.lock().iter().filter_map(|s| s.upgrade()).collect();
        for part in join_all(senders.iter().map(|s| s.close(deadline))).await {
            report.merge(part);
        }
        report.merge(self.0.desk.close(deadline).await);
        report.merge(self.0.broker.close(deadline).await);
        report
    }
}

impl ClientInner {
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::closed("client")) } else { Ok(()) }
    }

    /// A name is a queue or a topic, not both: on a log they would be the same thing.
    pub(crate) fn register_name(&self, address: &Address) -> Result<()> {
        let able = self.broker.capabilities();
        if address.is_topic() && !able.topics {
            let error = Error::unsupported("this broker has no topics").with_context("address", address);
            return Err(match able.topics_need {
                Some(need) => error.with_context("topics_need", need),
                None => error,
            });
        }
        match self.names.lock().entry(address.name().to_owned()) {
            Slot::Occupied(known) if *known.get() != address.kind() => {
                let why = "a name is used as a queue or as a topic, not both";
                Err(Error::new(ErrorKind::Conflict, why).with_context("address", address))
            }
            Slot::Occupied(_) => Ok(()),
            Slot::Vacant(free) => {
                free.insert(address.kind());
                Ok(())
            }
        }
    }

    pub(crate) async fn prepare(&self, declare: Declare, topology: &Topology) -> Result<()> {
        match declare {
            Declare::Create => self.broker.declare(topology).await,
            Declare::Verify => self.broker.verify(topology).await,
            Declare::Assume => Ok(()),
        }
    }

    pub(crate) fn track_sender(&self, outbox: &Arc<Outbox>) {
        let mut senders = self.senders.lock();
        senders.retain(|s| s.strong_count() > 0);
        senders.push(Arc::downgrade(outbox));
    }

    pub(crate) fn open_receivers(&self) -> Vec<Arc<Inbox>> {
        self.receivers.lock().iter().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn track_receiver(&self, inbox: &Arc<Inbox>) {
        let mut receivers = self.receivers.lock();
        receivers.retain(|r| r.strong_count() > 0);
        receivers.push(Arc::downgrade(inbox));
    }

    /// Counts a delivery that was dropped without an answer, and tells of the first of each source.
    pub(crate) fn warn_dropped(&self, source: &Source) {
        let source = source.to_string();
        let mut dropped = self.dropped.lock();
        let count = dropped.entry(source.clone()).or_default();
        *count += 1;
        let first = *count == 1;
        drop(dropped);
        if first {
            let why = "a delivery was dropped without an answer and is retried; further ones are not logged";
            self.events.emit(EventKind::Dropped, &source, Some(Error::new(ErrorKind::InvalidInput, why)));
        }
    }
}
