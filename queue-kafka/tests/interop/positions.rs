//! Positions of a group that receivers here and kafka-python use in turn.

use std::time::Duration;

use queue_core::Source;
use serde_json::{Value, json};

use crate::common::{Rig, in_secs, nothing, numbered, receive, text};
use crate::python;

/// What a member that is kafka-python takes of the rig's group, and commits, with this beside it.
async fn taken(rig: &Rig, count: usize, metadata: &str) -> Vec<String> {
    let name = rig.queue.name();
    let records = python::run("group.py", &[name, name, &count.to_string(), metadata]).await;
    records.iter().map(python::text).collect()
}

/// What kafka-python is told that the group has committed.
async fn committed(rig: &Rig) -> Value {
    let name = rig.queue.name();
    python::run("committed.py", &[name, name]).await.remove(0)
}

/// Takes `count` messages here, acknowledges some of them, and leaves; their texts.
async fn answered(rig: &Rig, count: usize, acked: &[usize]) -> Vec<String> {
    let consumer = rig.consumer().await;
    let received = receive(&*consumer, count).await;
    for index in acked {
        assert!(consumer.ack(&[received[*index].token]).stale.is_empty());
    }
    consumer.close(in_secs(10)).await;
    received.iter().map(text).collect()
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|i| i.to_string()).collect()
}

pub(crate) async fn kafka_python_goes_on_where_a_receiver_was() {
    let rig = Rig::new(1).await;
    rig.send(numbered(0..10)).await;
    assert_eq!(answered(&rig, 5, &[0, 1, 2, 3, 4]).await, numbers(0..5));
    assert_eq!(committed(&rig).await, json!([[5, ""]]));
    assert_eq!(taken(&rig, 5, "").await, numbers(5..10));
    rig.end().await;
}

pub(crate) async fn a_receiver_goes_on_where_kafka_python_was() {
    for metadata in ["host-7", "aq1:x", "ünï"] {
        let rig = Rig::new(1).await;
        rig.send(numbered(0..10)).await;
        assert_eq!(taken(&rig, 4, metadata).await, numbers(0..4));
        assert_eq!(committed(&rig).await, json!([[4, metadata]]));
        let stats = rig.broker.stats(&Source::new(rig.queue.clone())).await.unwrap();
        assert_eq!(stats.lag, Some(6));
        assert_eq!(answered(&rig, 6, &[0, 1, 2, 3, 4, 5]).await, numbers(4..10), "{metadata}");
        assert_eq!(committed(&rig).await, json!([[10, ""]]));
        rig.end().await;
    }
}

pub(crate) async fn kafka_python_reads_over_the_note_beside_a_position() {
    let rig = Rig::new(1).await;
    rig.send(numbered(0..10)).await;
    answered(&rig, 10, &[0, 1, 3, 4, 7]).await;
    assert_eq!(committed(&rig).await, json!([[2, "aq1:1+2,2+1"]]));
    // What is done beyond the position comes again there.
    assert_eq!(taken(&rig, 2, "").await, numbers(2..4));
    assert_eq!(committed(&rig).await, json!([[4, ""]]));
    // And here, once another client has written over the note.
    assert_eq!(answered(&rig, 6, &[1, 2, 3, 4]).await, numbers(4..10));
    assert_eq!(committed(&rig).await, json!([[4, "aq1:1+4"]]));
    // The note of a receiver is for the next one.
    let consumer = rig.consumer().await;
    let rest: Vec<_> = receive(&*consumer, 2).await.iter().map(text).collect();
    assert_eq!(rest, ["4", "9"]);
    assert!(nothing(&*consumer, Duration::from_millis(500)).await);
    consumer.close(in_secs(10)).await;
    rig.end().await;
}
