//! Publishes that are not written yet.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use lapin::options::BasicPublishOptions;
use lapin::{Channel, PublisherConfirm};
use queue_core::Message;

use crate::convert::Outgoing;

/// A message to publish.
pub(crate) struct Job {
    pub(crate) channel: Arc<Channel>,
    pub(crate) out: Outgoing,
    pub(crate) options: BasicPublishOptions,
    pub(crate) message: Message,
}

/// The end of a publish: the confirmation to wait for, and the message.
pub(crate) type Written = (lapin::Result<PublisherConfirm>, Message);

/// Places for publishes under way. A publish of the client is a future of about 2 KiB, which would be the largest
/// allocation of a message by far: so a place is used again.
pub(crate) trait Slots: Send {
    /// Begins a publish; answers its place when it is not at its end.
    fn start(&mut self, job: Job) -> Result<usize, Written>;
    /// Looks at a publish; at its end, the place is free again.
    fn poll(&mut self, slot: usize, cx: &mut Context<'_>) -> Poll<Written>;
    /// Drops everything.
    fn clear(&mut self);
}

struct Pool<F, M> {
    make: M,
    slots: Vec<Pin<Box<F>>>,
    free: Vec<usize>,
}

pub(crate) fn slots() -> Box<dyn Slots> {
    let make = |job: Job| async move {
        let Job { channel, out: Outgoing { exchange, routing_key, properties, .. }, options, message } = job;
        let confirm = channel.basic_publish(exchange, routing_key, options, message.payload(), properties).await;
        (confirm, message)
    };
    Box::new(Pool { make, slots: Vec::new(), free: Vec::new() })
}

impl<F: Future<Output = Written> + Send, M: Fn(Job) -> F + Send> Slots for Pool<F, M> {
    fn start(&mut self, job: Job) -> Result<usize, Written> {
        let future = (self.make)(job);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot].set(future);
                slot
            }
            None => {
                self.slots.push(Box::pin(future));
                self.slots.len() - 1
            }
        };
        // The first poll hands the frames to the client, and takes the place in the order. That they are written is of
        // no interest before the broker can have answered, so it wakes nobody.
        match self.poll(slot, &mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Ok(slot),
            Poll::Ready(written) => Err(written),
        }
    }

    fn poll(&mut self, slot: usize, cx: &mut Context<'_>) -> Poll<Written> {
        let written = self.slots[slot].as_mut().poll(cx);
        if written.is_ready() {
            self.free.push(slot);
        }
        written
    }

    fn clear(&mut self) {
        self.slots.clear();
        self.free.clear();
    }
}
