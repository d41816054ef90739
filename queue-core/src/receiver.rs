//! The handle that receives.

use std::fmt;
use std::future::{IntoFuture, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering as Atomic;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use futures::future::BoxFuture;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use crate::address::{Address, Source, Start};
use crate::broker::{CloseReport, ConsumerOptions, ProducerOptions};
use crate::capability::{Capabilities, Ordering, RetryVia};
use crate::client::Client;
use crate::delivery::{Batch, Delivery, hold};
use crate::error::{Error, ErrorKind, Result};
use crate::inbox::{Inbox, Run};
use crate::outbox::{Outbox, Owned};
use crate::sender::SenderConfig;
use crate::topology::{Declare, Entry, Topology};

/// Messages that [`Receiver::next`] fetches at once.
const FETCH: usize = 256;

/// Options of a receiver.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ReceiverConfig {
    /// The group, for topics. Default: none.
    pub group: Option<String>,
    /// Most messages fetched and not answered. Default: 256.
    pub prefetch: usize,
    /// Most bytes of those. Looked at before each fetch, so that one fetch may go over it. Default: 64 MiB.
    pub prefetch_bytes: usize,
    /// Failed attempts before a message goes to the dead letters. Default: 5.
    pub max_deliveries: u32,
    /// Where dead letters go: an address, or `discard`. Default: `<queue>-dlq`; `discard` for a topic without a group.
    pub dead_letter: Option<String>,
    /// `per_key`: at most one unanswered message per key is handed out. Default: `none`.
    #[serde(deserialize_with = "ordering")]
    pub ordering: Ordering,
    /// How long a message is leased where leases are finite; renewed at half time. Default: 30 s.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long leases are renewed. Default: 1 h.
    #[serde(with = "humantime_serde")]
    pub max_handler_time: Duration,
    /// The pause before the second attempt; doubles with each. Default: 1 s.
    #[serde(with = "humantime_serde")]
    pub backoff_min: Duration,
    /// The longest pause. Default: 5 min.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// What opening does about the address. Default: `create`.
    pub declare: Declare,
    /// Where to start, where the broker can replay. Default: `Committed`.
    #[serde(skip)]
    pub start: Start,
}

fn ordering<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Ordering, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "none" => Ok(Ordering::None),
        "per_key" => Ok(Ordering::PerKey),
        other => Err(serde::de::Error::unknown_variant(other, &["none", "per_key"])),
    }
}

impl Default for ReceiverConfig {
    fn default() -> Self {
        Self {
            group: None,
            prefetch: 256,
            prefetch_bytes: 64 << 20,
            max_deliveries: 5,
            dead_letter: None,
            ordering: Ordering::None,
            lease: Duration::from_secs(30),
            max_handler_time: Duration::from_secs(3600),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(300),
            declare: Declare::Create,
            start: Start::Committed,
        }
    }
}

/// The value of `dead_letter` that throws dead letters away.
const DISCARD: &str = "discard";

/// Opens a [`Receiver`]; await it.
#[must_use = "a builder does nothing until it is awaited"]
#[derive(Debug)]
pub struct ReceiverBuilder {
    target: Result<(Client, Address)>,
    config: ReceiverConfig,
}

impl ReceiverBuilder {
    pub(crate) fn new(target: Result<(Client, Address)>, config: ReceiverConfig) -> Self {
        Self { target, config }
    }

    /// Replaces all options.
    pub fn config(mut self, config: ReceiverConfig) -> Self {
        self.config = config;
        self
    }

    /// The group, for topics. Default: none, and each receiver gets everything from now on.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.config.group = Some(group.into());
        self
    }

    /// Where to start, where the broker can replay. Default: where the group left off.
    pub fn start(mut self, start: Start) -> Self {
        self.config.start = start;
        self
    }

    /// Most messages fetched and not answered. Default: 256.
    pub fn prefetch(mut self, messages: usize) -> Self {
        self.config.prefetch = messages;
        self
    }

    /// Most bytes of those, looked at before each fetch. Default: 64 MiB.
    pub fn prefetch_bytes(mut self, bytes: usize) -> Self {
        self.config.prefetch_bytes = bytes;
        self
    }

    /// Failed attempts before a message goes to the dead letters. Default: 5.
    pub fn max_deliveries(mut self, deliveries: u32) -> Self {
        self.config.max_deliveries = deliveries;
        self
    }

    /// Where dead letters go. Default: `<queue>-dlq`.
    pub fn dead_letter(mut self, address: impl Into<String>) -> Self {
        self.config.dead_letter = Some(address.into());
        self
    }

    /// Throws dead letters away.
    pub fn discard_dead_letters(self) -> Self {
        self.dead_letter(DISCARD)
    }

    /// `PerKey`: at most one unanswered message per key is handed out. Default: `None`.
    pub fn ordering(mut self, ordering: Ordering) -> Self {
        self.config.ordering = ordering;
        self
    }

    /// How long a message is leased where leases are finite. Default: 30 s.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.config.lease = lease;
        self
    }

    /// How long leases are renewed. Default: 1 h.
    pub fn max_handler_time(mut self, time: Duration) -> Self {
        self.config.max_handler_time = time;
        self
    }

    /// The pause before the second attempt, which doubles with each, and the longest. Default: 1 s, 5 min.
    pub fn backoff(mut self, min: Duration, max: Duration) -> Self {
        (self.config.backoff_min, self.config.backoff_max) = (min, max);
        self
    }

    /// What opening does about the address. Default: creates what is missing.
    pub fn declare(mut self, declare: Declare) -> Self {
        self.config.declare = declare;
        self
    }
}

impl IntoFuture for ReceiverBuilder {
    type Output = Result<Receiver>;
    type IntoFuture = BoxFuture<'static, Result<Receiver>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.open().await.map_err(|e| e.with_operation("open receiver")) })
    }
}

fn checked(config: &ReceiverConfig) -> Result<()> {
    let bad = |option: &'static str, why: &'static str| {
        Err(Error::new(ErrorKind::InvalidConfig, why).with_context("option", option))
    };
    if config.prefetch == 0 {
        return bad("prefetch", "prefetch is at least 1");
    }
    if config.prefetch_bytes == 0 {
        return bad("prefetch_bytes", "prefetch_bytes is at least 1");
    }
    if config.max_deliveries == 0 {
        return bad("max_deliveries", "max_deliveries is at least 1");
    }
    if config.lease.is_zero() {
        return bad("lease", "a lease is longer than nothing");
    }
    if config.backoff_min > config.backoff_max {
        return bad("backoff_min", "backoff_min is at most backoff_max");
    }
    Ok(())
}

impl ReceiverBuilder {
    async fn open(self) -> Result<Receiver> {
        let Self { target, config } = self;
        let (client, from) = target?;
        let inner = client.inner();
        inner.check_open()?;
        checked(&config)?;
        let mut source = Source::new(from);
        source.start = config.start;
        if let Some(group) = &config.group {
            if !source.address.is_topic() {
                let why = "a group belongs to a topic; receivers of a queue compete already";
                return Err(Error::new(ErrorKind::InvalidInput, why).with_context("address", &source.address));
            }
            source = source.with_group(group)?;
        }
        inner.register_name(&source.address)?;
        let capabilities = inner.broker.capabilities();
        if source.queue_name().is_none() && !capabilities.anonymous_subscribers {
            let why = "this broker has no subscribers without a group";
            return Err(Error::unsupported(why).with_context("address", &source.address));
        }
        if source.start != Start::Committed && !capabilities.replay {
            return Err(Error::unsupported("this broker cannot replay").with_context("address", &source.address));
        }
        let dead_letter = dead_letter_of(&source, &config)?;
        let mut topology = Topology::default();
        if let Some(address) = &dead_letter {
            topology.push(Entry::new(address.clone()));
        }
        let mut entry = Entry::from(&source);
        entry.dead_letter.clone_from(&dead_letter);
        entry.max_deliveries = Some(config.max_deliveries);
        topology.push(entry);
        inner.prepare(config.declare, &topology).await?;
        let options = ConsumerOptions {
            prefetch: config.prefetch,
            prefetch_bytes: config.prefetch_bytes,
            lease: config.lease,
            ordering: config.ordering,
            events: inner.events.clone(),
        };
        let consumer = inner.broker.consumer(&source, &options).await?;
        let able = consumer.capabilities();
        let why = match (config.ordering, able.ordering) {
            (Ordering::PerKey, Ordering::None) => Some("this address cannot keep the order of a key"),
            (Ordering::Full, Ordering::None | Ordering::PerKey) => {
                Some("this address cannot keep the order of all messages")
            }
            _ => None,
        };
        if let Some(why) = why {
            return Err(Error::unsupported(why).with_context("source", source));
        }
        let copier = async |to: Address| -> Result<Owned> {
            let config = SenderConfig::default();
            let producer = {
                let options = ProducerOptions { events: inner.events.clone(), ..Default::default() };
                inner.broker.producer(&to, &options).await?
            };
            Ok(Owned(Outbox::start_internal(to, producer, config, inner.events.clone())))
        };
        let dead_letters = match dead_letter {
            Some(address) => Some(copier(address).await?),
            None => None,
        };
        let copies = match (able.retry_via, source.queue_name()) {
            (RetryVia::Copy, Some(queue)) => {
                Some(copier(Address::derived(crate::address::AddressKind::Queue, &queue)).await?)
            }
            _ => None,
        };
        let inbox = Inbox::start(consumer, source, config, inner.clone(), dead_letters, copies);
        inner.track_receiver(&inbox);
        Ok(Receiver { inbox, current: None })
    }
}

/// Where dead letters of the source go; `None`: they are thrown away.
fn dead_letter_of(source: &Source, config: &ReceiverConfig) -> Result<Option<Address>> {
    match config.dead_letter.as_deref() {
        Some(DISCARD) => Ok(None),
        Some(address) => {
            let address: Address = address.parse()?;
            if address == source.address {
                let why = "dead letters would go back to where they came from";
                return Err(Error::new(ErrorKind::InvalidConfig, why).with_context("address", address));
            }
            Ok(Some(address))
        }
        // A subscriber without a group has nothing that outlives it.
        None => Ok(source.dead_letter()),
    }
}

/// Receives the messages of one source. Also a [`Stream`].
///
/// Whatever passes by itself (a lost connection, a broker that restarts) is waited out; an error means that somebody
/// has to look (`NotFound`, `Conflict`, `Unauthorized`), and is the last thing the receiver says. Dropped, it
/// releases what it has buffered; deliveries that are out can still be answered.
pub struct Receiver {
    inbox: Arc<Inbox>,
    current: Option<Run>,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("source", self.source()).finish_non_exhaustive()
    }
}

impl Receiver {
    fn poll_run(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Option<Result<()>>> {
        if let Some(run) = &self.current {
            if self.inbox.is_running() && run.items.len() > 0 {
                return Poll::Ready(Some(Ok(())));
            }
            self.let_go();
        }
        // A queue that is never empty lets other tasks run too.
        let coop = ready!(tokio::task::coop::poll_proceed(cx));
        let fetched = ready!(self.inbox.poll_fetch(cx, max));
        coop.made_progress();
        match fetched {
            Some(Ok(run)) => {
                self.current = Some(run);
                self.note_buffered();
                Poll::Ready(Some(Ok(())))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => Poll::Ready(None),
        }
    }

    fn note_buffered(&self) {
        let count = self.current.as_ref().map_or(0, |run| run.items.len());
        self.inbox.buffered.store(count, Atomic::Release);
    }

    /// Gives back what was fetched and not handed out.
    fn let_go(&mut self) {
        if let Some(run) = self.current.take() {
            self.inbox.buffered.store(0, Atomic::Release);
            self.inbox.release_run(run);
        }
    }

    fn poll_delivery(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Delivery>>> {
        loop {
            match ready!(self.poll_run(cx, FETCH)) {
                Some(Ok(())) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
            if let Some(run) = &mut self.current
                && let Some(item) = run.items.next()
            {
                let held = hold(&run.fetch, run.next, item);
                run.next += 1;
                self.note_buffered();
                return Poll::Ready(Some(Ok(Delivery::new(held))));
            }
        }
    }

    /// Waits for the next message; `None` after [`stop`](Self::stop), [`close`](Self::close) or an error.
    ///
    /// # Cancel safety
    /// Dropped, no message is lost.
    pub async fn next(&mut self) -> Option<Result<Delivery>> {
        poll_fn(|cx| self.poll_delivery(cx)).await
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// As [`next`](Self::next), and `Closed` at the end.
    ///
    /// # Cancel safety
    /// Dropped, no message is lost.
    pub async fn receive(&mut self) -> Result<Delivery> {
        match self.next().await {
            Some(delivery) => delivery,
            None => Err(self.ended()),
        }
    }

    fn ended(&self) -> Error {
        Error::closed("receiver").with_operation("receive").with_context("source", self.source())
    }

    /// Waits until there is a message, and returns it with those that are there too, up to `max`.
    ///
    /// # Errors
    /// As [`receive`](Self::receive); `InvalidInput` when `max` is 0.
    ///
    /// # Cancel safety
    /// Dropped, no message is lost.
    pub async fn receive_batch(&mut self, max: usize) -> Result<Batch> {
        if max == 0 {
            return Err(Error::new(ErrorKind::InvalidInput, "a batch has room for at least one message")
                .with_operation("receive"));
        }
        loop {
            match poll_fn(|cx| self.poll_run(cx, max)).await {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(error),
                None => return Err(self.ended()),
            }
            let Some(mut run) = self.current.take() else { continue };
            let batch = if run.items.len() <= max {
                Batch::new(run)
            } else {
                let items: Vec<_> = run.items.by_ref().take(max).collect();
                let first = run.next;
                run.next += u32::try_from(items.len()).unwrap_or(u32::MAX);
                let fetch = run.fetch.clone();
                self.current = Some(run);
                Batch::part(fetch, first, items)
            };
            self.note_buffered();
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
    }

    /// As [`receive_batch`](Self::receive_batch), and waits at most this long; the batch may be empty.
    ///
    /// # Errors
    /// As [`receive_batch`](Self::receive_batch).
    ///
    /// # Cancel safety
    /// Dropped, no message is lost.
    pub async fn receive_batch_within(&mut self, max: usize, wait: Duration) -> Result<Batch> {
        match timeout_at(crate::memory::far(Instant::now(), wait), self.receive_batch(max)).await {
            Ok(batch) => batch,
            Err(_) => Ok(Batch::empty()),
        }
    }

    /// What the source can do, exactly.
    #[must_use]
    pub fn capabilities(&self) -> Arc<Capabilities> {
        self.inbox.capabilities.clone()
    }

    /// What is received.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.inbox.source
    }

    /// A handle that controls the receiver from another task.
    #[must_use]
    pub fn control(&self) -> ReceiverControl {
        ReceiverControl(self.inbox.clone())
    }

    /// Fetches no more until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.inbox.consumer.set_paused(true);
    }

    /// Fetches again.
    pub fn resume(&self) {
        self.inbox.consumer.set_paused(false);
    }

    /// Waits until every answer given so far is with the broker, as far as the protocol can tell.
    ///
    /// # Errors
    /// The first answer that was refused; `Connection` when it could not be asked; `Closed`.
    pub async fn flush(&self) -> Result<()> {
        self.inbox.flush().await
    }

    /// Hands out no more and gives back what is buffered; deliveries that are out can still be answered.
    pub async fn stop(&mut self) {
        self.let_go();
        self.inbox.stop().await;
    }

    /// Stops, waits at most this long for deliveries that are out, flushes the answers, and lets go of the rest.
    /// Closing twice is fine.
    pub async fn close(&mut self, within: Duration) -> CloseReport {
        self.let_go();
        self.inbox.close(crate::memory::far(Instant::now(), within)).await
    }
}

impl Stream for Receiver {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_delivery(cx)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.let_go();
        self.inbox.abandon();
    }
}

/// Controls a receiver from another task. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ReceiverControl(Arc<Inbox>);

impl ReceiverControl {
    /// Fetches no more until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.0.consumer.set_paused(true);
    }

    /// Fetches again.
    pub fn resume(&self) {
        self.0.consumer.set_paused(false);
    }

    /// As [`Receiver::flush`].
    ///
    /// # Errors
    /// As [`Receiver::flush`].
    pub async fn flush(&self) -> Result<()> {
        self.0.flush().await
    }

    /// As [`Receiver::stop`]; what the receiver has buffered is given back when it is next polled or dropped.
    pub async fn stop(&self) {
        self.0.stop().await;
    }

    /// As [`Receiver::close`].
    pub async fn close(&self, within: Duration) -> CloseReport {
        self.0.close(crate::memory::far(Instant::now(), within)).await
    }
}
