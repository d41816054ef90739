//! A run of messages of a queue that came together, with what is known of each.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::message::Message;

/// Most messages of a segment, and most bytes of one with more than one: what a message that is held long keeps in
/// memory beside itself.
pub(super) const SEGMENT: usize = 256;
pub(super) const SEGMENT_BYTES: usize = 256 << 10;

/// Fewer messages than this are better added to the last segment.
const WORTHWHILE: usize = 32;

/// Where a message is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Waits to be handed out.
    Ready,
    /// Waits for its time.
    Delayed,
    /// Is handed out and not answered.
    InFlight,
    /// Is answered, or expired.
    Done,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    /// In flight: when the lease ends. Delayed: when it is ready.
    pub(super) until: Instant,
    pub(super) stage: Stage,
    /// Counted deliveries so far.
    pub(super) attempt: u32,
    /// Deliveries so far: tells a token of an earlier one.
    pub(super) generation: u32,
    /// Who has it in flight.
    pub(super) owner: u32,
}

/// The messages are shared, so that they are copied out, and dropped, while nobody waits for the lock.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) messages: Arc<Vec<Message>>,
    pub(super) marks: Vec<Mark>,
    /// The position of the first, in the topic or in the queue.
    pub(super) offset: u64,
    pub(super) done: usize,
    pub(super) bytes: usize,
    /// Whether no message has more than payload, key and headers.
    pub(super) plain: bool,
    pushed: Instant,
}

impl Segment {
    pub(super) fn new(messages: Vec<Message>, offset: u64, now: Instant) -> Self {
        let fresh = Mark { until: now, stage: Stage::Ready, attempt: 0, generation: 0, owner: 0 };
        let mut marks = vec![fresh; messages.len()];
        let (mut bytes, mut plain) = (0, true);
        for (message, mark) in messages.iter().zip(&mut marks) {
            bytes += message.payload().len();
            plain &= message.is_plain();
            set_delay(message, mark, now);
        }
        Self { messages: Arc::new(messages), marks, offset, done: 0, bytes, plain, pushed: now }
    }

    /// Makes a segment of messages that fill one well, so that it is made before the lock is taken.
    pub(super) fn prepare(messages: Vec<Message>, now: Instant) -> Result<Self, Vec<Message>> {
        if messages.len() < WORTHWHILE || messages.len() > SEGMENT {
            return Err(messages);
        }
        let segment = Self::new(messages, 0, now);
        if segment.bytes > SEGMENT_BYTES { Err(segment.into_messages()) } else { Ok(segment) }
    }

    /// The messages of a segment that nobody reads.
    pub(super) fn into_messages(self) -> Vec<Message> {
        Arc::unwrap_or_clone(self.messages)
    }

    /// Adds messages if they fit and nobody is reading; hands them back otherwise.
    pub(super) fn extend(&mut self, messages: Vec<Message>, now: Instant) -> Result<(), Vec<Message>> {
        let bytes: usize = messages.iter().map(|m| m.payload().len()).sum();
        let fits = self.messages.len() + messages.len() <= SEGMENT && self.bytes + bytes <= SEGMENT_BYTES;
        // One with a time to live counts it from when its segment was made.
        let simple = self.plain && messages.iter().all(Message::is_plain);
        let Some(own) = Arc::get_mut(&mut self.messages).filter(|_| fits && simple) else { return Err(messages) };
        let fresh = Mark { until: now, stage: Stage::Ready, attempt: 0, generation: 0, owner: 0 };
        self.marks.resize(self.marks.len() + messages.len(), fresh);
        own.extend(messages);
        self.bytes += bytes;
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.marks.len()
    }

    pub(super) fn is_expired(&self, index: usize, now: Instant) -> bool {
        !self.plain && self.messages[index].get_ttl().is_some_and(|ttl| far(self.pushed, ttl) <= now)
    }

    pub(super) fn priority(&self, index: usize) -> u8 {
        if self.plain { 0 } else { self.messages[index].get_priority().unwrap_or(0) }
    }
}

fn set_delay(message: &Message, mark: &mut Mark, now: Instant) {
    if !message.is_plain()
        && let Some(delay) = message.get_delay().filter(|d| !d.is_zero())
    {
        mark.until = far(now, delay);
        mark.stage = Stage::Delayed;
    }
}

/// Longer than any process lives, and short enough to be added to any point in time.
pub(crate) const LONG: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A point in time that may lie very far ahead.
pub(crate) fn far(now: Instant, by: Duration) -> Instant {
    now + by.min(LONG)
}
