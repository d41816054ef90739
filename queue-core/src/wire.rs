//! The reserved header `anyqueue-h`: what a protocol cannot say natively.
//!
//! One compact ASCII format, shared by all adapters, absent when not needed. An adapter carries headers natively as far
//! as it can, in a native list with a defined order (AMQP and SQS: by name; Kafka: as sent), and notes the rest:
//!
//! * `n.` header `n` of the native list, as it is;
//! * `nT` header `n` of the native list, whose text form is a value of type `T`;
//! * `:name;value` a header that could not be carried natively;
//! * `#F…;` a property of the message that the protocol has no place for.
//!
//! `T` is `y` bytes, `s` text, `i` integer, `d` float, `b` boolean, `@` time, `v` any other value in this format's own
//! form. Names and texts are percent-encoded.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};

use crate::dead_letter::DUE;
use crate::error::{Error, ErrorKind, Result};
use crate::headers::{HeaderValue, Headers, Text};
use crate::message::Message;

/// Before when a copy that makes a retry is not to be handed out, where it says so: for adapters that hold copies back
/// until then. Anybody can write the header, so it is a time to wait for, not one to trust.
#[must_use]
pub fn due(message: &Message) -> Option<SystemTime> {
    match message.headers().get(DUE) {
        Some(HeaderValue::Timestamp(due)) => Some(*due),
        _ => None,
    }
}

/// Says before when a message is not to be handed out: for adapters that delay by sending on.
#[must_use]
pub fn with_due(mut message: Message, due: SystemTime) -> Message {
    take_due(&mut message);
    message.header(DUE, due)
}

/// As [`due`], and takes it off the message.
pub fn take_due(message: &mut Message) -> Option<SystemTime> {
    message.headers().get(DUE)?;
    let due = due(message);
    message.headers_mut().retain(|name, _| name != DUE);
    due
}

/// The name of the reserved header.
pub const HEADER: &str = "anyqueue-h";

const ESCAPED: &AsciiSet =
    &CONTROLS.add(b'%').add(b';').add(b' ').add(b'"').add(b'&').add(b'<').add(b'>').add(b'\\').add(b'}');

/// A property of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Field {
    /// The key.
    Key,
    /// The id.
    Id,
    /// The subject.
    Subject,
    /// The content type.
    ContentType,
    /// The correlation id.
    CorrelationId,
    /// Where replies go.
    ReplyTo,
    /// The priority.
    Priority,
    /// The timestamp, as seconds and nanoseconds.
    Timestamp,
    /// That the message is a tombstone.
    Tombstone,
}

impl Field {
    const ALL: [(Self, char); 9] = [
        (Self::Key, 'k'),
        (Self::Id, 'i'),
        (Self::Subject, 's'),
        (Self::ContentType, 'c'),
        (Self::CorrelationId, 'o'),
        (Self::ReplyTo, 'r'),
        (Self::Priority, 'p'),
        (Self::Timestamp, 't'),
        (Self::Tombstone, 'x'),
    ];
}

/// Collects what has to be noted about one message.
///
/// ```
/// use queue_core::wire::{Note, restore};
/// use queue_core::{HeaderValue, Message};
///
/// let mut note = Note::default();
/// note.retyped(0, &HeaderValue::Int(7)); // carried as the text "7"
/// let note = note.finish().unwrap();
/// let message = restore(Message::new("x"), vec![("n".into(), "7".into())], Some(&note));
/// assert_eq!(message.headers().get("n"), Some(&HeaderValue::Int(7)));
/// ```
#[derive(Debug, Default)]
pub struct Note {
    text: String,
    next: usize,
    needed: bool,
}

impl Note {
    /// Notes a property, if the message has it.
    pub fn field(&mut self, field: Field, message: &Message) {
        let value: Option<Cow<'_, [u8]>> = match field {
            Field::Key => message.get_key().map(|k| Cow::Borrowed(k.as_ref())),
            Field::Id => message.get_id().map(|v| v.as_bytes().into()),
            Field::Subject => message.get_subject().map(|v| v.as_bytes().into()),
            Field::ContentType => message.get_content_type().map(|v| v.as_bytes().into()),
            Field::CorrelationId => message.get_correlation_id().map(|v| v.as_bytes().into()),
            Field::ReplyTo => message.get_reply_to().map(|v| v.as_bytes().into()),
            Field::Priority => message.get_priority().map(|p| p.to_string().into_bytes().into()),
            Field::Timestamp => message.get_timestamp().map(|t| time_text(t).into_bytes().into()),
            Field::Tombstone => message.is_tombstone().then(|| Cow::Borrowed(&b""[..])),
        };
        if let (Some(value), Some((_, letter))) = (value, Field::ALL.iter().find(|(f, _)| *f == field)) {
            let _ = write!(self.text, "#{letter}{};", percent_encode(&value, ESCAPED));
            self.needed = true;
        }
    }

    /// The next header stands at `index` of the native list as it is.
    pub fn native(&mut self, index: usize) {
        let _ = write!(self.text, "{index}.");
        self.needed |= index != self.next;
        self.next = index + 1;
    }

    /// The next header stands at `index` of the native list as the text form ([`to_text`]) of `value`.
    pub fn retyped(&mut self, index: usize, value: &HeaderValue) {
        let _ = write!(self.text, "{index}{}", type_letter(value));
        self.needed = true;
        self.next = index + 1;
    }

    /// The next header is not in the native list.
    pub fn inline(&mut self, name: &str, value: &HeaderValue) {
        let _ = write!(self.text, ":{};", percent_encode(name.as_bytes(), ESCAPED));
        encode(value, &mut self.text);
        self.needed = true;
    }

    /// The note; `None` when the native headers say it all.
    #[must_use]
    pub fn finish(self) -> Option<String> {
        self.needed.then_some(self.text)
    }
}

/// Puts headers and noted properties into a message. A note that cannot be read is ignored: the native headers stay.
#[must_use]
pub fn restore(message: Message, native: Vec<(Text, HeaderValue)>, note: Option<&str>) -> Message {
    let Some(note) = note else { return message.with_headers(native.into_iter().collect()) };
    match read(message.clone(), &native, note) {
        Ok(message) => message,
        Err(error) => {
            tracing::debug!(%error, "unreadable {HEADER} header");
            message.with_headers(native.into_iter().collect())
        }
    }
}

fn read(mut message: Message, native: &[(Text, HeaderValue)], note: &str) -> Result<Message> {
    let bad = || Error::new(ErrorKind::Codec, "malformed note");
    let mut headers = Headers::new();
    let mut listed = false;
    let mut rest = note;
    while let Some(first) = rest.chars().next() {
        match first {
            '#' => {
                let (item, tail) = rest[1..].split_once(';').ok_or_else(bad)?;
                rest = tail;
                let letter = item.chars().next().ok_or_else(bad)?;
                let value = item.get(letter.len_utf8()..).ok_or_else(bad)?;
                message = set_field(message, letter, value).ok_or_else(bad)?;
            }
            ':' => {
                listed = true;
                let (name, tail) = rest[1..].split_once(';').ok_or_else(bad)?;
                let (value, tail) = decode(tail).ok_or_else(bad)?;
                rest = tail;
                headers.append(text(name).ok_or_else(bad)?, value);
            }
            _ => {
                listed = true;
                let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
                let index: usize = rest[..digits].parse().map_err(|_| bad())?;
                let kind = rest[digits..].chars().next().ok_or_else(bad)?;
                rest = &rest[digits + kind.len_utf8()..];
                let (name, value) = native.get(index).ok_or_else(bad)?;
                let value = if kind == '.' { value.clone() } else { from_text(kind, value).ok_or_else(bad)? };
                headers.append(name.clone(), value);
            }
        }
    }
    if !listed {
        headers = native.iter().cloned().collect();
    }
    Ok(message.with_headers(headers))
}

fn set_field(message: Message, letter: char, value: &str) -> Option<Message> {
    let bytes: Vec<u8> = percent_decode_str(value).collect();
    let string = || String::from_utf8(bytes.clone()).ok();
    let Some((field, _)) = Field::ALL.iter().find(|(_, l)| *l == letter) else {
        return Some(message); // of a later version
    };
    Some(match field {
        Field::Key => message.key(bytes),
        Field::Id => message.id(string()?),
        Field::Subject => message.subject(string()?),
        Field::ContentType => message.content_type(string()?),
        Field::CorrelationId => message.correlation_id(string()?),
        Field::ReplyTo => message.reply_to(string()?),
        Field::Priority => message.priority(string()?.parse().ok()?),
        Field::Timestamp => message.timestamp(parse_time(&string()?)?),
        Field::Tombstone => message.into_tombstone(),
    })
}

fn type_letter(value: &HeaderValue) -> char {
    match value {
        HeaderValue::Bytes(_) => 'y',
        HeaderValue::Str(_) => 's',
        HeaderValue::Int(_) => 'i',
        HeaderValue::Float(_) => 'd',
        HeaderValue::Bool(_) => 'b',
        HeaderValue::Timestamp(_) => '@',
        HeaderValue::List(_) | HeaderValue::Map(_) | HeaderValue::Null => 'v',
    }
}

/// The form in which a value travels where the protocol knows text or bytes only: numbers in decimal, times as
/// `seconds.nanoseconds` since 1970, lists and maps in this module's own form.
#[must_use]
pub fn to_text(value: &HeaderValue) -> Cow<'_, [u8]> {
    match value {
        HeaderValue::Bytes(b) => Cow::Borrowed(b),
        HeaderValue::Str(s) => Cow::Borrowed(s.as_bytes()),
        HeaderValue::Int(i) => i.to_string().into_bytes().into(),
        HeaderValue::Float(f) => f.to_string().into_bytes().into(),
        HeaderValue::Bool(b) => Cow::Borrowed(if *b { b"true" } else { b"false" }),
        HeaderValue::Timestamp(t) => time_text(*t).into_bytes().into(),
        HeaderValue::List(_) | HeaderValue::Map(_) | HeaderValue::Null => {
            let mut out = String::new();
            encode(value, &mut out);
            out.into_bytes().into()
        }
    }
}

fn from_text(kind: char, value: &HeaderValue) -> Option<HeaderValue> {
    let str = || value.as_str();
    Some(match kind {
        'y' => HeaderValue::Bytes(Bytes::copy_from_slice(value.as_bytes()?)),
        's' => HeaderValue::Str(str()?.to_owned().into()),
        'i' => HeaderValue::Int(value.as_int()?),
        'd' => HeaderValue::Float(str()?.parse().ok()?),
        'b' => HeaderValue::Bool(str()?.parse().ok()?),
        '@' => HeaderValue::Timestamp(parse_time(str()?)?),
        'v' => decode(str()?).filter(|(_, rest)| rest.is_empty())?.0,
        _ => return None,
    })
}

fn time_text(time: SystemTime) -> String {
    match time.duration_since(UNIX_EPOCH) {
        Ok(d) => format!("{}.{:09}", d.as_secs(), d.subsec_nanos()),
        Err(before) => {
            let d = before.duration();
            format!("-{}.{:09}", d.as_secs(), d.subsec_nanos())
        }
    }
}

fn parse_time(text: &str) -> Option<SystemTime> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (secs, nanos) = text.split_once('.').unwrap_or((text, "0"));
    let nanos: u32 = nanos.parse().ok().filter(|n| *n < 1_000_000_000)?;
    let since = Duration::new(secs.parse().ok()?, nanos);
    if negative { UNIX_EPOCH.checked_sub(since) } else { UNIX_EPOCH.checked_add(since) }
}

fn text(encoded: &str) -> Option<String> {
    percent_decode_str(encoded).decode_utf8().ok().map(Cow::into_owned)
}

fn encode(value: &HeaderValue, out: &mut String) {
    let _ = match value {
        HeaderValue::Bytes(b) => write!(out, "y{};", percent_encode(b, ESCAPED)),
        HeaderValue::Str(s) => write!(out, "s{};", percent_encode(s.as_bytes(), ESCAPED)),
        HeaderValue::Int(i) => write!(out, "i{i};"),
        // The bits, so that every value, NaN included, comes back as it was.
        HeaderValue::Float(f) => write!(out, "d{:x};", f.to_bits()),
        HeaderValue::Bool(b) => write!(out, "b{};", u8::from(*b)),
        HeaderValue::Timestamp(t) => write!(out, "@{};", time_text(*t)),
        HeaderValue::Null => write!(out, "n;"),
        HeaderValue::List(list) => {
            out.push('[');
            list.iter().for_each(|v| encode(v, out));
            write!(out, "]")
        }
        HeaderValue::Map(map) => {
            out.push('{');
            for (name, value) in map {
                let _ = write!(out, "{};", percent_encode(name.as_bytes(), ESCAPED));
                encode(value, out);
            }
            // In a name it is escaped.
            write!(out, "}}")
        }
    };
}

/// Most lists and maps within each other that are read of a note, which comes from outside.
pub const MAX_DEPTH: usize = 32;

fn decode(text: &str) -> Option<(HeaderValue, &str)> {
    decode_at(text, 0)
}

fn decode_at(input: &str, depth: usize) -> Option<(HeaderValue, &str)> {
    if depth > MAX_DEPTH {
        return None;
    }
    let kind = input.chars().next()?;
    let mut rest = input.get(kind.len_utf8()..)?;
    if kind == '[' {
        let mut list = Vec::new();
        while !rest.starts_with(']') {
            let (value, tail) = decode_at(rest, depth + 1)?;
            list.push(value);
            rest = tail;
        }
        return Some((HeaderValue::List(list), &rest[1..]));
    }
    if kind == '{' {
        let mut map = Vec::new();
        while !rest.starts_with('}') {
            let (name, tail) = rest.split_once(';')?;
            let (value, tail) = decode_at(tail, depth + 1)?;
            map.push((text(name)?.into(), value));
            rest = tail;
        }
        return Some((HeaderValue::Map(map), &rest[1..]));
    }
    let (body, rest) = rest.split_once(';')?;
    let value = match kind {
        'y' => HeaderValue::Bytes(percent_decode_str(body).collect::<Vec<u8>>().into()),
        's' => HeaderValue::Str(text(body)?.into()),
        'i' => HeaderValue::Int(body.parse().ok()?),
        'd' => HeaderValue::Float(f64::from_bits(u64::from_str_radix(body, 16).ok()?)),
        'b' => HeaderValue::Bool(body == "1"),
        '@' => HeaderValue::Timestamp(parse_time(body)?),
        'n' => HeaderValue::Null,
        _ => return None,
    };
    Some((value, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = HeaderValue> {
        let leaf = prop_oneof![
            any::<Vec<u8>>().prop_map(HeaderValue::from),
            any::<String>().prop_map(HeaderValue::from),
            any::<i64>().prop_map(HeaderValue::from),
            any::<f64>().prop_filter("NaN is not equal to itself", |f| !f.is_nan()).prop_map(HeaderValue::from),
            any::<bool>().prop_map(HeaderValue::from),
            (-4_000_000_000_i64..4_000_000_000, 0..1_000_000_000_u32).prop_map(|(s, n)| {
                let d = Duration::new(s.unsigned_abs(), n);
                HeaderValue::from(if s < 0 { UNIX_EPOCH - d } else { UNIX_EPOCH + d })
            }),
            Just(HeaderValue::Null),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(HeaderValue::from),
                prop::collection::vec((any::<String>().prop_map(Text::from), inner), 0..4).prop_map(HeaderValue::from),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_value_survives_inline(name in any::<String>(), value in value()) {
            let mut note = Note::default();
            note.inline(&name, &value);
            let note = note.finish().unwrap();
            prop_assert!(note.is_ascii());
            let message = restore(Message::new("x"), vec![], Some(&note));
            prop_assert_eq!(message.headers().iter().collect::<Vec<_>>(), vec![(name.as_str(), &value)]);
        }

        #[test]
        fn every_value_survives_as_text(value in value()) {
            let mut note = Note::default();
            note.retyped(0, &value);
            let carried = HeaderValue::from(to_text(&value).into_owned());
            let message = restore(Message::new("x"), vec![("n".into(), carried)], note.finish().as_deref());
            prop_assert_eq!(message.headers().get("n"), Some(&value));
        }

        #[test]
        fn no_note_panics(note in "[#:0-9a-z@;\\[\\]{}.%éx-]{0,40}") {
            let _ = restore(Message::new("x"), vec![("n".into(), "7".into())], Some(&note));
        }
    }

    #[test]
    fn properties_survive_and_native_headers_stay() {
        let sent =
            Message::new("x").key(vec![0, 255, b';']).id("a;b").priority(3).timestamp(UNIX_EPOCH + Duration::new(5, 7));
        let mut note = Note::default();
        for (field, _) in Field::ALL {
            note.field(field, &sent);
        }
        let got = restore(Message::new("x"), vec![("n".into(), 7.into())], note.finish().as_deref());
        assert_eq!(got, sent.header("n", 7));
    }

    #[test]
    fn headers_in_native_order_need_no_note() {
        let mut note = Note::default();
        note.native(0);
        note.native(1);
        assert_eq!(note.finish(), None);
    }
}
