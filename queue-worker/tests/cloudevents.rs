//! CloudEvents: what each mode puts on the wire, what is read, and what is refused.
#![cfg(all(feature = "cloudevents", feature = "cbor", feature = "gzip"))]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use queue_core::memory::Profile;
use queue_core::testing::{RecordedAnswer, TestClient};
use queue_core::{ErrorKind, HeaderValue, Message, Result};
use queue_worker::cloudevents::{Binary, CloudEvent, EventError, EventValue, Structured};
use queue_worker::codec::{Cbor, Codec, Decode, Encode, Gzip};
use queue_worker::{BoxError, Typed, TypedReceiver, TypedSender, Worker};
use serde_json::{Value, json};

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Order {
    name: String,
    price: f64,
}

type Event = CloudEvent<Order>;

fn order() -> Order {
    Order { name: "grüße".to_owned(), price: 0.1 + 0.2 }
}

fn at() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)
}

fn event() -> Event {
    CloudEvent::new("17", "/shop", "com.example.placed", order())
        .subject("order/17")
        .time(at())
        .data_schema("https://example.com/order")
        .extension("count", 7)
        .extension("urgent", true)
        .partition_key("user-7")
}

/// The message that an event is.
async fn sent<C: Encode<Event>>(profile: Profile, event: &Event) -> Result<Message> {
    let client = TestClient::with_profile(profile);
    TypedSender::<Event, C>::new(client.sender("orders").await?).send(event).await?;
    Ok(client.sent("orders").one().await.message)
}

fn read<C: Decode<Event>>(message: &Message) -> std::result::Result<Event, EventError> {
    C::value(message).map_err(|error| *error.downcast::<EventError>().expect("a typed error"))
}

fn headers(message: &Message) -> Vec<(String, HeaderValue)> {
    message.headers().iter().map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

#[tokio::test]
async fn an_event_as_a_whole_is_json() -> Result<()> {
    for profile in [Profile::Memory, Profile::Amqp, Profile::Sqs, Profile::Kafka] {
        let message = sent::<Structured>(profile, &event()).await?;
        let payload: Value = serde_json::from_slice(message.payload()).unwrap();
        let expected = json!({
            "specversion": "1.0", "id": "17", "source": "/shop", "type": "com.example.placed", "subject": "order/17",
            "time": "2023-11-14T22:13:20.123Z", "dataschema": "https://example.com/order",
            "datacontenttype": "application/json", "count": 7, "urgent": true, "partitionkey": "user-7",
            "data": {"name": "grüße", "price": 0.1 + 0.2},
        });
        assert_eq!(payload, expected);
        assert_eq!(message.get_key().unwrap().as_ref(), b"user-7");
        let kind = "application/cloudevents+json";
        if profile == Profile::Kafka {
            assert_eq!(headers(&message), [("content-type".to_owned(), kind.into())]);
            assert_eq!(message.get_content_type(), None);
        } else {
            assert_eq!((headers(&message), message.get_content_type()), (vec![], Some(kind)));
        }
        assert_eq!(read::<Structured>(&message).unwrap(), event());
        assert_eq!(read::<Binary>(&message).unwrap(), event());
        if matches!(profile, Profile::Memory | Profile::Sqs) {
            assert_eq!(sent::<Binary>(profile, &event()).await?, message);
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_event_in_headers_has_those_of_the_binding() -> Result<()> {
    let texts = [
        ("specversion", "1.0"),
        ("id", "17"),
        ("source", "/shop"),
        ("type", "com.example.placed"),
        ("subject", "order/17"),
        ("time", "2023-11-14T22:13:20.123Z"),
        ("dataschema", "https://example.com/order"),
    ];
    let named = |prefix: &str, rest: [(&str, HeaderValue); 3]| -> Vec<(String, HeaderValue)> {
        let texts = texts.iter().map(|(name, value)| (*name, HeaderValue::from(*value)));
        texts.chain(rest).map(|(name, value)| (format!("{prefix}{name}"), value)).collect()
    };
    let key = ("partitionkey", "user-7".into());

    let amqp = sent::<Binary>(Profile::Amqp, &event()).await?;
    assert_eq!(headers(&amqp), named("cloudEvents:", [("count", 7.into()), key.clone(), ("urgent", true.into())]));
    assert_eq!(amqp.get_content_type(), Some("application/json"));

    let kafka = sent::<Binary>(Profile::Kafka, &event()).await?;
    let mut expected = named("ce_", [("count", "7".into()), key, ("urgent", "true".into())]);
    expected.insert(0, ("content-type".to_owned(), "application/json".into()));
    assert_eq!((headers(&kafka), kafka.get_content_type()), (expected, None));

    for message in [&amqp, &kafka] {
        assert_eq!(serde_json::from_slice::<Order>(message.payload()).unwrap(), order());
        assert_eq!(message.get_key().unwrap().as_ref(), b"user-7");
    }
    assert_eq!(read::<Binary>(&amqp).unwrap(), event());
    assert_eq!(read::<Structured>(&amqp).unwrap(), event());
    let texts_only = event().extension("count", "7").extension("urgent", "true");
    assert_eq!(read::<Binary>(&kafka).unwrap(), texts_only);
    Ok(())
}

/// A text that is no JSON.
struct Plain;

impl Codec for Plain {
    const CONTENT_TYPE: &'static str = "text/plain";
}

impl Encode<Order> for Plain {
    fn encode(order: &Order) -> std::result::Result<Vec<u8>, BoxError> {
        Ok(format!("{} {}", order.name, order.price).into_bytes())
    }
}

impl Decode<Order> for Plain {
    fn decode(payload: &[u8]) -> std::result::Result<Order, BoxError> {
        let (name, price) = std::str::from_utf8(payload)?.split_once(' ').ok_or("no space")?;
        Ok(Order { name: name.to_owned(), price: price.parse()? })
    }
}

#[tokio::test]
async fn data_may_be_of_any_codec() -> Result<()> {
    let cbor = sent::<Structured<Cbor>>(Profile::Memory, &event()).await?;
    let payload: Value = serde_json::from_slice(cbor.payload()).unwrap();
    assert!(payload["data_base64"].is_string() && payload["datacontenttype"] == "application/cbor", "{payload}");
    assert_eq!(read::<Structured<Cbor>>(&cbor).unwrap(), event());
    let error = read::<Structured>(&cbor).unwrap_err();
    let text = "the data of the event are application/cbor, expected application/json";
    assert!(matches!(error, EventError::ContentType { .. }) && error.to_string() == text, "{error}");

    let plain = sent::<Structured<Plain>>(Profile::Memory, &event()).await?;
    let payload: Value = serde_json::from_slice(plain.payload()).unwrap();
    assert_eq!(payload["data"], "grüße 0.30000000000000004");
    assert_eq!(read::<Structured<Plain>>(&plain).unwrap(), event());

    let binary = sent::<Binary<Cbor>>(Profile::Amqp, &event()).await?;
    assert_eq!(binary.get_content_type(), Some("application/cbor"));
    assert_eq!(read::<Binary<Cbor>>(&binary).unwrap(), event());
    assert!(matches!(read::<Binary>(&binary), Err(EventError::ContentType { .. })));

    let packed = sent::<Gzip<Structured>>(Profile::Amqp, &event()).await?;
    assert_eq!(Gzip::<Structured>::value(&packed).unwrap(), event());

    let empty = CloudEvent::without_data("1", "/shop", "closed");
    for message in [sent::<Structured>(Profile::Amqp, &empty).await?, sent::<Binary>(Profile::Kafka, &empty).await?] {
        assert_eq!(read::<Binary>(&message).unwrap(), empty);
    }
    Ok(())
}

fn binary(prefix: &'static str) -> Message {
    ["specversion", "id", "source", "type"]
        .into_iter()
        .fold(Message::new(r#"{"name":"x","price":1}"#), |message, name| {
            message.header(format!("{prefix}{name}"), if name == "specversion" { "1.0" } else { name })
        })
}

#[test]
fn events_of_other_clients_are_read() {
    for prefix in ["ce_", "cloudEvents:", "cloudEvents_", "ce-", "CE_"] {
        let event = read::<Structured>(
            &binary(prefix).header("other", "x").header(format!("{prefix}datacontenttype"), "text/plain"),
        )
        .unwrap();
        assert_eq!((event.id(), event.source(), event.ty()), ("id", "source", "type"), "{prefix}");
        assert_eq!((event.extensions().count(), event.data().unwrap().price), (0, 1.0));
    }
    let times =
        [HeaderValue::Timestamp(at()), HeaderValue::Int(1_700_000_000_123), "2023-11-14T23:13:20.123+01:00".into()];
    for time in times {
        assert_eq!(
            read::<Binary>(&binary("cloudEvents:").header("cloudEvents:time", time)).unwrap().get_time(),
            Some(at())
        );
    }
    let wide = binary("cloudEvents_").header("cloudEvents_n", i64::MAX).header("cloudEvents_f", 0.5);
    let wide = read::<Binary>(&wide).unwrap();
    assert_eq!(wide.get_extension("n"), Some(&EventValue::from("9223372036854775807")));
    assert_eq!(wide.get_extension("f"), Some(&EventValue::from("0.5")));

    // Nothing but the body, as from a queue of SQS that a rule of another service writes to.
    let bare = r#"{"specversion":"1.0","id":"1","source":"s","type":"t","subject":null,"data":{"name":"x","price":1}}"#;
    for message in [
        Message::new(bare),
        Message::new(bare).content_type("application/cloudevents+json; charset=UTF-8"),
        Message::new(bare).header("Content-Type", "Application/CloudEvents+JSON"),
    ] {
        let event = read::<Structured>(&message).unwrap();
        assert_eq!((event.get_subject(), event.data().unwrap().price), (None, 1.0));
    }
    let null = bare.replace(r#"{"name":"x","price":1}"#, "null");
    assert_eq!(read::<Structured>(&Message::new(null)).unwrap().data(), None);
}

#[test]
fn what_is_no_event_is_refused_with_its_reason() {
    let structured = |text: &str| Message::new(text.to_owned()).content_type("application/cloudevents+json");
    let with = |name: &'static str, value: &'static str| {
        let mut message = binary("ce_");
        message.headers_mut().set(name, value);
        message
    };
    let without = |name: &str| {
        let mut message = binary("ce_");
        message.headers_mut().remove(name);
        message
    };
    let batch = Message::new("[]").content_type("application/cloudevents-batch+json");
    let refused: Vec<(Message, &str)> = vec![
        (without("ce_id"), "an event has the attribute `id`, which is missing or empty"),
        (with("ce_source", ""), "an event has the attribute `source`, which is missing or empty"),
        (without("ce_type"), "an event has the attribute `type`, which is missing or empty"),
        (with("ce_specversion", "0.3"), "the event is of version 0.3, expected 1.0"),
        (with("ce_time", "noon"), "`noon` is no time as 2026-01-31T08:00:00Z, from 1970 to 9999"),
        (batch, "the message is a batch of events, expected one event in a message"),
        (
            Message::new("[]").header("Content-Type", "application/cloudevents-batch+json"),
            "the message is a batch of events, expected one event in a message",
        ),
        (
            Message::new("x").content_type("application/cloudevents+avro"),
            "the event is application/cloudevents+avro, expected application/cloudevents+json",
        ),
        (Message::new("{}").content_type("application/json"), "the message is no event: there is no `specversion`"),
        (structured("{}"), "the message is no event: there is no `specversion`"),
        (
            structured("7"),
            "the event is not the JSON of one: invalid type: integer `7`, expected a map at line 1 column 1",
        ),
        (
            structured(r#"{"specversion":"1.0","id":"1","source":"s","type":"t","list":[1]}"#),
            "`list` has no value that an attribute can have",
        ),
        (
            structured(r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data":1,"data_base64":""}"#),
            "the event is not the JSON of one: there are both `data` and `data_base64`",
        ),
        (
            structured(r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data":1}"#),
            "the data of the event: invalid type: integer `1`, expected struct Order at line 1 column 1",
        ),
        (
            structured(r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"?"}"#),
            "the data of the event: Invalid symbol 63, offset 0.",
        ),
    ];
    for (message, expected) in refused {
        assert_eq!(read::<Binary>(&message).unwrap_err().to_string(), expected);
    }
}

#[tokio::test]
async fn what_cannot_be_an_event_is_not_sent() -> Result<()> {
    let client = TestClient::with_profile(Profile::Kafka);
    let whole = TypedSender::<Event, Structured>::new(client.sender("orders").await?);
    let parts = TypedSender::<Event, Binary>::new(client.sender("orders").await?);
    let early = UNIX_EPOCH - Duration::from_secs(1);
    let refused = [
        (CloudEvent::without_data("", "s", "t"), "`id`, which is missing or empty"),
        (CloudEvent::without_data("1", "", "t"), "`source`, which is missing or empty"),
        (CloudEvent::without_data("1", "s", ""), "`type`, which is missing or empty"),
        (event().extension("Count", 1), "`Count` is no name of an extension"),
        (event().extension("", 1), "`` is no name of an extension"),
        (event().extension("data", 1), "`data` is no name of an extension"),
        (event().extension("id", 1), "`id` is no name of an extension"),
        (event().time(early), "is no time as"),
        (event().subject(""), "`subject` has no value"),
        (event().data_schema(""), "`dataschema` has no value"),
    ];
    for (event, expected) in refused {
        for error in [whole.send(&event).await.unwrap_err(), parts.send(&event).await.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Codec);
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
    client.sent("orders").none();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn handlers_and_receivers_take_events_and_others_are_dead_letters() -> Result<()> {
    let client = TestClient::with_profile(Profile::Amqp);
    let orders = TypedSender::<Event, Binary>::new(client.sender("orders").await?);
    let handled = async |event: &Event| -> Result<()> {
        orders.send(event).await.map(drop)?;
        orders.sender().send("no event").await.map(drop)
    };
    let worker = Worker::new(client.receiver("orders").await?);
    let running = tokio::spawn(worker.serve(|event: Event| async move { assert_eq!(event, self::event()) }));
    handled(&event()).await?;
    client.acked("orders").one().await;
    let dead = client.dead_lettered("orders").one().await;
    let RecordedAnswer::DeadLettered { reason, .. } = &dead.answer else { panic!("{dead}") };
    assert!(reason.starts_with("the event is not the JSON of one: expected ident"), "{reason}");
    running.abort();

    let worker = Worker::new(client.receiver("typed").await?);
    tokio::spawn(worker.serve(|Typed(event, ..): Typed<CloudEvent<Order>, Structured<Cbor>>| async move {
        assert_eq!(event.into_data(), Some(order()));
    }));
    TypedSender::<Event, Binary<Cbor>>::new(client.sender("typed").await?).send(&event()).await?;
    client.acked("typed").one().await;

    let mut inbox = TypedReceiver::<Event, Structured>::new(client.receiver("plain").await?);
    let plain = TypedSender::<Event, Structured>::new(client.sender("plain").await?);
    plain.sender().send("no event").await?;
    plain.send(&event()).await?;
    let (received, delivery) = inbox.receive().await?;
    assert_eq!(received, event());
    delivery.ack();
    client.dead_lettered("plain").one().await;
    Ok(())
}
