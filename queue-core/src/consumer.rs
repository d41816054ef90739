//! The contract of a consumer.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::address::Address;
use crate::broker::CloseReport;
use crate::capability::Capabilities;
use crate::error::{Error, Result};
use crate::message::Message;
use crate::transaction::Participant;

/// Names one delivery to the adapter that made it: two opaque words.
///
/// The adapter fills them so that a token of an earlier connection, assignment or lease is recognised as stale (an
/// epoch in the first, a position in the second, say).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AckToken(pub u64, pub u64);

/// Where a message stood, as far as the broker tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Position {
    /// The partition.
    pub partition: Option<u32>,
    /// The offset in the partition, or the broker's sequence number.
    pub offset: Option<u64>,
}

impl Position {
    /// Makes a position.
    #[must_use]
    pub const fn new(partition: Option<u32>, offset: Option<u64>) -> Self {
        Self { partition, offset }
    }
}

/// A message that arrived and could not be decoded: what there is of it, and why.
#[derive(Debug)]
pub struct Undecodable {
    /// The raw body and what else could be read.
    pub raw: Bytes,
    /// Why it could not be decoded.
    pub error: Error,
}

/// A message as an adapter hands it over.
#[derive(Debug)]
pub struct Received {
    /// The message.
    pub message: Result<Message, Box<Undecodable>>,
    /// Names the delivery in answers.
    pub token: AckToken,
    /// Starts at 1; counts as `delivery_count` of the capabilities says.
    pub attempt: u32,
    /// When the lease ends unless extended; `None` where it is held while connected.
    pub lease: Option<Instant>,
    /// Where the message stood.
    pub position: Position,
}

/// An answer other than ack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// Gives the message back at once, not counted as an attempt where the broker can tell.
    Release(AckToken),
    /// Keeps the message for at least this long from now.
    Extend(AckToken, Duration),
    /// Hands the message out again, counted, after at least this delay. Sent to adapters that declare
    /// [`RetryVia::Broker`](crate::RetryVia::Broker); others get it with a zero delay only, as an immediate counted
    /// return.
    Retry(AckToken, Duration),
}

impl Answer {
    /// The delivery that is answered.
    #[must_use]
    pub fn token(&self) -> AckToken {
        match self {
            Self::Release(t) | Self::Extend(t, _) | Self::Retry(t, _) => *t,
        }
    }
}

/// What came of a call of [`Consumer::ack`]: the indexes of stale tokens, normally none.
#[derive(Debug, Default)]
pub struct AckReport {
    /// Indexes of tokens that named nothing any more; nothing else was touched.
    pub stale: Vec<usize>,
}

/// What came of a call of [`Consumer::settle`].
#[derive(Default)]
pub struct Settled {
    /// Indexes of tokens that named nothing any more; nothing else was touched.
    pub stale: Vec<usize>,
    /// Waits for what the protocol can tell of the others, and names those that were refused by index; `None` when
    /// nothing is left to wait for. It borrows nothing; dropped, the answers go out all the same.
    pub pending: Option<BoxFuture<'static, Vec<(usize, Error)>>>,
}

impl fmt::Debug for Settled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settled").field("stale", &self.stale).field("pending", &self.pending.is_some()).finish()
    }
}

/// Receives from one source, and takes answers.
///
/// # Contract
/// * One task polls; every other method may be called from any thread, at any time, also outside the runtime (a
///   delivery may be dropped anywhere).
/// * Transient faults are waited out inside: reconnect, resubscribe, report by events. An error from
///   `poll_receive` is final (`NotFound`, `Conflict`, `Unauthorized`, `Closed`).
/// * At most `prefetch` messages are fetched and unanswered at any time, those in the adapter's own buffers included.
/// * Answers are recorded in call order before the call returns, never block, and are batched behind the scenes by
///   count and by age. A token of an earlier connection, assignment or lease is stale and touches nothing.
/// * Answers that the protocol refuses later are retried while that makes sense, then are an `AnswerFailed` event.
#[async_trait]
pub trait Consumer: fmt::Debug + Send + Sync + 'static {
    /// What this source can do, exactly.
    fn capabilities(&self) -> Arc<Capabilities>;

    /// Appends up to `max` messages to `into`. Ready as soon as there is one; never lingers to fill. The waker of the
    /// latest call is the one to wake.
    ///
    /// # Errors
    /// Only what needs a person; the consumer is over then.
    fn poll_receive(&self, cx: &mut Context<'_>, max: NonZeroUsize, into: &mut Vec<Received>) -> Poll<Result<()>>;

    /// Acknowledges: the messages do not come again.
    fn ack(&self, tokens: &[AckToken]) -> AckReport;

    /// Takes other answers.
    fn settle(&self, answers: Vec<Answer>) -> Settled;

    /// Whether the token still names a delivery of this consumer.
    fn holds(&self, token: AckToken) -> bool;

    /// An unanswered message is about to be tried again in this process, as this attempt. A consumer that declares
    /// [`RetryVia::InPlace`](crate::RetryVia::InPlace) keeps the number beyond the process where it can, and begins with
    /// it when the message comes again.
    fn note_attempt(&self, token: AckToken, attempt: u32) {
        let _ = (token, attempt);
    }

    /// Addresses from which a copy comes back to this source after a delay, with the delay, the shortest first; for a
    /// consumer that declares [`RetryVia::InPlace`](crate::RetryVia::InPlace) and has a place for long ones. A retry goes
    /// to the first whose delay is no shorter, as a confirmed copy that says when it is due
    /// ([`wire::due`](crate::wire::due)); one that is shorter than all, or longer, waits in place.
    fn retry_tiers(&self) -> &[(Duration, Address)] {
        &[]
    }

    /// This consumer as the transactions of its broker know it; `None` where they cannot acknowledge its messages.
    fn participant(&self) -> Option<Participant> {
        None
    }

    /// Waits until every answer given so far is with the broker, as far as the protocol can tell (SQS and Kafka: the
    /// broker's answer; AMQP: a round trip on the channel). Bounded.
    ///
    /// # Errors
    /// The first answer that was refused, or the connection that was lost meanwhile.
    async fn flush(&self) -> Result<()>;

    /// Paused: fetches nothing and gives back what it has buffered.
    fn set_paused(&self, paused: bool);

    /// Takes no new messages and gives back what is buffered; answers are still taken. `poll_receive` answers
    /// `Closed` from then on. Bounded.
    async fn stop(&self);

    /// Stops, flushes the answers, and lets go of the rest. Idempotent.
    async fn close(&self, deadline: Instant) -> CloseReport;
}
