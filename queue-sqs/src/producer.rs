//! Sending: batches of ten, several requests at a time, a verdict per message.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::operation::send_message_batch::SendMessageBatchOutput;
use parking_lot::Mutex;
use queue_core::{
    Capabilities, CloseReport, Completion, Error, ErrorKind, Message, Outcome, Producer, ProducerOptions, Receipt,
    Result,
};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
use uuid::Uuid;

use crate::broker::{Core, Opened};
use crate::config::Clients;
use crate::convert::{self, Encoded};
use crate::error::{self, Words};
use crate::link::Link;
use crate::queues::{self, Queues};

/// The most entries of one request.
pub(crate) const MAX_ENTRIES: usize = 10;
/// The pause before a FIFO queue is tried again: from, to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long a message is tried on a FIFO queue at most: a deduplication id holds for five minutes.
const MAX_TRYING: Duration = Duration::from_secs(240);

/// Sends to one queue.
pub(crate) struct SqsProducer {
    capabilities: Arc<Capabilities>,
    shared: Arc<Shared>,
    _core: Arc<Core>,
}

/// What the producer and its task share.
struct Shared {
    name: Arc<str>,
    clients: Clients,
    link: Arc<Link>,
    queues: Arc<Queues>,
    trying: Duration,
    max_requests: usize,
    max_message: usize,
    /// Most bytes of a request; less once the broker found one too long.
    max_batch: AtomicUsize,
    inbox: Mutex<Inbox>,
    wake: Notify,
    /// Past its deadline: everything left is given up.
    abandoned: AtomicBool,
    open: Open,
}

#[derive(Default)]
struct Inbox {
    closed: bool,
    items: VecDeque<Item>,
}

/// The count of messages without a verdict.
#[derive(Default)]
struct Open {
    count: AtomicUsize,
    none: Notify,
}

/// A message on its way.
struct Item {
    message: Message,
    verdict: Verdict,
    expires: Instant,
    /// A try of it ended without telling whether the broker has it.
    unsure: bool,
}

/// The place of a message's verdict. Dropped without one, the message is given up as unknown.
struct Verdict {
    done: Arc<Completion>,
    index: usize,
    given: bool,
    shared: Arc<Shared>,
}

impl Verdict {
    fn accept(mut self, receipt: Receipt) {
        self.given = true;
        self.done.accept(self.index, receipt);
    }

    fn fail(mut self, error: Error, message: Option<Message>) {
        self.given = true;
        self.done.fail(self.index, error.with_context("address", &self.shared.name), message);
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
    fn fail(self, error: Error) {
        let error = if self.unsure { error.with_outcome(Outcome::Unknown) } else { error };
        self.verdict.fail(error, Some(self.message));
    }
}

impl fmt::Debug for SqsProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsProducer").field("address", &self.shared.name).finish_non_exhaustive()
    }
}

impl SqsProducer {
    pub(crate) fn open(
        core: Arc<Core>,
        name: &str,
        capabilities: Capabilities,
        max_batch: usize,
        options: &ProducerOptions,
    ) -> Arc<dyn Producer> {
        let shared = Arc::new(Shared {
            name: name.into(),
            clients: core.clients.clone(),
            link: core.link.clone(),
            queues: core.queues.clone(),
            trying: options.deadline.min(MAX_TRYING),
            max_requests: core.config.max_sends,
            max_message: capabilities.max_message_bytes,
            max_batch: AtomicUsize::new(max_batch),
            inbox: Mutex::default(),
            wake: Notify::new(),
            abandoned: AtomicBool::new(false),
            open: Open::default(),
        });
        let weak: std::sync::Weak<Shared> = Arc::downgrade(&shared);
        core.adopt(weak);
        core.spawn(Driver::new(shared.clone()).run());
        Arc::new(Self { capabilities: Arc::new(capabilities), shared, _core: core })
    }
}

#[async_trait]
impl Producer for SqsProducer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.capabilities.clone()
    }

    fn send(&self, batch: Vec<Message>, done: Completion) {
        let expires = Instant::now() + self.shared.trying;
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
            Item { message, verdict, expires, unsure: false }
        }));
        drop(inbox);
        self.shared.wake.notify_one();
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        self.shared.begin_close();
        let mut report = CloseReport::default();
        if timeout_at(deadline, self.shared.settled()).await.is_err() {
            report.unconfirmed = self.shared.open.count.load(Ordering::Acquire);
            self.shared.abandoned.store(true, Ordering::Release);
            self.shared.wake.notify_one();
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

    fn left(&self) -> CloseReport {
        let mut report = CloseReport::default();
        report.unconfirmed = self.open.count.load(Ordering::Acquire);
        report
    }
}

impl Shared {
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

/// One request, ready to go.
struct Request {
    name: Arc<str>,
    fifo: bool,
    items: Vec<Item>,
    encoded: Vec<Encoded>,
    bytes: usize,
}

/// What came back of a request to be sent again, in order.
struct Again {
    fifo: bool,
    items: Vec<Item>,
    /// Whether to wait before.
    pause: bool,
}

/// Cuts what was given into requests and keeps them going.
struct Driver {
    shared: Arc<Shared>,
    waiting: VecDeque<Item>,
    /// The first that did not fit into the request before.
    encoded: Option<(Item, Encoded, Arc<str>)>,
    /// A request for a FIFO queue that waits for the one before.
    held: Option<Request>,
    requests: JoinSet<Again>,
    fifo_busy: bool,
    pause: Duration,
    resume: Option<Instant>,
}

impl Driver {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            waiting: VecDeque::new(),
            encoded: None,
            held: None,
            requests: JoinSet::new(),
            fifo_busy: false,
            pause: PAUSE.0,
            resume: None,
        }
    }

    async fn run(mut self) {
        loop {
            if self.shared.abandoned.load(Ordering::Acquire) {
                return self.abandon();
            }
            self.start();
            let closed = self.shared.inbox.lock().closed;
            if closed && self.is_idle() {
                return;
            }
            let shared = self.shared.clone();
            let resume = self.resume;
            tokio::select! {
                () = shared.wake.notified() => {}
                Some(ended) = self.requests.join_next() => self.ended(ended),
                () = sleep_until(resume.unwrap_or_else(Instant::now)), if resume.is_some() => self.resume = None,
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.requests.is_empty()
            && self.waiting.is_empty()
            && self.encoded.is_none()
            && self.held.is_none()
            && self.shared.inbox.lock().items.is_empty()
    }

    /// Gives up: what was not sent is handed back, what is under way is unknown.
    fn abandon(mut self) {
        let items = std::mem::take(&mut self.shared.inbox.lock().items);
        let held = self.held.take().map(|r| r.items).unwrap_or_default();
        let encoded = self.encoded.take().map(|(item, ..)| item);
        for item in held.into_iter().chain(encoded).chain(self.waiting.drain(..)).chain(items) {
            item.fail(Error::closed("sender"));
        }
    }

    /// Starts requests as long as there are messages and room.
    fn start(&mut self) {
        while self.requests.len() < self.shared.max_requests && self.resume.is_none() {
            let Some(request) = self.held.take().or_else(|| self.cut()) else { return };
            if request.fifo {
                if self.fifo_busy {
                    self.held = Some(request);
                    return;
                }
                self.fifo_busy = true;
            }
            self.requests.spawn(request.send(self.shared.clone()));
        }
    }

    fn ended(&mut self, ended: std::result::Result<Again, tokio::task::JoinError>) {
        let Ok(again) = ended else {
            // It panicked; its messages were answered when they were dropped.
            self.fifo_busy = false;
            return;
        };
        if again.fifo {
            self.fifo_busy = false;
        }
        if again.items.is_empty() {
            self.pause = PAUSE.0;
            return;
        }
        // Before everything else, so that nothing overtakes.
        if let Some((item, ..)) = self.encoded.take() {
            self.waiting.push_front(item);
        }
        if let Some(request) = self.held.take() {
            request.items.into_iter().rev().for_each(|item| self.waiting.push_front(item));
        }
        again.items.into_iter().rev().for_each(|item| self.waiting.push_front(item));
        if again.pause {
            self.resume = Some(Instant::now() + self.pause);
            self.pause = (self.pause * 2).min(PAUSE.1);
        }
    }

    fn next_item(&mut self) -> Option<Item> {
        if self.waiting.is_empty() {
            std::mem::swap(&mut self.waiting, &mut self.shared.inbox.lock().items);
        }
        self.waiting.pop_front()
    }

    /// Makes the next request of what waits. Messages that cannot be sent fail alone, before the network.
    fn cut(&mut self) -> Option<Request> {
        let limit = self.shared.max_batch.load(Ordering::Relaxed);
        let mut request: Option<Request> = None;
        loop {
            let (item, encoded, name) = match self.encoded.take() {
                Some(ready) => ready,
                None => {
                    let Some(item) = self.next_item() else { return request };
                    match self.encode(item) {
                        Some(ready) => ready,
                        None => continue,
                    }
                }
            };
            let current = request.get_or_insert_with(|| Request {
                fifo: queues::is_fifo(&name),
                name: name.clone(),
                items: Vec::with_capacity(MAX_ENTRIES),
                encoded: Vec::with_capacity(MAX_ENTRIES),
                bytes: 0,
            });
            let fits = current.items.is_empty()
                || (current.name == name && current.items.len() < MAX_ENTRIES && current.bytes + encoded.size <= limit);
            if !fits {
                self.encoded = Some((item, encoded, name));
                return request;
            }
            current.bytes += encoded.size;
            current.items.push(item);
            current.encoded.push(encoded);
        }
    }

    fn encode(&self, mut item: Item) -> Option<(Item, Encoded, Arc<str>)> {
        if item.expires <= Instant::now() {
            item.fail(Error::new(ErrorKind::Timeout, "the message was not sent in time").with_operation("send"));
            return None;
        }
        match self.try_encode(&mut item) {
            Ok((encoded, name)) => Some((item, encoded, name)),
            Err(error) => {
                item.fail(error.with_operation("send"));
                None
            }
        }
    }

    fn try_encode(&self, item: &mut Item) -> Result<(Encoded, Arc<str>)> {
        let name = match item.message.destination() {
            Some(to) if to.is_topic() || to.name() != &*self.shared.name => queues::name_of(to)?.into(),
            _ => self.shared.name.clone(),
        };
        let fifo = queues::is_fifo(&name);
        if fifo && item.message.get_id().is_none() {
            // In the message, so that every later try has the same.
            let message = std::mem::take(&mut item.message);
            item.message = message.id(Uuid::now_v7().simple().to_string());
        }
        let encoded = convert::encode(&item.message, fifo, 0)?;
        if encoded.size > self.shared.max_message {
            return Err(Error::new(ErrorKind::TooLarge, "the message is larger than the queue takes")
                .with_context("limit", self.shared.max_message)
                .with_context("actual", encoded.size));
        }
        Ok((encoded, name))
    }
}

impl Request {
    async fn send(self, shared: Arc<Shared>) -> Again {
        let Self { name, fifo, items, encoded, bytes } = self;
        let url = match shared.queues.url(&name).await {
            Ok(url) => url,
            Err(error) => {
                return failed(&shared, fifo, items, &error.with_operation("send").with_outcome(Outcome::NotSent));
            }
        };
        let entries = encoded.into_iter().enumerate().map(|(index, encoded)| {
            let mut entry = encoded.entry;
            entry.id = index.to_string();
            entry
        });
        let entries: Vec<_> = entries.collect();
        let result = shared.clients.once.send_message_batch().queue_url(&*url).set_entries(Some(entries)).send().await;
        match shared.link.note("send", Words::Hidden, result) {
            Ok(output) => answered(fifo, items, output),
            Err(error) if error.kind() == ErrorKind::TooLarge && items.len() > 1 => {
                // Nothing of it was taken; smaller requests are.
                shared.max_batch.fetch_min(bytes / 2, Ordering::Relaxed);
                Again { fifo, items, pause: false }
            }
            Err(error) => failed(&shared, fifo, items, &shared.queues.failed(&name, error)),
        }
    }
}

/// Whether the message goes again at once: on a FIFO queue, where the deduplication id forbids a double and order would
/// be lost by way of the handle.
fn goes_again(fifo: bool, item: &Item, error: &Error) -> bool {
    fifo && error.is_retryable() && Instant::now() < item.expires
}

fn failed(shared: &Shared, fifo: bool, items: Vec<Item>, error: &Error) -> Again {
    let mut again = Again { fifo, items: Vec::new(), pause: true };
    for mut item in items {
        if goes_again(fifo, &item, error) && !shared.abandoned.load(Ordering::Acquire) {
            item.unsure |= error.outcome() == Outcome::Unknown;
            again.items.push(item);
        } else {
            item.fail(error.clone());
        }
    }
    again
}

/// Gives each message its own verdict.
fn answered(fifo: bool, items: Vec<Item>, output: SendMessageBatchOutput) -> Again {
    let mut again = Again { fifo, items: Vec::new(), pause: true };
    let mut items: Vec<Option<Item>> = items.into_iter().map(Some).collect();
    let mut take =
        |id: &str| id.parse::<usize>().ok().and_then(|index| items.get_mut(index)?.take().map(|i| (index, i)));
    for entry in output.successful {
        if let Some((_, item)) = take(&entry.id) {
            let mut receipt = Receipt::with_id(entry.message_id);
            receipt.offset = entry.sequence_number.and_then(|n| n.parse().ok());
            item.verdict.accept(receipt);
        }
    }
    let mut refused = Vec::new();
    for entry in &output.failed {
        if let Some((index, item)) = take(&entry.id) {
            refused.push((index, item, error::from_entry("send", entry)));
        }
    }
    let missing = items.into_iter().enumerate().filter_map(|(index, item)| Some((index, item?)));
    refused.extend(missing.map(|(index, item)| (index, item, error::unmentioned("send"))));
    refused.sort_unstable_by_key(|(index, ..)| *index);
    for (_, mut item, error) in refused {
        if goes_again(fifo, &item, &error) {
            item.unsure |= error.outcome() == Outcome::Unknown;
            again.items.push(item);
        } else {
            item.fail(error);
        }
    }
    again
}
