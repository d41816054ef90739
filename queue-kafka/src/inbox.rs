//! What a consumer's thread and its handle share: fetched messages, answers, positions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use queue_core::{AckToken, Error, ErrorKind, Message, Position, Received, Undecodable};
use tokio::sync::{oneshot, watch};

use crate::lanes::partition_of;
use crate::offsets::Watermark;
use crate::signal::Signal;
use crate::sync::Mutex;

#[path = "inbox/buffer.rs"]
mod buffer;
#[path = "inbox/commits.rs"]
mod commits;
#[path = "inbox/state.rs"]
mod state;
#[path = "inbox/turn.rs"]
mod turn;

pub(crate) use turn::{Granted, Turn};

use state::{Flush, Guarded, Slot, State};

/// The bounds of a consumer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) prefetch: usize,
    pub(crate) prefetch_bytes: usize,
    pub(crate) max_ahead: usize,
    /// Whether positions are committed at all.
    pub(crate) commits: bool,
    /// Whether a message is handed out only when the broker has noted that it is.
    pub(crate) guard: bool,
}

/// A record that arrived, as it is handed to [`Inbox::push`], which gives it its token. Partitions are lanes here, see
/// [`Lanes`](crate::lanes::Lanes).
pub(crate) fn arrived(partition: i32, offset: i64, message: Result<Message, Box<Undecodable>>) -> Received {
    let position = Position::new(u32::try_from(partition_of(partition)).ok(), u64::try_from(offset).ok());
    Received { message, token: token(partition, 0, offset), attempt: 1, lease: None, position }
}

/// What the message counts in `prefetch_bytes`.
pub(crate) fn size(received: &Received) -> usize {
    match &received.message {
        Ok(message) => message.size(),
        Err(undecodable) => undecodable.raw.len(),
    }
}

/// What the broker is to keep about a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// What is done beyond the offset.
    pub(crate) note: String,
    /// Whether there was no room in it for all that is acknowledged.
    cut_off: bool,
    /// The part of it that has to stand there.
    pub(crate) must: String,
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

/// Offsets that were left out between two messages of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Jump {
    pub(crate) partition: i32,
    /// The first that was left out.
    pub(crate) expected: i64,
}

/// What came of messages that were pushed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Pushed {
    /// Where offsets were left out.
    pub(crate) jumps: Vec<Jump>,
    /// Partitions whose log goes back.
    pub(crate) rewound: Vec<i32>,
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
    /// Stopped, and every message is answered: the group is to be left.
    pub(crate) leave: bool,
    /// Somebody, or a message, waits for a commit.
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
    /// What cannot be, because a transaction may have committed positions there, and is acknowledged again elsewhere.
    pub(crate) withheld: Option<Error>,
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
        state.buffer.take(max, into);
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
                    return slot.release(place.offset);
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

    /// The message is tried again in this process, which the next commit tells.
    pub(crate) fn try_again(&self, token: AckToken, attempt: u32) {
        let Some(place) = parts(token) else { return };
        let mut state = self.state.lock();
        if let Some(slot) = state.slot(place.partition, place.epoch)
            && slot.marks.try_again(place.offset, attempt)
        {
            slot.version += 1;
        }
    }

    pub(crate) fn holds(&self, token: AckToken) -> bool {
        let Some(place) = parts(token) else { return false };
        let mut state = self.state.lock();
        state.slot(place.partition, place.epoch).is_some_and(|s| s.marks.holds(place.offset))
    }

    /// Asks for a commit of everything acknowledged; `None` when the broker has it all.
    pub(crate) fn flush(&self) -> Option<oneshot::Receiver<Result<(), Error>>> {
        let mut state = self.state.lock();
        let marks = state.acknowledged();
        if marks.is_empty() || !self.limits.commits {
            return None;
        }
        let (done, waits) = oneshot::channel();
        state.flushes.push(Flush { marks, done });
        drop(state);
        self.signal.raise();
        Some(waits)
    }

    /// Does not leave the group when it stops, nor when it is closed: its place waits for it.
    pub(crate) fn keep_place(&self) {
        self.state.lock().stays = true;
    }

    pub(crate) fn topic(&self) -> &str {
        &self.topic
    }

    /// The partition, a lane, that has waited longest for the answer of one message, and for how long. None while nothing is to be
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
            leave: state.stopped && state.open == 0 && !state.stays,
            flush: !(state.flushes.is_empty() && state.guarded.is_empty()),
        }
    }

    /// Takes what was fetched, made by [`arrived`].
    pub(crate) fn push(&self, mut chunk: Vec<Received>) -> Pushed {
        let mut jumps = Vec::new();
        let mut state = self.state.lock();
        if state.stopped || state.closing.is_some() {
            // Behind what is committed: it comes again.
            return Pushed::default();
        }
        let mut rewound = Vec::new();
        chunk.retain_mut(|received| state.admit(received, &mut jumps, &mut rewound));
        if !rewound.is_empty() {
            // What the same chunk had of the old log.
            chunk.retain(|r| {
                parts(r.token).is_some_and(|p| state.slots.get(&p.partition).is_some_and(|s| s.epoch == p.epoch))
            });
        }
        if self.limits.guard {
            let mut marks: Vec<_> =
                chunk.iter().filter_map(|r| parts(r.token).map(|p| (p.partition, p.epoch, 0))).collect();
            marks.sort_unstable();
            marks.dedup();
            for (partition, _, version) in &mut marks {
                *version = state.slots.get(partition).map_or(0, |slot| slot.version);
            }
            state.guarded.push_back(Guarded { chunk, marks });
            state.let_through();
        } else {
            state.buffer.push(chunk);
        }
        let waker = if state.buffer.is_empty() || state.paused { None } else { state.waker.take() };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Pushed { jumps, rewound }
    }

    /// Where reading goes on in a partition; `None` where that is not known.
    pub(crate) fn next(&self, partition: i32) -> Option<i64> {
        self.state.lock().slots.get(&partition)?.marks.next()
    }

    /// Starts anew with these partitions: a position and its note where there is one.
    pub(crate) fn assigned(&self, partitions: impl Iterator<Item = (i32, Option<(i64, String)>)>) {
        let mut state = self.state.lock();
        for (partition, committed) in partitions {
            let marks = committed.map_or_else(Watermark::default, |(at, note)| Watermark::resume(at, &note));
            state.slots.insert(partition, Slot::new(marks, self.limits.guard));
        }
    }

    /// Forgets these partitions: their tokens are stale from now on.
    pub(crate) fn revoked(&self, partitions: &[i32]) -> Revoked {
        let mut state = self.state.lock();
        let (mut found, mut withheld) = (Revoked::default(), Vec::new());
        for partition in partitions {
            let due = state.slots.get(partition).and_then(|slot| slot.due(*partition));
            if state.turns.holds(*partition) { &mut withheld } else { &mut found.due }.extend(due);
            found.unanswered += state.forget(*partition);
        }
        if !withheld.is_empty() {
            let why = "partitions went while a transaction was committing their positions: what was acknowledged beside it comes again";
            let error = Error::new(ErrorKind::LeaseLost, why).with_operation("commit");
            // Now: nothing that comes of other partitions may take them for committed.
            state.fail_flushes(&withheld, &error);
            found.withheld = Some(error);
        }
        found
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
        self.state.lock().turns.end();
        for flush in std::mem::take(&mut self.state.lock().flushes) {
            let error = Error::new(ErrorKind::Closed, "the consumer was closed before the commit was answered");
            let _ = flush.done.send(Err(error.with_operation("flush")));
        }
        self.gone.send_replace(true);
    }
}

// By its path, which holds for the test that includes this file too.
#[cfg(test)]
#[path = "inbox/tests.rs"]
mod tests;
