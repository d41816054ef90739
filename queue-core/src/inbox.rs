//! What stands between a receiver and a consumer: prefetch, answers, retries, dead letters, order by key.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::address::Source;
use crate::broker::CloseReport;
use crate::capability::{Capabilities, Ordering as Order, RetryVia};
use crate::client::ClientInner;
use crate::consumer::{AckToken, Answer, Consumer, Received};
use crate::dead_letter::{self, Reason};
use crate::delivery::{Answered, hold};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{EventKind, HealthState};
use crate::lease::{Fetch, Ledger};
use crate::message::Message;
use crate::outbox::Outbox;
use crate::receiver::ReceiverConfig;

const RUNNING: u8 = 0;
const STOPPED: u8 = 1;
const CLOSED: u8 = 2;

/// Deliveries beyond `max_deliveries` that a message gets which the broker counted and nobody answered.
const SPARE_DELIVERIES: u32 = 3;
/// Pauses between tries of a dead-letter copy.
const COPY_RETRY_MIN: Duration = Duration::from_millis(200);
const COPY_RETRY_MAX: Duration = Duration::from_secs(30);

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
}

impl Held {
    fn size(&self) -> usize {
        self.message.size()
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
    pub(crate) config: ReceiverConfig,
    pub(crate) client: Arc<ClientInner>,
    pub(crate) ledger: Ledger,
    /// Messages in the receiver's own hands that were not handed out yet.
    pub(crate) buffered: AtomicUsize,
    /// Where dead letters go; `None`: they are discarded.
    dead_letters: Option<Arc<Outbox>>,
    /// Where retry copies go, for brokers that need them.
    copies: Option<Arc<Outbox>>,
    runtime: Handle,
    unanswered: AtomicUsize,
    unanswered_bytes: AtomicUsize,
    state: AtomicU8,
    changed: watch::Sender<u8>,
    local: Mutex<Local>,
    /// Length of `local.ready`, to leave the lock alone while it is empty.
    local_ready: AtomicUsize,
    hasher: RandomState,
    poller: AtomicWaker,
    /// Whether the poller waits for room.
    starved: AtomicBool,
    /// Answers that are still on their way.
    pending: AtomicUsize,
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
        dead_letters: Option<Arc<Outbox>>,
        copies: Option<Arc<Outbox>>,
    ) -> Arc<Self> {
        let capabilities = consumer.capabilities();
        let leased = capabilities.max_lease.is_some();
        let inbox = Arc::new(Self {
            ledger: Ledger::new(leased, config.lease, config.max_handler_time),
            consumer,
            capabilities,
            source,
            config,
            client,
            buffered: AtomicUsize::new(0),
            dead_letters,
            copies,
            runtime: Handle::current(),
            unanswered: AtomicUsize::new(0),
            unanswered_bytes: AtomicUsize::new(0),
            state: AtomicU8::new(RUNNING),
            changed: watch::Sender::new(RUNNING),
            local: Mutex::default(),
            local_ready: AtomicUsize::new(0),
            hasher: RandomState::new(),
            poller: AtomicWaker::new(),
            starved: AtomicBool::new(false),
            pending: AtomicUsize::new(0),
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
        self.capabilities.retry_via == RetryVia::InPlace || self.per_key()
    }

    fn named(&self, error: Error, operation: &'static str) -> Error {
        error.with_operation(operation).with_context("source", &self.source)
    }

    // ---- receiving ----

    fn room(&self) -> usize {
        if self.unanswered_bytes.load(Ordering::Acquire) >= self.config.prefetch_bytes {
            return 0;
        }
        self.config.prefetch.saturating_sub(self.unanswered.load(Ordering::Acquire))
    }

    /// Fetches up to `max` messages; `None` at the end.
    pub(crate) fn poll_fetch(self: &Arc<Self>, cx: &mut Context<'_>, max: usize) -> Poll<Option<Result<Run>>> {
        loop {
            if !self.is_running() {
                return Poll::Ready(None);
            }
            if self.local_ready.load(Ordering::Acquire) > 0
                && let Some(run) = self.take_ready()
            {
                return Poll::Ready(Some(Ok(run)));
            }
            let starved = match NonZeroUsize::new(self.room().min(max)) {
                None => true,
                Some(max) => {
                    let mut received = self.ledger.vec();
                    match self.consumer.poll_receive(cx, max, &mut received) {
                        Poll::Ready(Ok(())) => match self.admit(received) {
                            Some(run) => return Poll::Ready(Some(Ok(run))),
                            // All of it was parked or dead-lettered.
                            None => continue,
                        },
                        Poll::Ready(Err(error)) => {
                            let told = self.enter(STOPPED);
                            return Poll::Ready(told.then(|| Err(self.named(error, "receive"))));
                        }
                        Poll::Pending => {
                            self.ledger.reuse(received);
                            false
                        }
                    }
                }
            };
            self.starved.store(starved, Ordering::Release);
            self.poller.register(cx.waker());
            // What happened before the waker was there woke nobody.
            if self.is_running() && self.local_ready.load(Ordering::Acquire) == 0 && !(starved && self.room() > 0) {
                return Poll::Pending;
            }
        }
    }

    fn take_ready(&self) -> Option<Run> {
        let held = self.local.lock().ready.pop_front()?;
        self.local_ready.fetch_sub(1, Ordering::AcqRel);
        let received = Received {
            message: Ok(held.message),
            token: held.token,
            attempt: held.attempt,
            lease: None,
            position: held.position,
        };
        Some(Run { fetch: held.fetch, next: held.index, items: vec![received].into_iter() })
    }

    /// Counts what was fetched and sorts out what is not handed out now.
    fn admit(self: &Arc<Self>, mut received: Vec<Received>) -> Option<Run> {
        let mut bytes = 0;
        let mut plain = !self.per_key();
        let last = self.config.max_deliveries.saturating_add(SPARE_DELIVERIES);
        for item in &received {
            match &item.message {
                Ok(message) => {
                    bytes += message.size();
                    plain &= item.attempt <= last && (self.copies.is_none() || message.headers().is_empty());
                }
                Err(undecodable) => {
                    bytes += undecodable.raw.len();
                    plain = false;
                }
            }
        }
        self.unanswered.fetch_add(received.len(), Ordering::AcqRel);
        self.unanswered_bytes.fetch_add(bytes, Ordering::AcqRel);
        if !plain {
            received = received.into_iter().filter_map(|item| self.sort_out(item, last)).collect();
        }
        if received.is_empty() {
            return None;
        }
        let fetch = self.ledger.open(self, &received);
        Some(Run { fetch, next: 0, items: received.into_iter() })
    }

    fn sort_out(self: &Arc<Self>, mut item: Received, last: u32) -> Option<Received> {
        let message = match &mut item.message {
            Ok(message) => message,
            Err(undecodable) => {
                let reason = Reason::new(&undecodable.error);
                let raw = Message::new(undecodable.raw.clone());
                item.message = Ok(raw);
                self.dead_letter(self.hold_alone(item)?, reason);
                return None;
            }
        };
        let mut due = None;
        if self.copies.is_some() {
            let size = message.size();
            let (attempt, at) = dead_letter::take_retry(message);
            // The size is counted as what is left, because that is what the answer subtracts.
            self.unanswered_bytes.fetch_sub(size - message.size(), Ordering::AcqRel);
            item.attempt = item.attempt.saturating_add(attempt - 1);
            due = at.and_then(|at| at.duration_since(SystemTime::now()).ok());
        }
        if item.attempt > last {
            let why = format!("delivered {} times without an answer", item.attempt - 1);
            let held = self.hold_alone(item)?;
            self.dead_letter(held, Reason::text(why));
            return None;
        }
        let lane = self.lane(message);
        if due.is_none() && lane.is_none() {
            return Some(item);
        }
        if let Some(lane) = lane {
            let mut local = self.local.lock();
            if let Some(behind) = local.lanes.get_mut(&lane) {
                behind.extend(self.hold_alone(item));
                return None;
            }
            local.lanes.insert(lane, VecDeque::new());
        }
        match due {
            Some(due) => {
                let held = self.hold_alone(item)?;
                self.hand_out_at(held, Instant::now() + due);
                None
            }
            None => Some(item),
        }
    }

    fn hold_alone(self: &Arc<Self>, item: Received) -> Option<Held> {
        let fetch = self.ledger.open(self, std::slice::from_ref(&item));
        let Received { message, token, attempt, position, .. } = item;
        Some(Held { fetch, index: 0, token, attempt, position, message: message.ok()? })
    }

    fn lane(&self, message: &Message) -> Option<u64> {
        if !self.per_key() {
            return None;
        }
        message.get_key().map(|key| self.hasher.hash_one(key))
    }

    /// Hands a message out again at once.
    fn hand_out(&self, held: Held) {
        self.local.lock().ready.push_back(held);
        self.local_ready.fetch_add(1, Ordering::AcqRel);
        self.poller.wake();
        if !self.is_running() {
            self.release_local();
        }
    }

    /// Hands a message out again at its time; keeps its place in its lane and its lease until then.
    fn hand_out_at(self: &Arc<Self>, held: Held, due: Instant) {
        self.spawn(async move |inbox| {
            tokio::select! {
                () = sleep_until(due) => inbox.hand_out(held),
                () = inbox.stopped() => {
                    let left = due.saturating_duration_since(Instant::now());
                    if inbox.capabilities.retry_via == RetryVia::Broker {
                        inbox.settle(&held, Answer::Retry(held.token, left));
                    } else {
                        inbox.settle(&held, Answer::Release(held.token));
                    }
                    inbox.finish(&held);
                }
            }
        });
    }

    // ---- answering ----

    fn spawn<F, Fut>(self: &Arc<Self>, work: F)
    where
        F: FnOnce(Arc<Self>) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.pending.fetch_add(1, Ordering::AcqRel);
        let done = Done(self.clone());
        let work = work(self.clone());
        self.runtime.spawn(async move {
            let _done = done;
            work.await;
        });
    }

    /// A message is answered for good, or is not ours any more.
    pub(crate) fn finish(&self, held: &Held) {
        held.fetch.close(held.index);
        if let Some(lane) = self.lane(&held.message) {
            let mut local = self.local.lock();
            let next = local.lanes.get_mut(&lane).and_then(VecDeque::pop_front);
            match next {
                Some(next) => {
                    drop(local);
                    self.hand_out(next);
                }
                None => drop(local.lanes.remove(&lane)),
            }
        }
        self.answered(1, held.size());
    }

    pub(crate) fn answered(&self, count: usize, bytes: usize) {
        self.unanswered_bytes.fetch_sub(bytes, Ordering::AcqRel);
        let left = self.unanswered.fetch_sub(count, Ordering::AcqRel) - count;
        if self.starved.load(Ordering::Acquire) && self.starved.swap(false, Ordering::AcqRel) {
            self.poller.wake();
        }
        if left <= self.buffered.load(Ordering::Acquire) && !self.is_running() {
            self.idle.notify_waiters();
        }
    }

    pub(crate) fn ack(&self, held: &Held) -> Answered {
        let stale = self.consumer.ack(&[held.token]).stale;
        self.finish(held);
        if stale.is_empty() { Answered::Accepted } else { Answered::LeaseLost }
    }

    pub(crate) fn ack_batch(&self, fetch: &Arc<Fetch>, first: u32, items: Vec<Received>) -> Answered {
        if self.per_key() {
            // Each lane is freed in turn.
            let mut index = first;
            let mut all = Answered::Accepted;
            for item in items {
                let held = hold(fetch, index, item);
                index += 1;
                if self.ack(&held) != Answered::Accepted {
                    all = Answered::LeaseLost;
                }
            }
            return all;
        }
        let report = match fetch.tokens() {
            Some(tokens) if tokens.len() == items.len() => self.consumer.ack(tokens),
            _ => self.consumer.ack(&items.iter().map(|item| item.token).collect::<Vec<_>>()),
        };
        (first..).zip(&items).for_each(|(index, _)| fetch.close(index));
        let bytes = items.iter().map(|item| item.message.as_ref().map_or(0, Message::size)).sum();
        self.answered(items.len(), bytes);
        self.ledger.reuse(items);
        if report.stale.is_empty() { Answered::Accepted } else { Answered::LeaseLost }
    }

    /// Gives an answer other than ack to the consumer.
    fn settle(self: &Arc<Self>, held: &Held, answer: Answer) -> Answered {
        let settled = self.consumer.settle(vec![answer]);
        if let Some(pending) = settled.pending {
            self.spawn(async move |inbox| {
                for (_, error) in pending.await {
                    inbox.client.events.emit(EventKind::AnswerFailed, &inbox.source.to_string(), Some(error));
                }
            });
        }
        let _ = held;
        if settled.stale.is_empty() { Answered::Accepted } else { Answered::LeaseLost }
    }

    pub(crate) fn release(self: &Arc<Self>, held: Held) -> Answered {
        if self.in_place() && self.is_running() {
            if self.consumer.holds(held.token) {
                self.hand_out(held);
                return Answered::Accepted;
            }
            self.finish(&held);
            return Answered::LeaseLost;
        }
        let answered = self.settle(&held, Answer::Release(held.token));
        self.finish(&held);
        answered
    }

    /// The pause before the next attempt, unless one is given: doubles with each attempt, and is up to a fifth longer.
    fn backoff(&self, attempt: u32) -> Duration {
        let factor = 1_u32 << (attempt - 1).min(20);
        let pause = self.config.backoff_min.saturating_mul(factor).min(self.config.backoff_max);
        pause.mul_f64(1.0 + 0.2 * fastrand::f64())
    }

    pub(crate) fn retry(self: &Arc<Self>, held: Held, delay: Option<Duration>, why: &str) -> Answered {
        if held.attempt >= self.config.max_deliveries {
            let reason = Reason::text(format!("{why} in attempt {} of {}", held.attempt, self.config.max_deliveries));
            return self.dead_letter(held, reason);
        }
        let most = self.capabilities.max_retry_delay;
        let unsupported = delay.is_some_and(|d| d > most);
        let delay = delay.filter(|_| !unsupported).unwrap_or_else(|| self.backoff(held.attempt).min(most));
        let answered = self.retry_in(held, delay);
        if unsupported && answered == Answered::Accepted { Answered::Unsupported } else { answered }
    }

    fn retry_in(self: &Arc<Self>, mut held: Held, delay: Duration) -> Answered {
        if self.in_place() && self.is_running() {
            if !self.consumer.holds(held.token) {
                self.finish(&held);
                return Answered::LeaseLost;
            }
            held.attempt += 1;
            if delay.is_zero() {
                self.hand_out(held);
            } else {
                self.hand_out_at(held, Instant::now() + delay);
            }
            return Answered::Accepted;
        }
        match (self.capabilities.retry_via, &self.copies) {
            (RetryVia::Copy, Some(copies)) => {
                let due = (!delay.is_zero()).then(|| SystemTime::now() + delay);
                let copy = dead_letter::retry(&held.message, held.attempt + 1, due);
                self.copy_then_ack(held, copies.clone(), copy)
            }
            (RetryVia::Broker, _) => {
                let answered = self.settle(&held, Answer::Retry(held.token, delay));
                self.finish(&held);
                answered
            }
            (RetryVia::InPlace, _) => {
                let answered = self.settle(&held, Answer::Release(held.token));
                self.finish(&held);
                answered
            }
            _ => {
                let answered = self.settle(&held, Answer::Retry(held.token, Duration::ZERO));
                self.finish(&held);
                answered
            }
        }
    }

    pub(crate) fn dead_letter(self: &Arc<Self>, held: Held, reason: Reason) -> Answered {
        match &self.dead_letters {
            None => self.ack(&held),
            Some(outbox) => {
                let origin = self.source.to_string();
                let copy = dead_letter::letter(&held.message, &reason, held.attempt, &origin);
                self.copy_then_ack(held, outbox.clone(), copy)
            }
        }
    }

    /// Acks only after the broker confirmed the copy. Until then the message stays unanswered and leased; a copy that
    /// fails is tried again, and health tells.
    fn copy_then_ack(self: &Arc<Self>, held: Held, outbox: Arc<Outbox>, copy: Message) -> Answered {
        if !self.consumer.holds(held.token) {
            self.finish(&held);
            return Answered::LeaseLost;
        }
        self.spawn(async move |inbox| inbox.copy_until_confirmed(held, &outbox, copy).await);
        Answered::Accepted
    }

    async fn copy_until_confirmed(self: Arc<Self>, held: Held, outbox: &Arc<Outbox>, copy: Message) {
        let problem = format!("copy {} to {}", self.source, outbox.address());
        let mut pause = COPY_RETRY_MIN;
        loop {
            let sent = match outbox.submit(copy.clone()).await {
                Ok(block) => crate::completion::Verdict(block).await,
                Err(error) => Err(error),
            };
            match sent {
                Ok(_) => {
                    self.client.events.set_problem(&problem, None);
                    self.ack(&held);
                    return;
                }
                Err(error) => {
                    let text = format!("{problem} failed: {error}");
                    self.client.events.set_problem(&problem, Some((HealthState::Degraded, text)));
                    self.client.events.emit(EventKind::DeadLetterFailed, &self.source.to_string(), Some(error));
                }
            }
            let closing = tokio::select! {
                () = tokio::time::sleep(pause) => false,
                () = self.stopped() => true,
            };
            if closing || !self.consumer.holds(held.token) {
                self.client.events.set_problem(&problem, None);
                self.settle(&held, Answer::Release(held.token));
                self.finish(&held);
                return;
            }
            pause = (pause * 2).min(COPY_RETRY_MAX);
        }
    }

    pub(crate) fn dropped(self: &Arc<Self>, held: Held) {
        self.client.warn_dropped(&self.source);
        self.retry(held, None, "dropped without an answer");
    }

    /// Gives back what was fetched and never handed out.
    pub(crate) fn release_run(self: &Arc<Self>, run: Run) {
        let (mut next, mut answers, mut bytes) = (run.next, Vec::new(), 0);
        for item in run.items {
            run.fetch.close(next);
            next += 1;
            bytes += item.message.as_ref().map_or(0, Message::size);
            answers.push(Answer::Release(item.token));
        }
        let count = answers.len();
        if count > 0 {
            let settled = self.consumer.settle(answers);
            if let Some(pending) = settled.pending {
                self.spawn(async move |_| drop(pending.await));
            }
            self.answered(count, bytes);
        }
    }

    fn release_local(&self) {
        let held: Vec<Held> = {
            let mut local = self.local.lock();
            let local = &mut *local;
            let parked = local.lanes.drain().flat_map(|(_, behind)| behind);
            let held = local.ready.drain(..).chain(parked).collect();
            self.local_ready.store(0, Ordering::Release);
            held
        };
        if held.is_empty() {
            return;
        }
        let settled = self.consumer.settle(held.iter().map(|h| Answer::Release(h.token)).collect());
        if let Some(pending) = settled.pending {
            self.runtime.spawn(pending);
        }
        for held in held {
            held.fetch.close(held.index);
            self.answered(1, held.size());
        }
    }

    // ---- life ----

    fn outstanding(&self) -> usize {
        let handed_out = self.unanswered.load(Ordering::Acquire).saturating_sub(self.buffered.load(Ordering::Acquire));
        handed_out + self.pending.load(Ordering::Acquire)
    }

    /// Waits until nothing is handed out and every answer is on its way.
    async fn drained(&self, answers_only: bool) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            let left = if answers_only { self.pending.load(Ordering::Acquire) } else { self.outstanding() };
            if left == 0 {
                return;
            }
            idle.await;
        }
    }

    pub(crate) async fn flush(&self) -> Result<()> {
        if self.state.load(Ordering::Acquire) == CLOSED {
            return Err(self.named(Error::closed("receiver"), "flush"));
        }
        self.consumer.flush().await.map_err(|e| self.named(e, "flush"))
    }

    pub(crate) async fn stop(&self) {
        if self.enter(STOPPED) {
            self.release_local();
            self.consumer.stop().await;
        }
    }

    pub(crate) async fn close(&self, deadline: Instant) -> CloseReport {
        let mut report = CloseReport::default();
        if self.state.load(Ordering::Acquire) == CLOSED {
            return report;
        }
        if timeout_at(deadline, self.stop()).await.is_err() {
            report
                .errors
                .push(self.named(Error::new(ErrorKind::Timeout, "the consumer did not stop in time"), "close"));
        }
        let _ = timeout_at(deadline, self.drained(false)).await;
        if !self.enter(CLOSED) {
            return report;
        }
        report.merge(self.consumer.close(deadline).await);
        let buffered = self.buffered.load(Ordering::Acquire);
        report.unanswered = self.unanswered.load(Ordering::Acquire).saturating_sub(buffered);
        report.released += buffered;
        for outbox in [&self.dead_letters, &self.copies].into_iter().flatten() {
            report.merge(outbox.close(deadline).await);
        }
        report
    }

    /// The receiver was dropped: everything goes on in the background until it is closed.
    pub(crate) fn abandon(self: &Arc<Self>) {
        let inbox = self.clone();
        self.runtime.spawn(async move {
            let deadline = Instant::now() + inbox.config.max_handler_time;
            inbox.close(deadline).await;
        });
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
