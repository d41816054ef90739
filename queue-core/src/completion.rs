//! Verdicts of sent messages, from the adapter to whoever waits.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::message::Message;
use crate::producer::Receipt;

/// States of a slot; the bits above count how often the message was sent again.
const PENDING: u32 = 0;
const WAITING: u32 = 1;
const ACCEPTED: u32 = 2;
const FAILED: u32 = 3;
const TAG: u32 = 3;
/// In the first slot: every message was accepted at once, without a receipt, and no other slot was touched.
const ALL: u32 = !TAG | ACCEPTED;

fn is_final(state: u32) -> bool {
    state & TAG >= ACCEPTED
}

/// Who owns the messages of a block: takes back window and failed messages.
pub(crate) trait Owner: fmt::Debug + Send + Sync {
    /// Whether a message that failed so is sent again.
    fn retries(&self, error: &Error, deadline: Instant) -> bool;
    /// Takes a failed message to send it again.
    fn resend(&self, item: Resend);
    /// Gives window back.
    fn release(&self, cost: usize);
}

/// A failed message that is to be sent again.
#[derive(Debug)]
pub(crate) struct Resend {
    pub(crate) slot: SlotRef,
    pub(crate) message: Message,
    pub(crate) error: Error,
}

/// One message's place in a block, for one try.
#[derive(Debug, Clone)]
pub(crate) struct SlotRef {
    block: Arc<Block>,
    index: u32,
    epoch: u32,
}

impl SlotRef {
    pub(crate) fn deadline(&self) -> Instant {
        self.block.deadline
    }

    /// The place of the message in its block.
    pub(crate) fn index(&self) -> usize {
        self.index as usize
    }

    /// How often the message was sent before this try.
    pub(crate) fn tries(&self) -> u32 {
        self.epoch
    }

    /// Prepares the next try; `None` when the message was given a verdict meanwhile.
    pub(crate) fn again(self) -> Option<Self> {
        let next = Self { epoch: self.epoch + 1, ..self };
        let slot = next.block.slot(next.index);
        slot.state
            .compare_exchange(
                (next.epoch - 1) << 2 | WAITING,
                next.epoch << 2 | PENDING,
                Ordering::AcqRel,
                Ordering::Acquire,
            )
            .is_ok()
            .then_some(next)
    }

    /// Gives up on a message that waits to be sent again.
    pub(crate) fn give_up(self, error: Error) {
        self.block.finish(self.index, self.epoch << 2 | WAITING, Err(error));
    }
}

#[derive(Debug, Default)]
struct Slot {
    offset: AtomicU64,
    partition: AtomicU32,
    state: AtomicU32,
}

/// The verdicts of one call of a sender.
pub(crate) struct Block {
    len: u32,
    remaining: AtomicU32,
    first: Slot,
    more: OnceLock<Box<[Slot]>>,
    waker: AtomicWaker,
    side: Mutex<Side>,
    owner: Option<Arc<dyn Owner>>,
    /// How many messages, from the first on, were handed over or refused; the others hold no window.
    handed: AtomicU32,
    /// Window that each message holds until its verdict.
    cost: usize,
    deadline: Instant,
}

#[derive(Debug, Default)]
struct Side {
    failures: Vec<(u32, Error)>,
    ids: Vec<(u32, Box<str>)>,
    /// Those that a try may have left with the broker: no later failure says that it has them not.
    doubtful: BTreeSet<u32>,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("len", &self.len).field("remaining", &self.remaining).finish_non_exhaustive()
    }
}

impl Block {
    pub(crate) fn new(len: usize, cost: usize, deadline: Instant, owner: Option<Arc<dyn Owner>>) -> Arc<Self> {
        let len = u32::try_from(len).expect("a batch has fewer than 2^32 messages");
        Arc::new(Self {
            len,
            remaining: AtomicU32::new(len),
            first: Slot::default(),
            more: OnceLock::new(),
            waker: AtomicWaker::new(),
            side: Mutex::default(),
            owner,
            handed: AtomicU32::new(0),
            cost,
            deadline,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The messages below `end` are handed over, and hold window.
    pub(crate) fn hand(&self, end: usize) {
        self.handed.store(u32::try_from(end).unwrap_or(u32::MAX).min(self.len), Ordering::Release);
    }

    /// Refuses every message that was not handed over.
    pub(crate) fn refuse_rest(&self, error: &Error) {
        for index in self.handed.load(Ordering::Acquire)..self.len {
            self.refuse(index as usize, error.clone());
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.remaining.load(Ordering::Acquire) == 0
    }

    pub(crate) fn slot_ref(self: &Arc<Self>, index: usize) -> SlotRef {
        SlotRef { block: self.clone(), index: u32::try_from(index).unwrap_or(u32::MAX), epoch: 0 }
    }

    fn slot(&self, index: u32) -> &Slot {
        if index == 0 {
            return &self.first;
        }
        let more = self.more.get_or_init(|| (1..self.len).map(|_| Slot::default()).collect());
        &more[index as usize - 1]
    }

    /// Moves the slot from `expected` to its verdict; false when it had moved on.
    fn finish(&self, index: u32, expected: u32, verdict: Result<Receipt>) -> bool {
        let slot = self.slot(index);
        if slot.state.load(Ordering::Acquire) != expected {
            return false;
        }
        let tag = match verdict {
            Ok(receipt) => {
                // The offset is stored plus one, so that zero means none.
                if let Some(offset) = receipt.offset {
                    slot.offset.store(offset.wrapping_add(1), Ordering::Relaxed);
                }
                if let Some(partition) = receipt.partition {
                    slot.partition.store(partition.wrapping_add(1), Ordering::Relaxed);
                }
                if let Some(id) = receipt.id {
                    self.side.lock().ids.push((index, id));
                }
                ACCEPTED
            }
            Err(error) => {
                // Under the lock, so that whoever sees the state finds the error.
                let mut side = self.side.lock();
                if slot
                    .state
                    .compare_exchange(expected, expected & !TAG | FAILED, Ordering::AcqRel, Ordering::Acquire)
                    .is_err()
                {
                    return false;
                }
                let error = if side.doubtful.contains(&index) { error.with_outcome(Outcome::Unknown) } else { error };
                side.failures.push((index, error));
                drop(side);
                self.resolved(1);
                return true;
            }
        };
        let moved =
            slot.state.compare_exchange(expected, expected & !TAG | tag, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if moved {
            self.resolved(1);
        }
        moved
    }

    fn resolved(&self, count: u32) {
        let before = self.remaining.fetch_sub(count, Ordering::AcqRel);
        if let Some(owner) = &self.owner {
            owner.release(self.cost * count as usize);
        }
        if before == count {
            self.waker.wake();
        }
    }

    /// Fails a message that never held window and was never handed over.
    pub(crate) fn refuse(&self, index: usize, error: Error) {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        // In the order of `finish`: whoever sees the state finds the error.
        let mut side = self.side.lock();
        let state = &self.slot(index).state;
        if state.compare_exchange(PENDING, FAILED, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return;
        }
        side.failures.push((index, error));
        drop(side);
        if self.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Whoever flushes looks again.
            if let Some(owner) = &self.owner {
                owner.release(0);
            }
            self.waker.wake();
        }
    }

    /// Gives every message without a verdict this one, and answers how many there were.
    pub(crate) fn expire(&self, error: &Error) -> usize {
        if self.is_done() {
            return 0;
        }
        let mut count = 0;
        for index in 0..self.handed.load(Ordering::Acquire) {
            loop {
                let state = self.slot(index).state.load(Ordering::Acquire);
                if state == ALL {
                    return count;
                }
                if is_final(state) {
                    break;
                }
                if self.finish(index, state, Err(error.clone())) {
                    count += 1;
                    break;
                }
            }
        }
        count
    }

    fn receipt(&self, index: u32) -> Receipt {
        if self.first.state.load(Ordering::Acquire) == ALL {
            return Receipt::accepted();
        }
        let slot = self.slot(index);
        let id = self.side.lock().ids.iter().find(|(i, _)| *i == index).map(|(_, id)| id.clone());
        Receipt {
            partition: slot.partition.load(Ordering::Relaxed).checked_sub(1),
            offset: slot.offset.load(Ordering::Relaxed).checked_sub(1),
            id,
            retried: slot.state.load(Ordering::Acquire) >> 2 > 0,
        }
    }

    fn failure(&self, index: u32) -> Option<Error> {
        self.side.lock().failures.iter().find(|(i, _)| *i == index).map(|(_, e)| e.clone())
    }

    pub(crate) fn poll_done(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_done() {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        if self.is_done() { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[derive(Debug)]
enum Target {
    Range { block: Arc<Block>, base: u32, len: u32 },
    Slots(Vec<SlotRef>),
    Spent,
}

/// Takes the verdict of each message of one [`Producer::send`](crate::Producer::send), by its index in the batch.
///
/// From any thread, in any order; the first verdict of a message counts. Dropped, it answers `Unknown` for every
/// message without a verdict, so that no sender can hang.
#[derive(Debug)]
pub struct Completion(Target);

impl Completion {
    /// Makes a completion for `len` messages and the future of its verdicts, for whoever calls a producer without a
    /// [`Sender`](crate::Sender).
    pub fn new(len: usize) -> (Self, BatchVerdict) {
        let block = Block::new(len, 0, Instant::now(), None);
        block.hand(len);
        (Self::whole(&block), BatchVerdict(block))
    }

    pub(crate) fn whole(block: &Arc<Block>) -> Self {
        Self(Target::Range { block: block.clone(), base: 0, len: block.len })
    }

    pub(crate) fn slots(slots: Vec<SlotRef>) -> Self {
        Self(Target::Slots(slots))
    }

    /// A completion of its own for each message.
    pub(crate) fn split(mut self) -> Vec<Self> {
        let place = |i| self.place(i).map(|(block, index, epoch)| SlotRef { block: block.clone(), index, epoch });
        let parts = (0..self.len()).filter_map(place).map(|slot| Self(Target::Slots(vec![slot]))).collect();
        self.0 = Target::Spent;
        parts
    }

    /// How many messages there are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub fn len(&self) -> usize {
        match &self.0 {
            Target::Range { len, .. } => *len as usize,
            Target::Slots(slots) => slots.len(),
            Target::Spent => 0,
        }
    }

    /// Whether nobody waits for a verdict of it any more.
    pub(crate) fn is_over(&self) -> bool {
        match &self.0 {
            Target::Range { block, .. } => block.is_done(),
            Target::Slots(slots) => slots.iter().all(|slot| slot.block.is_done()),
            Target::Spent => true,
        }
    }

    fn place(&self, index: usize) -> Option<(&Arc<Block>, u32, u32)> {
        match &self.0 {
            Target::Range { block, base, len } => {
                let index = u32::try_from(index).ok().filter(|i| i < len)?;
                Some((block, base + index, 0))
            }
            Target::Slots(slots) => slots.get(index).map(|s| (&s.block, s.index, s.epoch)),
            Target::Spent => None,
        }
    }

    /// The broker has the message.
    pub fn accept(&self, index: usize, receipt: Receipt) {
        if let Some((block, slot, epoch)) = self.place(index) {
            block.finish(slot, epoch << 2 | PENDING, Ok(receipt));
        }
    }

    /// The broker has every message below `end`.
    pub fn accept_up_to(&self, end: usize) {
        for index in 0..end.min(self.len()) {
            self.accept(index, Receipt::accepted());
        }
    }

    /// The broker has every message. The cheapest verdict.
    pub fn accept_all(mut self) {
        if let Target::Range { block, base: 0, len } = &self.0
            && *len == block.len
            && block.more.get().is_none()
            && block.first.state.load(Ordering::Acquire) == PENDING
            && block.remaining.load(Ordering::Acquire) == *len
        {
            // Only this completion and an expiry refer to the slots. Both take the first one first, so one of the
            // two loses here.
            if block.first.state.compare_exchange(PENDING, ALL, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                block.resolved(*len);
                self.0 = Target::Spent;
                return;
            }
        }
        self.accept_up_to(self.len());
        self.0 = Target::Spent;
    }

    /// The message failed. Hand the message back wherever it is at hand: only then it can be sent again.
    pub fn fail(&self, index: usize, error: Error, message: Option<Message>) {
        let Some((block, slot, epoch)) = self.place(index) else { return };
        let pending = epoch << 2 | PENDING;
        if let (Some(owner), Some(message)) = (&block.owner, message)
            && owner.retries(&error, block.deadline)
        {
            let moved = block
                .slot(slot)
                .state
                .compare_exchange(pending, epoch << 2 | WAITING, Ordering::AcqRel, Ordering::Acquire)
                .is_ok();
            if moved {
                if error.outcome() == Outcome::Unknown {
                    block.side.lock().doubtful.insert(slot);
                }
                let slot = SlotRef { block: block.clone(), index: slot, epoch };
                owner.resend(Resend { slot, message, error });
            }
            return;
        }
        block.finish(slot, pending, Err(error));
    }

    /// Every message without a verdict failed; `messages` are all of the batch, in order.
    pub fn fail_all(self, error: &Error, messages: Vec<Message>) {
        for (index, message) in messages.into_iter().enumerate() {
            self.fail(index, error.clone(), Some(message));
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        let unresolved = |block: &Arc<Block>, index: u32, epoch: u32| {
            !block.is_done() && block.slot(index).state.load(Ordering::Acquire) == epoch << 2 | PENDING
        };
        let lost = || {
            Error::new(ErrorKind::Internal, "the message was dropped without a verdict").with_outcome(Outcome::Unknown)
        };
        for index in 0..self.len() {
            if let Some((block, slot, epoch)) = self.place(index)
                && unresolved(block, slot, epoch)
            {
                block.finish(slot, epoch << 2 | PENDING, Err(lost()));
            }
        }
    }
}

/// The verdict of one submitted message: resolves when the broker has it, or when it failed for good. Dropped, the
/// message goes on all the same.
#[must_use = "the message may fail without anybody noticing"]
#[derive(Debug)]
pub struct Verdict(pub(crate) Arc<Block>);

impl Future for Verdict {
    type Output = Result<Receipt>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let coop = std::task::ready!(tokio::task::coop::poll_proceed(cx));
        std::task::ready!(self.0.poll_done(cx));
        coop.made_progress();
        Poll::Ready(match self.0.failure(0) {
            Some(error) => Err(error),
            None => Ok(self.0.receipt(0)),
        })
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
            if receipts.0.side.lock().failures.is_empty() { Ok(receipts) } else { Err(BatchError(receipts)) }
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
        let side = self.0.0.side.lock();
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
