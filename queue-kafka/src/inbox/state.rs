//! What is known of each partition, and who waits for what.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Waker;
use std::time::Instant;

use queue_core::{Error, Received};
use tokio::sync::oneshot;

use super::buffer::Buffer;
use super::turn::Turns;
use super::{Jump, Mark, Place, parts, size, token};
use crate::offsets::{Delivery, MARK, MAX_NOTE, Watermark};

/// Numbers every assignment of a partition in this process, so that no token fits two of them.
static EPOCHS: AtomicU32 = AtomicU32::new(1);

/// A partition during one assignment.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) epoch: u32,
    pub(super) marks: Watermark,
    /// The oldest message without an answer, and since when it is that.
    pub(super) oldest: Option<(i64, Instant)>,
    /// Counts what was acknowledged.
    pub(super) version: u64,
    /// The version that the broker has.
    pub(super) committed: u64,
    /// Waits until its oldest message is answered.
    pub(super) far: bool,
    /// Whether deliveries are noted.
    pub(super) guard: bool,
}

impl Slot {
    pub(super) fn new(marks: Watermark, guard: bool) -> Self {
        let epoch = EPOCHS.fetch_add(1, Ordering::Relaxed);
        let marks = if guard { marks.guarded() } else { marks };
        Self { epoch, marks, oldest: None, version: 0, committed: 0, far: false, guard }
    }

    /// Gives a message back, which the broker is told where it was told of its delivery.
    pub(super) fn release(&mut self, offset: i64) -> Option<u32> {
        let size = self.marks.release(offset)?;
        self.version += u64::from(self.guard);
        Some(size)
    }

    /// What is to be committed.
    pub(super) fn due(&self, partition: i32) -> Option<Mark> {
        if self.version == self.committed {
            return None;
        }
        let offset = self.marks.position()?;
        // Where there is no room for what must be noted, the position that the broker has, with its note, stays.
        let must = self.marks.must_note(MAX_NOTE)?;
        let (note, cut_off) = self.marks.note_and_rest();
        Some(Mark { partition, offset, note, cut_off, must, epoch: self.epoch, version: self.version })
    }
}

/// Somebody who waits until positions are committed.
#[derive(Debug)]
pub(super) struct Flush {
    pub(super) marks: Vec<Mark>,
    pub(super) done: oneshot::Sender<Result<(), Error>>,
}

/// Messages that are handed out when what is told of them is committed.
#[derive(Debug)]
pub(super) struct Guarded {
    pub(super) chunk: Vec<Received>,
    /// Partitions with their epochs and the version that is to be committed.
    pub(super) marks: Vec<(i32, u32, u64)>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) slots: BTreeMap<i32, Slot>,
    pub(super) buffer: Buffer,
    pub(super) guarded: VecDeque<Guarded>,
    /// Messages without an answer, those in the buffer included.
    pub(super) open: usize,
    pub(super) open_bytes: usize,
    pub(super) paused: bool,
    pub(super) stopped: bool,
    /// See [`Inbox::keep_place`].
    pub(super) stays: bool,
    /// Set when the consumer is to end: until when it may take.
    pub(super) closing: Option<Instant>,
    pub(super) starved: bool,
    pub(super) failed: Option<Error>,
    pub(super) waker: Option<Waker>,
    pub(super) flushes: Vec<Flush>,
    pub(super) commit_error: Option<Error>,
    pub(super) turns: Turns,
    /// The broker refused notes beside the positions.
    pub(super) no_notes: bool,
    /// Partitions of which not all that is acknowledged stands in what was committed last.
    pub(super) cut_off: BTreeSet<i32>,
}

impl State {
    pub(super) fn slot(&mut self, partition: i32, epoch: u32) -> Option<&mut Slot> {
        self.slots.get_mut(&partition).filter(|s| s.epoch == epoch)
    }

    /// Notes what stands in positions that were committed.
    pub(super) fn stands(&mut self, marks: &[Mark]) {
        for mark in marks {
            let done = mark.note.split(';').next().unwrap_or_default();
            if mark.cut_off || (self.no_notes && done != mark.must && done != MARK) {
                self.cut_off.insert(mark.partition);
            } else {
                self.cut_off.remove(&mark.partition);
            }
        }
    }

    pub(super) fn answered(&mut self, size: u32) {
        self.open -= 1;
        self.open_bytes -= size as usize;
    }

    pub(super) fn handed_out(&self) -> usize {
        self.open - self.unseen()
    }

    /// Messages that were not handed out.
    pub(super) fn unseen(&self) -> usize {
        self.buffer.len() + self.guarded.iter().map(|g| g.chunk.len()).sum::<usize>()
    }

    /// Gives back what nobody has seen: it stays uncommitted.
    pub(super) fn drop_buffer(&mut self) -> usize {
        let unseen = self.unseen();
        let (buffer, guarded) = (std::mem::take(&mut self.buffer), std::mem::take(&mut self.guarded));
        for received in buffer.iter().chain(guarded.iter().flat_map(|g| &g.chunk)) {
            if let Some(place) = parts(received.token)
                && let Some(size) = self.slot(place.partition, place.epoch).and_then(|s| s.release(place.offset))
            {
                self.answered(size);
            }
        }
        unseen
    }

    /// Hands over what is noted by the broker.
    pub(super) fn let_through(&mut self) {
        while let Some(Guarded { marks, .. }) = self.guarded.front() {
            let noted = |(partition, epoch, version): &(i32, u32, u64)| {
                // Of a partition that went nothing is left.
                self.slots.get(partition).is_none_or(|s| s.epoch != *epoch || s.committed >= *version)
            };
            if !marks.iter().all(noted) {
                break;
            }
            let chunk = self.guarded.pop_front().map(|g| g.chunk);
            self.buffer.push(chunk.unwrap_or_default());
        }
    }

    /// Forgets a partition: its tokens are stale. How many of its messages were handed out and not answered.
    pub(super) fn forget(&mut self, partition: i32) -> usize {
        let Some(slot) = self.slots.remove(&partition) else { return 0 };
        self.open -= slot.marks.open();
        self.open_bytes -= slot.marks.open_bytes();
        let before = self.unseen();
        let keep = |r: &Received| parts(r.token).is_none_or(|place| place.epoch != slot.epoch);
        self.buffer.retain(keep);
        self.guarded.iter_mut().for_each(|g| g.chunk.retain(keep));
        slot.marks.open() - (before - self.unseen())
    }

    /// Starts anew with a partition whose offsets went back: the log was cut off, or made anew.
    pub(super) fn rewind(&mut self, partition: i32) {
        let guard = self.slots.get(&partition).is_some_and(|slot| slot.guard);
        let unanswered = self.forget(partition);
        tracing::warn!(partition, unanswered, "the log goes back behind what was read");
        self.slots.insert(partition, Slot::new(Watermark::default(), guard));
    }

    /// Takes a message into the account of its partition; false when it is not to be handed out.
    pub(super) fn admit(&mut self, received: &mut Received, jumps: &mut Vec<Jump>, rewound: &mut Vec<i32>) -> bool {
        let Some(Place { partition, offset, .. }) = parts(received.token) else { return false };
        // The partition may have been revoked meanwhile.
        let Some(slot) = self.slots.get_mut(&partition) else { return false };
        let slot = match slot.marks.next() {
            Some(next) if offset < next => {
                self.rewind(partition);
                rewound.push(partition);
                let Some(slot) = self.slots.get_mut(&partition) else { return false };
                slot
            }
            Some(next) if offset > next => {
                jumps.push(Jump { partition, expected: next });
                slot
            }
            _ => slot,
        };
        let size = u32::try_from(size(received)).unwrap_or(u32::MAX);
        let Delivery::Open(attempt) = slot.marks.deliver(offset, size) else {
            // The position may pass it.
            slot.version += 1;
            return false;
        };
        slot.version += u64::from(slot.guard);
        received.attempt = attempt;
        received.token = token(partition, slot.epoch, offset);
        self.open += 1;
        self.open_bytes += size as usize;
        true
    }

    /// What is to be committed, where it is not the turn of a transaction.
    pub(super) fn due(&self) -> Vec<Mark> {
        let own = self.slots.iter().filter(|(partition, _)| !self.turns.holds(**partition));
        own.filter_map(|(partition, slot)| slot.due(*partition)).collect()
    }

    /// What is acknowledged and not committed.
    pub(super) fn acknowledged(&self) -> Vec<Mark> {
        self.slots.iter().filter_map(|(partition, slot)| slot.due(*partition)).collect()
    }

    /// Answers those who wait for one of these.
    pub(super) fn fail_flushes(&mut self, marks: &[Mark], error: &Error) {
        let waits = |flush: &mut Flush| flush.marks.iter().any(|m| marks.iter().any(|d| d.epoch == m.epoch));
        for flush in self.flushes.extract_if(.., waits) {
            // Nobody listens: nobody cares.
            let _ = flush.done.send(Err(error.clone()));
        }
    }

    /// Answers those whose positions are committed.
    pub(super) fn settle_flushes(&mut self) {
        let mut flushes = std::mem::take(&mut self.flushes);
        for flush in &mut flushes {
            flush.marks.retain(|m| {
                let slot = self.slots.get(&m.partition).filter(|s| s.epoch == m.epoch);
                slot.is_some_and(|s| s.committed < m.version)
            });
        }
        for flush in flushes {
            if flush.marks.is_empty() {
                // Nobody listens: nobody cares.
                let _ = flush.done.send(Ok(()));
            } else if !flush.done.is_closed() {
                self.flushes.push(flush);
            }
        }
    }
}
