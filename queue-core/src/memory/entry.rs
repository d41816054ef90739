//! One message in a queue.

use std::time::Duration;

use tokio::time::Instant;

use crate::message::Message;

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

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) message: Message,
    /// The position in the topic, or in the queue.
    pub(super) offset: u64,
    /// In flight: when the lease ends. Delayed: when it is ready.
    pub(super) until: Instant,
    pub(super) expires: Option<Instant>,
    pub(super) stage: Stage,
    /// Counted deliveries so far.
    pub(super) attempt: u32,
    /// Deliveries so far: tells a token of an earlier one.
    pub(super) generation: u32,
    /// Who has it in flight.
    pub(super) owner: u32,
}

impl Entry {
    pub(super) fn new(message: Message, offset: u64, now: Instant) -> Self {
        let mut entry = Self {
            offset,
            until: now,
            expires: None,
            stage: Stage::Ready,
            attempt: 0,
            generation: 0,
            owner: 0,
            message,
        };
        if !entry.message.is_plain() {
            // Both stay on the message as it was sent; here they become points in time.
            entry.expires = entry.message.get_ttl().map(|ttl| far(now, ttl));
            if let Some(delay) = entry.message.get_delay().filter(|d| !d.is_zero()) {
                entry.until = far(now, delay);
                entry.stage = Stage::Delayed;
            }
        }
        entry
    }

    pub(super) fn priority(&self) -> u8 {
        if self.message.is_plain() { 0 } else { self.message.get_priority().unwrap_or(0) }
    }

    pub(super) fn is_expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }

    /// Forgets the message; the place stays until those before it are done.
    pub(super) fn finish(&mut self) {
        self.stage = Stage::Done;
        self.message = Message::default();
    }
}

/// A point in time that may lie very far ahead.
pub(super) fn far(now: Instant, by: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    now + by.min(CENTURY)
}
