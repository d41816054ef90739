//! Receives from one queue.

use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

use super::broker::Connection;
use super::queue::Queue;
use crate::address::Source;
use crate::broker::{CloseReport, ConsumerOptions};
use crate::capability::Capabilities;
use crate::consumer::{AckReport, AckToken, Answer, Consumer, Received, Settled};
use crate::error::{Error, Result};

#[derive(Debug)]
pub(super) struct MemoryConsumer {
    connection: Arc<Connection>,
    queue: Arc<Queue>,
    owner: u32,
    capabilities: Arc<Capabilities>,
    lease: Option<Duration>,
    max_bytes: usize,
    paused: AtomicBool,
    stopped: AtomicBool,
    left: AtomicBool,
    poller: Arc<AtomicWaker>,
    /// Wakes the poller when a delay or a lease ends.
    timer: Mutex<Option<Pin<Box<Sleep>>>>,
}

impl MemoryConsumer {
    pub(super) fn new(
        connection: Arc<Connection>,
        queue: Arc<Queue>,
        source: &Source,
        options: &ConsumerOptions,
    ) -> Self {
        let mut capabilities = connection.profile.at(source.address.name(), source.address.is_topic());
        if source.queue_name().is_none() {
            // What ends with its subscriber cannot be sent a copy.
            capabilities.dead_letter = false;
        }
        let lease = capabilities.max_lease.map(|most| options.lease.min(most));
        let poller = connection.poller();
        Self {
            owner: queue.enter(),
            connection,
            queue,
            capabilities: Arc::new(capabilities),
            lease,
            max_bytes: options.prefetch_bytes,
            paused: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            left: AtomicBool::new(false),
            poller,
            timer: Mutex::new(None),
        }
    }

    fn leave(&self) -> usize {
        if self.left.swap(true, Ordering::AcqRel) { 0 } else { self.queue.leave(self.owner) }
    }

    fn is_over(&self) -> bool {
        self.stopped.load(Ordering::Acquire) || self.connection.is_closed()
    }
}

#[async_trait]
impl Consumer for MemoryConsumer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.capabilities.clone()
    }

    fn poll_receive(&self, cx: &mut Context<'_>, max: NonZeroUsize, into: &mut Vec<Received>) -> Poll<Result<()>> {
        loop {
            if self.is_over() {
                return Poll::Ready(Err(Error::closed("consumer")));
            }
            if self.paused.load(Ordering::Acquire) {
                self.poller.register(cx.waker());
                if self.paused.load(Ordering::Acquire) && !self.is_over() {
                    return Poll::Pending;
                }
                continue;
            }
            let most = (max.get(), self.max_bytes);
            let next = self.queue.take(self.owner, self.lease, most, cx.waker(), into)?;
            if !into.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.poller.register(cx.waker());
            if self.is_over() || self.paused.load(Ordering::Acquire) {
                self.queue.forget_waiter(self.owner);
                continue;
            }
            let Some(at) = next else { return Poll::Pending };
            let mut timer = self.timer.lock();
            let sleep = timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if sleep.deadline() != at {
                sleep.as_mut().reset(at);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            *timer = None;
        }
    }

    fn ack(&self, tokens: &[AckToken]) -> AckReport {
        AckReport { stale: self.queue.ack(tokens) }
    }

    fn settle(&self, answers: Vec<Answer>) -> Settled {
        let counted = self.connection.profile.counts_releases();
        let stale = answers.into_iter().enumerate().filter_map(|(index, answer)| {
            let live = match answer {
                Answer::Release(token) => self.queue.give_back(token, Duration::ZERO, counted),
                Answer::Extend(token, by) => self.lease.is_none() || self.queue.extend(token, by),
                Answer::Retry(token, delay) => self.queue.give_back(token, delay, true),
            };
            (!live).then_some(index)
        });
        Settled { stale: stale.collect(), pending: None }
    }

    fn holds(&self, token: AckToken) -> bool {
        !self.left.load(Ordering::Acquire) && self.queue.holds(token)
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
        self.poller.wake();
    }

    async fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.poller.wake();
    }

    async fn close(&self, _deadline: Instant) -> CloseReport {
        self.stop().await;
        CloseReport { unanswered: self.leave(), ..CloseReport::default() }
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.leave();
    }
}
