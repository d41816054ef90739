//! What a consumer's thread and its handle share: fetched messages, answers, positions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use queue_core::{AckToken, Error, ErrorKind, Message, Position, Received, Undecodable};
use tokio::sync::{oneshot, watch};

use crate::link::Signal;
use crate::offsets::{Delivery, Watermark};

/// Numbers every assignment of a partition in this process, so that no token fits two of them.
static EPOCHS: AtomicU32 = AtomicU32::new(1);

/// The bounds of a consumer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) prefetch: usize,
    pub(crate) prefetch_bytes: usize,
    pub(crate) max_ahead: usize,
    /// Whether positions are committed at all.
    pub(crate) commits: bool,
}

/// A record that arrived.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) size: u32,
    pub(crate) message: Result<Message, Box<Undecodable>>,
}

/// What the broker is to keep about a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// What is done beyond the offset.
    pub(crate) note: String,
    epoch: u32,
    version: u64,
}

/// A delivery, taken out of its token.
#[derive(Debug, Clone, Copy)]
struct Place {
    partition: i32,
    epoch: u32,
    offset: i64,
}

/// A partition during one assignment.
#[derive(Debug)]
struct Slot {
    epoch: u32,
    marks: Watermark,
    /// The oldest message without an answer, and since when it is that.
    oldest: Option<(i64, Instant)>,
    /// Counts what was acknowledged.
    version: u64,
    /// The version that the broker has.
    committed: u64,
    /// Waits until its oldest message is answered.
    far: bool,
}

impl Slot {
    fn new(marks: Watermark) -> Self {
        let epoch = EPOCHS.fetch_add(1, Ordering::Relaxed);
        Self { epoch, marks, oldest: None, version: 0, committed: 0, far: false }
    }

    /// What is to be committed.
    fn due(&self, partition: i32) -> Option<Mark> {
        if self.version == self.committed {
            return None;
        }
        let offset = self.marks.position()?;
        Some(Mark { partition, offset, note: self.marks.note(), epoch: self.epoch, version: self.version })
    }
}

/// Offsets that were left out between two messages of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Jump {
    pub(crate) partition: i32,
    /// The first that was left out.
    pub(crate) expected: i64,
}

/// Somebody who waits until positions are committed.
#[derive(Debug)]
struct Flush {
    marks: Vec<Mark>,
    done: oneshot::Sender<Result<(), Error>>,
}

#[derive(Debug, Default)]
struct State {
    slots: BTreeMap<i32, Slot>,
    buffer: VecDeque<Received>,
    /// Messages without an answer, those in the buffer included.
    open: usize,
    open_bytes: usize,
    paused: bool,
    stopped: bool,
    /// Set when the consumer is to end: until when it may take.
    closing: Option<Instant>,
    starved: bool,
    failed: Option<Error>,
    waker: Option<Waker>,
    flushes: Vec<Flush>,
    commit_error: Option<Error>,
}

/// What the consumer's thread is to do.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) closing: bool,
    /// Nothing is to be fetched at all.
    pub(crate) pause: bool,
    /// Partitions that wait for an answer.
    pub(crate) far: BTreeSet<i32>,
    /// How many messages and bytes fit.
    pub(crate) room: (usize, usize),
    /// Stopped, and every message is answered: the group can be left.
    pub(crate) leave: bool,
    /// Somebody waits for a commit.
    pub(crate) flush: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Inbox {
    topic: String,
    state: Mutex<State>,
    limits: Limits,
    /// Wakes the consumer's thread.
    pub(crate) signal: Signal,
    gone: watch::Sender<bool>,
}

/// What a close found.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    pub(crate) unanswered: usize,
    pub(crate) released: usize,
}

/// What a revoke found.
#[derive(Debug, Default)]
pub(crate) struct Revoked {
    /// What is to be committed before the partitions go.
    pub(crate) due: Vec<Mark>,
    /// Messages that were handed out and not answered.
    pub(crate) unanswered: usize,
}

fn token(partition: i32, epoch: u32, offset: i64) -> AckToken {
    AckToken(u64::from(epoch) << 32 | u64::from(partition.unsigned_abs()), offset.unsigned_abs())
}

/// Partition, epoch and offset of a token; `None` where it is none of ours.
fn parts(token: AckToken) -> Option<Place> {
    Some(Place {
        partition: i32::try_from(token.0 & u64::from(u32::MAX)).ok()?,
        epoch: u32::try_from(token.0 >> 32).ok()?,
        offset: i64::try_from(token.1).ok()?,
    })
}

impl State {
    fn slot(&mut self, partition: i32, epoch: u32) -> Option<&mut Slot> {
        self.slots.get_mut(&partition).filter(|s| s.epoch == epoch)
    }

    fn answered(&mut self, size: u32) {
        self.open -= 1;
        self.open_bytes -= size as usize;
    }

    fn handed_out(&self) -> usize {
        self.open - self.buffer.len()
    }

    /// Gives back what nobody has seen: it stays uncommitted.
    fn drop_buffer(&mut self) -> usize {
        let buffer = std::mem::take(&mut self.buffer);
        for received in &buffer {
            if let Some(place) = parts(received.token)
                && let Some(size) = self.slot(place.partition, place.epoch).and_then(|s| s.marks.release(place.offset))
            {
                self.answered(size);
            }
        }
        buffer.len()
    }

    /// Forgets a partition: its tokens are stale. How many of its messages were handed out and not answered.
    fn forget(&mut self, partition: i32) -> usize {
        let Some(slot) = self.slots.remove(&partition) else { return 0 };
        self.open -= slot.marks.open();
        self.open_bytes -= slot.marks.open_bytes();
        let before = self.buffer.len();
        self.buffer.retain(|r| parts(r.token).is_none_or(|place| place.epoch != slot.epoch));
        slot.marks.open() - (before - self.buffer.len())
    }

    /// Starts anew with a partition whose offsets went back: the log was cut off, or made anew.
    fn rewind(&mut self, partition: i32) {
        let unanswered = self.forget(partition);
        tracing::warn!(partition, unanswered, "the log goes back behind what was read");
        self.slots.insert(partition, Slot::new(Watermark::default()));
    }

    fn due(&self) -> Vec<Mark> {
        self.slots.iter().filter_map(|(partition, slot)| slot.due(*partition)).collect()
    }

    /// Answers those whose positions are committed.
    fn settle_flushes(&mut self) {
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

impl Inbox {
    pub(crate) fn new(topic: &str, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            topic: topic.to_owned(),
            state: Mutex::default(),
            limits,
            signal: Signal::default(),
            gone: watch::channel(false).0,
        })
    }

    // For the handle.

    /// Takes up to `max` messages. `None` when there is none and the waker was kept.
    pub(crate) fn take(&self, max: usize, into: &mut Vec<Received>, waker: &Waker) -> Option<Result<(), Error>> {
        let mut state = self.state.lock();
        if let Some(error) = &state.failed {
            return Some(Err(error.clone()));
        }
        if state.stopped || state.closing.is_some() {
            return Some(Err(Error::closed("consumer")));
        }
        if state.buffer.is_empty() || state.paused {
            if !state.waker.as_ref().is_some_and(|w| w.will_wake(waker)) {
                state.waker = Some(waker.clone());
            }
            return None;
        }
        let count = max.min(state.buffer.len());
        into.extend(state.buffer.drain(..count));
        Some(Ok(()))
    }

    /// Answers messages; the indexes of stale tokens.
    pub(crate) fn answer(&self, tokens: impl Iterator<Item = AckToken>, done: bool) -> Vec<usize> {
        let mut stale = Vec::new();
        let mut state = self.state.lock();
        for (index, token) in tokens.enumerate() {
            let size = parts(token).and_then(|place| {
                let slot = state.slot(place.partition, place.epoch)?;
                if !done {
                    return slot.marks.release(place.offset);
                }
                let size = slot.marks.ack(place.offset)?;
                slot.version += 1;
                Some(size)
            });
            match size {
                Some(size) => state.answered(size),
                None => stale.push(index),
            }
        }
        let low = self.limits.prefetch / 4 * 3;
        let wake = state.stopped || (state.starved && (state.buffer.is_empty() || state.open <= low));
        drop(state);
        if wake {
            self.signal.raise();
        }
        stale
    }

    pub(crate) fn holds(&self, token: AckToken) -> bool {
        let Some(place) = parts(token) else { return false };
        let mut state = self.state.lock();
        state.slot(place.partition, place.epoch).is_some_and(|s| s.marks.holds(place.offset))
    }

    /// Asks for a commit of everything acknowledged; `None` when the broker has it all.
    pub(crate) fn flush(&self) -> Option<oneshot::Receiver<Result<(), Error>>> {
        let mut state = self.state.lock();
        let marks = state.due();
        if marks.is_empty() || !self.limits.commits {
            return None;
        }
        let (done, waits) = oneshot::channel();
        state.flushes.push(Flush { marks, done });
        drop(state);
        self.signal.raise();
        Some(waits)
    }

    /// Why the last commit failed.
    pub(crate) fn commit_error(&self) -> Option<Error> {
        self.state.lock().commit_error.clone()
    }

    pub(crate) fn topic(&self) -> &str {
        &self.topic
    }

    /// The partition that has waited longest for the answer of one message, and for how long. None while nothing is to be
    /// handed out.
    pub(crate) fn waits(&self) -> Option<(i32, Duration)> {
        let state = self.state.lock();
        if state.paused || state.stopped || state.closing.is_some() || state.failed.is_some() {
            return None;
        }
        let waits = state.slots.iter().filter_map(|(partition, slot)| {
            // The thread may not have seen the answer yet.
            let (_, since) = slot.oldest.filter(|(offset, _)| slot.marks.oldest() == Some(*offset))?;
            Some((*partition, since.elapsed()))
        });
        waits.max_by_key(|(_, time)| *time)
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        let waker = {
            let mut state = self.state.lock();
            state.paused = paused;
            if paused { None } else { state.waker.take() }
        };
        self.signal.raise();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn stop(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.stopped = true;
            state.drop_buffer();
            state.waker.take()
        };
        self.signal.raise();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends the thread, which has until the deadline to commit. `None` when that was asked before.
    pub(crate) fn close(&self, deadline: Instant) -> Option<Leftovers> {
        let (left, waker) = {
            let mut state = self.state.lock();
            if state.closing.is_some() {
                return None;
            }
            state.closing = Some(deadline);
            let released = state.drop_buffer();
            (Leftovers { unanswered: state.handed_out(), released }, state.waker.take())
        };
        self.signal.raise();
        if let Some(waker) = waker {
            waker.wake();
        }
        Some(left)
    }

    /// Waits until the thread has left the group.
    pub(crate) async fn gone(&self) {
        // The sender is a field: it is not gone before.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    // For the thread.

    /// Until when the close may take.
    pub(crate) fn deadline(&self) -> Instant {
        self.state.lock().closing.unwrap_or_else(Instant::now)
    }

    pub(crate) fn plan(&self) -> Plan {
        let mut state = self.state.lock();
        let max = self.limits.max_ahead;
        let mut far = BTreeSet::new();
        let now = Instant::now();
        for (partition, slot) in &mut state.slots {
            if slot.marks.oldest() != slot.oldest.map(|(offset, _)| offset) {
                slot.oldest = slot.marks.oldest().map(|offset| (offset, now));
            }
            slot.far = slot.marks.span() >= if slot.far { max / 2 + 1 } else { max };
            if slot.far {
                far.insert(*partition);
            }
        }
        let room = (
            self.limits.prefetch.saturating_sub(state.open),
            self.limits.prefetch_bytes.saturating_sub(state.open_bytes),
        );
        state.starved = room.0 == 0 || room.1 == 0;
        Plan {
            closing: state.closing.is_some(),
            pause: state.paused || state.stopped || state.failed.is_some(),
            far,
            room,
            leave: state.stopped && state.open == 0,
            flush: !state.flushes.is_empty(),
        }
    }

    /// Takes what was fetched; where offsets were left out.
    pub(crate) fn push(&self, chunk: &mut Vec<Incoming>) -> Vec<Jump> {
        let mut jumps = Vec::new();
        let mut state = self.state.lock();
        if state.stopped || state.closing.is_some() {
            // Behind what is committed: it comes again.
            chunk.clear();
            return jumps;
        }
        for incoming in chunk.drain(..) {
            let Incoming { partition, offset, size, message } = incoming;
            // The partition may have been revoked meanwhile.
            let Some(slot) = state.slots.get(&partition) else { continue };
            match slot.marks.next() {
                Some(next) if offset < next => state.rewind(partition),
                Some(next) if offset > next => jumps.push(Jump { partition, expected: next }),
                _ => {}
            }
            let Some(slot) = state.slots.get_mut(&partition) else { continue };
            if slot.marks.deliver(offset, size) == Delivery::Done {
                // The position may pass it.
                slot.version += 1;
                continue;
            }
            let token = token(partition, slot.epoch, offset);
            state.open += 1;
            state.open_bytes += size as usize;
            let position = Position::new(u32::try_from(partition).ok(), u64::try_from(offset).ok());
            state.buffer.push_back(Received { message, token, attempt: 1, lease: None, position });
        }
        let waker = if state.buffer.is_empty() || state.paused { None } else { state.waker.take() };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        jumps
    }

    /// Starts anew with these partitions: a position and its note where there is one.
    pub(crate) fn assigned(&self, partitions: impl Iterator<Item = (i32, Option<(i64, String)>)>) {
        let mut state = self.state.lock();
        for (partition, committed) in partitions {
            let marks = committed.map_or_else(Watermark::default, |(at, note)| Watermark::resume(at, &note));
            state.slots.insert(partition, Slot::new(marks));
        }
    }

    /// Forgets these partitions: their tokens are stale from now on.
    pub(crate) fn revoked(&self, partitions: &[i32]) -> Revoked {
        let mut state = self.state.lock();
        let mut found = Revoked::default();
        for partition in partitions {
            let due = state.slots.get(partition).and_then(|slot| slot.due(*partition));
            found.due.extend(due);
            found.unanswered += state.forget(*partition);
        }
        found
    }

    /// What came of the commit with which the partitions went.
    pub(crate) fn parted(&self, due: &[Mark], result: &Result<(), Error>) {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.commit_error = result.as_ref().err().cloned();
        if let Err(error) = result {
            let (failed, rest) = std::mem::take(&mut state.flushes)
                .into_iter()
                .partition(|f: &Flush| f.marks.iter().any(|m| due.iter().any(|d| d.epoch == m.epoch)));
            state.flushes = rest;
            let failed: Vec<Flush> = failed;
            for flush in failed {
                let _ = flush.done.send(Err(error.clone()));
            }
        }
        state.settle_flushes();
    }

    /// What is to be committed now.
    pub(crate) fn due(&self) -> Vec<Mark> {
        self.state.lock().due()
    }

    /// What the broker answered to a commit.
    pub(crate) fn committed(&self, marks: &[Mark], answer: Result<(), Error>) {
        let mut state = self.state.lock();
        state.commit_error = match answer {
            Ok(()) => {
                for mark in marks {
                    if let Some(slot) = state.slot(mark.partition, mark.epoch) {
                        slot.committed = mark.version;
                    }
                }
                None
            }
            Err(error) => Some(error),
        };
        state.settle_flushes();
    }

    /// Ends the consumer with an error that needs a person.
    pub(crate) fn fail(&self, error: Error) {
        let waker = {
            let mut state = self.state.lock();
            state.failed.get_or_insert(error);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The thread is over.
    pub(crate) fn end(&self) {
        self.close(Instant::now());
        self.fail(Error::closed("consumer"));
        for flush in std::mem::take(&mut self.state.lock().flushes) {
            let error = Error::new(ErrorKind::Closed, "the consumer was closed before the commit was answered");
            let _ = flush.done.send(Err(error.with_operation("flush")));
        }
        self.gone.send_replace(true);
    }
}

#[cfg(test)]
mod tests;
