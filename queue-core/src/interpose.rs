//! Layers that pass everything through: one as the pattern, one that puts something in between.

use std::any::Any;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::address::{Address, Source};
use crate::broker::{Broker, BrokerLayer, CloseReport, ConsumerOptions, ProducerOptions, Stats};
use crate::capability::Capabilities;
use crate::completion::Completion;
use crate::consumer::{AckReport, AckToken, Answer, Consumer, Received, Settled};
use crate::error::{Error, Result};
use crate::event::Health;
use crate::message::Message;
use crate::producer::Producer;
use crate::request::Requests;
use crate::topology::Topology;
use crate::transaction::{Acks, Participant, TransactionOptions, TransactionSession, Transactions, Uncommitted};

/// A layer that passes everything through, as the pattern to write others by: it overrides every method, so that none
/// falls back to a default.
///
/// What the suite proves of a driver it must prove through this layer too, with `conformance::Layered`.
#[derive(Debug, Clone, Copy, Default)]
pub struct PassThrough;

impl BrokerLayer for PassThrough {
    fn layer(&self, inner: Arc<dyn Broker>) -> Arc<dyn Broker> {
        Interpose::default().layer(inner)
    }
}

type WrapProducer = Arc<dyn Fn(Arc<dyn Producer>, &Address, &ProducerOptions) -> Arc<dyn Producer> + Send + Sync>;
type WrapConsumer = Arc<dyn Fn(Arc<dyn Consumer>, &Source, &ConsumerOptions) -> Arc<dyn Consumer> + Send + Sync>;

/// A layer that puts something between the handles and the producers or consumers of a broker, and passes the rest
/// through: for tests that need a fault at a certain place.
///
#[cfg_attr(feature = "conformance", doc = "```")]
#[cfg_attr(not(feature = "conformance"), doc = "```ignore")]
/// use queue_core::conformance::Interpose;
///
/// let layer = Interpose::default().producers(|producer| {
///     println!("opened {producer:?}");
///     producer
/// });
/// # let _ = layer;
/// ```
#[derive(Clone)]
pub struct Interpose {
    producer: WrapProducer,
    consumer: WrapConsumer,
}

impl Default for Interpose {
    fn default() -> Self {
        Self {
            producer: Arc::new(|inner, _, _| Arc::new(PassProducer(inner))),
            consumer: Arc::new(|inner, _, _| Arc::new(PassConsumer(inner))),
        }
    }
}

impl Interpose {
    /// Puts something in front of every producer.
    #[must_use]
    pub fn producers(mut self, wrap: impl Fn(Arc<dyn Producer>) -> Arc<dyn Producer> + Send + Sync + 'static) -> Self {
        self.producer = Arc::new(move |inner, _, _| wrap(inner));
        self
    }

    /// Puts something in front of every consumer.
    #[must_use]
    pub fn consumers(mut self, wrap: impl Fn(Arc<dyn Consumer>) -> Arc<dyn Consumer> + Send + Sync + 'static) -> Self {
        self.consumer = Arc::new(move |inner, _, _| wrap(inner));
        self
    }

    /// As both, for whoever has to know what was opened.
    #[cfg(feature = "testing")]
    pub(crate) fn at(producer: WrapProducer, consumer: WrapConsumer) -> Self {
        Self { producer, consumer }
    }
}

impl fmt::Debug for Interpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interpose")
    }
}

impl BrokerLayer for Interpose {
    fn layer(&self, inner: Arc<dyn Broker>) -> Arc<dyn Broker> {
        Arc::new(PassBroker { inner, wrap: self.clone() })
    }
}

#[derive(Debug)]
struct PassBroker {
    inner: Arc<dyn Broker>,
    wrap: Interpose,
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Broker for PassBroker {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.inner.capabilities()
    }

    async fn producer(&self, to: &Address, options: &ProducerOptions) -> Result<Arc<dyn Producer>> {
        Ok((self.wrap.producer)(self.inner.producer(to, options).await?, to, options))
    }

    async fn consumer(&self, from: &Source, options: &ConsumerOptions) -> Result<Arc<dyn Consumer>> {
        Ok((self.wrap.consumer)(self.inner.consumer(from, options).await?, from, options))
    }

    async fn declare(&self, topology: &Topology) -> Result<()> {
        self.inner.declare(topology).await
    }

    async fn verify(&self, topology: &Topology) -> Result<()> {
        self.inner.verify(topology).await
    }

    async fn delete(&self, address: &Address) -> Result<()> {
        self.inner.delete(address).await
    }

    async fn purge(&self, address: &Address) -> Result<()> {
        self.inner.purge(address).await
    }

    async fn stats(&self, source: &Source) -> Result<Stats> {
        self.inner.stats(source).await
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    async fn ping(&self) -> Result<()> {
        self.inner.ping().await
    }

    fn native(&self) -> &(dyn Any + Send + Sync) {
        self.inner.native()
    }

    fn requests(&self) -> Option<&dyn Requests> {
        self.inner.requests()
    }

    fn transactions(&self) -> Option<&dyn Transactions> {
        self.inner.transactions().map(|_| self as &dyn Transactions)
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        self.inner.close(deadline).await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Transactions for PassBroker {
    async fn open(&self, name: &str, options: &TransactionOptions) -> Result<Arc<dyn TransactionSession>> {
        let inner = self.inner.transactions().ok_or_else(|| Error::unsupported("there are no transactions"))?;
        Ok(Arc::new(PassSession { inner: inner.open(name, options).await?, wrap: self.wrap.clone() }))
    }
}

/// The producers of a transaction go through the layer as all others do.
#[derive(Debug)]
struct PassSession {
    inner: Arc<dyn TransactionSession>,
    wrap: Interpose,
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl TransactionSession for PassSession {
    async fn producer(&self, to: &Address, options: &ProducerOptions) -> Result<Arc<dyn Producer>> {
        Ok((self.wrap.producer)(self.inner.producer(to, options).await?, to, options))
    }

    async fn begin(&self, deadline: Instant) -> Result<()> {
        self.inner.begin(deadline).await
    }

    async fn commit(&self, acks: Vec<Acks>, deadline: Instant) -> Result<(), Uncommitted> {
        self.inner.commit(acks, deadline).await
    }

    async fn abort(&self, deadline: Instant) -> Result<()> {
        self.inner.abort(deadline).await
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        self.inner.close(deadline).await
    }
}

#[derive(Debug)]
struct PassProducer(Arc<dyn Producer>);

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Producer for PassProducer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.0.capabilities()
    }

    fn send(&self, batch: Vec<Message>, done: Completion) {
        self.0.send(batch, done);
    }

    fn send_one(&self, message: Message, done: Completion) {
        self.0.send_one(message, done);
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        self.0.close(deadline).await
    }
}

#[derive(Debug)]
struct PassConsumer(Arc<dyn Consumer>);

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Consumer for PassConsumer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.0.capabilities()
    }

    fn poll_receive(&self, cx: &mut Context<'_>, max: NonZeroUsize, into: &mut Vec<Received>) -> Poll<Result<()>> {
        self.0.poll_receive(cx, max, into)
    }

    fn ack(&self, tokens: &[AckToken]) -> AckReport {
        self.0.ack(tokens)
    }

    fn settle(&self, answers: Vec<Answer>) -> Settled {
        self.0.settle(answers)
    }

    fn holds(&self, token: AckToken) -> bool {
        self.0.holds(token)
    }

    fn note_attempt(&self, token: AckToken, attempt: u32) {
        self.0.note_attempt(token, attempt);
    }

    fn retry_tiers(&self) -> &[(Duration, Address)] {
        self.0.retry_tiers()
    }

    fn participant(&self) -> Option<Participant> {
        self.0.participant()
    }

    async fn flush(&self) -> Result<()> {
        self.0.flush().await
    }

    fn set_paused(&self, paused: bool) {
        self.0.set_paused(paused);
    }

    async fn stop(&self) {
        self.0.stop().await;
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        self.0.close(deadline).await
    }
}
