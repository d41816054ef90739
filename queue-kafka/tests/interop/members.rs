//! A group whose members are receivers here and kafka-python at the same time.

use std::collections::BTreeMap;

use queue_core::{Consumer, ErrorKind};
use serde_json::json;
use tokio::time::{Duration, timeout};

use crate::common::{Rig, in_secs, numbered, some, text, url};
use crate::python::{self, Member};

const PARTITIONS: u32 = 4;
const COUNT: u32 = 400;

/// Takes what comes within a moment, acknowledges it, and counts it.
pub(crate) async fn work(consumer: &dyn Consumer, seen: &mut BTreeMap<String, u32>) {
    let Ok(received) = timeout(Duration::from_millis(200), some(consumer, 100)).await else { return };
    let received = received.unwrap();
    for one in &received {
        *seen.entry(text(one)).or_default() += 1;
    }
    consumer.ack(&received.iter().map(|r| r.token).collect::<Vec<_>>());
}

/// Both sides get half of the partitions, every message comes once, and who stays gets what the other had.
async fn share(rig: &Rig, assignors: &[&str]) {
    let name = rig.queue.name();
    let consumer = rig.consumer().await;
    let mut member = Member::join(name, name, assignors);
    let mut here = BTreeMap::new();
    // Without a receiver that goes on polling no member would ever get its share.
    loop {
        tokio::select! {
            line = member.next() => {
                let assigned = line["assigned"].as_array().expect("nothing was sent yet");
                if assigned.len() == PARTITIONS as usize / 2 {
                    break;
                }
            }
            () = async { loop { work(&*consumer, &mut here).await } } => {}
        }
    }
    rig.send(numbered(0..COUNT)).await;
    let mut there = BTreeMap::new();
    let deadline = in_secs(60);
    while here.len() + there.len() < COUNT as usize {
        assert!(in_secs(0) < deadline, "{} of {COUNT} came here and {} there", here.len(), there.len());
        tokio::select! {
            line = member.next() => *there.entry(python::text(&line)).or_default() += 1,
            // Once: the last of all may be among these, after which the member has nothing to say.
            () = work(&*consumer, &mut here) => {}
        }
    }
    println!("{} here and {} there", here.len(), there.len());
    assert!(here.len() > 50 && there.len() > 50);
    let mut all: BTreeMap<String, u32> = here.clone();
    there.iter().for_each(|(text, count)| *all.entry(text.clone()).or_default() += count);
    assert_eq!(all, (0..COUNT).map(|i| (i.to_string(), 1)).collect());

    consumer.flush().await.unwrap();
    assert_eq!(member.leave().await, [json!(null); 0]);
    rig.send(numbered(COUNT..2 * COUNT)).await;
    let deadline = in_secs(30);
    here.clear();
    while here.len() < COUNT as usize {
        assert!(in_secs(0) < deadline, "{} of {COUNT} came after the other had left", here.len());
        work(&*consumer, &mut here).await;
    }
    assert_eq!(here, (COUNT..2 * COUNT).map(|i| (i.to_string(), 1)).collect());
    consumer.close(in_secs(10)).await;
}

pub(crate) async fn kafka_python_shares_a_group_by_cooperative_sticky() {
    let rig = Rig::new(PARTITIONS).await;
    share(&rig, &["cooperative-sticky"]).await;
    rig.end().await;
}

pub(crate) async fn kafka_python_with_its_defaults_shares_a_group_that_is_set_to_them() {
    let rig = Rig::at(&format!("{}?kafka.partition.assignment.strategy=range", url().unwrap()), PARTITIONS).await;
    share(&rig, &["range", "roundrobin"]).await;
    rig.end().await;
}

pub(crate) async fn a_group_without_a_strategy_in_common_ends_the_receiver_with_a_conflict() {
    let rig = Rig::new(PARTITIONS).await;
    let name = rig.queue.name();
    let mut member = Member::join(name, name, &["range", "roundrobin"]);
    while member.next().await["assigned"].as_array().unwrap().len() < PARTITIONS as usize {}
    let consumer = rig.consumer().await;
    let error = timeout(Duration::from_secs(20), some(&*consumer, 1)).await.expect("it is told").unwrap_err();
    assert_eq!((error.kind(), error.context("topic")), (ErrorKind::Conflict, Some(name)), "{error}");
    member.leave().await;
    rig.end().await;
}
