//! The handle of one transaction.

use std::fmt;

use super::lost;
use super::open::Open;
use crate::address::Address;
use crate::delivery::{Batch, Delivery, Ticket};
use crate::error::{Error, Outcome, Result};
use crate::message::Message;

mod sealed {
    use super::Ticket;

    pub trait Sealed {
        fn tickets(self) -> Vec<Ticket>;
    }
}

/// What a transaction can acknowledge: a [`Delivery`], a [`Ticket`] or a [`Batch`].
pub trait Enlist: sealed::Sealed {}

impl Enlist for Ticket {}
impl Enlist for Delivery {}
impl Enlist for Batch {}

impl sealed::Sealed for Ticket {
    fn tickets(self) -> Vec<Ticket> {
        vec![self]
    }
}

impl sealed::Sealed for Delivery {
    fn tickets(self) -> Vec<Ticket> {
        vec![self.into_ticket()]
    }
}

impl sealed::Sealed for Batch {
    fn tickets(self) -> Vec<Ticket> {
        self.into_iter().map(Delivery::into_ticket).collect()
    }
}

/// A transaction that is open: what is sent in it becomes visible, and what is acknowledged in it is, when it is
/// committed, and only then.
///
/// Dropped, it is given up in the background as by [`abort`](Self::abort); the next one begins after that.
#[must_use = "dropped, the transaction is given up"]
pub struct Transaction(Option<Open>);

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut s = f.debug_struct("Transaction");
        if let Some(open) = &self.0 {
            s.field("name", &open.name()).field("acks", &open.acks());
        }
        s.finish_non_exhaustive()
    }
}

impl Transaction {
    pub(super) fn new(open: Open) -> Self {
        Self(Some(open))
    }

    fn open(&mut self) -> Result<&mut Open> {
        // Only what takes the transaction takes it out.
        self.0.as_mut().ok_or_else(|| Error::closed("transaction"))
    }

    /// Hands a message over as a part of the transaction, as soon as there is room; whether the broker took it the commit
    /// tells. Messages to one address keep their order.
    ///
    /// # Errors
    /// Of the message, which is no part of the transaction then: `TooLarge`, `Unsupported`, `InvalidInput`, `NotFound`,
    /// `Conflict`; `Timeout` where there was no room before the deadline. Of an earlier message that failed since: this
    /// one is not taken, and the transaction cannot be committed any more.
    ///
    /// # Cancel safety
    /// Dropped, the message is no part of the transaction.
    pub async fn send<A: TryInto<Address>>(&mut self, to: A, message: impl Into<Message>) -> Result<()>
    where
        Error: From<A::Error>,
    {
        self.send_batch(to, [message]).await
    }

    /// Hands messages over as a part of the transaction, as [`send`](Self::send) does.
    ///
    /// # Errors
    /// As of [`send`](Self::send). None of the messages is taken where one is refused; where there was no room before the
    /// deadline some may be.
    ///
    /// # Cancel safety
    /// Dropped, some of the messages are no part of the transaction, so give it up.
    pub async fn send_batch<A, I>(&mut self, to: A, messages: I) -> Result<()>
    where
        A: TryInto<Address>,
        Error: From<A::Error>,
        I: IntoIterator,
        I::Item: Into<Message>,
    {
        let to = to.try_into()?;
        let messages = messages.into_iter().map(Into::into).collect();
        let open = self.open()?;
        let sent = open.send(&to, messages).await;
        sent.map_err(|e| open.named(e, "send").with_context("address", &to))
    }

    /// Acknowledges messages with the transaction: a delivery, its ticket, or a batch. They are answered by this, and
    /// count in the receiver's prefetch until the transaction is over: acknowledged when it is committed, handed out
    /// again at once, without counting as an attempt, when it is not.
    ///
    /// # Errors
    /// `LeaseLost`: one is no longer the receiver's. `Unsupported`: the receiver can take part in no transaction, as that
    /// of a topic without a group. `InvalidInput`: the receiver is of another client. These messages are given back, and the
    /// transaction cannot be committed any more: [`commit`](Self::commit) gives it up and returns this error.
    pub fn ack(&mut self, messages: impl Enlist) -> Result<()> {
        let open = self.open()?;
        let answered = open.ack(messages.tickets().into_iter().filter_map(Ticket::into_held).collect());
        answered.map_err(|e| open.named(e, "ack"))
    }

    /// Commits: everything that was sent in the transaction becomes visible, and what was acknowledged in it is, or
    /// nothing of it.
    ///
    /// # Errors
    /// [`outcome`](Error::outcome) is `Unknown` where it may have happened: the broker did not answer any more. Anything
    /// else means that nothing of it happened. Either way the transaction is over: messages that it was to acknowledge come
    /// again if it has not happened, where that is unknown as soon as it is known. [`is_retryable`](Error::is_retryable)
    /// says whether another transaction may succeed. `LeaseLost`: a receiver lost messages. `Conflict`: another instance
    /// has opened the name. `Timeout`, `Connection`, and what became of the messages that were sent.
    ///
    /// # Cancel safety
    /// Dropped, the commit goes on, and only its result is lost.
    pub async fn commit(mut self) -> Result<()> {
        let Some(open) = self.0.take() else { return Ok(()) };
        let runtime = open.runtime().clone();
        let done = runtime.spawn(open.commit()).await;
        done.unwrap_or_else(|e| Err(lost(e).with_operation("commit").with_outcome(Outcome::Unknown)))
    }

    /// Gives the transaction up: nothing that was sent in it becomes visible, and messages that it was to acknowledge are
    /// handed out again.
    ///
    /// # Errors
    /// The broker could not be told. It has given up all the same, and finds out at the latest when the transaction
    /// expires; until then readers wait for what stands behind.
    ///
    /// # Cancel safety
    /// Dropped, it is given up all the same.
    pub async fn abort(mut self) -> Result<()> {
        let Some(open) = self.0.take() else { return Ok(()) };
        let runtime = open.runtime().clone();
        runtime.spawn(open.abort()).await.unwrap_or_else(|e| Err(lost(e).with_operation("abort")))
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            let runtime = open.runtime().clone();
            runtime.spawn(async move {
                if let Err(error) = open.abort().await {
                    tracing::debug!(%error, "a dropped transaction could not be given up");
                }
            });
        }
    }
}
