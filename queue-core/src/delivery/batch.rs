//! Messages that were handed out together.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::{Answered, Delivery, hold, nothing};
use crate::consumer::{Position, Received};
use crate::inbox::Run;
use crate::lease::Fetch;
use crate::message::Message;
use crate::observe::settle_batch;

/// Messages that were handed out together and share one handle.
///
/// [`ack`](Self::ack) answers all; iterating by value gives deliveries that are answered one by one. Dropped, those
/// left are retried.
#[must_use = "dropped without an answer, the messages are retried"]
pub struct Batch {
    fetch: Option<Arc<Fetch>>,
    first: u32,
    items: Vec<Received>,
}

impl Batch {
    pub(crate) fn new(run: Run) -> Self {
        Self { fetch: Some(run.fetch), first: run.next, items: run.items.collect() }
    }

    pub(crate) fn part(fetch: Arc<Fetch>, first: u32, items: Vec<Received>) -> Self {
        Self { fetch: Some(fetch), first, items }
    }

    pub(crate) fn empty() -> Self {
        Self { fetch: None, first: 0, items: Vec::new() }
    }

    /// How many messages there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The messages in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = BatchItem<'_>> + '_ {
        self.items.iter().map(BatchItem)
    }

    /// All messages are done and do not come again. `LeaseLost` when at least one was no longer ours.
    pub fn ack(mut self) -> Answered {
        let Some(fetch) = self.fetch.take() else { return Answered::Accepted };
        let items = std::mem::take(&mut self.items);
        let _span = settle_batch(fetch.inbox.subject(), &items);
        fetch.inbox.ack_batch(&fetch, self.first, items)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(fetch) = self.fetch.take() {
            let items = std::mem::take(&mut self.items);
            drop(Deliveries { fetch, next: self.first, items: items.into_iter() });
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl IntoIterator for Batch {
    type Item = Delivery;
    type IntoIter = BatchIntoIter;

    fn into_iter(mut self) -> BatchIntoIter {
        let items = std::mem::take(&mut self.items).into_iter();
        BatchIntoIter(self.fetch.take().map(|fetch| Deliveries { fetch, next: self.first, items }))
    }
}

/// The deliveries of a batch.
#[derive(Debug)]
pub struct BatchIntoIter(Option<Deliveries>);

impl Iterator for BatchIntoIter {
    type Item = Delivery;

    fn next(&mut self) -> Option<Delivery> {
        self.0.as_mut()?.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.0.as_ref().map_or(0, |d| d.items.len());
        (left, Some(left))
    }
}

#[derive(Debug)]
struct Deliveries {
    fetch: Arc<Fetch>,
    next: u32,
    items: std::vec::IntoIter<Received>,
}

impl Deliveries {
    fn next(&mut self) -> Option<Delivery> {
        let item = self.items.next()?;
        let held = hold(&self.fetch, self.next, item);
        self.next += 1;
        Some(Delivery::new(held))
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        // Each is dropped as a delivery of its own: counted and retried.
        while let Some(delivery) = self.next() {
            drop(delivery);
        }
    }
}

/// A message of a batch.
#[derive(Debug, Clone, Copy)]
pub struct BatchItem<'a>(&'a Received);

impl<'a> BatchItem<'a> {
    /// The message.
    #[must_use]
    pub fn message(&self) -> &'a Message {
        self.0.message.as_ref().unwrap_or_else(|_| nothing())
    }

    /// Which attempt this is, from 1 on.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.attempt
    }

    /// Where the message stood.
    #[must_use]
    pub fn position(&self) -> Position {
        self.0.position
    }
}

impl Deref for BatchItem<'_> {
    type Target = Message;

    fn deref(&self) -> &Message {
        self.message()
    }
}
