//! What the server, and what each address on it, can do.

use std::time::Duration;

use queue_core::{Address, Capabilities, DeliveryCount, EventBinding, Ordering, RetryVia};

use crate::delay::{self, MAX_DELAY};
use crate::server::ServerInfo;
use crate::topology::{Arguments, Facts, QueueType, has_priorities};

/// The largest message of RabbitMQ 4 unless configured; earlier ones take 128 MiB.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Far from the limit that counts, which is the bytes of one frame (128 KiB unless configured).
const MAX_HEADERS: usize = 1000;
/// The server takes no longer one.
pub(crate) const MAX_TTL: Duration = Duration::from_millis(u32::MAX as u64);
/// Of a retry that its receiver holds back: below the 30 minutes after which the server takes an unanswered message
/// away.
const MAX_HELD_BACK: Duration = Duration::from_secs(20 * 60);

/// What an address can do at most, be it a quorum queue, a classic queue with priorities or a stream.
pub(crate) fn of_broker(server: &ServerInfo, delay_queues: bool) -> Capabilities {
    let mut c = Capabilities::default();
    c.own_backoff = server.is_rabbitmq(4, 3);
    c.max_message_bytes = MAX_MESSAGE_BYTES;
    c.max_headers = MAX_HEADERS;
    c.events = Some(EventBinding::Amqp);
    c.max_ttl = MAX_TTL;
    c.ttl = true;
    // With a single active consumer.
    c.ordering = Ordering::PerKey;
    c.topics = true;
    c.anonymous_subscribers = true;
    c.delayed_retry = true;
    c.retry_via = RetryVia::Copy;
    c.max_retry_delay = MAX_HELD_BACK;
    if delay_queues {
        c.delayed_send = true;
        c.max_delay = MAX_DELAY;
        c.max_retry_delay = MAX_DELAY;
    }
    c.priority = true;
    c.dead_letter = true;
    c.tombstones = true;
    c.typed_headers = true;
    c.replay = true;
    c.delivery_count = DeliveryCount::Losses;
    c.requests = true;
    c.durable = true;
    c.purge = true;
    c.stats = true;
    c
}

/// Whether messages of a higher priority overtake others in a queue.
fn priority(server: &ServerInfo, facts: &Facts) -> bool {
    // Two levels on quorum queues from 4.0 on, 32 from 4.3 on; otherwise as many as the queue was made with.
    facts.priorities || facts.kind == Some(QueueType::Quorum) && server.is_rabbitmq(4, 0)
}

/// What a producer can do. `asked` are the arguments that its handle gives its queue.
pub(crate) fn of_producer(
    upper: &Capabilities,
    server: &ServerInfo,
    to: &Address,
    facts: &Facts,
    asked: &Arguments,
) -> Capabilities {
    let mut c = upper.clone();
    c.replay = false;
    c.own_backoff = false;
    if !facts.single && facts.kind != Some(QueueType::Stream) {
        c.ordering = Ordering::None;
    }
    if to.is_topic() || !delay::fits(to.name()) {
        // The way through the delay queues ends at a queue, and its name stands in the routing key.
        c.delayed_send = false;
        c.max_delay = Duration::ZERO;
    }
    // What a topic's groups do with a priority is not known here.
    c.priority = !to.is_topic() && (priority(server, facts) || has_priorities(asked));
    if facts.kind == Some(QueueType::Stream) {
        c.ttl = false;
        c.max_ttl = Duration::ZERO;
        c.priority = false;
    }
    c
}

/// What a consumer can do. What its handle asks for counts once the queue was compared with it, as a fact. `queue` is
/// the one that it reads, where that has a name.
pub(crate) fn of_consumer(
    upper: &Capabilities,
    server: &ServerInfo,
    queue: Option<&str>,
    facts: &Facts,
) -> Capabilities {
    let mut c = upper.clone();
    if queue.is_some_and(|queue| !delay::fits(queue)) {
        c.max_retry_delay = MAX_HELD_BACK;
    }
    if !facts.single {
        c.ordering = Ordering::None;
    }
    c.own_backoff &= facts.backoff;
    c.priority = priority(server, facts);
    c.replay = false;
    match facts.kind {
        Some(QueueType::Quorum) => {}
        Some(QueueType::Stream) => {
            // An answer only makes room, so what has to come again is kept by this process alone.
            c.replay = true;
            c.ordering = Ordering::PerKey;
            c.own_backoff = false;
            c.delayed_retry = false;
            c.retry_via = RetryVia::InPlace;
            c.max_retry_delay = Duration::ZERO;
            c.ttl = false;
            c.max_ttl = Duration::ZERO;
            c.priority = false;
            c.purge = false;
            c.delivery_count = DeliveryCount::None;
        }
        // Says that a message came before, not how often.
        Some(QueueType::Classic) | None => c.delivery_count = DeliveryCount::Answers,
    }
    c
}
