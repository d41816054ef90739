//! Limits and habits of other brokers.

use std::time::Duration;

use serde::Deserialize;

use crate::capability::{Capabilities, DeliveryCount, EventBinding, Ordering, RetryVia};

/// Whose limits and habits the broker takes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Profile {
    /// Its own: everything it can.
    #[default]
    Memory,
    /// RabbitMQ: messages are held while connected, retries are copies, delays of queues only, no replay.
    Amqp,
    /// Kafka: one log per name, retries in place, tombstones, replay.
    Kafka,
    /// SQS: leases, delays up to 15 minutes, FIFO queues that block a group, no topics.
    Sqs,
}

/// Ten years: longer than any process.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The longest delay that the adapter for RabbitMQ makes.
const RABBITMQ_DELAY: Duration = Duration::from_millis(127 * (1 << 17) * 100);

impl Profile {
    /// What the broker can do at most.
    pub(super) fn capabilities(self) -> Capabilities {
        let mut c = Capabilities::default();
        // What is in memory dies with the process, so nothing is durable in any profile.
        c.delayed_retry = true;
        c.dead_letter = true;
        c.typed_headers = true;
        c.tombstones = true;
        c.purge = true;
        c.stats = true;
        match self {
            Self::Memory => {
                c.max_message_bytes = 64 << 20;
                c.max_delay = FOREVER;
                c.max_ttl = FOREVER;
                c.max_lease = Some(FOREVER);
                c.ordering = Ordering::Full;
                c.topics = true;
                c.group_backlog = true;
                c.anonymous_subscribers = true;
                c.delayed_send = true;
                c.retry_via = RetryVia::Broker;
                c.max_retry_delay = FOREVER;
                c.ttl = true;
                c.priority = true;
                c.replay = true;
                c.delivery_count = DeliveryCount::Losses;
            }
            Self::Amqp => {
                c.max_message_bytes = 16 << 20;
                c.events = Some(EventBinding::Amqp);
                c.max_ttl = FOREVER;
                c.topics = true;
                c.anonymous_subscribers = true;
                c.delayed_send = true;
                c.max_delay = RABBITMQ_DELAY;
                c.retry_via = RetryVia::Copy;
                c.max_retry_delay = RABBITMQ_DELAY;
                c.ttl = true;
                c.delivery_count = DeliveryCount::Losses;
            }
            Self::Kafka => {
                c.max_message_bytes = 1 << 20;
                c.events = Some(EventBinding::Kafka);
                c.ordering = Ordering::PerKey;
                c.topics = true;
                c.group_backlog = true;
                c.anonymous_subscribers = true;
                c.retry_via = RetryVia::InPlace;
                c.max_retry_delay = Duration::from_secs(3600);
                c.replay = true;
            }
            Self::Sqs => {
                c.max_message_bytes = 1 << 20;
                c.per_request = true;
                c.max_delay = Duration::from_secs(900);
                c.delayed_send = true;
                c.max_lease = Some(Duration::from_secs(12 * 3600));
                c.retry_via = RetryVia::Broker;
                c.max_retry_delay = Duration::from_secs(12 * 3600);
                c.delivery_count = DeliveryCount::Receives;
                c.ordering = Ordering::PerKey;
            }
        }
        c
    }

    /// What one address can do, exactly.
    pub(super) fn at(self, name: &str, is_topic: bool) -> Capabilities {
        let mut c = self.capabilities();
        // A delay is the queue's on an SQS FIFO queue, and there are no delays on a topic of RabbitMQ.
        if self.is_fifo(name) || (self == Self::Amqp && is_topic) {
            c.delayed_send = false;
            c.max_delay = Duration::ZERO;
        }
        if self == Self::Sqs && !self.is_fifo(name) {
            c.ordering = Ordering::None;
        }
        c.replay &= is_topic;
        c
    }

    pub(super) fn is_fifo(self, name: &str) -> bool {
        self == Self::Sqs && name.ends_with(".fifo")
    }

    /// Whether a release counts as an attempt.
    pub(super) fn counts_releases(self) -> bool {
        self == Self::Sqs
    }

    /// Whether anything but a failed answer counts.
    pub(super) fn counts_losses(self) -> bool {
        self != Self::Kafka
    }
}
