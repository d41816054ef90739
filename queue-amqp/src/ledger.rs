//! Which deliveries of one channel are unanswered, and which acknowledgements are still to be written.

use std::collections::VecDeque;

use futures::FutureExt;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions};

use crate::burst::Burst;

/// Acknowledgements that are written together at most.
const MOST: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// Handed out.
    Held,
    /// Acknowledged, not written.
    Acked,
    /// Answered, and written.
    Gone,
    /// Not to be answered: given back by the end of the channel, or never seen here.
    Kept,
}

/// The deliveries of one channel, by their tags, which are consecutive from 1 on.
///
/// Whoever writes an answer does so under the lock that guards the ledger: an acknowledgement of everything up to a
/// tag must not overtake, or be overtaken by, another answer.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// The tag of the first mark.
    base: u64,
    marks: VecDeque<Mark>,
    held: usize,
    acked: usize,
    /// Written together at most: a part of the prefetch, so that the next messages are on their way meanwhile.
    most: usize,
    /// Whether something before the first mark was kept: from then on nothing is answered with what is before it.
    alone: bool,
    pub(crate) burst: Burst,
}

impl Ledger {
    pub(crate) fn new(prefetch: usize) -> Self {
        let most = (prefetch / 2).clamp(1, MOST);
        Self { base: 1, marks: VecDeque::new(), held: 0, acked: 0, most, alone: false, burst: Burst::default() }
    }

    /// A delivery is handed out.
    pub(crate) fn hand_out(&mut self, tag: u64) {
        self.held += 1;
        self.insert(tag, Mark::Held);
    }

    /// A delivery was given back without having been handed out.
    pub(crate) fn gave_back(&mut self, tag: u64) {
        self.insert(tag, Mark::Gone);
    }

    fn insert(&mut self, tag: u64, mark: Mark) {
        // A tag that is missing was delivered, though not to whoever reads now.
        if self.marks.is_empty() {
            self.alone |= tag > self.base;
            self.base = tag;
        }
        while self.base + (self.marks.len() as u64) < tag {
            self.marks.push_back(Mark::Kept);
        }
        self.marks.push_back(mark);
    }

    fn mark(&mut self, tag: u64) -> Option<&mut Mark> {
        let place = usize::try_from(tag.checked_sub(self.base)?).ok()?;
        self.marks.get_mut(place).filter(|mark| **mark == Mark::Held)
    }

    /// Whether the delivery is unanswered.
    pub(crate) fn holds(&self, tag: u64) -> bool {
        let place = tag.checked_sub(self.base).and_then(|p| usize::try_from(p).ok());
        place.and_then(|p| self.marks.get(p)) == Some(&Mark::Held)
    }

    /// Whether one up to this tag is not to be answered now.
    fn holds_up_to(&self, tag: u64) -> bool {
        self.alone || (self.base..=tag).zip(&self.marks).any(|(_, mark)| matches!(mark, Mark::Held | Mark::Kept))
    }

    /// How many are unanswered.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// How many acknowledgements are to be written.
    pub(crate) fn acked(&self) -> usize {
        self.acked
    }

    /// Whether so many are to be written that it is worth it.
    pub(crate) fn is_due(&self) -> bool {
        self.acked >= self.most
    }

    /// Records an acknowledgement; false when the delivery is not unanswered.
    pub(crate) fn ack(&mut self, tag: u64) -> bool {
        let Some(mark) = self.mark(tag) else { return false };
        *mark = Mark::Acked;
        self.held -= 1;
        self.acked += 1;
        true
    }

    /// Records an answer that the caller writes at once; false when the delivery is not unanswered.
    pub(crate) fn settle(&mut self, tag: u64) -> bool {
        let Some(mark) = self.mark(tag) else { return false };
        *mark = Mark::Gone;
        self.held -= 1;
        true
    }

    /// Records that a delivery goes back with the channel; false when it is not unanswered.
    pub(crate) fn keep(&mut self, tag: u64) -> bool {
        let Some(mark) = self.mark(tag) else { return false };
        *mark = Mark::Kept;
        self.held -= 1;
        true
    }

    /// What is to be written, in order: tags, each alone or with everything before it.
    fn take(&mut self, mut write: impl FnMut(u64, bool)) {
        let (mut last, mut count) = (None, 0);
        while let Some(mark @ (Mark::Acked | Mark::Gone)) = self.marks.front().filter(|_| !self.alone) {
            if *mark == Mark::Acked {
                last = Some(self.base);
                count += 1;
            }
            self.marks.pop_front();
            self.base += 1;
        }
        if let Some(tag) = last {
            write(tag, count > 1);
            self.acked -= count;
        }
        if self.acked > 0 {
            for (tag, mark) in (self.base..).zip(&mut self.marks) {
                if *mark == Mark::Acked {
                    *mark = Mark::Gone;
                    write(tag, false);
                }
            }
            self.acked = 0;
        }
        while let Some(mark @ (Mark::Gone | Mark::Kept)) = self.marks.front() {
            self.alone |= *mark == Mark::Kept;
            self.marks.pop_front();
            self.base += 1;
        }
    }

    /// Gives back deliveries that are recorded as gone, in order of their tags: as one where that touches nothing else.
    ///
    /// The acknowledgements are to be written before the deliveries are recorded: one of everything up to a tag takes
    /// what is gone for answered.
    pub(crate) fn give_back(&mut self, channel: &Channel, tags: &[u64]) {
        let mut frames = 0;
        let mut nack = |tag, multiple| {
            frames += 1;
            // With the client when the first poll returns.
            let _ = channel.basic_nack(tag, BasicNackOptions { multiple, requeue: true }).now_or_never();
        };
        match tags.last() {
            Some(last) if tags.len() > 1 && self.acked == 0 && !self.holds_up_to(*last) => nack(*last, true),
            _ => tags.iter().for_each(|tag| nack(*tag, false)),
        }
        self.burst.gave(frames);
    }

    /// Hands what is to be written to the client; false when the channel is gone.
    pub(crate) fn write(&mut self, channel: &Channel) -> bool {
        let (mut alive, mut frames) = (true, 0);
        self.take(|tag, multiple| {
            frames += 1;
            // The frame is with the client when the first poll returns; nothing else is worth waiting for.
            let written = channel.basic_ack(tag, BasicAckOptions { multiple }).now_or_never();
            alive &= !matches!(written, Some(Err(_)));
        });
        self.burst.gave(frames);
        alive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(ledger: &mut Ledger) -> Vec<(u64, bool)> {
        let mut list = Vec::new();
        ledger.take(|tag, multiple| list.push((tag, multiple)));
        list
    }

    #[test]
    fn a_prefix_is_written_as_one_and_stragglers_alone() {
        let mut ledger = Ledger::new(100);
        (1..=8).for_each(|tag| ledger.hand_out(tag));
        assert!([1, 2, 3, 5, 7].into_iter().all(|tag| ledger.ack(tag)));
        assert_eq!(taken(&mut ledger), [(3, true), (5, false), (7, false)]);
        assert_eq!((ledger.held(), ledger.acked()), (3, 0));
        assert!(ledger.ack(4) && ledger.ack(6));
        assert_eq!(taken(&mut ledger), [(6, true)]);
    }

    #[test]
    fn an_answer_counts_once() {
        let mut ledger = Ledger::new(100);
        ledger.hand_out(1);
        ledger.hand_out(2);
        assert!(ledger.settle(1) && !ledger.settle(1) && !ledger.ack(1));
        assert!(ledger.ack(2) && !ledger.settle(2) && !ledger.holds(2));
        assert!(!ledger.ack(3) && !ledger.ack(0));
        // The first was settled before, so one tag suffices.
        assert_eq!(taken(&mut ledger), [(2, false)]);
    }

    #[test]
    fn what_goes_back_with_the_channel_is_acknowledged_with_nothing() {
        let mut ledger = Ledger::new(100);
        (1..=4).for_each(|tag| ledger.hand_out(tag));
        assert!(ledger.keep(2) && !ledger.keep(2) && !ledger.ack(2) && !ledger.holds(2));
        assert!([1, 3, 4].into_iter().all(|tag| ledger.ack(tag)));
        assert_eq!(taken(&mut ledger), [(1, false), (3, false), (4, false)]);
        assert_eq!(ledger.held(), 0);
    }

    #[test]
    fn what_is_held_is_not_given_back_with_others() {
        let mut ledger = Ledger::new(100);
        (1..=4).for_each(|tag| ledger.hand_out(tag));
        assert!(ledger.settle(2) && ledger.settle(3));
        assert!(ledger.holds_up_to(3));
        assert!(ledger.ack(1));
        taken(&mut ledger);
        assert!(!ledger.holds_up_to(3) && ledger.holds_up_to(4));
    }

    #[test]
    fn tags_that_were_given_back_leave_no_gap() {
        let mut ledger = Ledger::new(100);
        ledger.hand_out(1);
        ledger.gave_back(2);
        ledger.gave_back(3);
        ledger.hand_out(4);
        assert!(ledger.holds(4) && !ledger.holds(3));
        assert!(ledger.ack(1) && ledger.ack(4));
        assert_eq!(taken(&mut ledger), [(4, true)]);
    }

    #[test]
    fn a_tag_that_was_never_seen_is_answered_with_nothing() {
        let mut ledger = Ledger::new(100);
        ledger.hand_out(1);
        (4..=6).for_each(|tag| ledger.hand_out(tag));
        assert!(!ledger.holds(3) && ledger.holds_up_to(3));
        assert!([1, 4, 5, 6].into_iter().all(|tag| ledger.ack(tag)));
        assert_eq!(taken(&mut ledger), [(1, false), (4, false), (5, false), (6, false)]);
        // Not later either, and without a trace of what was answered.
        assert!(ledger.marks.is_empty());
        (7..=9).for_each(|tag| ledger.hand_out(tag));
        assert!([7, 8].into_iter().all(|tag| ledger.ack(tag)));
        assert_eq!(taken(&mut ledger), [(7, false), (8, false)]);
        assert!(ledger.holds_up_to(8) && ledger.marks.len() == 1);
    }

    #[test]
    fn a_tag_that_was_never_seen_counts_also_where_nothing_is_held() {
        for first in [1, 3] {
            let mut ledger = Ledger::new(100);
            if first > 1 {
                ledger.hand_out(1);
                assert!(ledger.ack(1));
                assert_eq!(taken(&mut ledger), [(1, false)]);
            }
            (first + 1..first + 3).for_each(|tag| ledger.hand_out(tag));
            assert!((first + 1..first + 3).all(|tag| ledger.ack(tag)));
            assert_eq!(taken(&mut ledger), [(first + 1, false), (first + 2, false)]);
        }
    }

    #[test]
    fn a_small_prefetch_is_answered_at_once() {
        let mut ledger = Ledger::new(1);
        ledger.hand_out(1);
        assert!(ledger.ack(1) && ledger.is_due());
    }
}
