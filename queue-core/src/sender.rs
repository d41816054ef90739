//! The handle that sends.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde::Deserialize;
use tokio::time::Instant;

use crate::address::Address;
use crate::broker::{CloseReport, Options, ProducerOptions};
use crate::capability::Capabilities;
use crate::client::{Client, ClientInner};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::observe::{Sending, Subject};
use crate::outbox::Outbox;
use crate::producer::Receipt;
use crate::topology::{Declare, Entry, Topology};
use crate::verdict::{BatchError, BatchVerdict, Receipts, Verdict};

/// What a sender does with a message that the broker may or may not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OnUnknown {
    /// Sends it again with the same id until the deadline: at least once. The receipt says `retried`.
    #[default]
    Retry,
    /// Fails with [`Outcome::Unknown`](crate::Outcome::Unknown).
    Fail,
}

/// Options of a sender.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SenderConfig {
    /// How long a send may take in all, waits for room and retries included; messages that are sent one soon after the
    /// other may get up to a thousandth more. Default: 30 s.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// What becomes of a message that the broker may or may not have. Default: `retry`.
    pub on_unknown: OnUnknown,
    /// Most messages in flight. Default: 8,192.
    pub window: usize,
    /// Most bytes in flight; a single larger message still passes. Default: 64 MiB.
    pub window_bytes: usize,
    /// How long a single send waits for company where the broker charges per request. Default: 2 ms.
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
    /// Whether a message that reaches no queue is an error on a topic as well. Default: false.
    pub require_route: bool,
    /// What opening does about the address. Default: `create`.
    pub declare: Declare,
    /// The broker's own options of the address, by its own names. In a file they stand under the name of the broker's
    /// scheme (`amqp.x-max-length = 1000`); those under other schemes are left alone. Default: none.
    #[serde(skip)]
    pub native: Options,
}

impl Default for SenderConfig {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            on_unknown: OnUnknown::Retry,
            window: 8192,
            window_bytes: 64 << 20,
            linger: Duration::from_millis(2),
            require_route: false,
            declare: Declare::Create,
            native: Options::new(),
        }
    }
}

/// Opens a [`Sender`]; await it.
#[must_use = "a builder does nothing until it is awaited"]
#[derive(Debug)]
pub struct SenderBuilder {
    target: Result<(Client, Address)>,
    config: SenderConfig,
}

impl SenderBuilder {
    pub(crate) fn new(target: Result<(Client, Address)>, config: SenderConfig) -> Self {
        Self { target, config }
    }

    /// Replaces all options.
    pub fn config(mut self, config: SenderConfig) -> Self {
        self.config = config;
        self
    }

    /// How long a send may take in all. Default: 30 s.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.config.deadline = deadline;
        self
    }

    /// What becomes of a message that the broker may or may not have. Default: it is sent again.
    pub fn on_unknown(mut self, on_unknown: OnUnknown) -> Self {
        self.config.on_unknown = on_unknown;
        self
    }

    /// Most messages in flight. Default: 8,192.
    pub fn window(mut self, messages: usize) -> Self {
        self.config.window = messages;
        self
    }

    /// Most bytes in flight. Default: 64 MiB.
    pub fn window_bytes(mut self, bytes: usize) -> Self {
        self.config.window_bytes = bytes;
        self
    }

    /// How long a single send waits for company where the broker charges per request. Default: 2 ms.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.config.linger = linger;
        self
    }

    /// Whether a message that reaches no queue is an error on a topic as well. Default: false.
    pub fn require_route(mut self, require: bool) -> Self {
        self.config.require_route = require;
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

impl IntoFuture for SenderBuilder {
    type Output = Result<Sender>;
    type IntoFuture = BoxFuture<'static, Result<Sender>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.open().await.map_err(|e| e.with_operation("open sender")) })
    }
}

impl SenderBuilder {
    async fn open(self) -> Result<Sender> {
        let Self { target, config } = self;
        let (client, to) = target?;
        let inner = client.inner();
        inner.check_open()?;
        checked(&config)?;
        inner.register_name(&to)?;
        let mut entry = Entry::new(to.clone());
        entry.native.clone_from(&config.native);
        let topology = Topology::from_iter([entry]);
        inner.prepare(config.declare, &topology).await?;
        let options = ProducerOptions {
            deadline: config.deadline,
            window: config.window,
            require_route: config.require_route,
            native: config.native.clone(),
            events: inner.events.clone(),
        };
        let opened = inner.broker.producer(&to, &options).await;
        let producer = opened.map_err(|e| e.with_context("address", &to))?;
        let subject = Subject::address(inner.system, &to);
        let outbox = Outbox::start(to, producer, config, false, inner.events.clone());
        inner.track_sender(&outbox);
        Ok(Sender { shared: Arc::new(Shared { outbox, subject, _client: inner.clone() }) })
    }
}

fn checked(config: &SenderConfig) -> Result<()> {
    let bad = |option: &'static str| {
        let why = format!("{option} is more than nothing");
        Err(Error::new(ErrorKind::InvalidConfig, why).with_context("option", option))
    };
    match config {
        SenderConfig { window: 0, .. } => bad("window"),
        SenderConfig { window_bytes: 0, .. } => bad("window_bytes"),
        SenderConfig { deadline: Duration::ZERO, .. } => bad("deadline"),
        _ => Ok(()),
    }
}

struct Shared {
    outbox: Arc<Outbox>,
    subject: Subject,
    /// Keeps the broker while a sender lives.
    _client: Arc<ClientInner>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.outbox.abandon();
    }
}

/// Sends messages to one address. Cheap to clone; clones share the window.
///
/// A send that returns `Ok` was accepted by the broker. One that fails says by
/// [`outcome`](Error::outcome) whether the broker may have the message.
///
/// # Examples
/// ```
/// # use queue_core::{Client, Message, memory};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> queue_core::Result<()> {
/// let client = Client::connect_with("memory://", &[memory::DRIVER]).await?;
/// let orders = client.sender("orders").await?;
/// orders.send("hello").await?;
/// orders.send_batch(["a", "b", "c"]).await?;
/// let verdict = orders.submit(Message::new("d").key("user-7")).await?;
/// verdict.await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Sender {
    shared: Arc<Shared>,
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("address", self.address()).finish_non_exhaustive()
    }
}

impl Sender {
    fn outbox(&self) -> &Arc<Outbox> {
        &self.shared.outbox
    }

    /// Sends a message and waits until the broker has it.
    ///
    /// # Errors
    /// Before anything is sent: `TooLarge`, `Unsupported`, `InvalidInput`, `Closed`. From the broker: `Unroutable`,
    /// `Rejected`, `NotFound`, `Unauthorized`; `Connection`, `Timeout` or `Throttled` when the deadline passed.
    ///
    /// # Cancel safety
    /// Dropped before it waits for the broker, nothing was sent; dropped later, the message goes on and only the
    /// verdict is lost.
    pub async fn send(&self, message: impl Into<Message>) -> Result<Receipt> {
        self.submit(message).await?.await
    }

    /// Sends messages and waits until each has a verdict. They are cut to what the broker takes at once.
    ///
    /// # Errors
    /// [`BatchError`] names those that failed; the others were accepted.
    ///
    /// # Cancel safety
    /// Dropped, messages that were handed to the broker go on; those that waited for room were not sent.
    pub async fn send_batch<I>(&self, messages: I) -> Result<Receipts, BatchError>
    where
        I: IntoIterator,
        I::Item: Into<Message>,
    {
        let messages: Vec<Message> = messages.into_iter().map(Into::into).collect();
        self.batch(messages).await
    }

    async fn batch(&self, mut messages: Vec<Message>) -> Result<Receipts, BatchError> {
        let mut sending = self.observe(&mut messages);
        let block = self.outbox().send_all(messages).await;
        let sent = BatchVerdict(block).await;
        if sending.is_on() {
            let failures = sent.as_ref().err().map(BatchError::failures).unwrap_or_default();
            sending.end(failures.len(), failures.first().map(|(_, error)| error));
        }
        sent
    }

    #[inline]
    fn observe(&self, messages: &mut [Message]) -> Sending {
        Sending::begin(&self.shared.subject, messages, self.outbox().capabilities())
    }

    /// Hands a message over as soon as there is room in the window, and returns the future of its verdict. The
    /// messages of one task keep their order.
    ///
    /// # Errors
    /// What is known before anything is sent (see [`send`](Self::send)); `Timeout` when there was no room before the
    /// deadline.
    ///
    /// # Cancel safety
    /// Dropped, nothing was sent.
    pub async fn submit(&self, message: impl Into<Message>) -> Result<Verdict> {
        let mut message = message.into();
        let mut sending = self.observe(std::slice::from_mut(&mut message));
        let submitted = self.outbox().submit(message).await;
        if submitted.is_err() {
            sending.end_one(&submitted);
        }
        submitted.map(|slot| Verdict::observed(slot, sending))
    }

    /// A [`futures::Sink`] that submits messages; its flush waits for every verdict and returns the first failure.
    #[must_use]
    pub fn sink(&self) -> crate::sink::SenderSink {
        crate::sink::SenderSink::new(self.clone())
    }

    /// What the address can do, exactly.
    #[must_use]
    pub fn capabilities(&self) -> Arc<Capabilities> {
        self.outbox().capabilities().clone()
    }

    /// Where messages go.
    #[must_use]
    pub fn address(&self) -> &Address {
        self.outbox().address()
    }

    /// Waits until every message that was handed over before has its verdict.
    ///
    /// # Errors
    /// `Closed` after a close.
    pub fn flush(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        let outbox = self.outbox().clone();
        async move { outbox.flush().await }
    }

    /// Takes no more messages, waits at most this long for the verdicts of what is in flight, and closes for every
    /// clone. What is left then is `Unknown`. Closing twice is fine.
    pub async fn close(&self, within: Duration) -> CloseReport {
        self.outbox().close(crate::memory::far(Instant::now(), within)).await
    }
}

/// An error that says which address and operation it belongs to.
pub(crate) fn named(error: Error, address: &Address) -> Error {
    error.with_operation("send").with_context("address", address)
}
