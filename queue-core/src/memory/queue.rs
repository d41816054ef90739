//! A queue, as producers and consumers see it.

use std::fmt;
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::log::{Log, Slice};
use super::profile::Profile;
use super::segment::{Segment, Stage, far};
use crate::broker::Stats;
use crate::completion::Completion;
use crate::consumer::{AckToken, Position, Received};
use crate::error::{Error, ErrorKind};
use crate::message::Message;

pub(super) struct Queue {
    name: String,
    profile: Profile,
    log: Mutex<Log>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Queue {
    pub(super) fn new(name: &str, profile: Profile, capacity: usize) -> Self {
        Self { name: name.to_owned(), profile, log: Mutex::new(Log::new(capacity, profile.is_fifo(name))) }
    }

    pub(super) fn missing(&self) -> Error {
        Error::new(ErrorKind::NotFound, "there is no such queue").with_context("address", &self.name)
    }

    /// Takes a batch; hands it back when the queue was deleted.
    pub(super) fn push(&self, messages: Vec<Message>, done: Completion) -> Result<(), (Vec<Message>, Completion)> {
        let now = Instant::now();
        // What takes long is done before the lock is taken.
        let prepared = Segment::prepare(messages, now);
        let back = |prepared: Result<Segment, Vec<Message>>| prepared.map_or_else(|m| m, Segment::into_messages);
        let mut log = self.log.lock();
        if log.deleted {
            return Err((back(prepared), done));
        }
        if log.live >= log.capacity || !log.blocked.is_empty() {
            // Nobody waits for those any more.
            log.blocked.retain(|(_, done)| !done.is_over());
            log.blocked.push_back((back(prepared), done));
            return Ok(());
        }
        match prepared {
            Ok(segment) => log.append_prepared(segment),
            Err(messages) => log.append(messages, None, now),
        }
        let waiters = log.take_waiters();
        drop(log);
        done.accept_all();
        waiters.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Takes messages of a topic; `offset` is that of the first there. A topic never blocks its senders: what is over
    /// the capacity is lost from the front, as retention would have it.
    pub(super) fn fan_out(&self, messages: Vec<Message>, offset: u64) {
        let now = Instant::now();
        let mut log = self.log.lock();
        log.append(messages, Some(offset), now);
        let lost = log.trim();
        let waiters = log.take_waiters();
        drop(log);
        if lost > 0 {
            tracing::warn!(queue = self.name, lost, "a group is over its capacity: its oldest messages are dropped");
        }
        waiters.into_iter().for_each(Waker::wake);
    }

    pub(super) fn enter(&self) -> u32 {
        let mut log = self.log.lock();
        log.next_owner += 1;
        log.next_owner
    }

    /// Hands out messages up to a count and bytes; without any, keeps the waker and tells when to look again.
    pub(super) fn take(
        &self,
        owner: u32,
        lease: Option<Duration>,
        most: (usize, usize),
        waker: &Waker,
        into: &mut Vec<Received>,
    ) -> Result<Option<Instant>, Error> {
        let now = Instant::now();
        let until = far(now, lease.unwrap_or(Duration::MAX));
        let lease = lease.map(|_| until);
        let mut log = self.log.lock();
        if log.deleted {
            return Err(self.missing());
        }
        log.end_delays(now);
        log.end_leases(now, self.profile.counts_losses());
        let slices = log.take(owner, lease, until, most, now);
        if slices.is_empty() {
            log.waiters.insert(owner, waker.clone());
            return Ok(log.next_time());
        }
        drop(log);
        let partition = (self.profile == Profile::Kafka).then_some(0);
        for slice in slices {
            let Slice { messages, range, number, offset, attempt, generation } = slice;
            into.extend(messages[range].iter().enumerate().map(|(i, message)| Received {
                message: Ok(message.clone()),
                token: AckToken(number + i as u64, generation.into()),
                attempt,
                lease,
                position: Position::new(partition, Some(offset + i as u64)),
            }));
        }
        Ok(None)
    }

    /// Whether the token names a delivery that is in flight.
    pub(super) fn holds(&self, token: AckToken) -> bool {
        self.log.lock().in_flight(token, Instant::now()).is_some()
    }

    /// Acknowledges; tells the indexes of stale tokens.
    pub(super) fn ack(&self, tokens: &[AckToken]) -> Vec<usize> {
        let now = Instant::now();
        let mut log = self.log.lock();
        let (stale, gone) = log.ack(tokens, now);
        let (accepted, waiters) = if log.blocked.is_empty() { Default::default() } else { log.admit(now) };
        drop(log);
        drop(gone);
        accepted.into_iter().for_each(Completion::accept_all);
        waiters.into_iter().for_each(Waker::wake);
        stale
    }

    /// Keeps a delivery for this long from now; false when it is not in flight.
    pub(super) fn extend(&self, token: AckToken, by: Duration) -> bool {
        let now = Instant::now();
        let until = far(now, by);
        let mut log = self.log.lock();
        let Some(mark) = log.in_flight(token, now) else { return false };
        mark.until = until;
        log.note_lease(until, token.0, token.0);
        true
    }

    /// Takes a delivery back; false when it is not in flight. It is ready after the delay.
    pub(super) fn give_back(&self, token: AckToken, delay: Duration, counted: bool) -> bool {
        let now = Instant::now();
        let mut log = self.log.lock();
        let Some(mark) = log.in_flight(token, now) else { return false };
        if !counted {
            mark.attempt -= 1;
        }
        log.back(token.0, (!delay.is_zero()).then(|| far(now, delay)));
        let waiters = log.take_waiters();
        drop(log);
        waiters.into_iter().for_each(Waker::wake);
        true
    }

    /// The receiver is gone: what it had in flight is ready again.
    pub(super) fn leave(&self, owner: u32) -> usize {
        let mut log = self.log.lock();
        log.waiters.remove(&owner);
        let theirs = log.numbers(|m| m.owner == owner && m.stage == Stage::InFlight);
        for number in &theirs {
            if let Some(mark) = log.mark(*number).filter(|_| !self.profile.counts_losses()) {
                mark.attempt -= 1;
            }
            log.back(*number, None);
        }
        let waiters = log.take_waiters();
        drop(log);
        waiters.into_iter().for_each(Waker::wake);
        theirs.len()
    }

    pub(super) fn forget_waiter(&self, owner: u32) {
        self.log.lock().waiters.remove(&owner);
    }

    pub(super) fn delete(&self) {
        let mut log = self.log.lock();
        log.deleted = true;
        let blocked = std::mem::take(&mut log.blocked);
        let waiters = log.take_waiters();
        drop(log);
        for (messages, done) in blocked {
            done.fail_all(&self.missing(), messages);
        }
        waiters.into_iter().for_each(Waker::wake);
    }

    /// Removes what waits; what is in flight stays.
    pub(super) fn purge(&self) {
        let mut log = self.log.lock();
        for number in log.numbers(|m| matches!(m.stage, Stage::Ready | Stage::Delayed)) {
            drop(log.finish(number));
        }
        log.clear_lists();
        let (accepted, waiters) = log.admit(Instant::now());
        drop(log);
        accepted.into_iter().for_each(Completion::accept_all);
        waiters.into_iter().for_each(Waker::wake);
    }

    pub(super) fn stats(&self) -> Stats {
        let log = self.log.lock();
        let in_flight = log.numbers(|m| m.stage == Stage::InFlight).len();
        Stats { ready: Some((log.live - in_flight) as u64), in_flight: Some(in_flight as u64), ..Stats::default() }
    }
}
