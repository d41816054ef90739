//! Answers: acks, retries, dead letters, releases.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::alone::Suspect;
use super::{CLOSED, COPY_RETRY_MAX, COPY_RETRY_MIN, Copying, Done, Held, Inbox, Run};
use crate::capability::RetryVia;
use crate::consumer::{Answer, Received};
use crate::dead_letter::{self, Reason};
use crate::delivery::{Answered, hold};
use crate::event::{EventKind, HealthState};
use crate::lease::Fetch;
use crate::message::Message;
use crate::observe::metrics;
use crate::outbox::Outbox;

impl Inbox {
    pub(super) fn spawn<F, Fut>(self: &Arc<Self>, work: F)
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
        if !held.laneless
            && let Some(lane) = self.lane(&held.message)
        {
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
            let mut all = Answered::Accepted;
            for (index, item) in (first..).zip(items) {
                if self.ack(&hold(fetch, index, item)) != Answered::Accepted {
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
    pub(super) fn settle(self: &Arc<Self>, answer: Answer) -> Answered {
        self.settle_all(vec![answer])
    }

    fn settle_all(self: &Arc<Self>, answers: Vec<Answer>) -> Answered {
        let settled = self.consumer.settle(answers);
        if let Some(pending) = settled.pending {
            self.spawn(async move |inbox| {
                for (_, error) in pending.await {
                    inbox.client.events.emit(EventKind::AnswerFailed, &inbox.source.to_string(), Some(error));
                }
            });
        }
        if settled.stale.is_empty() { Answered::Accepted } else { Answered::LeaseLost }
    }

    pub(crate) fn release(self: &Arc<Self>, held: Held) -> Answered {
        let is_alone = match self.capabilities.retry_via {
            RetryVia::InPlace => true,
            // A receiver in order is the only one, and a subscriber's queue its own.
            RetryVia::Copy => self.in_place(),
            RetryVia::Broker | RetryVia::None => false,
        };
        if is_alone && self.is_running() {
            // The broker hands it to nobody else while this receiver has its partition.
            if self.consumer.holds(held.token) {
                self.hand_out(held);
                return Answered::Accepted;
            }
            self.finish(&held);
            return Answered::LeaseLost;
        }
        // What waits behind it in its lane goes back too, and in order.
        let behind = match self.lane(&held.message) {
            Some(lane) if !held.laneless => self.local.lock().lanes.get_mut(&lane).map(std::mem::take),
            _ => None,
        };
        let behind = behind.unwrap_or_default();
        let answered =
            self.settle_all(std::iter::once(&held).chain(&behind).map(|h| Answer::Release(h.token)).collect());
        for parked in behind {
            parked.fetch.close(parked.index);
            self.answered(1, parked.size());
        }
        self.finish(&held);
        answered
    }

    /// The pause before the next attempt, unless one is given: doubles with each attempt, and is up to a fifth longer.
    fn backoff(&self, attempt: u32) -> Duration {
        let factor = 1_u32 << attempt.saturating_sub(1).min(20);
        let pause = self.config.backoff_min.saturating_mul(factor).min(self.config.backoff_max);
        pause.saturating_add(pause.min(crate::memory::LONG).mul_f64(0.2 * fastrand::f64()))
    }

    /// `why` makes the reason of the dead letter in the last attempt; it gets which attempt that was.
    pub(crate) fn retry(
        self: &Arc<Self>,
        held: Held,
        delay: Option<Duration>,
        why: impl FnOnce(String) -> Reason,
    ) -> Answered {
        if held.attempt >= self.config.max_deliveries {
            let reason = why(format!("attempt {} of {}", held.attempt, self.config.max_deliveries));
            return self.dead_letter(held, reason);
        }
        metrics::retried(&self.subject);
        if delay.is_none() && self.capabilities.own_backoff && !self.in_place() {
            let answered = self.settle(Answer::Retry(held.token, Duration::ZERO));
            self.finish(&held);
            return answered;
        }
        let most = self.capabilities.max_retry_delay;
        let unsupported = delay.is_some_and(|d| d > most);
        let delay = delay.filter(|_| !unsupported).unwrap_or_else(|| self.backoff(held.attempt).min(most));
        let answered = self.retry_in(held, delay);
        if unsupported && answered == Answered::Accepted { Answered::Unsupported } else { answered }
    }

    fn retry_in(self: &Arc<Self>, mut held: Held, delay: Duration) -> Answered {
        let tiers = self.consumer.retry_tiers();
        if let Some(copies) = &self.copies
            && tiers.first().is_some_and(|(shortest, _)| delay >= *shortest)
            && let Some((tier, address)) = tiers.iter().find(|(tier, _)| *tier >= delay)
        {
            let copy = dead_letter::retry(&held.message, held.attempt + 1, Some(SystemTime::now() + *tier));
            return self.copy_then_ack(held, copies.0.clone(), copy.to(address.clone()), Hopeless::RetryIn(*tier));
        }
        if self.in_place() && self.is_running() {
            if !self.consumer.holds(held.token) {
                self.finish(&held);
                return Answered::LeaseLost;
            }
            held.attempt += 1;
            self.consumer.note_attempt(held.token, held.attempt);
            if delay.is_zero() {
                self.hand_out(held);
            } else {
                self.hand_out_at(held, Instant::now() + delay);
            }
            return Answered::Accepted;
        }
        let answer = match (self.capabilities.retry_via, &self.copies) {
            (RetryVia::Copy, Some(copies)) if !self.per_key() => {
                // Held back by the broker where it can, else by whoever receives it.
                let (held_back, due) = match delay {
                    Duration::ZERO => (None, None),
                    _ if copies.capabilities().delayed_send => (Some(delay), None),
                    _ => (None, Some(SystemTime::now() + delay)),
                };
                let mut copy = dead_letter::retry(&held.message, held.attempt + 1, due);
                if let Some(delay) = held_back {
                    copy = copy.delay(delay);
                }
                return self.copy_then_ack(held, copies.0.clone(), copy, Hopeless::TryAgain);
            }
            (RetryVia::Broker, _) => Answer::Retry(held.token, delay),
            // Where order is kept, a copy would stand behind others of its key.
            (RetryVia::Copy, Some(_)) => Answer::Release(held.token),
            (RetryVia::InPlace, _) => {
                // Once closed, everything was given back as it was.
                if self.state.load(Ordering::Acquire) < CLOSED {
                    self.consumer.note_attempt(held.token, held.attempt + 1);
                }
                Answer::Release(held.token)
            }
            (RetryVia::Copy | RetryVia::None, _) => Answer::Retry(held.token, Duration::ZERO),
        };
        let answered = self.settle(answer);
        self.finish(&held);
        answered
    }

    pub(crate) fn dead_letter(self: &Arc<Self>, held: Held, reason: Reason) -> Answered {
        let answered = match &self.dead_letters {
            None => self.ack(&held),
            Some(outbox) => {
                let origin = self.source.to_string();
                let copy = dead_letter::letter(&held.message, &reason, held.attempt, &origin);
                self.copy_then_ack(held, outbox.0.clone(), copy, Hopeless::TryAgain)
            }
        };
        if answered == Answered::Accepted {
            metrics::dead_lettered(&self.subject);
        }
        answered
    }

    /// Acks only after the broker confirmed the copy. Until then the message stays unanswered and leased; a copy that
    /// fails is tried again, and health tells.
    pub(super) fn copy_then_ack(
        self: &Arc<Self>,
        held: Held,
        outbox: Arc<Outbox>,
        copy: Message,
        hopeless: Hopeless,
    ) -> Answered {
        if !self.consumer.holds(held.token) {
            self.finish(&held);
            return Answered::LeaseLost;
        }
        self.copying.fetch_add(1, Ordering::AcqRel);
        let copying = Copying(self.clone());
        self.spawn(async move |inbox| {
            let _copying = copying;
            inbox.copy_until_confirmed(held, &outbox, copy, hopeless).await;
        });
        Answered::Accepted
    }

    pub(super) async fn copy_until_confirmed(
        self: Arc<Self>,
        mut held: Held,
        outbox: &Arc<Outbox>,
        copy: Message,
        hopeless: Hopeless,
    ) {
        let problem = format!("copy {} to {}", self.source, copy.destination().unwrap_or(outbox.address()));
        let mut pause = COPY_RETRY_MIN;
        loop {
            let sent = match outbox.submit(copy.clone()).await {
                Ok(slot) => crate::verdict::Verdict::new(slot).await,
                Err(error) => Err(error),
            };
            match sent {
                Ok(_) => {
                    self.client.events.set_problem(&problem, None);
                    self.ack(&held);
                    return;
                }
                Err(error) if hopeless != Hopeless::TryAgain && is_hopeless(&error) && self.is_running() => {
                    self.client.events.set_problem(&problem, None);
                    self.client.events.emit(EventKind::DeadLetterFailed, &self.source.to_string(), Some(error));
                    match hopeless {
                        Hopeless::RetryIn(delay) => {
                            held.attempt += 1;
                            self.consumer.note_attempt(held.token, held.attempt);
                            self.hand_out_at(held, Instant::now() + delay);
                        }
                        Hopeless::HandOut | Hopeless::TryAgain => self.hand_out_unmarked(held),
                    }
                    return;
                }
                Err(error) => {
                    let text = format!("{problem} failed: {error}");
                    self.client.events.set_problem(&problem, Some((HealthState::Degraded, text)));
                    self.client.events.emit(EventKind::DeadLetterFailed, &self.source.to_string(), Some(error));
                }
            }
            if self.pause_copy(pause, &held).await {
                self.client.events.set_problem(&problem, None);
                self.settle(Answer::Release(held.token));
                self.finish(&held);
                return;
            }
            pause = (pause * 2).min(COPY_RETRY_MAX);
        }
    }

    /// Waits before a copy is tried again; whether it is not any more.
    pub(super) async fn pause_copy(&self, pause: Duration, held: &Held) -> bool {
        self.pausing.fetch_add(1, Ordering::AcqRel);
        self.wake_if_secluded();
        let closing = tokio::select! {
            () = tokio::time::sleep(pause) => false,
            () = self.stopped() => true,
        };
        self.pausing.fetch_sub(1, Ordering::AcqRel);
        closing || !self.consumer.holds(held.token)
    }

    pub(crate) fn dropped(self: &Arc<Self>, held: Held) {
        self.client.warn_dropped(&self.source);
        self.retry(held, None, |attempts| Reason::text(format!("dropped without an answer in {attempts}")));
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
            self.released.fetch_add(count, Ordering::AcqRel);
            self.answered(count, bytes);
        }
    }

    pub(super) fn release_local(&self) {
        let held: Vec<Held> = {
            let mut local = self.local.lock();
            let local = &mut *local;
            let parked = local.lanes.drain().flat_map(|(_, behind)| behind);
            let held = local.ready.drain(..).chain(parked).collect();
            self.local_ready.store(0, Ordering::Release);
            held
        };
        let suspects = self.take_suspects();
        let held: Vec<Held> = held.into_iter().chain(suspects.into_iter().map(Suspect::into_held)).collect();
        if held.is_empty() {
            return;
        }
        let settled = self.consumer.settle(held.iter().map(|h| Answer::Release(h.token)).collect());
        if let Some(pending) = settled.pending {
            self.runtime.spawn(pending);
        }
        self.released.fetch_add(held.len(), Ordering::AcqRel);
        for held in held {
            held.fetch.close(held.index);
            self.answered(1, held.size());
        }
    }
}

/// What comes of a message whose copy can never be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hopeless {
    /// It is tried all the same.
    TryAgain,
    /// It is the next attempt, in place.
    RetryIn(Duration),
    /// It is handed out as it is.
    HandOut,
}

/// Whether a copy that failed so will always fail.
pub(super) fn is_hopeless(error: &crate::error::Error) -> bool {
    use crate::error::ErrorKind::{InvalidInput, NotFound, TooLarge, Unauthorized, Unsupported};
    matches!(error.kind(), InvalidInput | NotFound | TooLarge | Unauthorized | Unsupported)
}
