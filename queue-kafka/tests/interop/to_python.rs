//! What is sent from here, as kafka-python sees it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use queue_core::{Entry, HeaderValue, Message, Topology};
use serde_json::{Value, json};

use crate::common::{Rig, connect_to, fresh_name, receive, url};
use crate::python::{self, hex};

const AT: u64 = 1_700_000_000_123;

fn at() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(AT)
}

fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// Sends, and gives what kafka-python says of it but for where it lies.
async fn seen(rig: &Rig, messages: Vec<Message>) -> Vec<Value> {
    let count = messages.len();
    rig.send(messages).await;
    let mut all = python::received(rig.queue.name(), count).await;
    for (offset, one) in all.iter_mut().enumerate() {
        let one = one.as_object_mut().unwrap();
        assert_eq!((one.remove("partition").unwrap(), one.remove("offset").unwrap()), (json!(0), json!(offset)));
    }
    all
}

pub(crate) async fn keys_values_and_timestamps_reach_kafka_python_as_they_are() {
    // Packed as kafka-python can unpack it without more than Python has.
    let rig = Rig::at(&format!("{}?kafka.compression.type=gzip", url().unwrap()), 1).await;
    let bytes: Vec<u8> = (0..=255).collect();
    let before = now();
    let messages = vec![
        Message::new("grüße").timestamp(at()),
        Message::new(bytes.clone()).key(bytes.clone()).timestamp(at()),
        Message::new("").key("").timestamp(at()),
        Message::tombstone("user-7").timestamp(at()),
        Message::new("now"),
    ];
    let mut seen = seen(&rig, messages).await;
    let plain = |key: Option<&[u8]>, value: Option<&[u8]>| {
        json!({
            "timestamp": AT, "timestamp_type": 0, "key": key.map(hex), "value": value.map(hex), "headers": [],
        })
    };
    let last = seen.pop().unwrap();
    let expected = [
        plain(None, Some("grüße".as_bytes())),
        plain(Some(&bytes), Some(&bytes)),
        plain(Some(b""), Some(b"")),
        plain(Some(b"user-7"), None),
    ];
    assert_eq!(seen, expected);
    let time = last["timestamp"].as_u64().unwrap();
    assert!(before <= time && time <= now(), "{last}");
    assert_eq!((&last["timestamp_type"], &last["headers"]), (&json!(0), &json!([])));
    rig.end().await;
}

pub(crate) async fn headers_reach_kafka_python_in_order_with_repeats_and_nulls() {
    let rig = Rig::new(1).await;
    let long = "n".repeat(1000);
    let message = Message::new("x")
        .header("b", "1")
        .header("a", "2")
        .header("b", "3")
        .header("bytes", vec![0, 0xff])
        .header("null", HeaderValue::Null)
        .header("", "")
        .header("ünï ;%\n", "ünï")
        .header(long.clone(), "long");
    let seen = seen(&rig, vec![message]).await;
    let expected = json!([
        ["b", hex("1")],
        ["a", hex("2")],
        ["b", hex("3")],
        ["bytes", "00ff"],
        ["null", null],
        ["", ""],
        ["ünï ;%\n", hex("ünï")],
        [long, hex("long")],
    ]);
    assert_eq!(seen[0]["headers"], expected);
    rig.end().await;
}

/// A message with everything that Kafka has no place for.
fn noted() -> Message {
    Message::new("x")
        .key("k")
        .timestamp(at() + Duration::from_nanos(7))
        .id("i;7")
        .subject("eu.north")
        .content_type("text/plain")
        .correlation_id("c")
        .reply_to("replies")
        .header("text", "as it is")
        .header("int", 7)
        .header("float", 0.5)
        .header("bool", true)
        .header("text bytes", b"text".to_vec())
        .header("at", at())
        .header("list", vec![HeaderValue::Int(1), "x".into()])
        .header("nul\0byte", "v")
}

pub(crate) async fn what_kafka_cannot_say_is_one_header_more_for_kafka_python() {
    let rig = Rig::new(1).await;
    let seen = seen(&rig, vec![noted()]).await;
    assert_eq!(seen[0]["timestamp"], AT);
    let headers = seen[0]["headers"].as_array().unwrap();
    let text = |index: usize| {
        let value = headers[index][1].as_str().unwrap();
        let bytes = (0..value.len()).step_by(2).map(|i| u8::from_str_radix(&value[i..i + 2], 16).unwrap());
        (headers[index][0].as_str().unwrap(), String::from_utf8(bytes.collect()).unwrap())
    };
    let found: Vec<_> = (0..headers.len()).map(text).collect();
    let note = "#ii%3B7;#seu.north;#ctext/plain;#oc;#rreplies;#t1700000000.123000007;0.1i2d3b4y5@6v:nul%00byte;sv;";
    let expected = [
        ("text", "as it is"),
        ("int", "7"),
        ("float", "0.5"),
        ("bool", "true"),
        ("text bytes", "text"),
        ("at", "1700000000.123000000"),
        ("list", "[i1;sx;]"),
        ("anyqueue-h", note),
    ];
    assert_eq!(found, expected.map(|(name, value)| (name, value.to_owned())));
    rig.end().await;
}

pub(crate) async fn a_topic_with_the_broker_s_time_shows_it_to_kafka_python() {
    let broker = connect_to(&url().unwrap()).await.unwrap();
    let mut entry = Entry::new(fresh_name().parse().unwrap());
    entry.partitions = Some(1);
    entry.native.insert("message.timestamp.type".to_owned(), "LogAppendTime".to_owned());
    let queue = entry.address.clone();
    broker.declare(&Topology::from_iter([entry])).await.unwrap();
    let rig = Rig { broker, queue };
    let before = now();
    let seen = seen(&rig, vec![Message::new("x").timestamp(at())]).await;
    let time = seen[0]["timestamp"].as_u64().unwrap();
    assert!(before <= time && time <= now(), "{seen:?}");
    assert_eq!(seen[0]["timestamp_type"], 1);
    rig.end().await;
}

pub(crate) async fn what_kafka_python_sent_on_is_the_same_here() {
    let (first, second) = (Rig::new(1).await, Rig::new(1).await);
    let sent = vec![
        noted(),
        Message::new(vec![0, 0xff]).key(vec![0xfe]).timestamp(at()).header("tag", "a").header("tag", "b"),
        Message::tombstone("k").timestamp(at()).id("t"),
        Message::new("").timestamp(at()),
    ];
    first.send(sent.clone()).await;
    python::run("forward.py", &[first.queue.name(), second.queue.name(), &sent.len().to_string()]).await;
    let consumer = second.consumer().await;
    let received = receive(&*consumer, sent.len()).await;
    let messages: Vec<_> = received.into_iter().map(|r| r.message.unwrap()).collect();
    assert_eq!(messages, sent);
    first.end().await;
    second.end().await;
}

pub(crate) async fn what_was_sent_on_from_here_is_the_same_for_kafka_python() {
    let (first, second) = (Rig::new(1).await, Rig::new(1).await);
    let count = python::run("send.py", &[first.queue.name()]).await.len();
    let consumer = first.consumer().await;
    let received = receive(&*consumer, count).await;
    second.send(received.into_iter().map(|r| r.message.unwrap()).collect()).await;
    let mut original = python::received(first.queue.name(), count).await;
    for record in &mut original {
        let headers = record["headers"].as_array_mut().unwrap();
        // Notes are not the message's own, also those that are none.
        headers.retain(|header| header[0] != "anyqueue-h");
        // Cut off by the client in C.
        for header in headers.iter_mut().filter(|header| header[0] == "nul\0byte") {
            header[0] = json!("nul");
        }
    }
    assert_eq!(python::received(second.queue.name(), count).await, original);
    first.end().await;
    second.end().await;
}
