//! Fetching: what is handed out now, later, or to the dead letters.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep_until};

use super::alone::Alone;
use super::{Held, Inbox, Run, STOPPED};
use crate::capability::RetryVia;
use crate::consumer::{AckToken, Answer, Received};
use crate::dead_letter::{self, Reason};
use crate::delivery::Answered;
use crate::error::{Error, Result};
use crate::memory::far;
use crate::message::Message;

impl Inbox {
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
            if self.is_secluded() {
                match self.poll_alone(cx) {
                    Alone::HandOut(run) => return Poll::Ready(Some(Ok(run))),
                    Alone::Failed(error) => return self.fail(error),
                    Alone::Over => {}
                    Alone::Wait => {
                        self.starved.store(true, Ordering::Release);
                        self.poller.register(cx.waker());
                        if self.is_running() && !self.is_alone() {
                            return Poll::Pending;
                        }
                        continue;
                    }
                }
            }
            if self.local_ready.load(Ordering::Acquire) > 0
                && let Some(run) = self.take_ready()
            {
                return Poll::Ready(Some(Ok(run)));
            }
            let starved = self.room() == 0;
            match self.poll_consumer(cx, max) {
                Poll::Ready(Ok(Some(run))) => return Poll::Ready(Some(Ok(run))),
                Poll::Ready(Ok(None)) => continue,
                Poll::Ready(Err(error)) => return self.fail(error),
                Poll::Pending => {}
            }
            self.starved.store(starved, Ordering::Release);
            self.poller.register(cx.waker());
            // What happened before the waker was there woke nobody.
            if self.is_running() && self.local_ready.load(Ordering::Acquire) == 0 && !(starved && self.room() > 0) {
                return Poll::Pending;
            }
        }
    }

    /// Fetches from the consumer, for as many as there is room; `None`: nothing of it is handed out now.
    pub(super) fn poll_consumer(self: &Arc<Self>, cx: &mut Context<'_>, max: usize) -> Poll<Result<Option<Run>>> {
        let Some(max) = NonZeroUsize::new(self.room().min(max)) else { return Poll::Pending };
        let mut received = self.ledger.vec();
        match self.consumer.poll_receive(cx, max, &mut received) {
            Poll::Ready(result) => Poll::Ready(result.map(|()| self.admit(received))),
            Poll::Pending => {
                self.ledger.reuse(received);
                Poll::Pending
            }
        }
    }

    /// The first error is told, and the last that is.
    fn fail(self: &Arc<Self>, error: Error) -> Poll<Option<Result<Run>>> {
        let told = self.enter(STOPPED);
        self.release_local();
        Poll::Ready(told.then(|| Err(self.named(error, "receive"))))
    }

    fn take_ready(&self) -> Option<Run> {
        let held = loop {
            let held = self.local.lock().ready.pop_front()?;
            self.local_ready.fetch_sub(1, Ordering::AcqRel);
            // It may have waited for longer than its lease or its assignment lasted.
            if self.consumer.holds(held.token) {
                break held;
            }
            self.finish(&held);
        };
        Some(held.into_run())
    }

    /// Counts what was fetched and sorts out what is not handed out now.
    fn admit(self: &Arc<Self>, mut received: Vec<Received>) -> Option<Run> {
        let mut bytes = 0;
        let mut plain = !self.per_key();
        let last = self.last_attempt();
        for item in &received {
            match &item.message {
                Ok(message) => {
                    bytes += message.size();
                    plain &= item.attempt <= last && (message.headers().is_empty() || self.is_plain(message));
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
            received = received.into_iter().filter_map(|item| self.sort_out(item)).collect();
        }
        if received.is_empty() {
            return None;
        }
        let fetch = self.ledger.open(self, &received);
        Some(Run { fetch, next: 0, items: received.into_iter() })
    }

    /// Whether no header says what to do with the message.
    fn is_plain(&self, message: &Message) -> bool {
        !(self.has_notes() || self.shares_log && message.headers().get(dead_letter::GROUP).is_some())
    }

    fn sort_out(self: &Arc<Self>, mut item: Received) -> Option<Received> {
        let message = match &mut item.message {
            Ok(message) => message,
            Err(undecodable) => {
                let reason = Reason::new(&undecodable.error);
                let raw = Message::new(undecodable.raw.clone());
                item.message = Ok(raw);
                let held = Held { laneless: true, ..self.hold_alone(item)? };
                self.dead_letter(held, reason);
                return None;
            }
        };
        if self.shares_log {
            let size = message.size();
            let group = dead_letter::take_group(message);
            self.unanswered_bytes.fetch_sub(size - message.size(), Ordering::AcqRel);
            if group.is_some() && group.as_deref() != self.source.group.as_deref() {
                let held = Held { laneless: true, ..self.hold_alone(item)? };
                self.ack(&held);
                return None;
            }
        }
        let (mut due, mut noted) = (None, 1);
        if self.has_notes() {
            let size = message.size();
            let (attempt, at) = dead_letter::take_retry(message);
            // The size is counted as what is left, because that is what the answer subtracts.
            self.unanswered_bytes.fetch_sub(size - message.size(), Ordering::AcqRel);
            item.attempt = match self.capabilities.retry_via {
                // What was noted begins with what the copy said.
                RetryVia::InPlace => item.attempt.max(attempt),
                _ => item.attempt.saturating_add(attempt - 1),
            };
            noted = attempt;
            due = at.and_then(|at| at.duration_since(SystemTime::now()).ok());
            // Whoever writes to the queue can write the header.
            due = due.map(|due| due.min(self.capabilities.max_retry_delay));
        }
        if item.attempt > self.last_attempt() {
            self.suspect(item, noted);
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

    pub(super) fn hold_alone(self: &Arc<Self>, item: Received) -> Option<Held> {
        let fetch = self.ledger.open(self, std::slice::from_ref(&item));
        let Received { message, token, attempt, position, .. } = item;
        Some(Held { fetch, index: 0, token, attempt, position, message: message.ok()?, laneless: false })
    }

    pub(super) fn lane(&self, message: &Message) -> Option<u64> {
        if !self.per_key() {
            return None;
        }
        message.get_key().map(|key| self.hasher.hash_one(key))
    }

    /// Hands a message out again at once.
    pub(super) fn hand_out(&self, held: Held) {
        self.local.lock().ready.push_back(held);
        self.local_ready.fetch_add(1, Ordering::AcqRel);
        self.poller.wake();
        if !self.is_running() {
            self.release_local();
        }
    }

    /// Hands a message out again at its time; keeps its place in its lane and its lease until then.
    pub(super) fn hand_out_at(self: &Arc<Self>, held: Held, due: Instant) {
        let by_broker = self.capabilities.retry_via == RetryVia::Broker;
        self.keep_until(due, held, move |token, left| match by_broker {
            true => Answer::Retry(token, left),
            false => Answer::Release(token),
        });
    }

    /// Hands a message out again later, as the attempt that it is.
    pub(crate) fn postpone(self: &Arc<Self>, held: Held, delay: Duration) -> Answered {
        if !self.is_running() {
            return self.release(held);
        }
        if !self.consumer.holds(held.token) {
            self.finish(&held);
            return Answered::LeaseLost;
        }
        self.keep_until(far(Instant::now(), delay), held, |token, _| Answer::Release(token));
        Answered::Accepted
    }

    /// Keeps a message, which is answered so when the receiver stops before its time.
    fn keep_until(
        self: &Arc<Self>,
        due: Instant,
        held: Held,
        stopped: impl FnOnce(AckToken, Duration) -> Answer + Send + 'static,
    ) {
        self.deferred.fetch_add(1, Ordering::AcqRel);
        self.wake_if_secluded();
        self.spawn(async move |inbox| {
            tokio::select! {
                () = sleep_until(due) => {
                    inbox.deferred.fetch_sub(1, Ordering::AcqRel);
                    inbox.hand_out(held);
                }
                () = inbox.stopped() => {
                    inbox.deferred.fetch_sub(1, Ordering::AcqRel);
                    inbox.settle(stopped(held.token, due.saturating_duration_since(Instant::now())));
                    inbox.finish(&held);
                }
            }
        });
    }
}
