//! What kafka-python sends, as it arrives here.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use queue_core::{Address, Entry, HeaderValue, Headers, Message, Source, Topology};
use serde_json::Value;

use crate::common::{Rig, connect_to, fresh_name, in_secs, nothing, receive, text, url};
use crate::{client, python};

/// The time that `send.py` gives its messages.
fn sent_at() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)
}

/// Sends the messages of `send.py`; their names, in order.
async fn send(queue: &Address, names: &[&str]) -> Vec<String> {
    let arguments: Vec<_> = std::iter::once(queue.name()).chain(names.iter().copied()).collect();
    let sent = python::run("send.py", &arguments).await;
    sent.iter().map(|line| line["name"].as_str().unwrap().to_owned()).collect()
}

/// What arrives of them, by name.
async fn arrived(names: &[&str]) -> HashMap<String, Message> {
    let rig = Rig::new(1).await;
    let names = send(&rig.queue, names).await;
    let consumer = rig.consumer().await;
    let received = receive(&*consumer, names.len()).await;
    let messages = names.into_iter().zip(received.into_iter().map(|r| r.message.unwrap())).collect();
    rig.end().await;
    messages
}

fn message(payload: impl Into<Bytes>) -> Message {
    Message::new(payload).timestamp(sent_at())
}

pub(crate) async fn keys_values_and_timestamps_arrive_as_kafka_python_sent_them() {
    // Packed by gzip on the way, all of them.
    let arrived = arrived(&["text", "binary", "empty", "tombstone", "large"]).await;
    let bytes: Vec<u8> = (0..=255).collect();
    let reversed: Vec<u8> = (0..=255).rev().collect();
    assert_eq!(arrived["text"], message("grüße"));
    assert_eq!(arrived["text"].get_key(), None);
    assert_eq!(arrived["binary"], message(reversed).key(bytes));
    assert_eq!(arrived["empty"], message("").key(""));
    assert!(!arrived["empty"].is_tombstone() && arrived["empty"].get_key().is_some());
    assert_eq!(arrived["tombstone"], Message::tombstone("user-7").timestamp(sent_at()));
    assert_eq!(arrived["large"], message(vec![b'x'; 900_000]).key("k"));
}

pub(crate) async fn headers_arrive_in_order_with_repeats_and_nulls() {
    let arrived = arrived(&["headers", "repeated", "names"]).await;
    let expected: Headers = [
        ("text", HeaderValue::from("ünï")),
        ("bytes", vec![0, 0xff].into()),
        ("empty", "".into()),
        ("number", "7".into()),
        ("null", HeaderValue::Null),
    ]
    .into_iter()
    .collect();
    assert_eq!(arrived["headers"].headers(), &expected);
    let expected: Headers = [
        ("b", HeaderValue::from("1")),
        ("a", "2".into()),
        ("b", "3".into()),
        ("b", HeaderValue::Null),
        ("a", "2".into()),
    ]
    .into_iter()
    .collect();
    assert_eq!(arrived["repeated"].headers(), &expected);
    let names: Vec<_> = arrived["names"].headers().iter().map(|(name, _)| name).collect();
    let long = "n".repeat(1000);
    // The client in C ends a name at a NUL.
    assert_eq!(names, ["", "ünï ;%\n", &long, "Tenant", "tenant", "a.b", "__proto__", "nul"]);
}

pub(crate) async fn no_note_is_taken_for_one_that_is_none() {
    let names = ["a note that is none", "a note that is no text", "a note without a value"];
    let arrived = arrived(&names).await;
    for name in names {
        assert_eq!(arrived[name], message("x").header("a", "1"), "{name}");
    }
}

pub(crate) async fn the_broker_s_timestamp_is_no_timestamp_of_the_message() {
    let broker = connect_to(&url().unwrap()).await.unwrap();
    let mut entry = Entry::new(fresh_name().parse().unwrap());
    entry.partitions = Some(1);
    entry.native.insert("message.timestamp.type".to_owned(), "LogAppendTime".to_owned());
    let queue = entry.address.clone();
    broker.declare(&Topology::from_iter([entry])).await.unwrap();
    let rig = Rig { broker, queue };
    let before = SystemTime::now() - Duration::from_secs(1);
    send(&rig.queue, &["text"]).await;
    let arrived = receive(&*rig.consumer().await, 1).await.remove(0).message.unwrap();
    assert_eq!(arrived.get_timestamp(), None);
    let at = arrived.sent_at().unwrap();
    assert!(at > before && at < SystemTime::now() + Duration::from_secs(1), "{at:?}");
    rig.end().await;
}

pub(crate) async fn a_header_whose_name_is_no_utf8_makes_a_dead_letter_of_the_body() {
    let client = client().await;
    let queue: Address = fresh_name().parse().unwrap();
    let mut receiver = client.receiver(queue.name()).await.unwrap();
    send(&queue, &["latin name", "text"]).await;
    // The receiver goes on.
    let next = receiver.receive().await.unwrap();
    assert_eq!(next.text(), Some("grüße"));
    next.ack();
    let dead = python::received(queue.dead_letter().name(), 1).await.remove(0);
    assert_eq!((&dead["value"], &dead["key"]), (&Value::from(python::hex("latin")), &Value::Null));
    let headers = dead["headers"].as_array().unwrap();
    let reason = headers.iter().find(|header| header[0] == "anyqueue-reason").unwrap();
    assert!(reason[1].as_str().unwrap().contains(&python::hex("not UTF-8")), "{reason}");
    receiver.close(Duration::from_secs(10)).await;
    client.close(Duration::from_secs(10)).await;
}

pub(crate) async fn messages_of_a_transaction_that_was_given_up_do_not_arrive() {
    let rig = Rig::new(1).await;
    python::run("transactions.py", &[rig.queue.name()]).await;
    let consumer = rig.consumer().await;
    let received = receive(&*consumer, 2).await;
    assert_eq!([text(&received[0]), text(&received[1])], ["kept", "kept too"]);
    consumer.ack(&received.iter().map(|r| r.token).collect::<Vec<_>>());
    consumer.flush().await.unwrap();
    assert!(nothing(&*consumer, Duration::from_secs(1)).await);
    // The mark that ends the last transaction lies behind the position.
    let stats = rig.broker.stats(&Source::new(rig.queue.clone())).await.unwrap();
    assert_eq!(stats.lag, Some(1));
    consumer.close(in_secs(10)).await;
    rig.end().await;
}
