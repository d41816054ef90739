//! Where the replies of a client come to.

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::calls::{Call, Calls};
use super::{REPLIES, new_queue};
use crate::address::{Address, AddressKind, Source};
use crate::broker::{Broker, CloseReport, ConsumerOptions};
use crate::capability::ReplyVia;
use crate::consumer::Consumer;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::event::Events;
use crate::topology::{Entry, Topology};

/// How long requests are made with a queue of one's own, and the most that one of them may take; then it is another.
pub(super) const LIFE: Duration = Duration::from_secs(12 * 3600);
/// How long replies are kept that nobody fetches.
const RETENTION: Duration = Duration::from_secs(3600);
/// How long an end may take that nobody waits for.
pub(super) const END: Duration = Duration::from_secs(5);
const FETCH: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// An address that replies come to, and whoever listens there. Dropped, it ends by itself.
pub(super) struct Line {
    broker: Arc<dyn Broker>,
    address: Address,
    calls: Arc<Calls>,
    consumer: Arc<dyn Consumer>,
    listener: AbortHandle,
    /// No requests are made with it from then on.
    until: Instant,
    /// Whether it is deleted at the end.
    is_own: bool,
    ended: AtomicBool,
    runtime: Handle,
}

impl Line {
    pub(super) async fn open(broker: Arc<dyn Broker>, events: Events) -> Result<Arc<Self>> {
        let is_own = broker.capabilities().reply_via == ReplyVia::Queue;
        let address = match is_own {
            true => Address::derived(AddressKind::Queue, &new_queue()),
            false => Address::derived(AddressKind::Topic, REPLIES),
        };
        declare(&*broker, &address, is_own).await?;
        let options = ConsumerOptions { prefetch: 4 * FETCH.get(), events, ..ConsumerOptions::default() };
        let consumer = match broker.consumer(&Source::new(address.clone()), &options).await {
            Ok(consumer) => consumer,
            Err(error) => {
                if is_own {
                    let _ = tokio::time::timeout(END, broker.delete(&address)).await;
                }
                return Err(error);
            }
        };
        let calls = Arc::new(Calls::new());
        let listener = tokio::spawn(listen(consumer.clone(), calls.clone())).abort_handle();
        let (until, ended, runtime) = (Instant::now() + LIFE, AtomicBool::new(false), Handle::current());
        Ok(Arc::new(Self { broker, address, calls, consumer, listener, until, is_own, ended, runtime }))
    }

    /// Whether requests may be made with it.
    pub(super) fn is_good(&self) -> bool {
        !self.calls.is_over() && (!self.is_own || Instant::now() < self.until)
    }

    /// What requests name as their reply address: the name alone, since on a log queue and topic of a name are the same.
    pub(super) fn name(&self) -> &str {
        self.address.name()
    }

    pub(super) fn begin(&self) -> Result<Call> {
        self.calls.begin()
    }

    pub(super) fn pending(&self) -> usize {
        self.calls.count()
    }

    /// Listens no more, fails what waits, and deletes the address where it is this client's own.
    pub(super) async fn end(&self, deadline: Instant) -> CloseReport {
        if self.ended.swap(true, Ordering::AcqRel) {
            return CloseReport::default();
        }
        self.calls.end(&Error::closed("client").with_outcome(Outcome::Unknown));
        self.listener.abort();
        let (consumer, broker, address) = (self.consumer.clone(), self.broker.clone(), self.address.clone());
        // In a task of its own: whoever waits may go away midway.
        let finish = finish(consumer, broker, self.is_own.then_some(address), deadline);
        self.runtime.spawn(finish).await.unwrap_or_default()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.listener.abort();
        if !self.ended.swap(true, Ordering::AcqRel) {
            let (consumer, broker, address) = (self.consumer.clone(), self.broker.clone(), self.address.clone());
            let own = self.is_own.then_some(address);
            self.runtime.spawn(async move { finish(consumer, broker, own, Instant::now() + END).await });
        }
    }
}

/// A topic that many share is taken as it is; a queue of one's own is always new.
async fn declare(broker: &dyn Broker, address: &Address, is_own: bool) -> Result<()> {
    let mut entry = Entry::new(address.clone());
    if !is_own {
        match broker.verify(&Topology::from_iter([entry.clone()])).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => return other,
        }
    }
    entry.retention = Some(RETENTION);
    match broker.declare(&Topology::from_iter([entry])).await {
        // Somebody else made it in between, otherwise.
        Err(error) if !is_own && error.kind() == ErrorKind::Conflict => Ok(()),
        other => other,
    }
}

async fn listen(consumer: Arc<dyn Consumer>, calls: Arc<Calls>) {
    let (mut received, mut tokens) = (Vec::new(), Vec::new());
    loop {
        if let Err(error) = poll_fn(|cx| consumer.poll_receive(cx, FETCH, &mut received)).await {
            let gone = Error::new(ErrorKind::Connection, "the reply address is gone").with_outcome(Outcome::Unknown);
            return calls.end(&gone.with_source(error));
        }
        // However much is somebody else's, other tasks run too.
        tokio::task::coop::consume_budget().await;
        tokens.extend(received.iter().map(|reply| reply.token));
        // A reply is read once: one that comes again is nobody's.
        let _ = consumer.ack(&tokens);
        tokens.clear();
        for reply in received.drain(..) {
            match reply.message {
                Ok(reply) => calls.answer(reply),
                Err(undecodable) => tracing::debug!(error = %undecodable.error, "a reply that cannot be read"),
            }
        }
    }
}

async fn finish(
    consumer: Arc<dyn Consumer>,
    broker: Arc<dyn Broker>,
    own: Option<Address>,
    deadline: Instant,
) -> CloseReport {
    let mut report = consumer.close(deadline).await;
    // Replies that came late are nobody's.
    (report.unanswered, report.released) = (0, 0);
    let Some(own) = own else { return report };
    let deleted = match tokio::time::timeout_at(deadline, broker.delete(&own)).await {
        Ok(deleted) => deleted,
        Err(_) => Err(Error::new(ErrorKind::Timeout, "the broker did not answer")),
    };
    if let Err(error) = deleted {
        tracing::debug!(%error, address = %own, "a queue for replies stays behind");
        report.errors.push(error.with_operation("delete").with_context("address", &own));
    }
    report
}
