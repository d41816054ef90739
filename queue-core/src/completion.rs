//! Takes the verdicts of sent messages from the adapter.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use crate::block::{ALL, Block, PENDING, Resend, SlotRef, WAITING};
use crate::error::{Error, ErrorKind, Outcome};
use crate::message::Message;
use crate::producer::Receipt;
use crate::verdict::BatchVerdict;

#[derive(Debug)]
enum Target {
    Whole(Arc<Block>),
    One(SlotRef),
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
        Self(Target::Whole(block.clone()))
    }

    pub(crate) fn one(slot: SlotRef) -> Self {
        Self(Target::One(slot))
    }

    pub(crate) fn slots(slots: Vec<SlotRef>) -> Self {
        Self(Target::Slots(slots))
    }

    /// A completion of its own for each message.
    pub(crate) fn split(mut self) -> Vec<Self> {
        let place = |i| self.place(i).map(|(block, index, epoch)| SlotRef { block: block.clone(), index, epoch });
        let parts = (0..self.len()).filter_map(place).map(Self::one).collect();
        self.0 = Target::Spent;
        parts
    }

    /// How many messages there are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub fn len(&self) -> usize {
        match &self.0 {
            Target::Whole(block) => block.len(),
            Target::One(_) => 1,
            Target::Slots(slots) => slots.len(),
            Target::Spent => 0,
        }
    }

    /// Whether nobody waits for a verdict of it any more.
    pub(crate) fn is_over(&self) -> bool {
        match &self.0 {
            Target::Whole(block) => block.is_done(),
            Target::One(slot) => slot.is_final(),
            Target::Slots(slots) => slots.iter().all(SlotRef::is_final),
            Target::Spent => true,
        }
    }

    /// Whether nobody waits for the verdict of a message any more: it was given, or the sender's deadline passed.
    ///
    /// An adapter that keeps messages for later drops those, so that a broker which takes none cannot make it keep more
    /// and more. It costs two loads; a message of several may be told late, never early.
    #[must_use]
    pub fn is_over_for(&self, index: usize) -> bool {
        match &self.0 {
            Target::Whole(block) => block.is_done(),
            Target::One(slot) => index > 0 || slot.is_final(),
            Target::Slots(slots) => slots.get(index).is_none_or(SlotRef::is_final),
            Target::Spent => true,
        }
    }

    /// When the only message of a completion that was [`split`](Self::split) is given up by its sender, if it has one.
    #[cfg(feature = "testing")]
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.0 {
            Target::One(slot) => slot.block.owner.is_some().then_some(slot.block.deadline),
            Target::Whole(_) | Target::Slots(_) | Target::Spent => None,
        }
    }

    fn place(&self, index: usize) -> Option<(&Arc<Block>, u32, u32)> {
        match &self.0 {
            Target::Whole(block) => {
                let index = u32::try_from(index).ok().filter(|i| *i < block.len)?;
                Some((block, index, 0))
            }
            Target::One(slot) => (index == 0).then_some((&slot.block, slot.index, slot.epoch)),
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
        if let Target::Whole(block) = &self.0
            && block.is_untouched()
            && block.first.state.load(Ordering::Acquire) == PENDING
            && block.remaining.load(Ordering::Acquire) == block.len
        {
            // Only this completion and an expiry refer to the slots. Both take the first one first, so one of the
            // two loses here.
            if block.first.state.compare_exchange(PENDING, ALL, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                block.resolved(block.len);
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
                    block.side().doubtful.insert(slot);
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
