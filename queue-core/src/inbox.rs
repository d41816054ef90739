//! What stands between a receiver and a consumer: prefetch, answers, retries, dead letters, order by key.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OnceCell, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::address::{Address, Source};
use crate::broker::CloseReport;
use crate::capability::{Capabilities, Ordering as Order, RetryVia};
use crate::client::ClientInner;
use crate::consumer::{AckToken, Consumer, Received};
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Fetch, Ledger};
use crate::message::Message;
use crate::observe::Subject;
use crate::outbox::Owned;
use crate::receiver::ReceiverConfig;

mod alone;
mod answer;
mod receive;

const RUNNING: u8 = 0;
const STOPPED: u8 = 1;
const CLOSED: u8 = 2;

/// Deliveries beyond `max_deliveries` that a message gets which the broker counted and nobody answered.
const SPARE_DELIVERIES: u32 = 3;
/// Pauses between tries of a dead-letter copy.
const COPY_RETRY_MIN: Duration = Duration::from_millis(200);
const COPY_RETRY_MAX: Duration = Duration::from_secs(30);

/// How long a flush waits for copies.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

/// Messages of one fetch that wait to be handed out.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) fetch: Arc<Fetch>,
    /// The index of the next item in its fetch.
    pub(crate) next: u32,
    pub(crate) items: std::vec::IntoIter<Received>,
}

/// One message with all that answers it.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) fetch: Arc<Fetch>,
    pub(crate) index: u32,
    pub(crate) token: AckToken,
    pub(crate) attempt: u32,
    pub(crate) position: crate::consumer::Position,
    pub(crate) message: Message,
    /// Whether it stands in no lane: it was answered before it could be handed out.
    pub(crate) laneless: bool,
}

impl Held {
    fn size(&self) -> usize {
        self.message.size()
    }

    fn into_run(self) -> Run {
        let Self { fetch, index, token, attempt, position, message, .. } = self;
        let received = Received { message: Ok(message), token, attempt, lease: None, position };
        Run { fetch, next: index, items: vec![received].into_iter() }
    }
}

#[derive(Default)]
struct Local {
    /// Handed out again in this process.
    ready: VecDeque<Held>,
    /// By hash of the key: present while a message of the key is handed out, with those that wait behind it.
    lanes: HashMap<u64, VecDeque<Held>>,
}

pub(crate) struct Inbox {
    pub(crate) consumer: Arc<dyn Consumer>,
    pub(crate) capabilities: Arc<Capabilities>,
    pub(crate) source: Source,
    subject: Subject,
    #[cfg(feature = "otel")]
    ages: crate::observe::metrics::Ages,
    pub(crate) config: ReceiverConfig,
    pub(crate) client: Arc<ClientInner>,
    pub(crate) ledger: Ledger,
    /// Messages in the receiver's own hands that were not handed out yet.
    pub(crate) buffered: AtomicUsize,
    /// Where dead letters go; `None`: they are discarded.
    dead_letters: Option<Owned>,
    /// Where retry copies go, for brokers that need them.
    copies: Option<Owned>,
    /// Where copies go that tell suspects apart, for brokers that need no others.
    marks_to: Option<Address>,
    /// Opened for the first of those.
    marker: OnceCell<Owned>,
    /// Whether its messages stand in the same log as those of other groups, so that one may be put back for one of them.
    shares_log: bool,
    runtime: Handle,
    unanswered: AtomicUsize,
    unanswered_bytes: AtomicUsize,
    state: AtomicU8,
    changed: watch::Sender<u8>,
    local: Mutex<Local>,
    /// Length of `local.ready`, to leave the lock alone while it is empty.
    local_ready: AtomicUsize,
    /// Messages that are handed out one at a time.
    suspects: Mutex<Vec<alone::Suspect>>,
    /// Length of `suspects`.
    suspected: AtomicUsize,
    /// Whether one of them is out.
    secluded: AtomicBool,
    /// Before which of them the broker has all answers that were given.
    settled: Mutex<Option<AckToken>>,
    /// The suspect that was handed out last.
    out: Mutex<Option<alone::Rank>>,
    /// Copies that failed and wait until they are tried again.
    pausing: AtomicUsize,
    /// Messages that wait for their time, here.
    deferred: AtomicUsize,
    hasher: RandomState,
    poller: AtomicWaker,
    /// Whether the poller waits for room.
    starved: AtomicBool,
    /// Messages given back without having been handed out.
    pub(crate) released: AtomicUsize,
    /// Answers that are still on their way.
    pending: AtomicUsize,
    /// Those of them that wait for a copy to be confirmed.
    copying: AtomicUsize,
    idle: Notify,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Inbox {
    pub(crate) fn start(
        consumer: Arc<dyn Consumer>,
        source: Source,
        config: ReceiverConfig,
        client: Arc<ClientInner>,
        dead_letters: Option<Owned>,
        copies: Option<Owned>,
        marks_to: Option<Address>,
    ) -> Arc<Self> {
        let capabilities = consumer.capabilities();
        let leased = capabilities.max_lease.is_some();
        let shares_log = source.address.is_topic() && capabilities.retry_via == RetryVia::InPlace;
        let inbox = Arc::new(Self {
            shares_log,
            subject: Subject::source(client.system, &source),
            #[cfg(feature = "otel")]
            ages: Default::default(),
            ledger: Ledger::new(leased, config.lease, config.max_handler_time),
            consumer,
            capabilities,
            source,
            config,
            client,
            buffered: AtomicUsize::new(0),
            dead_letters,
            copies,
            marks_to,
            marker: OnceCell::new(),
            runtime: Handle::current(),
            unanswered: AtomicUsize::new(0),
            unanswered_bytes: AtomicUsize::new(0),
            state: AtomicU8::new(RUNNING),
            changed: watch::Sender::new(RUNNING),
            local: Mutex::default(),
            local_ready: AtomicUsize::new(0),
            suspects: Mutex::default(),
            suspected: AtomicUsize::new(0),
            secluded: AtomicBool::new(false),
            settled: Mutex::default(),
            out: Mutex::default(),
            pausing: AtomicUsize::new(0),
            deferred: AtomicUsize::new(0),
            hasher: RandomState::new(),
            poller: AtomicWaker::new(),
            starved: AtomicBool::new(false),
            released: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            copying: AtomicUsize::new(0),
            idle: Notify::new(),
        });
        if leased {
            tokio::spawn(crate::lease::renew(Arc::downgrade(&inbox)));
        }
        inbox
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state.load(Ordering::Acquire) == RUNNING
    }

    fn enter(&self, state: u8) -> bool {
        let entered = self.state.fetch_max(state, Ordering::AcqRel) < state;
        if entered {
            self.changed.send_replace(state);
            self.poller.wake();
        }
        entered
    }

    /// Resolves when the inbox stops.
    async fn stopped(&self) {
        let _ = self.changed.subscribe().wait_for(|state| *state != RUNNING).await;
    }

    fn per_key(&self) -> bool {
        self.config.ordering == Order::PerKey
    }

    /// Whether a retry stays in this process.
    fn in_place(&self) -> bool {
        match self.capabilities.retry_via {
            RetryVia::InPlace => true,
            // What belongs to one subscriber has no address that a copy could go to.
            RetryVia::Copy => self.copies.is_none() || self.per_key(),
            RetryVia::Broker | RetryVia::None => self.per_key(),
        }
    }

    fn named(&self, error: Error, operation: &'static str) -> Error {
        error.with_operation(operation).with_context("source", &self.source)
    }

    /// What spans and metrics say of it.
    pub(crate) fn subject(&self) -> &Subject {
        &self.subject
    }

    #[cfg(feature = "otel")]
    pub(crate) fn ages(&self) -> &crate::observe::metrics::Ages {
        &self.ages
    }

    /// Messages that are handed out and have no answer.
    pub(crate) fn in_flight(&self) -> usize {
        self.unanswered.load(Ordering::Acquire).saturating_sub(self.buffered.load(Ordering::Acquire))
    }

    fn outstanding(&self) -> usize {
        self.in_flight() + self.pending.load(Ordering::Acquire)
    }

    /// Waits until `left` answers zero.
    async fn drained(&self, left: impl Fn(&Self) -> usize) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if left(self) == 0 {
                return;
            }
            idle.await;
        }
    }

    pub(crate) async fn flush(&self) -> Result<()> {
        if self.state.load(Ordering::Acquire) == CLOSED {
            return Err(self.named(Error::closed("receiver"), "flush"));
        }
        // A dead letter is acked when its copy is confirmed.
        let copies = self.drained(|inbox| inbox.copying.load(Ordering::Acquire));
        if timeout(FLUSH_TIMEOUT, copies).await.is_err() {
            let why = "copies for dead letters or retries are not confirmed yet";
            return Err(self.named(Error::new(ErrorKind::Timeout, why), "flush"));
        }
        self.flush_answers().await
    }

    /// Waits for the answers that are with the consumer, not for copies.
    pub(crate) async fn flush_answers(&self) -> Result<()> {
        self.consumer.flush().await.map_err(|e| self.named(e, "flush"))
    }

    pub(crate) async fn stop(&self) {
        if self.enter(STOPPED) {
            self.release_local();
            self.consumer.stop().await;
        }
    }

    /// Hands out nothing more, and lets the consumer go on only where answers are still to come.
    async fn wind_down(&self) {
        if self.enter(STOPPED) {
            self.release_local();
            if self.outstanding() > 0 {
                self.consumer.stop().await;
            }
        }
    }

    pub(crate) async fn close(&self, deadline: Instant) -> CloseReport {
        let mut report = CloseReport::default();
        if self.state.load(Ordering::Acquire) == CLOSED {
            return report;
        }
        if timeout_at(deadline, self.wind_down()).await.is_err() {
            report
                .errors
                .push(self.named(Error::new(ErrorKind::Timeout, "the consumer did not stop in time"), "close"));
        }
        let _ = timeout_at(deadline, self.drained(Self::outstanding)).await;
        if !self.enter(CLOSED) {
            return report;
        }
        report.merge(self.consumer.close(deadline).await);
        let buffered = self.buffered.load(Ordering::Acquire);
        report.unanswered = self.unanswered.load(Ordering::Acquire).saturating_sub(buffered);
        report.released += buffered + self.released.swap(0, Ordering::AcqRel);
        for outbox in [self.dead_letters.as_ref(), self.copies.as_ref(), self.marker.get()].into_iter().flatten() {
            report.merge(outbox.close(deadline).await);
        }
        report
    }

    /// The receiver was dropped: everything goes on in the background until it is closed.
    pub(crate) fn abandon(self: &Arc<Self>) {
        let inbox = self.clone();
        self.runtime.spawn(async move {
            let deadline = crate::memory::far(Instant::now(), inbox.config.max_handler_time);
            inbox.close(deadline).await;
        });
    }
}

/// A copy is on its way as long as this lives.
struct Copying(Arc<Inbox>);

impl Drop for Copying {
    fn drop(&mut self) {
        self.0.copying.fetch_sub(1, Ordering::AcqRel);
        self.0.idle.notify_waiters();
        self.0.wake_if_secluded();
    }
}

struct Done(Arc<Inbox>);

impl Drop for Done {
    fn drop(&mut self) {
        if self.0.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}
