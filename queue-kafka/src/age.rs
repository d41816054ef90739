//! How old the oldest message without an answer is.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How exact an age is, at best.
const EXACT: Duration = Duration::from_secs(1);
/// An age is at most a part in so many too low, so that a message that is never answered costs no more and more memory.
const PART: u32 = 256;

/// When the messages of a partition arrived, as far as they have no answer.
#[derive(Debug, Default)]
pub(crate) struct Ages {
    /// All messages below an offset had arrived at a time.
    marks: VecDeque<(i64, Instant)>,
}

impl Ages {
    /// The messages below `next` have arrived, and those below `position` are answered.
    pub(crate) fn note(&mut self, position: i64, next: i64, now: Instant) {
        while self.marks.front().is_some_and(|(end, _)| *end <= position) {
            self.marks.pop_front();
        }
        let newer = match (self.marks.front(), self.marks.back()) {
            (Some((_, first)), Some((end, last))) => {
                *end < next && now.duration_since(*last) >= EXACT.max(now.duration_since(*first) / PART)
            }
            _ => position < next,
        };
        if newer {
            self.marks.push_back((next, now));
        }
    }

    /// When the oldest message without an answer was there at the latest.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.marks.front().map(|(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_told_within_a_second_and_forgotten_with_its_answer() {
        let start = Instant::now();
        let at = |tenths: u32| start + Duration::from_millis(100) * tenths;
        let mut ages = Ages::default();
        ages.note(0, 0, at(0));
        assert_eq!(ages.oldest(), None);
        for tenth in 0..100 {
            // Ten messages each time, of which the first five stay.
            ages.note(5, i64::from(tenth) * 10 + 10, at(tenth));
        }
        assert_eq!(ages.oldest(), Some(at(0)));
        // The next that stays came after 4 s.
        ages.note(400, 1000, at(100));
        let oldest = ages.oldest().unwrap();
        assert!(oldest >= at(40) && oldest <= at(51), "{:?}", oldest - start);
        ages.note(1000, 1000, at(101));
        assert_eq!(ages.oldest(), None);
    }

    #[test]
    fn what_is_never_answered_takes_little_memory() {
        let start = Instant::now();
        let mut ages = Ages::default();
        for second in 0..1_000_000_u32 {
            ages.note(0, i64::from(second) + 1, start + Duration::from_secs(1) * second);
        }
        assert_eq!(ages.oldest(), Some(start));
        assert!(ages.marks.len() < 4000, "{}", ages.marks.len());
    }
}
