//! CloudEvents both ways with the official SDK for Python.

use std::time::Duration;

use queue_worker::cloudevents::{Binary, Structured};
use queue_worker::codec::Encode;
use queue_worker::{TypedReceiver, TypedSender};
use serde_json::Value;
use tokio::time::timeout;

use crate::common::fresh_name;
use crate::event::{Event, described, event};
use crate::{client, python};

/// Longest wait for an event.
const PATIENCE: Duration = Duration::from_secs(240);

async fn seen<C: Encode<Event>>() -> Value {
    let (client, queue) = (client().await, fresh_name());
    let sender = TypedSender::<Event, C>::new(client.sender(&*queue).await.unwrap());
    sender.send(&event()).await.unwrap();
    let mut seen = python::run("events.py", &[&queue, "receive", "1"]).await.remove(0);
    client.delete(&*queue).await.unwrap();
    assert_eq!(seen.as_object_mut().unwrap().remove("key").unwrap(), "user-7");
    seen
}

pub(crate) async fn events_reach_the_official_sdk_in_each_mode() {
    let expected = described("2023-11-14 22:13:20.123000+00:00");
    assert_eq!(seen::<Structured>().await, expected);
    assert_eq!(seen::<Binary>().await, expected);
}

pub(crate) async fn events_of_the_official_sdk_arrive_in_each_mode() {
    let (client, queue) = (client().await, fresh_name());
    let mut inbox = TypedReceiver::<Event, Binary>::new(client.receiver(&*queue).await.unwrap());
    let event_of_python = described("2023-11-14T23:13:20.123+01:00").to_string();
    python::run("events.py", &[&queue, "send", &event_of_python]).await;
    for _ in 0..2 {
        let (got, delivery) = timeout(PATIENCE, inbox.receive()).await.expect("in time").unwrap();
        assert_eq!(got, event());
        delivery.ack();
    }
    client.delete(&*queue).await.unwrap();
}
