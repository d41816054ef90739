//! What handlers answer requests with.

use std::fmt;

use queue_core::{Capabilities, ErrorKind, Message, Replier, request};

use crate::codec::Encode;
use crate::failure::{BoxError, Failure, Panicked};
#[cfg(feature = "json")]
use crate::payload::Json;
use crate::payload::Payload;
use crate::typed::Typed;

/// What a handler answers: nothing, or a message.
#[derive(Clone, PartialEq)]
pub struct Reply(Option<Message>);

impl Reply {
    /// A message, which gets address and correlation id of whoever asks.
    #[must_use]
    pub fn new(message: impl Into<Message>) -> Self {
        Self(Some(message.into()))
    }

    /// Nothing: whoever asks waits in vain, or has their answer from elsewhere.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reply").field(&self.0).finish()
    }
}

/// What a handler may return that becomes the reply to a request: implement it for types of your own.
///
/// ```
/// use queue_core::Message;
/// use queue_worker::{Failure, IntoReply, Reply};
///
/// /// A price in cents.
/// struct Price(u64);
///
/// impl IntoReply for Price {
///     fn into_reply(self) -> Result<Reply, Failure> {
///         Ok(Reply::new(Message::new(self.0.to_string()).content_type("text/plain")))
///     }
/// }
/// ```
pub trait IntoReply {
    /// Makes the reply. Made for every message, whether somebody asks for a reply or not.
    ///
    /// # Errors
    /// The value cannot be sent. Mostly that is permanent: it cannot be in the next attempt either.
    fn into_reply(self) -> Result<Reply, Failure>;
}

impl IntoReply for () {
    fn into_reply(self) -> Result<Reply, Failure> {
        Ok(Reply::none())
    }
}

impl IntoReply for Reply {
    fn into_reply(self) -> Result<Reply, Failure> {
        Ok(self)
    }
}

impl IntoReply for Message {
    fn into_reply(self) -> Result<Reply, Failure> {
        Ok(Reply::new(self))
    }
}

impl IntoReply for Payload<String> {
    fn into_reply(self) -> Result<Reply, Failure> {
        Ok(Reply::new(Message::new(self.0).content_type("text/plain")))
    }
}

impl IntoReply for Payload<Vec<u8>> {
    fn into_reply(self) -> Result<Reply, Failure> {
        Ok(Reply::new(self.0))
    }
}

#[cfg(feature = "json")]
impl<T: serde::Serialize> IntoReply for Json<T> {
    fn into_reply(self) -> Result<Reply, Failure> {
        encoded::<T, crate::codec::Json>(&self.0)
    }
}

impl<T, C: Encode<T>> IntoReply for Typed<T, C> {
    fn into_reply(self) -> Result<Reply, Failure> {
        encoded::<T, C>(&self.0)
    }
}

fn encoded<T, C: Encode<T>>(value: &T) -> Result<Reply, Failure> {
    let why = |error: BoxError| Failure::permanent(format!("the reply cannot be sent as {}: {error}", C::CONTENT_TYPE));
    // Of whoever asked nothing is known.
    C::message(value, &Capabilities::default()).map(Reply::new).map_err(why)
}

/// Whoever asked, by what the request says.
pub(crate) struct Asker {
    replier: Replier,
    /// The request without what it asks for.
    request: Message,
}

impl Asker {
    /// `None` where nobody asks.
    pub(crate) fn of(message: &Message, replier: impl FnOnce() -> Replier) -> Option<Box<Self>> {
        let mut request = Message::default().reply_to(message.get_reply_to()?.to_owned());
        if let Some(id) = message.get_correlation_id().or(message.get_id()) {
            request = request.correlation_id(id.to_owned());
        }
        Some(Box::new(Self { replier: replier(), request }))
    }

    /// Sends a reply. What cannot be sent ever is permanent; else the request is tried again. An address that this login may
    /// not write to is a stranger's choice, and as good as none.
    pub(crate) async fn reply(&self, Reply(reply): Reply) -> Result<(), Failure> {
        let Some(reply) = reply else { return Ok(()) };
        match self.replier.reply(&self.request, reply).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::Unauthorized => {
                tracing::warn!(%error, "a request names a queue that may not be replied to; the reply is dropped");
                Ok(())
            }
            Err(error) => Err(match error.kind() {
                ErrorKind::TooLarge | ErrorKind::Unsupported | ErrorKind::Rejected | ErrorKind::InvalidInput => {
                    Failure::permanent(error)
                }
                _ => Failure::temporary(error),
            }),
        }
    }

    /// What whoever asks is told of a failure: its own text, without its causes.
    pub(crate) fn why(failure: &Failure) -> String {
        match failure.error().downcast_ref::<Panicked>() {
            // Whatever a panic shows is nobody's business.
            Some(_) => "the handler panicked".to_owned(),
            None => failure.to_string(),
        }
    }

    /// Tells that there is no answer.
    pub(crate) async fn tell(&self, is_permanent: bool, why: &str) {
        let sort = if is_permanent { request::PERMANENT } else { request::EXHAUSTED };
        if let Err(error) = self.replier.reply_error(&self.request, sort, why).await {
            tracing::debug!(%error, "whoever asks is not told that there is no answer");
        }
    }
}
