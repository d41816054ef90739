//! Messages as records and back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use queue_core::wire::{self, Field, Note};
use queue_core::{Error, ErrorKind, HeaderValue, Message, Text, Undecodable};
use rdkafka::Timestamp;
use rdkafka::message::{Header, OwnedHeaders};

use crate::ffi::Record;

/// Bytes of the memory that small payloads share.
const SHARED: usize = 16 << 10;
/// The largest payload that is small.
const SMALL: usize = 1 << 10;
/// Properties that Kafka has no place for.
const NOTED: [Field; 5] = [Field::Id, Field::Subject, Field::ContentType, Field::CorrelationId, Field::ReplyTo];

/// Milliseconds since 1970, as far as a record can say them.
pub(crate) fn millis(time: SystemTime) -> Option<i64> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    // Zero would mean "now" to librdkafka.
    i64::try_from(since.as_millis()).ok().filter(|ms| *ms > 0)
}

fn from_millis(millis: i64) -> Option<SystemTime> {
    let span = Duration::from_millis(millis.unsigned_abs());
    if millis < 0 { UNIX_EPOCH.checked_sub(span) } else { UNIX_EPOCH.checked_add(span) }
}

/// The timestamp of the record, in milliseconds, where it is not the present. A copy that waits for a retry is as old as
/// itself, because the broker removes records by their timestamps; the message's own stands in its note.
pub(crate) fn timestamp(message: &Message) -> Option<i64> {
    message.get_timestamp().filter(|_| wire::due(message).is_none()).and_then(millis)
}

/// Whether a record's timestamp says the time exactly.
fn fits(time: SystemTime) -> bool {
    millis(time).and_then(from_millis) == Some(time)
}

/// The headers of the record; `None` when it has none.
pub(crate) fn headers(message: &Message) -> Option<OwnedHeaders> {
    if message.headers().is_empty() && message.is_plain() {
        return None;
    }
    let mut note = Note::default();
    for field in NOTED {
        note.field(field, message);
    }
    if message.get_timestamp().is_some_and(|t| !fits(t) || wire::due(message).is_some()) {
        note.field(Field::Timestamp, message);
    }
    let mut native = OwnedHeaders::new_with_capacity(message.headers().len() + 1);
    let mut index = 0;
    for (name, value) in message.headers().iter() {
        if name.contains('\0') {
            // Clients in C would see the name cut off.
            note.inline(name, value);
            continue;
        }
        let carried = wire::to_text(value);
        native = match value {
            HeaderValue::Null => native.insert(Header { key: name, value: None::<&[u8]> }),
            _ => native.insert(Header { key: name, value: Some(carried.as_ref()) }),
        };
        match value {
            HeaderValue::Str(_) | HeaderValue::Null => note.native(index),
            HeaderValue::Bytes(b) if std::str::from_utf8(b).is_err() => note.native(index),
            _ => note.retyped(index, value),
        }
        index += 1;
    }
    let note = note.finish();
    if let Some(note) = &note {
        native = native.insert(Header { key: wire::HEADER, value: Some(note.as_bytes()) });
    }
    (index > 0 || note.is_some()).then_some(native)
}

/// Memory that small payloads and keys share: an allocation for each, freed by another thread, would be a quarter of the
/// CPU of receiving. Who keeps one of them keeps [`SHARED`] bytes.
#[derive(Debug, Default)]
pub(crate) struct Copies(BytesMut);

impl Copies {
    fn copy(&mut self, bytes: &[u8]) -> Bytes {
        // Of an empty slice that is free.
        if bytes.is_empty() || bytes.len() > SMALL {
            return Bytes::copy_from_slice(bytes);
        }
        if self.0.capacity() < bytes.len() {
            self.0 = BytesMut::with_capacity(SHARED);
        }
        self.0.extend_from_slice(bytes);
        self.0.split().freeze()
    }
}

/// The message of a record that arrived.
pub(crate) fn message(record: &Record<'_>, copies: &mut Copies) -> Result<Message, Box<Undecodable>> {
    let mut message = Message::new(record.payload.map_or(Bytes::new(), |payload| copies.copy(payload)));
    if let Some(key) = record.key {
        message = message.key(copies.copy(key));
    }
    message = match record.timestamp {
        Timestamp::CreateTime(ms) => match from_millis(ms) {
            Some(at) => message.timestamp(at),
            None => message,
        },
        Timestamp::LogAppendTime(ms) => match from_millis(ms) {
            Some(at) => message.with_sent_at(at),
            None => message,
        },
        Timestamp::NotAvailable => message,
    };
    if !record.headers.is_empty() {
        let Some((native, note)) = native_headers(&record.headers) else {
            return Err(Box::new(Undecodable {
                raw: message.into_payload(),
                error: Error::new(ErrorKind::Codec, "the name of a header is not UTF-8").with_operation("receive"),
            }));
        };
        message = wire::restore(message, native, note);
    }
    // Last, because a note with a time replaces the timestamp and nothing else.
    Ok(if record.payload.is_none() { message.into_tombstone() } else { message })
}

/// The headers and the library's own; `None` where a name is not UTF-8, which any client can send.
#[expect(clippy::type_complexity, reason = "a pair, taken apart at once")]
fn native_headers<'a>(headers: &[(&[u8], Option<&'a [u8]>)]) -> Option<(Vec<(Text, HeaderValue)>, Option<&'a str>)> {
    let mut native = Vec::with_capacity(headers.len());
    let mut note = None;
    for (name, value) in headers {
        let name = std::str::from_utf8(name).ok()?;
        let text = value.map(std::str::from_utf8);
        if name == wire::HEADER {
            note = text.and_then(Result::ok);
            continue;
        }
        let value = match (value, text) {
            (Some(_), Some(Ok(text))) => HeaderValue::from(text.to_owned()),
            (Some(bytes), _) => HeaderValue::from(Bytes::copy_from_slice(bytes)),
            (None, _) => HeaderValue::Null,
        };
        native.push((Text::from(name.to_owned()), value));
    }
    Some((native, note))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rdkafka::message::Headers as _;

    use super::*;

    /// As librdkafka carries it, without a broker.
    fn carried(message: &Message) -> Message {
        carried_at(message, message.get_timestamp().and_then(millis).unwrap_or(1))
    }

    fn carried_at(message: &Message, timestamp: i64) -> Message {
        let native = native(message);
        let record = Record {
            topic: crate::ffi::Topic::Named("orders"),
            partition: 0,
            offset: 0,
            timestamp: Timestamp::CreateTime(timestamp),
            key: message.get_key().map(AsRef::as_ref),
            payload: (!message.is_tombstone()).then(|| message.payload().as_ref()),
            headers: native.iter().map(|(name, value)| (name.as_bytes(), value.as_deref())).collect(),
        };
        super::message(&record, &mut Copies::default()).unwrap()
    }

    fn native(message: &Message) -> Vec<(String, Option<Vec<u8>>)> {
        let Some(headers) = headers(message) else { return vec![] };
        headers.iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect()
    }

    #[test]
    fn a_plain_message_has_no_headers() {
        assert!(headers(&Message::new("x").key("k")).is_none());
        assert!(headers(&Message::new("x").timestamp(UNIX_EPOCH + Duration::from_millis(5))).is_none());
    }

    #[test]
    fn text_travels_as_text_without_a_note() {
        let message = Message::new("x").header("tag", "a").header("tag", "").header("n", HeaderValue::Null);
        let expected =
            vec![("tag".to_owned(), Some(b"a".to_vec())), ("tag".to_owned(), Some(vec![])), ("n".to_owned(), None)];
        assert_eq!(native(&message), expected);
        assert_eq!(carried(&message).headers(), message.headers());
    }

    #[test]
    fn a_copy_that_waits_keeps_the_time_of_its_message_and_is_as_old_as_itself() {
        let old = UNIX_EPOCH + Duration::from_millis(7);
        let copy = Message::new("x").timestamp(old).header("anyqueue-due", SystemTime::now());
        assert_eq!((timestamp(&copy), timestamp(&Message::new("x").timestamp(old))), (None, Some(7)));
        // Whatever the record says.
        assert_eq!(carried_at(&copy, 9).get_timestamp(), Some(old));
    }

    #[test]
    fn every_type_of_header_comes_back() {
        let at = UNIX_EPOCH + Duration::new(7, 8);
        let message = Message::new("x")
            .header("bytes", vec![0xff, 0])
            .header("bytes that are text", b"text".to_vec())
            .header("int", -7_i64)
            .header("float", 1.5)
            .header("bool", true)
            .header("at", at)
            .header("list", vec![HeaderValue::from(1), HeaderValue::Null])
            .header("map", vec![(Text::from("k"), HeaderValue::from("v"))])
            .header("null", HeaderValue::Null)
            .header("nul\0name", "v")
            .header("", "")
            .header("text", "ü");
        assert_eq!(carried(&message).headers(), message.headers());
        // What another client sees.
        assert_eq!(native(&message)[2], ("int".to_owned(), Some(b"-7".to_vec())));
    }

    #[test]
    fn properties_and_fractions_of_time_come_back() {
        let message = Message::new("x")
            .id("i;1")
            .subject("s")
            .content_type("text/plain")
            .correlation_id("c")
            .reply_to("topic:r")
            .timestamp(UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789))
            .header("h", "v");
        assert_eq!(carried(&message), message);
        let before = Message::new("x").timestamp(UNIX_EPOCH - Duration::from_secs(1));
        assert_eq!(carried(&before).get_timestamp(), before.get_timestamp());
    }

    #[test]
    fn small_payloads_share_memory_and_none_touches_another() {
        let mut copies = Copies::default();
        let lengths = [0, 1, SMALL, SMALL + 1, 100, SMALL];
        let all: Vec<Vec<u8>> = (0..=255).map(|n: u8| vec![n; lengths[usize::from(n) % lengths.len()]]).collect();
        let kept: Vec<Bytes> = all.iter().map(|bytes| copies.copy(bytes)).collect();
        assert!(all.iter().map(Vec::len).sum::<usize>() > 4 * SHARED, "several blocks");
        assert!(kept.iter().zip(&all).all(|(kept, bytes)| kept == bytes));
        // One and its neighbour lie in one block.
        let (one, next) = (&kept[6 * 40 + 1], &kept[6 * 40 + 2]);
        assert_eq!(one.as_ptr().wrapping_add(one.len()), next.as_ptr());
        assert!(!one.is_unique());
    }

    #[test]
    fn null_is_not_empty() {
        let tombstone = carried(&Message::tombstone("k"));
        assert!(tombstone.is_tombstone() && tombstone.get_key().is_some());
        let empty = carried(&Message::new("").key(""));
        assert!(!empty.is_tombstone());
        assert_eq!(empty.get_key().map(Bytes::len), Some(0));
        assert_eq!(carried(&Message::new("x")).get_key(), None);
    }

    proptest! {
        #[test]
        fn headers_of_any_bytes_come_back(list in prop::collection::vec((any::<String>(), any::<Vec<u8>>()), 0..12)) {
            let mut message = Message::new("x");
            for (name, value) in &list {
                message.headers_mut().append(name.clone(), value.clone());
            }
            let back = carried(&message);
            prop_assert_eq!(back.headers(), message.headers());
        }
    }
}
