//! CloudEvents both ways with the official SDK for Python.

use queue_worker::cloudevents::{Binary, Structured};
use queue_worker::codec::Encode;
use queue_worker::{TypedReceiver, TypedSender};
use serde_json::Value;

use crate::common::{soon, unique};
use crate::event::{Event, described, event};
use crate::{client, python};

async fn seen<C: Encode<Event>>(url: &str) -> Value {
    let (client, queue) = (client(url).await, unique("events"));
    let sender = TypedSender::<Event, C>::new(client.sender(&*queue).await.unwrap());
    sender.send(&event()).await.unwrap();
    let lines = python::run("events.py", &[url, &queue, "receive", "1"]).await;
    client.delete(&*queue).await.unwrap();
    serde_json::from_str(&lines[0]).unwrap()
}

pub(crate) async fn events_reach_the_official_sdk_in_each_mode(url: String) {
    let expected = described("2023-11-14 22:13:20.123000+00:00");
    assert_eq!(seen::<Structured>(&url).await, expected);
    assert_eq!(seen::<Binary>(&url).await, expected);
}

pub(crate) async fn events_of_the_official_sdk_arrive_in_each_mode(url: String) {
    let (client, queue) = (client(&url).await, unique("events"));
    let mut inbox = TypedReceiver::<Event, Binary>::new(client.receiver(&*queue).await.unwrap());
    let event_of_python = described("2023-11-14T23:13:20.123+01:00").to_string();
    python::run("events.py", &[&url, &queue, "send", &event_of_python]).await;
    for _ in 0..4 {
        let (got, delivery) = soon(inbox.receive()).await.unwrap();
        assert_eq!(got, event());
        delivery.ack();
    }
    client.delete(&*queue).await.unwrap();
}
