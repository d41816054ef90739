//! The contract of transactions.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::address::Address;
use crate::broker::{CloseReport, ProducerOptions};
use crate::consumer::AckToken;
use crate::error::{Error, Result};
use crate::producer::Producer;

/// What transactions are opened with.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TransactionOptions {
    /// How long a message of a transaction may take in all.
    pub deadline: Duration,
    /// How long a transaction may stay open until the broker gives it up.
    pub expires_after: Duration,
}

impl Default for TransactionOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), expires_after: Duration::from_secs(60) }
    }
}

/// A consumer as the transactions of its broker know it: opaque to everybody else, wrappers pass it on.
#[derive(Clone)]
pub struct Participant(Arc<dyn Any + Send + Sync>);

impl Participant {
    /// Hides what the adapter's transactions need of a consumer.
    #[must_use]
    pub fn new(inside: Arc<dyn Any + Send + Sync>) -> Self {
        Self(inside)
    }

    /// What is inside; `None` where it is of another adapter.
    #[must_use]
    pub fn downcast<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.0.clone().downcast().ok()
    }
}

impl fmt::Debug for Participant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Participant")
    }
}

/// Messages of one consumer that are acknowledged by a transaction.
#[derive(Debug, Clone)]
pub struct Acks {
    /// The consumer, by [`Consumer::participant`](crate::Consumer::participant).
    pub participant: Participant,
    /// Its messages, each unanswered.
    pub tokens: Vec<AckToken>,
}

/// Why a transaction was not committed, or may not have been.
pub struct Uncommitted {
    /// Why. Its [`outcome`](Error::outcome) is [`Outcome::Unknown`](crate::Outcome::Unknown) where the transaction may
    /// have happened, and anything else where it has not.
    pub error: Error,
    /// Where that is not decided yet: resolves when the messages that the transaction was to acknowledge are either
    /// acknowledged, which makes their tokens stale, or known to be not. Nobody answers them before. It borrows nothing.
    pub known: Option<BoxFuture<'static, ()>>,
}

impl fmt::Debug for Uncommitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uncommitted").field("error", &self.error).field("known", &self.known.is_some()).finish()
    }
}

impl From<Error> for Uncommitted {
    fn from(error: Error) -> Self {
        Self { error, known: None }
    }
}

/// Opens transactions, where the capability `transactions` is declared.
#[async_trait]
pub trait Transactions: fmt::Debug + Send + Sync {
    /// Opens the transactions of this name, and ends those of whoever has opened that name before: their next call is
    /// `Conflict`, and what they had open is given up.
    ///
    /// # Errors
    /// `Unauthorized`; `Connection` or `Timeout` within the deadline of the options.
    async fn open(&self, name: &str, options: &TransactionOptions) -> Result<Arc<dyn TransactionSession>>;
}

/// The transactions of one name, one at a time.
///
/// # Contract
/// * [`begin`](Self::begin), [`commit`](Self::commit) and [`abort`](Self::abort) are called one after the other, never
///   concurrently. The handle lets none of their futures go before it is done.
/// * Every wait is bounded by the deadline that is given, and little more.
/// * An error of `begin` leaves nothing open. One that another instance of the name caused is `Conflict`, names the
///   transactions in its context (`transactions`), and so is every call after it; any other error leaves it possible to
///   begin again, for which the adapter makes anew what it needs to.
#[async_trait]
pub trait TransactionSession: fmt::Debug + Send + Sync + 'static {
    /// A producer whose messages belong to the transaction that is open when they are sent; without one they fail. Their
    /// verdict says that the broker has them, not that anybody will read them.
    async fn producer(&self, to: &Address, options: &ProducerOptions) -> Result<Arc<dyn Producer>>;

    /// Begins a transaction.
    async fn begin(&self, deadline: Instant) -> Result<()>;

    /// Ends the transaction: everything that was sent in it becomes visible and these messages are acknowledged, or
    /// nothing of it. The messages are unanswered until it is decided, and acknowledged by this where it is committed.
    ///
    /// Whatever comes of it, the transaction is over: one that is not committed is given up, without a call of `abort`.
    ///
    /// # Errors
    /// `LeaseLost` where a message is no longer its receiver's; what the broker says; `Timeout`. The outcome of the error
    /// tells whether it may have happened.
    async fn commit(&self, acks: Vec<Acks>, deadline: Instant) -> Result<(), Uncommitted>;

    /// Gives the transaction up: nothing that was sent in it becomes visible, now or later, also where this fails.
    ///
    /// # Errors
    /// The broker could not be told; it finds out by itself, at the latest when the transaction expires.
    async fn abort(&self, deadline: Instant) -> Result<()>;

    /// Gives up what is open and lets go of the name. Idempotent.
    async fn close(&self, deadline: Instant) -> CloseReport;
}
