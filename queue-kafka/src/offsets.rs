//! How far a partition may be committed when messages are answered in any order.

use std::collections::VecDeque;

/// What became of a message that was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// None yet.
    Open,
    /// Acknowledged.
    Done,
    /// Given back: it stays uncommitted as long as the partition is held, and comes again after that.
    Released,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: i64,
    size: u32,
    answer: Answer,
}

/// The messages of one partition during one assignment: which are answered, and the offset below which all are.
///
/// Fed with the sequence of offsets as they were delivered, which has gaps (compaction, transaction markers).
#[derive(Debug, Default)]
pub(crate) struct Watermark {
    /// From the first message that is not acknowledged on, in order of offset.
    entries: VecDeque<Entry>,
    /// Where reading goes on behind the last delivered message; `None` before the first.
    next: Option<i64>,
    /// Entries without an answer.
    open: usize,
}

impl Watermark {
    /// Notes a delivered message. False when it does not follow those before it, and is to be dropped.
    pub(crate) fn deliver(&mut self, offset: i64, size: u32) -> bool {
        if self.next.is_some_and(|next| offset < next) {
            return false;
        }
        self.entries.push_back(Entry { offset, size, answer: Answer::Open });
        self.next = Some(offset + 1);
        self.open += 1;
        true
    }

    /// Acknowledges a message; its size when it was open until now.
    pub(crate) fn ack(&mut self, offset: i64) -> Option<u32> {
        let size = self.answer(offset, Answer::Done)?;
        while self.entries.front().is_some_and(|e| e.answer == Answer::Done) {
            self.entries.pop_front();
        }
        Some(size)
    }

    /// Gives a message back: it stays uncommitted. Its size when it was open until now.
    pub(crate) fn release(&mut self, offset: i64) -> Option<u32> {
        self.answer(offset, Answer::Released)
    }

    fn answer(&mut self, offset: i64, answer: Answer) -> Option<u32> {
        let index = self.find(offset)?;
        let entry = self.entries.get_mut(index).filter(|e| e.answer == Answer::Open)?;
        entry.answer = answer;
        self.open -= 1;
        Some(entry.size)
    }

    /// Whether the message is open.
    pub(crate) fn holds(&self, offset: i64) -> bool {
        self.find(offset).is_some_and(|i| self.entries[i].answer == Answer::Open)
    }

    fn find(&self, offset: i64) -> Option<usize> {
        let first = self.entries.front()?.offset;
        // Without gaps the place is known; with gaps it lies before.
        let guess = usize::try_from(offset.checked_sub(first)?).ok()?;
        if self.entries.get(guess).is_some_and(|e| e.offset == offset) {
            return Some(guess);
        }
        self.entries.binary_search_by_key(&offset, |e| e.offset).ok()
    }

    /// The offset to commit: the first that is not acknowledged. `None` before the first message.
    pub(crate) fn position(&self) -> Option<i64> {
        self.entries.front().map(|e| e.offset).or(self.next)
    }

    /// Messages without an answer.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// Bytes of the messages without an answer.
    pub(crate) fn open_bytes(&self) -> usize {
        self.entries.iter().filter(|e| e.answer == Answer::Open).map(|e| e.size as usize).sum()
    }

    /// From the first message that is not acknowledged to the last delivered one.
    pub(crate) fn span(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Deliver { gap: i64 },
        Ack(prop::sample::Index),
        Release(prop::sample::Index),
        AckAgain(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => prop_oneof![3 => Just(0), 1 => 1..5_i64].prop_map(|gap| Step::Deliver { gap }),
            4 => any::<prop::sample::Index>().prop_map(Step::Ack),
            1 => any::<prop::sample::Index>().prop_map(Step::Release),
            1 => any::<prop::sample::Index>().prop_map(Step::AckAgain),
        ]
    }

    proptest! {
        /// Against a model that keeps every offset for ever.
        #[test]
        fn the_position_is_the_first_offset_that_is_not_acknowledged(
            start in 0..100_i64,
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let mut watermark = Watermark::default();
            let mut next = start;
            let mut delivered = Vec::new();
            let (mut open, mut not_acked) = (BTreeSet::new(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Deliver { gap } => {
                        let offset = next + gap;
                        prop_assert!(watermark.deliver(offset, 1));
                        next = offset + 1;
                        delivered.push(offset);
                        open.insert(offset);
                        not_acked.insert(offset);
                    }
                    Step::Ack(_) | Step::Release(_) if open.is_empty() => {}
                    Step::Ack(i) => {
                        let offset = *i.get(&open.iter().copied().collect::<Vec<_>>());
                        prop_assert_eq!(watermark.ack(offset), Some(1));
                        open.remove(&offset);
                        not_acked.remove(&offset);
                    }
                    Step::Release(i) => {
                        let offset = *i.get(&open.iter().copied().collect::<Vec<_>>());
                        prop_assert_eq!(watermark.release(offset), Some(1));
                        open.remove(&offset);
                    }
                    Step::AckAgain(i) => {
                        let answered: Vec<_> = delivered.iter().filter(|o| !open.contains(o)).copied().collect();
                        if !answered.is_empty() {
                            prop_assert_eq!(watermark.ack(*i.get(&answered)), None);
                        }
                    }
                }
                let expected = not_acked.first().copied().or((!delivered.is_empty()).then_some(next));
                prop_assert_eq!(watermark.position(), expected);
                prop_assert_eq!(watermark.open(), open.len());
                prop_assert_eq!(watermark.open_bytes(), open.len());
                for offset in &delivered {
                    prop_assert_eq!(watermark.holds(*offset), open.contains(offset));
                }
                prop_assert!(!watermark.holds(next));
            }
        }
    }

    #[test]
    fn an_offset_that_was_delivered_before_is_dropped() {
        let mut watermark = Watermark::default();
        assert!(watermark.deliver(5, 1));
        assert!(!watermark.deliver(5, 1));
        assert!(!watermark.deliver(3, 1));
        assert_eq!(watermark.open(), 1);
    }
}
