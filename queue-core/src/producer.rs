//! The contract of a producer.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::broker::CloseReport;
use crate::capability::Capabilities;
use crate::completion::Completion;
use crate::message::Message;

/// What the broker told about a message it accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The partition.
    pub partition: Option<u32>,
    /// The offset in the partition, or the broker's sequence number.
    pub offset: Option<u64>,
    /// The broker's id of the message.
    pub id: Option<Box<str>>,
    /// Whether the message was sent more than once, so that a copy may exist.
    pub retried: bool,
}

impl Receipt {
    /// A receipt that says no more than that the broker has the message.
    #[must_use]
    pub const fn accepted() -> Self {
        Self { partition: None, offset: None, id: None, retried: false }
    }

    /// A receipt with a position in a log.
    #[must_use]
    pub const fn at(partition: u32, offset: u64) -> Self {
        Self { partition: Some(partition), offset: Some(offset), id: None, retried: false }
    }

    /// A receipt with the broker's id.
    #[must_use]
    pub fn with_id(id: impl Into<Box<str>>) -> Self {
        Self { partition: None, offset: None, id: Some(id.into()), retried: false }
    }
}

/// Sends to one address.
///
/// # Contract
/// * The handle checks what the capabilities declare and keeps the window; the adapter checks what only it can know
///   (names, encodings) and fails those messages alone, before they touch the network.
/// * A message's verdict is `accept` only after the broker confirmed it. A failure says by its
///   [`Outcome`](crate::Outcome) whether the broker may have it, and hands the message back so that the handle can send it again;
///   the adapter itself retries nothing that could double a message.
/// * While disconnected, messages are failed at once as `NotSent` with kind `Connection`: the handle waits and
///   sends again until its deadline. What was in flight when a connection broke is `Unknown`.
/// * [`Message::destination`] overrides the address; nothing is declared for it.
#[async_trait]
pub trait Producer: fmt::Debug + Send + Sync + 'static {
    /// What this address can do, exactly; fixed at opening.
    fn capabilities(&self) -> Arc<Capabilities>;

    /// Takes the batch before it returns, in call order; never blocks. The verdict of each message goes to `done`,
    /// from any thread, in any order, also before this returns. May be called concurrently and outside the runtime.
    fn send(&self, batch: Vec<Message>, done: Completion);

    /// As [`send`](Self::send), of one message. By default it is a batch of one; an adapter that does without the list
    /// saves the allocation.
    fn send_one(&self, message: Message, done: Completion) {
        self.send(vec![message], done);
    }

    /// Waits for what is in flight until the deadline, then lets go: what is left is `Unknown`. Idempotent.
    async fn close(&self, deadline: Instant) -> CloseReport;
}
