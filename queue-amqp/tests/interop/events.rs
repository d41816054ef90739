//! CloudEvents both ways with the official SDK for Python.

use std::time::{Duration, UNIX_EPOCH};

use queue_worker::cloudevents::{Binary, CloudEvent, Structured};
use queue_worker::codec::Encode;
use queue_worker::{TypedReceiver, TypedSender};
use serde_json::{Value, json};

use crate::common::{soon, unique};
use crate::{client, python};

type Event = CloudEvent<Value>;

/// The event of `described`.
fn event() -> Event {
    CloudEvent::new("17", "/shop", "com.example.placed", json!({"name": "grüße", "price": 0.5}))
        .subject("order/17")
        .time(UNIX_EPOCH + Duration::from_millis(1_700_000_000_123))
        .partition_key("user-7")
}

/// The same for the SDK, with its own way to print a time where it is one that it read.
fn described(time: &str) -> Value {
    json!({
        "attributes": {
            "specversion": "1.0", "id": "17", "source": "/shop", "type": "com.example.placed", "subject": "order/17",
            "time": time, "partitionkey": "user-7", "datacontenttype": "application/json",
        },
        "data": {"name": "grüße", "price": 0.5},
    })
}

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
