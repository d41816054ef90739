//! The task of an outbox: what is due, and what is sent again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Outbox, RETRY_MAX, RETRY_MIN};
use crate::block::{Owner, Resend, SlotRef};
use crate::completion::Completion;
use crate::error::{Error, ErrorKind, Outcome};
use crate::message::Message;
use crate::sender::{OnUnknown, named};

impl Outbox {
    /// Everything that is due now; answers when to look again, and whether anything is left at all.
    fn tick(&self) -> (Option<Instant>, bool) {
        let now = Instant::now();
        let linger_over = self.state.lock().pending_due.is_some_and(|due| due <= now);
        if linger_over {
            self.hand_over();
        }
        // Held until the blocks that are over are taken: one that is made late is not taken before it has a message.
        let mut run = self.run.lock();
        run.end_at(now);
        let mut state = self.state.lock();
        let (due, later) = std::mem::take(&mut state.retries).into_iter().partition(|(due, _)| *due <= now);
        state.retries = later;
        let mut expired = Vec::new();
        while state.in_flight.front().is_some_and(|b| b.deadline() <= now || b.is_done()) {
            expired.extend(state.in_flight.pop_front());
        }
        drop((state, run));
        self.resend(due, now);
        for block in expired {
            let why = "the broker did not answer before the deadline";
            let error = Error::new(ErrorKind::Timeout, why).with_outcome(Outcome::Unknown);
            block.expire(&named(self.with_health(error), &self.address));
        }
        let mut state = self.state.lock();
        state.armed = state.next_due();
        let idle = state.pending.is_empty() && state.retries.is_empty() && state.in_flight.is_empty();
        (state.armed, idle)
    }

    fn resend(&self, due: Vec<(Instant, Resend)>, now: Instant) {
        let (mut messages, mut slots) = (Vec::new(), Vec::new());
        for (_, item) in due {
            if item.slot.deadline() <= now {
                item.slot.give_up(item.error.with_context("deadline", format!("{:?}", self.config.deadline)));
            } else if let Some(slot) = item.slot.again() {
                messages.push(item.message);
                slots.push(slot);
            }
        }
        self.send_parts(messages, slots);
    }

    /// Sends in parts that the producer takes.
    pub(super) fn send_parts(&self, mut messages: Vec<Message>, mut slots: Vec<SlotRef>) {
        while !messages.is_empty() {
            let mut bytes = 0;
            let mut part = messages
                .iter()
                .take_while(|m| {
                    bytes += m.size();
                    bytes <= self.capabilities.max_batch_bytes
                })
                .count();
            part = part.clamp(1, self.capabilities.max_batch.max(1)).min(messages.len());
            let rest = (messages.split_off(part), slots.split_off(part));
            let head = (std::mem::replace(&mut messages, rest.0), std::mem::replace(&mut slots, rest.1));
            self.producer.send(head.0, Completion::slots(head.1));
        }
    }
}

pub(super) async fn run(outbox: Arc<Outbox>) {
    loop {
        let (next, idle) = outbox.tick();
        let over = outbox.abandoned.load(Ordering::Acquire) || outbox.is_closed();
        if over && idle {
            if !outbox.is_closed() {
                // Nobody is left to close it; nothing is in flight, so there is nothing to wait for.
                outbox.closed.store(true, Ordering::Release);
                outbox.producer.close(Instant::now() + Duration::from_secs(1)).await;
            }
            return;
        }
        match next {
            Some(at) => tokio::select! { () = sleep_until(at) => {}, () = outbox.work.notified() => {} },
            None => outbox.work.notified().await,
        }
    }
}

impl Owner for Outbox {
    fn retries(&self, error: &Error, deadline: Instant) -> bool {
        let again = match error.outcome() {
            Outcome::NotSent => error.is_retryable(),
            Outcome::Unknown => self.config.on_unknown == OnUnknown::Retry,
            Outcome::Rejected => false,
        };
        again && !self.is_closed() && Instant::now() < deadline
    }

    fn resend(&self, item: Resend) {
        let factor = 1 << item.slot.tries().min(10);
        let pause = (RETRY_MIN * factor).min(RETRY_MAX).mul_f64(self.jitter);
        let due = (Instant::now() + pause).min(item.slot.deadline());
        tracing::debug!(address = %self.address, error = %item.error, ?pause, "a message is sent again");
        let mut state = self.state.lock();
        state.retries.push((due, item));
        self.wake_before(&state, due);
    }

    fn release(&self, cost: usize) {
        self.window.give(cost);
        if self.flushing.load(Ordering::Acquire) > 0 {
            self.progress.notify_waiters();
        }
    }
}
