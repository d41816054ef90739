//! Requests of a producer: cut from what was given, several at a time, one at a time on FIFO queues.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_sdk_sqs::operation::send_message_batch::SendMessageBatchOutput;
use queue_core::{Error, ErrorKind, Outcome, Receipt, Result};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::convert::{self, Encoded};
use crate::error::{self, Words};
use crate::producer::{Item, Shared};
use crate::queues;

/// The most entries of one request.
pub(crate) const MAX_ENTRIES: usize = 10;
/// The pause before a FIFO queue is tried again: from, to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

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
pub(crate) struct Driver {
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
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
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

    pub(crate) async fn run(mut self) {
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
        if shared.link.is_down() {
            return failed(&shared, fifo, items, &shared.link.away().with_operation("send"));
        }
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
