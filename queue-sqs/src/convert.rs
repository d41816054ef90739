//! Messages to entries of a batch, and what arrives to messages. The table in the crate's docs says the same in words.

use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};

use aws_sdk_sqs::types::{
    Message as Native, MessageAttributeValue, MessageSystemAttributeName as System, SendMessageBatchRequestEntry,
};
use aws_smithy_types::Blob;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use queue_core::wire::{self, Field, Note};
use queue_core::{Error, ErrorKind, HeaderValue, Headers, Message, Position, Result, Text, Undecodable, dead_letter};

use crate::address::Kind;

/// The attribute that says how a body is to be read that could not travel as it is.
pub(crate) const ENCODING: &str = "anyqueue-encoding";
const IS_BASE64: &str = "base64";
const IS_EMPTY: &str = "empty";
/// The body of an empty message: SQS takes no empty body.
const EMPTY_BODY: &str = "-";

/// The message group of messages without a key.
pub(crate) const NO_KEY: &str = "anyqueue";
/// What a message group or deduplication id starts with that stands for a key or id of other characters.
const HASHED: &str = "anyqueue-";

/// Amazon's own id of a message that arrived, among the native headers.
const MESSAGE_ID: &str = "MessageId";

/// Attributes of one message, those of this adapter included.
const MAX_ATTRIBUTES: usize = 10;
/// The longest name of an attribute.
const MAX_NAME: usize = 256;
/// The longest message group and deduplication id.
const MAX_ID: usize = 128;
/// Digits that a number attribute keeps.
const MAX_DIGITS: usize = 38;
/// The largest number that an attribute keeps on its way through a topic, and its digits behind the point.
const MAX_PUBLISHED: (i64, usize) = (1_000_000_000, 5);
/// The longest delay of a sent message.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(900);

/// The types of attributes.
const STRING: &str = "String";
const NUMBER: &str = "Number";
const BINARY: &str = "Binary";

/// A message as it is sent.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) entry: SendMessageBatchRequestEntry,
    /// What counts towards the limits of messages and batches.
    pub(crate) size: usize,
}

/// Makes the entry of a message, without its id within the request. A message for a FIFO queue or topic has an id of its
/// own.
///
/// What goes to a topic is the same: its groups' queues get it as if it had been sent to them, and drop what has more
/// attributes than a queue takes without a word.
pub(crate) fn encode(message: &Message, kind: Kind) -> Result<Encoded> {
    let Kind { topic, fifo } = kind;
    if message.get_ttl().is_some() {
        return Err(Error::unsupported("SQS has no time to live per message"));
    }
    let (body, encoding) = encode_body(message.payload());
    let mut size = body.len();
    let mut attributes = HashMap::new();
    let mut attach = |name: &str, value: MessageAttributeValue, bytes: usize| {
        size += name.len() + value.data_type().len() + bytes;
        attributes.insert(name.to_owned(), value);
    };
    if let Some(encoding) = encoding {
        attach(ENCODING, string(STRING, encoding.to_owned())?, encoding.len());
    }
    let group = fifo.then(|| message_group(message));
    let deduplication = fifo.then(|| deduplication_id(message));
    let room = MAX_ATTRIBUTES - usize::from(encoding.is_some());
    let plan = plan(message, group.as_deref(), deduplication.as_deref(), topic, room);
    for (name, value) in &plan.native {
        let value = native_value(value)?;
        let bytes = value.string_value().map_or(0, str::len) + value.binary_value().map_or(0, |b| b.as_ref().len());
        attach(name, value, bytes);
    }
    if let Some(note) = plan.note {
        let bytes = note.len();
        attach(wire::HEADER, string(STRING, note)?, bytes);
    }
    let mut entry = SendMessageBatchRequestEntry::builder()
        .id(String::new())
        .message_body(body)
        .set_message_attributes((!attributes.is_empty()).then_some(attributes))
        .set_message_group_id(group)
        .set_message_deduplication_id(deduplication);
    if let Some(delay) = message.get_delay().filter(|d| !d.is_zero()) {
        if topic {
            return Err(Error::unsupported("a topic has no delay per message"));
        }
        if fifo {
            return Err(Error::unsupported("a FIFO queue has no delay per message"));
        }
        if delay > MAX_DELAY {
            return Err(Error::unsupported("the delay is longer than SQS can")
                .with_context("limit", format!("{MAX_DELAY:?}"))
                .with_context("actual", format!("{delay:?}")));
        }
        entry = entry.delay_seconds(whole_seconds(delay));
    }
    let entry = entry.build().map_err(|_| incomplete())?;
    Ok(Encoded { entry, size })
}

/// Whole seconds, never less than the duration.
pub(crate) fn whole_seconds(duration: Duration) -> i32 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

fn encode_body(payload: &Bytes) -> (String, Option<&'static str>) {
    match std::str::from_utf8(payload) {
        Ok("") => (EMPTY_BODY.to_owned(), Some(IS_EMPTY)),
        Ok(text) if is_plain(payload) || text.chars().all(is_legal) => (text.to_owned(), None),
        _ => (BASE64.encode(payload), Some(IS_BASE64)),
    }
}

/// Whether all are characters of ASCII that can be seen, or blanks: known without taking the characters one by one.
fn is_plain(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~'))
}

/// The characters of XML 1.0, which are all that a body or an attribute may hold.
fn is_legal(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// What becomes of headers and properties.
struct Plan<'a> {
    /// The headers that are attributes, by name.
    native: Vec<(&'a str, &'a HeaderValue)>,
    note: Option<String>,
}

/// Carries as many headers as attributes as there is room for, and notes the rest.
fn plan<'a>(
    message: &'a Message,
    group: Option<&str>,
    deduplication: Option<&str>,
    topic: bool,
    room: usize,
) -> Plan<'a> {
    let mut note = Note::default();
    let key_noted = message.get_key().is_some_and(|k| group.is_none_or(|g| g.as_bytes() != k.as_ref()));
    let fields = [
        // A FIFO queue says the id as deduplication id, and a key of legal characters as message group.
        (Field::Key, key_noted),
        (Field::Id, message.get_id().is_some() && message.get_id() != deduplication),
        (Field::Subject, message.get_subject().is_some()),
        (Field::ContentType, message.get_content_type().is_some()),
        (Field::CorrelationId, message.get_correlation_id().is_some()),
        (Field::ReplyTo, message.get_reply_to().is_some()),
        (Field::Priority, message.get_priority().is_some()),
        (Field::Timestamp, message.get_timestamp().is_some()),
        (Field::Tombstone, message.is_tombstone()),
    ];
    let mut noted = false;
    for (field, _) in fields.into_iter().filter(|(_, present)| *present) {
        note.field(field, message);
        noted = true;
    }
    let headers = message.headers();
    let fit = |(name, value): (&str, &HeaderValue)| {
        is_native(name, value) && (!topic || is_published(value)) && headers.get_all(name).count() == 1
    };
    let mut fits: Vec<bool> = headers.iter().map(fit).collect();
    let sorted = headers.iter().zip(headers.iter().skip(1)).all(|((a, _), (b, _))| a < b);
    let plain = headers.iter().all(|(_, v)| !matches!(v, HeaderValue::Bool(_) | HeaderValue::Timestamp(_)));
    let listed = !sorted || !plain || headers.len() > room - usize::from(noted) || fits.contains(&false);
    let mut left = room - usize::from(noted || listed);
    for fit in &mut fits {
        *fit = *fit && left > 0;
        left -= usize::from(*fit);
    }
    let mut native: Vec<_> = headers.iter().zip(&fits).filter(|(_, fit)| **fit).map(|(header, _)| header).collect();
    native.sort_unstable_by_key(|(name, _)| *name);
    if listed {
        for ((name, value), fit) in headers.iter().zip(&fits) {
            match native.binary_search_by_key(&name, |(n, _)| *n) {
                Ok(index) if *fit && matches!(value, HeaderValue::Bool(_) | HeaderValue::Timestamp(_)) => {
                    note.retyped(index, value);
                }
                Ok(index) if *fit => note.native(index),
                _ => note.inline(name, value),
            }
        }
    }
    Plan { native, note: note.finish() }
}

fn is_native(name: &str, value: &HeaderValue) -> bool {
    let lower = name.get(..7).unwrap_or(name).to_ascii_lowercase();
    let name_fits = (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !name.contains("..")
        && !lower.starts_with("aws.")
        && !lower.starts_with("amazon.")
        && name != wire::HEADER
        && name != ENCODING;
    name_fits
        && match value {
            HeaderValue::Str(s) => !s.is_empty() && s.chars().all(is_legal),
            HeaderValue::Bytes(b) => !b.is_empty(),
            HeaderValue::Int(_) | HeaderValue::Bool(_) | HeaderValue::Timestamp(_) => true,
            HeaderValue::Float(f) => {
                // A whole number would come back as an integer.
                let text = f.to_string();
                f.is_finite() && text.len() <= MAX_DIGITS && text.contains('.')
            }
            _ => false,
        }
}

/// Whether a topic gives a number on as it is: one out of a range is not promised to keep its digits.
fn is_published(value: &HeaderValue) -> bool {
    let (most, digits) = MAX_PUBLISHED;
    match value {
        HeaderValue::Int(number) => (-most..=most).contains(number),
        HeaderValue::Float(number) => {
            let text = number.to_string();
            let behind = text.split_once('.').map_or(0, |(_, behind)| behind.len());
            number.abs() <= most as f64 && behind <= digits
        }
        _ => true,
    }
}

fn native_value(value: &HeaderValue) -> Result<MessageAttributeValue> {
    match value {
        HeaderValue::Bytes(b) => MessageAttributeValue::builder()
            .data_type(BINARY)
            .binary_value(Blob::new(b.as_ref()))
            .build()
            .map_err(|_| incomplete()),
        HeaderValue::Int(i) => string(NUMBER, i.to_string()),
        HeaderValue::Float(f) => string(NUMBER, f.to_string()),
        other => string(STRING, String::from_utf8_lossy(&wire::to_text(other)).into_owned()),
    }
}

fn string(data_type: &str, value: String) -> Result<MessageAttributeValue> {
    MessageAttributeValue::builder().data_type(data_type).string_value(value).build().map_err(|_| incomplete())
}

fn incomplete() -> Error {
    Error::new(ErrorKind::Internal, "an entry of a batch is incomplete")
}

/// Whether the text may be a message group or a deduplication id: letters, digits and punctuation of ASCII.
fn is_id(text: &[u8]) -> bool {
    (1..=MAX_ID).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic)
}

/// The message group of a key: the key itself where its characters allow, else a hash of it. Two keys with one hash
/// would share a group, which costs parallelism and breaks nothing: the key itself is noted.
fn group_id(key: &Bytes) -> String {
    if key.as_ref() == NO_KEY.as_bytes() { hashed(key) } else { own_or_hashed(key) }
}

/// The message group of a message for a FIFO queue.
pub(crate) fn message_group(message: &Message) -> String {
    message.get_key().map_or_else(|| NO_KEY.to_owned(), group_id)
}

/// The deduplication id of a message: its id where the characters allow, else a hash of it, and the id is noted.
///
/// A message that arrived and is sent on (a dead letter, and one that is put back) has a hash of its id and of Amazon's
/// own id of what arrived. With the id alone Amazon would swallow what comes back to a queue within five minutes; like
/// this it swallows only what is sent on twice, because its answer was lost.
fn deduplication_id(message: &Message) -> String {
    let id = message.get_id().unwrap_or_default();
    match message.native_headers().get(MESSAGE_ID).and_then(HeaderValue::as_str) {
        Some(arrived) => hashed(format!("{arrived} {id}").as_bytes()),
        None => own_or_hashed(id.as_bytes()),
    }
}

fn own_or_hashed(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if is_id(bytes) && !text.starts_with(HASHED) => text.to_owned(),
        _ => hashed(bytes),
    }
}

fn hashed(bytes: &[u8]) -> String {
    format!("{HASHED}{:032x}", fnv1a(bytes))
}

/// FNV-1a of 128 bits: short, the same everywhere and for ever.
fn fnv1a(bytes: &[u8]) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(BASIS, |hash, b| (hash ^ u128::from(*b)).wrapping_mul(PRIME))
}

/// What a receive asks for beside the message.
pub(crate) const SYSTEM: [System; 7] = [
    System::ApproximateReceiveCount,
    System::SentTimestamp,
    System::MessageGroupId,
    System::MessageDeduplicationId,
    System::SequenceNumber,
    System::DeadLetterQueueSourceArn,
    System::AwsTraceHeader,
];

/// What the broker tells beside the message.
#[derive(Default)]
struct Told {
    receives: Option<String>,
    sent: Option<String>,
    group: Option<String>,
    duplicate_of: Option<String>,
    sequence: Option<String>,
    source: Option<String>,
    trace: Option<String>,
}

impl Told {
    fn of(attributes: Option<HashMap<System, String>>) -> Self {
        let mut told = Self::default();
        for (name, value) in attributes.into_iter().flatten() {
            let place = match name {
                System::ApproximateReceiveCount => &mut told.receives,
                System::SentTimestamp => &mut told.sent,
                System::MessageGroupId => &mut told.group,
                System::MessageDeduplicationId => &mut told.duplicate_of,
                System::SequenceNumber => &mut told.sequence,
                System::DeadLetterQueueSourceArn => &mut told.source,
                System::AwsTraceHeader => &mut told.trace,
                _ => continue,
            };
            *place = Some(value);
        }
        told
    }
}

/// A message as it arrived.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) message: Result<Message, Box<Undecodable>>,
    pub(crate) attempt: u32,
    pub(crate) position: Position,
    pub(crate) receipt: String,
    pub(crate) bytes: usize,
}

/// Reads what arrived; `None` without a receipt handle, which no message lacks.
pub(crate) fn decode(native: Native, fifo: bool) -> Option<Decoded> {
    let Native { message_id, receipt_handle, body, attributes, message_attributes, .. } = native;
    let told = Told::of(attributes);
    let attempt = told.receives.and_then(|n| n.parse().ok()).unwrap_or(1);
    let sequence = told.sequence.as_ref().and_then(|n| n.parse().ok());
    let sent = told.sent.and_then(|n| n.parse().ok()).map(Duration::from_millis);

    let (mut encoding, mut note, mut headers) = (None, None, Vec::new());
    for (name, value) in message_attributes.into_iter().flatten() {
        match &*name {
            ENCODING => encoding = value.string_value,
            wire::HEADER => note = value.string_value,
            _ => headers.push((Text::from(name), header_value(value))),
        }
    }
    headers.sort_unstable_by(|a, b| a.0.cmp(&b.0));

    let message = decode_body(body.unwrap_or_default(), encoding.as_deref()).map(|payload| {
        let mut message = Message::new(payload);
        if fifo {
            // Before the note, which knows better.
            if let Some(group) = told.group.clone().filter(|g| g != NO_KEY && !g.starts_with(HASHED)) {
                message = message.key(group);
            }
            if let Some(id) = told.duplicate_of.filter(|id| !id.starts_with(HASHED)) {
                message = message.id(id);
            }
        }
        message = wire::restore(message, headers, note.as_deref());
        if let Some(at) = sent.and_then(|since| UNIX_EPOCH.checked_add(since)) {
            message = message.with_sent_at(at);
        }
        let mut own = Headers::new();
        if let Some(id) = message_id {
            own.append(MESSAGE_ID, id);
        }
        for (label, value) in [
            ("MessageGroupId", told.group),
            ("SequenceNumber", told.sequence),
            // The name ends the ARN.
            (dead_letter::ORIGIN, told.source.as_ref().and_then(|arn| arn.rsplit(':').next()).map(str::to_owned)),
            ("DeadLetterQueueSourceArn", told.source),
            ("AWSTraceHeader", told.trace),
        ] {
            if let Some(value) = value {
                own.append(label, value);
            }
        }
        message.with_native_headers(own)
    });
    let bytes = match &message {
        Ok(message) => message.size(),
        Err(undecodable) => undecodable.raw.len(),
    };
    Some(Decoded { message, attempt, position: Position::new(None, sequence), receipt: receipt_handle?, bytes })
}

fn decode_body(body: String, encoding: Option<&str>) -> Result<Bytes, Box<Undecodable>> {
    let why = match encoding {
        None => return Ok(body.into()),
        Some(IS_EMPTY) => return Ok(Bytes::new()),
        Some(IS_BASE64) => match BASE64.decode(&body) {
            Ok(bytes) => return Ok(bytes.into()),
            Err(_) => "the body is marked as base64 and is none",
        },
        Some(_) => "the body has an encoding that is not known",
    };
    let error = Error::new(ErrorKind::Codec, why).with_operation("receive");
    Err(Box::new(Undecodable { raw: body.into(), error }))
}

fn header_value(value: MessageAttributeValue) -> HeaderValue {
    // A type may carry a label of the sender's own behind a dot.
    let data_type = value.data_type.split('.').next().unwrap_or_default();
    match (data_type, value.string_value, value.binary_value) {
        (BINARY, _, Some(bytes)) => HeaderValue::Bytes(bytes.into_inner().into()),
        (NUMBER, Some(text), _) => match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(whole), _) => HeaderValue::Int(whole),
            (_, Ok(number)) if number.is_finite() => HeaderValue::Float(number),
            _ => HeaderValue::Str(text.into()),
        },
        (_, Some(text), _) => HeaderValue::Str(text.into()),
        (_, None, Some(bytes)) => HeaderValue::Bytes(bytes.into_inner().into()),
        (_, None, None) => HeaderValue::Null,
    }
}

#[cfg(test)]
mod tests;
