//! What a handler gets.

use std::fmt;
use std::ops::Deref;

use queue_core::{Delivery, Hold, Message, Position, Ticket};

/// A message to be worked on. Its answer is the worker's: it follows the handler's result.
///
/// It dereferences to its [`Message`].
#[derive(Clone)]
pub struct Job {
    message: Message,
    attempt: u32,
    is_last_attempt: bool,
    position: Position,
    hold: Hold,
}

impl Job {
    /// A delivery, and what answers it.
    pub(crate) fn take(delivery: Delivery) -> (Self, Ticket) {
        let (attempt, is_last_attempt) = (delivery.attempt(), delivery.is_last_attempt());
        let (position, hold) = (delivery.position(), delivery.hold());
        let (message, ticket) = delivery.split();
        (Self { message, attempt, is_last_attempt, position, hold }, ticket)
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The message alone.
    #[must_use]
    pub fn into_message(self) -> Message {
        self.message
    }

    /// Which attempt this is, from 1 on.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Whether a failure now makes it a dead letter.
    #[must_use]
    pub fn is_last_attempt(&self) -> bool {
        self.is_last_attempt
    }

    /// Where the message stood.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Extends the lease of the message, and tells when it is lost. The worker renews leases by itself up to the
    /// receiver's `max_handler_time`.
    #[must_use]
    pub fn hold(&self) -> &Hold {
        &self.hold
    }
}

impl Deref for Job {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("message", &self.message).field("attempt", &self.attempt).finish_non_exhaustive()
    }
}
