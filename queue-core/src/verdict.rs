//! Verdicts of sent messages, for whoever waits for them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::block::{Block, SlotRef};
use crate::error::{Error, ErrorKind, Result};
use crate::observe::Sending;
use crate::producer::Receipt;

/// One in so many verdicts counts as a step of its task, which tokio interrupts after 128: that costs as much as some
/// hundred of those that are there already, and 2,048 of them take less than a millisecond.
const YIELD: u32 = 16;

/// The verdict of one submitted message: resolves when the broker has it, or when it failed for good. Dropped, the
/// message goes on all the same.
#[must_use = "the message may fail without anybody noticing"]
#[derive(Debug)]
pub struct Verdict {
    slot: SlotRef,
    sending: Sending,
}

impl Verdict {
    /// Of a copy that the library makes: nobody's send.
    pub(crate) fn new(slot: SlotRef) -> Self {
        Self { slot, sending: Sending::none() }
    }

    pub(crate) fn observed(slot: SlotRef, sending: Sending) -> Self {
        Self { slot, sending }
    }
}

impl Future for Verdict {
    type Output = Result<Receipt>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { slot: SlotRef { block, index, .. }, sending } = &mut *self;
        let coop = match index.is_multiple_of(YIELD) {
            true => Some(std::task::ready!(tokio::task::coop::poll_proceed(cx))),
            false => None,
        };
        std::task::ready!(block.poll_slot(*index, cx));
        coop.inspect(|coop| coop.made_progress());
        let verdict = block.verdict(*index);
        sending.end_one(&verdict);
        Poll::Ready(verdict)
    }
}

/// The verdicts of a batch: resolves when each message has one. Dropped, the messages go on all the same.
#[must_use = "messages may fail without anybody noticing"]
#[derive(Debug)]
pub struct BatchVerdict(pub(crate) Arc<Block>);

impl Future for BatchVerdict {
    type Output = Result<Receipts, BatchError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_done(cx).map(|()| {
            let receipts = Receipts(self.0.clone());
            let failed = receipts.0.told().is_some_and(|side| !side.failures.is_empty());
            if failed { Err(BatchError(receipts)) } else { Ok(receipts) }
        })
    }
}

/// The receipts of a batch that was accepted whole.
#[derive(Debug, Clone)]
pub struct Receipts(Arc<Block>);

impl Receipts {
    /// How many messages there were.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len as usize
    }

    /// Whether the batch was empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// The receipt of the message at `index`; `None` when it failed or there is no such message.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Receipt> {
        let index = u32::try_from(index).ok().filter(|i| *i < self.0.len)?;
        self.0.failure(index).is_none().then(|| self.0.receipt(index))
    }

    /// The receipts in order; `None` for failed messages.
    pub fn iter(&self) -> impl Iterator<Item = Option<Receipt>> + '_ {
        (0..self.len()).map(|i| self.get(i))
    }
}

/// Some messages of a batch failed: which, and why. The others were accepted.
#[derive(Clone)]
pub struct BatchError(Receipts);

impl BatchError {
    /// Index and error of each failed message, in order of index.
    #[must_use]
    pub fn failures(&self) -> Vec<(usize, Error)> {
        let Some(side) = self.0.0.told() else { return Vec::new() };
        let mut failures: Vec<_> = side.failures.iter().map(|(i, e)| (*i as usize, e.clone())).collect();
        failures.sort_by_key(|(i, _)| *i);
        failures
    }

    /// The receipts of the messages that were accepted.
    #[must_use]
    pub fn receipts(&self) -> &Receipts {
        &self.0
    }
}

impl fmt::Debug for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchError").field("failures", &self.failures()).finish_non_exhaustive()
    }
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failures = self.failures();
        write!(f, "{} of {} messages failed", failures.len(), self.0.len())?;
        match failures.first() {
            Some((index, error)) => write!(f, ", the first at index {index}: {error}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for BatchError {}

impl From<BatchError> for Error {
    /// The first failure, with its index.
    fn from(error: BatchError) -> Self {
        match error.failures().into_iter().next() {
            Some((index, first)) => first.with_context("batch_index", index),
            None => Self::new(ErrorKind::Internal, "a batch failed without a failure"),
        }
    }
}
