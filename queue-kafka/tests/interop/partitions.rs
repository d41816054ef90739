//! Which partition a message goes to.

use std::collections::BTreeSet;

use queue_core::{Completion, Message};
use serde_json::Value;

use crate::common::{Rig, in_secs};
use crate::python::{self, hex};

pub(crate) const PARTITIONS: u32 = 8;

/// Keys of every length up to 40 bytes, among them each single byte and the empty one.
fn keys() -> Vec<Vec<u8>> {
    let texts = (0..1000).map(|i| format!("user-{i}").into_bytes());
    let bytes = (0..=255).map(|byte| vec![byte]);
    let lengths = (0..=40_u8).map(|length| (0..length).map(|i| i.wrapping_mul(151) ^ length).collect());
    texts.chain(bytes).chain(lengths).chain(["ünïcode".into()]).collect()
}

/// Where the broker put each message.
pub(crate) async fn partitions(rig: &Rig, messages: Vec<Message>) -> Vec<u32> {
    let (done, verdict) = Completion::new(messages.len());
    let count = messages.len();
    rig.producer().await.send(messages, done);
    let receipts = verdict.await.unwrap();
    (0..count).map(|i| receipts.get(i).unwrap().partition.unwrap()).collect()
}

pub(crate) async fn a_key_goes_to_the_partition_that_kafka_python_chooses() {
    let rig = Rig::new(PARTITIONS).await;
    let keys = keys();
    let ours = partitions(&rig, keys.iter().map(|key| Message::new("x").key(key.clone())).collect()).await;
    let theirs = python::run_with("keys.py", &[rig.queue.name()], &keys.iter().map(hex).collect()).await.remove(0);
    for ((key, ours), theirs) in keys.iter().zip(&ours).zip(theirs.as_array().unwrap()) {
        assert_eq!(theirs, ours, "{key:?}");
    }
    assert_eq!(ours.into_iter().collect::<BTreeSet<_>>(), (0..PARTITIONS).collect());
    rig.end().await;
}

pub(crate) async fn messages_without_a_key_spread() {
    let rig = Rig::new(PARTITIONS).await;
    let mut seen = BTreeSet::new();
    let deadline = in_secs(30);
    // Those that follow one another closely stay together, in a partition chosen by chance.
    while seen.len() < PARTITIONS as usize {
        assert!(in_secs(0) < deadline, "after 30 s only {seen:?}");
        seen.extend(partitions(&rig, vec![Message::new("x")]).await);
    }
    let none: Value = vec![Value::Null; 200].into();
    let mut theirs = BTreeSet::new();
    let deadline = in_secs(30);
    // It sends to those whose leaders it knows, which may be a few at first.
    while theirs.len() < PARTITIONS as usize {
        assert!(in_secs(0) < deadline, "after 30 s kafka-python sent to {theirs:?} only");
        let sent = python::run_with("keys.py", &[rig.queue.name()], &none).await.remove(0);
        theirs.extend(sent.as_array().unwrap().iter().map(|p| p.as_u64().unwrap()));
    }
    assert_eq!(theirs, (0..u64::from(PARTITIONS)).collect());
    rig.end().await;
}
