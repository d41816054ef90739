use super::*;

fn address() -> Address {
    Address::queue("orders").unwrap()
}

fn carry(message: &Message) -> (Message, BasicProperties) {
    let out = outgoing(&address(), message, None, 131_072).unwrap();
    let mut delivery = Delivery::mock(1, out.exchange, out.routing_key, false, message.payload().to_vec());
    delivery.properties = out.properties.clone();
    (incoming(delivery).0.unwrap(), out.properties)
}

fn names(properties: &BasicProperties) -> Vec<&str> {
    properties.headers().iter().flat_map(|t| t.inner().keys()).map(ShortString::as_str).collect()
}

#[test]
fn the_list_of_the_brokers_headers_is_sorted() {
    assert!(BROKERS.is_sorted());
}

#[test]
fn a_plain_message_has_no_properties_but_persistence() {
    let (_, properties) = carry(&Message::new("x"));
    assert_eq!(properties, BasicProperties::default().with_delivery_mode(2));
}

#[test]
fn ordered_headers_need_no_note() {
    let message = Message::new("x").header("a", 1).header("b", "text").header("c", true).header("d", 0.5);
    let (got, properties) = carry(&message);
    assert_eq!(names(&properties), ["a", "b", "c", "d"]);
    assert_eq!(got, message);
}

#[test]
fn order_repeats_and_odd_names_survive() {
    let message = Message::new("x")
        .header("b", 1)
        .header("a", 2)
        .header("b", 3)
        .header("", 4)
        .header("é".repeat(200), 5)
        .header("CC", "x")
        .header("x-delivery-count", 6);
    let (got, properties) = carry(&message);
    assert_eq!(got, message);
    assert_eq!(names(&properties), ["", "a", "anyqueue-h", "b"]);
}

#[test]
fn every_type_survives() {
    let at = UNIX_EPOCH + Duration::new(7, 1);
    let sorted: Vec<(Text, HeaderValue)> = vec![("a".into(), 1.into()), ("b".into(), at.into())];
    let unsorted: Vec<(Text, HeaderValue)> = vec![("b".into(), 1.into()), ("a".into(), 2.into())];
    let repeated: Vec<(Text, HeaderValue)> = vec![("a".into(), 1.into()), ("a".into(), 2.into())];
    let message = Message::new("x")
        .header("bytes", vec![0, 255])
        .header("utf8 bytes", b"abc".to_vec())
        .header("str", "é")
        .header("int", i64::MIN)
        .header("float", f64::INFINITY)
        .header("bool", false)
        .header("whole", UNIX_EPOCH)
        .header("fraction", at)
        .header("before", UNIX_EPOCH - Duration::from_secs(1))
        .header("infinities", vec![HeaderValue::Float(f64::NEG_INFINITY)])
        .header("list", vec![HeaderValue::Null, HeaderValue::List(vec![1.into()])])
        .header("sorted", sorted)
        .header("unsorted", unsorted)
        .header("repeated", repeated)
        .header("null", HeaderValue::Null);
    let (got, properties) = carry(&message);
    assert_eq!(got, message);
    let table = properties.headers().as_ref().unwrap().inner();
    // What would end the connection goes as text.
    assert_eq!(table.get("float"), Some(&AMQPValue::LongString("inf".into())));
}

#[test]
fn fields_travel_natively_as_far_as_they_fit() {
    let message = Message::new("x")
        .id("i".repeat(255))
        .content_type("text/plain")
        .correlation_id("c".repeat(256))
        .reply_to("r")
        .priority(3)
        .ttl(Duration::from_micros(1))
        .timestamp(UNIX_EPOCH + Duration::new(5, 6))
        .subject("s")
        .key(vec![0, 255]);
    let (got, properties) = carry(&message);
    assert_eq!(properties.timestamp(), &Some(5));
    assert_eq!(properties.correlation_id(), &None);
    assert_eq!(properties.expiration().as_ref().unwrap().as_str(), "1");
    assert_eq!(got, message.ttl(Duration::from_millis(1)));
}

#[test]
fn a_tombstone_is_not_an_empty_message() {
    assert!(carry(&Message::tombstone("k")).0.is_tombstone());
    assert!(!carry(&Message::new("")).0.is_tombstone());
}

#[test]
fn every_foreign_type_is_read() {
    let decimal = lapin::types::DecimalValue { scale: 2, value: 1234 };
    let below = lapin::types::DecimalValue { scale: 2, value: (-25_i32).cast_unsigned() };
    let values: [(AMQPValue, HeaderValue); 15] = [
        (AMQPValue::ShortShortInt(-1), HeaderValue::Int(-1)),
        (AMQPValue::ShortShortUInt(255), HeaderValue::Int(255)),
        (AMQPValue::ShortInt(-1), HeaderValue::Int(-1)),
        (AMQPValue::ShortUInt(9), HeaderValue::Int(9)),
        (AMQPValue::LongInt(-9), HeaderValue::Int(-9)),
        (AMQPValue::LongUInt(u32::MAX), HeaderValue::Int(u32::MAX.into())),
        (AMQPValue::Float(0.5), HeaderValue::Float(0.5)),
        (AMQPValue::DecimalValue(decimal), HeaderValue::Float(12.34)),
        (AMQPValue::DecimalValue(below), HeaderValue::Float(-0.25)),
        (AMQPValue::ShortString("s".into()), "s".into()),
        (AMQPValue::LongString("é".into()), "é".into()),
        (AMQPValue::LongString(vec![0xe9].into()), vec![0xe9].into()),
        (AMQPValue::Timestamp(9), (UNIX_EPOCH + Duration::from_secs(9)).into()),
        (AMQPValue::Timestamp(u64::MAX), HeaderValue::Int(-1)),
        (AMQPValue::Void, HeaderValue::Null),
    ];
    for (foreign, own) in values {
        assert_eq!(value(&foreign, 0), Some(own));
    }
}

#[test]
fn the_brokers_own_headers_are_set_apart_and_counted() {
    let table = arguments([
        ("x-delivery-count", AMQPValue::LongLongInt(2)),
        ("x-death", AMQPValue::FieldArray(vec![].into())),
        ("x-request-id", AMQPValue::LongString("r".into())),
    ])
    .unwrap();
    let properties = BasicProperties::default().with_headers(table).with_app_id("pika".into());
    let arrives = |redelivered| {
        let mut delivery = Delivery::mock(1, "".into(), "orders".into(), redelivered, b"x".to_vec());
        delivery.properties = properties.clone();
        incoming(delivery)
    };
    // What another queue counted is no attempt here.
    assert_eq!(arrives(false).1, 1);
    let (message, attempt) = arrives(true);
    let message = message.unwrap();
    assert_eq!(attempt, 3);
    assert_eq!(message.headers().iter().map(|(n, _)| n).collect::<Vec<_>>(), ["x-request-id"]);
    let native: Vec<_> = message.native_headers().iter().map(|(n, _)| n).collect();
    assert_eq!(native, ["app-id", "x-death", "x-delivery-count"]);
}

#[test]
fn a_message_that_the_server_moved_tells_where_it_died() {
    let died = |queues: &[&str]| {
        let death = |queue: &&str| arguments([("queue", AMQPValue::LongString((*queue).into()))]).unwrap();
        let deaths: Vec<_> = queues.iter().map(death).map(AMQPValue::FieldTable).collect();
        let table = arguments([("x-death", AMQPValue::FieldArray(deaths.into()))]).unwrap();
        let mut delivery = Delivery::mock(1, "".into(), "orders-dlq".into(), false, b"x".to_vec());
        delivery.properties = BasicProperties::default().with_headers(table);
        let told = incoming(delivery).0.unwrap();
        told.native_headers().get(dead_letter::ORIGIN).and_then(HeaderValue::as_str).map(str::to_owned)
    };
    assert_eq!(died(&["orders", "anyqueue-delay-3"]).as_deref(), Some("orders"));
    // A delay is no death.
    assert_eq!(died(&["anyqueue-delay-3", "orders"]), None);
    assert_eq!(died(&[]), None);
}

#[test]
fn what_cannot_travel_is_refused_alone() {
    let refused = |message: &Message| outgoing(&address(), message, None, 4096).unwrap_err().kind();
    assert_eq!(refused(&Message::new("x").header("big", "x".repeat(5000))), ErrorKind::TooLarge);
    let second = Duration::from_secs(1);
    assert_eq!(refused(&Message::new("x").delay(second).ttl(second)), ErrorKind::Unsupported);
    assert_eq!(refused(&Message::new("x").delay(second).to(Address::topic("t").unwrap())), ErrorKind::Unsupported);
    let long = Address::derived(queue_core::AddressKind::Queue, &"q".repeat(256));
    assert_eq!(refused(&Message::new("x").to(long)), ErrorKind::InvalidInput);
}

#[test]
fn headers_as_deep_as_the_limit_travel_and_deeper_ones_are_refused_both_ways() {
    let deep = |levels| (0..levels).fold(HeaderValue::Int(1), |value, _| HeaderValue::List(vec![value]));
    let message = Message::new("x").header("deep", deep(MAX_DEPTH));
    assert_eq!(carry(&message).0, message);
    // In the note the limit is the same.
    let message = Message::new("x").header("CC", deep(MAX_DEPTH));
    assert_eq!(carry(&message).0, message);
    let message = Message::new("x").header("deep", deep(MAX_DEPTH + 1));
    assert_eq!(outgoing(&address(), &message, None, 131_072).unwrap_err().kind(), ErrorKind::InvalidInput);

    let raw = (0..=MAX_DEPTH).fold(AMQPValue::Void, |value, _| AMQPValue::FieldArray(vec![value].into()));
    let mut delivery = Delivery::mock(1, "".into(), "orders".into(), false, b"body".to_vec());
    delivery.properties = BasicProperties::default().with_headers(arguments([("deep", raw)]).unwrap());
    let refused = incoming(delivery).0.unwrap_err();
    assert_eq!((refused.error.kind(), refused.raw.as_ref()), (ErrorKind::Codec, b"body".as_slice()));
}

#[test]
fn the_size_of_a_table_is_what_is_written() {
    let inner = arguments([("k", AMQPValue::Void)]).unwrap();
    let table = arguments([
        ("s", AMQPValue::LongString("abc".into())),
        ("l", AMQPValue::FieldArray(vec![AMQPValue::LongLongInt(1)].into())),
        ("t", AMQPValue::FieldTable(inner)),
    ])
    .unwrap();
    // Length; name, type, length and content of each. Void is counted as if it had eight bytes.
    let expected = 4 + (2 + 1 + 4 + 3) + (2 + 1 + 4 + 9) + (2 + 1 + 4 + 2 + 1 + 8);
    assert_eq!(table_size(table.inner()), expected);
}
