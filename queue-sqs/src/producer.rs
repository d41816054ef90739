//! Sending: batches of ten, several requests at a time, a verdict per message.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use queue_core::{
    Capabilities, CloseReport, Completion, Error, Message, Outcome, Producer, ProducerOptions, Receipt, Result,
    together,
};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, timeout_at};

use crate::address::{Kind, Target};
use crate::broker::{Core, Opened};
use crate::config::Clients;
use crate::dispatch::Driver;
use crate::link::Link;
use crate::queues::Queues;
use crate::topics::{self, Topics};

/// How long a message is tried on a FIFO queue at most: a deduplication id holds for five minutes.
const MAX_TRYING: Duration = Duration::from_secs(240);

/// Lists of accepted messages, of ten to some eighty each, whose verdicts are given at a time.
const TOLD: usize = 16;

/// Sends to one queue or topic.
pub(crate) struct SqsProducer {
    capabilities: Arc<Capabilities>,
    shared: Arc<Shared>,
    _core: Arc<Core>,
}

/// What the producer and its task share.
pub(crate) struct Shared {
    to: Target,
    pub(crate) clients: Clients,
    pub(crate) link: Arc<Link>,
    pub(crate) queues: Arc<Queues>,
    topics: Option<Arc<Topics>>,
    deadline: Duration,
    require_route: bool,
    pub(crate) max_requests: usize,
    pub(crate) max_message: usize,
    /// The longest hop of a delay that is longer.
    pub(crate) hop: Option<Duration>,
    /// Most bytes of a request; less once the broker found one too long.
    pub(crate) max_batch: AtomicUsize,
    pub(crate) inbox: Mutex<Inbox>,
    pub(crate) wake: Notify,
    /// Past its deadline: everything left is given up.
    pub(crate) abandoned: AtomicBool,
    open: Open,
}

#[derive(Default)]
pub(crate) struct Inbox {
    pub(crate) closed: bool,
    /// Whether the task is to be woken for messages: to wake it costs as much as a message.
    pub(crate) awaited: bool,
    pub(crate) items: VecDeque<Item>,
}

/// The count of messages without a verdict.
#[derive(Default)]
pub(crate) struct Open {
    count: AtomicUsize,
    none: Notify,
}

/// A message on its way.
pub(crate) struct Item {
    /// Where it goes.
    pub(crate) to: Target,
    pub(crate) message: Message,
    pub(crate) verdict: Verdict,
    pub(crate) expires: Instant,
    /// A try of it ended without telling whether the broker has it.
    pub(crate) unsure: bool,
    pub(crate) tries: u32,
}

/// The place of a message's verdict. Dropped without one, the message is given up as unknown.
pub(crate) struct Verdict {
    done: Arc<Completion>,
    index: usize,
    given: bool,
    shared: Arc<Shared>,
}

impl Verdict {
    pub(crate) fn accept(mut self, receipt: Receipt) {
        self.given = true;
        self.done.accept(self.index, receipt);
    }

    fn fail(mut self, error: Error, message: Option<Message>) {
        self.given = true;
        self.done.fail(self.index, error.with_context("address", &self.shared.to.name), message);
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        if !self.given {
            self.done.fail(self.index, Error::closed("sender").with_outcome(Outcome::Unknown), None);
        }
        if self.shared.open.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.open.none.notify_waiters();
        }
    }
}

impl Item {
    pub(crate) fn fail(self, error: Error) {
        let error = if self.unsure { error.with_outcome(Outcome::Unknown) } else { error };
        self.verdict.fail(error, Some(self.message));
    }
}

impl fmt::Debug for SqsProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsProducer").field("address", &self.shared.to.name).finish_non_exhaustive()
    }
}

impl SqsProducer {
    pub(crate) fn open(
        core: Arc<Core>,
        to: Target,
        capabilities: Capabilities,
        max_batch: usize,
        options: &ProducerOptions,
    ) -> Arc<dyn Producer> {
        let shared = Arc::new(Shared {
            to,
            clients: core.clients.clone(),
            link: core.link.clone(),
            queues: core.queues.clone(),
            topics: core.topics.clone(),
            deadline: options.deadline,
            require_route: options.require_route,
            max_requests: core.config.max_sends,
            max_message: capabilities.max_message_bytes,
            hop: core.config.delay_hops,
            max_batch: AtomicUsize::new(max_batch),
            inbox: Mutex::default(),
            wake: Notify::new(),
            abandoned: AtomicBool::new(false),
            open: Open::default(),
        });
        let weak: std::sync::Weak<Shared> = Arc::downgrade(&shared);
        core.adopt(weak);
        let (told, news) = unbounded_channel();
        core.spawn(tell(news));
        core.spawn_apart(Driver::new(shared.clone(), told).run());
        Arc::new(Self { capabilities: Arc::new(capabilities), shared, _core: core })
    }
}

/// Messages that the broker has, with what it says of each.
pub(crate) type Told = Vec<(Item, Receipt)>;

/// Gives verdicts where those who wait for them are, most likely, and lets go of the messages: to wake many from another thread
/// costs as much as sending, and memory is freed cheapest where it was allocated.
async fn tell(news: UnboundedReceiver<Told>) {
    let (mut news, mut lists) = (News(news), Vec::new());
    while news.0.recv_many(&mut lists, TOLD).await > 0 {
        together(|| lists.drain(..).flatten().for_each(|(item, receipt)| item.verdict.accept(receipt)));
    }
}

/// Dropped with its runtime, it tells what it has: those who wait may be elsewhere.
struct News(UnboundedReceiver<Told>);

impl Drop for News {
    fn drop(&mut self) {
        self.0.close();
        while let Ok(list) = self.0.try_recv() {
            list.into_iter().for_each(|(item, receipt)| item.verdict.accept(receipt));
        }
    }
}

#[async_trait]
impl Producer for SqsProducer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.capabilities.clone()
    }

    fn send(&self, batch: Vec<Message>, done: Completion) {
        let expires = Instant::now() + self.shared.deadline;
        let mut inbox = self.shared.inbox.lock();
        if inbox.closed {
            drop(inbox);
            done.fail_all(&Error::closed("sender"), batch);
            return;
        }
        self.shared.open.count.fetch_add(batch.len(), Ordering::AcqRel);
        let done = Arc::new(done);
        inbox.items.extend(batch.into_iter().enumerate().map(|(index, message)| {
            let verdict = Verdict { done: done.clone(), index, given: false, shared: self.shared.clone() };
            Item { to: self.shared.to.clone(), message, verdict, expires, unsure: false, tries: 0 }
        }));
        let awaited = std::mem::take(&mut inbox.awaited);
        drop(inbox);
        if awaited {
            self.shared.wake.notify_one();
        }
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        self.shared.begin_close();
        let mut report = CloseReport::default();
        if timeout_at(deadline, self.shared.settled()).await.is_err() {
            report.unconfirmed = self.shared.open.count.load(Ordering::Acquire);
            self.shared.abandon();
        }
        report
    }
}

impl Drop for SqsProducer {
    fn drop(&mut self) {
        // What was given to it goes on.
        self.shared.begin_close();
    }
}

impl Opened for Shared {
    fn begin_close(&self) {
        self.inbox.lock().closed = true;
        self.wake.notify_one();
    }

    fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    fn left(&self) -> CloseReport {
        let mut report = CloseReport::default();
        report.unconfirmed = self.open.count.load(Ordering::Acquire);
        report
    }
}

/// Refuses a sender to FIFO queues that would try a message for so long that it could double.
pub(crate) fn check_fifo(deadline: Duration) -> Result<()> {
    if deadline <= MAX_TRYING {
        return Ok(());
    }
    let why = "a message is sent to a FIFO queue for 4 minutes at most: its deduplication id holds for five";
    Err(Error::unsupported(why).with_context("deadline", format!("{deadline:?}")))
}

/// Refuses to send to a topic only where somebody gets it.
pub(crate) fn check_route(required: bool) -> Result<()> {
    if required { Err(Error::unsupported("SNS does not tell whether anybody gets a message")) } else { Ok(()) }
}

impl Shared {
    /// Finds out where a message goes, which is not where the sender does when it says so itself; what that is.
    pub(crate) fn direct(&self, item: &mut Item) -> Result<Kind> {
        let Some(to) = item.message.destination().filter(|to| !self.to.is(to)) else { return Ok(self.to.kind) };
        item.to = Target::of(to)?;
        if item.to.kind.topic {
            self.topics()?;
            check_route(self.require_route)?;
        }
        if item.to.kind.fifo {
            check_fifo(self.deadline)?;
        }
        Ok(item.to.kind)
    }

    /// What messages to topics go through.
    pub(crate) fn topics(&self) -> Result<&Topics> {
        self.topics.as_deref().ok_or_else(topics::unsupported)
    }

    /// Waits until every message has a verdict.
    async fn settled(&self) {
        loop {
            let none = self.open.none.notified();
            tokio::pin!(none);
            none.as_mut().enable();
            if self.open.count.load(Ordering::Acquire) == 0 {
                return;
            }
            none.await;
        }
    }
}
