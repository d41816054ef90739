//! The contract of a broker that has requests of its own.

use std::fmt;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::address::Address;
use crate::error::Result;
use crate::message::Message;

/// Sends requests and waits for their replies, where the broker has a way of its own for that.
///
/// # Contract
/// * Request and reply are at most once: neither is stored for a side that is gone, nothing is sent twice. Whoever
///   needs more repeats the request, and the replier has to bear that.
/// * The replier is an ordinary receiver. It finds [`Message::get_reply_to`] and [`Message::get_correlation_id`], and
///   answers with any sender and a message to that address, [`Message::to`], which carries that correlation id.
/// * A reply that comes late or twice, or belongs to nobody here, is dropped.
/// * Every wait is bounded by the deadline of the request.
#[async_trait]
pub trait Requests: fmt::Debug + Send + Sync + 'static {
    /// Sends a request to a queue and waits for the first reply. May be called concurrently; many share a connection.
    ///
    /// The address counts, not [`Message::destination`]. `correlation_id` and `reply_to` of the message are replaced.
    /// A message without a time to live gets the time until the deadline, so that nobody works on what is not waited
    /// for any more.
    ///
    /// # Errors
    /// * `Unroutable`, at once: the queue does not exist. `Rejected`: it refused the message.
    /// * `Timeout`: no reply before the deadline.
    /// * `Connection`: the connection broke, or there was none until the deadline. `Throttled`: the broker takes no
    ///   messages, or too many requests are pending.
    /// * `Unsupported` for a topic; `TooLarge`; `Closed`.
    ///
    /// [`Error::outcome`](crate::Error::outcome) is `Unknown` where the request may have reached the queue.
    ///
    /// # Cancel safety
    /// When the future is dropped the request may have been sent; its reply is dropped. Nothing is leaked.
    async fn request(&self, to: &Address, message: Message, deadline: Instant) -> Result<Message>;
}
