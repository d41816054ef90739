//! The message: a payload, a key, headers and properties.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::address::Address;
use crate::headers::{HeaderValue, Headers, Text};

/// A message to send, or one that arrived.
///
/// What nobody sets costs nothing: no allocation, no clock, no byte on the wire. Cloning shares the payload.
///
/// ```
/// use std::time::Duration;
/// use queue_core::Message;
///
/// let message = Message::new("hello").key("user-7").header("tenant", "acme").delay(Duration::from_secs(5));
/// assert_eq!(message.payload().as_ref(), b"hello");
/// assert_eq!(message.get_key().unwrap().as_ref(), b"user-7");
/// ```
#[derive(Clone, Default, PartialEq)]
pub struct Message {
    payload: Bytes,
    key: Option<Bytes>,
    headers: Headers,
    /// Here, because every message of some brokers has one.
    timestamp: Option<SystemTime>,
    extra: Option<Arc<Extra>>,
}

#[derive(Clone, Default, PartialEq)]
struct Extra {
    tombstone: bool,
    to: Option<Address>,
    subject: Option<Text>,
    id: Option<Text>,
    content_type: Option<Text>,
    correlation_id: Option<Text>,
    reply_to: Option<Text>,
    sent_at: Option<SystemTime>,
    delay: Option<Duration>,
    ttl: Option<Duration>,
    priority: Option<u8>,
    native: Headers,
}

impl Message {
    /// Makes a message with this payload.
    #[must_use]
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self { payload: payload.into(), ..Self::default() }
    }

    /// Makes a tombstone: the deletion of `key` in a compacted log (Kafka's null value). Distinct from an empty payload.
    #[must_use]
    pub fn tombstone(key: impl Into<Bytes>) -> Self {
        let mut message = Self { key: Some(key.into()), ..Self::default() };
        message.extra_mut().tombstone = true;
        message
    }

    /// Makes this message a tombstone: the payload goes, the rest stays.
    #[must_use]
    pub fn into_tombstone(mut self) -> Self {
        self.payload = Bytes::new();
        self.extra_mut().tombstone = true;
        self
    }

    fn extra_mut(&mut self) -> &mut Extra {
        Arc::make_mut(self.extra.get_or_insert_with(Arc::default))
    }

    /// The payload; empty for a tombstone.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Takes the payload out of the message.
    #[must_use]
    #[inline]
    pub fn into_payload(self) -> Bytes {
        self.payload
    }

    /// The payload as text, if it is UTF-8.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.payload).ok()
    }

    /// Whether this is a tombstone.
    #[must_use]
    #[inline]
    pub fn is_tombstone(&self) -> bool {
        self.extra.as_ref().is_some_and(|e| e.tombstone)
    }

    /// Sets the key: messages with one key keep their order where the broker can, and go to one partition.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The key.
    #[must_use]
    #[inline]
    pub fn get_key(&self) -> Option<&Bytes> {
        self.key.as_ref()
    }

    /// Adds a header behind those already there.
    #[must_use]
    pub fn header(mut self, name: impl Into<Text>, value: impl Into<HeaderValue>) -> Self {
        self.headers.append(name, value);
        self
    }

    /// Replaces all headers.
    #[must_use]
    pub fn with_headers(mut self, headers: Headers) -> Self {
        self.headers = headers;
        self
    }

    /// The headers.
    #[must_use]
    #[inline]
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The headers, to change them.
    pub fn headers_mut(&mut self) -> &mut Headers {
        &mut self.headers
    }

    /// Sends to this address instead of the sender's own, without declaring anything (replies).
    #[must_use]
    pub fn to(mut self, address: Address) -> Self {
        self.extra_mut().to = Some(address);
        self
    }

    /// The address that overrides the sender's own.
    #[must_use]
    pub fn destination(&self) -> Option<&Address> {
        self.extra.as_ref()?.to.as_ref()
    }

    /// Removes the address that overrides the sender's own.
    pub fn clear_destination(&mut self) {
        if self.destination().is_some() {
            self.extra_mut().to = None;
        }
    }

    /// Removes the address that a reply is asked for at.
    pub(crate) fn clear_reply_to(&mut self) {
        if self.get_reply_to().is_some() {
            self.extra_mut().reply_to = None;
        }
    }

    /// Sets when the message was made, by the sender's clock.
    #[must_use]
    #[inline]
    pub fn timestamp(mut self, at: SystemTime) -> Self {
        self.timestamp = Some(at);
        self
    }

    /// When the message was made, by the sender's clock.
    #[must_use]
    #[inline]
    pub fn get_timestamp(&self) -> Option<SystemTime> {
        self.timestamp
    }

    /// Sets when the broker took the message; for adapters.
    #[must_use]
    pub fn with_sent_at(mut self, at: SystemTime) -> Self {
        self.extra_mut().sent_at = Some(at);
        self
    }

    /// When the message was sent: by the broker's clock where it tells, else the sender's timestamp.
    #[must_use]
    pub fn sent_at(&self) -> Option<SystemTime> {
        self.extra.as_ref().and_then(|e| e.sent_at).or(self.timestamp)
    }

    /// When it was sent, by the broker's own word.
    pub(crate) fn told_sent_at(&self) -> Option<SystemTime> {
        self.extra.as_ref().and_then(|e| e.sent_at)
    }

    /// Hands the message out no earlier than this long after it was sent.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.extra_mut().delay = Some(delay);
        self
    }

    /// The delay.
    #[must_use]
    pub fn get_delay(&self) -> Option<Duration> {
        self.extra.as_ref()?.delay
    }

    /// Drops the message when nobody took it within this time.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.extra_mut().ttl = Some(ttl);
        self
    }

    /// The time to live.
    #[must_use]
    pub fn get_ttl(&self) -> Option<Duration> {
        self.extra.as_ref()?.ttl
    }

    /// Sets the priority; a higher one goes first.
    #[must_use]
    pub fn priority(mut self, priority: u8) -> Self {
        self.extra_mut().priority = Some(priority);
        self
    }

    /// The priority.
    #[must_use]
    pub fn get_priority(&self) -> Option<u8> {
        self.extra.as_ref()?.priority
    }

    /// Sets the broker's own properties; for adapters, and for what [`native_headers`](Self::native_headers) sends on.
    #[must_use]
    pub fn with_native_headers(mut self, native: Headers) -> Self {
        if !native.is_empty() {
            self.extra_mut().native = native;
        }
        self
    }

    /// The broker's own properties of a message that arrived, such as `x-death`. Sent on only as far as the docs of an
    /// adapter say: RabbitMQ's content encoding is, for what is no broker's doing but describes the body.
    #[must_use]
    pub fn native_headers(&self) -> &Headers {
        static NONE: Headers = Headers::new();
        self.extra.as_ref().map_or(&NONE, |e| &e.native)
    }

    /// Whether only payload, key and headers are set, as is the case for most messages.
    #[must_use]
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.extra.is_none() && self.timestamp.is_none()
    }

    /// Without what belongs to one journey: destination, delay, time to live. The time of the first sending stays, and
    /// the broker's own properties, of which an adapter sends on what describes the message.
    pub(crate) fn for_copy(mut self) -> Self {
        if let Some(extra) = &mut self.extra {
            let extra = Arc::make_mut(extra);
            self.timestamp = self.timestamp.or(extra.sent_at);
            extra.sent_at = None;
            extra.to = None;
            extra.delay = None;
            extra.ttl = None;
        }
        self
    }

    /// Bytes of payload, key, headers and text properties: what windows and prefetch limits count.
    #[must_use]
    #[inline]
    pub fn size(&self) -> usize {
        let mut size = self.payload.len() + self.key.as_ref().map_or(0, Bytes::len);
        if !self.headers.is_empty() {
            size += self.headers.size();
        }
        if let Some(e) = &self.extra {
            size += [&e.subject, &e.id, &e.content_type, &e.correlation_id, &e.reply_to]
                .into_iter()
                .flatten()
                .map(|t| t.len())
                .sum::<usize>();
        }
        size
    }
}

macro_rules! texts {
    ($($(#[$doc:meta])* $set:ident, $get:ident;)*) => {
        impl Message {$(
            $(#[$doc])*
            #[must_use]
            pub fn $set(mut self, value: impl Into<Text>) -> Self {
                self.extra_mut().$set = Some(value.into());
                self
            }

            #[doc = concat!("What [`", stringify!($set), "`](Self::", stringify!($set), ") set.")]
            #[must_use]
            pub fn $get(&self) -> Option<&str> {
                self.extra.as_ref()?.$set.as_deref()
            }
        )*}
    };
}
texts! {
    /// Sets the subject: the routing key on an AMQP exchange.
    subject, get_subject;
    /// Sets the id: the sender's own, kept over every retry of the send.
    id, get_id;
    /// Sets the content type, such as `application/json`.
    content_type, get_content_type;
    /// Sets the correlation id, which ties a reply to its request.
    correlation_id, get_correlation_id;
    /// Sets the address that replies go to.
    reply_to, get_reply_to;
}

impl fmt::Debug for Message {
    /// Shows sizes and properties, never the payload or the values of headers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut s = f.debug_struct("Message");
        s.field("payload_bytes", &self.payload.len());
        if let Some(key) = &self.key {
            s.field("key_bytes", &key.len());
        }
        if !self.headers.is_empty() {
            s.field("headers", &self.headers.iter().map(|(n, _)| n).collect::<Vec<_>>());
        }
        if let Some(id) = self.get_id() {
            s.field("id", &id);
        }
        if self.is_tombstone() {
            s.field("tombstone", &true);
        }
        s.finish_non_exhaustive()
    }
}

impl<T: Into<Bytes>> From<T> for Message {
    fn from(payload: T) -> Self {
        Self::new(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_stays_small() {
        assert_eq!(std::mem::size_of::<Message>(), 96);
    }

    #[test]
    fn debug_shows_no_payload() {
        let shown = format!("{:?}", Message::new("top secret").header("password", "hunter2"));
        assert!(!shown.contains("secret") && !shown.contains("hunter2"), "{shown}");
    }
}
