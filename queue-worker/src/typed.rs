//! Values instead of messages.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use queue_core::{CloseReport, Delivery, Error, ErrorKind, Message, Receipt, Receiver, Result, Sender};

use crate::codec::{Decode, Encode, Json};
use crate::failure::Failure;
use crate::job::Job;
use crate::payload::FromJob;

/// A value of a payload, for handlers: `async fn ship(Typed(order, ..): Typed<Order, MessagePack>)`. A message that says it is
/// something else, or that cannot be read, is a dead letter with the decoder's error. `Json<Order>` is the same for JSON.
pub struct Typed<T, C = Json>(pub T, pub PhantomData<fn() -> C>);

impl<T, C> Typed<T, C> {
    /// A value, to be replied with.
    pub fn new(value: T) -> Self {
        Self(value, PhantomData)
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T: fmt::Debug, C> fmt::Debug for Typed<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Typed").field(&self.0).finish()
    }
}

impl<T, C: Decode<T>> FromJob for Typed<T, C> {
    fn from_job(job: &Job) -> std::result::Result<Self, Failure> {
        C::value(job.message()).map(|value| Self(value, PhantomData)).map_err(Failure::permanent)
    }
}

/// Sends values of one type, with the content type of their codec.
///
/// ```
/// # use queue_core::{Client, memory};
/// use queue_worker::{TypedReceiver, TypedSender};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Order {
///     id: u32,
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> queue_core::Result<()> {
/// # let client = Client::connect_with("memory://", &[memory::DRIVER]).await?;
/// let orders = TypedSender::<Order>::new(client.sender("orders").await?);
/// orders.send(&Order { id: 7 }).await?;
///
/// let mut inbox = TypedReceiver::<Order>::new(client.receiver("orders").await?);
/// let (order, delivery) = inbox.receive().await?;
/// assert_eq!(order.id, 7);
/// delivery.ack();
/// # Ok(())
/// # }
/// ```
pub struct TypedSender<T, C = Json> {
    sender: Sender,
    types: PhantomData<fn(&T) -> C>,
}

impl<T, C: Encode<T>> TypedSender<T, C> {
    /// Sends by this sender.
    #[must_use]
    pub fn new(sender: Sender) -> Self {
        Self { sender, types: PhantomData }
    }

    /// The message of a value, to give it a key or headers before it goes through [`sender`](Self::sender).
    ///
    /// # Errors
    /// `Codec`: the value has no form in this format.
    pub fn message(&self, value: &T) -> Result<Message> {
        C::message(value, &self.sender.capabilities()).map_err(|error| {
            let why = format!("the value cannot be sent as {}: {error}", C::CONTENT_TYPE);
            Error::new(ErrorKind::Codec, why).with_operation("encode").with_context("address", self.sender.address())
        })
    }

    /// Sends a value.
    ///
    /// # Errors
    /// `Codec`, and those of [`Sender::send`].
    ///
    /// # Cancel safety
    /// As [`Sender::send`].
    pub async fn send(&self, value: &T) -> Result<Receipt> {
        self.sender.send(self.message(value)?).await
    }

    /// What it sends by.
    #[must_use]
    pub fn sender(&self) -> &Sender {
        &self.sender
    }
}

impl<T, C> fmt::Debug for TypedSender<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedSender").field("sender", &self.sender).finish_non_exhaustive()
    }
}

/// Receives values of one type. What cannot be read goes to the dead letters with the decoder's error, and the next one is
/// received. See [`TypedSender`].
pub struct TypedReceiver<T, C = Json> {
    receiver: Receiver,
    types: PhantomData<fn() -> (T, C)>,
}

impl<T, C: Decode<T>> TypedReceiver<T, C> {
    /// Receives by this receiver.
    #[must_use]
    pub fn new(receiver: Receiver) -> Self {
        Self { receiver, types: PhantomData }
    }

    /// Waits for the next value, and what answers it.
    ///
    /// # Errors
    /// Those of [`Receiver::receive`].
    ///
    /// # Cancel safety
    /// Dropped, no message is lost.
    pub async fn receive(&mut self) -> Result<(T, Delivery)> {
        loop {
            let delivery = self.receiver.receive().await?;
            match C::value(&delivery) {
                Ok(value) => return Ok((value, delivery)),
                Err(error) => {
                    tracing::debug!(%error, "a message that cannot be read is a dead letter");
                    delivery.reject(error);
                }
            }
        }
    }

    /// What it receives by.
    #[must_use]
    pub fn receiver(&mut self) -> &mut Receiver {
        &mut self.receiver
    }

    /// As [`Receiver::close`].
    pub async fn close(&mut self, within: Duration) -> CloseReport {
        self.receiver.close(within).await
    }
}

impl<T, C> fmt::Debug for TypedReceiver<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedReceiver").field("receiver", &self.receiver).finish_non_exhaustive()
    }
}
