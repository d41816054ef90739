//! Queues that pika declared its own way.

use queue_core::{Address, ErrorKind, Message};
use serde_json::json;

use crate::common::{PATIENCE, connect, producer, send, soon, unique};
use crate::{client, python};

pub(crate) async fn queues_of_pikas_own_making_are_sent_to_and_received_from(url: String) {
    let client = client(&url).await;
    let mut pika = python::Declaring::start(&url).await;
    let ways = [
        json!({"durable": true}),
        json!({"durable": true, "auto_delete": true}),
        json!({"durable": true, "arguments": {"x-queue-type": "quorum", "x-delivery-limit": 3}}),
        json!({"durable": true, "arguments": {
            "x-max-priority": 5,
            "x-message-ttl": 60_000,
            "x-max-length": 1000,
            "x-overflow": "reject-publish",
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "elsewhere",
            "x-single-active-consumer": true,
        }}),
    ];
    for way in ways {
        let name = unique("own");
        let mut declare = way.clone();
        declare["queue"] = json!(name);
        pika.call(&json!([["queue_declare", declare]])).await;
        let mut receiver = client.receiver(name.as_str()).await.unwrap();
        let sender = client.sender(name.as_str()).await.unwrap();
        sender.send("from here").await.unwrap();
        let delivery = soon(receiver.receive()).await.unwrap();
        assert_eq!((delivery.text(), delivery.attempt()), (Some("from here"), 1));
        delivery.ack();
        pika.publish(&name, "from pika", &json!({})).await;
        let delivery = soon(receiver.receive()).await.unwrap();
        assert_eq!(delivery.text(), Some("from pika"));
        delivery.ack();
        // Nothing was changed: pika's own declaration is no conflict afterwards.
        pika.call(&json!([["queue_declare", declare]])).await;
        assert!(receiver.close(PATIENCE).await.is_clean(), "{way}");
        client.delete(name.as_str()).await.unwrap();
        client.delete(Address::queue(&name).unwrap().dead_letter()).await.unwrap();
    }
}

pub(crate) async fn an_exclusive_queue_of_pika_takes_messages_and_refuses_receivers(url: String) {
    let broker = connect(&url).await.unwrap();
    let mut pika = python::Declaring::start(&url).await;
    let name = unique("exclusive");
    pika.call(&json!([["queue_declare", {"queue": name, "exclusive": true}]])).await;
    let address = Address::queue(&name).unwrap();
    assert!(send(&producer(&broker, &address).await, vec![Message::new("x")]).await[0].is_none());
    let client = client(&url).await;
    let error = soon(async { client.receiver(name.as_str()).await }).await.unwrap_err();
    assert_eq!((error.kind(), error.context("queue")), (ErrorKind::Conflict, Some(name.as_str())), "{error:?}");
    client.delete(address.dead_letter()).await.unwrap();
}
