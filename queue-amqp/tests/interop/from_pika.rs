//! What pika sends, as it arrives here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use queue_core::{Address, Broker, HeaderValue, Headers, Message, Text};
use serde_json::Value;

use crate::common::{PATIENCE, connect, consumer, queue, receive_count, soon, unique};
use crate::{client, python};

/// How many messages `send.py` sends.
pub(crate) const COUNT: usize = 11;

/// What arrives of `send.py`, by message id; with the attempt.
async fn arrived(url: &str) -> HashMap<String, (Message, u32)> {
    let broker: Arc<dyn Broker> = connect(url).await.unwrap();
    let address = queue(&broker, "from-pika").await;
    python::run("send.py", &[url, address.name()]).await;
    let receiver = consumer(&broker, &address).await;
    let mut messages = HashMap::new();
    for received in receive_count(&receiver, COUNT).await {
        let message = received.message.unwrap();
        receiver.ack(&[received.token]);
        messages.insert(message.get_id().unwrap().to_owned(), (message, received.attempt));
    }
    receiver.flush().await.unwrap();
    broker.delete(&address).await.unwrap();
    messages
}

fn map(pairs: Vec<(&'static str, HeaderValue)>) -> HeaderValue {
    HeaderValue::Map(pairs.into_iter().map(|(name, value)| (Text::from(name), value)).collect())
}

fn list(values: Vec<HeaderValue>) -> HeaderValue {
    HeaderValue::List(values)
}

pub(crate) async fn bodies_and_properties_arrive_as_pika_sent_them(url: String) {
    let mut messages = arrived(&url).await;
    let (text, attempt) = messages.remove("text").unwrap();
    assert_eq!(text.text(), Some("grüße"));
    assert_eq!(attempt, 1);
    assert_eq!(text.get_content_type(), Some("text/plain"));
    assert_eq!(text.get_priority(), Some(5));
    assert_eq!(text.get_correlation_id(), Some("c-1"));
    assert_eq!(text.get_reply_to(), Some("replies"));
    assert_eq!(text.get_ttl(), Some(Duration::from_secs(60)));
    assert_eq!(text.get_timestamp(), Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
    assert_eq!(text.get_subject(), None);
    assert!(text.headers().is_empty());
    let native: Vec<_> = text.native_headers().iter().map(|(name, value)| (name, value.as_str().unwrap())).collect();
    let expected = [
        ("content-encoding", "utf-8"),
        ("type", "greeting"),
        ("user-id", "guest"),
        ("app-id", "pika"),
        ("cluster-id", "cluster"),
    ];
    assert_eq!(native, expected);
    let bytes: Vec<u8> = (0..=255).collect();
    assert_eq!(messages["binary"].0, Message::new(bytes).id("binary"));
    assert_eq!(messages["empty"].0, Message::new("").id("empty"));
    assert!(!messages["empty"].0.is_tombstone());
    assert_eq!(messages["several frames"].0, Message::new(vec![b'x'; 1_000_000]).id("several frames"));
}

pub(crate) async fn every_header_that_pika_sends_keeps_type_and_value(url: String) {
    let messages = arrived(&url).await;
    let headers = |name: &str| messages[name].0.headers().clone();
    // A table arrives in the order of its names: the client reads it into an ordered map.
    let expected: Headers = [
        ("below zero", HeaderValue::Float(-0.25)),
        ("bytes", vec![0, 0xff].into()),
        ("decimal", HeaderValue::Float(2.5)),
        ("empty", map(vec![])),
        ("false", false.into()),
        ("int", 7.into()),
        ("least", i64::MIN.into()),
        (
            "list",
            list(vec![
                1.into(),
                "two".into(),
                list(vec![vec![3].into(), HeaderValue::Null]),
                map(vec![("four", 4.into())]),
            ]),
        ),
        ("nothing", list(vec![])),
        ("null", HeaderValue::Null),
        (
            "table",
            map(vec![("", "empty".into()), ("a", map(vec![("deep", list(vec![true.into()]))])), ("b", 1.into())]),
        ),
        ("text", "ünï".into()),
        ("time", (UNIX_EPOCH + Duration::from_secs(1_700_000_000)).into()),
        ("true", true.into()),
        ("wide", (1_i64 << 40).into()),
    ]
    .into_iter()
    .collect();
    assert_eq!(headers("headers"), expected);
    let far = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    let expected: Headers = [
        ("byte", HeaderValue::Int(-128)),
        ("deep", list(vec![list(vec![])])),
        ("double", HeaderValue::Float(-1e300)),
        ("far future", far.into()),
        ("float", HeaderValue::Float(0.5)),
        ("int", i64::from(i32::MIN).into()),
        ("latin", vec![0xe9].into()),
        ("long", i64::MIN.into()),
        ("short", (-32768).into()),
        ("unsigned byte", 255.into()),
        ("unsigned int", u32::MAX.into()),
        ("unsigned short", 65535.into()),
    ]
    .into_iter()
    .collect();
    assert_eq!(headers("types"), expected);
}

pub(crate) async fn odd_header_names_from_pika_arrive_and_no_note_is_taken_for_one(url: String) {
    let messages = arrived(&url).await;
    let headers = |name: &str| messages[name].0.headers().clone();
    let long = "n".repeat(255);
    let expected: Headers =
        [("", 1), ("Tenant", 4), ("__proto__", 7), ("a.b", 6), (long.as_str(), 3), ("tenant", 5), ("ünï ;%\n", 2)]
            .map(|(name, value)| (name.to_owned(), value))
            .into_iter()
            .collect();
    assert_eq!(headers("names"), expected);
    // A table has one value per name: the last of RabbitMQ 3.10, which keeps their order, and the first of 4.3.
    let repeated = headers("repeated");
    let names: Vec<_> = repeated.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["a", "b"]);
    assert!([Some(1), Some(3)].contains(&repeated.get("b").and_then(HeaderValue::as_int)), "{repeated:?}");
    for name in ["a note that is none", "a note that is no text"] {
        assert_eq!(headers(name), [("a", 1)].into_iter().collect(), "{name}");
        assert_eq!(messages[name].0.get_key(), None);
    }
    // Counts of another queue are no attempts here.
    let (moved, attempt) = &messages["moved"];
    assert_eq!(*attempt, 1);
    assert_eq!(moved.headers().len(), 1);
    assert!(moved.native_headers().get("x-death").is_some());
}

/// Receives with the public handles, and takes what pika finds in the dead letters.
async fn dead(url: &str, kind: &str) -> Value {
    let client = client(&format!("{url}?max_backoff=100ms")).await;
    let name = unique("hard");
    let dead = Address::queue(&name).unwrap().dead_letter();
    let mut receiver = client.receiver(name.as_str()).await.unwrap();
    python::run("send.py", &[url, &name, kind]).await;
    let pika = python::received(url, dead.name(), 1);
    let seen = tokio::select! {
        mut seen = pika => seen.remove(0),
        delivery = receiver.next() => panic!("{delivery:?}"),
    };
    // The receiver goes on.
    client.sender(name.as_str()).await.unwrap().send("next").await.unwrap();
    let next = soon(receiver.receive()).await.unwrap();
    assert_eq!(next.text(), Some("next"));
    next.ack();
    receiver.close(PATIENCE).await;
    client.delete(name.as_str()).await.unwrap();
    client.delete(dead).await.unwrap();
    seen
}

pub(crate) async fn headers_that_nest_too_deep_make_a_dead_letter_of_the_body(url: String) {
    let seen = dead(&url, "nested").await;
    assert_eq!(seen["body"], "6e6573746564");
    let reason = seen["headers"]["dict"]["anyqueue-reason"].as_str().unwrap();
    assert!(reason.contains("lists and tables"), "{reason}");
}

/// The client cannot read such texts and drops the connection; the server counts, and ends it.
pub(crate) async fn names_and_properties_that_are_no_utf8_end_in_the_dead_letters_of_the_server(url: String) {
    for kind in ["latin property", "latin name"] {
        let start = std::time::Instant::now();
        let seen = dead(&url, kind).await;
        eprintln!("{kind}: {:?}", start.elapsed());
        assert_eq!(seen["body"], "6c6174696e");
        assert_eq!(seen["headers"]["dict"]["x-first-death-reason"], "delivery_limit");
    }
}
