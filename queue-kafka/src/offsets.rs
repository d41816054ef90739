//! How far a partition may be committed when messages are answered in any order.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::ops::Range;

/// Marks a note of this crate in the metadata of a committed offset.
const MARK: &str = "aq1:";
/// The longest note; brokers take 4096 bytes unless configured.
const MAX_NOTE: usize = 4000;

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
    /// See [`next`](Self::next).
    next: Option<i64>,
    /// Entries without an answer.
    open: usize,
    /// Offsets beyond `next` that were acknowledged in an earlier assignment.
    known: VecDeque<Range<i64>>,
}

/// What is to be done with a message that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// It is handed out.
    Open,
    /// It was acknowledged before, in an earlier assignment.
    Done,
}

impl Watermark {
    /// Goes on where an earlier assignment left off, with the note that was committed.
    pub(crate) fn resume(position: i64, note: &str) -> Self {
        Self { known: read(position, note), next: Some(position), ..Self::default() }
    }

    /// Notes a message that arrived; its offset is not below [`next`](Self::next).
    pub(crate) fn deliver(&mut self, offset: i64, size: u32) -> Delivery {
        while self.known.front().is_some_and(|range| range.end <= offset) {
            self.known.pop_front();
        }
        self.next = Some(offset + 1);
        if self.known.front().is_some_and(|range| range.contains(&offset)) {
            if !self.entries.is_empty() {
                self.entries.push_back(Entry { offset, size: 0, answer: Answer::Done });
            }
            return Delivery::Done;
        }
        self.entries.push_back(Entry { offset, size, answer: Answer::Open });
        self.open += 1;
        Delivery::Open
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

    /// Where reading goes on; `None` where that is not known yet.
    pub(crate) fn next(&self) -> Option<i64> {
        self.next
    }

    /// The offset to commit: the first that is not acknowledged. `None` before the first message of a new group.
    pub(crate) fn position(&self) -> Option<i64> {
        self.entries.front().map(|e| e.offset).or(self.next)
    }

    /// The oldest message that is not acknowledged.
    pub(crate) fn oldest(&self) -> Option<i64> {
        self.entries.front().map(|e| e.offset)
    }

    /// What is acknowledged beyond the position, as text for the metadata of the committed offset: how many offsets to
    /// skip and how many follow that are done, again and again. Cut off where it would be too long: what is not noted
    /// comes again.
    pub(crate) fn note(&self) -> String {
        let mut note = String::new();
        let Some(mut at) = self.position() else { return note };
        let next = self.next.unwrap_or(at);
        let mut runs: Vec<Range<i64>> = Vec::new();
        let mut joins = false;
        for entry in &self.entries {
            let done = entry.answer == Answer::Done;
            match runs.last_mut() {
                Some(last) if done && joins => last.end = entry.offset + 1,
                _ if done => runs.push(entry.offset..entry.offset + 1),
                _ => {}
            }
            joins = done;
        }
        runs.extend(self.known.iter().filter(|r| r.end > next).map(|r| r.start.max(next)..r.end));
        for run in runs {
            let before = note.len();
            let _ = write!(note, "{}{}+{}", if before == 0 { MARK } else { "," }, run.start - at, run.end - run.start);
            if note.len() > MAX_NOTE {
                note.truncate(before);
                break;
            }
            at = run.end;
        }
        note
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

/// Reads a note. Anything else that stands in the metadata is no note, and a broken one ends where it breaks.
fn read(position: i64, note: &str) -> VecDeque<Range<i64>> {
    let mut known = VecDeque::new();
    let mut at = position;
    for run in note.strip_prefix(MARK).into_iter().flat_map(|runs| runs.split(',')) {
        let number = |text: &str| text.parse::<i64>().ok().filter(|n| *n >= 0);
        let range = run.split_once('+').and_then(|(skip, count)| {
            let start = at.checked_add(number(skip)?)?;
            Some(start..start.checked_add(number(count)?)?)
        });
        let Some(range) = range else { break };
        at = range.end;
        known.push_back(range);
    }
    known
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
            second_crash in any::<prop::sample::Index>(),
        ) {
            let mut watermark = Watermark::default();
            let mut next = start;
            let mut delivered = Vec::new();
            let (mut open, mut not_acked) = (BTreeSet::new(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Deliver { gap } => {
                        let offset = next + gap;
                        prop_assert_eq!(watermark.deliver(offset, 1), Delivery::Open);
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
            // After a crash exactly those come again that were not acknowledged, also when it happens twice.
            if let Some(position) = watermark.position() {
                let (mut position, mut note) = (position, watermark.note());
                let log: Vec<_> = delivered.iter().copied().filter(|o| *o >= position).collect();
                for read_before_the_crash in [second_crash.index(log.len() + 1), log.len()] {
                    let mut again = Watermark::resume(position, &note);
                    let handed: Vec<_> = log
                        .iter()
                        .copied()
                        .filter(|o| *o >= position)
                        .take(read_before_the_crash)
                        .filter(|o| again.deliver(*o, 1) == Delivery::Open)
                        .collect();
                    let read_to = again.next.unwrap_or(position);
                    let expected: Vec<_> =
                        not_acked.iter().copied().filter(|o| *o >= position && *o < read_to).collect();
                    prop_assert_eq!(handed, expected);
                    if let Some(p) = again.position() {
                        position = p;
                        note = again.note();
                    }
                }
            }
        }
    }

    #[test]
    fn a_note_says_what_is_done_and_never_grows_too_long() {
        let mut watermark = Watermark::default();
        for offset in 10..20_010 {
            watermark.deliver(offset, 1);
        }
        for offset in [11, 12, 15] {
            watermark.ack(offset);
        }
        assert_eq!(watermark.note(), "aq1:1+2,2+1");
        for offset in (16..20_010).step_by(2) {
            watermark.ack(offset);
        }
        let note = watermark.note();
        assert!(note.len() <= MAX_NOTE && note.starts_with("aq1:1+2,2+2,"), "{note}");
    }

    #[test]
    fn metadata_of_others_is_no_note() {
        for other in ["", "x", "aq1:", "aq1:1", "aq1:-1+2", "aq1:1+x,3+4", "aq1:1+99999999999999999999"] {
            assert_eq!(Watermark::resume(0, other).deliver(1, 1), Delivery::Open, "{other}");
        }
    }
}
