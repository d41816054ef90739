use proptest::prelude::*;

use super::*;

const QUEUE: Kind = Kind { topic: false, fifo: false };
const FIFO_QUEUE: Kind = Kind { topic: false, fifo: true };
const TOPIC: Kind = Kind { topic: true, fifo: false };

/// What a receiver gets of an entry.
fn arrive(encoded: Encoded, fifo: bool) -> Decoded {
    let entry = encoded.entry;
    let mut system = HashMap::from([
        (System::ApproximateReceiveCount, "3".to_owned()),
        (System::SentTimestamp, "1700000000123".to_owned()),
    ]);
    if fifo {
        system.insert(System::MessageGroupId, entry.message_group_id.clone().unwrap_or_default());
        system.insert(System::MessageDeduplicationId, entry.message_deduplication_id.clone().unwrap_or_default());
        system.insert(System::SequenceNumber, "17".to_owned());
    }
    let native = Native::builder()
        .message_id("m")
        .receipt_handle("r")
        .body(entry.message_body)
        .set_attributes(Some(system))
        .set_message_attributes(entry.message_attributes)
        .build();
    decode(native, fifo).expect("it has a receipt handle")
}

fn round_trip(message: &Message, fifo: bool) -> Message {
    arrive(encode(message, Kind { topic: false, fifo }).expect("it can be encoded"), fifo)
        .message
        .expect("it can be decoded")
}

fn attributes(message: &Message) -> usize {
    encode(message, QUEUE).unwrap().entry.message_attributes.map_or(0, |a| a.len())
}

fn numbered(count: usize) -> Message {
    (0..count).fold(Message::new("x"), |m, i| m.header(format!("h{i:02}"), "v"))
}

#[test]
fn at_most_ten_attributes_travel_and_a_note_only_when_needed() {
    for (count, expected) in [(0, 0), (1, 1), (9, 9), (10, 10), (11, 10), (50, 10)] {
        assert_eq!(attributes(&numbered(count)), expected, "{count} headers");
    }
    // An id takes the note, bytes take the mark: ten headers leave room for neither.
    assert_eq!(attributes(&numbered(10).id("i")), 10);
    assert_eq!(attributes(&numbered(8).id("i")), 9);
    let binary = numbered(10).into_payload();
    assert_eq!(binary.as_ref(), b"x");
    let marked = Message::new(vec![0xff]).with_headers(numbered(9).headers().clone());
    assert_eq!(attributes(&marked), 10);
    let noted = Message::new(vec![0xff]).with_headers(numbered(10).headers().clone());
    assert_eq!(attributes(&noted), 10);
    assert_eq!(round_trip(&noted, false).headers(), noted.headers());
}

#[test]
fn a_topic_gets_what_its_groups_queues_can_take() {
    let attributes = |message: &Message| encode(message, TOPIC).unwrap().entry.message_attributes.unwrap_or_default();
    // With one more, SNS would drop the message on its way to a queue, and say nothing.
    for count in [10, 11, 50] {
        let many = numbered(count).id("i");
        assert_eq!(attributes(&many).len(), MAX_ATTRIBUTES, "{count} headers");
        assert_eq!(attributes(&Message::new(vec![0xff]).with_headers(many.headers().clone())).len(), MAX_ATTRIBUTES);
    }
    let numbers = Message::new("x")
        .header("small", 1_000_000_000)
        .header("large", 1_000_000_001)
        .header("least", i64::MIN)
        .header("short", 0.12345)
        .header("long", 0.123_456)
        .header("wide", 1e9 + 0.5);
    let native = attributes(&numbers);
    let mut names: Vec<_> = native.keys().map(String::as_str).filter(|name| *name != wire::HEADER).collect();
    names.sort_unstable();
    assert_eq!(names, ["short", "small"]);
    let got = arrive(encode(&numbers, TOPIC).unwrap(), false).message.unwrap();
    assert_eq!(got.headers(), numbers.headers());
    let late = encode(&Message::new("x").delay(Duration::from_secs(1)), TOPIC).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Unsupported);
}

#[test]
fn every_byte_that_counts_is_counted() {
    assert_eq!(encode(&Message::new("hello"), QUEUE).unwrap().size, 5);
    // name + type + value
    assert_eq!(encode(&Message::new("hello").header("n", "vv"), QUEUE).unwrap().size, 5 + 1 + 6 + 2);
    assert_eq!(encode(&Message::new("hello").header("n", 12), QUEUE).unwrap().size, 5 + 1 + 6 + 2);
    assert_eq!(encode(&Message::new("hello").header("n", vec![1_u8, 2, 3]), QUEUE).unwrap().size, 5 + 1 + 6 + 3);
    // 3 bytes are 4 characters, and the mark
    let mark = ENCODING.len() + STRING.len();
    assert_eq!(encode(&Message::new(vec![0xff; 3]), QUEUE).unwrap().size, 4 + mark + IS_BASE64.len());
    assert_eq!(encode(&Message::new(""), QUEUE).unwrap().size, 1 + mark + IS_EMPTY.len());
    assert_eq!(encode(&Message::new("ü"), QUEUE).unwrap().size, 2);
}

#[test]
fn names_that_sqs_refuses_go_by_note() {
    for name in ["", ".a", "a.", "a..b", "aws.x", "AWS.x", "Amazon.x", "a b", "ä", ENCODING, wire::HEADER] {
        assert!(!is_native(name, &"v".into()), "{name}");
    }
    for name in ["a", "A-b_c.9", "awsx", "amazonx", "anyqueue-reason", &"n".repeat(256)] {
        assert!(is_native(name, &"v".into()), "{name}");
    }
    assert!(!is_native(&"n".repeat(257), &"v".into()));
}

#[test]
fn values_that_sqs_refuses_or_changes_go_by_note() {
    let refused: [HeaderValue; 9] = [
        "".into(),
        "a\u{0}".into(),
        "\u{fffe}".into(),
        Bytes::new().into(),
        1.0.into(),
        f64::NAN.into(),
        (-0.0).into(),
        1e300.into(),
        HeaderValue::Null,
    ];
    for value in refused {
        assert!(!is_native("n", &value), "{value:?}");
    }
}

#[test]
fn delays_are_rounded_up_and_bounded() {
    assert_eq!([0, 1, 999, 1000, 1001].map(|ms| whole_seconds(Duration::from_millis(ms))), [0, 1, 1, 1, 2]);
    let delayed = |seconds, fifo| {
        let message = Message::new("x").id("i").delay(Duration::from_secs(seconds));
        encode(&message, Kind { topic: false, fifo }).map(|e| e.entry.delay_seconds).map_err(|e| e.kind())
    };
    assert_eq!(delayed(900, false), Ok(Some(900)));
    assert_eq!(delayed(901, false), Err(ErrorKind::Unsupported));
    assert_eq!(delayed(1, true), Err(ErrorKind::Unsupported));
}

#[test]
fn a_fifo_queue_carries_key_and_id_natively() {
    let message = Message::new("x").key("user-7").id("id-1");
    let entry = encode(&message, FIFO_QUEUE).unwrap().entry;
    assert_eq!((entry.message_group_id(), entry.message_deduplication_id()), (Some("user-7"), Some("id-1")));
    assert!(entry.message_attributes().is_none());
    assert_eq!(round_trip(&message, true).get_key(), message.get_key());
    assert_eq!(round_trip(&message, true).get_id(), Some("id-1"));
    assert_eq!(encode(&Message::new("x").id("i"), FIFO_QUEUE).unwrap().entry.message_group_id(), Some(NO_KEY));
    for key in [&b"white space"[..], b"", b"\xff\x00", NO_KEY.as_bytes(), b"anyqueue-x", &[b'k'; 129]] {
        let message = Message::new("x").id("i").key(key.to_vec());
        let group = encode(&message, FIFO_QUEUE).unwrap().entry.message_group_id.unwrap();
        assert!(is_id(group.as_bytes()) && group.starts_with(HASHED), "{group}");
        assert_eq!(round_trip(&message, true).get_key(), message.get_key());
    }
    for id in ["", "white space", "ü", "anyqueue-x", &"i".repeat(129)] {
        let message = Message::new("x").id(id.to_owned());
        let deduplication = encode(&message, FIFO_QUEUE).unwrap().entry.message_deduplication_id.unwrap();
        assert!(is_id(deduplication.as_bytes()) && deduplication.starts_with(HASHED), "{deduplication}");
        assert_eq!(round_trip(&message, true).get_id(), Some(id));
    }
}

#[test]
fn a_copy_of_what_arrived_is_no_repetition_of_it() {
    let id = |message: &Message| encode(message, FIFO_QUEUE).unwrap().entry.message_deduplication_id.unwrap();
    let arrived = arrive(encode(&Message::new("x").id("i"), FIFO_QUEUE).unwrap(), true).message.unwrap();
    assert!(id(&arrived) != "i" && id(&arrived) == id(&arrived.clone()));
    let mut elsewhere = Headers::new();
    elsewhere.append(MESSAGE_ID, "another");
    assert_ne!(id(&arrived), id(&arrived.clone().with_native_headers(elsewhere)));
    assert_eq!(round_trip(&arrived, true).get_id(), Some("i"));
}

#[test]
fn what_arrives_says_when_where_and_how_often() {
    let decoded = arrive(encode(&Message::new("x").id("i"), FIFO_QUEUE).unwrap(), true);
    assert_eq!((decoded.attempt, decoded.position.offset, decoded.receipt.as_str()), (3, Some(17), "r"));
    let message = decoded.message.unwrap();
    assert_eq!(message.sent_at(), Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)));
    assert_eq!(message.native_headers().get("MessageId").and_then(HeaderValue::as_str), Some("m"));
}

fn value() -> impl Strategy<Value = HeaderValue> {
    prop_oneof![
        any::<Vec<u8>>().prop_map(HeaderValue::from),
        any::<String>().prop_map(HeaderValue::from),
        "[a-z]{1,5}".prop_map(HeaderValue::from),
        any::<i64>().prop_map(HeaderValue::from),
        any::<f64>().prop_filter("NaN is not equal to itself", |f| !f.is_nan()).prop_map(HeaderValue::from),
        (-1000..1000_i32).prop_map(|i| HeaderValue::from(f64::from(i) / 8.0)),
        any::<bool>().prop_map(HeaderValue::from),
        any::<u32>().prop_map(|s| HeaderValue::from(UNIX_EPOCH + Duration::from_millis(s.into()))),
        Just(HeaderValue::Null),
        prop::collection::vec(any::<i64>().prop_map(HeaderValue::from), 0..3).prop_map(HeaderValue::from),
    ]
}

proptest! {
    #[test]
    fn every_message_survives(
        payload in prop_oneof![any::<Vec<u8>>(), any::<String>().prop_map(String::into_bytes)],
        headers in prop::collection::vec((prop_oneof!["[a-c.]{0,3}", any::<String>()], value()), 0..14),
        key in proptest::option::of(prop_oneof![any::<Vec<u8>>(), "[a-z]{1,4}".prop_map(String::into_bytes)]),
        content_type in proptest::option::of(any::<String>()),
        id in prop_oneof!["[a-z]{1,3}", any::<String>()],
        fifo in any::<bool>(),
        topic in any::<bool>(),
    ) {
        let mut message = Message::new(payload).id(id);
        if let Some(key) = key { message = message.key(key); }
        if let Some(content_type) = content_type { message = message.content_type(content_type); }
        for (name, value) in headers { message = message.header(name, value); }
        let encoded = encode(&message, Kind { topic, fifo }).unwrap();
        prop_assert!(encoded.entry.message_attributes().is_none_or(|a| a.len() <= MAX_ATTRIBUTES));
        prop_assert!(!encoded.entry.message_body().is_empty());
        prop_assert!(encoded.entry.message_body().chars().all(is_legal));
        let got = arrive(encoded, fifo).message.unwrap();
        prop_assert_eq!(got.payload(), message.payload());
        prop_assert_eq!(got.headers(), message.headers());
        prop_assert_eq!(got.get_key(), message.get_key());
        prop_assert_eq!((got.get_id(), got.get_content_type()), (message.get_id(), message.get_content_type()));
    }
}
