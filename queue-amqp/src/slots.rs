//! Publishes that are not written yet.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use lapin::options::BasicPublishOptions;
use lapin::{Channel, PublisherConfirm};
use parking_lot::Mutex;
use queue_core::Message;

use crate::convert::Outgoing;
use crate::turns::woken;

/// A message to publish.
pub(crate) struct Job {
    pub(crate) out: Outgoing,
    pub(crate) options: BasicPublishOptions,
    pub(crate) message: Message,
}

/// The end of a publish: the confirmation to wait for, and the message.
pub(crate) type Written = (lapin::Result<PublisherConfirm>, Message);

/// What became of a publish at once.
pub(crate) enum Started {
    /// It is not at its end; this is its place.
    Writing(usize),
    Written(Written),
}

/// Places for publishes under way. A publish of the client is a future of about 2 KiB, which would be the largest
/// allocation, and the largest copy, of a message by far: so a place publishes one message after the other, and is never
/// moved.
pub(crate) trait Slots: Send {
    /// Begins a publish. Of one channel only, until [`clear`](Self::clear).
    fn start(&mut self, channel: &Arc<Channel>, job: Job) -> Started;
    /// Looks at a publish; at its end, the place is free again.
    fn poll(&mut self, slot: usize, cx: &mut Context<'_>) -> Poll<Written>;
    /// Drops everything.
    fn clear(&mut self);
}

/// What goes into a place, and what comes out: of all of them, since one is looked at after the other.
#[derive(Default)]
struct Hatch {
    job: Mutex<Option<Job>>,
    written: Mutex<Option<Written>>,
    /// Whether there is something in `written`: most looks find nothing, and take no lock.
    is_written: AtomicBool,
}

struct Pool<F, M> {
    make: M,
    slots: Vec<Pin<Box<F>>>,
    free: Vec<usize>,
    hatch: Arc<Hatch>,
}

async fn publish_all(channel: Arc<Channel>, hatch: Arc<Hatch>) -> Infallible {
    loop {
        // It is polled for the first time, and again behind a message, when there is a job.
        let job = hatch.job.lock().take();
        if let Some(Job { out, options, message }) = job {
            let Outgoing { exchange, routing_key, properties, .. } = out;
            let confirm = channel.basic_publish(exchange, routing_key, options, message.payload(), properties).await;
            *hatch.written.lock() = Some((confirm, message));
            hatch.is_written.store(true, Ordering::Relaxed);
        }
        woken().await;
    }
}

pub(crate) fn slots() -> Box<dyn Slots> {
    Box::new(Pool { make: publish_all, slots: Vec::new(), free: Vec::new(), hatch: Arc::default() })
}

impl<F: Future<Output = Infallible> + Send, M: Fn(Arc<Channel>, Arc<Hatch>) -> F + Send> Slots for Pool<F, M> {
    fn start(&mut self, channel: &Arc<Channel>, job: Job) -> Started {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Box::pin((self.make)(channel.clone(), self.hatch.clone())));
            self.slots.len() - 1
        });
        *self.hatch.job.lock() = Some(job);
        // The first poll hands the frames to the client, and takes the place in the order. That they are written is of
        // no interest before the broker can have answered, so it wakes nobody.
        match self.poll(slot, &mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Started::Writing(slot),
            Poll::Ready(written) => Started::Written(written),
        }
    }

    fn poll(&mut self, slot: usize, cx: &mut Context<'_>) -> Poll<Written> {
        let Poll::Pending = self.slots[slot].as_mut().poll(cx);
        if !self.hatch.is_written.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        self.hatch.is_written.store(false, Ordering::Relaxed);
        match self.hatch.written.lock().take() {
            Some(written) => {
                self.free.push(slot);
                Poll::Ready(written)
            }
            None => Poll::Pending,
        }
    }

    fn clear(&mut self) {
        self.slots.clear();
        self.free.clear();
        self.hatch = Arc::default();
    }
}
