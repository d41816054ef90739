//! How far a partition may be committed when messages are answered in any order.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::ops::Range;

/// Marks a note of this crate in the metadata of a committed offset.
pub(crate) const MARK: &str = "aq1:";
/// The longest note; brokers take 4096 bytes unless configured.
pub(crate) const MAX_NOTE: usize = 4000;
/// Most that a transaction may leave there: the rest is for what grows when it is written anew, since a gap may have become
/// longer by compaction.
pub(crate) const MAX_NEW_NOTE: usize = 3800;
/// The longest part of it that tells attempts.
const MAX_ATTEMPTS: usize = 1000;

/// What became of a message that was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// None yet.
    Open,
    /// Acknowledged.
    Done,
    /// Acknowledged, and noted in every commit until the position has passed it: by a transaction, or in an earlier
    /// assignment, which may have been by one.
    Noted,
    /// Given back: it stays uncommitted as long as the partition is held, and comes again after that.
    Released,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: i64,
    size: u32,
    answer: Answer,
}

impl Entry {
    fn is_done(&self) -> bool {
        matches!(self.answer, Answer::Done | Answer::Noted)
    }
}

/// The messages of one partition during one assignment: which are answered, and the offset below which all are.
///
/// Fed with the sequence of offsets as they were delivered, which has gaps (compaction, transaction markers).
#[derive(Debug, Clone, Default)]
pub(crate) struct Watermark {
    /// From the first message that is not acknowledged on, in order of offset.
    entries: VecDeque<Entry>,
    /// See [`next`](Self::next).
    next: Option<i64>,
    /// Entries without an answer.
    open: usize,
    /// Offsets beyond `next` that were acknowledged in an earlier assignment.
    known: VecDeque<Range<i64>>,
    /// The attempts of messages that were tried before, by offset.
    attempts: BTreeMap<i64, u32>,
    /// Whether a message counts as tried as soon as it is delivered, so that the attempts are those of the next time.
    guarded: bool,
}

/// What is to be done with a message that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// It is handed out, as this attempt.
    Open(u32),
    /// It was acknowledged before, in an earlier assignment.
    Done,
}

impl Watermark {
    /// Goes on where an earlier assignment left off, with the note that was committed.
    pub(crate) fn resume(position: i64, note: &str) -> Self {
        let (known, attempts) = read(position, note);
        Self { known, attempts, next: Some(position), ..Self::default() }
    }

    /// Counts a message as tried from its delivery on, until it is given back.
    pub(crate) fn guarded(self) -> Self {
        Self { guarded: true, ..self }
    }

    /// Notes a message that arrived; its offset is not below [`next`](Self::next).
    pub(crate) fn deliver(&mut self, offset: i64, size: u32) -> Delivery {
        while self.known.front().is_some_and(|range| range.end <= offset) {
            self.known.pop_front();
        }
        self.next = Some(offset + 1);
        if self.known.front().is_some_and(|range| range.contains(&offset)) {
            if !self.entries.is_empty() {
                self.entries.push_back(Entry { offset, size: 0, answer: Answer::Noted });
            }
            return Delivery::Done;
        }
        self.entries.push_back(Entry { offset, size, answer: Answer::Open });
        self.open += 1;
        let attempt = self.attempts.get(&offset).copied().unwrap_or(1);
        if self.guarded {
            self.attempts.insert(offset, attempt.saturating_add(1));
        }
        Delivery::Open(attempt)
    }

    /// Notes that an open message is tried again; false where it is not open.
    pub(crate) fn try_again(&mut self, offset: i64, attempt: u32) -> bool {
        let holds = self.holds(offset);
        if holds {
            self.attempts.insert(offset, attempt.saturating_add(u32::from(self.guarded)));
        }
        holds
    }

    /// Acknowledges a message; its size when it was open until now.
    pub(crate) fn ack(&mut self, offset: i64) -> Option<u32> {
        self.done(offset, Answer::Done)
    }

    /// As [`ack`](Self::ack), by a transaction: it does not come again, whatever becomes of this process.
    pub(crate) fn ack_noted(&mut self, offset: i64) -> Option<u32> {
        self.done(offset, Answer::Noted)
    }

    fn done(&mut self, offset: i64, answer: Answer) -> Option<u32> {
        let size = self.answer(offset, answer)?;
        if !self.attempts.is_empty() {
            self.attempts.remove(&offset);
        }
        while self.entries.front().is_some_and(Entry::is_done) {
            self.entries.pop_front();
        }
        Some(size)
    }

    /// Gives a message back: it stays uncommitted. Its size when it was open until now.
    pub(crate) fn release(&mut self, offset: i64) -> Option<u32> {
        let size = self.answer(offset, Answer::Released)?;
        if self.guarded
            && let Some(attempt) = self.attempts.get_mut(&offset)
        {
            *attempt -= 1;
            if *attempt == 1 {
                self.attempts.remove(&offset);
            }
        }
        Some(size)
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

    /// What there is beyond the position, as text for the metadata of the committed offset: how many offsets to skip and
    /// how many follow that are done, again and again; then, behind a semicolon, how many to skip and the attempt of the
    /// message there. Cut off where it would be too long: what is not noted comes again, or as its first attempt. What
    /// [must be noted](Self::must_note) is never cut off.
    ///
    /// Says too whether anything that is done was cut off.
    pub(crate) fn note_and_rest(&self) -> (String, bool) {
        let Some(position) = self.position() else { return (String::new(), false) };
        let must = self.must_note(MAX_NOTE).unwrap_or_default();
        let attempts = self.note_attempts(position, MAX_ATTEMPTS.min(MAX_NOTE - must.len()));
        let (all, whole) = self.note_done(position, MAX_NOTE - attempts.len(), Entry::is_done);
        let mut note = if whole || must.is_empty() { all } else { must };
        if note.is_empty() && !attempts.is_empty() {
            note.push_str(MARK);
        }
        (note + &attempts, !whole)
    }

    /// The part of the note without which a message that a transaction has acknowledged might come again. `None` where
    /// it does not fit into so many bytes.
    pub(crate) fn must_note(&self, most: usize) -> Option<String> {
        let Some(position) = self.position() else { return Some(String::new()) };
        let (note, whole) = self.note_done(position, most, |entry| entry.answer == Answer::Noted);
        whole.then_some(note)
    }

    #[cfg(test)]
    fn note(&self) -> String {
        self.note_and_rest().0
    }

    fn note_attempts(&self, position: i64, most: usize) -> String {
        let (mut note, mut at) = (String::new(), position);
        for (offset, attempt) in self.attempts.range(position..) {
            let before = note.len();
            let _ = write!(note, "{}{}x{attempt}", if before == 0 { ";" } else { "," }, offset - at);
            if note.len() > most {
                note.truncate(before);
                break;
            }
            at = *offset;
        }
        note
    }

    /// What is done, as far as it is `noted`, and whether there was room for all of it.
    fn note_done(&self, position: i64, most: usize, noted: impl Fn(&Entry) -> bool) -> (String, bool) {
        let (mut note, mut at) = (String::new(), position);
        let next = self.next.unwrap_or(at);
        let mut runs: Vec<Range<i64>> = Vec::new();
        let mut joins = false;
        for entry in &self.entries {
            let done = noted(entry);
            match runs.last_mut() {
                Some(last) if done && joins => last.end = entry.offset + 1,
                _ if done => runs.push(entry.offset..entry.offset + 1),
                _ => {}
            }
            joins = done;
        }
        for known in self.known.iter().filter(|r| r.end > next).map(|r| r.start.max(next)..r.end) {
            match runs.last_mut() {
                // Half of it has been delivered again.
                Some(last) if last.end == known.start => last.end = known.end,
                _ => runs.push(known),
            }
        }
        for run in runs {
            let before = note.len();
            let _ = write!(note, "{}{}+{}", if before == 0 { MARK } else { "," }, run.start - at, run.end - run.start);
            if note.len() > most {
                note.truncate(before);
                return (note, false);
            }
            at = run.end;
        }
        (note, true)
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

/// Reads a note: what is done, and attempts. Anything else that stands in the metadata is no note, and a broken one ends
/// where it breaks.
fn read(position: i64, note: &str) -> (VecDeque<Range<i64>>, BTreeMap<i64, u32>) {
    let (mut known, mut attempts) = (VecDeque::new(), BTreeMap::new());
    let Some(note) = note.strip_prefix(MARK) else { return (known, attempts) };
    let (done, tried) = note.split_once(';').unwrap_or((note, ""));
    let number = |text: &str| text.parse::<i64>().ok().filter(|n| *n >= 0);
    let mut at = position;
    for run in done.split(',') {
        let range = run.split_once('+').and_then(|(skip, count)| {
            let start = at.checked_add(number(skip)?)?;
            Some(start..start.checked_add(number(count)?)?)
        });
        let Some(range) = range else { break };
        at = range.end;
        known.push_back(range);
    }
    at = position;
    for entry in tried.split(',') {
        let attempt = entry.split_once('x').and_then(|(skip, attempt)| {
            Some((at.checked_add(number(skip)?)?, attempt.parse().ok().filter(|attempt| *attempt > 0)?))
        });
        let Some((offset, attempt)) = attempt else { break };
        at = offset;
        attempts.insert(offset, attempt);
    }
    (known, attempts)
}

// By its path, which holds for the test that includes this file too.
#[cfg(test)]
#[path = "offsets/tests.rs"]
mod tests;
