//! The options of queues, exchanges and bindings that are RabbitMQ's own, read from texts.

use std::collections::BTreeMap;

use lapin::ExchangeKind;
use lapin::types::AMQPValue;
use queue_core::{Error, ErrorKind, Options, Result, unknown_option};

use crate::convert::argument;

/// Arguments of a queue, an exchange or a binding.
pub(crate) type Arguments = BTreeMap<String, AMQPValue>;

pub(crate) const QUEUE_TYPE: &str = "x-queue-type";
pub(crate) const MAX_PRIORITY: &str = "x-max-priority";
pub(crate) const OVERFLOW: &str = "x-overflow";
pub(crate) const SINGLE: &str = "x-single-active-consumer";
pub(crate) const DELAYED_RETRY: &str = "x-delayed-retry-type";
const EXCHANGE_TYPE: &str = "exchange_type";
const BINDING_KEY: &str = "binding_key";
const EXCHANGE: &str = "exchange.";
const BINDING: &str = "binding.";

/// What a queue is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueueType {
    Quorum,
    Classic,
    Stream,
}

impl QueueType {
    const NAMES: &[&str] = &["quorum", "classic", "stream"];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
            Self::Stream => "stream",
        }
    }

    /// The type of this name; others exist, such as those of plugins.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Quorum, Self::Classic, Self::Stream].into_iter().find(|kind| kind.name() == name)
    }
}

/// How an exchange routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExchangeType {
    Fanout,
    Direct,
    Topic,
    Headers,
    ConsistentHash,
}

impl ExchangeType {
    const NAMES: &[&str] = &["fanout", "direct", "topic", "headers", "x-consistent-hash"];

    const ALL: [Self; 5] = [Self::Fanout, Self::Direct, Self::Topic, Self::Headers, Self::ConsistentHash];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fanout => "fanout",
            Self::Direct => "direct",
            Self::Topic => "topic",
            Self::Headers => "headers",
            Self::ConsistentHash => "x-consistent-hash",
        }
    }

    pub(crate) fn kind(self) -> ExchangeKind {
        match self {
            Self::Fanout => ExchangeKind::Fanout,
            Self::Direct => ExchangeKind::Direct,
            Self::Topic => ExchangeKind::Topic,
            Self::Headers => ExchangeKind::Headers,
            Self::ConsistentHash => ExchangeKind::Custom(self.name().to_owned()),
        }
    }

    /// Whether every server has it. Asking for one that it lacks costs the connection.
    pub(crate) fn is_builtin(self) -> bool {
        self != Self::ConsistentHash
    }
}

/// What the text of an argument has to be.
enum Shape {
    Number,
    Flag,
    Text,
    OneOf(&'static [&'static str]),
}

/// The arguments of a queue that the servers know. Others are passed on.
const ARGUMENTS: &[(&str, Shape)] = &[
    ("x-consumer-timeout", Shape::Number),
    ("x-dead-letter-exchange", Shape::Text),
    ("x-dead-letter-routing-key", Shape::Text),
    ("x-dead-letter-strategy", Shape::OneOf(&["at-most-once", "at-least-once"])),
    ("x-delayed-retry-max", Shape::Number),
    ("x-delayed-retry-min", Shape::Number),
    (DELAYED_RETRY, Shape::OneOf(&["disabled", "failed", "returned", "all"])),
    ("x-delivery-limit", Shape::Number),
    ("x-expires", Shape::Number),
    ("x-initial-cluster-size", Shape::Number),
    ("x-max-age", Shape::Text),
    ("x-max-in-memory-bytes", Shape::Number),
    ("x-max-in-memory-length", Shape::Number),
    ("x-max-length", Shape::Number),
    ("x-max-length-bytes", Shape::Number),
    (MAX_PRIORITY, Shape::Number),
    ("x-message-ttl", Shape::Number),
    (OVERFLOW, Shape::OneOf(&["drop-head", "reject-publish", "reject-publish-dlx"])),
    ("x-queue-leader-locator", Shape::OneOf(&["client-local", "balanced", "least-leaders", "random"])),
    ("x-queue-mode", Shape::OneOf(&["default", "lazy"])),
    (QUEUE_TYPE, Shape::OneOf(QueueType::NAMES)),
    ("x-queue-version", Shape::Number),
    ("x-quorum-initial-group-size", Shape::Number),
    ("x-quorum-target-group-size", Shape::Number),
    (SINGLE, Shape::Flag),
    ("x-stream-filter-size-bytes", Shape::Number),
    ("x-stream-max-segment-size-bytes", Shape::Number),
];

/// What an address asks for in particular.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Native {
    /// Arguments of the queue.
    pub(crate) queue: Arguments,
    pub(crate) exchange_type: Option<ExchangeType>,
    /// Arguments of the exchange.
    pub(crate) exchange: Arguments,
    pub(crate) binding: Binding,
}

/// What a queue gets from its exchange.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Binding {
    /// None: whatever stands for everything.
    pub(crate) keys: Vec<String>,
    pub(crate) arguments: Arguments,
}

impl Binding {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Native {
    /// Reads the options of a topic or one of its groups.
    pub(crate) fn of_topic(options: &Options) -> Result<Self> {
        let mut native = Self::default();
        for (name, value) in options {
            let argument = || argument(value);
            if name.starts_with("x-") {
                native.queue.insert(name.clone(), queue_argument(name, value)?);
            } else if name == EXCHANGE_TYPE {
                let kind = ExchangeType::named(value).ok_or_else(|| misfit(name, value, ExchangeType::NAMES))?;
                native.exchange_type = Some(kind);
            } else if name == BINDING_KEY {
                native.binding.keys = value.split(',').map(|key| key.trim().to_owned()).collect();
            } else if let Some(name) = name.strip_prefix(EXCHANGE).filter(|name| !name.is_empty()) {
                native.exchange.insert(name.to_owned(), argument());
            } else if let Some(name) = name.strip_prefix(BINDING).filter(|name| !name.is_empty()) {
                native.binding.arguments.insert(name.to_owned(), argument());
            } else {
                return Err(unknown(name));
            }
        }
        match native.exchange_type {
            Some(ExchangeType::Direct) if native.binding.keys.iter().any(|key| key.contains(['*', '#'])) => {
                Err(bad("a direct exchange knows no `*` and no `#`", BINDING_KEY))
            }
            _ => Ok(native),
        }
    }

    /// Reads the options of a queue.
    pub(crate) fn of_queue(options: &Options) -> Result<Self> {
        let topics = |name: &str| {
            name == EXCHANGE_TYPE || name == BINDING_KEY || name.starts_with(EXCHANGE) || name.starts_with(BINDING)
        };
        if let Some(name) = options.keys().find(|name| topics(name)) {
            return Err(bad("the option belongs to a topic, and this is a queue", name));
        }
        Self::of_topic(options)
    }
}

fn queue_argument(name: &str, text: &str) -> Result<AMQPValue> {
    let Some((_, shape)) = ARGUMENTS.iter().find(|(known, _)| *known == name) else {
        return Ok(argument(text));
    };
    let value = match shape {
        Shape::Number => text.parse().ok().map(AMQPValue::LongLongInt),
        Shape::Flag => text.parse().ok().map(AMQPValue::Boolean),
        Shape::Text => Some(AMQPValue::LongString(text.into())),
        Shape::OneOf(names) => {
            return match names.contains(&text) {
                true => Ok(AMQPValue::LongString(text.into())),
                false => Err(misfit(name, text, names)),
            };
        }
    };
    let wanted = if matches!(shape, Shape::Flag) { "true or false" } else { "a number" };
    value.ok_or_else(|| bad(format!("the value of `{name}` is {wanted}"), name))
}

fn bad(why: impl Into<std::borrow::Cow<'static, str>>, option: &str) -> Error {
    Error::new(ErrorKind::InvalidConfig, why).with_operation("configure").with_context("option", option)
}

/// A value that is none of those that can be.
fn misfit(option: &str, value: &str, names: &[&str]) -> Error {
    let near = unknown_option(value, names);
    let error = bad(format!("the value of `{option}` is one of {}", names.join(", ")), option);
    match near.context("did_you_mean") {
        Some(near) => error.with_context("did_you_mean", near),
        None => error,
    }
}

fn unknown(name: &str) -> Error {
    let known: Vec<&str> = ARGUMENTS
        .iter()
        .map(|(name, _)| *name)
        .chain([EXCHANGE_TYPE, BINDING_KEY, "exchange.alternate-exchange", "binding.x-match"])
        .collect();
    unknown_option(name, &known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[(&str, &str)]) -> Options {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn arguments_get_the_types_that_the_server_wants() {
        let native = Native::of_topic(&options(&[
            ("x-queue-type", "classic"),
            ("x-max-length", "5"),
            ("x-single-active-consumer", "true"),
            // A text, although it looks like a number.
            ("x-dead-letter-routing-key", "7"),
            ("x-of-a-plugin", "8"),
            ("exchange_type", "headers"),
            ("exchange.alternate-exchange", "rest"),
            ("binding_key", "eu.*, us.*"),
            ("binding.x-match", "any"),
            ("binding.size", "3"),
        ]))
        .unwrap();
        assert_eq!(native.queue["x-max-length"], AMQPValue::LongLongInt(5));
        assert_eq!(native.queue["x-single-active-consumer"], AMQPValue::Boolean(true));
        assert_eq!(native.queue["x-dead-letter-routing-key"], AMQPValue::LongString("7".into()));
        assert_eq!(native.queue["x-of-a-plugin"], AMQPValue::LongLongInt(8));
        assert_eq!(native.exchange_type, Some(ExchangeType::Headers));
        assert_eq!(native.exchange["alternate-exchange"], AMQPValue::LongString("rest".into()));
        assert_eq!(native.binding.keys, ["eu.*", "us.*"]);
        assert_eq!(native.binding.arguments["size"], AMQPValue::LongLongInt(3));
    }

    #[test]
    fn what_does_not_fit_is_named_with_what_is_near() {
        for (name, value, option, near) in [
            ("queue-type", "quorum", "queue-type", None),
            ("binding_kye", "a", "binding_kye", Some("binding_key")),
            ("exchange_typ", "topic", "exchange_typ", Some("exchange_type")),
            ("exchange_type", "fanuot", "exchange_type", Some("fanout")),
            ("x-queue-type", "quorm", "x-queue-type", Some("quorum")),
            ("x-max-length", "many", "x-max-length", None),
            ("x-single-active-consumer", "1", "x-single-active-consumer", None),
            ("exchange.", "a", "exchange.", None),
        ] {
            let error = Native::of_topic(&options(&[(name, value)])).expect_err(name);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
            assert_eq!(error.context("option"), Some(option), "{error}");
            if near.is_some() {
                assert_eq!(error.context("did_you_mean"), near, "{error}");
            }
        }
        let wild = options(&[("exchange_type", "direct"), ("binding_key", "eu.*")]);
        assert_eq!(Native::of_topic(&wild).unwrap_err().context("option"), Some("binding_key"));
        let misplaced = Native::of_queue(&options(&[("binding_key", "a")])).unwrap_err();
        assert_eq!(misplaced.context("option"), Some("binding_key"));
    }
}
