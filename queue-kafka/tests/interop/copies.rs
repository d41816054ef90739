//! Dead letters and retries, as kafka-python sees them.

use std::time::{Duration, UNIX_EPOCH};

use queue_core::{Address, HeaderValue, Message};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::client;
use crate::common::fresh_name;
use crate::python::{self, hex};

const PATIENCE: Duration = Duration::from_secs(10);
const AT: u64 = 1_700_000_000_123;

/// The values of a record's headers, as text.
fn header(record: &Value, name: &str) -> Option<String> {
    let headers = record["headers"].as_array().unwrap();
    let found: Vec<_> = headers.iter().filter(|header| header[0] == name).collect();
    assert!(found.len() < 2, "{found:?}");
    let value = found.first()?[1].as_str().unwrap().to_owned();
    Some(python::text(&json!({ "value": value })))
}

pub(crate) async fn a_dead_letter_is_a_plain_message_for_kafka_python() {
    let client = client().await;
    let queue: Address = fresh_name().parse().unwrap();
    let mut receiver = client.receiver(queue.name()).await.unwrap();
    let sender = client.sender(queue.name()).await.unwrap();
    let at = UNIX_EPOCH + Duration::from_millis(AT);
    let text = Message::new("hello").key("k").timestamp(at).header("tenant", "acme").header("tenant", "umbrella");
    let binary = Message::new(vec![0, 0xff]).key(vec![0xfe]).timestamp(at).header("null", HeaderValue::Null);
    for message in [text, binary, Message::tombstone("gone").timestamp(at)] {
        sender.send(message).await.unwrap();
        receiver.receive().await.unwrap().reject("not a number");
    }
    let mut dead = python::received(queue.dead_letter().name(), 3).await;
    // Each in the partition of its key.
    let mut take = |key: &[u8]| dead.remove(dead.iter().position(|d| d["key"] == hex(key)).unwrap());
    for (key, value, own) in [
        (&b"k"[..], Some(hex("hello")), json!([["tenant", hex("acme")], ["tenant", hex("umbrella")]])),
        (b"\xfe", Some("00ff".to_owned()), json!([["null", null]])),
        (b"gone", None, json!([])),
    ] {
        let seen = take(key);
        assert_eq!((&seen["value"], &seen["timestamp"]), (&json!(value), &json!(AT)));
        let (mine, theirs): (Vec<_>, Vec<_>) = seen["headers"]
            .as_array()
            .unwrap()
            .iter()
            .cloned()
            .partition(|header| header[0].as_str().unwrap().starts_with("anyqueue-"));
        assert_eq!(json!(theirs), own);
        let names: Vec<_> = mine.iter().map(|header| header[0].as_str().unwrap()).collect();
        assert_eq!(
            names,
            ["anyqueue-reason", "anyqueue-attempts", "anyqueue-origin", "anyqueue-dead-at", "anyqueue-h"]
        );
        assert_eq!(header(&seen, "anyqueue-reason").unwrap(), "not a number");
        assert_eq!(header(&seen, "anyqueue-attempts").unwrap(), "1");
        assert_eq!(header(&seen, "anyqueue-origin").unwrap(), queue.name());
        let dead_at: f64 = header(&seen, "anyqueue-dead-at").unwrap().parse().unwrap();
        let age = UNIX_EPOCH.elapsed().unwrap().as_secs_f64() - dead_at;
        assert!((0.0..60.0).contains(&age), "{age}");
    }
    receiver.close(PATIENCE).await;
    client.close(PATIENCE).await;
}

pub(crate) async fn a_dead_letter_that_kafka_python_sent_back_is_the_message_again() {
    let client = client().await;
    let queue: Address = fresh_name().parse().unwrap();
    let dead = queue.dead_letter();
    let mut receiver = client.receiver(queue.name()).await.unwrap();
    let sender = client.sender(queue.name()).await.unwrap();
    sender.send(Message::new("hello").key("k").id("i").header("n", 7)).await.unwrap();
    receiver.receive().await.unwrap().reject("first");
    python::received(dead.name(), 1).await;
    python::run("forward.py", &[dead.name(), queue.name(), "1"]).await;
    let again = receiver.receive().await.unwrap();
    assert_eq!((again.text(), again.attempt()), (Some("hello"), 1));
    assert_eq!((again.get_id(), again.headers().get("n")), (Some("i"), Some(&HeaderValue::Int(7))));
    assert_eq!(again.headers().get("anyqueue-reason").and_then(HeaderValue::as_str), Some("first"));
    again.reject("second");
    let letters = python::received(dead.name(), 2).await;
    assert_eq!(header(&letters[1], "anyqueue-reason").as_deref(), Some("second"));
    receiver.close(PATIENCE).await;
    client.close(PATIENCE).await;
}

pub(crate) async fn a_retry_is_an_attempt_beside_the_position_to_kafka_python() {
    let client = client().await;
    let queue: Address = fresh_name().parse().unwrap();
    let mut receiver = client.receiver(queue.name()).await.unwrap();
    client.sender(queue.name()).await.unwrap().send(Message::new("hello").key("k")).await.unwrap();
    let begun = Instant::now();
    for attempt in 1..=3 {
        let delivery = receiver.receive().await.unwrap();
        assert_eq!(delivery.attempt(), attempt);
        if attempt < 3 {
            delivery.retry_after(Duration::from_millis(100));
        } else {
            assert!(begun.elapsed() >= Duration::from_millis(200));
            // Not answered: it waits where it lies, and only its attempt stands beside the position.
            receiver.flush().await.unwrap();
            let committed = python::run("committed.py", &[queue.name(), queue.name()]).await.remove(0);
            let there: Vec<_> = committed.as_array().unwrap().iter().filter(|place| !place.is_null()).collect();
            assert_eq!(there, [&json!([0, "aq1:;0x3"])], "{committed}");
            delivery.ack();
        }
    }
    receiver.close(PATIENCE).await;
    python::received(queue.name(), 1).await;
    let topics = python::run("topics.py", &[]).await.remove(0);
    let mut ours: Vec<_> = topics.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    ours.retain(|name| name.starts_with(queue.name()));
    assert_eq!(ours, [queue.name(), queue.dead_letter().name()], "no topic for retries");
    client.close(PATIENCE).await;
}
