//! Messages, to and from what travels.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use queue_core::wire::{self, Field, MAX_DEPTH, Note};
use queue_core::{
    Address, Error, ErrorKind, HeaderValue, Headers, Message, RESERVED_PREFIX, Result, Text, Undecodable, dead_letter,
};

use crate::config::MAX_SHORT;
use crate::delay::{self, Ticks};

/// Written to disk, as far as the queue does that.
const PERSISTENT: u8 = 2;
/// Where replies go that need no queue: the server makes an address of the requester's own from it.
pub(crate) const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to";
/// Bytes of a header frame that are not properties: frame, class, weight, body size, flags.
const HEADER_FRAME: usize = 8 + 14;
/// Headers that are the broker's own: set by it, or read by it. They arrive among the native headers; sent by an
/// application, they travel in the note, because the broker would act on them.
const BROKERS: [&str; 16] = [
    "BCC",
    "CC",
    "timestamp_in_ms",
    "x-acquired-count",
    "x-death",
    "x-delivery-count",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
    "x-opt-rabbitmq-received-time",
    "x-opt-rabbitmq-transmit-time",
    "x-routed-by",
    "x-stream-offset",
];

type Set = fn(BasicProperties, ShortString) -> BasicProperties;
/// Properties that describe a message and have no field of their own: they arrive among the native headers, and are
/// sent on with them.
const DESCRIBING: [(&str, Set); 3] = [
    ("content-encoding", BasicProperties::with_content_encoding),
    ("type", BasicProperties::with_type),
    ("app-id", BasicProperties::with_app_id),
];

fn is_brokers(name: &str) -> bool {
    BROKERS.binary_search(&name).is_ok()
}

/// A message on its way to an exchange.
#[derive(Debug, PartialEq)]
pub(crate) struct Outgoing {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    /// Whether it is addressed to a queue. A direct reply is not: the server would return every one.
    pub(crate) to_queue: bool,
    /// Its delay: it goes to a queue by way of the ladder.
    pub(crate) delay: Option<Ticks>,
}

/// Makes what travels of a message to `address`, unless it names another.
pub(crate) fn outgoing(
    address: &Address,
    message: &Message,
    id: Option<ShortString>,
    frame_max: usize,
) -> Result<Outgoing> {
    let address = message.destination().unwrap_or(address);
    let mut note = Note::default();
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    if let Some(id) = id {
        properties = properties.with_message_id(id);
    }
    let mut delay = None;
    if !message.is_plain() {
        delay = ticks(address, message)?;
        properties = with_fields(properties, message, &mut note);
    }
    let routing_key = match (address.is_topic(), message.get_subject()) {
        (false, None) => short(address.name())?,
        (false, Some(_)) => {
            note.field(Field::Subject, message);
            short(address.name())?
        }
        (true, None) => ShortString::default(),
        (true, Some(subject)) if subject.len() <= MAX_SHORT => short(subject)?,
        (true, Some(_)) => {
            note.field(Field::Subject, message);
            ShortString::default()
        }
    };
    note.field(Field::Key, message);
    let mut table = BTreeMap::new();
    if !message.headers().is_empty() {
        if message.headers().iter().any(|(_, value)| is_deeper(value, MAX_DEPTH)) {
            return Err(Error::new(ErrorKind::InvalidInput, "too many lists and maps within each other")
                .with_context("limit", MAX_DEPTH));
        }
        headers(message.headers(), &mut table, &mut note);
    }
    if let Some(note) = note.finish() {
        table.insert(short(wire::HEADER)?, AMQPValue::LongString(note.into()));
    }
    if !table.is_empty() {
        let size = table_size(&table) + properties_size(message);
        let limit = frame_max.saturating_sub(HEADER_FRAME);
        if size > limit {
            return Err(Error::new(ErrorKind::TooLarge, "headers and properties are over the limit of one frame")
                .with_context("limit", limit)
                .with_context("actual", size));
        }
        properties = properties.with_headers(table.into());
    }
    let (exchange, routing_key) = match delay {
        Some(delay) => (short(&delay.exchange())?, short(&delay.routing_key(address.name())?)?),
        None if address.is_topic() => (short(address.name())?, routing_key),
        None => (ShortString::default(), routing_key),
    };
    // A direct reply goes to a connection and not to a queue: the server would say that there is no route.
    let to_queue = !address.is_topic() && !address.name().starts_with(DIRECT_REPLY);
    Ok(Outgoing { exchange, routing_key, properties, to_queue, delay })
}

fn ticks(address: &Address, message: &Message) -> Result<Option<Ticks>> {
    let Some(delay) = message.get_delay().filter(|d| !d.is_zero()) else { return Ok(None) };
    if address.is_topic() {
        return Err(Error::unsupported("a message to a topic cannot be delayed"));
    }
    if message.get_ttl().is_some() {
        // The queues on the way would take it for theirs.
        return Err(Error::unsupported("a delayed message cannot have a time to live as well"));
    }
    Ok(Ticks::of(delay))
}

pub(crate) fn short(text: &str) -> Result<ShortString> {
    ShortString::try_new(text).map_err(|_| {
        Error::new(ErrorKind::InvalidInput, "a name has at most 255 bytes").with_context("actual", text.len())
    })
}

fn with_fields(mut properties: BasicProperties, message: &Message, note: &mut Note) -> BasicProperties {
    let texts: [(Option<&str>, Field, Set); 4] = [
        (message.get_id(), Field::Id, BasicProperties::with_message_id),
        (message.get_content_type(), Field::ContentType, BasicProperties::with_content_type),
        (message.get_correlation_id(), Field::CorrelationId, BasicProperties::with_correlation_id),
        (message.get_reply_to(), Field::ReplyTo, BasicProperties::with_reply_to),
    ];
    for (value, field, set) in texts {
        match value.map(ShortString::try_new) {
            Some(Ok(value)) => properties = set(properties, value),
            Some(Err(_)) => note.field(field, message),
            None => {}
        }
    }
    for (name, set) in DESCRIBING {
        let value = message.native_headers().get(name).and_then(HeaderValue::as_str);
        if let Some(Ok(value)) = value.map(ShortString::try_new) {
            properties = set(properties, value);
        }
    }
    if let Some(priority) = message.get_priority() {
        properties = properties.with_priority(priority);
    }
    if let Some(time) = message.get_timestamp() {
        let since = time.duration_since(UNIX_EPOCH);
        if let Ok(since) = since {
            properties = properties.with_timestamp(since.as_secs());
        }
        if since.map_or(true, |s| s.subsec_nanos() > 0) {
            note.field(Field::Timestamp, message);
        }
    }
    if let Some(ttl) = message.get_ttl() {
        // At least a millisecond: zero would mean never to wait at all.
        let millis = ttl.as_nanos().div_ceil(1_000_000).max(1);
        if let Ok(millis) = ShortString::try_new(millis.to_string()) {
            properties = properties.with_expiration(millis);
        }
    }
    note.field(Field::Tombstone, message);
    properties
}

/// Puts headers into the table, which is ordered by name, and notes what that loses.
fn headers(headers: &Headers, table: &mut BTreeMap<ShortString, AMQPValue>, note: &mut Note) {
    enum Way {
        Native,
        Text,
        Inline,
    }
    let mut ways = Vec::with_capacity(headers.len());
    let mut plain = true;
    let mut last: Option<&str> = None;
    for (name, value) in headers.iter() {
        plain &= last.is_none_or(|last| last < name);
        last = Some(name);
        let key = match ShortString::try_new(name) {
            Ok(key) if !is_brokers(name) && name != wire::HEADER && !table.contains_key(&key) => key,
            _ => {
                ways.push(Way::Inline);
                continue;
            }
        };
        ways.push(if let Some(value) = native(value) {
            table.insert(key, value);
            Way::Native
        } else if matches!(value, HeaderValue::Timestamp(_) | HeaderValue::Float(_)) {
            table.insert(key, AMQPValue::LongString(wire::to_text(value).into_owned().into()));
            Way::Text
        } else {
            Way::Inline
        });
    }
    if plain && ways.iter().all(|w| matches!(w, Way::Native)) {
        return;
    }
    let names: Vec<&str> = table.keys().map(ShortString::as_str).collect();
    for ((name, value), way) in headers.iter().zip(ways) {
        let place = || names.binary_search(&name).unwrap_or_default();
        match way {
            Way::Native => note.native(place()),
            Way::Text => note.retyped(place(), value),
            Way::Inline => note.inline(name, value),
        }
    }
}

/// Whether there are more lists and maps within each other than so many.
fn is_deeper(value: &HeaderValue, depth: usize) -> bool {
    match value {
        HeaderValue::List(list) => depth == 0 || list.iter().any(|v| is_deeper(v, depth - 1)),
        HeaderValue::Map(map) => depth == 0 || map.iter().any(|(_, v)| is_deeper(v, depth - 1)),
        _ => false,
    }
}

/// The value in the protocol's own types; `None` when it would not come back as it is.
fn native(value: &HeaderValue) -> Option<AMQPValue> {
    Some(match value {
        HeaderValue::Bytes(b) => AMQPValue::ByteArray(b.as_ref().into()),
        HeaderValue::Str(s) => AMQPValue::LongString(LongString::from(s.as_bytes())),
        HeaderValue::Int(i) => AMQPValue::LongLongInt(*i),
        // The server has no other numbers, and closes the connection when it meets one.
        HeaderValue::Float(f) if f.is_finite() => AMQPValue::Double(*f),
        HeaderValue::Bool(b) => AMQPValue::Boolean(*b),
        HeaderValue::Timestamp(t) => {
            let since = t.duration_since(UNIX_EPOCH).ok().filter(|s| s.subsec_nanos() == 0)?;
            AMQPValue::Timestamp(since.as_secs())
        }
        HeaderValue::List(list) => AMQPValue::FieldArray(list.iter().map(native).collect::<Option<Vec<_>>>()?.into()),
        HeaderValue::Map(map) => {
            if !map.windows(2).all(|pair| pair[0].0 < pair[1].0) {
                return None;
            }
            let field =
                |(name, value): &(Text, HeaderValue)| Some((ShortString::try_new(name.as_ref()).ok()?, native(value)?));
            AMQPValue::FieldTable(map.iter().map(field).collect::<Option<BTreeMap<_, _>>>()?.into())
        }
        HeaderValue::Null => AMQPValue::Void,
        _ => return None,
    })
}

/// Reads any value; no type is unknown. `None` when there are more lists and tables within each other than `depth`.
fn value(raw: &AMQPValue, depth: usize) -> Option<HeaderValue> {
    Some(match raw {
        AMQPValue::Boolean(b) => HeaderValue::Bool(*b),
        AMQPValue::ShortShortInt(i) => HeaderValue::Int((*i).into()),
        AMQPValue::ShortShortUInt(i) => HeaderValue::Int((*i).into()),
        AMQPValue::ShortInt(i) => HeaderValue::Int((*i).into()),
        AMQPValue::ShortUInt(i) => HeaderValue::Int((*i).into()),
        AMQPValue::LongInt(i) => HeaderValue::Int((*i).into()),
        AMQPValue::LongUInt(i) => HeaderValue::Int((*i).into()),
        AMQPValue::LongLongInt(i) => HeaderValue::Int(*i),
        AMQPValue::Float(f) => HeaderValue::Float((*f).into()),
        AMQPValue::Double(f) => HeaderValue::Float(*f),
        // Signed in other clients and in the server, whatever the client's type says.
        AMQPValue::DecimalValue(d) => {
            HeaderValue::Float(f64::from(d.value.cast_signed()) / 10_f64.powi(d.scale.into()))
        }
        AMQPValue::ShortString(s) => HeaderValue::Str(s.as_str().to_owned().into()),
        AMQPValue::LongString(s) => match std::str::from_utf8(s.as_bytes()) {
            Ok(text) => HeaderValue::Str(text.to_owned().into()),
            Err(_) => HeaderValue::Bytes(Bytes::copy_from_slice(s.as_bytes())),
        },
        AMQPValue::FieldArray(list) => {
            let depth = depth.checked_sub(1)?;
            HeaderValue::List(list.as_slice().iter().map(|v| value(v, depth)).collect::<Option<_>>()?)
        }
        AMQPValue::Timestamp(seconds) => match time(*seconds) {
            Some(time) => HeaderValue::Timestamp(time),
            None => HeaderValue::Int(seconds.cast_signed()),
        },
        AMQPValue::FieldTable(map) => {
            let depth = depth.checked_sub(1)?;
            let field =
                |(k, v): (&ShortString, &AMQPValue)| Some((Cow::Owned(k.as_str().to_owned()), value(v, depth)?));
            HeaderValue::Map(map.into_iter().map(field).collect::<Option<_>>()?)
        }
        AMQPValue::ByteArray(b) => HeaderValue::Bytes(Bytes::copy_from_slice(b.as_slice())),
        AMQPValue::Void => HeaderValue::Null,
    })
}

fn time(seconds: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Reads what arrived: the message, and which attempt this is.
pub(crate) fn incoming(delivery: Delivery) -> (Result<Message, Box<Undecodable>>, u32) {
    let Delivery { exchange, routing_key, properties, data, redelivered, .. } = delivery;
    let mut message = Message::new(data);
    // On the default exchange the routing key is the name of the queue, behind a delay it is the way here.
    let is_subject = !exchange.as_str().is_empty() && !exchange.as_str().starts_with(delay::PREFIX);
    if is_subject && !routing_key.as_str().is_empty() {
        message = message.subject(String::from(routing_key));
    }
    message = read_fields(message, &properties);
    let mut broker = Headers::new();
    let others: [(&'static str, &Option<ShortString>); 5] = [
        ("content-encoding", properties.content_encoding()),
        ("type", properties.kind()),
        ("user-id", properties.user_id()),
        ("app-id", properties.app_id()),
        ("cluster-id", properties.cluster_id()),
    ];
    for (name, text) in others {
        if let Some(text) = text {
            broker.append(name, text.as_str().to_owned());
        }
    }
    let mut attempt = 1;
    let mut is_readable = true;
    if let Some(table) = properties.headers() {
        let mut list = Vec::with_capacity(table.inner().len());
        let mut note = None;
        for (name, raw) in table {
            let name = name.as_str();
            if name == wire::HEADER {
                note = raw.as_long_string().and_then(|n| std::str::from_utf8(n.as_bytes()).ok());
                continue;
            }
            let Some(value) = value(raw, MAX_DEPTH) else {
                is_readable = false;
                continue;
            };
            if is_brokers(name) {
                // A message that was never delivered from here may bring the count of another queue.
                if name == "x-delivery-count" && redelivered {
                    let earlier = value.as_int().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
                    attempt = earlier.saturating_add(1);
                }
                if name == "x-death"
                    && let Some(queue) = died_in(&value)
                {
                    broker.append(dead_letter::ORIGIN, queue.to_owned());
                }
                broker.append(name.to_owned(), value);
            } else {
                list.push((Cow::Owned(name.to_owned()), value));
            }
        }
        message = wire::restore(message, list, note);
    }
    if !is_readable {
        let error = Error::new(ErrorKind::Codec, "too many lists and tables within each other in a header")
            .with_context("limit", MAX_DEPTH);
        return (Err(Box::new(Undecodable { raw: message.into_payload(), error })), attempt);
    }
    (Ok(message.with_native_headers(broker)), attempt)
}

/// The queue that the server moved the message from last, other than one that delays.
fn died_in(deaths: &HeaderValue) -> Option<&str> {
    let HeaderValue::List(deaths) = deaths else { return None };
    let Some(HeaderValue::Map(last)) = deaths.first() else { return None };
    let queue = last.iter().find(|(name, _)| name == "queue")?.1.as_str()?;
    (!queue.starts_with(RESERVED_PREFIX)).then_some(queue)
}

fn read_fields(mut message: Message, properties: &BasicProperties) -> Message {
    let text = |value: &Option<ShortString>| value.as_ref().map(|v| v.as_str().to_owned());
    if let Some(id) = text(properties.message_id()) {
        message = message.id(id);
    }
    if let Some(kind) = text(properties.content_type()) {
        message = message.content_type(kind);
    }
    if let Some(id) = text(properties.correlation_id()) {
        message = message.correlation_id(id);
    }
    if let Some(address) = text(properties.reply_to()) {
        message = message.reply_to(address);
    }
    if let Some(priority) = properties.priority() {
        message = message.priority(*priority);
    }
    if let Some(time) = properties.timestamp().and_then(time) {
        message = message.timestamp(time);
    }
    if let Some(millis) = properties.expiration().as_ref().and_then(|e| e.as_str().parse().ok()) {
        message = message.ttl(Duration::from_millis(millis));
    }
    message
}

/// Bytes of the text properties, generously.
fn properties_size(message: &Message) -> usize {
    let texts = [message.get_id(), message.get_content_type(), message.get_correlation_id(), message.get_reply_to()];
    let native = DESCRIBING.iter().map(|(name, _)| message.native_headers().get(name).and_then(HeaderValue::as_str));
    // One for the length of each; delivery mode, priority, timestamp and the digits of an expiration.
    texts.into_iter().chain(native).flatten().map(|t| t.len().min(MAX_SHORT) + 1).sum::<usize>() + 64
}

fn table_size<'a>(table: impl IntoIterator<Item = (&'a ShortString, &'a AMQPValue)>) -> usize {
    4 + table.into_iter().map(|(name, value)| 1 + name.as_str().len() + value_size(value)).sum::<usize>()
}

/// Bytes of a value on the wire, its type included.
fn value_size(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::LongString(s) => 4 + s.len(),
        AMQPValue::ByteArray(b) => 4 + b.len(),
        AMQPValue::ShortString(s) => 1 + s.as_str().len(),
        AMQPValue::FieldArray(list) => 4 + list.as_slice().iter().map(value_size).sum::<usize>(),
        AMQPValue::FieldTable(map) => table_size(map),
        _ => 8,
    }
}

/// Reads an option of the broker: a number, true, false, or a text.
pub(crate) fn argument(text: &str) -> AMQPValue {
    if let Ok(number) = text.parse() {
        return AMQPValue::LongLongInt(number);
    }
    match text {
        "true" => AMQPValue::Boolean(true),
        "false" => AMQPValue::Boolean(false),
        _ => AMQPValue::LongString(LongString::from(text.as_bytes())),
    }
}

/// Makes the arguments of a queue or an exchange.
pub(crate) fn arguments<'a>(list: impl IntoIterator<Item = (&'a str, AMQPValue)>) -> Result<FieldTable> {
    let mut table = FieldTable::default();
    for (name, value) in list {
        table.insert(short(name)?, value);
    }
    Ok(table)
}

#[cfg(test)]
mod tests;
