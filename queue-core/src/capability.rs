//! What a broker, or one address on it, can do.

use std::time::Duration;

/// How far the broker keeps messages in order; each promises more than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum Ordering {
    /// No promise.
    #[default]
    None,
    /// Messages of one key arrive in the order they were sent.
    PerKey,
    /// All messages arrive in the order they were sent while one receiver reads.
    Full,
}

/// Which deliveries a broker counts that ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DeliveryCount {
    /// None: the attempt is always 1 after a crash.
    #[default]
    None,
    /// Only answered failures, counted by the library.
    Answers,
    /// Those that ended by a lost connection or a crash too, of prefetched messages as well.
    Losses,
    /// Every time a receiver was given the message.
    Receives,
}

/// Who makes a retry with a delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RetryVia {
    /// Nobody: a retry is immediate only.
    #[default]
    None,
    /// The adapter, by [`Answer::Retry`](crate::Answer::Retry), for any delay up to `max_retry_delay`.
    Broker,
    /// The core: waits with the message unanswered, sends a confirmed copy with the attempt in a header, then acks.
    Copy,
    /// The core: waits with the message unanswered and hands it out again itself.
    InPlace,
}

/// The binding of CloudEvents that is the broker's: how attributes of an event travel beside its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventBinding {
    /// AMQP's: headers `cloudEvents:…`, and the property for the content type.
    Amqp,
    /// Kafka's: headers `ce_…` and `content-type`.
    Kafka,
}

/// Where replies come to on a broker without requests of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ReplyVia {
    /// To a queue for each client, made by the first request and deleted at the close.
    #[default]
    Queue,
    /// To a topic that all clients read from its end, without a group.
    Topic,
}

/// What a broker can do. The broker's own is an upper bound; those of a producer or consumer are exact for their
/// address.
///
/// What is declared works; what is not answers `Unsupported` before the message touches the network. The default is a
/// broker that can do nothing beyond send, receive, ack and release.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Largest message in bytes, as [`Message::size`](crate::Message::size) counts.
    pub max_message_bytes: usize,
    /// Most messages in one request or one call of `Producer::send`.
    pub max_batch: usize,
    /// Most bytes in one request.
    pub max_batch_bytes: usize,
    /// Whether the broker charges per request, so that single sends are worth coalescing.
    pub per_request: bool,
    /// Longest delay of a sent message; zero without `delayed_send`.
    pub max_delay: Duration,
    /// Longest time to live; zero without `ttl`.
    pub max_ttl: Duration,
    /// Most headers of a message.
    pub max_headers: usize,
    /// Longest time a message may stay unanswered; `None` where it is held while connected.
    pub max_lease: Option<Duration>,
    /// Order of messages.
    pub ordering: Ordering,
    /// `topic:` addresses with groups.
    pub topics: bool,
    /// What would bring topics where there are none: a feature, an option. Shown in the error.
    pub topics_need: Option<&'static str>,
    /// A new group gets what was sent before its first receiver.
    pub group_backlog: bool,
    /// Topics without a group.
    pub anonymous_subscribers: bool,
    /// [`Message::delay`](crate::Message::delay).
    pub delayed_send: bool,
    /// Retry with a delay.
    pub delayed_retry: bool,
    /// Who makes the retry.
    pub retry_via: RetryVia,
    /// Longest delay of a retry; zero without `delayed_retry`.
    pub max_retry_delay: Duration,
    /// A retry without a particular delay is given back to the broker, which makes the pause.
    pub own_backoff: bool,
    /// [`Message::ttl`](crate::Message::ttl).
    pub ttl: bool,
    /// [`Message::priority`](crate::Message::priority).
    pub priority: bool,
    /// Rejected messages reach a dead-letter address.
    pub dead_letter: bool,
    /// [`Message::tombstone`](crate::Message::tombstone).
    pub tombstones: bool,
    /// Headers keep their types.
    pub typed_headers: bool,
    /// [`Start`](crate::Start) other than `Committed`.
    pub replay: bool,
    /// Transactions.
    pub transactions: bool,
    /// Native requests with replies.
    pub requests: bool,
    /// The official binding of CloudEvents; `None` where there is none, and events travel as a whole.
    pub events: Option<EventBinding>,
    /// Where replies come to without them.
    pub reply_via: ReplyVia,
    /// Which unanswered deliveries are counted.
    pub delivery_count: DeliveryCount,
    /// Messages survive a restart of the broker.
    pub durable: bool,
    /// `Broker::purge`.
    pub purge: bool,
    /// `Broker::stats`.
    pub stats: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            max_message_bytes: usize::MAX,
            max_batch: usize::MAX,
            max_batch_bytes: usize::MAX,
            per_request: false,
            max_delay: Duration::ZERO,
            max_ttl: Duration::ZERO,
            max_headers: usize::MAX,
            max_lease: None,
            ordering: Ordering::None,
            topics: false,
            topics_need: None,
            group_backlog: false,
            anonymous_subscribers: false,
            delayed_send: false,
            delayed_retry: false,
            retry_via: RetryVia::None,
            max_retry_delay: Duration::ZERO,
            own_backoff: false,
            ttl: false,
            priority: false,
            dead_letter: false,
            tombstones: false,
            typed_headers: false,
            replay: false,
            transactions: false,
            requests: false,
            events: None,
            reply_via: ReplyVia::Queue,
            delivery_count: DeliveryCount::None,
            durable: false,
            purge: false,
            stats: false,
        }
    }
}
