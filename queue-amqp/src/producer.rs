//! Publishing with confirmations.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use queue_core::{
    Address, Capabilities, CloseReport, Completion, Error, ErrorKind, Message, Outcome, Producer, ProducerOptions,
};
use tokio::time::Instant;

use crate::flight::{Done, Origin};
use crate::publisher::{Lane, Load, Parcel, Publisher};

/// Sends to one address, through the channels that all producers share.
pub(crate) struct AmqpProducer {
    capabilities: Arc<Capabilities>,
    origin: Arc<Origin>,
    publisher: Arc<Publisher>,
    closed: AtomicBool,
}

impl AmqpProducer {
    pub(crate) fn new(
        publisher: Arc<Publisher>,
        address: Address,
        options: &ProducerOptions,
        capabilities: Arc<Capabilities>,
    ) -> Arc<Self> {
        let origin = Origin::new(address, options.require_route);
        Arc::new(Self { capabilities, origin, publisher, closed: AtomicBool::new(false) })
    }

    /// Whether the message goes to an exchange with a name.
    fn is_named(&self, message: &Message) -> bool {
        let to_topic = message.destination().unwrap_or(&self.origin.address).is_topic();
        to_topic || message.get_delay().is_some_and(|delay| !delay.is_zero())
    }

    fn lane(&self, named: bool) -> &Lane {
        if named { &self.publisher.topics } else { &self.publisher.queues }
    }
}

#[async_trait]
impl Producer for AmqpProducer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.capabilities.clone()
    }

    fn send(&self, batch: Vec<Message>, done: Completion) {
        if self.closed.load(Ordering::Acquire) {
            done.fail_all(&Error::closed("producer").with_operation("send"), batch);
            return;
        }
        let named = batch.first().is_some_and(|message| self.is_named(message));
        if batch.iter().all(|message| self.is_named(message) == named) {
            let (origin, done) = (self.origin.clone(), Done::Sole(done));
            return self.lane(named).send(Parcel { origin, done, load: Load::All(batch) });
        }
        let done = Arc::new(done);
        let (topics, queues): (Vec<_>, Vec<_>) = (0..).zip(batch).partition(|(_, message)| self.is_named(message));
        for (named, part) in [(true, topics), (false, queues)] {
            let (origin, done) = (self.origin.clone(), Done::Shared(done.clone()));
            self.lane(named).send(Parcel { origin, done, load: Load::Part(part) });
        }
    }

    fn send_one(&self, message: Message, done: Completion) {
        if self.closed.load(Ordering::Acquire) {
            done.fail(0, Error::closed("producer").with_operation("send"), Some(message));
            return;
        }
        let (origin, done) = (self.origin.clone(), Done::Sole(done));
        self.lane(self.is_named(&message)).send(Parcel { origin, done, load: Load::One(message) });
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        let mut report = CloseReport::default();
        if self.closed.swap(true, Ordering::AcqRel) {
            return report;
        }
        self.origin.landed(deadline).await;
        let why = "closed before the broker answered";
        let error = Error::new(ErrorKind::Timeout, why).with_operation("close").with_outcome(Outcome::Unknown);
        report.unconfirmed = [true, false].map(|named| self.lane(named).let_go(&self.origin, &error)).iter().sum();
        if report.unconfirmed > 0 {
            report.errors.push(error);
        }
        report
    }
}

impl fmt::Debug for AmqpProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpProducer")
            .field("address", &self.origin.address)
            // Of all producers of the broker.
            .field("kept", &(self.publisher.queues.kept() + self.publisher.topics.kept()))
            .finish_non_exhaustive()
    }
}
