//! Messages that were handed out, and their answers.

use std::error::Error as StdError;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::consumer::{Position, Received};
use crate::dead_letter::Reason;
use crate::error::Result;
use crate::hold::Hold;
use crate::inbox::{Held, Inbox};
use crate::lease::Fetch;
use crate::message::Message;
use crate::observe::{Processing, settle};

mod batch;

pub use batch::{Batch, BatchIntoIter, BatchItem};

/// What came of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answered {
    /// The answer is recorded and goes to the broker behind the scenes.
    Accepted,
    /// The message was no longer this receiver's: its lease ran out or its connection is gone. Nothing was touched;
    /// the message comes again.
    LeaseLost,
    /// The delay is longer than this address can; the message comes again after the default backoff instead.
    Unsupported,
}

/// How long a message may still be worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Extended {
    /// Until this moment; renewed by the library meanwhile, up to `max_handler_time`.
    Until(Instant),
    /// As long as the connection lives.
    WhileConnected,
}

/// A message that was handed out and waits for its answer.
///
/// Each answer takes the delivery, so that answering twice does not compile. Dropped without an answer, it is retried
/// with the default backoff, counted as a failed attempt. Answers never block, and may be given anywhere: in another
/// task, on another thread, outside the runtime.
///
/// ```
/// # use queue_core::{Client, memory};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> queue_core::Result<()> {
/// # let client = Client::connect_with("memory://", &[memory::DRIVER]).await?;
/// # client.sender("orders").await?.send("hello").await?;
/// let mut inbox = client.receiver("orders").await?;
/// let delivery = inbox.receive().await?;
/// match delivery.text() {
///     Some("hello") => delivery.ack(),
///     _ => delivery.reject("not a greeting"),
/// };
/// # Ok(())
/// # }
/// ```
#[must_use = "dropped without an answer, the message is retried"]
pub struct Delivery(Ticket);

/// What answers a message that was taken apart by [`Delivery::split`].
#[must_use = "dropped without an answer, the message is retried"]
pub struct Ticket {
    /// `None` once answered.
    held: Option<Held>,
}

impl Ticket {
    pub(crate) fn new(held: Held) -> Self {
        Self { held: Some(held) }
    }

    /// Leaves the answer to a transaction.
    pub(crate) fn into_held(mut self) -> Option<Held> {
        self.held.take()
    }

    fn answer(mut self, name: &'static str, answer: impl FnOnce(&Arc<Inbox>, Held) -> Answered) -> Answered {
        match self.held.take() {
            Some(held) => {
                let inbox = held.fetch.inbox.clone();
                let _span = settle(inbox.subject(), name, &held.message);
                answer(&inbox, held)
            }
            None => Answered::LeaseLost,
        }
    }

    /// The message is done and does not come again.
    pub fn ack(mut self) -> Answered {
        match self.held.take() {
            Some(held) => {
                let _span = settle(held.fetch.inbox.subject(), "ack", &held.message);
                held.fetch.inbox.ack(&held)
            }
            None => Answered::LeaseLost,
        }
    }

    /// The message failed and comes again after the default backoff, with the next attempt; after `max_deliveries`
    /// attempts it goes to the dead letters.
    pub fn retry(self) -> Answered {
        self.answer("retry", |inbox, held| inbox.retry(held, None, failed))
    }

    /// As [`retry`](Self::retry), after this delay at the earliest.
    pub fn retry_after(self, delay: Duration) -> Answered {
        self.answer("retry", |inbox, held| inbox.retry(held, Some(delay), failed))
    }

    /// As [`retry`](Self::retry), after this delay at the earliest if one is given; in the last attempt the dead letter
    /// has this reason and its causes.
    pub fn fail(self, reason: impl Into<Box<dyn StdError + Send + Sync>>, delay: Option<Duration>) -> Answered {
        let reason = reason.into();
        self.answer("retry", |inbox, held| inbox.retry(held, delay, |_| Reason::new(&*reason)))
    }

    /// The message can never be processed: it goes to the dead letters with this reason and its causes.
    pub fn reject(self, reason: impl Into<Box<dyn StdError + Send + Sync>>) -> Answered {
        let reason = Reason::new(&*reason.into());
        self.answer("reject", |inbox, held| inbox.dead_letter(held, reason))
    }

    /// Gives the message back for another receiver, at once, and not counted as an attempt where the broker can tell.
    pub fn release(self) -> Answered {
        self.answer("release", |inbox, held| inbox.release(held))
    }

    /// The message comes again to this receiver after this delay, as the attempt that it is: what it needs is away. Until then
    /// it is leased, up to `max_handler_time` since it was fetched, and holds its key; a receiver that stops gives it back.
    pub fn postpone(self, delay: Duration) -> Answered {
        self.answer("postpone", |inbox, held| inbox.postpone(held, delay))
    }

    /// As [`ack`](Self::ack), and waits until the broker has it as far as the protocol can tell.
    ///
    /// # Errors
    /// The broker refused the answer, or could not be asked: the message may come again.
    ///
    /// # Cancel safety
    /// Dropped, the ack goes out all the same.
    pub async fn ack_confirmed(self) -> Result<Answered> {
        let Some(inbox) = self.held.as_ref().map(|held| held.fetch.inbox.clone()) else {
            return Ok(Answered::LeaseLost);
        };
        let answered = self.ack();
        if answered == Answered::Accepted {
            inbox.flush_answers().await?;
        }
        Ok(answered)
    }

    /// Watches over the message while it is worked on: extends its lease, tells when it is lost. Cheap.
    #[must_use]
    pub fn hold(&self) -> Hold {
        Hold(self.held.as_ref().map(|held| (held.fetch.clone(), held.index, held.token)))
    }

    /// As [`Hold::extend`].
    ///
    /// # Errors
    /// As [`Hold::extend`].
    pub async fn extend(&self, by: Duration) -> Result<Extended> {
        self.hold().extend(by).await
    }

    /// As [`Hold::lost`]. Cancel safe.
    pub async fn lost(&self) {
        self.hold().lost().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            let inbox = held.fetch.inbox.clone();
            inbox.dropped(held);
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut s = f.debug_struct("Ticket");
        if let Some(held) = &self.held {
            s.field("attempt", &held.attempt).field("position", &held.position);
        }
        s.finish_non_exhaustive()
    }
}

fn failed(attempts: String) -> Reason {
    Reason::text(format!("failed in {attempts}"))
}

/// What a deref shows of a delivery that was answered: nothing can reach it.
fn nothing() -> &'static Message {
    static NOTHING: std::sync::LazyLock<Message> = std::sync::LazyLock::new(Message::default);
    &NOTHING
}

macro_rules! answers {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*);)*) => {$(
        $(#[$doc])*
        pub fn $name(self, $($arg: $type),*) -> Answered {
            self.0.$name($($arg),*)
        }
    )*};
}

impl Delivery {
    pub(crate) fn new(held: Held) -> Self {
        Self(Ticket::new(held))
    }

    /// What answers it, without the message.
    pub(crate) fn into_ticket(self) -> Ticket {
        self.0
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> &Message {
        match &self.0.held {
            Some(held) => &held.message,
            None => nothing(),
        }
    }

    /// Which attempt this is, from 1 on.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.held.as_ref().map_or(1, |h| h.attempt)
    }

    /// Whether this is the last of `max_deliveries` attempts: a failure now makes it a dead letter.
    #[must_use]
    pub fn is_last_attempt(&self) -> bool {
        self.0.held.as_ref().is_some_and(|held| held.attempt >= held.fetch.inbox.config.max_deliveries)
    }

    /// Where the message stood.
    #[must_use]
    pub fn position(&self) -> Position {
        self.0.held.as_ref().map_or_else(Position::default, |h| h.position)
    }

    /// When the lease ends unless it is renewed; `None` where it is held while connected.
    #[must_use]
    pub fn lease(&self) -> Option<Instant> {
        self.0.held.as_ref()?.fetch.until(self.0.held.as_ref()?.index)
    }

    /// Observes the work on the message, for programs that do it without a worker; see [`Processing`].
    pub fn processing(&self) -> Processing {
        self.0
            .held
            .as_ref()
            .map(|held| held.fetch.inbox.subject())
            .map_or_else(Processing::default, |subject| Processing::of_one(subject, self.message()))
    }

    /// Takes message and answer apart; the payload stays shared.
    pub fn split(self) -> (Message, Ticket) {
        (self.message().clone(), self.0)
    }

    answers! {
        /// The message is done and does not come again.
        ack();
        /// The message failed and comes again after the default backoff, with the next attempt; after
        /// `max_deliveries` attempts it goes to the dead letters.
        retry();
        /// As [`retry`](Self::retry), after this delay at the earliest.
        retry_after(delay: Duration);
        /// Gives the message back for another receiver, at once, and not counted as an attempt where the broker can
        /// tell.
        release();
        /// The message comes again to this receiver after this delay, as the attempt that it is: what it needs is away.
        /// Until then it is leased and holds its key; a receiver that stops gives it back.
        postpone(delay: Duration);
    }

    /// As [`retry`](Self::retry), after this delay at the earliest if one is given; in the last attempt the dead letter
    /// has this reason and its causes.
    pub fn fail(self, reason: impl Into<Box<dyn StdError + Send + Sync>>, delay: Option<Duration>) -> Answered {
        self.0.fail(reason, delay)
    }

    /// The message can never be processed: it goes to the dead letters with this reason and its causes.
    pub fn reject(self, reason: impl Into<Box<dyn StdError + Send + Sync>>) -> Answered {
        self.0.reject(reason)
    }

    /// As [`ack`](Self::ack), and waits until the broker has it as far as the protocol can tell.
    ///
    /// # Errors
    /// The broker refused the answer, or could not be asked: the message may come again.
    ///
    /// # Cancel safety
    /// Dropped, the ack goes out all the same.
    pub async fn ack_confirmed(self) -> Result<Answered> {
        self.0.ack_confirmed().await
    }

    /// Watches over the message while it is worked on: extends its lease, tells when it is lost. Cheap.
    #[must_use]
    pub fn hold(&self) -> Hold {
        self.0.hold()
    }

    /// As [`Hold::extend`].
    ///
    /// # Errors
    /// As [`Hold::extend`].
    pub async fn extend(&self, by: Duration) -> Result<Extended> {
        self.0.extend(by).await
    }

    /// As [`Hold::lost`]. Cancel safe.
    pub async fn lost(&self) {
        self.0.lost().await;
    }
}

impl Deref for Delivery {
    type Target = Message;

    fn deref(&self) -> &Message {
        self.message()
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message", self.message())
            .field("attempt", &self.attempt())
            .finish_non_exhaustive()
    }
}

/// The message with all that answers it. Undecodable ones never get this far.
pub(crate) fn hold(fetch: &Arc<Fetch>, index: u32, item: Received) -> Held {
    let Received { message, token, attempt, position, .. } = item;
    Held {
        fetch: fetch.clone(),
        index,
        token,
        attempt,
        position,
        message: message.unwrap_or_default(),
        laneless: false,
    }
}
