//! What stands between a sender and a producer: window, coalescing, deadline, and retry of sends.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::address::Address;
use crate::block::{Block, Resend, SlotRef};
use crate::broker::CloseReport;
use crate::capability::Capabilities;
use crate::completion::Completion;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::event::Events;
use crate::memory::far;
use crate::message::Message;
use crate::producer::Producer;
use crate::sender::{SenderConfig, named};
use crate::window::{Closed, Window};

pub(crate) mod check;
mod run;
mod task;

use run::Run;

/// Single sends that are handed over together at most.
const COALESCE: usize = 256;
/// First pause before a failed message is sent again; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Sends to one address on behalf of any number of callers.
pub(crate) struct Outbox {
    address: Address,
    producer: Arc<dyn Producer>,
    capabilities: Arc<Capabilities>,
    config: SenderConfig,
    /// A message takes at least `unit` bytes of it, so that count and bytes are bounded at once.
    window: Window,
    unit: usize,
    /// Spreads the retries of senders; the same for all messages of one, so that they keep their order.
    jitter: f64,
    /// May be held when `state` is taken, never the other way round.
    run: Mutex<Run>,
    state: Mutex<State>,
    /// Held while pending messages are handed over, so that none overtakes. Never taken inside `state`: a producer
    /// may fail messages, and so come back here, before its `send` returns.
    handing: Mutex<()>,
    /// Wakes the task.
    work: Notify,
    /// Wakes whoever flushes.
    progress: Notify,
    flushing: AtomicUsize,
    closed: AtomicBool,
    abandoned: AtomicBool,
    /// Whether the library's own headers may be sent (dead letters, retry copies).
    internal: bool,
    /// What is wrong with the broker, for those that time out.
    events: Events,
}

#[derive(Default)]
struct State {
    pending: Vec<(Message, SlotRef)>,
    pending_due: Option<Instant>,
    retries: Vec<(Instant, Resend)>,
    /// Blocks without all verdicts, by deadline.
    in_flight: VecDeque<Arc<Block>>,
    /// When the task wakes by itself.
    armed: Option<Instant>,
}

impl State {
    fn next_due(&self) -> Option<Instant> {
        let retry = self.retries.iter().map(|(due, _)| *due).min();
        let expiry = self.in_flight.front().map(|b| b.deadline());
        [self.pending_due, retry, expiry].into_iter().flatten().min()
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Outbox {
    /// Starts an outbox with its task; the task ends after [`abandon`](Self::abandon) or [`close`](Self::close), when
    /// nothing is in flight any more.
    ///
    /// `internal` outboxes send copies that the library makes, with headers of its own.
    pub(crate) fn start(
        address: Address,
        producer: Arc<dyn Producer>,
        config: SenderConfig,
        internal: bool,
        events: Events,
    ) -> Arc<Self> {
        let bytes = config.window_bytes.clamp(1, u32::MAX as usize);
        let outbox = Arc::new(Self {
            address,
            capabilities: producer.capabilities(),
            producer,
            window: Window::new(u32::try_from(bytes).unwrap_or(u32::MAX)),
            unit: (bytes / config.window.max(1)).max(1),
            jitter: 0.75 + 0.5 * fastrand::f64(),
            config: SenderConfig { window_bytes: bytes, ..config },
            run: Mutex::default(),
            state: Mutex::default(),
            handing: Mutex::new(()),
            work: Notify::new(),
            progress: Notify::new(),
            flushing: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            internal,
            events,
        });
        tokio::spawn(task::run(outbox.clone()));
        outbox
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    pub(crate) fn capabilities(&self) -> &Arc<Capabilities> {
        &self.capabilities
    }

    /// No handle is left: the task ends when what is in flight is done.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        self.end_run();
        self.work.notify_one();
    }

    /// The error with what is known to be wrong with the broker.
    fn with_health(&self, error: Error) -> Error {
        let problems = self.events.health().problems;
        if problems.is_empty() { error } else { error.with_context("health", problems.join("; ")) }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn cost(&self, size: usize) -> usize {
        size.clamp(self.unit, self.config.window_bytes)
    }

    async fn room(&self, cost: usize, deadline: Instant) -> Result<()> {
        let bytes = u32::try_from(cost).unwrap_or(u32::MAX);
        if !self.window.try_take(bytes) {
            match timeout_at(deadline, self.window.take(bytes)).await {
                Ok(Ok(())) => {}
                Ok(Err(Closed)) => return Err(Error::closed("sender")),
                Err(_) => {
                    let why = "no room in the window before the deadline: the broker is slow or out of reach";
                    return Err(self.with_health(Error::new(ErrorKind::Timeout, why)));
                }
            }
        }
        if self.is_closed() {
            self.window.give(cost);
            return Err(Error::closed("sender"));
        }
        Ok(())
    }

    pub(crate) async fn submit(self: &Arc<Self>, message: Message) -> Result<SlotRef> {
        if self.is_closed() {
            return Err(named(Error::closed("sender"), &self.address));
        }
        let size = message.size();
        self.check(&message, size)?;
        let deadline = far(Instant::now(), self.config.deadline);
        let cost = self.cost(size);
        self.room(cost, deadline).await.map_err(|e| named(e, &self.address))?;
        let slot = self.place(cost, deadline);
        if self.capabilities.per_request && !self.config.linger.is_zero() {
            self.coalesce(message, &slot);
        } else {
            self.producer.send_one(message, Completion::one(slot.clone()));
        }
        if self.is_closed() {
            // Meanwhile; the task may be gone, and neither hands over nor forgets any more.
            self.hand_over();
            self.end_run();
            self.state.lock().in_flight.retain(|b| !b.is_done());
        }
        Ok(slot)
    }

    fn coalesce(&self, message: Message, slot: &SlotRef) {
        let mut state = self.state.lock();
        state.pending.push((message, slot.clone()));
        if state.pending_due.is_none() {
            let due = Instant::now() + self.config.linger;
            state.pending_due = Some(due);
            self.wake_before(&state, due);
        }
        let full = state.pending.len() >= COALESCE.min(self.capabilities.max_batch.max(1));
        drop(state);
        if full {
            self.hand_over();
        }
    }

    /// What was submitted before a batch goes before it.
    fn hand_over_pending(&self) {
        if self.capabilities.per_request {
            self.hand_over();
        }
    }

    fn hand_over(&self) {
        let _handing = self.handing.lock();
        let (messages, slots): (Vec<_>, Vec<_>) = {
            let mut state = self.state.lock();
            state.pending_due = None;
            state.pending.drain(..).unzip()
        };
        self.send_parts(messages, slots);
    }

    /// Sees to it that the block gets its verdicts by its deadline.
    fn watch(&self, block: &Arc<Block>) {
        if !block.is_done() {
            self.watch_locked(&mut self.state.lock(), block);
        }
    }

    fn watch_locked(&self, state: &mut State, block: &Arc<Block>) {
        while state.in_flight.front().is_some_and(|b| b.is_done()) {
            state.in_flight.pop_front();
        }
        if state.in_flight.len() > 2 * self.config.window.max(64) {
            // One that is stuck must not keep those behind it in memory.
            state.in_flight.retain(|b| !b.is_done());
        }
        // Mostly the last; room may have come in another order than the calls.
        let at = state.in_flight.iter().rposition(|b| b.deadline() <= block.deadline()).map_or(0, |i| i + 1);
        state.in_flight.insert(at, block.clone());
        self.wake_before(state, block.deadline());
    }

    /// Sees to it that the task is awake by then.
    fn wake_before(&self, state: &State, due: Instant) {
        if state.armed.is_none_or(|armed| due < armed) {
            self.work.notify_one();
        }
    }

    pub(crate) async fn send_all(self: &Arc<Self>, mut messages: Vec<Message>) -> Arc<Block> {
        // So that what is done is forgotten in order.
        self.end_run();
        let deadline = far(Instant::now(), self.config.deadline);
        let len = messages.len();
        let mut sizes = 0;
        let mut refused = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            let size = message.size();
            sizes += size;
            if let Err(error) = self.check(message, size) {
                refused.push((index, error));
            }
        }
        let cost = self.cost(sizes.div_ceil(len.max(1)));
        let block = Block::new(len, cost, deadline, Some(self.clone()));
        let most = self.capabilities.max_batch.min(self.config.window_bytes / cost).max(1);
        let fits = len <= most && sizes <= self.capabilities.max_batch_bytes;
        if self.is_closed() {
            let error = named(Error::closed("sender"), &self.address);
            (0..len).for_each(|index| block.refuse(index, error.clone()));
        } else if fits && refused.is_empty() {
            match self.room(cost * len, deadline).await {
                Ok(()) if len > 0 => {
                    block.hand(len);
                    self.hand_over_pending();
                    self.producer.send(std::mem::take(&mut messages), Completion::whole(&block));
                    self.watch(&block);
                }
                Ok(()) => {}
                Err(error) => {
                    let error = named(error, &self.address);
                    (0..len).for_each(|index| block.refuse(index, error.clone()));
                }
            }
        } else {
            self.send_chunks(&block, messages, refused, cost, most).await;
        }
        block
    }

    async fn send_chunks(
        &self,
        block: &Arc<Block>,
        messages: Vec<Message>,
        refused: Vec<(usize, Error)>,
        cost: usize,
        most: usize,
    ) {
        let mut refused = refused.into_iter().peekable();
        let mut messages = messages.into_iter().enumerate().peekable();
        let mut watched = false;
        let why = Error::new(ErrorKind::Closed, "the caller went away before there was room");
        let _rest = Rest { block, error: named(why, &self.address) };
        while messages.peek().is_some() {
            let (mut chunk, mut slots, mut bytes) = (Vec::new(), Vec::new(), 0);
            while let Some((index, message)) = messages.peek() {
                if let Some((_, error)) = refused.next_if(|(i, _)| i == index) {
                    block.refuse(*index, error);
                    messages.next();
                    continue;
                }
                let size = message.size();
                if chunk.len() >= most || (!chunk.is_empty() && bytes + size > self.capabilities.max_batch_bytes) {
                    break;
                }
                bytes += size;
                if let Some((index, message)) = messages.next() {
                    slots.push(block.slot_ref(index));
                    chunk.push(message);
                }
            }
            let end = messages.peek().map_or(block.len(), |(index, _)| *index);
            if chunk.is_empty() {
                continue;
            }
            if let Err(error) = self.room(cost * chunk.len(), block.deadline()).await {
                let error = named(error, &self.address);
                slots.iter().for_each(|slot| block.refuse(slot.index(), error.clone()));
                block.hand(end);
                continue;
            }
            block.hand(end);
            self.hand_over_pending();
            self.producer.send(chunk, Completion::slots(slots));
            // After the deadline the task does not know the block any more.
            if !watched || Instant::now() >= block.deadline() {
                self.watch(block);
                watched = !block.is_done();
            }
        }
    }

    pub(crate) async fn flush(&self) -> Result<()> {
        self.flushing.fetch_add(1, Ordering::AcqRel);
        let guard = Decrement(&self.flushing);
        self.hand_over();
        let blocks: Vec<_> = {
            // At once, or a block that is begun in between would be waited for to its last place.
            let mut run = self.run.lock();
            run.end();
            self.state.lock().in_flight.iter().filter(|b| !b.is_done()).cloned().collect()
        };
        for block in blocks {
            loop {
                let progress = self.progress.notified();
                if block.is_done() {
                    break;
                }
                progress.await;
            }
        }
        drop(guard);
        if self.is_closed() { Err(Error::closed("sender")) } else { Ok(()) }
    }

    pub(crate) async fn close(&self, deadline: Instant) -> CloseReport {
        let mut report = CloseReport::default();
        if !self.closed.swap(true, Ordering::AcqRel) {
            // Those that wait for room are told at once; what is in flight is waited for.
            self.window.close();
            let _ = timeout_at(deadline, self.flush()).await;
            let retries = std::mem::take(&mut self.state.lock().retries);
            for (_, item) in retries {
                report.unconfirmed += usize::from(item.error.outcome() == Outcome::Unknown);
                item.slot.give_up(item.error);
            }
            let why = "the sender was closed before the broker answered";
            let error = Error::new(ErrorKind::Closed, why).with_outcome(Outcome::Unknown);
            let error = named(error, &self.address);
            report.unconfirmed += self.expire_all(&error);
            report.merge(self.producer.close(deadline).await);
            // Of a send that passed the look at `closed` just before.
            report.unconfirmed += self.expire_all(&error);
            self.work.notify_one();
        }
        report
    }
}

impl Outbox {
    /// Gives everything in flight this verdict, and says how many messages had none.
    fn expire_all(&self, error: &Error) -> usize {
        let left = {
            let mut run = self.run.lock();
            run.end();
            std::mem::take(&mut self.state.lock().in_flight)
        };
        left.iter().map(|block| block.expire(error)).sum()
    }
}

/// Refuses what is left of a batch when its caller goes away.
struct Rest<'a> {
    block: &'a Block,
    error: Error,
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        self.block.refuse_rest(&self.error);
    }
}

/// An outbox with one owner: its task ends with it.
#[derive(Debug)]
pub(crate) struct Owned(pub(crate) Arc<Outbox>);

impl std::ops::Deref for Owned {
    type Target = Arc<Outbox>;

    fn deref(&self) -> &Arc<Outbox> {
        &self.0
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

struct Decrement<'a>(&'a AtomicUsize);

impl Drop for Decrement<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
