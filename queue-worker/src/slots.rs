//! Places for handlers: as many as may run at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;

/// How many handlers run, and how many may.
#[derive(Debug)]
pub(crate) struct Slots {
    running: AtomicUsize,
    limit: AtomicUsize,
    /// Waits for a place, or for the last handler.
    waker: AtomicWaker,
}

impl Slots {
    pub(crate) fn new(limit: usize) -> Self {
        Self { running: AtomicUsize::new(0), limit: AtomicUsize::new(limit), waker: AtomicWaker::new() }
    }

    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::Acquire)
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// May be under what runs: then nothing starts until enough has ended.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.limit.store(limit.max(1), Ordering::Relaxed);
        self.waker.wake();
    }

    pub(crate) fn take(&self) {
        self.running.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn give_back(&self) {
        let before = self.running.fetch_sub(1, Ordering::AcqRel);
        // Nobody waits while there is room, unless it was the last.
        if before >= self.limit() || before == 1 {
            self.waker.wake();
        }
    }

    /// Ready as soon as another handler may run. One task asks.
    pub(crate) fn poll_free(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll(cx, |slots| slots.running() < slots.limit())
    }

    /// Ready when none runs. One task asks.
    pub(crate) fn poll_idle(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll(cx, |slots| slots.running() == 0)
    }

    fn poll(&self, cx: &mut Context<'_>, is_ready: impl Fn(&Self) -> bool) -> Poll<()> {
        if is_ready(self) {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        // One may have ended meanwhile.
        if is_ready(self) { Poll::Ready(()) } else { Poll::Pending }
    }
}
