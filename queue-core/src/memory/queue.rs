//! A queue: a log of messages in the order they came, with what is known of each.
//!
//! A message stays at its place from the send until it is answered. `cursor` is the first that was never looked at;
//! those before it that are ready again stand in `again`, those with a priority in `first`. Answered messages leave at
//! the front; one that is held long is moved aside (`aside`), so that it keeps nobody in memory.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::fmt;
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::entry::{Entry, Stage, far};
use super::fifo::Groups;
use super::profile::Profile;
use crate::broker::Stats;
use crate::completion::Completion;
use crate::consumer::{AckToken, Position, Received};
use crate::error::{Error, ErrorKind};
use crate::message::Message;

/// Leases that end this close together are looked at together.
const LEASE_TICK: Duration = Duration::from_millis(10);
/// Below this the log is not worth tidying.
const TIDY: usize = 1024;

pub(super) struct Queue {
    name: String,
    profile: Profile,
    state: Mutex<State>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("name", &self.name).finish_non_exhaustive()
    }
}

struct State {
    log: VecDeque<Entry>,
    /// The number of the first entry of the log.
    base: u64,
    cursor: u64,
    again: BTreeSet<u64>,
    first: BTreeSet<(Reverse<u8>, u64)>,
    aside: HashMap<u64, Entry>,
    /// Numbers of delayed entries by their time.
    delayed: BinaryHeap<Reverse<(Instant, u64)>>,
    /// Ranges of numbers with the time their leases end.
    leases: VecDeque<(Instant, u64, u64)>,
    groups: Option<Groups>,
    /// Entries that are not done.
    live: usize,
    done: usize,
    capacity: usize,
    /// Batches that wait for room.
    blocked: VecDeque<(Vec<Message>, Completion)>,
    waiters: HashMap<u32, Waker>,
    next_owner: u32,
    deleted: bool,
}

impl Queue {
    pub(super) fn new(name: &str, profile: Profile, capacity: usize) -> Self {
        Self {
            name: name.to_owned(),
            profile,
            state: Mutex::new(State {
                log: VecDeque::new(),
                base: 0,
                cursor: 0,
                again: BTreeSet::new(),
                first: BTreeSet::new(),
                aside: HashMap::new(),
                delayed: BinaryHeap::new(),
                leases: VecDeque::new(),
                groups: profile.is_fifo(name).then(Groups::default),
                live: 0,
                done: 0,
                capacity,
                blocked: VecDeque::new(),
                waiters: HashMap::new(),
                next_owner: 0,
                deleted: false,
            }),
        }
    }

    pub(super) fn missing(&self) -> Error {
        Error::new(ErrorKind::NotFound, "there is no such queue").with_context("address", &self.name)
    }

    /// Takes a batch; hands it back when the queue was deleted.
    pub(super) fn push(&self, messages: Vec<Message>, done: Completion) -> Result<(), (Vec<Message>, Completion)> {
        let mut state = self.state.lock();
        if state.deleted {
            return Err((messages, done));
        }
        if state.live >= state.capacity || !state.blocked.is_empty() {
            state.blocked.push_back((messages, done));
            return Ok(());
        }
        state.append(messages);
        let waiters = state.take_waiters();
        drop(state);
        done.accept_all();
        waiters.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Appends messages of a topic, each with its offset there.
    pub(super) fn fan_out(&self, messages: impl Iterator<Item = (Message, u64)>) {
        let mut state = self.state.lock();
        let now = Instant::now();
        for (message, offset) in messages {
            state.push(Entry::new(message, offset, now));
        }
        let waiters = state.take_waiters();
        drop(state);
        waiters.into_iter().for_each(Waker::wake);
    }

    pub(super) fn enter(&self) -> u32 {
        let mut state = self.state.lock();
        state.next_owner += 1;
        state.next_owner
    }

    /// Hands out up to `max` messages; without any, keeps the waker and tells when to look again.
    pub(super) fn take(
        &self,
        owner: u32,
        lease: Option<Duration>,
        (max, max_bytes): (usize, usize),
        waker: &Waker,
        into: &mut Vec<Received>,
    ) -> Result<Option<Instant>, Error> {
        let mut state = self.state.lock();
        if state.deleted {
            return Err(self.missing());
        }
        let now = Instant::now();
        state.wake_delayed(now);
        state.end_leases(now, self.profile);
        let until = far(now, lease.unwrap_or(Duration::MAX));
        let (mut count, mut bytes) = (0, 0);
        let mut taken_groups = Vec::new();
        while count < max && (count == 0 || bytes < max_bytes) {
            let Some(number) = state.next_ready(&mut taken_groups) else { break };
            let Some(entry) = state.entry(number) else { continue };
            if entry.is_expired(now) {
                state.finish(number);
                continue;
            }
            entry.stage = Stage::InFlight;
            entry.attempt += 1;
            entry.generation += 1;
            entry.owner = owner;
            entry.until = until;
            bytes += entry.message.payload().len();
            into.push(Received {
                message: Ok(entry.message.clone()),
                token: AckToken(number, entry.generation.into()),
                attempt: entry.attempt,
                lease: lease.map(|_| until),
                position: Position::new((self.profile == Profile::Kafka).then_some(0), Some(entry.offset)),
            });
            if lease.is_some() {
                state.note_lease(until, number);
            }
            count += 1;
        }
        state.tidy();
        if count > 0 {
            return Ok(None);
        }
        let next = state.next_time();
        state.waiters.insert(owner, waker.clone());
        Ok(next)
    }

    /// Whether the token names a delivery that is in flight.
    pub(super) fn holds(&self, token: AckToken) -> bool {
        self.state.lock().in_flight(token, Instant::now()).is_some()
    }

    /// Acknowledges; tells the indexes of stale tokens.
    pub(super) fn ack(&self, tokens: &[AckToken]) -> Vec<usize> {
        let mut stale = Vec::new();
        let mut state = self.state.lock();
        let now = Instant::now();
        for (index, token) in tokens.iter().enumerate() {
            if state.in_flight(*token, now).is_some() {
                state.finish(token.0);
            } else {
                stale.push(index);
            }
        }
        state.tidy();
        let (accepted, waiters) = state.admit();
        drop(state);
        accepted.into_iter().for_each(Completion::accept_all);
        waiters.into_iter().for_each(Waker::wake);
        stale
    }

    /// Keeps a delivery until then; false when it is not in flight.
    pub(super) fn extend(&self, token: AckToken, by: Duration) -> bool {
        let mut state = self.state.lock();
        let now = Instant::now();
        let Some(entry) = state.in_flight(token, now) else { return false };
        entry.until = far(now, by);
        let until = entry.until;
        state.note_lease(until, token.0);
        true
    }

    /// Takes a delivery back; false when it is not in flight. It is ready after the delay.
    pub(super) fn give_back(&self, token: AckToken, delay: Duration, counted: bool) -> bool {
        let mut state = self.state.lock();
        let now = Instant::now();
        let Some(entry) = state.in_flight(token, now) else { return false };
        if !counted {
            entry.attempt -= 1;
        }
        state.back(token.0, far(now, delay), delay.is_zero());
        let waiters = state.take_waiters();
        drop(state);
        waiters.into_iter().for_each(Waker::wake);
        true
    }

    /// The receiver is gone: what it had in flight is ready again.
    pub(super) fn leave(&self, owner: u32) -> usize {
        let mut state = self.state.lock();
        state.waiters.remove(&owner);
        let theirs = |e: &Entry| e.owner == owner && e.stage == Stage::InFlight;
        let base = state.base;
        let mut numbers: Vec<u64> = (base..).zip(&state.log).filter(|(_, e)| theirs(e)).map(|(n, _)| n).collect();
        numbers.extend(state.aside.iter().filter(|(_, e)| theirs(e)).map(|(n, _)| *n));
        let now = Instant::now();
        for number in &numbers {
            if !self.profile.counts_losses()
                && let Some(entry) = state.entry(*number)
            {
                entry.attempt -= 1;
            }
            state.back(*number, now, true);
        }
        let waiters = state.take_waiters();
        drop(state);
        waiters.into_iter().for_each(Waker::wake);
        numbers.len()
    }

    pub(super) fn forget_waiter(&self, owner: u32) {
        self.state.lock().waiters.remove(&owner);
    }

    pub(super) fn delete(&self) {
        let mut state = self.state.lock();
        state.deleted = true;
        let blocked = std::mem::take(&mut state.blocked);
        let waiters = state.take_waiters();
        drop(state);
        for (messages, done) in blocked {
            done.fail_all(&self.missing(), messages);
        }
        waiters.into_iter().for_each(Waker::wake);
    }

    /// Removes what waits; what is in flight stays.
    pub(super) fn purge(&self) {
        let mut state = self.state.lock();
        let base = state.base;
        let waits = |e: &Entry| matches!(e.stage, Stage::Ready | Stage::Delayed);
        let mut numbers: Vec<u64> = (base..).zip(&state.log).filter(|(_, e)| waits(e)).map(|(n, _)| n).collect();
        numbers.extend(state.aside.iter().filter(|(_, e)| waits(e)).map(|(n, _)| *n));
        numbers.into_iter().for_each(|number| state.finish(number));
        state.again.clear();
        state.first.clear();
        state.delayed.clear();
        state.tidy();
    }

    pub(super) fn stats(&self) -> Stats {
        let state = self.state.lock();
        let in_flight = state.entries().filter(|e| e.stage == Stage::InFlight).count();
        Stats { ready: Some((state.live - in_flight) as u64), in_flight: Some(in_flight as u64), ..Stats::default() }
    }
}

impl State {
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.log.iter().chain(self.aside.values())
    }

    fn entry(&mut self, number: u64) -> Option<&mut Entry> {
        match number.checked_sub(self.base) {
            Some(index) => self.log.get_mut(usize::try_from(index).ok()?),
            None => self.aside.get_mut(&number),
        }
    }

    fn in_flight(&mut self, token: AckToken, now: Instant) -> Option<&mut Entry> {
        let entry = self.entry(token.0)?;
        let live = entry.stage == Stage::InFlight && u64::from(entry.generation) == token.1 && entry.until > now;
        live.then_some(entry)
    }

    fn append(&mut self, messages: Vec<Message>) {
        let now = Instant::now();
        self.log.reserve(messages.len());
        for message in messages {
            let offset = self.base + self.log.len() as u64;
            self.push(Entry::new(message, offset, now));
        }
    }

    fn push(&mut self, entry: Entry) {
        let number = self.base + self.log.len() as u64;
        self.live += 1;
        if entry.stage == Stage::Delayed {
            self.delayed.push(Reverse((entry.until, number)));
        } else if entry.priority() > 0 {
            self.first.insert((Reverse(entry.priority()), number));
        }
        self.log.push_back(entry);
    }

    /// The number of the next entry to hand out, taken off its list.
    fn next_ready(&mut self, taken: &mut Vec<bytes::Bytes>) -> Option<u64> {
        if self.groups.is_some() {
            return self.next_in_group(taken);
        }
        if let Some((_, number)) = self.first.pop_first() {
            return Some(number);
        }
        if let Some(number) = self.again.pop_first() {
            return Some(number);
        }
        let end = self.base + self.log.len() as u64;
        self.cursor = self.cursor.max(self.base);
        while self.cursor < end {
            let number = self.cursor;
            self.cursor += 1;
            if self.log[(number - self.base) as usize].stage == Stage::Ready {
                return Some(number);
            }
        }
        None
    }

    /// As `next_ready`, for FIFO queues: no message of a group that has one in flight from an earlier fetch.
    fn next_in_group(&mut self, taken: &mut Vec<bytes::Bytes>) -> Option<u64> {
        let groups = self.groups.as_mut()?;
        let ready = |e: &Entry| e.stage == Stage::Ready;
        let mut aside: Vec<_> = self.aside.iter().filter(|(_, e)| ready(e)).map(|(n, e)| (*n, e)).collect();
        aside.sort_by_key(|(n, _)| *n);
        let all = aside.into_iter().chain((self.base..).zip(&self.log));
        for (number, entry) in all.filter(|(_, e)| ready(e)) {
            if groups.try_take(entry.message.get_key(), taken) {
                return Some(number);
            }
        }
        None
    }

    /// Back to those that wait.
    fn back(&mut self, number: u64, at: Instant, now: bool) {
        let Some(entry) = self.entry(number) else { return };
        let (priority, key) = (entry.priority(), entry.message.get_key().cloned());
        if now {
            entry.stage = Stage::Ready;
            if self.groups.is_none() {
                if priority > 0 {
                    self.first.insert((Reverse(priority), number));
                } else {
                    self.again.insert(number);
                }
            }
        } else {
            entry.stage = Stage::Delayed;
            entry.until = at;
            self.delayed.push(Reverse((at, number)));
            // Its group stays blocked: nothing may overtake it.
            return;
        }
        if let Some(groups) = &mut self.groups {
            groups.give_back(key.as_ref());
        }
    }

    fn finish(&mut self, number: u64) {
        let Some(entry) = self.entry(number) else { return };
        let was_taken = entry.stage == Stage::InFlight || entry.generation > 0 && entry.stage == Stage::Delayed;
        let key = entry.message.get_key().cloned();
        entry.finish();
        self.live -= 1;
        if number < self.base {
            self.aside.remove(&number);
        } else {
            self.done += 1;
        }
        if was_taken && let Some(groups) = &mut self.groups {
            groups.give_back(key.as_ref());
        }
    }

    /// Drops what is done at the front, and moves aside what is held long.
    fn tidy(&mut self) {
        loop {
            let Some(front) = self.log.front() else { return };
            if front.stage == Stage::Done {
                self.log.pop_front();
                self.done -= 1;
                self.base += 1;
            } else if self.log.len() > TIDY && self.done * 2 > self.log.len() && self.base < self.cursor {
                if let Some(entry) = self.log.pop_front() {
                    self.aside.insert(self.base, entry);
                }
                self.base += 1;
            } else {
                return;
            }
        }
    }

    fn wake_delayed(&mut self, now: Instant) {
        while let Some(Reverse((at, number))) = self.delayed.peek().copied()
            && at <= now
        {
            self.delayed.pop();
            let cursor = self.cursor;
            // A list of those that are done since, or were given another time.
            let Some(entry) = self.entry(number).filter(|e| e.stage == Stage::Delayed && e.until == at) else {
                continue;
            };
            let fresh = entry.generation == 0;
            if fresh && number >= cursor && entry.priority() == 0 {
                entry.stage = Stage::Ready;
            } else {
                let groups = if fresh { self.groups.take() } else { None };
                self.back(number, now, true);
                if groups.is_some() {
                    self.groups = groups;
                }
            }
        }
    }

    fn note_lease(&mut self, until: Instant, number: u64) {
        while self.leases.front().is_some_and(|(_, _, last)| *last < self.base) && self.aside.is_empty() {
            self.leases.pop_front();
        }
        match self.leases.back_mut() {
            Some((end, _, last)) if *last + 1 == number && until >= *end && until - *end < LEASE_TICK => {
                (*end, *last) = (until, number);
            }
            _ => self.leases.push_back((until, number, number)),
        }
    }

    fn end_leases(&mut self, now: Instant, profile: Profile) {
        // Leases of one receiver end in the order they began; those of several may not.
        let mut later = VecDeque::new();
        while let Some((until, first, last)) = self.leases.pop_front() {
            if until > now {
                later.push_back((until, first, last));
                if later.len() > 64 {
                    break;
                }
                continue;
            }
            for number in first..=last {
                let ended = |e: &&mut Entry| e.stage == Stage::InFlight && e.until <= now;
                if let Some(entry) = self.entry(number).filter(ended) {
                    if !profile.counts_losses() {
                        entry.attempt -= 1;
                    }
                    self.back(number, now, true);
                }
            }
        }
        while let Some(range) = later.pop_back() {
            self.leases.push_front(range);
        }
    }

    /// When something becomes ready by itself.
    fn next_time(&self) -> Option<Instant> {
        let delayed = self.delayed.peek().map(|Reverse((at, _))| *at);
        let lease = self.leases.iter().map(|(until, _, _)| *until).min();
        delayed.into_iter().chain(lease).min()
    }

    fn take_waiters(&mut self) -> Vec<Waker> {
        if self.waiters.is_empty() { Vec::new() } else { self.waiters.drain().map(|(_, w)| w).collect() }
    }

    /// Takes batches that waited for room.
    fn admit(&mut self) -> (Vec<Completion>, Vec<Waker>) {
        let mut accepted = Vec::new();
        while self.live < self.capacity
            && let Some((messages, done)) = self.blocked.pop_front()
        {
            self.append(messages);
            accepted.push(done);
        }
        let waiters = if accepted.is_empty() { Vec::new() } else { self.take_waiters() };
        (accepted, waiters)
    }
}
