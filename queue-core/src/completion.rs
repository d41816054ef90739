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
    /// Some of the first 64 of a block, each by its place in it and for its first try.
    Joined(Arc<Block>, u64),
    Spent,
}

/// The places whose bits are set, in order.
fn places(mut bits: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let place = (bits != 0).then(|| bits.trailing_zeros())?;
        bits &= bits - 1;
        Some(place)
    })
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
    #[must_use]
    pub fn split(mut self) -> Vec<Self> {
        let place = |i| self.place(i).map(|(block, index, epoch)| SlotRef { block: block.clone(), index, epoch });
        let parts = self.indices().filter_map(place).map(Self::one).collect();
        self.0 = Target::Spent;
        parts
    }

    /// Makes the completion of a single message one that [others can join](Self::join), where its sender gives out verdicts
    /// together; the index of its message from then on, which is less than 64.
    #[must_use]
    pub fn joinable(mut self) -> (Self, usize) {
        match &self.0 {
            Target::One(slot) if slot.epoch == 0 && slot.index < u64::BITS => {
                let (block, index) = (slot.block.clone(), slot.index);
                self.0 = Target::Spent;
                (Self(Target::Joined(block, 1 << index)), index as usize)
            }
            _ => (self, 0),
        }
    }

    /// Takes in the completion of a single message whose verdicts its sender gives out together with those here, and tells
    /// the index of that message: less than 64, and none that is here or was.
    ///
    /// # Errors
    /// The other completion, where it has nothing to do with this.
    pub fn join(&mut self, mut other: Self) -> Result<usize, Self> {
        let Target::Joined(block, bits) = &mut self.0 else { return Err(other) };
        match &other.0 {
            Target::One(slot) if Arc::ptr_eq(&slot.block, block) && slot.epoch == 0 && slot.index < u64::BITS => {
                let index = slot.index;
                *bits |= 1 << index;
                other.0 = Target::Spent;
                Ok(index as usize)
            }
            _ => Err(other),
        }
    }

    /// Takes the messages out whose indices are the bits that are set here: of those that have [joined](Self::join). Nothing joins
    /// the one that has none left.
    #[must_use]
    pub fn part(&mut self, indices: u64) -> Self {
        let Target::Joined(block, bits) = &mut self.0 else {
            // A single message of its own.
            return Self(if indices & 1 == 1 { std::mem::replace(&mut self.0, Target::Spent) } else { Target::Spent });
        };
        let taken = *bits & indices;
        *bits &= !indices;
        if *bits == 0 {
            // Nothing is kept for those who may join: whoever sends owns what takes its verdicts.
            let Target::Joined(block, _) = std::mem::replace(&mut self.0, Target::Spent) else {
                return Self(Target::Spent);
            };
            return Self(Target::Joined(block, taken));
        }
        Self(Target::Joined(block.clone(), taken))
    }

    fn indices(&self) -> impl Iterator<Item = usize> + use<> {
        let (all, bits) = match &self.0 {
            Target::Joined(_, bits) => (0, *bits),
            _ => (self.len(), 0),
        };
        (0..all).chain(places(bits).map(|place| place as usize))
    }

    /// How many messages there are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub fn len(&self) -> usize {
        match &self.0 {
            Target::Whole(block) => block.len(),
            Target::One(_) => 1,
            Target::Slots(slots) => slots.len(),
            Target::Joined(_, bits) => bits.count_ones() as usize,
            Target::Spent => 0,
        }
    }

    /// Whether nobody waits for a verdict of it any more.
    pub(crate) fn is_over(&self) -> bool {
        match &self.0 {
            Target::Whole(block) => block.is_done(),
            Target::One(slot) => slot.is_final(),
            Target::Slots(slots) => slots.iter().all(SlotRef::is_final),
            Target::Joined(block, bits) => places(*bits).all(|index| block.is_final(index)),
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
            Target::Joined(..) => self.place(index).is_none_or(|(block, index, _)| block.is_final(index)),
            Target::Spent => true,
        }
    }

    /// When the only message of a completion that was [`split`](Self::split) is given up by its sender, if it has one.
    #[cfg(feature = "testing")]
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.0 {
            Target::One(slot) => slot.block.owner.is_some().then_some(slot.block.deadline),
            Target::Whole(_) | Target::Slots(_) | Target::Joined(..) | Target::Spent => None,
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
            Target::Joined(block, bits) => {
                let index = u32::try_from(index).ok().filter(|i| *i < u64::BITS && bits >> i & 1 == 1)?;
                Some((block, index, 0))
            }
            Target::Spent => None,
        }
    }

    /// The broker has the message.
    pub fn accept(&self, index: usize, receipt: Receipt) {
        if let Some((block, slot, epoch)) = self.place(index) {
            block.finish(slot, epoch << 2 | PENDING, Ok(receipt));
        }
    }

    /// The broker has these messages. Cheaper than to [accept](Self::accept) one by one.
    pub fn accept_each(&self, verdicts: impl IntoIterator<Item = (usize, Receipt)>) {
        let verdicts = verdicts.into_iter();
        match &self.0 {
            Target::Whole(block) | Target::Joined(block, _) => {
                block.accept(verdicts.filter_map(|(index, receipt)| Some((self.place(index)?.1, receipt))));
            }
            _ => verdicts.for_each(|(index, receipt)| self.accept(index, receipt)),
        }
    }

    /// The broker has every message whose index is below `end`.
    pub fn accept_up_to(&self, end: usize) {
        let all = self.indices().take_while(|index| *index < end);
        self.accept_each(all.map(|index| (index, Receipt::accepted())));
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
        self.accept_up_to(usize::MAX);
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
        for (index, message) in self.indices().zip(messages) {
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
        for index in self.indices() {
            if let Some((block, slot, epoch)) = self.place(index)
                && unresolved(block, slot, epoch)
            {
                block.finish(slot, epoch << 2 | PENDING, Err(lost()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::atomic::AtomicBool;
    use std::task::{Context, Wake, Waker};

    use futures::FutureExt as _;

    use super::*;
    use crate::verdict::Verdict;

    #[test]
    fn singles_of_one_call_join_in_any_order_and_each_gets_its_own_verdict() {
        let (done, mut verdicts) = Completion::new(5);
        let mut singles = done.split();
        let (mut joined, third) = singles.remove(2).joinable();
        assert_eq!((third, joined.len()), (2, 1));
        let indices: Vec<_> = singles.into_iter().rev().map(|single| joined.join(single).unwrap()).collect();
        assert_eq!(indices, [4, 3, 1, 0]);
        let (first, over) = (joined.part(0b00101), joined.part(0b10010));
        assert_eq!((first.len(), over.len(), joined.len()), (2, 2, 1));
        // What is not there, or has its verdict, is left alone.
        first.accept_each([
            (2, Receipt::at(0, 2)),
            (0, Receipt::at(0, 0)),
            (1, Receipt::at(0, 9)),
            (0, Receipt::at(0, 8)),
        ]);
        first.accept_each([(64, Receipt::accepted()), (usize::MAX, Receipt::accepted())]);
        assert!(first.is_over() && !joined.is_over() && joined.is_over_for(2) && !joined.is_over_for(3));
        over.fail(4, Error::new(ErrorKind::TooLarge, "large"), None);
        drop(over);
        assert!((&mut verdicts).now_or_never().is_none(), "one is left");
        joined.accept_all();
        let error = verdicts.now_or_never().unwrap().unwrap_err();
        let failed: Vec<_> = error.failures().iter().map(|(i, e)| (*i, e.kind(), e.outcome())).collect();
        assert_eq!(failed, [(1, ErrorKind::Internal, Outcome::Unknown), (4, ErrorKind::TooLarge, Outcome::NotSent)]);
        let receipts: Vec<_> = error.receipts().iter().collect();
        assert_eq!(receipts[0], Some(Receipt::at(0, 0)));
        assert_eq!(receipts[2..4], [Some(Receipt::at(0, 2)), Some(Receipt::accepted())]);
    }

    #[test]
    fn what_is_of_another_call_or_far_behind_does_not_join() {
        let (mut joined, _) = Completion::new(1).0.joinable();
        let other = joined.join(Completion::new(1).0).unwrap_err();
        let (done, verdicts) = Completion::new(70);
        let mut singles = done.split();
        let (mut late, index) = singles.pop().unwrap().joinable();
        assert_eq!((index, late.len()), (0, 1), "it stays by itself");
        let early = late.join(singles.remove(0)).unwrap_err();
        late.part(1).accept(0, Receipt::at(0, 69));
        early.accept(0, Receipt::at(0, 0));
        drop((other, singles, late));
        let error = verdicts.now_or_never().unwrap().unwrap_err();
        assert_eq!(error.failures().len(), 68);
        assert_eq!(
            (error.receipts().get(0), error.receipts().get(69)),
            (Some(Receipt::at(0, 0)), Some(Receipt::at(0, 69)))
        );
    }

    #[test]
    fn verdicts_that_are_given_together_wake_those_who_wait_for_one() {
        let (done, _all) = Completion::new(3);
        let Target::Whole(block) = &done.0 else { unreachable!("it is whole") };
        let mut second = Verdict::new(block.slot_ref(1));
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let (waker, is_woken) = (Waker::from(woken.clone()), || woken.0.load(Ordering::SeqCst));
        assert!(Pin::new(&mut second).poll(&mut Context::from_waker(&waker)).is_pending());
        done.accept_each([(0, Receipt::accepted())]);
        assert!(!is_woken());
        done.accept_each([(2, Receipt::accepted()), (1, Receipt::at(7, 1))]);
        assert!(is_woken());
        assert_eq!(second.now_or_never().unwrap().unwrap(), Receipt::at(7, 1));
    }

    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}
