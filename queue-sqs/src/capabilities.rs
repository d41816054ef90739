//! What queues and topics can do.

use std::time::Duration;

use queue_core::{Capabilities, DeliveryCount, Ordering, RetryVia};

use crate::door::MAX_PUBLISH;

/// The largest message and batch of SQS, and of a queue that does not tell its own limit.
pub(crate) const MAX_MESSAGE: usize = 1 << 20;
/// Most messages that one call of a producer takes; it cuts them itself.
const MAX_BATCH: usize = 4096;
/// The longest time that a message stays with a receiver, from its receipt.
pub(crate) const MAX_LEASE: Duration = Duration::from_secs(12 * 3600);
/// The longest delay of a retry: an hour less, so that it fits behind the time the message was worked on.
pub(crate) const MAX_RETRY_DELAY: Duration = Duration::from_secs(11 * 3600);

/// What every queue can do, with delays up to this; `None` is the upper bound over both kinds.
pub(crate) fn of_queue(fifo: Option<bool>, max_message: usize, max_delay: Duration) -> Capabilities {
    let mut can = Capabilities::default();
    can.max_message_bytes = max_message;
    can.max_batch = MAX_BATCH;
    can.per_request = true;
    can.max_lease = Some(MAX_LEASE);
    can.ordering = if fifo == Some(false) { Ordering::None } else { Ordering::PerKey };
    can.delayed_send = fifo != Some(true);
    can.max_delay = if can.delayed_send { max_delay } else { Duration::ZERO };
    can.delayed_retry = true;
    can.retry_via = RetryVia::Broker;
    can.max_retry_delay = MAX_RETRY_DELAY;
    can.dead_letter = true;
    can.tombstones = true;
    can.typed_headers = true;
    can.delivery_count = DeliveryCount::Receives;
    can.durable = true;
    can.purge = true;
    can.stats = true;
    can
}

/// What a sender to a topic can do.
pub(crate) fn of_topic(fifo: bool) -> Capabilities {
    let mut can = of_queue(Some(fifo), MAX_PUBLISH, Duration::ZERO);
    can.delayed_send = false;
    can.max_delay = Duration::ZERO;
    can
}
