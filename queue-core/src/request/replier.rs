//! Whoever answers requests.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::{ERROR, REPLIES};
use crate::address::{Address, AddressKind, Source};
use crate::client::ClientInner;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::message::Message;
use crate::observe::Subject;

/// Most bytes of the text of an error.
const MOST_TEXT: usize = 4096;
const OPERATION: &str = "reply";
const DEADLINE: Duration = Duration::from_secs(30);

/// What became of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Replied {
    /// The broker has it.
    Sent,
    /// There is nobody to reply to: the request names no address, none that may be replied to, or one that is gone. The
    /// reply is dropped.
    Nobody,
}

/// Answers the requests of a receiver: [`Receiver::replier`](crate::Receiver::replier). Cheap to clone.
///
/// A reply goes to the address that the request names, which comes from a stranger: only the plain name of a queue is
/// taken (no topic, no URL, no ARN, no dead letters, nothing else that the library derives, not the queue of the request itself), and nothing is
/// declared for it. What the program's own login may write to, a stranger can so have written to.
///
/// ```
/// # use queue_core::{Client, Message, memory};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> queue_core::Result<()> {
/// let client = Client::connect_with("memory://", &[memory::DRIVER]).await?;
/// let mut inbox = client.receiver("prices").await?;
/// let replier = inbox.replier();
/// let answering = async {
///     let request = inbox.receive().await?;
///     replier.reply(&request, Message::new("1.07")).await?; // before the ack, so that no request is lost
///     request.ack();
///     Ok(())
/// };
/// let (reply, answered) = tokio::join!(client.request("prices", "EUR/CHF"), answering);
/// assert_eq!(reply?.text(), Some("1.07"));
/// # answered
/// # }
/// ```
#[derive(Clone)]
pub struct Replier {
    client: Arc<ClientInner>,
    source: Source,
}

impl Replier {
    pub(crate) fn new(client: Arc<ClientInner>, source: Source) -> Self {
        Self { client, source }
    }

    /// Replies to a request: sets address and correlation id of the reply, and waits until the broker has it. A request
    /// without a correlation id is answered with its id in that place.
    ///
    /// # Errors
    /// Those of [`Sender::send`](crate::Sender::send), but for an address that is gone; all within 30 s.
    ///
    /// # Cancel safety
    /// As [`Sender::send`](crate::Sender::send).
    pub async fn reply(&self, request: &Message, reply: Message) -> Result<Replied> {
        let Some(to) = request.get_reply_to() else { return Ok(Replied::Nobody) };
        let correlation_id = request.get_correlation_id().or(request.get_id()).map(str::to_owned);
        let reply = match correlation_id {
            Some(id) => reply.correlation_id(id),
            None => reply,
        };
        self.send(to, reply).await.map_err(|e| e.with_operation(OPERATION))
    }

    /// Replies that there is no answer: whoever asks gets an error of kind [`Remote`](ErrorKind::Remote) with this text, of
    /// which 4 KiB are sent. `sort` is one word, as [`PERMANENT`](super::PERMANENT).
    ///
    /// # Errors
    /// As [`reply`](Self::reply).
    ///
    /// # Cancel safety
    /// As [`reply`](Self::reply).
    pub async fn reply_error(&self, request: &Message, sort: &'static str, why: &str) -> Result<Replied> {
        let end = (0..=MOST_TEXT.min(why.len())).rev().find(|end| why.is_char_boundary(*end)).unwrap_or(0);
        let text = why[..end].to_owned();
        self.reply(request, Message::new(text).content_type("text/plain").header(ERROR, sort)).await
    }

    async fn send(&self, to: &str, mut reply: Message) -> Result<Replied> {
        let Some(address) = self.plain(to) else {
            tracing::debug!(reply_to = to, "a request names no queue that may be replied to; the reply is dropped");
            return Ok(Replied::Nobody);
        };
        // It goes where the request says, whatever it was made from.
        reply.clear_destination();
        reply.clear_reply_to();
        match timeout(DEADLINE, self.send_to(address, reply)).await {
            Ok(sent) => sent,
            Err(_) => {
                Err(Error::new(ErrorKind::Timeout, "the reply was not sent in time").with_outcome(Outcome::Unknown))
            }
        }
    }

    async fn send_to(&self, address: Address, reply: Message) -> Result<Replied> {
        let (desk, client) = (&self.client.desk, &*self.client);
        let (way, reply) = if client.broker.requests().is_some() {
            // Its reply addresses are no queues to open a sender to: any sender sends there.
            (desk.ways.to(client, &self.own()).await?, reply.to(address))
        } else {
            match desk.ways.to(client, &address).await {
                Ok(way) => (way, reply),
                Err(error) if is_gone(&error) || error.kind() == ErrorKind::InvalidInput => return Ok(nobody(&error)),
                Err(error) => return Err(error),
            }
        };
        // One name for all reply addresses, which are many and strangers' choice.
        let subject = Subject::address(client.system, &Address::derived(AddressKind::Queue, REPLIES));
        match desk.ways.send(&subject, &way, reply).await {
            Ok(()) => Ok(Replied::Sent),
            Err(error) if is_gone(&error) => Ok(nobody(&error)),
            Err(error) => Err(error),
        }
    }

    /// The queue that replies may go to.
    fn plain(&self, name: &str) -> Option<Address> {
        let is_more = name.contains("://") || ["topic:", "queue:", "arn:"].iter().any(|kind| name.starts_with(kind));
        let is_grave = name.strip_suffix(".fifo").unwrap_or(name).ends_with("-dlq");
        let address = Address::queue(name).ok().filter(|_| !is_more && !is_grave)?;
        // By its name alone: on a log queue and topic of a name are the same.
        (address.name() != self.source.address.name()).then_some(address)
    }

    /// An address that is there.
    fn own(&self) -> Address {
        match self.source.queue_name() {
            Some(queue) => Address::derived(AddressKind::Queue, &queue),
            None => self.source.address.clone(),
        }
    }
}

fn is_gone(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unroutable)
}

fn nobody(error: &Error) -> Replied {
    tracing::debug!(%error, "nobody waits for this reply; it is dropped");
    Replied::Nobody
}

impl fmt::Debug for Replier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replier").field("source", &self.source).finish_non_exhaustive()
    }
}
