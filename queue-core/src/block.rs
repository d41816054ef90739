//! The verdicts of one call of a sender, and who may give them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use futures::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::message::Message;
use crate::producer::Receipt;
use crate::wakes;

/// States of a slot; the bits above count how often the message was sent again.
pub(crate) const PENDING: u32 = 0;
pub(crate) const WAITING: u32 = 1;
pub(crate) const ACCEPTED: u32 = 2;
pub(crate) const FAILED: u32 = 3;
pub(crate) const TAG: u32 = 3;
/// In the first slot: every message was accepted at once, without a receipt, and no other slot was touched.
pub(crate) const ALL: u32 = !TAG | ACCEPTED;

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
    pub(crate) block: Arc<Block>,
    pub(crate) index: u32,
    pub(crate) epoch: u32,
}

impl SlotRef {
    pub(crate) fn deadline(&self) -> Instant {
        self.block.deadline
    }

    /// The place of the message in its block.
    pub(crate) fn index(&self) -> usize {
        self.index as usize
    }

    /// Whether the message has its verdict.
    pub(crate) fn is_final(&self) -> bool {
        self.block.is_final(self.index)
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
pub(crate) struct Slot {
    offset: AtomicU64,
    partition: AtomicU32,
    pub(crate) state: AtomicU32,
}

/// The verdicts of one call of a sender.
pub(crate) struct Block {
    pub(crate) len: u32,
    pub(crate) remaining: AtomicU32,
    pub(crate) first: Slot,
    /// Waits for the last verdict.
    waker: AtomicWaker,
    /// Which of the first 64 messages somebody waits for alone.
    awaited: AtomicU64,
    /// The slots behind the first.
    more: OnceLock<Box<[Slot]>>,
    /// What messages that are accepted without more never need.
    side: OnceLock<Box<Mutex<Side>>>,
    pub(crate) owner: Option<Arc<dyn Owner>>,
    /// How many messages, from the first on, were handed over or refused; the others hold no window.
    handed: AtomicU32,
    /// Window that each message holds until its verdict: at most the window, which is at most `u32::MAX`.
    cost: u32,
    pub(crate) deadline: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct Side {
    pub(crate) failures: Vec<(u32, Error)>,
    pub(crate) ids: Vec<(u32, Box<str>)>,
    /// Those that a try may have left with the broker: no later failure says that it has them not.
    pub(crate) doubtful: BTreeSet<u32>,
    /// Those who wait for one message, in its place.
    wakers: Vec<Option<Waker>>,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("len", &self.len).field("remaining", &self.remaining).finish_non_exhaustive()
    }
}

/// Messages that were accepted, to be counted when it is dropped: though whoever tells of them panics midway.
struct Accepted<'a> {
    block: &'a Block,
    count: u32,
    /// Those among the first 64.
    told: u64,
}

impl Drop for Accepted<'_> {
    fn drop(&mut self) {
        if self.count == 0 {
            return;
        }
        self.block.resolved(self.count);
        // Written before it looks for those who wait.
        let mut awaited = self.told & self.block.awaited.load(Ordering::SeqCst);
        while awaited != 0 {
            self.block.tell(awaited.trailing_zeros());
            awaited &= awaited - 1;
        }
    }
}

impl Block {
    pub(crate) fn new(len: usize, cost: usize, deadline: Instant, owner: Option<Arc<dyn Owner>>) -> Arc<Self> {
        let len = u32::try_from(len).expect("a batch has fewer than 2^32 messages");
        Arc::new(Self {
            len,
            remaining: AtomicU32::new(len),
            first: Slot::default(),
            waker: AtomicWaker::new(),
            awaited: AtomicU64::new(0),
            more: OnceLock::new(),
            side: OnceLock::new(),
            owner,
            handed: AtomicU32::new(0),
            cost: u32::try_from(cost).unwrap_or(u32::MAX),
            deadline,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Window that each message holds.
    pub(crate) fn cost(&self) -> usize {
        self.cost as usize
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

    /// There are no more messages than those that were handed over.
    pub(crate) fn seal(&self) {
        let unused = self.len - self.handed.load(Ordering::Acquire);
        if unused > 0
            && self.remaining.fetch_sub(unused, Ordering::AcqRel) == unused
            && let Some(owner) = &self.owner
        {
            // Whoever flushes looks again.
            owner.release(0);
        }
    }

    /// Whether every message has its verdict.
    pub(crate) fn is_done(&self) -> bool {
        self.remaining.load(Ordering::Acquire) == 0
    }

    pub(crate) fn slot_ref(self: &Arc<Self>, index: usize) -> SlotRef {
        SlotRef { block: self.clone(), index: u32::try_from(index).unwrap_or(u32::MAX), epoch: 0 }
    }

    /// Whether no slot behind the first was looked at.
    pub(crate) fn is_untouched(&self) -> bool {
        self.more.get().is_none()
    }

    pub(crate) fn side(&self) -> MutexGuard<'_, Side> {
        self.side.get_or_init(Box::default).lock()
    }

    /// The side, if anything was told there.
    pub(crate) fn told(&self) -> Option<MutexGuard<'_, Side>> {
        self.side.get().map(|side| side.lock())
    }

    pub(crate) fn slot(&self, index: u32) -> &Slot {
        if index == 0 {
            return &self.first;
        }
        let more = self.more.get_or_init(|| (1..self.len).map(|_| Slot::default()).collect());
        &more[index as usize - 1]
    }

    /// Moves the slot from `expected` to its verdict; false when it had moved on.
    pub(crate) fn finish(&self, index: u32, expected: u32, verdict: Result<Receipt>) -> bool {
        let slot = self.slot(index);
        if slot.state.load(Ordering::Acquire) != expected {
            return false;
        }
        let moved = match verdict {
            Ok(receipt) => self.keep(slot, index, expected, receipt),
            Err(error) => {
                // Under the lock, so that whoever sees the state finds the error.
                let mut side = self.side();
                if slot
                    .state
                    .compare_exchange(expected, expected & !TAG | FAILED, Ordering::SeqCst, Ordering::Acquire)
                    .is_err()
                {
                    return false;
                }
                let error = if side.doubtful.contains(&index) { error.with_outcome(Outcome::Unknown) } else { error };
                side.failures.push((index, error));
                true
            }
        };
        if moved {
            self.resolved(1);
            self.tell(index);
        }
        moved
    }

    /// Writes down that a message was accepted; whether it waited for that.
    fn keep(&self, slot: &Slot, index: u32, expected: u32, receipt: Receipt) -> bool {
        // The offset is stored plus one, so that zero means none.
        if let Some(offset) = receipt.offset {
            slot.offset.store(offset.wrapping_add(1), Ordering::Relaxed);
        }
        if let Some(partition) = receipt.partition {
            slot.partition.store(partition.wrapping_add(1), Ordering::Relaxed);
        }
        if let Some(id) = receipt.id {
            self.side().ids.push((index, id));
        }
        slot.state.compare_exchange(expected, expected & !TAG | ACCEPTED, Ordering::SeqCst, Ordering::Acquire).is_ok()
    }

    /// Messages were accepted, at their first try. What they share is written once for all.
    pub(crate) fn accept(&self, verdicts: impl Iterator<Item = (u32, Receipt)>) {
        let mut accepted = Accepted { block: self, count: 0, told: 0 };
        for (index, receipt) in verdicts {
            let slot = self.slot(index);
            if slot.state.load(Ordering::Acquire) == PENDING && self.keep(slot, index, PENDING, receipt) {
                accepted.count += 1;
                accepted.told |= 1_u64.checked_shl(index).unwrap_or(0);
            }
        }
    }

    pub(crate) fn resolved(&self, count: u32) {
        let before = self.remaining.fetch_sub(count, Ordering::AcqRel);
        if let Some(owner) = &self.owner {
            owner.release(self.cost as usize * count as usize);
        }
        if before == count {
            self.waker.take().into_iter().for_each(wakes::wake);
        }
    }

    /// Fails a message that never held window and was never handed over.
    pub(crate) fn refuse(&self, index: usize, error: Error) {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        // In the order of `finish`: whoever sees the state finds the error.
        let mut side = self.side();
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
            self.waker.take().into_iter().for_each(wakes::wake);
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

    pub(crate) fn receipt(&self, index: u32) -> Receipt {
        if self.first.state.load(Ordering::Acquire) == ALL {
            return Receipt::accepted();
        }
        let slot = self.slot(index);
        let id = self.told().and_then(|side| side.ids.iter().find(|(i, _)| *i == index).map(|(_, id)| id.clone()));
        Receipt {
            partition: slot.partition.load(Ordering::Relaxed).checked_sub(1),
            offset: slot.offset.load(Ordering::Relaxed).checked_sub(1),
            id,
            retried: slot.state.load(Ordering::Acquire) >> 2 > 0,
        }
    }

    pub(crate) fn failure(&self, index: u32) -> Option<Error> {
        self.told()?.failures.iter().find(|(i, _)| *i == index).map(|(_, e)| e.clone())
    }

    /// The verdict of a message that has one.
    pub(crate) fn verdict(&self, index: u32) -> Result<Receipt> {
        if self.slot(index).state.load(Ordering::Acquire) & TAG != FAILED {
            return Ok(self.receipt(index));
        }
        let lost = || Error::new(ErrorKind::Internal, "the reason of a failure is gone");
        Err(self.failure(index).unwrap_or_else(lost))
    }

    /// Whether a message has its verdict.
    pub(crate) fn is_final(&self, index: u32) -> bool {
        is_final(self.slot(index).state.load(Ordering::SeqCst))
    }

    /// Waits for one of the first 64 messages.
    pub(crate) fn poll_slot(&self, index: u32, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_final(index) {
            return Poll::Ready(());
        }
        {
            let mut side = self.side();
            let place = index as usize;
            if side.wakers.len() <= place {
                side.wakers.resize(self.len.min(u64::BITS) as usize, None);
            }
            match &mut side.wakers[place] {
                Some(waker) => waker.clone_from(cx.waker()),
                empty => *empty = Some(cx.waker().clone()),
            }
        }
        // Before it looks again; a verdict is written before it looks for those who wait.
        self.awaited.fetch_or(1 << index, Ordering::SeqCst);
        if !self.is_final(index) {
            return Poll::Pending;
        }
        self.waker_of(index);
        Poll::Ready(())
    }

    fn waker_of(&self, index: u32) -> Option<Waker> {
        self.side().wakers.get_mut(index as usize)?.take()
    }

    /// Wakes whoever waits for this message alone.
    fn tell(&self, index: u32) {
        if index >= u64::BITS || self.awaited.load(Ordering::SeqCst) >> index & 1 == 0 {
            return;
        }
        let waker = self.waker_of(index);
        if let Some(waker) = waker {
            wakes::wake(waker);
        }
    }

    /// Waits for every message.
    pub(crate) fn poll_done(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_done() {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        if self.is_done() { Poll::Ready(()) } else { Poll::Pending }
    }
}
