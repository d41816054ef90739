//! The state of a queue: its segments in the order they came, and who waits for what.
//!
//! Each message has a number. `cursor` is the first that was never looked at; those before it that are ready again stand
//! in `again`, those with a priority in `first`. A segment leaves when all of it is answered, so that one message that
//! is held long keeps only its own segment in memory.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::fifo::Groups;
use super::segment::{Mark, SEGMENT, SEGMENT_BYTES, Segment, Stage};
use crate::completion::Completion;
use crate::consumer::AckToken;
use crate::message::Message;

/// Leases that end this close together are looked at together.
const LEASE_TICK: Duration = Duration::from_millis(10);

/// Neighbours that are handed out together and have the same counts.
#[derive(Debug)]
pub(super) struct Slice {
    pub(super) messages: Arc<Vec<Message>>,
    pub(super) range: Range<usize>,
    pub(super) number: u64,
    pub(super) offset: u64,
    pub(super) attempt: u32,
    pub(super) generation: u32,
}

#[derive(Debug)]
pub(super) struct Log {
    segments: BTreeMap<u64, Segment>,
    next: u64,
    cursor: u64,
    again: BTreeSet<u64>,
    first: BTreeSet<(Reverse<u8>, u64)>,
    /// Numbers of delayed messages by their time.
    delayed: BinaryHeap<Reverse<(Instant, u64)>>,
    /// Ranges of numbers by the time their leases end.
    leases: BinaryHeap<Reverse<(Instant, u64, u64)>>,
    /// The latest of them, which may still grow.
    last_lease: Option<(Instant, u64, u64)>,
    groups: Option<Groups>,
    /// Messages that are not answered.
    pub(super) live: usize,
    pub(super) capacity: usize,
    /// Batches that wait for room.
    pub(super) blocked: VecDeque<(Vec<Message>, Completion)>,
    pub(super) waiters: HashMap<u32, Waker>,
    pub(super) next_owner: u32,
    pub(super) deleted: bool,
}

impl Log {
    pub(super) fn new(capacity: usize, fifo: bool) -> Self {
        Self {
            segments: BTreeMap::new(),
            next: 0,
            cursor: 0,
            again: BTreeSet::new(),
            first: BTreeSet::new(),
            delayed: BinaryHeap::new(),
            leases: BinaryHeap::new(),
            last_lease: None,
            groups: fifo.then(Groups::default),
            live: 0,
            capacity,
            blocked: VecDeque::new(),
            waiters: HashMap::new(),
            next_owner: 0,
            deleted: false,
        }
    }

    /// Appends messages; `offset` is that of the first in its topic.
    pub(super) fn append(&mut self, mut messages: Vec<Message>, mut offset: Option<u64>, now: Instant) {
        while !messages.is_empty() {
            let mut bytes = 0;
            let fit = messages.iter().take(SEGMENT).take_while(|m| {
                bytes += m.payload().len();
                bytes <= SEGMENT_BYTES
            });
            let count = fit.count().max(1);
            let rest = if count < messages.len() { messages.split_off(count) } else { Vec::new() };
            self.append_segment(messages, offset.unwrap_or(self.next), now);
            offset = offset.map(|o| o + count as u64);
            messages = rest;
        }
    }

    fn append_segment(&mut self, mut messages: Vec<Message>, offset: u64, now: Instant) {
        let first = self.next;
        let count = messages.len();
        if let Some(mut last) = self.segments.last_entry() {
            let start = *last.key();
            let segment = last.get_mut();
            // Numbers and offsets part where a group is read again from an earlier offset.
            if start + segment.len() as u64 == first && segment.offset + segment.len() as u64 == offset {
                match segment.extend(messages, now) {
                    Ok(()) => {
                        self.live += count;
                        self.next += count as u64;
                        return;
                    }
                    Err(back) => messages = back,
                }
            }
        }
        self.insert(Segment::new(messages, offset, now));
    }

    /// Appends a segment whose messages have no offset of a topic.
    pub(super) fn append_prepared(&mut self, mut segment: Segment) {
        segment.offset = self.next;
        self.insert(segment);
    }

    fn insert(&mut self, segment: Segment) {
        let first = self.next;
        self.live += segment.len();
        self.next += segment.len() as u64;
        if !segment.plain {
            for (index, mark) in segment.marks.iter().enumerate() {
                let number = first + index as u64;
                if mark.stage == Stage::Delayed {
                    self.delayed.push(Reverse((mark.until, number)));
                } else if segment.priority(index) > 0 {
                    self.first.insert((Reverse(segment.priority(index)), number));
                }
            }
        }
        self.segments.insert(first, segment);
    }

    fn find(&mut self, number: u64) -> Option<(u64, &mut Segment, usize)> {
        find(&mut self.segments, number)
    }

    pub(super) fn in_flight(&mut self, token: AckToken, now: Instant) -> Option<&mut Mark> {
        let (_, segment, index) = self.find(token.0)?;
        let mark = &mut segment.marks[index];
        is_live(mark, token, now).then_some(mark)
    }

    // ---- handing out ----

    /// Marks up to `max` messages as in flight.
    pub(super) fn take(
        &mut self,
        owner: u32,
        lease: Option<Instant>,
        until: Instant,
        (max, max_bytes): (usize, usize),
        now: Instant,
    ) -> Vec<Slice> {
        let (mut slices, mut count, mut bytes) = (Vec::new(), 0, 0);
        let mut taken = Vec::new();
        while count < max && (count == 0 || bytes < max_bytes) {
            let one_by_one = self.groups.is_some() || !self.first.is_empty() || !self.again.is_empty();
            let (number, most) = if one_by_one {
                match self.next_listed(&mut taken) {
                    Some(number) => (number, 1),
                    None => break,
                }
            } else if self.cursor < self.next {
                (self.cursor, max - count)
            } else {
                break;
            };
            let Some((_, segment, start)) = self.find(number) else {
                // Answered as a whole: on to the next segment.
                self.cursor = self.segments.range(number..).next().map_or(self.next, |(first, _)| *first);
                continue;
            };
            let (slice, looked_at, size) =
                segment.hand_out(start, most, max_bytes - bytes.min(max_bytes), (owner, until, now));
            if !one_by_one || number == self.cursor {
                self.cursor = number + looked_at as u64;
            }
            let Some(mut slice) = slice else {
                self.drop_expired(number, looked_at, now);
                continue;
            };
            slice.number += number;
            count += slice.range.len();
            bytes += size;
            if lease.is_some() {
                self.note_lease(until, slice.number, slice.number + slice.range.len() as u64 - 1);
            }
            slices.push(slice);
        }
        slices
    }

    fn drop_expired(&mut self, number: u64, count: usize, now: Instant) {
        for number in number..number + count as u64 {
            let expired = self.find(number).is_some_and(|(_, segment, index)| {
                segment.marks[index].stage == Stage::Ready && segment.is_expired(index, now)
            });
            if expired {
                drop(self.finish(number));
            }
        }
    }

    /// The next number from the lists, taken off them; with groups, the first that no message in flight holds back.
    fn next_listed(&mut self, taken: &mut Vec<Bytes>) -> Option<u64> {
        if let Some(groups) = &mut self.groups {
            return self.segments.iter().find_map(|(first, segment)| {
                let ready = segment.marks.iter().enumerate().filter(|(_, m)| m.stage == Stage::Ready);
                let mut free = ready.filter(|(index, _)| groups.try_take(segment.messages[*index].get_key(), taken));
                free.next().map(|(index, _)| first + index as u64)
            });
        }
        self.first.pop_first().map(|(_, number)| number).or_else(|| self.again.pop_first())
    }

    // ---- answers ----

    /// Acknowledges; gives the indexes of stale tokens, and the messages to drop once the lock is released.
    pub(super) fn ack(&mut self, tokens: &[AckToken], now: Instant) -> (Vec<usize>, Vec<Segment>) {
        let (mut stale, mut gone) = (Vec::new(), Vec::new());
        let mut index = 0;
        while index < tokens.len() {
            let Some((first, segment, start)) = find(&mut self.segments, tokens[index].0) else {
                stale.push(index);
                index += 1;
                continue;
            };
            // Tokens of one fetch are neighbours: their segment is looked up once.
            let mut done = 0;
            for mark_index in start..segment.len() {
                let Some(token) = tokens.get(index).filter(|t| t.0 == first + mark_index as u64) else { break };
                let mark = &mut segment.marks[mark_index];
                if is_live(mark, *token, now) {
                    mark.stage = Stage::Done;
                    done += 1;
                    if let Some(groups) = &mut self.groups {
                        groups.give_back(segment.messages[mark_index].get_key());
                    }
                } else {
                    stale.push(index);
                }
                index += 1;
            }
            segment.done += done;
            self.live -= done;
            if segment.done == segment.len() {
                gone.extend(self.segments.remove(&first));
            }
        }
        (stale, gone)
    }

    /// Ends a message that is not in flight, or not any more; gives its segment when it was the last of it.
    pub(super) fn finish(&mut self, number: u64) -> Option<Segment> {
        let (first, segment, index) = self.find(number)?;
        let mark = &mut segment.marks[index];
        // A retry that waits for its time still holds its group.
        let held = mark.stage == Stage::InFlight || mark.stage == Stage::Delayed && mark.generation > 0;
        mark.stage = Stage::Done;
        segment.done += 1;
        let whole = segment.done == segment.len();
        let key = segment.messages[index].get_key().cloned();
        self.live -= 1;
        if held && let Some(groups) = &mut self.groups {
            groups.give_back(key.as_ref());
        }
        if whole { self.segments.remove(&first) } else { None }
    }

    /// Puts a message back to those that wait, until `at` if that lies ahead.
    pub(super) fn back(&mut self, number: u64, at: Option<Instant>) {
        let Some((_, segment, index)) = self.find(number) else { return };
        let (priority, key) = (segment.priority(index), segment.messages[index].get_key().cloned());
        let mark = &mut segment.marks[index];
        let held = mark.generation > 0;
        if let Some(at) = at {
            // Its group stays blocked: nothing may overtake it.
            mark.stage = Stage::Delayed;
            mark.until = at;
            self.delayed.push(Reverse((at, number)));
            return;
        }
        mark.stage = Stage::Ready;
        if let Some(groups) = &mut self.groups {
            if held {
                groups.give_back(key.as_ref());
            }
        } else if priority > 0 {
            self.first.insert((Reverse(priority), number));
        } else if number < self.cursor {
            self.again.insert(number);
        }
    }

    /// Numbers of the messages for which `wanted` answers true.
    pub(super) fn numbers(&self, wanted: impl Fn(&Mark) -> bool) -> Vec<u64> {
        let marks = self.segments.iter().flat_map(|(first, s)| (*first..).zip(&s.marks));
        marks.filter(|(_, mark)| wanted(mark)).map(|(number, _)| number).collect()
    }

    pub(super) fn mark(&mut self, number: u64) -> Option<&mut Mark> {
        self.find(number).map(|(_, segment, index)| &mut segment.marks[index])
    }

    /// Drops the oldest messages that wait, down to the capacity; tells how many.
    pub(super) fn trim(&mut self) -> usize {
        let over = self.live.saturating_sub(self.capacity);
        if over == 0 {
            return 0;
        }
        let waits = |m: &Mark| m.stage == Stage::Ready;
        let marks = self.segments.iter().flat_map(|(first, s)| (*first..).zip(&s.marks));
        let oldest: Vec<u64> = marks.filter(|(_, mark)| waits(mark)).map(|(number, _)| number).take(over).collect();
        for number in &oldest {
            self.again.remove(number);
            drop(self.finish(*number));
        }
        oldest.len()
    }

    pub(super) fn clear_lists(&mut self) {
        self.again.clear();
        self.first.clear();
        self.delayed.clear();
    }

    // ---- time ----

    /// Makes delayed messages ready whose time has come.
    pub(super) fn end_delays(&mut self, now: Instant) {
        while let Some(Reverse((at, number))) = self.delayed.peek().copied()
            && at <= now
        {
            self.delayed.pop();
            // One that is done since, or was given another time, only left its trace here.
            if self.mark(number).is_some_and(|m| m.stage == Stage::Delayed && m.until == at) {
                self.back(number, None);
            }
        }
    }

    pub(super) fn note_lease(&mut self, until: Instant, first: u64, last: u64) {
        match &mut self.last_lease {
            // The range is looked at a tick after the end of its first lease, however many have joined it.
            Some((end, _, open)) if *open + 1 == first && until <= *end => *open = last,
            open => {
                if let Some((until, first, last)) = open.replace((until + LEASE_TICK, first, last)) {
                    self.leases.push(Reverse((until, first, last)));
                }
            }
        }
    }

    /// Makes messages ready again whose lease ran out.
    pub(super) fn end_leases(&mut self, now: Instant, counted: bool) {
        if self.last_lease.is_some_and(|(until, ..)| until <= now)
            && let Some(open) = self.last_lease.take()
        {
            self.leases.push(Reverse(open));
        }
        while let Some(Reverse((until, first, last))) = self.leases.peek().copied()
            && until <= now
        {
            self.leases.pop();
            let start = self.segments.range(..=first).next_back().map_or(first, |(start, _)| *start);
            let ended: Vec<u64> = self
                .segments
                .range(start..=last)
                .flat_map(|(start, s)| (*start..).zip(&s.marks))
                .filter(|(n, m)| (first..=last).contains(n) && m.stage == Stage::InFlight && m.until <= now)
                .map(|(number, _)| number)
                .collect();
            for number in ended {
                if let Some(mark) = self.mark(number).filter(|_| !counted) {
                    mark.attempt -= 1;
                }
                self.back(number, None);
            }
        }
    }

    /// When something becomes ready by itself.
    pub(super) fn next_time(&self) -> Option<Instant> {
        let delayed = self.delayed.peek().map(|Reverse((at, _))| *at);
        let lease = self.leases.peek().map(|Reverse((until, ..))| *until);
        let open = self.last_lease.map(|(until, ..)| until);
        [delayed, lease, open].into_iter().flatten().min()
    }

    // ---- who waits ----

    pub(super) fn take_waiters(&mut self) -> Vec<Waker> {
        if self.waiters.is_empty() { Vec::new() } else { self.waiters.drain().map(|(_, w)| w).collect() }
    }

    /// Takes batches that waited for room.
    pub(super) fn admit(&mut self, now: Instant) -> (Vec<Completion>, Vec<Waker>) {
        let mut accepted = Vec::new();
        while self.live < self.capacity
            && let Some((messages, done)) = self.blocked.pop_front()
        {
            if done.is_over() {
                continue;
            }
            self.append(messages, None, now);
            accepted.push(done);
        }
        let waiters = if accepted.is_empty() { Vec::new() } else { self.take_waiters() };
        (accepted, waiters)
    }
}

/// The segment that holds the number, and the index in it.
fn find(segments: &mut BTreeMap<u64, Segment>, number: u64) -> Option<(u64, &mut Segment, usize)> {
    let (first, segment) = segments.range_mut(..=number).next_back()?;
    let index = usize::try_from(number - first).ok().filter(|i| *i < segment.len())?;
    Some((*first, segment, index))
}

fn is_live(mark: &Mark, token: AckToken, now: Instant) -> bool {
    mark.stage == Stage::InFlight && u64::from(mark.generation) == token.1 && mark.until > now
}

impl Segment {
    /// Marks neighbours from `start` on as in flight, as far as they are alike; tells how many were looked at, and
    /// their bytes.
    fn hand_out(
        &mut self,
        start: usize,
        most: usize,
        max_bytes: usize,
        (owner, until, now): (u32, Instant, Instant),
    ) -> (Option<Slice>, usize, usize) {
        let whole = self.bytes <= max_bytes;
        let (mut end, mut bytes) = (start, 0);
        let mut like: Option<(u32, u32)> = None;
        while end < self.len() && end - start < most && (end == start || whole || bytes < max_bytes) {
            let mark = &self.marks[end];
            let counts = (mark.attempt, mark.generation);
            // Those with a priority are handed out from their own list, which is looked at first.
            let ready = mark.stage == Stage::Ready && (self.plain || !self.is_expired(end, now));
            if !ready || like.is_some_and(|l| l != counts) {
                break;
            }
            like = Some(counts);
            let mark = &mut self.marks[end];
            *mark = Mark { until, stage: Stage::InFlight, attempt: counts.0 + 1, generation: counts.1 + 1, owner };
            if !whole {
                bytes += self.messages[end].payload().len();
            }
            end += 1;
        }
        let Some((attempt, generation)) = like else { return (None, 1, 0) };
        let slice = Slice {
            messages: self.messages.clone(),
            range: start..end,
            number: 0,
            offset: self.offset + start as u64,
            attempt: attempt + 1,
            generation: generation + 1,
        };
        (Some(slice), end - start, if whole { self.bytes } else { bytes })
    }
}
