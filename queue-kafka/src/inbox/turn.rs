//! Whose turn it is to commit positions: the consumer's, or a transaction's.
//!
//! The broker keeps the position that was written last, and one that a transaction wrote counts as written when it was
//! sent, not when the transaction is committed. So an ordinary commit that came between the two would undo what the
//! transaction acknowledged. From the moment when the positions of a transaction are made until it is known what became
//! of them, its partitions get no other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use queue_core::{AckToken, Error, ErrorKind};
use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use tokio::sync::oneshot;

use super::state::State;
use super::{Inbox, Mark, Place, parts};
use crate::offsets::MAX_NEW_NOTE;

/// A transaction that wants to commit positions.
#[derive(Debug)]
pub(super) struct Request {
    tokens: Vec<AckToken>,
    reply: oneshot::Sender<Result<Granted, Error>>,
}

/// The transaction whose turn it is.
#[derive(Debug)]
pub(super) struct Holder {
    places: Vec<Place>,
    marks: Vec<Mark>,
    /// Set when it may have been committed: waits until that is known.
    doubt: Option<oneshot::Sender<()>>,
}

/// Turns, taken one after the other.
#[derive(Debug, Default)]
pub(super) struct Turns {
    holder: Option<Holder>,
    requests: VecDeque<Request>,
}

impl Turns {
    pub(super) fn holds(&self, partition: i32) -> bool {
        self.holder.as_ref().is_some_and(|holder| holder.marks.iter().any(|mark| mark.partition == partition))
    }

    /// Nobody grants anything any more.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }
}

/// A turn of a transaction, with what it is to send to the broker.
pub(crate) struct Granted {
    pub(crate) turn: Turn,
    /// The positions with their notes.
    pub(crate) positions: TopicPartitionList,
    /// The member of the group, as it was when the messages were still its own.
    pub(crate) member: ConsumerGroupMetadata,
}

impl std::fmt::Debug for Granted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Granted").field("turn", &self.turn).finish_non_exhaustive()
    }
}

/// The right of a transaction to commit positions. Dropped, the transaction was not committed.
#[derive(Debug)]
pub(crate) struct Turn {
    inbox: Arc<Inbox>,
    over: bool,
}

impl Turn {
    pub(crate) fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// The transaction was committed: its messages are acknowledged.
    pub(crate) fn committed(mut self) {
        self.over = true;
        self.inbox.turn_committed(|_| true);
    }

    /// The transaction may have been committed. Its messages stay as they are until the broker tells; then it resolves, also
    /// where that will not be known here any more because they are somebody else's.
    pub(crate) fn doubtful(mut self) -> oneshot::Receiver<()> {
        self.over = true;
        let (known, waits) = oneshot::channel();
        if let Some(holder) = &mut self.inbox.state.lock().turns.holder {
            holder.doubt = Some(known);
        }
        self.inbox.signal.raise();
        waits
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.over {
            self.inbox.state.lock().turns.holder = None;
            self.inbox.signal.raise();
        }
    }
}

impl State {
    /// What is to be committed when these messages are acknowledged with what is already.
    fn with(&self, tokens: &[AckToken]) -> Result<Holder, Error> {
        let lost = || Error::new(ErrorKind::LeaseLost, "a message is no longer its receiver's").with_retryable(true);
        let mut places = Vec::with_capacity(tokens.len());
        let mut slots = BTreeMap::new();
        for token in tokens {
            let place = parts(*token).ok_or_else(lost)?;
            let slot = self.slots.get(&place.partition).filter(|s| s.epoch == place.epoch).ok_or_else(lost)?;
            let (marks, _) = slots.entry(place.partition).or_insert_with(|| (slot.marks.clone(), slot));
            marks.ack_noted(place.offset).ok_or_else(lost)?;
            places.push(place);
        }
        let mut result = Vec::with_capacity(slots.len());
        for (partition, (marks, slot)) in slots {
            let must = marks.must_note(MAX_NEW_NOTE).ok_or_else(|| {
                let why = "too many messages are acknowledged behind one that is not: there is no room to note them";
                Error::new(ErrorKind::TooLarge, why).with_retryable(true).with_context("partition", partition)
            })?;
            let offset = marks.position().ok_or_else(lost)?;
            let (note, cut_off) = if self.no_notes { (must.clone(), false) } else { marks.note_and_rest() };
            result.push(Mark { partition, offset, note, cut_off, must, epoch: slot.epoch, version: slot.version });
        }
        Ok(Holder { places, marks: result, doubt: None })
    }

    /// Acknowledges those of its messages that are still here.
    fn acknowledge(&mut self, holder: &Holder, is_committed: impl Fn(i32) -> bool) {
        for mark in holder.marks.iter().filter(|mark| is_committed(mark.partition)) {
            let Some(slot) = self.slot(mark.partition, mark.epoch) else { continue };
            let unchanged = slot.version == mark.version;
            let of_it = holder.places.iter().filter(|p| p.partition == mark.partition);
            let sizes: Vec<u32> = of_it.filter_map(|place| slot.marks.ack_noted(place.offset)).collect();
            slot.version += 1;
            if unchanged {
                // The broker has just this.
                slot.committed = slot.version;
            }
            sizes.into_iter().for_each(|size| self.answered(size));
        }
    }
}

impl Inbox {
    // For a transaction.

    /// Waits for the turn of a transaction that is to acknowledge these messages.
    ///
    /// # Errors
    /// `LeaseLost`; `TooLarge` where there is no room to note them; `Closed`.
    pub(crate) async fn turn(&self, tokens: Vec<AckToken>) -> Result<Granted, Error> {
        let (reply, granted) = oneshot::channel();
        {
            let mut state = self.state.lock();
            if state.closing.is_some() {
                // Its thread grants nothing any more.
                return Err(Error::closed("consumer"));
            }
            state.turns.requests.push_back(Request { tokens, reply });
        }
        self.signal.raise();
        granted.await.unwrap_or_else(|_| Err(Error::closed("consumer")))
    }

    fn turn_committed(&self, is_committed: impl Fn(i32) -> bool) {
        let (known, waker) = {
            let mut state = self.state.lock();
            let Some(holder) = state.turns.holder.take() else { return };
            state.acknowledge(&holder, is_committed);
            state.settle_flushes();
            state.let_through();
            let waker = if state.buffer.is_empty() || state.paused { None } else { state.waker.take() };
            (holder.doubt, waker)
        };
        self.signal.raise();
        if let Some(waker) = waker {
            waker.wake();
        }
        if let Some(known) = known {
            // Nobody listens: nobody cares.
            let _ = known.send(());
        }
    }

    /// The broker refused a note because of its length: from now on there are none but what must be noted. False where that
    /// was known.
    pub(crate) fn refuse_notes(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().no_notes, true)
    }

    /// Whether the broker takes notes of any length.
    pub(crate) fn takes_notes(&self) -> bool {
        !self.state.lock().no_notes
    }

    // For the thread.

    /// Gives the turn to the transaction that has waited longest. Only while no ordinary commit is under way, and by the
    /// thread that serves the group: what `prepare` makes of the positions says that the messages are this member's now.
    pub(crate) fn grant(
        self: &Arc<Self>,
        prepare: impl Fn(&[Mark]) -> Result<(TopicPartitionList, ConsumerGroupMetadata), Error>,
    ) {
        loop {
            let (reply, marks) = {
                let mut state = self.state.lock();
                // One that failed may still be on its way; it is tried again, and the next is behind it.
                let overtaken = state.commit_error.is_some() && !state.due().is_empty();
                if state.turns.holder.is_some() || state.turns.requests.is_empty() || overtaken {
                    return;
                }
                let Some(Request { tokens, reply }) = state.turns.requests.pop_front() else { return };
                if reply.is_closed() {
                    continue;
                }
                let marks = state.with(&tokens).map(|holder| {
                    let marks = holder.marks.clone();
                    state.turns.holder = Some(holder);
                    marks
                });
                (reply, marks)
            };
            let granted = marks.and_then(|marks| {
                let turn = Turn { inbox: self.clone(), over: false };
                prepare(&marks).map(|(positions, member)| Granted { turn, positions, member })
            });
            // Who does not wait any more gives it back.
            drop(reply.send(granted));
        }
    }

    /// Whether a transaction may still commit positions of one of these partitions.
    pub(crate) fn is_turn_of(&self, partitions: &[i32]) -> bool {
        let state = self.state.lock();
        partitions.iter().any(|partition| state.turns.holds(*partition))
            && state.turns.holder.as_ref().is_some_and(|holder| holder.doubt.is_none())
    }

    /// Whether it is the turn of a transaction.
    pub(crate) fn is_turn(&self) -> bool {
        self.state.lock().turns.holder.is_some()
    }

    /// The partitions of a transaction of which it is not known whether it was committed.
    pub(crate) fn in_doubt(&self) -> Vec<i32> {
        let state = self.state.lock();
        let holder = state.turns.holder.as_ref().filter(|holder| holder.doubt.is_some());
        holder.map(|holder| holder.marks.iter().map(|mark| mark.partition).collect()).unwrap_or_default()
    }

    /// The broker tells positions: the transaction was committed where they are its own. Nothing else was committed since
    /// they were made, so it was not where they differ.
    pub(crate) fn told(&self, positions: &BTreeMap<i32, Option<(i64, String)>>) {
        let committed = {
            let state = self.state.lock();
            let Some(holder) = state.turns.holder.as_ref().filter(|holder| holder.doubt.is_some()) else { return };
            let is_here = |mark: &Mark| state.slots.get(&mark.partition).is_some_and(|slot| slot.epoch == mark.epoch);
            if holder.marks.iter().any(|mark| is_here(mark) && !positions.contains_key(&mark.partition)) {
                return;
            }
            let has = |mark: &&Mark| match positions.get(&mark.partition) {
                Some(Some((offset, note))) => *offset == mark.offset && *note == mark.note,
                _ => false,
            };
            holder.marks.iter().filter(has).map(|mark| mark.partition).collect::<Vec<_>>()
        };
        self.turn_committed(|partition| committed.contains(&partition));
    }
}
