//! The arguments with which a queue is made for an entry.

use lapin::types::AMQPValue;
use queue_core::{Entry, Error, ErrorKind, Result};

use crate::server::ServerInfo;
use crate::topology::known::has_backoff;
use crate::topology::native::{Arguments, DELAYED_RETRY, Native, OVERFLOW, QUEUE_TYPE, QueueType};

/// How many deliveries beyond the library's own limit the broker allows: losses and releases count there too.
const BACKSTOP: u32 = 20;
/// The value of a delivery limit that is none; newer servers else drop what came back twenty times.
const NO_LIMIT: i64 = -1;
const REJECT: &str = "reject-publish";
const DEAD_LETTERS: &str = "x-dead-letter-exchange";
const DELIVERY_LIMIT: &str = "x-delivery-limit";

/// What a classic queue refuses, or has for itself.
const NOT_OF_CLASSIC: &[&str] = &[
    QUEUE_TYPE,
    "x-dead-letter-strategy",
    DELIVERY_LIMIT,
    "x-initial-cluster-size",
    "x-max-age",
    "x-queue-leader-locator",
];
const NOT_OF_CLASSIC_EITHER: &[&str] = &["x-delayed-retry-", "x-max-in-memory-", "x-quorum-", "x-stream-"];

/// Of the connection's defaults, those for a classic queue, whatever type of queue they stand beside.
pub(crate) fn of_classic(defaults: &Arguments) -> impl Iterator<Item = (&String, &AMQPValue)> {
    defaults.iter().filter(|(name, _)| {
        !NOT_OF_CLASSIC.contains(&name.as_str()) && !NOT_OF_CLASSIC_EITHER.iter().any(|start| name.starts_with(start))
    })
}

/// What a queue should be like.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    /// What it is made with where it does not exist.
    pub(crate) all: Arguments,
    /// The part of it that was asked for, in which a queue that exists may not differ.
    pub(crate) asked: Arguments,
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// The type that these arguments name.
pub(crate) fn type_of(arguments: &Arguments) -> Option<QueueType> {
    match arguments.get(QUEUE_TYPE) {
        Some(AMQPValue::LongString(name)) => QueueType::named(std::str::from_utf8(name.as_bytes()).ok()?),
        _ => None,
    }
}

impl Wanted {
    /// What an entry wants of its queue; `defaults` are those of the connection, which ask for nothing.
    pub(crate) fn new(entry: &Entry, native: &Native, defaults: &Arguments, server: &ServerInfo) -> Result<Self> {
        let kind = type_of(&native.queue).or_else(|| type_of(defaults)).unwrap_or(QueueType::Quorum);
        let mut asked = native.queue.clone();
        if has_backoff(&asked) && !server.is_rabbitmq(4, 3) {
            // An older one would take it, and do nothing about it.
            let why = "the server cannot delay what failed: that needs RabbitMQ 4.3";
            return Err(Error::unsupported(why).with_context("option", DELAYED_RETRY));
        }
        if let Some(kept) = entry.retention {
            let (name, value) = match kind {
                // A stream drops whole segments, and counts in seconds.
                QueueType::Stream => ("x-max-age", text(&format!("{}s", kept.as_secs().max(1)))),
                _ => {
                    let millis = i64::try_from(kept.as_millis()).map_err(|_| {
                        Error::new(ErrorKind::InvalidInput, "the retention is too long")
                            .with_context("address", &entry.address)
                    })?;
                    ("x-message-ttl", AMQPValue::LongLongInt(millis))
                }
            };
            asked.entry(name.to_owned()).or_insert(value);
        }
        if let Some(copies) = entry.replication {
            let name = match kind {
                QueueType::Quorum => "x-quorum-initial-group-size",
                QueueType::Stream => "x-initial-cluster-size",
                QueueType::Classic if copies == 1 => "",
                QueueType::Classic => {
                    return Err(Error::unsupported("a classic queue has one copy of each message")
                        .with_context("address", &entry.address));
                }
            };
            if !name.is_empty() {
                asked.entry(name.to_owned()).or_insert(AMQPValue::LongLongInt(copies.into()));
            }
        }
        let mut all = asked.clone();
        all.insert(QUEUE_TYPE.to_owned(), text(kind.name()));
        // Those of another type of queue would be refused.
        if type_of(defaults).is_none_or(|default| default == kind) {
            for (name, value) in defaults {
                all.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        if let Some(address) = &entry.dead_letter
            && kind != QueueType::Stream
            && !all.contains_key(DEAD_LETTERS)
        {
            backstop(&mut all, kind, address.name(), entry.max_deliveries, server);
        }
        // What may be a queue of dead letters, and has nowhere to put any itself.
        let keeps_all =
            entry.dead_letter.is_none() && entry.max_deliveries.is_none() && !all.contains_key(DEAD_LETTERS);
        if keeps_all && kind == QueueType::Quorum && server.is_rabbitmq(4, 0) {
            all.entry(DELIVERY_LIMIT.to_owned()).or_insert(AMQPValue::LongLongInt(NO_LIMIT));
        }
        Ok(Self { all, asked })
    }
}

/// The broker's own dead letters, beyond those that the library makes.
fn backstop(all: &mut Arguments, kind: QueueType, to: &str, max_deliveries: Option<u32>, server: &ServerInfo) {
    all.insert(DEAD_LETTERS.to_owned(), text(""));
    all.entry("x-dead-letter-routing-key".to_owned()).or_insert_with(|| text(to));
    if kind != QueueType::Quorum {
        return;
    }
    if let Some(most) = max_deliveries {
        let limit = AMQPValue::LongLongInt(most.saturating_add(BACKSTOP).into());
        all.entry(DELIVERY_LIMIT.to_owned()).or_insert(limit);
    }
    // At least once needs senders to be refused, rather than old messages dropped, when the queue is full. Without a
    // limit it is never full; with one, and no word on what happens then, a refusal loses nothing.
    let refuses = all.get(OVERFLOW).is_none_or(|overflow| *overflow == text(REJECT));
    if server.is_rabbitmq(3, 10) && refuses {
        all.entry(OVERFLOW.to_owned()).or_insert_with(|| text(REJECT));
        all.entry("x-dead-letter-strategy".to_owned()).or_insert_with(|| text("at-least-once"));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use queue_core::Options;

    use super::*;

    fn wanted(entry: &mut Entry, own: &[(&str, &str)], defaults: &[(&str, &str)]) -> Result<Wanted> {
        let options = |list: &[(&str, &str)]| -> Options {
            list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let native = Native::of_queue(&options(own))?;
        let defaults = Native::of_queue(&options(defaults))?.queue;
        let server = ServerInfo { product: "RabbitMQ".to_owned(), version: (3, 10, 8), ..ServerInfo::default() };
        entry.dead_letter = Some("orders-dlq".parse()?);
        entry.max_deliveries = Some(5);
        Wanted::new(entry, &native, &defaults, &server)
    }

    fn orders() -> Entry {
        Entry::new("orders".parse().unwrap())
    }

    fn names(arguments: &Arguments) -> Vec<&str> {
        arguments.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_quorum_queue_hands_its_dead_letters_over_at_least_once() {
        let wanted = wanted(&mut orders(), &[], &[]).unwrap();
        assert!(wanted.asked.is_empty());
        assert_eq!(wanted.all["x-delivery-limit"], AMQPValue::LongLongInt(25));
        assert_eq!(wanted.all["x-dead-letter-strategy"], text("at-least-once"));
        assert_eq!(wanted.all["x-overflow"], text("reject-publish"));
    }

    #[test]
    fn a_queue_without_dead_letters_of_its_own_drops_nothing() {
        let of = |version: (u16, u16, u16), own: &[(&str, &str)]| {
            let server = ServerInfo { product: "RabbitMQ".to_owned(), version, ..ServerInfo::default() };
            let own = own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let wanted = Wanted::new(&orders(), &Native::of_queue(&own).unwrap(), &Arguments::new(), &server).unwrap();
            wanted.all.get("x-delivery-limit").cloned()
        };
        assert_eq!(of((4, 0, 1), &[]), Some(AMQPValue::LongLongInt(-1)));
        // An older server knows no such value, and has no limit of its own.
        assert_eq!(of((3, 13, 7), &[]), None);
        assert_eq!(of((4, 0, 1), &[("x-queue-type", "classic")]), None);
        assert_eq!(of((4, 0, 1), &[("x-delivery-limit", "3")]), Some(AMQPValue::LongLongInt(3)));
    }

    #[test]
    fn what_drops_its_oldest_message_cannot_do_that() {
        let wanted = wanted(&mut orders(), &[("x-overflow", "drop-head"), ("x-max-length", "9")], &[]).unwrap();
        assert!(!wanted.all.contains_key("x-dead-letter-strategy"));
        assert_eq!(names(&wanted.asked), ["x-max-length", "x-overflow"]);
    }

    #[test]
    fn each_type_gets_only_what_it_takes() {
        let mut entry = orders();
        entry.retention = Some(Duration::from_secs(60));
        let classic = wanted(&mut entry, &[("x-queue-type", "classic")], &[]).unwrap();
        let expected = ["x-dead-letter-exchange", "x-dead-letter-routing-key", "x-message-ttl", "x-queue-type"];
        assert_eq!(names(&classic.all), expected);
        entry.replication = Some(3);
        let stream = wanted(&mut entry, &[("x-queue-type", "stream")], &[]).unwrap();
        assert_eq!(names(&stream.all), ["x-initial-cluster-size", "x-max-age", "x-queue-type"]);
        assert_eq!(stream.all["x-max-age"], text("60s"));
        let refused = wanted(&mut entry, &[("x-queue-type", "classic")], &[]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn defaults_of_the_connection_ask_for_nothing_and_are_of_their_own_type() {
        let defaults = [("x-queue-type", "classic"), ("x-max-priority", "5")];
        let classic = wanted(&mut orders(), &[], &defaults).unwrap();
        assert!(classic.asked.is_empty() && classic.all.contains_key("x-max-priority"));
        let quorum = wanted(&mut orders(), &[("x-queue-type", "quorum")], &defaults).unwrap();
        assert!(!quorum.all.contains_key("x-max-priority"), "{quorum:?}");
    }
}
