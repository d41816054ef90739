//! What was handed over for one channel and has no verdict yet.
//!
//! The client tells which message was returned as unroutable by attaching the return to *a* confirmation: with several
//! messages confirmed at once, often to that of another message. So a return is matched by the message's id, and no
//! verdict is given before every confirmation that may carry the message's return has been seen:
//! * a confirmation of several messages completes them in any order, all under one lock of the client. Touching that
//!   lock ([`fence`]) after a look and looking once more sees all of them;
//! * other confirmations come in the order of the messages, behind their returns.
//!
//! A broker that is alive and does not confirm (a quorum queue without its majority) bounds nothing by itself. The client
//! is given [`most`](Window::most) messages at most, and what waits behind them is let go when its sender does not wait for it any more
//! ([`drop_over`](Window::drop_over)): so nothing waits but what the windows of the senders hold, and what they gave up
//! within [`EXPIRE`](crate::publisher::EXPIRE). Where only some messages have no answer, those to other queues go on
//! behind them; of each, a record stays, [`LONGEST`] of them at most. Then the channel is opened again.

use std::collections::VecDeque;
use std::fmt::Write;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures::FutureExt;
use lapin::Channel;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use queue_core::{Error, ErrorKind, Message, Result};

use crate::convert::{Outgoing, outgoing};
use crate::delay::Ladder;
use crate::flight::{Batch, Flight, Origin, Seen, State, Verdict};
use crate::publisher::{Load, Parcel};
use crate::slots::{Job, Slots, Started, slots};

/// Bytes of payload that are with the client at most; a single larger message still passes.
const MOST_BYTES: usize = 32 << 20;
/// Flights that may have overtaken the first without an answer, beside those that the client has: about 8 MiB.
const LONGEST: usize = 1 << 16;
/// Of the number in an id, at most.
const DIGITS: usize = 20;

/// Flights in the order in which they were handed over: those that were answered, those that the client has, and those
/// that wait for room there.
pub(crate) struct Window {
    pub(super) frame_max: usize,
    /// Messages that are with the client at most. For a confirmation of several messages it looks at every one.
    most: usize,
    pub(super) ladder: Arc<Ladder>,
    /// What the ids made here begin with; the number of the flight follows.
    pub(super) prefix: String,
    pub(super) flights: VecDeque<Flight>,
    pub(super) slots: Box<dyn Slots>,
    /// Number of the first flight.
    pub(super) base: u64,
    /// How many flights from the front on have been answered.
    pub(super) answered: usize,
    /// How many flights from the front on the client was given.
    pub(super) published: usize,
    /// Those before this place are written.
    pub(super) writing: usize,
    /// Those of them that have no answer, and the bytes of their payloads.
    pub(super) in_client: usize,
    pub(super) bytes: usize,
    pub(super) batches: VecDeque<Batch>,
    /// Place of a batch at or before that of the next flight to be published.
    pub(super) next_batch: usize,
    /// Those before this number have waited for long, and are looked at once more before they are published.
    old: u64,
    /// Why the channel is of no more use.
    pub(super) broken: Option<lapin::Error>,
    /// Whether the broker refused a message on the channel.
    refused: bool,
}

/// Returns when no confirmation of several messages is half done. Its side effect is on what nobody asks for.
fn fence(channel: &Channel) {
    let _ = channel.wait_for_confirms().now_or_never();
}

impl Window {
    pub(crate) fn new(max_unconfirmed: NonZeroU16, ladder: Arc<Ladder>) -> Self {
        Self {
            frame_max: usize::MAX,
            most: max_unconfirmed.get().into(),
            ladder,
            prefix: (0..12).map(|_| fastrand::alphanumeric()).chain(['-']).collect(),
            flights: VecDeque::new(),
            slots: slots(),
            base: 0,
            answered: 0,
            published: 0,
            writing: 0,
            in_client: 0,
            bytes: 0,
            batches: VecDeque::new(),
            next_batch: 0,
            old: 0,
            broken: None,
            refused: false,
        }
    }

    /// How many have no answer, the first of them, and whether that is with the client.
    pub(crate) fn waiting(&self) -> (usize, u64, bool) {
        (self.flights.len() - self.answered, self.base + self.answered as u64, self.answered < self.published)
    }

    /// How many flights there are, those included that wait for one before them.
    pub(crate) fn kept(&self) -> usize {
        self.flights.len()
    }

    /// Whether the first without an answer has held up as many as there may be.
    pub(crate) fn is_full(&self) -> bool {
        self.published - self.answered >= LONGEST + self.most
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.refused
    }

    /// Whether the client has answered everything.
    pub(crate) fn is_drained(&self) -> bool {
        self.in_client == 0
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// From now on messages go to another channel, whose frames have so many bytes at most. The client has none that is
    /// not answered.
    pub(crate) fn begin(&mut self, frame_max: usize) {
        self.slots.clear();
        self.frame_max = frame_max;
        self.broken = None;
        self.refused = false;
    }

    /// Takes messages of a producer, in order.
    pub(crate) fn push(&mut self, parcel: Parcel) {
        let Parcel { origin, done, load } = parcel;
        let first = self.base + self.flights.len() as u64;
        let flights = u32::try_from(load.len()).unwrap_or(u32::MAX);
        if flights == 0 {
            return;
        }
        let fly = |(index, message)| Flight { state: State::Waiting(message), index, returned: None };
        match load {
            Load::One(message) => self.flights.push_back(fly((0, message))),
            Load::All(messages) => self.flights.extend((0..).zip(messages).map(fly)),
            Load::Part(messages) => self.flights.extend(messages.into_iter().map(fly)),
        }
        self.batches.push_back(Batch { first, flights, undecided: flights, partial: false, origin, done });
    }

    /// How many messages the client can be given now, at most.
    pub(crate) fn ready(&self) -> usize {
        if self.bytes >= MOST_BYTES {
            return 0;
        }
        self.most.saturating_sub(self.in_client).min(self.flights.len() - self.published)
    }

    /// Whether the client has none that has no answer.
    pub(crate) fn is_idle(&self) -> bool {
        self.answered == self.published
    }

    /// Gives the client as many messages as it has room for, up to so many and so many bytes; answers how many.
    pub(crate) fn publish(
        &mut self,
        channel: &Arc<Channel>,
        (most, most_bytes): (usize, usize),
        verdicts: &mut Vec<Verdict>,
    ) -> usize {
        let (before, bytes) = (self.published, self.bytes);
        while self.published < self.flights.len()
            && self.published < before + most
            && self.bytes < bytes + most_bytes
            && self.in_client < self.most
            && self.bytes < MOST_BYTES
            && self.broken.is_none()
        {
            let place = self.published;
            self.published += 1;
            let flight = &mut self.flights[place];
            match std::mem::replace(&mut flight.state, State::Decided) {
                State::Waiting(message) => {
                    if self.base + (place as u64) < self.old && self.is_over(place) {
                        self.refuse(place, expired(), message, verdicts);
                    } else {
                        self.start(channel, place, message, verdicts);
                    }
                }
                other => flight.state = other,
            }
        }
        self.published - before
    }

    /// What the client has written meanwhile gives its place back, to be used again while it is in the cache.
    pub(crate) fn settle_written(&mut self) {
        // The first without an answer has somebody to wake: a look without would take that from it.
        self.writing = self.writing.max(self.answered + 1);
        while self.writing < self.published {
            let flight = &mut self.flights[self.writing];
            if let Some(error) = flight.settle_writing(&mut *self.slots) {
                self.broken.get_or_insert(error);
            }
            if matches!(flight.state, State::Writing(_)) {
                return;
            }
            self.writing += 1;
        }
    }

    /// Whether nobody waits for it any more.
    fn is_over(&mut self, place: usize) -> bool {
        let index = self.flights[place].index;
        batch_of(&mut self.batches, self.base + place as u64).is_some_and(|batch| batch.done.is_over_for(index))
    }

    /// Lets go of those that the client does not have and that nobody waits for any more.
    pub(crate) fn drop_over(&mut self, verdicts: &mut Vec<Verdict>) {
        // What is new now is looked at the next time.
        let mut next = self.base + self.published as u64;
        let first = self.batches.partition_point(|b| b.first + u64::from(b.flights) <= next);
        let mut waiting = self.flights.split_off(self.published).into_iter();
        for batch in self.batches.range_mut(first..) {
            // Those before it may be fewer now. Of the first, a part may have been published.
            batch.first = batch.first.min(next);
            let published = u32::try_from(next - batch.first).unwrap_or(u32::MAX);
            let mut left = published;
            for flight in waiting.by_ref().take(batch.flights.saturating_sub(published) as usize) {
                match flight.state {
                    State::Waiting(_) if batch.done.is_over_for(flight.index) => {
                        batch.undecided -= 1;
                        verdicts.push(Verdict::failed(batch, flight.index, expired(), None));
                    }
                    State::Decided => {}
                    _ => {
                        self.flights.push_back(flight);
                        left += 1;
                    }
                }
            }
            next = batch.first + u64::from(left);
            batch.partial |= left < batch.flights;
            batch.flights = left;
        }
        self.batches.retain(|batch| batch.flights > 0);
        self.next_batch = 0;
        self.old = next;
    }

    fn start(&mut self, channel: &Arc<Channel>, place: usize, message: Message, verdicts: &mut Vec<Verdict>) {
        let number = self.base + place as u64;
        while self.batches.get(self.next_batch).is_some_and(|b| b.first + u64::from(b.flights) <= number) {
            self.next_batch += 1;
        }
        let Some(batch) = self.batches.get(self.next_batch) else { return };
        let origin = &batch.origin;
        let id = if message.get_id().is_none() { Some(self.id(number).into()) } else { None };
        let out = match prepare(origin, &message, id, self.frame_max, &self.ladder) {
            Ok(out) => out,
            Err(error) => return self.refuse(place, error, message, verdicts),
        };
        let options = BasicPublishOptions { mandatory: out.to_queue || origin.require_route, immediate: false };
        let bytes = message.payload().len();
        let state = match self.slots.start(channel, Job { out, options, message }) {
            Started::Writing(slot) => State::Writing(slot),
            Started::Written((Ok(confirm), message)) => State::Confirming(confirm, message),
            Started::Written((Err(error), message)) => {
                let mapped = Error::new(ErrorKind::Connection, "the channel is gone")
                    .with_operation("send")
                    .with_source(error.clone());
                self.broken.get_or_insert(error);
                return self.refuse(place, mapped, message, verdicts);
            }
        };
        self.flights[place].state = state;
        self.in_client += 1;
        self.bytes += bytes;
    }

    /// Fails a message that the client does not have.
    pub(super) fn refuse(&mut self, place: usize, error: Error, message: Message, verdicts: &mut Vec<Verdict>) {
        self.flights[place].state = State::Decided;
        let index = self.flights[place].index;
        let Some(batch) = batch_of(&mut self.batches, self.base + place as u64) else { return };
        batch.partial = true;
        batch.undecided -= 1;
        verdicts.push(Verdict::failed(batch, index, error, Some(message)));
    }

    /// The id of a message that brought none.
    fn id(&self, number: u64) -> String {
        let mut id = String::with_capacity(self.prefix.len() + DIGITS);
        id.push_str(&self.prefix);
        // Writing to a text does not fail.
        let _ = write!(id, "{number}");
        id
    }

    /// The message with the id under which it was sent, so that it keeps it when it is sent again.
    pub(super) fn hand_back(&self, number: u64, message: Message) -> Message {
        if message.get_id().is_some() { message } else { message.id(self.id(number)) }
    }

    /// Looks at a flight; says whether it has been answered.
    pub(super) fn look(&mut self, place: usize, cx: &mut Context<'_>) -> bool {
        match self.flights[place].look(&mut *self.slots, cx) {
            Seen::Nothing => return false,
            Seen::Old => return true,
            Seen::Answer(returned) => {
                if let Some(returned) = returned {
                    self.attribute(place, *returned);
                }
            }
            Seen::Broken(error) => {
                self.broken.get_or_insert(error);
            }
        }
        self.in_client -= 1;
        self.refused |= matches!(self.flights[place].state, State::Answered(_, false));
        if let State::Answered(message, _) | State::Lost(message) = &self.flights[place].state {
            self.bytes -= message.payload().len();
        }
        true
    }

    /// Whether frames of a message are still with the client. Of a channel that is gone it lets go soon, and hands the
    /// messages back.
    pub(crate) fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut writing = false;
        for place in 0..self.published {
            if matches!(self.flights[place].state, State::Writing(_)) {
                self.look(place, cx);
                writing |= matches!(self.flights[place].state, State::Writing(_));
            }
        }
        if writing { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Looks at the flights from the front on, up to the first without an answer. Every verdict that is certain goes to
    /// `verdicts`.
    pub(crate) fn advance(&mut self, channel: &Channel, cx: &mut Context<'_>, verdicts: &mut Vec<Verdict>) {
        // Those that the client completes now are seen at once, not each by a wake-up of its own.
        fence(channel);
        loop {
            let before = self.answered;
            while self.answered < self.published && self.look(self.answered, cx) {
                self.answered += 1;
            }
            if self.broken.is_some() {
                return;
            }
            let seen = self.answered > before;
            // What was seen before the fence is certain now.
            self.decide_front(before, verdicts);
            if !seen {
                return;
            }
            fence(channel);
        }
    }

    /// Looks at every flight, for those whose predecessors are stuck.
    pub(crate) fn sweep(&mut self, channel: &Channel, cx: &mut Context<'_>, verdicts: &mut Vec<Verdict>) {
        // Only the first wakes: the others are of interest when it has been answered, or at the next sweep. A return that
        // is looked for may take that from it, so whoever sweeps looks with `advance` once more before it waits.
        let silent = &mut Context::from_waker(Waker::noop());
        let rest = (self.answered + 1).min(self.published)..self.published;
        let seen: Vec<usize> = rest.clone().filter(|place| self.look(*place, silent)).collect();
        fence(channel);
        // The first too: its confirmation may carry the return of any of them.
        if self.answered < self.published {
            self.look(self.answered, cx);
        }
        for place in rest {
            self.look(place, silent);
        }
        if self.broken.is_some() {
            return;
        }
        for place in seen {
            self.decide(place, verdicts);
        }
    }

    /// Gives verdicts to the first `count` flights, and lets them go.
    fn decide_front(&mut self, count: usize, verdicts: &mut Vec<Verdict>) {
        let mut left = count;
        while left > 0 {
            // Batches that the sweep decided.
            self.drop_decided();
            if let Some(batch) = self.batches.front()
                && batch.first == self.base
                && !batch.partial
                && batch.flights as usize <= left
                && batch.flights as usize == batch.done.len()
                && self
                    .flights
                    .range(..batch.flights as usize)
                    .all(|f| matches!(f.state, State::Answered(_, true)) && f.returned.is_none())
            {
                let whole = batch.flights as usize;
                verdicts.extend(self.batches.pop_front().map(Verdict::All));
                self.next_batch = self.next_batch.saturating_sub(1);
                self.release(whole);
                left -= whole;
                continue;
            }
            self.decide(0, verdicts);
            self.release(1);
            left -= 1;
        }
        self.drop_decided();
    }

    fn drop_decided(&mut self) {
        while self.batches.front().is_some_and(|b| b.undecided == 0) {
            self.batches.pop_front();
            self.next_batch = self.next_batch.saturating_sub(1);
        }
    }

    fn release(&mut self, count: usize) {
        if count == 1 {
            self.flights.pop_front();
        } else {
            self.flights.drain(..count);
        }
        self.base += count as u64;
        self.answered -= count;
        self.published -= count;
        self.writing = self.writing.saturating_sub(count);
    }

    pub(super) fn origin(&self, place: usize) -> Option<&Arc<Origin>> {
        let number = self.base + place as u64;
        let behind = self.batches.partition_point(|b| b.first <= number);
        self.batches.get(behind.checked_sub(1)?).map(|batch| &batch.origin)
    }
}

fn expired() -> Error {
    Error::new(ErrorKind::Timeout, "nobody waits for it any more; it was not sent").with_operation("send")
}

fn prepare(
    origin: &Origin,
    message: &Message,
    id: Option<ShortString>,
    frame_max: usize,
    ladder: &Ladder,
) -> Result<Outgoing> {
    let out = outgoing(&origin.address, message, id, frame_max)?;
    if let Some(delay) = out.delay {
        ladder.ready(message.destination().unwrap_or(&origin.address).name(), delay)?;
    }
    Ok(out)
}

pub(super) fn batch_of(batches: &mut VecDeque<Batch>, number: u64) -> Option<&mut Batch> {
    let behind = batches.partition_point(|b| b.first <= number);
    batches.get_mut(behind.checked_sub(1)?)
}
